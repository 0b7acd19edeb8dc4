//! What to tell an operator whose etcd holds no configuration.

use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{net::TcpStream, time::timeout};

/// How long the old interface may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Largest answer that is taken, in bytes.
const LARGEST: usize = 1 << 20;
/// What to write where nothing better is known.
const EXAMPLE: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// One sentence: which key was looked for, and how to write it.
///
/// Many guides write the configuration with `etcdctl mk` or `etcdctl set`. That is version 2 of etcd's
/// interface, which has keys of its own; where it answers at `endpoint`, the sentence says so.
pub(super) async fn no_config(key: &str, endpoint: &str) -> String {
    match timeout(PATIENCE, in_version_2(key, endpoint)).await {
        Ok(Some(value)) => format!(
            "etcd holds no configuration at {key} (version 3 of its interface), but it does in version 2, which \
             `etcdctl mk` and `etcdctl set` write: copy it with `{}`",
            command(key, endpoint, &value)
        ),
        _ => format!(
            "etcd holds no configuration at {key}: write it, for example with `{}`",
            command(key, endpoint, EXAMPLE)
        ),
    }
}

fn command(key: &str, endpoint: &str, value: &str) -> String {
    format!("ETCDCTL_API=3 etcdctl --endpoints={endpoint} put {} {}", quoted(key), quoted(value.trim()))
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// An answer of version 2: `{"action":"get","node":{"key":"/x/config","value":"..."}}`.
#[derive(Deserialize)]
struct Answer {
    node: Node,
}

#[derive(Deserialize)]
struct Node {
    value: String,
}

/// The value of the key in version 2 of the interface. It is not asked for over TLS: clusters that have
/// it are older than that habit.
async fn in_version_2(key: &str, endpoint: &str) -> Option<String> {
    let host = endpoint.strip_prefix("http://")?;
    let stream = TcpStream::connect(host).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let talk = tokio::spawn(connection);
    let path = format!("/v2/keys/{}", key.trim_start_matches('/'));
    let request = Request::get(path).header("Host", host).body(http_body_util::Empty::<Bytes>::new()).ok()?;
    let response = sender.send_request(request).await.ok()?;
    let found = response.status().is_success();
    let body = Limited::new(response.into_body(), LARGEST).collect().await.ok()?.to_bytes();
    talk.abort();
    let answer: Answer = serde_json::from_slice(&body).ok().filter(|_| found)?;
    Some(answer.node.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_sentence_names_the_key_and_the_command() {
        assert_eq!(
            no_config("/atomic.io/network/config", "http://127.77.77.1:2").await,
            "etcd holds no configuration at /atomic.io/network/config: write it, for example with \
             `ETCDCTL_API=3 etcdctl --endpoints=http://127.77.77.1:2 put /atomic.io/network/config \
             '{\"Network\":\"10.244.0.0/16\",\"Backend\":{\"Type\":\"vxlan\"}}'`"
        );
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("/a/b-c.d:1"), "/a/b-c.d:1");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}

//! What to tell an operator whose etcd holds no configuration.

use super::version2;
use crate::flags::EtcdSettings;

/// What to write where nothing better is known.
const EXAMPLE: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// One sentence: which key was looked for, and how to write it.
///
/// Many guides write the configuration with `etcdctl mk` or `etcdctl set`. That is version 2 of etcd's
/// interface, which has keys of its own; where it answers at `endpoint`, the sentence says so.
pub(super) async fn no_config(key: &str, endpoint: &str, settings: &EtcdSettings) -> String {
    match version2::read(key, endpoint, settings).await {
        Some(value) => format!(
            "etcd holds no configuration at {key} (version 3 of its interface), but it does in version 2, which \
             `etcdctl mk` and `etcdctl set` write: copy it with `{}`",
            // On one line, however it was written: what JSON holds does not change by that.
            command(key, endpoint, &value.split_whitespace().collect::<Vec<_>>().join(" "))
        ),
        None => format!(
            "etcd holds no configuration at {key}: write it, for example with `{}`",
            command(key, endpoint, EXAMPLE)
        ),
    }
}

fn command(key: &str, endpoint: &str, value: &str) -> String {
    format!("ETCDCTL_API=3 etcdctl --endpoints={endpoint} put {} {}", quoted(key), quoted(value))
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> EtcdSettings {
        EtcdSettings {
            endpoints: Vec::new(),
            prefix: String::new(),
            ca_file: None,
            identity: None,
            user: None,
            renew_margin: std::time::Duration::from_secs(3600),
        }
    }

    #[tokio::test]
    async fn the_sentence_names_the_key_and_the_command() {
        assert_eq!(
            no_config("/atomic.io/network/config", "http://127.77.77.1:2", &settings()).await,
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

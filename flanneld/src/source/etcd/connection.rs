//! Calls to an etcd cluster of which any member may be away.
//!
//! Each endpoint has a client of its own, made when it is first used and thrown away when a call
//! through it fails. A call goes to the endpoint that answered last, then to the others; one that
//! failed rests for a while, unless all of them rest.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use daemon::{Backoff, Random};
use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use tokio::time::{Instant, timeout};

use super::failure::{Failure, Verdict, judge};
use crate::flags::EtcdSettings;

/// A member that has not answered a call after this long does not answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A member that has not taken a connection after this long is away.
const CONNECT: Duration = Duration::from_secs(2);
/// A connection is probed when it was silent for this long, and given up after half of it.
const SILENCE: Duration = Duration::from_secs(10);
/// A member that fails again and again is asked at least this often while others answer.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// Where systems keep the certificates of the public authorities: Debian, Fedora, openSUSE, Alpine.
pub(super) const SYSTEM_AUTHORITIES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// An etcd cluster.
#[derive(Debug)]
pub(super) struct Connection {
    settings: EtcdSettings,
    members: Vec<Member>,
    /// The member that answered last.
    current: usize,
}

struct Member {
    url: String,
    client: Option<Client>,
    resting_until: Option<Instant>,
    rest: Backoff,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.url)
    }
}

impl Connection {
    /// Nothing is connected until the first call.
    pub(super) fn new(settings: EtcdSettings) -> Self {
        let member = |url: &String| Member {
            url: url.clone(),
            client: None,
            resting_until: None,
            rest: Backoff::up_to(LONGEST_REST, Random::from_system()),
        };
        let members = settings.endpoints.iter().map(member).collect();
        Self { settings, members, current: 0 }
    }

    /// The URL of the member that answered last.
    pub(super) fn endpoint(&self) -> &str {
        self.members.get(self.current).map_or("", |member| &member.url)
    }

    /// How the cluster is reached.
    pub(super) fn settings(&self) -> &EtcdSettings {
        &self.settings
    }

    /// Does `work` on the first member that answers, each one at most once.
    ///
    /// # Errors
    /// No member answers, or one refuses. After a failure the work may have been done nevertheless.
    pub(super) async fn call<T, F, W>(&mut self, work: W) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
        W: Fn(Client) -> F,
    {
        let mut causes = Vec::new();
        for index in self.order(Instant::now()) {
            match self.call_one(index, &work).await {
                Ok(answer) => {
                    self.current = index;
                    self.succeeded(index);
                    return Ok(answer);
                }
                Err(Verdict::Away(cause)) => {
                    self.failed(index);
                    let url = self.members[index].url.clone();
                    let cause = with_hint(&url, self.settings.identity.is_none(), cause);
                    causes.push((index, url, cause));
                }
                Err(Verdict::Refused(cause)) => return Err(self.refused(index, cause)),
                Err(Verdict::Denied(cause)) => {
                    let prefix = self.settings.prefix.trim_end_matches('/');
                    let needs = "the user needs to read and write everything under";
                    return Err(self.refused(index, format!("{cause}: {needs} {prefix}/")));
                }
            }
        }
        // Always in the same order, so that the same trouble is said once.
        causes.sort();
        Err(Failure::unreachable(causes.into_iter().map(|(_, url, cause)| (url, cause))))
    }

    fn refused(&mut self, index: usize, cause: String) -> Failure {
        self.members[index].client = None;
        Failure::refused(&self.members[index].url, cause)
    }

    /// The member that answered last broke off, in the middle of a watch.
    pub(super) fn broke(&mut self) {
        self.failed(self.current);
    }

    /// Nothing that is connected is used any more: the next call connects anew.
    pub(super) fn disconnect(&mut self) {
        for member in &mut self.members {
            member.client = None;
        }
    }

    async fn call_one<T, F, W>(&mut self, index: usize, work: &W) -> Result<T, Verdict>
    where
        F: Future<Output = Result<T, Error>>,
        W: Fn(Client) -> F,
    {
        let late = |_| Verdict::Away(format!("no answer within {} s", PATIENCE.as_secs()));
        let client = timeout(PATIENCE, self.client(index)).await.map_err(late)??;
        timeout(PATIENCE, work(client)).await.map_err(late)?.map_err(|error| judge(&error))
    }

    /// Members in the order in which they are asked.
    fn order(&self, now: Instant) -> Vec<usize> {
        let count = self.members.len();
        let mut order: Vec<_> = (0..count).map(|step| (self.current + step) % count).collect();
        let rests = |index: &usize| self.members[*index].resting_until.is_some_and(|until| until > now);
        if order.iter().any(|index| !rests(index)) {
            order.sort_by_key(rests);
        }
        order
    }

    fn succeeded(&mut self, index: usize) {
        let member = &mut self.members[index];
        member.resting_until = None;
        member.rest.reset();
    }

    fn failed(&mut self, index: usize) {
        let member = &mut self.members[index];
        member.client = None;
        member.resting_until = Some(Instant::now() + member.rest.wait().max(Duration::from_secs(1)));
    }

    async fn client(&mut self, index: usize) -> Result<Client, Verdict> {
        if let Some(client) = &self.members[index].client {
            return Ok(client.clone());
        }
        let url = self.members[index].url.clone();
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT)
            .with_keep_alive(SILENCE, SILENCE / 2)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if url.starts_with("https://") {
            // Read anew for each connection, so that renewed certificates are used.
            let tls = tls(&self.settings).map_err(|error| Verdict::Refused(daemon::one_line(&error)))?;
            options = options.with_tls(tls);
        }
        let client = match &self.settings.user {
            None => Client::connect([&url], Some(options)).await,
            Some((name, password)) => {
                let named = options.clone().with_user(name, password.expose());
                match Client::connect([&url], Some(named)).await {
                    // A cluster without users takes everybody, as with etcd's own client.
                    Err(Error::GRpcStatus(status)) if status.message().contains("not enabled") => {
                        Client::connect([&url], Some(options)).await
                    }
                    result => result,
                }
            }
        };
        let client = client.map_err(|error| judge(&error))?;
        self.members[index].client = Some(client.clone());
        Ok(client)
    }
}

/// A host that is away and a server that hangs up show in many ways, one time this and one time that; one text
/// for all of them is said once. The latter is also what happens where only one of the two sides speaks TLS, or
/// where the server wants a certificate of a client that has none (`anonymous`).
fn with_hint(url: &str, anonymous: bool, cause: String) -> String {
    const AWAY: &[&str] =
        &["deadline has elapsed", "no answer within", "no route to host", "timed out", "timeout"];
    const HUNG_UP: &[&str] =
        &["connection closed", "connection reset", "broken pipe", "reading a body from connection"];
    const REFUSED_TLS: &[&str] =
        &["tls handshake eof", "invalidcontenttype", "alert: certificate", "alert: badcertificate"];
    let is = |ways: &[&str]| ways.iter().any(|way| cause.to_lowercase().contains(way));
    if is(AWAY) && !cause.starts_with("etcdserver: ") {
        return "no answer in time, or no route to its host".to_owned();
    }
    let hint = match (url.starts_with("https://"), anonymous) {
        (false, _) if is(HUNG_UP) => "if it speaks TLS, write https://",
        (true, false) if is(HUNG_UP) || is(REFUSED_TLS) => {
            "if it does not speak TLS, write http://; else see whether it takes the certificate of -etcd-certfile"
        }
        (true, true) if is(HUNG_UP) || is(REFUSED_TLS) => {
            "if it does not speak TLS, write http://; if it wants a client certificate, give -etcd-certfile and \
             -etcd-keyfile"
        }
        _ => return cause,
    };
    format!("it closed the connection ({hint})")
}

/// A file for TLS could not be used.
#[derive(Debug, thiserror::Error)]
#[error("failed to read {}", path.display())]
struct TlsFileError {
    path: PathBuf,
    #[source]
    cause: io::Error,
}

fn tls(settings: &EtcdSettings) -> Result<TlsOptions, TlsFileError> {
    let read = |path: &Path| fs::read(path).map_err(|cause| TlsFileError { path: path.to_owned(), cause });
    let authorities = match &settings.ca_file {
        Some(path) => Some(read(path)?),
        None => SYSTEM_AUTHORITIES.iter().find_map(|path| fs::read(path).ok()),
    };
    let mut tls = TlsOptions::new();
    if let Some(pem) = authorities {
        tls = tls.ca_certificate(Certificate::from_pem(pem));
    }
    if let Some((certificate, key)) = &settings.identity {
        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(urls: &[&str]) -> Connection {
        Connection::new(EtcdSettings {
            endpoints: urls.iter().map(|url| (*url).to_owned()).collect(),
            prefix: "/x".to_owned(),
            ca_file: None,
            identity: None,
            user: None,
            renew_margin: Duration::from_secs(3600),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_failed_rests_while_another_answers() {
        let mut etcd = connection(&["a", "b", "c"]);
        assert_eq!(etcd.order(Instant::now()), [0, 1, 2]);
        etcd.failed(0);
        assert_eq!(etcd.order(Instant::now()), [1, 2, 0]);
        etcd.current = 1;
        etcd.failed(2);
        assert_eq!(etcd.order(Instant::now()), [1, 2, 0]);
        etcd.failed(1);
        assert_eq!(etcd.order(Instant::now()), [1, 2, 0], "all rest: nobody is spared");
        assert_eq!(etcd.order(Instant::now() + LONGEST_REST), [1, 2, 0]);
    }

    #[tokio::test]
    async fn without_a_member_the_failure_names_each_endpoint_and_its_cause() {
        // Nothing listens on these ports of a loopback address of our own.
        let mut etcd = connection(&["http://127.77.77.1:2", "http://127.77.77.1:3"]);
        let failure = etcd.call(|mut client| async move { client.status().await }).await.unwrap_err();
        assert_eq!(
            failure.to_string(),
            "etcd does not answer: http://127.77.77.1:2: Connection refused (os error 111); \
             http://127.77.77.1:3: Connection refused (os error 111)"
        );
    }

    #[test]
    fn a_host_that_is_away_is_told_of_in_one_text_and_what_differs_in_its_own() {
        let say = |cause: &str| with_hint("http://a", true, cause.to_owned());
        let away = "no answer in time, or no route to its host";
        for cause in ["deadline has elapsed", "No route to host (os error 113)", "no answer within 5 s"] {
            assert_eq!(say(cause), away);
        }
        for cause in ["Connection refused (os error 111)", "etcdserver: request timed out"] {
            assert_eq!(say(cause), cause);
        }
    }

    #[tokio::test]
    async fn a_missing_file_for_tls_is_named() {
        let mut etcd = connection(&["https://127.77.77.1:2"]);
        etcd.settings.ca_file = Some("/nonexistent/ca.pem".into());
        let failure = etcd.call(|mut client| async move { client.status().await }).await.unwrap_err();
        assert_eq!(
            failure.to_string(),
            "etcd at https://127.77.77.1:2 can't be used: failed to read /nonexistent/ca.pem: \
             No such file or directory (os error 2)"
        );
    }
}

//! A look into version 2 of etcd's interface, whose keys version 3 does not see.

use std::{path::Path, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

use super::connection::SYSTEM_AUTHORITIES;
use crate::flags::EtcdSettings;

/// How long the old interface may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Largest answer that is taken, in bytes.
const LARGEST: usize = 1 << 20;

/// An answer: `{"action":"get","node":{"key":"/x/config","value":"..."}}`.
#[derive(Deserialize)]
struct Answer {
    node: Node,
}

#[derive(Deserialize)]
struct Node {
    value: String,
}

/// The value of `key`, where the old interface answers at `endpoint` and has it.
pub(super) async fn read(key: &str, endpoint: &str, settings: &EtcdSettings) -> Option<String> {
    timeout(PATIENCE, connect_and_ask(key, endpoint, settings)).await.ok()?
}

async fn connect_and_ask(key: &str, endpoint: &str, settings: &EtcdSettings) -> Option<String> {
    let (scheme, host) = endpoint.split_once("://")?;
    let stream = TcpStream::connect(host).await.ok()?;
    if scheme == "http" {
        return ask(stream, key, host).await;
    }
    let (name, _port) = host.rsplit_once(':')?;
    let name = ServerName::try_from(name.trim_matches(['[', ']']).to_owned()).ok()?;
    let connector = TlsConnector::from(Arc::new(tls(settings)?));
    ask(connector.connect(name, stream).await.ok()?, key, host).await
}

async fn ask<S>(stream: S, key: &str, host: &str) -> Option<String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let talk = tokio::spawn(connection);
    let path = format!("/v2/keys/{}", key.trim_start_matches('/'));
    let request = Request::get(path).header("Host", host).body(Empty::<Bytes>::new()).ok()?;
    let response = sender.send_request(request).await.ok()?;
    let found = response.status().is_success();
    let body = Limited::new(response.into_body(), LARGEST).collect().await.ok()?.to_bytes();
    talk.abort();
    let answer: Answer = serde_json::from_slice(&body).ok().filter(|_| found)?;
    Some(answer.node.value)
}

/// The same files as for version 3; what is wrong with them was said there.
fn tls(settings: &EtcdSettings) -> Option<ClientConfig> {
    let certificates = |path: &Path| -> Option<Vec<CertificateDer<'static>>> {
        CertificateDer::pem_file_iter(path).ok()?.collect::<Result<_, _>>().ok()
    };
    let authorities = match &settings.ca_file {
        Some(path) => certificates(path)?,
        None => SYSTEM_AUTHORITIES.iter().find_map(|path| certificates(Path::new(path))).unwrap_or_default(),
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities);
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().ok()?.with_root_certificates(roots);
    match &settings.identity {
        None => Some(builder.with_no_client_auth()),
        Some((certificate, key)) => {
            let key = PrivateKeyDer::from_pem_file(key).ok()?;
            builder.with_client_auth_cert(certificates(certificate)?, key).ok()
        }
    }
}

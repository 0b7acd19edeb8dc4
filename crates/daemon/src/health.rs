//! `/healthz` and `/readyz`, on the port that flannel and kube-proxy use for them.
//!
//! `/healthz` answers 200 as long as the process serves, so that a liveness probe does not kill a
//! daemon which merely waits; the sentence about what it waits for is in the body. `/readyz` answers
//! 503 with that sentence until the first success, and 200 from then on: the data plane stays up while a
//! source is away.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};

use crate::{Backoff, OnChange, Random};

/// A client that has sent no whole request after this long is cut off.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections served at once; further ones wait.
const CONNECTIONS: usize = 64;

/// What the endpoints say. Clones share it.
#[derive(Clone, Debug)]
pub struct Health {
    program: &'static str,
    state: watch::Sender<State>,
}

#[derive(Debug)]
struct State {
    ready: bool,
    trouble: Option<String>,
}

impl Health {
    /// The state of a program that has just started.
    #[must_use]
    pub fn new(program: &'static str) -> Self {
        Self { program, state: watch::Sender::new(State { ready: false, trouble: None }) }
    }

    /// The program does its job, or not yet; `trouble` says what it waits for, or what deserves a sentence though
    /// it does: the data plane stays up while etcd is away.
    pub fn set(&self, ready: bool, trouble: Option<&str>) {
        let trouble = trouble.map(str::to_owned);
        self.state.send_replace(State { ready, trouble });
    }

    /// Status and body for a path; no status for a path that is not ours.
    fn answer(&self, path: &str) -> Option<(StatusCode, String)> {
        let state = self.state.borrow();
        let trouble = state.trouble.as_deref();
        match path {
            "/healthz" => {
                let running = format!("{} is running", self.program);
                Some((
                    StatusCode::OK,
                    [Some(running.as_str()), trouble].into_iter().flatten().collect::<Vec<_>>().join("\n"),
                ))
            }
            "/readyz" if state.ready => Some((StatusCode::OK, format!("{} is ready", self.program))),
            "/readyz" => {
                let reason = trouble.map_or_else(|| format!("{} is starting", self.program), str::to_owned);
                Some((StatusCode::SERVICE_UNAVAILABLE, reason))
            }
            _ => None,
        }
    }
}

/// Serves the endpoints at `address` for ever; port 0 means not at all.
///
/// An address that cannot be taken is one line in the log and is tried again.
pub async fn serve(health: Health, address: SocketAddr) {
    if address.port() == 0 {
        return;
    }
    let mut backoff = Backoff::up_to(Duration::from_secs(5), Random::from_system());
    let mut said = OnChange::default();
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                if said.is_new(&error.to_string()) {
                    tracing::error!(%address, %error, "failed to listen for health checks; trying again");
                }
                tokio::time::sleep(backoff.wait()).await;
            }
        }
    };
    if said.clear() {
        tracing::info!(%address, "listening for health checks now");
    }
    accept(health, listener).await;
}

async fn accept(health: Health, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let health = health.clone();
                tokio::spawn(async move {
                    // A client that hangs up or sends garbage is its own business.
                    let _ = converse(health, stream).await;
                    drop(place);
                });
            }
            // Such as too many open files: it passes, but not at once.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn converse(health: Health, stream: TcpStream) -> hyper::Result<()> {
    let service = service_fn(move |request| {
        let answer = respond(&health, &request);
        async move { Ok::<_, Infallible>(answer) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn respond(health: &Health, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let readable = matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, body) = match health.answer(request.uri().path()) {
        None => (StatusCode::NOT_FOUND, "not found".to_owned()),
        Some(_) if !readable => (StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD".to_owned()),
        Some(answer) => answer,
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        format!("{} {}", head.split(' ').nth(1).unwrap(), body.trim_end().replace('\n', " / "))
    }

    #[tokio::test]
    async fn health_and_readiness_follow_the_state() {
        let health = Health::new("flanneld");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(accept(health.clone(), listener));
        assert_eq!(get(at, "GET /healthz").await, "200 flanneld is running");
        assert_eq!(get(at, "GET /readyz").await, "503 flanneld is starting");
        health.set(false, Some("no config at /x/config"));
        assert_eq!(get(at, "GET /healthz").await, "200 flanneld is running / no config at /x/config");
        assert_eq!(get(at, "GET /readyz").await, "503 no config at /x/config");
        health.set(true, None);
        assert_eq!(get(at, "GET /readyz").await, "200 flanneld is ready");
        health.set(true, Some("etcd is away"));
        assert_eq!(get(at, "GET /healthz").await, "200 flanneld is running / etcd is away");
        assert_eq!(get(at, "GET /readyz").await, "200 flanneld is ready");
        assert_eq!(get(at, "HEAD /healthz").await, "200 ");
        assert_eq!(get(at, "POST /healthz").await, "405 only GET and HEAD");
        assert_eq!(get(at, "GET /").await, "404 not found");
    }

    #[tokio::test]
    async fn a_port_in_use_is_taken_as_soon_as_it_is_free() {
        let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = holder.local_addr().unwrap();
        tokio::spawn(serve(Health::new("flanneld"), address));
        tokio::time::sleep(Duration::from_millis(150)).await;
        drop(holder);
        for _ in 0..100 {
            if TcpStream::connect(address).await.is_ok() {
                return assert_eq!(get(address, "GET /healthz").await, "200 flanneld is running");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the freed port was not taken");
    }

    #[tokio::test]
    async fn port_zero_means_off() {
        serve(Health::new("flanneld"), ([127, 0, 0, 1], 0).into()).await;
    }
}

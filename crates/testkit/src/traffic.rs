//! Servers and clients inside namespaces, on threads of this process.
//!
//! Servers answer with their name and with the address they saw the client under, so that a client, or
//! `curl`, learns in one line who answered and what the packet's source was on arrival.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::Netns;

/// How often a waiting server looks whether it should end.
const LOOK_UP: Duration = Duration::from_millis(200);

/// A server on a thread; it ends when this value goes.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// A TCP server in `net` that answers every connection with `<name> <client's address>` as an HTTP
    /// response (any request will do, also none: it waits 50 ms for one) and closes it.
    ///
    /// # Errors
    /// When the address can't be bound.
    pub fn tcp(net: &Netns, at: impl Into<SocketAddr>, name: &str) -> Result<Self> {
        let at = at.into();
        let listener =
            net.inside(|| TcpListener::bind(at))?.with_context(|| format!("failed to bind {at}/tcp"))?;
        set_socket_timeout(&listener, Timeout::Recv, Some(LOOK_UP))?;
        let name = name.to_owned();
        Ok(Self::run(move |stop, served| {
            while !stop.load(Ordering::Relaxed) {
                let Ok((stream, client)) = listener.accept() else { continue };
                served.fetch_add(1, Ordering::Relaxed);
                let name = name.clone();
                thread::spawn(move || drop(answer(stream, client, &name)));
            }
        }))
    }

    /// A UDP server in `net` that answers every datagram with `<name> <client's address>:<datagram>`.
    ///
    /// # Errors
    /// When the address can't be bound.
    pub fn udp(net: &Netns, at: impl Into<SocketAddr>, name: &str) -> Result<Self> {
        let at = at.into();
        let socket =
            net.inside(|| UdpSocket::bind(at))?.with_context(|| format!("failed to bind {at}/udp"))?;
        socket.set_read_timeout(Some(LOOK_UP))?;
        let name = name.to_owned();
        Ok(Self::run(move |stop, served| {
            let mut buffer = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
                served.fetch_add(1, Ordering::Relaxed);
                let mut reply = format!("{name} {}:", client.ip()).into_bytes();
                reply.extend_from_slice(&buffer[..length]);
                drop(socket.send_to(&reply, client));
            }
        }))
    }

    fn run(work: impl FnOnce(&AtomicBool, &AtomicU64) + Send + 'static) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stop_inside, served_inside) = (Arc::clone(&stop), Arc::clone(&served));
        let thread = thread::spawn(move || work(&stop_inside, &served_inside));
        Self { stop, served, thread: Some(thread) }
    }

    /// How many connections or datagrams it has taken.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn answer(mut stream: TcpStream, client: SocketAddr, name: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    // Read first: closing with unread bytes would reset the connection.
    let _ = stream.read(&mut [0; 4096]);
    let body = format!("{name} {}\n", client.ip());
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes())
}

/// Who answered, and as whom the server saw the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The server's name.
    pub by: String,
    /// The client's address as it arrived.
    pub saw: Ipv4Addr,
}

impl Answer {
    fn parse(text: &str) -> io::Result<Self> {
        let line = text.trim_end().rsplit('\n').next().unwrap_or_default();
        let answer = line.split_once(' ').and_then(|(by, rest)| {
            let saw = rest.split(':').next()?.parse().ok()?;
            Some(Self { by: by.to_owned(), saw })
        });
        answer.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("not an answer: {text:?}")))
    }
}

/// Connects from this thread's namespace, asks, and reads the answer; all of it within `limit`.
///
/// # Errors
/// When the connection is refused, or anything takes too long.
pub fn ask_tcp(to: SocketAddrV4, limit: Duration) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&to.into(), limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Answer::parse(&text)
}

/// Sends one datagram from `socket` and waits for its answer, at most for `limit`; late answers to
/// earlier datagrams are passed over.
///
/// # Errors
/// When it can't be sent, is refused, or no answer comes.
pub fn ask_udp(socket: &UdpSocket, to: SocketAddrV4, limit: Duration) -> io::Result<Answer> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let question = format!("q{}", NEXT.fetch_add(1, Ordering::Relaxed));
    socket.send_to(question.as_bytes(), to)?;
    let end = Instant::now() + limit;
    let mut buffer = [0; 2048];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let (length, _) = socket.recv_from(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        if text.rsplit(':').next() == Some(&question) {
            return Answer::parse(&text);
        }
    }
}

/// What many connections came to.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How many were answered, by the server's name.
    pub answered: BTreeMap<String, u64>,
    /// How many failed, by what happened.
    pub failed: BTreeMap<String, u64>,
}

impl Tally {
    /// All connections.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.answered.values().chain(self.failed.values()).sum()
    }

    /// Connections that got no answer.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }
}

/// Opens one new connection after the other to a TCP server, on a thread inside a namespace, until stopped.
#[derive(Debug)]
pub struct Connector {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Tally>,
}

impl Connector {
    /// Starts at about `per_second` connections each second; each has `limit` to be answered.
    ///
    /// # Errors
    /// Without the right to enter the namespace.
    pub fn start(net: &Netns, to: SocketAddrV4, per_second: u32, limit: Duration) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stop_inside = Arc::clone(&stop);
        let gap = Duration::from_secs(1) / per_second.max(1);
        // A thread made inside stays inside.
        let thread = net.inside(move || {
            thread::spawn(move || {
                let mut tally = Tally::default();
                let mut next = Instant::now();
                while !stop_inside.load(Ordering::Relaxed) {
                    match ask_tcp(to, limit) {
                        Ok(answer) => *tally.answered.entry(answer.by).or_default() += 1,
                        Err(error) => *tally.failed.entry(error.kind().to_string()).or_default() += 1,
                    }
                    next += gap;
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
                tally
            })
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends it, and says what came of the connections.
    ///
    /// # Errors
    /// When its thread panicked.
    pub fn stop(self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the connecting thread panicked"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{eventually, netns_or_skip};

    const SOON: Duration = Duration::from_secs(2);

    fn at(port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
    }

    #[test]
    fn servers_say_who_they_are_and_whom_they_saw() -> Result<()> {
        let Some(net) = netns_or_skip() else { return Ok(()) };
        let _web = Server::tcp(&net, at(80), "web")?;
        let dns = Server::udp(&net, at(53), "dns")?;
        let expected = |by: &str| Answer { by: by.to_owned(), saw: Ipv4Addr::LOCALHOST };
        assert_eq!(net.inside(|| ask_tcp(at(80), SOON))??, expected("web"));
        let curl = net.cmd("curl -sS http://127.0.0.1/x").ok()?;
        assert_eq!(curl.stdout, "web 127.0.0.1\n");
        let socket = net.inside(|| UdpSocket::bind("127.0.0.1:0"))??;
        assert_eq!(ask_udp(&socket, at(53), SOON)?, expected("dns"));
        assert_eq!(dns.served(), 1);
        drop(dns);
        assert!(ask_udp(&socket, at(53), SOON).is_err(), "a server that is gone answers nothing");
        Ok(())
    }

    #[test]
    fn connections_are_counted_also_those_that_fail() -> Result<()> {
        let Some(net) = netns_or_skip() else { return Ok(()) };
        let web = Server::tcp(&net, at(80), "web")?;
        let connector = Connector::start(&net, at(80), 200, SOON)?;
        let ten = eventually(Duration::from_secs(20), || (web.served() >= 10).then_some(()));
        assert!(ten.is_some(), "only {} were served", web.served());
        drop(web);
        thread::sleep(Duration::from_millis(200));
        let tally = connector.stop()?;
        assert!(tally.answered["web"] >= 9, "{tally:?}");
        assert!(tally.failures() > 0, "{tally:?}");
        assert_eq!(tally.total(), tally.answered["web"] + tally.failures());
        Ok(())
    }
}

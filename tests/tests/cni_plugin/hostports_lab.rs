//! A host with pods that have host ports, and a machine beyond it.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::{Cmd, Netns, traffic::Server};

use crate::{
    bed::{Answer, Bed, Who, call, with},
    masquerade,
};

/// How long an answer may take: the first packet to a new pod may have to be asked the way twice, a second
/// apart.
const PATIENCE: Duration = Duration::from_secs(3);
/// When silence is believed.
const SILENCE: Duration = Duration::from_millis(300);

/// The host is 192.0.2.1, 192.0.2.2 and 2001:db8::1, the machine beyond 192.0.2.9 and 2001:db8::9.
pub(crate) struct Lab {
    pub(crate) bed: Bed,
    pub(crate) outside: Netns,
}

/// A pod whose servers answer with its name on TCP and UDP port 80.
pub(crate) struct Pod {
    pub(crate) who: Who,
    pub(crate) netns: Netns,
    _servers: [Server; 2],
}

impl Lab {
    pub(crate) fn new(what: &str) -> Result<Option<Self>> {
        let Some(bed) = Bed::new(what)? else { return Ok(None) };
        // Otherwise IPv6 waits a second for interfaces to be sure of their own addresses.
        Cmd::new("sysctl -qw net.ipv6.conf.default.accept_dad=0").ok()?;
        let outside = masquerade::outside(&bed)?;
        Cmd::new("sysctl -qw net.ipv6.conf.default.accept_dad=1").ok()?;
        Cmd::new("ip addr add 192.0.2.2/24 dev out0").ok()?;
        Ok(Some(Self { bed, outside }))
    }

    /// A masqueraded network of both families whose entry asks for host ports.
    pub(crate) fn config(&self, mappings: &Value) -> Value {
        let config = with(&masquerade::config(&self.bed), &json!({"capabilities": {"portMappings": true}}));
        asking(&config, mappings)
    }

    pub(crate) fn pod(name: &str) -> Result<Pod> {
        let netns = Netns::new()?;
        let any: SocketAddr = "[::]:80".parse()?;
        let servers = [Server::tcp(&netns, any, name)?, Server::udp(&netns, any, name)?];
        Ok(Pod { who: Who::new(name, &netns), netns, _servers: servers })
    }

    /// A pod of that name with these host ports.
    pub(crate) fn add(&self, name: &str, mappings: &Value) -> Result<Pod> {
        let pod = Self::pod(name)?;
        call("ADD", &pod.who, &self.config(mappings)).result();
        Ok(pod)
    }

    pub(crate) fn try_add(&self, pod: &Pod, mappings: &Value) -> Answer {
        call("ADD", &pod.who, &self.config(mappings))
    }

    pub(crate) fn del(&self, pod: &Pod, mappings: &Value) {
        call("DEL", &pod.who, &self.config(mappings)).silent();
    }

    /// How many elements carry the mark of that container.
    pub(crate) fn elements_of(id: &str) -> Result<usize> {
        let table = Cmd::new("nft -j list table inet weft-cni").json()?.to_string();
        Ok(table.matches(&format!("weft:net/{id}/eth0")).count())
    }
}

/// `config` as the runtime hands it on with these host ports.
pub(crate) fn asking(config: &Value, mappings: &Value) -> Value {
    with(config, &json!({"runtimeConfig": {"portMappings": mappings}}))
}

/// TCP port `port` of the host leads to port 80 of the pod.
pub(crate) fn tcp(port: u16) -> Value {
    json!({"hostPort": port, "containerPort": 80, "protocol": "tcp"})
}

/// The same for UDP, as containerd writes it.
pub(crate) fn udp(port: u16) -> Value {
    json!({"HostPort": port, "ContainerPort": 80, "Protocol": "udp", "HostIP": ""})
}

/// Who answers a TCP connection from `from`, and as whom that sees the client.
pub(crate) fn ask(from: &Netns, to: &str) -> Result<(String, IpAddr)> {
    let to: SocketAddr = to.parse()?;
    let text = from.inside(|| -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })??;
    parse(text.lines().last().unwrap_or_default())
}

/// A client that keeps its port.
pub(crate) struct Caller(UdpSocket);

impl Caller {
    pub(crate) fn new(from: &Netns, ipv4: bool) -> Result<Self> {
        let any: SocketAddr = if ipv4 { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
        let socket = from.inside(|| UdpSocket::bind(any))??;
        Ok(Self(socket))
    }

    /// Nobody answers a datagram.
    pub(crate) fn is_unheard(&self, to: &str) -> bool {
        self.exchange(to, SILENCE).is_err()
    }

    /// Who answers a datagram, and as whom that sees the client.
    pub(crate) fn ask(&self, to: &str) -> Result<(String, IpAddr)> {
        self.exchange(to, PATIENCE)
    }

    fn exchange(&self, to: &str, wait: Duration) -> Result<(String, IpAddr)> {
        self.0.set_read_timeout(Some(wait))?;
        self.0.send_to(b"?", to)?;
        let mut buffer = [0; 200];
        let (length, _) = self.0.recv_from(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        parse(text.strip_suffix(":?").unwrap_or(&text))
    }
}

/// The same once, from any port.
pub(crate) fn ask_udp(from: &Netns, to: &str) -> Result<(String, IpAddr)> {
    Caller::new(from, !to.starts_with('['))?.ask(to)
}

fn parse(answer: &str) -> Result<(String, IpAddr)> {
    let (name, saw) = answer.split_once(' ').with_context(|| format!("no answer: {answer:?}"))?;
    Ok((name.to_owned(), saw.parse::<IpAddr>()?.to_canonical()))
}

/// `name` answered and saw `address`.
#[track_caller]
pub(crate) fn expect(answer: Result<(String, IpAddr)>, name: &str, address: &str) {
    match answer {
        Ok(answer) => assert_eq!(answer, (name.to_owned(), address.parse().unwrap())),
        Err(error) => panic!("{name} did not answer: {error:#}"),
    }
}

/// Nobody answers there, neither TCP nor UDP.
pub(crate) fn is_silent(from: &Netns, to: &str) -> Result<bool> {
    let address: SocketAddr = to.parse()?;
    let refused = from.inside(|| TcpStream::connect_timeout(&address, SILENCE).is_err())?;
    Ok(refused && Caller::new(from, address.is_ipv4())?.is_unheard(to))
}

//! The least that the kernel's work can cost: a bare netlink socket, and a process that wires one pod and does
//! nothing else.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, OwnedFd},
};

use anyhow::{Context, Result, bail, ensure};
use linux::{
    address::{Address, IfPresent},
    link::{self, Bridge, BridgePort, Veth},
    netlink::{Request, RouteSocket},
    netns::Netns,
    nft,
    route::Route,
};
use netmodel::{IfName, Mtu, Subnet};
use ruleset::{Element, Family, Field, Key, Name, SetSpec, Table, Transaction, Value};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink, recv,
    send, socket_with, sockopt,
};

/// The word that makes this program one floor process.
pub(crate) const COMMAND: &str = "floor";

/// The address of the bridge.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);

/// A netlink socket that sends bytes and reads one answer.
pub(crate) struct Bare {
    socket: OwnedFd,
}

impl Bare {
    /// Opens it in the namespace of the calling thread.
    pub(crate) fn open() -> Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_send_buffer_size_force(&socket, 1 << 20)?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self { socket })
    }

    /// Packs requests into one batch whose last message asks for an acknowledgement.
    pub(crate) fn pack(requests: &[Request]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, request) in requests.iter().enumerate() {
            let begin = bytes.len();
            // NLM_F_REQUEST, and NLM_F_ACK on the last one.
            let flags = request.flags | 1 | if number + 1 == requests.len() { 4 } else { 0 };
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(&request.kind.to_ne_bytes());
            bytes.extend_from_slice(&flags.to_ne_bytes());
            bytes.extend_from_slice(&[0; 8]);
            bytes.extend_from_slice(&request.payload);
            let length = bytes.len() - begin;
            bytes[begin..begin + 4].copy_from_slice(&(length as u32).to_ne_bytes());
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    /// Sends one batch and reads its acknowledgement.
    pub(crate) fn send(&self, batch: &[u8]) -> Result<()> {
        send(&self.socket, batch, SendFlags::empty())?;
        let mut answer = [0; 4096];
        let (_, length) = recv(&self.socket, &mut answer[..], RecvFlags::empty())?;
        ensure!(length >= 20, "a short answer");
        match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
            0 => Ok(()),
            errno => bail!("the kernel refused the batch: error {}", -errno),
        }
    }
}

/// The table of a node: which pods are masqueraded, which ports lead to them.
fn table() -> (Family, Name) {
    (Family::Inet, "floor".into())
}

const PODS: &str = "pods";
const PODS_KEY: Field = Field::IpSaddr;
const PORTS: &str = "ports";
const PORTS_KEY: Field = Field::ThDport;

/// Makes, in the namespace of the calling thread, what every pod of a node shares.
pub(crate) fn prepare() -> Result<()> {
    let mut socket = RouteSocket::open()?;
    let bridge = Bridge { name: "cni0".parse()?, mac: None, mtu: Some(Mtu::try_from(1450)?) };
    socket.request(&bridge.add())?;
    let index = socket.link(&bridge.name)?.context("the bridge that was just made is gone")?.index;
    let address = Address::new(index, GATEWAY.into(), 16).add(&bridge.name, IfPresent::Fail);
    socket.request(&address)?;
    socket.request(&link::set_up(1, &"lo".parse()?))?;
    let (family, name) = table();
    let mut table = Table::new(family, name);
    table.set(PODS, SetSpec::set(PODS_KEY));
    table.set(PORTS, SetSpec::set(PORTS_KEY));
    Ok(nft::Socket::open()?.commit(&Transaction::create(&table))?)
}

/// Runs as one floor process: `ADD <near name> <pod namespace> <address> [<host port>]`,
/// `DEL <near name> <address> [<host port>]` or `VERSION`.
pub(crate) fn run(words: &[String]) -> Result<()> {
    match words {
        [verb, near, namespace, address, port @ ..] if verb == "ADD" => {
            let address = address.parse()?;
            if let [port] = port {
                nft::Socket::open()?.commit(&elements(address, port.parse()?).0)?;
            }
            add(&near.parse()?, &Netns::open(namespace)?, address)
        }
        [verb, near, address, port @ ..] if verb == "DEL" => {
            del(&near.parse()?, address.parse()?, port.first().map(|port| port.parse()).transpose()?)
        }
        [verb] if verb == "VERSION" => Ok(()),
        _ => bail!("not a floor: {words:?}"),
    }
}

/// Wires one pod to bridge `cni0`, which is there: veth pair, hairpin, address, default route.
fn add(near: &IfName, pod: &Netns, address: IpAddr) -> Result<()> {
    let far = "eth0".parse()?;
    let mut host = RouteSocket::open()?;
    let bridge = host.link(&"cni0".parse()?)?.context("there is no cni0")?;
    let veth = Veth {
        name: near,
        mac: None,
        mtu: Some(Mtu::try_from(1450)?),
        master: Some(bridge.index),
        peer_name: &far,
        peer_mac: None,
        peer_namespace: pod,
    };
    let indexes = host.add_veth(&veth)?;
    let port = BridgePort { hairpin: true, ..BridgePort::default() };
    host.request(&link::set_port(indexes.near, near, port))?;
    let mut inside = RouteSocket::open_in(pod)?;
    let route = Route {
        gateway: Some(GATEWAY.into()),
        device: Some(indexes.far),
        ..Route::to(Subnet::new(Ipv4Addr::UNSPECIFIED.into(), 0)?)
    };
    let requests = [
        link::set_up(1, &"lo".parse()?),
        link::set_up(indexes.far, &far),
        Address::new(indexes.far, address, 16).add(&far, IfPresent::Fail),
        route.add(&far),
    ];
    for result in inside.apply(&requests) {
        result?;
    }
    Ok(())
}

/// Takes that pair away, and the elements; returns when the kernel announced the pair gone.
fn del(near: &IfName, address: IpAddr, port: Option<u16>) -> Result<()> {
    let link = RouteSocket::open()?.link(near)?.context("there is no pair")?;
    let rules = port.map(|port| -> Result<nft::Socket> {
        let mut socket = nft::Socket::open()?;
        socket.commit(&elements(address, port).1)?;
        Ok(socket)
    });
    let rules = rules.transpose()?;
    Ok(link::detach_and_delete(link.index, near, rules.as_ref().map(AsFd::as_fd))?)
}

/// The changes that add and delete what a pod has in the table.
fn elements(address: IpAddr, port: u16) -> (Transaction, Transaction) {
    let (family, name) = table();
    let (mut add, mut delete) = (Transaction::new(family, &name), Transaction::new(family, &name));
    for (set, field, value) in [(PODS, PODS_KEY, Value::from(address)), (PORTS, PORTS_KEY, Value::port(port))]
    {
        let (set, spec, key) = (Name::from(set), SetSpec::set(field), Key::from(value));
        add.add_elements(&set, &spec, [(key.clone(), Element::default())]);
        delete.delete_elements(&set, &spec, [key]);
    }
    (add, delete)
}

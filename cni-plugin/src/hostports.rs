//! Ports of the host that lead to a container, for `portmap` and for an interface plugin that the runtime
//! hands `portMappings`.

use std::net::IpAddr;

use cni_core::{Error, Forwarding, HostAddress, Nat, PortMappings, Translated};
use linux::{
    conntrack::{self, Filter, Flow},
    netlink::RouteSocket,
    route::Kind,
    sysctl,
};
use netmodel::{IfName, Protocol};

use crate::{failure::kernel, nat};

/// The host ports of one attachment.
pub(crate) struct HostPorts {
    ports: Vec<Forwarding>,
    mark_bit: Option<u8>,
}

impl HostPorts {
    /// What `mappings` are for `pods`, the container's addresses, which are behind interface `device`; behind
    /// the one that the host has a route by where none is given.
    pub(crate) fn new(
        mappings: &PortMappings,
        pods: impl Iterator<Item = IpAddr>,
        device: Option<&IfName>,
    ) -> Result<Self, Error> {
        let mut located = Vec::new();
        for pod in pods.filter(|_| !mappings.ports.is_empty()) {
            let device = device.cloned().map_or_else(|| device_to(pod), |device| Ok(Some(device)));
            located.push((pod, device.map_err(|e| kernel(&e))?));
        }
        Ok(Self { ports: mappings.to(&located), mark_bit: mappings.mark_bit })
    }

    /// None is asked for.
    pub(crate) const fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// Them in the table of address translation, beside the addresses of `whose` that are masqueraded.
    pub(crate) fn nat<'a>(&'a self, whose: &'a str, masqueraded: &'a [HostAddress]) -> Nat<'a> {
        Nat { whose, masqueraded, ports: &self.ports, mark_bit: self.mark_bit }
    }

    /// To be called once the rules are set: what else the way to the container needs.
    pub(crate) fn settle(&self) -> Result<(), Error> {
        for device in self.ports.iter().filter(|port| port.pod.is_ipv4()).filter_map(|p| p.behind.as_ref()) {
            let setting = ["net", "ipv4", "conf", device.as_str(), "route_localnet"];
            if sysctl::read(&setting).is_ok_and(|value| value == "1") {
                continue;
            }
            sysctl::write(&setting, "1").map_err(|e| kernel(&e))?;
        }
        let datagrams: Vec<_> = self.ports.iter().filter(|port| port.protocol == Protocol::Udp).collect();
        if datagrams.is_empty() {
            return Ok(());
        }
        tolerable(redirect(&datagrams))
    }
}

/// The interface by which this host reaches `pod`.
fn device_to(pod: IpAddr) -> Result<Option<IfName>, linux::Error> {
    let mut socket = RouteSocket::open()?;
    let way = socket.way_to(pod)?.filter(|way| way.kind == Kind::Unicast);
    let Some(way) = way else { return Ok(None) };
    Ok(socket.link_by_index(way.device)?.map(|link| link.name))
}

/// Makes the kernel forget where flows to these ports led before: to nobody, or to an earlier owner.
fn redirect(ports: &[&Forwarding]) -> Result<(), linux::Error> {
    let mut socket = conntrack::Socket::open()?;
    let mut local = None;
    for port in ports {
        let to = Filter {
            destination: port.host,
            destination_port: Some(port.port),
            ..Filter::all(port.protocol, port.pod.is_ipv4())
        };
        let mut flows = socket.flows(&to)?;
        flows.retain(|flow| {
            (flow.reply.source.ip(), flow.reply.source.port()) != (port.pod, port.container_port)
        });
        if flows.is_empty() {
            continue;
        }
        let local = match &local {
            Some(local) => local,
            None => local.insert(local_addresses()?),
        };
        flows.retain(|flow| is_local(flow, local));
        forget(&mut socket, &flows)?;
    }
    Ok(())
}

fn local_addresses() -> Result<Vec<IpAddr>, linux::Error> {
    Ok(RouteSocket::open()?.addresses(None)?.iter().map(|address| address.address).collect())
}

/// The client sent to this host.
fn is_local(flow: &Flow, local: &[IpAddr]) -> bool {
    let to = flow.original.destination.ip();
    to.is_loopback() || local.contains(&to)
}

fn forget(socket: &mut conntrack::Socket, flows: &[Flow]) -> Result<(), linux::Error> {
    socket.delete(flows).into_iter().collect()
}

/// Makes the kernel forget the flows through host ports that have ended: the next packet must not go to who
/// is gone.
pub(crate) fn end(ended: &[Translated]) -> Result<(), Error> {
    let datagrams: Vec<_> = ended.iter().filter(|port| port.protocol == Protocol::Udp).collect();
    if datagrams.is_empty() {
        return Ok(());
    }
    let done = conntrack::Socket::open().and_then(|mut socket| {
        for port in datagrams {
            let from = Filter {
                destination_port: Some(port.port),
                endpoint: Some(port.pod),
                endpoint_port: Some(port.container_port),
                ..Filter::all(port.protocol, port.pod.is_ipv4())
            };
            let flows = socket.flows(&from)?;
            forget(&mut socket, &flows)?;
        }
        Ok(())
    });
    tolerable(done)
}

/// A kernel that doesn't tell of its flows can't be made to forget one.
fn tolerable(done: Result<(), linux::Error>) -> Result<(), Error> {
    match done {
        Err(e) if e.is_unsupported() => Ok(()),
        done => done.map_err(|e| kernel(&e)),
    }
}

/// What belongs to an attachment whose alias is doomed goes, with its masquerading.
pub(crate) fn sweep(is_doomed: impl Fn(&str) -> bool) -> Result<(), Error> {
    nat::sweep(is_doomed).and_then(|ended| end(&ended))
}

//! VLANs: the bridge that keeps them apart, the ports in them, the gateway's interface in one.

use cni_core::{Bridge, Code, Error, Vlans, gateway_port};
use linux::{
    link::{self, Change, Link, Veth},
    netlink::{Request, RouteSocket},
    netns::Netns,
};
use netmodel::{IfName, MARK, Mtu};

use crate::{
    failure::kernel,
    linkage::{Host, parse_name, peer_of},
};

/// Fails with code 2 where VLANs are asked for and this kernel's bridges don't keep them apart, and where they can't
/// be had for another reason. Nothing is touched.
pub(crate) fn require(bridge: &Bridge) -> Result<(), Error> {
    let Some(vlans) = &bridge.vlans else { return Ok(()) };
    let is_capable = RouteSocket::open().and_then(|mut socket| socket.knows_vlans(&bridge.bridge));
    vlans.check(is_capable.map_err(|e| kernel(&e))?)
}

/// What puts bridge port `index` into `vlans`; where it is in them already nothing is lost meanwhile.
pub(crate) fn join(vlans: &Vlans, index: u32, name: &IfName) -> impl Iterator<Item = Request> {
    let others = vlans.others();
    let delete = (!others.is_empty()).then(|| link::delete_vlans(index, name, &others));
    [link::add_vlans(index, name, vlans.ports())].into_iter().chain(delete)
}

/// What the alias of the port begins with that a gateway's interface is behind. No network's name has a space in it.
const GATEWAY_MARK: &str = "gateway ";

/// `port` is nobody's: a gateway's interface is behind it.
pub(crate) fn is_of_gateway(port: &Link) -> bool {
    let alias = port.alias.as_deref().and_then(|alias| alias.strip_prefix(MARK));
    alias.is_some_and(|alias| alias.starts_with(GATEWAY_MARK))
}

impl Host<'_> {
    /// The interface that the gateways' addresses are for: bridge `device` itself, or one end of a veth pair whose
    /// other end is a port of the bridge in the VLAN. That one stays, as the bridge does, and is made whole
    /// where somebody has taken it apart.
    pub(crate) fn ensure_gateway_link(&mut self, device: &Link) -> Result<Link, Error> {
        let name = &self.bridge.gateway_link;
        let Some(vlans) = self.bridge.vlans.as_ref().filter(|_| *name != device.name) else {
            return Ok(device.clone());
        };
        let found = self.socket.link(name).map_err(|e| kernel(&e))?;
        let found = found.map_or_else(|| self.make_gateway_link(device), Ok)?;
        let port = peer_of(&mut self.socket, &found).map_err(|e| kernel(&e))?;
        let port =
            port.filter(|port| port.peer.is_some_and(|peer| peer.namespace.is_none())).ok_or_else(|| {
                Error::new(Code::Internal, format!("{:?} already exists but is no veth pair", name.as_str()))
            })?;
        let mtu = self.bridge.mtu.filter(|mtu| self.is_owned && found.mtu != u32::from(mtu.get()));
        let alias = format!("{MARK}{GATEWAY_MARK}{name}");
        let joined = Change {
            up: (!port.up).then_some(true),
            mtu,
            master: (port.master != Some(device.index)).then_some(Some(device.index)),
            alias: (port.alias.as_deref() != Some(&alias)).then_some(&alias),
            ..Change::default()
        };
        let mut requests = Vec::new();
        if joined != Change::default() {
            requests.push(link::change(port.index, &port.name, &joined));
        }
        let vlans = vlans.of_gateway();
        let is_joined = joined.master.is_none();
        if !is_joined || !vlans.are_met_by(&self.socket.vlans(port.index).map_err(|e| kernel(&e))?) {
            requests.extend(join(&vlans, port.index, &port.name));
        }
        let started = Change { up: (!found.up).then_some(true), mtu, ..Change::default() };
        if started != Change::default() {
            requests.push(link::change(found.index, name, &started));
        }
        let done: Result<(), _> = self.socket.apply(&requests).into_iter().collect();
        done.map_err(|e| kernel(&e))?;
        Ok(found)
    }

    /// The gateway's interface, still down.
    fn make_gateway_link(&mut self, device: &Link) -> Result<Link, Error> {
        let name = &self.bridge.gateway_link;
        let here = Netns::current().map_err(|e| kernel(&e))?;
        let veth = Veth {
            name: &parse_name(&gateway_port(name))?,
            mac: None,
            mtu: self.bridge.mtu.or_else(|| Mtu::try_from(u64::from(device.mtu)).ok()),
            master: Some(device.index),
            peer_name: name,
            peer_mac: Some(self.plan.gateway_mac),
            peer_namespace: &here,
        };
        let made = self.socket.add_veth(&veth);
        self.as_made(made, name)
    }
}

/// What of the VLANs of container port `near`, and of its gateway if it `has_gateway`, is not as ADD made it, in words.
pub(crate) fn missing(
    host: &mut RouteSocket,
    bridge: &Bridge,
    device: &Link,
    near: &Link,
    has_gateway: bool,
) -> Result<Vec<String>, linux::Error> {
    let mut missing = Vec::new();
    let Some(vlans) = &bridge.vlans else { return Ok(missing) };
    if !device.vlan_filtering {
        missing.push(format!("bridge {} does not keep VLANs apart", device.name));
    }
    let mut ports = vec![(near.clone(), vlans.clone())];
    if has_gateway && bridge.gateway_link != bridge.bridge {
        let link = host.link(&bridge.gateway_link)?;
        let port = link.as_ref().map(|link| peer_of(host, link)).transpose()?.flatten();
        match port.filter(|port| port.master == Some(device.index) && port.up) {
            Some(port) if link.is_some_and(|link| link.up) => ports.push((port, vlans.of_gateway())),
            _ => missing.push(format!("interface {} does not lead to the bridge", bridge.gateway_link)),
        }
    }
    for (port, vlans) in ports {
        if !vlans.are_met_by(&host.vlans(port.index)?) {
            missing.push(format!("bridge port {} is not in the VLANs it was put in", port.name));
        }
    }
    Ok(missing)
}

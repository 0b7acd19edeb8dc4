//! VLANs: the bridge that keeps them apart, and the ports in them.

use cni_core::{Bridge, Error, Vlans};
use linux::{
    link::{self, Link},
    netlink::{Request, RouteSocket},
};
use netmodel::{IfName, MARK};

use crate::{failure::kernel, links};

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

/// The alias of the port that gateway's interface `name` is behind.
pub(crate) fn gateway_alias(name: &IfName) -> String {
    format!("{MARK}{GATEWAY_MARK}{name}")
}

/// `port` is nobody's: a gateway's interface is behind it.
pub(crate) fn is_of_gateway(port: &Link) -> bool {
    let alias = port.alias.as_deref().and_then(|alias| alias.strip_prefix(MARK));
    alias.is_some_and(|alias| alias.starts_with(GATEWAY_MARK))
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
        let port = link.as_ref().map(|link| links::peer_of(host, link)).transpose()?.flatten();
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

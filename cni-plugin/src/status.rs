//! STATUS: whether a container can be attached now.

use cni_core::{Arguments, Attachment, Bridge, Code, Error, HostAddress, Ipam, Network};
use linux::netlink::RouteSocket;

use crate::{addresses, failure::kernel, foreign, linkage, networks, records::Records, vlans};

/// Silent if the network is ready. Whether its bridge `is_owned` see [`linkage::Host`].
pub(crate) fn status(network: &Network, is_owned: bool) -> Result<(), Error> {
    let bridge = Bridge::parse(network, &Arguments::default())?;
    vlans::require(&bridge)?;
    let any_attached = attached_are_reached(network, &bridge)?;
    if let Some(kind) = &bridge.foreign_ipam {
        return foreign::run(kind, "STATUS", network).map(drop);
    }
    let Some(ipam) = &bridge.ipam else { return Ok(()) };
    if bridge.is_gateway && (is_owned || any_attached) {
        has_gateways(&bridge, ipam, is_owned, any_attached)?;
    }
    let records = Records::of(network)?;
    let reservations = networks::reservations_beside(network, &records)?;
    reservations.map_or(Ok(()), |reservations| addresses::ready(ipam, &reservations, &records))
}

fn degraded(text: String) -> Error {
    Error::new(Code::Degraded, text)
}

/// Whether anybody is attached; code 51 if the bridge that they are attached to is not there or down.
fn attached_are_reached(network: &Network, bridge: &Bridge) -> Result<bool, Error> {
    let links = RouteSocket::open().and_then(|mut socket| socket.links()).map_err(|e| kernel(&e))?;
    let prefix = Attachment::alias_prefix(&network.name);
    if !links.iter().any(|link| link.alias.as_deref().is_some_and(|alias| alias.starts_with(&prefix))) {
        return Ok(false);
    }
    let name = &bridge.bridge;
    match links.iter().find(|link| link.name == *name) {
        Some(device) if device.up => Ok(true),
        Some(_) => Err(degraded(format!("containers are attached to bridge {name}, which is down"))),
        None => Err(degraded(format!("containers are attached to bridge {name}, which does not exist"))),
    }
}

/// The gateways' interface has their addresses, or nobody is attached and it can get them; else code 51. Containers of
/// an earlier subnet, whose peers are told of the new one, are in its way.
fn has_gateways(bridge: &Bridge, ipam: &Ipam, is_owned: bool, any_attached: bool) -> Result<(), Error> {
    let mut socket = RouteSocket::open().map_err(|e| kernel(&e))?;
    let device = socket.link(&bridge.gateway_link).map_err(|e| kernel(&e))?;
    let ranges = ipam.sets.iter().filter_map(|set| set.0.first());
    let gateways: Vec<HostAddress> =
        ranges.map(|range| HostAddress { address: range.gateway, prefix: range.subnet.prefix() }).collect();
    let planned =
        device.map(|device| linkage::plan_gateways(&mut socket, bridge, &device, &gateways, is_owned));
    let planned = planned.transpose().map_err(|error| Error { code: Code::Degraded, ..error })?;
    if planned.is_some_and(|planned| planned.is_empty()) || !any_attached {
        return Ok(());
    }
    let name = &bridge.bridge;
    Err(degraded(format!("containers are attached to bridge {name}, which has lost their gateway's address")))
}

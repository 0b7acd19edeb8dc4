//! STATUS: whether a container can be attached now.

use cni_core::{Arguments, Bridge, Code, Error, HostAddress, Ipam, Network};
use linux::netlink::RouteSocket;

use crate::{addresses, failure::kernel, foreign, linkage, networks};

/// Silent if the network is ready. Whether its bridge `is_owned` see [`linkage::Host`].
pub(crate) fn status(network: &Network, is_owned: bool) -> Result<(), Error> {
    let bridge = Bridge::parse(network, &Arguments::default())?;
    if let Some(kind) = &bridge.foreign_ipam {
        return foreign::run(kind, "STATUS", network).map(drop);
    }
    let Some(ipam) = &bridge.ipam else { return Ok(()) };
    if is_owned && bridge.is_gateway {
        bridge_is_free(&bridge, ipam)?;
    }
    networks::reservations(network)?.map_or(Ok(()), |reservations| addresses::ready(ipam, &reservations))
}

/// The bridge has the gateways' addresses, or can get them: code 51 where containers of an earlier subnet are in
/// the way, whose peers are told of the new one.
fn bridge_is_free(bridge: &Bridge, ipam: &Ipam) -> Result<(), Error> {
    let mut socket = RouteSocket::open().map_err(|e| kernel(&e))?;
    let Some(device) = socket.link(&bridge.bridge).map_err(|e| kernel(&e))? else { return Ok(()) };
    let ranges = ipam.sets.iter().filter_map(|set| set.0.first());
    let gateways: Vec<HostAddress> =
        ranges.map(|range| HostAddress { address: range.gateway, prefix: range.subnet.prefix() }).collect();
    let planned = linkage::plan_gateways(&mut socket, bridge, &device, &gateways, true);
    planned.map(drop).map_err(|error| Error { code: Code::Degraded, ..error })
}

//! CHECK: what ADD reported is still there. Nothing is changed.

use std::net::IpAddr;

use cni_core::{
    Bridge, Code, Error, HostAddress, Network, Outcome, PortMappings, Seen, SeenLink, check as compare,
};
use linux::{
    link::{Kind, Link},
    netlink::RouteSocket,
    netns::Netns,
    route::Filter,
};

use crate::{
    failure::kernel,
    foreign,
    hostports::HostPorts,
    links, nat,
    networks::{self, Call},
    pod, shaping, vlans,
};

/// Compares the attachment to `network`, which is the one of `call` or what that delegated, with `prevResult`.
pub(crate) fn check(call: &Call, network: &Network) -> Result<(), Error> {
    let bridge = Bridge::parse(network, &call.args)?;
    vlans::require(&bridge)?;
    let previous = network
        .previous()
        .ok_or_else(|| Error::new(Code::Internal, "Required prevResult missing"))
        .and_then(Outcome::parse)?;
    let netns = pod::open(call)?;
    let has_gateway = previous.addresses_of(call.who.ifname.as_str()).any(|ip| ip.gateway.is_some());
    let (mut seen, is_ours) = look(call, &bridge, &netns, has_gateway).map_err(|e| kernel(&e))?;
    if let Some(reservations) = networks::reservations(network)? {
        let reported = previous.addresses_of(call.who.ifname.as_str()).map(|ip| ip.address);
        seen.reserved = reported.filter(|ip| reservations.is_held(*ip, &call.who)).collect();
    }
    let reported = || previous.addresses_of(call.who.ifname.as_str());
    let pods = reported().map(|ip| HostAddress { address: ip.address, prefix: ip.prefix });
    let pods: Vec<HostAddress> = pods.filter(|_| bridge.ip_masq).collect();
    let mappings = call.network.handed("portMappings", PortMappings::parse)?;
    let ports = HostPorts::new(&mappings, reported().map(|ip| ip.address), Some(&bridge.gateway_link))?;
    // How another plugin's pods are translated is that one's affair.
    if is_ours {
        seen.missing.extend(nat::missing(&ports.nat(&call.who.alias(), &pods))?);
    }
    if let Some(kind) = &bridge.foreign_ipam {
        foreign::run(kind, "CHECK", network)?;
    }
    compare(&bridge, &call.who.ifname, &previous, &seen)?;
    if call.network.is_handed("bandwidth") {
        shaping::check(call, &previous)?;
    }
    Ok(())
}

/// What is there, and whether it is of our making.
fn look(
    call: &Call,
    bridge: &Bridge,
    netns: &Netns,
    has_gateway: bool,
) -> Result<(Seen, bool), linux::Error> {
    let (mut seen, mut is_ours) = (Seen::default(), false);
    let mut host = RouteSocket::open()?;
    let device = host.link(&bridge.bridge)?;
    let gateway =
        if bridge.gateway_link == bridge.bridge { device.clone() } else { host.link(&bridge.gateway_link)? };
    if let Some(device) = &gateway {
        seen.bridge_addresses = host.addresses(Some(device.index))?.iter().map(|a| a.address).collect();
    }
    let mut inside = RouteSocket::open_in(netns)?;
    let pod = inside.link(&call.who.ifname)?;
    if let Some(pod) = &pod {
        seen.addresses = links::addresses_on(&mut inside, pod.index)?;
        for ipv4 in [true, false] {
            let routes = inside.routes(Filter { table: None, ..Filter::main(ipv4) })?;
            let ways = |r: &linux::route::Route| -> Vec<Option<IpAddr>> {
                let hops = r.multipath.iter().map(|hop| hop.gateway);
                if r.multipath.is_empty() { vec![r.gateway] } else { hops.collect() }
            };
            let seen_as = |r: &linux::route::Route| {
                let (to, table) = (r.destination, r.table);
                ways(r).into_iter().map(move |gateway| (to, gateway, table))
            };
            seen.routes.extend(routes.iter().flat_map(seen_as));
        }
        if let Some(near) = links::peer_of(&mut host, pod)? {
            is_ours = near.alias.as_ref() == Some(&call.who.alias());
            let joined = near.master.is_some() && near.master == device.as_ref().map(|device| device.index);
            seen.host_joined = Some(joined);
            if bridge.guarded && !near.port.as_ref().is_some_and(|port| port.locked) {
                seen.missing.push(format!("{} lets in any Ethernet address", near.name));
            }
            if let Some(device) = device.as_ref().filter(|_| joined && is_ours) {
                seen.missing.extend(vlans::missing(&mut host, bridge, device, &near, has_gateway)?);
            }
            if !near.up {
                seen.missing.push(format!("the host's end of {} is down", call.who.ifname));
            }
        }
    }
    seen.bridge = device.map(|link| summary(&link, &Kind::Bridge));
    seen.pod = pod.map(|link| summary(&link, &Kind::Veth));
    Ok((seen, is_ours))
}

fn summary(link: &Link, kind: &Kind) -> SeenLink {
    SeenLink { right_kind: link.kind == *kind, mac: link.mac, up: link.up }
}

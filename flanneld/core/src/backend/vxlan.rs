//! VXLAN as flannel lays it out: one device `flannel.<VNI>` with the first address of our subnet, and
//! for each peer a forwarding entry, a neighbour and a route.
//!
//! ```text
//! 10.5.34.0/24 --route--> via 10.5.34.0 --neighbour--> VTEP MAC --forwarding entry--> PublicIP
//! ```

use std::net::{IpAddr, Ipv4Addr};

use netmodel::{Mac, Mtu, Subnet};

use crate::{
    VXLAN_OVERHEAD,
    config::Config,
    host::NodeFacts,
    lease::Lease,
    overlay::{Device, Hop, Overlay, Remote, RouteKey},
};

/// What a peer's lease says, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its pods.
    pub subnet: Subnet,
    /// First address of that subnet.
    pub gateway: Ipv4Addr,
    /// Where outer packets go.
    pub public_ip: Ipv4Addr,
    /// Where inner frames go.
    pub mac: Mac,
}

/// Largest packet of a pod in bytes: the MTU of the configuration or of the underlay, less the tunnel.
#[must_use]
pub fn pod_mtu(config: &Config, me: &NodeFacts) -> Mtu {
    let underlay = config.vxlan.underlay_mtu.unwrap_or(me.underlay.mtu);
    let left = underlay.get().saturating_sub(VXLAN_OVERHEAD).max(68);
    Mtu::try_from(u64::from(left)).unwrap_or(underlay)
}

/// The device that this node should have.
#[must_use]
pub fn device(config: &Config, own: &Lease, me: &NodeFacts) -> Device {
    Device {
        vni: config.vxlan.vni,
        port: config.vxlan.port,
        local: me.underlay.address,
        gbp: config.vxlan.gbp,
        learning: config.vxlan.learning,
        mac: own.vtep_mac,
        mtu: pod_mtu(config, me),
        up: true,
        foreign: false,
    }
}

/// The peer with that address is reached without a tunnel: it is on the same link, and the configuration wants
/// that.
#[must_use]
pub fn is_direct(public_ip: Ipv4Addr, config: &Config, me: &NodeFacts) -> bool {
    config.vxlan.direct_routing && me.is_on_link(public_ip)
}

/// Adds what leads to a peer: a route alone, where no tunnel is needed.
pub fn add_peer(overlay: &mut Overlay, peer: &Peer, config: &Config, me: &NodeFacts) {
    let key = RouteKey { subnet: peer.subnet, metric: metric(&peer.subnet, &config.network) };
    if is_direct(peer.public_ip, config, me) {
        overlay.routes.insert(key, Hop::Direct(peer.public_ip));
        return;
    }
    overlay.fdb.insert((peer.mac, Remote::plain(peer.public_ip)));
    overlay.neighbours.insert(peer.gateway, peer.mac);
    overlay.routes.insert(key, Hop::Tunnel(peer.gateway));
}

/// A metric that no other peer's route has: the number of its subnet within the network, from 1.
///
/// The kernel keeps all next hops of one metric on one device in one hash bucket, which makes thousands
/// of routes ten times slower. Flannel's own routes have metric 0.
pub(crate) fn metric(subnet: &Subnet, network: &Subnet) -> u32 {
    match (subnet.address(), network.address()) {
        (IpAddr::V4(subnet_first), IpAddr::V4(network_first)) => {
            let offset = u32::from(subnet_first).wrapping_sub(u32::from(network_first));
            1_u32.saturating_add(offset.checked_shr(32 - u32::from(subnet.prefix())).unwrap_or(0))
        }
        _ => 1,
    }
}

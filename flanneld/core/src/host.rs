//! What this node says of itself: its addresses and routes, which no pod subnet may overlap, and the
//! facts that a lease is chosen by.

use std::{fmt, net::Ipv4Addr};

use netmodel::{IfName, Mac, Mtu, Subnet, Vni};

use crate::{backend::vxlan::metric, config::Config, overlay::Overlay};

/// Facts about this node. The node's side gathers them, before a lease is acquired and whenever
/// they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Who this node is, whatever its address.
    pub identity: NodeIdentity,
    /// The address told to peers: `-public-ip`, or the underlay interface's address.
    pub public_ip: Ipv4Addr,
    /// The interface that carries tunnelled packets.
    pub underlay: Underlay,
    /// VXLAN devices named `flannel.<VNI>` that exist on this node, with their Ethernet addresses.
    pub vteps: Vec<(Vni, Mac)>,
    /// Addresses and routes of this host except those of our own device.
    pub host: Vec<HostPrefix>,
    /// The subnet in `subnet.env` as an earlier run left it.
    pub previous: Option<Subnet>,
}

/// The interface that carries tunnelled packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// Name of the interface.
    pub name: IfName,
    /// Its index.
    pub index: u32,
    /// The local address of tunnelled packets.
    pub address: Ipv4Addr,
    /// Its MTU.
    pub mtu: Mtu,
}

/// A node's identity: a hash of what stays when its address changes. It names the node's record in
/// etcd and, where no VXLAN device exists yet, gives it its Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIdentity(pub [u8; 16]);

impl NodeIdentity {
    /// The Ethernet address of a new VXLAN device of this node: always the same, locally
    /// administered, another one for each VNI.
    #[must_use]
    pub fn vtep_mac(self, vni: Vni) -> Mac {
        let mut bytes = [0_u8; 6];
        for (i, byte) in self.0.iter().chain(&vni.get().to_be_bytes()).enumerate() {
            let slot = &mut bytes[i % 6];
            *slot = slot.rotate_left(3) ^ byte;
        }
        Mac::locally_administered(bytes)
    }
}

impl fmt::Display for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for NodeIdentity {
    type Err = BadIdentity;

    fn from_str(text: &str) -> Result<Self, BadIdentity> {
        let bad = || BadIdentity(text.to_owned());
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        u128::from_str_radix(text, 16).map(|n| Self(n.to_be_bytes())).map_err(|_| bad())
    }
}

/// A text that is no node identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a node identity: it must be 32 hex digits")]
pub struct BadIdentity(String);

/// What kind of interface an address or route of this host is on, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A bridge, such as the one that pods hang on.
    Bridge,
    /// One end of a veth pair, such as a pod's.
    Veth,
    /// Anything else, or no interface at all.
    Other,
}

/// An address or a route of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPrefix {
    /// What it covers.
    pub subnet: Subnet,
    /// The address itself; `None` for a route.
    pub address: Option<Ipv4Addr>,
    /// The interface; `None` for a route that has none (blackhole, several next hops).
    pub device: Option<IfName>,
    /// The kind of that interface.
    pub kind: DeviceKind,
    /// What is to be known of a route that was made by hand; `None` for all else.
    pub by_hand: Option<ByHand>,
}

/// A route that was made by hand, or by flannel, which leaves no other mark. It may have replaced one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByHand {
    /// Its metric; 0 unless somebody gave one.
    pub metric: u32,
    /// The next router.
    pub gateway: Option<Ipv4Addr>,
}

impl HostPrefix {
    /// It is where our route to that peer belongs: with `ip route replace` somebody overwrote ours, which is to be
    /// repaired.
    fn overwrites_ours(&self, network: &Subnet) -> bool {
        self.by_hand.is_some_and(|route| route.metric == metric(&self.subnet, network))
    }

    /// Flannel has led straight to `gateway` like this.
    fn is_flannels(&self, gateway: Ipv4Addr) -> bool {
        self.by_hand == Some(ByHand { metric: 0, gateway: Some(gateway) })
    }
}

impl fmt::Display for HostPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "address {address}/{}", self.subnet.prefix())?,
            None => write!(f, "route {}", self.subnet)?,
        }
        match &self.device {
            Some(device) if self.address.is_some() => write!(f, " of {device}"),
            Some(device) => write!(f, " through {device}"),
            None => Ok(()),
        }
    }
}

/// What kind of address it is, if no packet for another node can be sent to it.
#[must_use]
pub const fn no_nodes_address(ip: Ipv4Addr) -> Option<&'static str> {
    Some(if ip.is_unspecified() {
        "zero"
    } else if ip.is_loopback() {
        "a loopback address"
    } else if ip.is_multicast() {
        "a multicast address"
    } else if ip.is_broadcast() {
        "the broadcast address"
    } else {
        return None;
    })
}

/// Names of the bridges that pods hang on by default: of flannel's plugin, docker, and the old one.
pub const POD_BRIDGES: [&str; 3] = ["cni0", "docker0", "cbr0"];

impl NodeFacts {
    /// The Ethernet addresses of a new VXLAN device of this node: by its identity, and, where a machine that
    /// shares the identity has that one, by its identity and its public address.
    #[must_use]
    pub fn vtep_macs(&self, vni: Vni) -> [Mac; 2] {
        let mut here = self.identity;
        for (byte, salt) in here.0.iter_mut().zip(self.public_ip.octets()) {
            *byte ^= salt;
        }
        [self.identity.vtep_mac(vni), here.vtep_mac(vni)]
    }

    /// An address is on the link of the underlay interface: no router is in between.
    #[must_use]
    pub fn is_on_link(&self, address: Ipv4Addr) -> bool {
        self.host.iter().any(|host| {
            host.device.as_ref() == Some(&self.underlay.name)
                && host.address.is_some()
                && host.subnet.contains(address.into())
        })
    }

    /// The first address or route of this host that the subnet of a peer in `network` may not overlap; `direct` is
    /// the peer's address where it is reached without a tunnel.
    #[must_use]
    pub fn peer_overlap(
        &self,
        subnet: Subnet,
        network: &Subnet,
        direct: Option<Ipv4Addr>,
    ) -> Option<&HostPrefix> {
        let is_ours = |host: &HostPrefix| {
            host.overwrites_ours(network) || direct.is_some_and(|gateway| host.is_flannels(gateway))
        };
        self.all_overlaps(subnet).find(|host| host.subnet != subnet || !is_ours(host))
    }

    /// The first address or route of this host that a new subnet may not overlap.
    ///
    /// Default routes (and the halves that VPNs write instead) overlap everything and count as nothing.
    #[must_use]
    pub fn overlap(&self, subnet: Subnet) -> Option<&HostPrefix> {
        self.all_overlaps(subnet).next()
    }

    fn all_overlaps(&self, subnet: Subnet) -> impl Iterator<Item = &HostPrefix> {
        self.host.iter().filter(move |host| host.subnet.prefix() > 1 && host.subnet.overlaps(&subnet))
    }

    /// The first address or route of this host that a subnet of our own may not overlap: as
    /// [`NodeFacts::overlap`], but what this node's pods already use of that very subnet is no obstacle.
    #[must_use]
    pub fn foreign_overlap(&self, subnet: Subnet) -> Option<&HostPrefix> {
        self.all_overlaps(subnet).find(|host| !self.is_pods(host, subnet))
    }

    /// Overlaps of this host with the network, one per address or route, with the part it takes away; none by what
    /// pods of our `own` subnet use, and none by what gives way to the routes that we `want`.
    #[must_use]
    pub fn overlaps(&self, config: &Config, own: Option<Subnet>, want: &Overlay) -> Vec<Overlap> {
        let relevant = |host: &&HostPrefix| {
            let pods = own.is_some_and(|own| self.is_pods(host, own));
            let gives_way = want.direct(host.subnet).is_some_and(|gateway| host.is_flannels(gateway));
            !pods && !gives_way && !host.overwrites_ours(&config.network)
        };
        let mut found: Vec<Overlap> = Vec::new();
        for host in self.all_overlaps(config.network).filter(relevant) {
            let wide = if host.subnet.covers(&config.network) { config.network } else { host.subnet };
            let shared = if wide.prefix() > config.subnet_len {
                Subnet::containing(wide.address(), config.subnet_len).unwrap_or(wide)
            } else {
                wide
            };
            // An address and its own connected route say the same.
            if !found.iter().any(|o| o.subnet == shared) {
                found.push(Overlap { subnet: shared, host: host.clone() });
            }
        }
        found
    }

    /// `host` is what pods of this node use of `subnet`: the bridge, or whatever device but the underlay
    /// holds the pods' gateway, and routes through it; routes to single pods; the blackhole route for the
    /// subnet itself.
    fn is_pods(&self, host: &HostPrefix, subnet: Subnet) -> bool {
        if !subnet.covers(&host.subnet) {
            return false;
        }
        let Some(device) = &host.device else { return host.subnet == subnet };
        let by_kind = match host.kind {
            DeviceKind::Bridge => POD_BRIDGES.contains(&device.as_str()),
            DeviceKind::Veth => host.subnet.prefix() == 32,
            DeviceKind::Other => false,
        };
        by_kind || (*device != self.underlay.name && self.is_gateway(device, subnet))
    }

    /// The interface holds the first usable address of the subnet with the subnet's own length.
    fn is_gateway(&self, device: &IfName, subnet: Subnet) -> bool {
        self.host.iter().any(|host| {
            host.device.as_ref() == Some(device)
                && host.subnet == subnet
                && host.address.map(Into::into) == subnet.nth(1)
        })
    }
}

/// A part of the network that this host uses for something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// The part of the network.
    pub subnet: Subnet,
    /// What uses it.
    pub host: HostPrefix,
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} overlaps {} of this host: it is never leased and never routed", self.subnet, self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::{config, facts};

    #[test]
    fn a_route_in_the_place_of_ours_is_damage_and_any_other_an_overlap() {
        let config = config(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#);
        let peer: Subnet = "10.5.3.0/24".parse().unwrap();
        let none = Overlay::empty(config.vxlan.device.clone());
        let by = |metric: Option<u32>| {
            let device = Some("eth0".parse().unwrap());
            let by_hand = metric.map(|metric| ByHand { metric, gateway: None });
            let host = HostPrefix { subnet: peer, address: None, device, kind: DeviceKind::Other, by_hand };
            NodeFacts { host: vec![host], ..facts() }
        };
        let ours = Some(metric(&peer, &config.network));
        assert!(by(ours).peer_overlap(peer, &config.network, None).is_none());
        assert!(by(ours).overlap(peer).is_some() && by(ours).overlaps(&config, None, &none).is_empty());
        for other in [None, Some(0), Some(100)] {
            assert!(by(other).peer_overlap(peer, &config.network, None).is_some());
            assert_eq!(by(other).overlaps(&config, None, &none).len(), 1);
        }
        let narrower = "10.5.3.0/25".parse().unwrap();
        let found = by(ours);
        assert!(found.peer_overlap(narrower, &config.network, None).is_some(), "it is another peer's place");
    }
}

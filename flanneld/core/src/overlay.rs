//! What the kernel holds of the overlay, and what it should hold: one type for both.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
};

use netmodel::{IfName, Mac, Mtu, Port, Subnet, Vni};

/// Everything of ours in the kernel, except nftables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Name of the VXLAN device; somebody may have given it another one.
    pub name: IfName,
    /// The VXLAN device, where it exists.
    pub device: Option<Device>,
    /// IPv4 addresses of the device, each with its prefix length.
    pub addresses: BTreeSet<(Ipv4Addr, u8)>,
    /// Permanent neighbours on the device: where the frame to a peer's first address goes.
    pub neighbours: BTreeMap<Ipv4Addr, Mac>,
    /// Forwarding entries of the device: which node a frame is sent to.
    pub fdb: BTreeSet<(Mac, Remote)>,
    /// Routes that are ours, by destination and metric, as the kernel knows them apart.
    pub routes: BTreeMap<RouteKey, Hop>,
    /// Kernel settings by path below `/proc/sys/`. One that does not exist here is not in the map.
    pub sysctls: BTreeMap<String, String>,
}

impl Hop {
    /// The route goes with our device.
    #[must_use]
    pub const fn is_on_device(&self) -> bool {
        matches!(self, Self::Tunnel(_) | Self::Foreign(_))
    }
}

impl Overlay {
    /// Nothing at all.
    #[must_use]
    pub fn empty(name: IfName) -> Self {
        Self {
            name,
            device: None,
            addresses: BTreeSet::new(),
            neighbours: BTreeMap::new(),
            fdb: BTreeSet::new(),
            routes: BTreeMap::new(),
            sysctls: BTreeMap::new(),
        }
    }
}

/// Metric of the blackhole route: that of the pods' bridge, and any other, comes first.
const LAST_RESORT: u32 = u32::MAX - 1;

impl Overlay {
    /// The gateway of the route that leads straight to that peer's subnet.
    #[must_use]
    pub fn direct(&self, subnet: Subnet) -> Option<Ipv4Addr> {
        let of_subnet = RouteKey { subnet, metric: 0 }..=RouteKey { subnet, metric: u32::MAX };
        self.routes.range(of_subnet).find_map(|(_, hop)| match hop {
            Hop::Direct(gateway) => Some(*gateway),
            _ => None,
        })
    }

    /// Adds a route that swallows packets to pods of this node that are not there.
    pub fn add_blackhole(&mut self, own: Subnet) {
        self.routes.insert(RouteKey { subnet: own, metric: LAST_RESORT }, Hop::Blackhole);
    }
}

/// A VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// Network identifier.
    pub vni: Vni,
    /// UDP port, of the peers and our own.
    pub port: Port,
    /// Source address of the outer packets.
    pub local: Ipv4Addr,
    /// Group policy extension.
    pub gbp: bool,
    /// Learns addresses from packets.
    pub learning: bool,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Largest packet in bytes, without the tunnel's headers.
    pub mtu: Mtu,
    /// Administratively up.
    pub up: bool,
    /// Something else is set that makes it useless for us and can't be changed in place: a multicast
    /// group, another parent device than the underlay, misses reported to user space.
    pub foreign: bool,
}

impl Device {
    /// The other one can be changed into this one without taking it down.
    #[must_use]
    pub fn fits(&self, other: &Self) -> bool {
        (self.vni, self.port, self.gbp) == (other.vni, other.port, other.gbp) && !other.foreign
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vni, port, local, mac, mtu, .. } = self;
        let learning = if self.learning { "learning" } else { "nolearning" };
        let gbp = if self.gbp { " gbp" } else { "" };
        write!(f, "address {mac} mtu {mtu} type vxlan id {vni} local {local} dstport {port} {learning}{gbp}")
    }
}

/// Where a forwarding entry sends frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remote {
    /// The node's address.
    pub address: Ipv4Addr,
    /// The entry has a port, VNI or interface of its own, or no node at all: none of ours does.
    pub odd: bool,
}

impl Remote {
    /// As we write it.
    #[must_use]
    pub const fn plain(address: Ipv4Addr) -> Self {
        Self { address, odd: false }
    }
}

/// What the kernel knows routes apart by, in one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// Destination.
    pub subnet: Subnet,
    /// Metric; a route to the same destination with a lower one wins.
    pub metric: u32,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hop {
    /// Through our device to a peer's first address, which is `onlink`; with our protocol number.
    Tunnel(Ipv4Addr),
    /// Straight to a peer on the same link, without a tunnel; with our protocol number.
    Direct(Ipv4Addr),
    /// Nowhere, with our protocol number.
    Blackhole,
    /// A route that counts as ours and that we would not write like this: flannel's, or a garbled one.
    /// Its protocol number keeps a removal off ours: Linux takes metric 0 for any.
    Foreign(u8),
    /// Straight to a gateway with metric 0, written by flannel or by hand. It is not ours, but where ours leads
    /// straight to that gateway as well it goes: it would stand in front of ours when the peer moves.
    ByHand(Ipv4Addr),
}

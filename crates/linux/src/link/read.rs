//! What the kernel tells about an interface.

use std::net::IpAddr;

use netlink_packet_route::link::{LinkFlags, LinkHeader};
use netmodel::{IfName, Mac, Vni};

use crate::{
    Cause,
    attribute::{address, attributes, flag, garbled, number, text},
};

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in this namespace.
    pub index: u32,
    /// Its name.
    pub name: IfName,
    /// Its Ethernet address, where it has one.
    pub mac: Option<Mac>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Somebody set it up (`IFF_UP`).
    pub up: bool,
    /// It is up and its carrier is there (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// It is the loopback.
    pub loopback: bool,
    /// It receives what is addressed to others.
    pub promiscuous: bool,
    /// It receives what is addressed to any multicast group.
    pub all_multicast: bool,
    /// Most packets that may wait to be sent.
    pub queue_length: u32,
    /// RFC 2863 operational state: 0 unknown, 2 down, 6 up (`IF_OPER_...`).
    pub operstate: u8,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// How that bridge treats it.
    pub port: Option<BridgePort>,
    /// It is a bridge that keeps VLANs apart.
    pub vlan_filtering: bool,
    /// Its alias.
    pub alias: Option<String>,
    /// The other end of a veth pair.
    pub peer: Option<Peer>,
    /// What sort of device it is.
    pub kind: Kind,
}

/// How a bridge treats a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BridgePort {
    /// Frames may leave through the port they came in by.
    pub hairpin: bool,
    /// It exchanges frames with ports that are not isolated only.
    pub isolated: bool,
    /// Frames come in only from Ethernet addresses that are set to be behind it, and none is learned (since
    /// Linux 5.16; earlier kernels ignore it).
    pub locked: bool,
}

/// Where the other end of a veth pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its index in its own namespace.
    pub index: u32,
    /// Its namespace by the number that this one gave it; `None` if it is this one.
    pub namespace: Option<i32>,
}

/// What sort of device an interface is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bridge.
    Bridge,
    /// One end of a veth pair.
    Veth,
    /// A VXLAN device.
    Vxlan(VxlanFacts),
    /// Another one by its kind; empty for a physical device and the loopback.
    Other(String),
}

/// What a VXLAN device is set to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VxlanFacts {
    /// The network that it carries; `None` for one that takes it from each packet.
    pub vni: Option<Vni>,
    /// UDP port; 0 until the kernel gave it one.
    pub port: u16,
    /// Source address of what it sends.
    pub local: Option<IpAddr>,
    /// Multicast group or default destination.
    pub group: Option<IpAddr>,
    /// Index of the interface that it sends through.
    pub underlay: Option<u32>,
    /// It learns addresses from what it receives.
    pub learning: bool,
    /// Group-based policy.
    pub gbp: bool,
    /// It asks user space for unknown addresses of layer 2.
    pub l2_miss: bool,
    /// It asks user space for unknown addresses of layer 3.
    pub l3_miss: bool,
}

// Attribute numbers of linux/if_link.h.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_BRPORT_LOCKED: u16 = 39;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_GROUP: u16 = 2;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_L2MISS: u16 = 13;
const IFLA_VXLAN_L3MISS: u16 = 14;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_GROUP6: u16 = 16;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_GBP: u16 = 23;
const IFLA_VXLAN_COLLECT_METADATA: u16 = 25;

/// Bytes of `struct ifinfomsg`.
const HEADER: usize = 16;

/// Reads `RTM_NEWLINK` or `RTM_DELLINK`. `None`: its name is no text, so it can be nobody's we know.
pub(super) fn link(payload: &[u8]) -> Result<Option<Link>, Cause> {
    let header = LinkHeader::parse(payload).map_err(|error| garbled(&error))?;
    let (mut name, mut linked, mut namespace) = (None, None, None);
    let mut info = Info::default();
    let mut link = Link {
        index: header.index,
        name: "lo".parse().map_err(|error| Cause::Garbled(format!("{error}")))?,
        mac: None,
        mtu: 0,
        up: header.flags.contains(LinkFlags::Up),
        carrier: header.flags.contains(LinkFlags::LowerUp),
        loopback: header.flags.contains(LinkFlags::Loopback),
        promiscuous: header.flags.contains(LinkFlags::Promisc),
        all_multicast: header.flags.contains(LinkFlags::Allmulti),
        queue_length: 0,
        operstate: 0,
        master: None,
        port: None,
        vlan_filtering: false,
        alias: None,
        peer: None,
        kind: Kind::Other(String::new()),
    };
    for (kind, value) in attributes(payload, HEADER) {
        match kind {
            IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
            IFLA_IFNAME => name = text(value).parse::<IfName>().ok(),
            IFLA_MTU => link.mtu = number(value).unwrap_or(0),
            IFLA_LINK => linked = number(value),
            IFLA_MASTER => link.master = number(value),
            IFLA_TXQLEN => link.queue_length = number(value).unwrap_or(0),
            IFLA_OPERSTATE => link.operstate = value.first().copied().unwrap_or(0),
            IFLA_LINKINFO => info = Info::read(value),
            IFLA_IFALIAS => link.alias = Some(text(value)),
            IFLA_LINK_NETNSID => namespace = number(value).map(u32::cast_signed),
            _ => {}
        }
    }
    link.port = info.port;
    link.vlan_filtering = info.vlan_filtering;
    link.kind = info.kind;
    if link.kind == Kind::Veth {
        link.peer = linked.map(|index| Peer { index, namespace });
    }
    Ok(name.map(|name| Link { name, ..link }))
}

/// What `IFLA_LINKINFO` holds.
struct Info {
    kind: Kind,
    port: Option<BridgePort>,
    vlan_filtering: bool,
}

impl Default for Info {
    fn default() -> Self {
        Self { kind: Kind::Other(String::new()), port: None, vlan_filtering: false }
    }
}

impl Info {
    fn read(value: &[u8]) -> Self {
        let (mut kind, mut data, mut port_kind, mut port_data) =
            (String::new(), &[][..], String::new(), &[][..]);
        for (attribute, value) in attributes(value, 0) {
            match attribute {
                IFLA_INFO_KIND => kind = text(value),
                IFLA_INFO_DATA => data = value,
                IFLA_INFO_SLAVE_KIND => port_kind = text(value),
                IFLA_INFO_SLAVE_DATA => port_data = value,
                _ => {}
            }
        }
        let kind = match kind.as_str() {
            "bridge" => Kind::Bridge,
            "veth" => Kind::Veth,
            "vxlan" => Kind::Vxlan(VxlanFacts::read(data)),
            _ => Kind::Other(kind),
        };
        let is_filtering = |(attribute, value)| attribute == IFLA_BR_VLAN_FILTERING && flag(value);
        Self {
            vlan_filtering: kind == Kind::Bridge && attributes(data, 0).any(is_filtering),
            port: (port_kind == "bridge").then(|| BridgePort::read(port_data)),
            kind,
        }
    }
}

impl BridgePort {
    fn read(data: &[u8]) -> Self {
        let mut port = Self::default();
        for (attribute, value) in attributes(data, 0) {
            match attribute {
                IFLA_BRPORT_MODE => port.hairpin = flag(value),
                IFLA_BRPORT_ISOLATED => port.isolated = flag(value),
                IFLA_BRPORT_LOCKED => port.locked = flag(value),
                _ => {}
            }
        }
        port
    }
}

impl VxlanFacts {
    fn read(data: &[u8]) -> Self {
        let mut facts = Self::default();
        let mut by_packet = false;
        for (attribute, value) in attributes(data, 0) {
            match attribute {
                IFLA_VXLAN_ID => facts.vni = number(value).and_then(|id| Vni::try_from(u64::from(id)).ok()),
                IFLA_VXLAN_PORT => facts.port = value.try_into().map_or(0, u16::from_be_bytes),
                IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => facts.local = set_address(value),
                IFLA_VXLAN_GROUP | IFLA_VXLAN_GROUP6 => facts.group = set_address(value),
                IFLA_VXLAN_LINK => facts.underlay = number(value).filter(|index| *index != 0),
                IFLA_VXLAN_LEARNING => facts.learning = flag(value),
                IFLA_VXLAN_L2MISS => facts.l2_miss = flag(value),
                IFLA_VXLAN_L3MISS => facts.l3_miss = flag(value),
                IFLA_VXLAN_GBP => facts.gbp = true,
                IFLA_VXLAN_COLLECT_METADATA => by_packet = flag(value),
                _ => {}
            }
        }
        if by_packet {
            facts.vni = None;
        }
        facts
    }
}

/// An address of either family; the unspecified one counts as none.
fn set_address(value: &[u8]) -> Option<IpAddr> {
    address(value).filter(|address| !address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(payload: Vec<u8>) {
            let _ = link(&payload);
        }
    }
}

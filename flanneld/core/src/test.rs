//! What the tests of several modules need.

use crate::{
    config::Config,
    host::{DeviceKind, HostPrefix, NodeFacts, NodeIdentity, Underlay},
    lease::RawLease,
    wire,
};
use netmodel::{Mac, Mtu, Subnet, Vni};

pub(crate) fn config(text: &str) -> Config {
    Config::parse(text).unwrap()
}

/// Node 1: 192.0.2.1 on eth0, nothing else there.
pub(crate) fn facts() -> NodeFacts {
    NodeFacts {
        identity: NodeIdentity([1; 16]),
        public_ip: "192.0.2.1".parse().unwrap(),
        underlay: Underlay {
            name: "eth0".parse().unwrap(),
            index: 2,
            address: "192.0.2.1".parse().unwrap(),
            mtu: Mtu::try_from(1500).unwrap(),
        },
        vteps: Vec::new(),
        host: Vec::new(),
        previous: None,
    }
}

/// A VXLAN lease whose Ethernet address ends with `mac`; it is as old as `mac` says.
pub(crate) fn lease(key: &str, public_ip: &str, mac: u8) -> RawLease {
    let vni = Vni::try_from(1).unwrap();
    RawLease {
        key: key.to_owned(),
        value: wire::vxlan_value(public_ip.parse().unwrap(), vni, Mac([2, 0, 0, 0, 0, mac])),
        created: mac.into(),
        modified: 1,
        ttl_lease: 7,
    }
}

/// An address of this host and its connected route.
pub(crate) fn host_address(address: &str, device: &str, kind: DeviceKind) -> Vec<HostPrefix> {
    let (ip, length) = address.split_once('/').unwrap();
    let subnet = Subnet::containing(ip.parse().unwrap(), length.parse().unwrap()).unwrap();
    let device = Some(device.parse().unwrap());
    let route = HostPrefix { subnet, address: None, device: device.clone(), kind, by_hand: None };
    vec![HostPrefix { subnet, address: ip.parse().ok(), device, kind, by_hand: None }, route]
}

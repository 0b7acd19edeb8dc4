//! From leases to what the kernel should hold. A lease that can't be used is returned beside it, by
//! name and with the reason, and harms no other.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use netmodel::{BadMac, Mac, Subnet};

use crate::{
    backend::vxlan::{self, Peer},
    config::Config,
    disjoint::Disjoint,
    host::{HostPrefix, NodeFacts, no_nodes_address},
    lease::{Lease, RawLease},
    overlay::Overlay,
    wire::{self, BadKey, BadValue, LeaseKey, LeaseValue},
};

/// A lease that is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its key below `<prefix>/subnets/`.
    pub key: String,
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lease {:?} is skipped: {}", self.key, self.reason)
    }
}

/// Why a lease is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The key can't be read.
    #[error(transparent)]
    Key(#[from] BadKey),
    /// The value can't be read.
    #[error(transparent)]
    Value(#[from] BadValue),
    /// Its subnet is none of the network's.
    #[error("it lies outside the network {0}")]
    OutsideNetwork(Subnet),
    /// Its subnet and ours have addresses in common.
    #[error("it overlaps this node's own subnet {0}")]
    OverlapsOwn(Subnet),
    /// Its subnet and that of an older lease have addresses in common.
    #[error("it overlaps the older lease {0}")]
    OverlapsOlder(Subnet),
    /// This host uses some of its addresses for something else.
    #[error("it overlaps {0} of this host")]
    OverlapsHost(HostPrefix),
    /// Another backend.
    #[error("its BackendType is {0:?}, not \"vxlan\"")]
    BackendType(String),
    /// Another VNI.
    #[error("its VNI is {found}, not {ours}")]
    Vni {
        /// What the lease says.
        found: u64,
        /// What this node uses.
        ours: u32,
    },
    /// No packet can be sent to that address, or it would come back to this node.
    #[error("its PublicIP {0} is {1}")]
    PublicIp(Ipv4Addr, &'static str),
    /// No address of the VXLAN device.
    #[error("it has no VtepMAC")]
    NoMac,
    /// The address of the VXLAN device can't be read.
    #[error("its VtepMAC: {0}")]
    Mac(#[from] BadMac),
    /// The address of the VXLAN device is no address of a device.
    #[error("its VtepMAC {0} is {1}")]
    UselessMac(Mac, &'static str),
    /// Two devices with one address.
    #[error("its VtepMAC {mac} is also that of {holder}")]
    DuplicateMac {
        /// The address.
        mac: Mac,
        /// Whose it is.
        holder: Holder,
    },
}

/// Whose an Ethernet address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Ours.
    ThisNode,
    /// That of an older lease.
    Older(Subnet),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ThisNode => f.write_str("this node"),
            Self::Older(subnet) => write!(f, "the older lease {subnet}"),
        }
    }
}

/// What the kernel should hold, and the leases that could not be used.
#[must_use]
pub fn desired(leases: &[RawLease], config: &Config, own: &Lease, me: &NodeFacts) -> (Overlay, Vec<Skipped>) {
    let mut overlay = Overlay::empty(config.vxlan.device.clone());
    overlay.device = Some(vxlan::device(config, own, me));
    if let IpAddr::V4(first) = own.subnet.address() {
        overlay.addresses.insert((first, 32));
    }
    overlay.sysctls = sysctls(config);
    let mut used = Used { config, own, me, peers: Disjoint::default(), macs: BTreeMap::new() };
    let mut skipped = Vec::new();
    let mut by_age: Vec<&RawLease> = leases.iter().collect();
    by_age.sort_by(|a, b| (a.created, &a.key).cmp(&(b.created, &b.key)));
    for raw in by_age {
        match used.check(raw) {
            Ok(None) => {}
            Ok(Some(peer)) => vxlan::add_peer(&mut overlay, &peer, config, me),
            Err(reason) => skipped.push(Skipped { key: raw.key.clone(), reason }),
        }
    }
    (overlay, skipped)
}

/// Kernel settings that packets of pods need.
fn sysctls(config: &Config) -> BTreeMap<String, String> {
    let device = &config.vxlan.device;
    [
        ("net/ipv4/ip_forward".to_owned(), "1"),
        // Without it packets between pods of one node pass by the rules of Services.
        ("net/bridge/bridge-nf-call-iptables".to_owned(), "1"),
        (format!("net/ipv6/conf/{device}/accept_ra"), "0"),
    ]
    .map(|(path, value)| (path, value.to_owned()))
    .into()
}

/// Leases that are used already, oldest first.
struct Used<'a> {
    config: &'a Config,
    own: &'a Lease,
    me: &'a NodeFacts,
    peers: Disjoint,
    macs: BTreeMap<Mac, Subnet>,
}

impl Used<'_> {
    /// The peer of a lease; `None` for our own lease.
    fn check(&mut self, raw: &RawLease) -> Result<Option<Peer>, Reason> {
        let subnet = raw.key.parse::<LeaseKey>()?.subnet;
        if subnet == self.own.subnet {
            return Ok(None);
        }
        let gateway = self.place(subnet)?;
        let value: LeaseValue = raw.value.parse()?;
        let direct = vxlan::is_direct(value.public_ip, self.config, self.me).then_some(value.public_ip);
        if let Some(host) = self.me.peer_overlap(subnet, &self.config.network, direct) {
            return Err(Reason::OverlapsHost(host.clone()));
        }
        self.backend(&value)?;
        let public_ip = self.public_ip(value.public_ip, subnet)?;
        let mac = self.mac(value.vtep_mac.as_deref())?;
        self.peers.insert(subnet);
        self.macs.insert(mac, subnet);
        Ok(Some(Peer { subnet, gateway, public_ip, mac }))
    }

    /// First address of a subnet that may be routed.
    fn place(&self, subnet: Subnet) -> Result<Ipv4Addr, Reason> {
        let (network, own) = (self.config.network, self.own.subnet);
        let IpAddr::V4(first) = subnet.address() else { return Err(Reason::OutsideNetwork(network)) };
        if !network.covers(&subnet) {
            return Err(Reason::OutsideNetwork(network));
        }
        if subnet.overlaps(&own) {
            return Err(Reason::OverlapsOwn(own));
        }
        match self.peers.overlapping(subnet) {
            Some(older) => Err(Reason::OverlapsOlder(older)),
            None => Ok(first),
        }
    }

    fn backend(&self, value: &LeaseValue) -> Result<(), Reason> {
        if !value.backend_type.eq_ignore_ascii_case(wire::VXLAN) {
            return Err(Reason::BackendType(value.backend_type.clone()));
        }
        // Flannel before 0.14 wrote no VNI.
        let ours = self.config.vxlan.vni.get();
        match value.vni {
            Some(found) if found != u64::from(ours) => Err(Reason::Vni { found, ours }),
            _ => Ok(()),
        }
    }

    fn public_ip(&self, ip: Ipv4Addr, subnet: Subnet) -> Result<Ipv4Addr, Reason> {
        let wrong = if let Some(kind) = no_nodes_address(ip) {
            kind
        } else if ip == self.me.public_ip || ip == self.me.underlay.address {
            "this node's own"
        } else if subnet.contains(ip.into()) {
            "in its own subnet"
        } else {
            return Ok(ip);
        };
        Err(Reason::PublicIp(ip, wrong))
    }

    fn mac(&self, text: Option<&str>) -> Result<Mac, Reason> {
        let mac: Mac = text.ok_or(Reason::NoMac)?.parse()?;
        if mac.is_zero() {
            return Err(Reason::UselessMac(mac, "zero"));
        }
        if mac.is_multicast() {
            return Err(Reason::UselessMac(mac, "a multicast address"));
        }
        if mac == self.own.vtep_mac {
            return Err(Reason::DuplicateMac { mac, holder: Holder::ThisNode });
        }
        match self.macs.get(&mac) {
            Some(older) => Err(Reason::DuplicateMac { mac, holder: Holder::Older(*older) }),
            None => Ok(mac),
        }
    }
}

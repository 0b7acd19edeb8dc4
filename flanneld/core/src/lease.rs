//! Which subnet this node gets, and what the side that reads leases tells the side that acts on them.

use std::{collections::BTreeSet, fmt, net::Ipv4Addr, sync::Arc};

use netmodel::{Mac, Subnet, Vni};

use crate::{
    config::Config,
    disjoint::Disjoint,
    host::{HostPrefix, NodeFacts, NodeIdentity},
    wire::{self, LeaseKey, LeaseValue, NodeRecord},
};

/// A lease as it was read: nothing in it has been looked at yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawLease {
    /// The key behind `<prefix>/subnets/`, such as `10.5.34.0-24`.
    pub key: String,
    /// The value as it was written.
    pub value: String,
    /// When the key was created (etcd's create revision; a file's line): of two leases that overlap,
    /// the one with the smaller number is the older.
    pub created: i64,
    /// When the key was last written (etcd's mod revision): what a compare-and-swap compares.
    pub modified: i64,
    /// etcd's lease that the key ends with; 0 for a reservation, which never ends.
    pub ttl_lease: i64,
}

/// This node's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The pods' subnet.
    pub subnet: Subnet,
    /// The address told to peers.
    pub public_ip: Ipv4Addr,
    /// Ethernet address of this node's VXLAN device. A device made anew gets it again.
    pub vtep_mac: Mac,
    /// The VNI that was told to peers.
    pub vni: Vni,
    /// When the lease ends, in seconds since 1970; `None` for one that does not.
    pub expires: Option<u64>,
}

impl Lease {
    /// Its key, below `<prefix>/subnets/`.
    #[must_use]
    pub fn key(&self) -> String {
        LeaseKey { subnet: self.subnet, ipv6: None }.to_string()
    }

    /// Its value.
    #[must_use]
    pub fn value(&self) -> String {
        wire::vxlan_value(self.public_ip, self.vni, self.vtep_mac)
    }

    /// The record that belongs to it.
    #[must_use]
    pub const fn record(&self) -> NodeRecord {
        NodeRecord { subnet: self.subnet, public_ip: self.public_ip }
    }
}

/// What the source of leases knows, all of it: the latest one wins, nothing queues up.
///
/// It goes from the source to the thread that owns the kernel in a `tokio::sync::watch` channel as
/// part of [`View`]; facts come back the other way as the latest [`NodeFacts`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The checked configuration that the lease was taken under.
    pub config: Config,
    /// This node's lease.
    pub own: Lease,
    /// Something about the lease that a user should know, such as
    /// "the lease was lost; took 10.5.3.0/24 again".
    pub note: Option<String>,
    /// All leases, our own among them, in any order.
    pub leases: Arc<[RawLease]>,
}

/// The latest word of the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// What it knows; `None` until there is a configuration and a lease. Once there is one it stays
    /// while the source is away.
    pub assignment: Option<Arc<Assignment>>,
    /// How the source itself is.
    pub state: SourceState,
}

/// How a source of leases is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// It answers, and what it says can be used.
    pub connected: bool,
    /// One sentence with what is wrong, if anything is.
    pub problem: Option<String>,
}

/// Everything in the source that the choice of a subnet looks at.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// All leases.
    pub leases: &'a [RawLease],
    /// All records of nodes (`<prefix>/weft/nodes/`).
    pub records: &'a [(NodeIdentity, NodeRecord)],
    /// Addresses that took a lease from this node while it held it: what they hold is never ours, whatever
    /// identity it was taken by.
    pub rivals: &'a BTreeSet<Ipv4Addr>,
}

/// A subnet for this node, and how to take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The lease to write. `expires` is the writer's to set.
    pub lease: Lease,
    /// How to write it.
    pub claim: Claim,
    /// Why this one.
    pub reason: Reason,
    /// Leases of our own that are of no more use, to be deleted if they have not changed.
    pub stale: Vec<RawLease>,
}

/// How a lease is written, so that nobody else's is overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Only if the key does not exist.
    Create,
    /// Only if the key was last written at that revision.
    Replace {
        /// The mod revision to compare with.
        modified: i64,
        /// The lease is a reservation, which stays one: it is written without a time to live.
        reservation: bool,
    },
}

/// Why a subnet was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The lease that the node's record names.
    OwnByIdentity,
    /// The lease that names the Ethernet address of the node's device.
    OwnByDevice,
    /// The lease that names the node's public address, as flannel writes it.
    OwnByPublicIp,
    /// No lease, but the subnet that the node's record names.
    FreeByIdentity,
    /// No lease, but the subnet in `subnet.env`.
    FreeBySubnetEnv,
    /// Any free one.
    Free,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnByIdentity => "this node's own lease, by its identity",
            Self::OwnByDevice => "this node's own lease, by its device",
            Self::OwnByPublicIp => "this node's own lease, by its public address",
            Self::FreeByIdentity => "this node's earlier subnet, by its identity",
            Self::FreeBySubnetEnv => "this node's earlier subnet, by subnet.env",
            Self::Free => "a free subnet",
        })
    }
}

/// There is no subnet for this node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSubnet {
    /// Others hold all of them. One may become free.
    #[error("no subnet is left: all {leased} subnets from {min} to {max} of {network} are leased")]
    AllLeased {
        /// How many leases of others are in the way.
        leased: usize,
        /// The network they lie in.
        network: Subnet,
        /// First address of the first.
        min: Ipv4Addr,
        /// First address of the last.
        max: Ipv4Addr,
    },
    /// This host uses all of them itself. Waiting does not help.
    #[error("no subnet of {network} is free of overlap with this host: {first} overlaps {host}")]
    AllOverlap {
        /// The network.
        network: Subnet,
        /// One of the subnets.
        first: Subnet,
        /// What it overlaps.
        host: Box<HostPrefix>,
    },
}

/// How many free subnets are gathered before one of them is picked at random, as flannel does:
/// nodes that start together then rarely want the same one.
const PICK_FROM: usize = 100;

/// Which subnet this node takes, by what is known, and how.
///
/// `random(n)` gives a number below `n`. A race that is lost is answered by reading again and
/// choosing again.
///
/// # Errors
/// No subnet of the range is both free and without overlap with this host.
pub fn choose(
    known: Known<'_>,
    config: &Config,
    me: &NodeFacts,
    random: &mut dyn FnMut(usize) -> usize,
) -> Result<Choice, NoSubnet> {
    let held = parse(known.leases, &config.network);
    let others = Others::of(known.records, me);
    let mut own = own_leases(&held, &others, config, me);
    own.retain(|(lease, _)| {
        lease.public_ip == Some(me.public_ip) || lease.public_ip.is_none_or(|ip| !known.rivals.contains(&ip))
    });
    let foreign_macs = foreign_macs(&held, &own);
    let usable = |subnet| config.offers(subnet) && me.foreign_overlap(subnet).is_none();
    let best = own.iter().position(|(lease, _)| usable(lease.subnet));
    let (subnet, claim, reason, mac) = if let Some(best) = best {
        let (lease, reason) = own.remove(best);
        let claim = Claim::Replace { modified: lease.raw.modified, reservation: lease.raw.ttl_lease == 0 };
        (lease.subnet, claim, reason, lease.mac)
    } else {
        let taken = Disjoint::covering(held.iter().map(|lease| lease.subnet));
        let mac = own.iter().find_map(|(lease, _)| lease.mac);
        let mut earlier = earlier(&others, me);
        let earlier = earlier.find(|(s, _)| taken.overlapping(*s).is_none() && usable(*s));
        let (subnet, reason) = match earlier {
            Some(found) => found,
            None => (pick(&Taken { leases: &taken, others: &others }, config, me, random)?, Reason::Free),
        };
        (subnet, Claim::Create, reason, mac)
    };
    let vni = config.vxlan.vni;
    let device = me.vteps.iter().find(|(v, _)| *v == vni).map(|(_, mac)| *mac);
    let [by_identity, by_address] = me.vtep_macs(vni);
    let macs = [device, mac, Some(by_identity)].into_iter().flatten();
    let vtep_mac = macs.into_iter().find(|mac| !foreign_macs.contains(mac)).unwrap_or(by_address);
    let stale = own
        .into_iter()
        // By its public address alone a lease is deleted only if it can't be used, as flannel does.
        .filter(|(lease, reason)| *reason != Reason::OwnByPublicIp || !usable(lease.subnet))
        .map(|(lease, _)| lease.raw.clone())
        .collect();
    let lease = Lease { subnet, public_ip: me.public_ip, vtep_mac, vni, expires: None };
    Ok(Choice { lease, claim, reason, stale })
}

/// A lease whose key could be read.
#[derive(Clone, Copy, Debug)]
struct Held<'a> {
    raw: &'a RawLease,
    subnet: Subnet,
    public_ip: Option<Ipv4Addr>,
    mac: Option<Mac>,
}

/// A lease of `subnet` stands in the way of others. One that claims all of the network, or lies outside,
/// is garbled and does not.
#[must_use]
pub fn holds(network: Subnet, subnet: Subnet) -> bool {
    network.covers(&subnet) && subnet != network
}

/// The leases of this network whose keys say what they hold. One whose value can't be read still holds
/// its subnet.
fn parse<'a>(leases: &'a [RawLease], network: &Subnet) -> Vec<Held<'a>> {
    let read = |raw: &'a RawLease| {
        let subnet = raw.key.parse::<LeaseKey>().ok()?.subnet;
        let value = raw.value.parse::<LeaseValue>().ok();
        let mac = value.as_ref().and_then(|v| v.vtep_mac.as_ref()?.parse::<Mac>().ok());
        let mac = mac.filter(|mac| !mac.is_zero() && !mac.is_multicast());
        Some(Held { raw, subnet, public_ip: value.map(|v| v.public_ip), mac })
    };
    leases.iter().filter_map(read).filter(|held| holds(*network, held.subnet)).collect()
}

/// What records say, for many questions.
struct Others {
    /// What this node's own record says.
    mine: Option<NodeRecord>,
    /// Subnet and address of each other node.
    nodes: BTreeSet<(Subnet, Option<Ipv4Addr>)>,
    /// Their subnets.
    subnets: BTreeSet<Subnet>,
}

impl Others {
    fn of(records: &[(NodeIdentity, NodeRecord)], me: &NodeFacts) -> Self {
        let others = || records.iter().filter(|(id, _)| *id != me.identity).map(|(_, record)| record);
        Self {
            mine: records.iter().find(|(id, _)| *id == me.identity).map(|(_, record)| *record),
            nodes: others().map(|record| (record.subnet, Some(record.public_ip))).collect(),
            subnets: others().map(|record| record.subnet).collect(),
        }
    }
}

/// Leases that are this node's own, the surest first.
fn own_leases<'a>(
    held: &[Held<'a>],
    others: &Others,
    config: &Config,
    me: &NodeFacts,
) -> Vec<(Held<'a>, Reason)> {
    let device = me.vteps.iter().find(|(vni, _)| *vni == config.vxlan.vni).map(|(_, mac)| *mac);
    let here = |ip: Option<Ipv4Addr>| ip == Some(me.public_ip);
    // With another address, a record that does not fit to subnet.env was written by a machine that shares our
    // identity.
    let is_ours = |record: &NodeRecord| {
        me.previous.is_none_or(|previous| previous == record.subnet) || here(Some(record.public_ip))
    };
    let mine = others.mine.filter(is_ours).map(|record| (record.subnet, Some(record.public_ip)));
    let why = |lease: &Held<'_>| {
        if mine == Some((lease.subnet, lease.public_ip)) {
            Some((0, Reason::OwnByIdentity))
        } else if device.is_some() && lease.mac == device {
            // No two devices have one address: a record of another identity is our own older one.
            Some((1, Reason::OwnByDevice))
        } else if others.nodes.contains(&(lease.subnet, lease.public_ip)) {
            None
        } else if here(lease.public_ip) {
            Some((2, Reason::OwnByPublicIp))
        } else {
            None
        }
    };
    let mut own: Vec<_> = held.iter().filter_map(|lease| Some((why(lease)?, *lease))).collect();
    own.sort_by_key(|((rank, _), lease)| (*rank, lease.raw.created));
    // Where a lease is ours by its address and by more than that, what our record or our device's Ethernet address
    // names elsewhere is held by a machine that shares them.
    let macs = me.vtep_macs(config.vxlan.vni);
    let certain = |lease: &Held<'_>| {
        let by_mac = lease.mac.is_some_and(|mac| Some(mac) == device || macs.contains(&mac));
        here(lease.public_ip) && (by_mac || me.previous == Some(lease.subnet))
    };
    if own.iter().any(|(_, lease)| certain(lease)) {
        own.retain(|(_, lease)| here(lease.public_ip));
    }
    own.into_iter().map(|((_, reason), lease)| (lease, reason)).collect()
}

/// Ethernet addresses that leases of others name: of two leases with one of them peers skip the younger.
fn foreign_macs(held: &[Held<'_>], own: &[(Held<'_>, Reason)]) -> BTreeSet<Mac> {
    let is_own = |lease: &&Held<'_>| own.iter().any(|(own, _)| own.raw.key == lease.raw.key);
    held.iter().filter(|lease| !is_own(lease)).filter_map(|lease| lease.mac).collect()
}

/// Subnets that this node had, the surest first.
fn earlier(others: &Others, me: &NodeFacts) -> impl Iterator<Item = (Subnet, Reason)> + use<> {
    // Pods that run now hang on the subnet of subnet.env: it comes first.
    let by_file = me.previous.map(|subnet| (subnet, Reason::FreeBySubnetEnv));
    by_file.into_iter().chain(others.mine.map(|record| (record.subnet, Reason::FreeByIdentity)))
}

/// What is in the way of a free subnet.
struct Taken<'a> {
    leases: &'a Disjoint,
    others: &'a Others,
}

/// One of the first free subnets, at random. A subnet that another node had last is taken only where
/// there is no other: that node may come back.
fn pick(
    taken: &Taken<'_>,
    config: &Config,
    me: &NodeFacts,
    random: &mut dyn FnMut(usize) -> usize,
) -> Result<Subnet, NoSubnet> {
    let (mut leased, mut obstacle) = (0, None);
    let (mut fresh, mut used) = (Vec::new(), Vec::new());
    for subnet in config.subnets() {
        if let Some(host) = me.overlap(subnet) {
            obstacle.get_or_insert((subnet, host));
        } else if taken.leases.overlapping(subnet).is_some() {
            leased += 1;
        } else if taken.others.subnets.contains(&subnet) {
            used.push(subnet);
        } else {
            fresh.push(subnet);
        }
        if fresh.len() == PICK_FROM {
            break;
        }
    }
    let free = if fresh.is_empty() { used } else { fresh };
    if let Some(last) = free.len().min(PICK_FROM).checked_sub(1) {
        return Ok(free[random(last + 1).min(last)]);
    }
    let network = config.network;
    Err(match obstacle {
        Some((first, host)) if leased == 0 => {
            NoSubnet::AllOverlap { network, first, host: Box::new(host.clone()) }
        }
        _ => NoSubnet::AllLeased { leased, network, min: config.subnet_min, max: config.subnet_max },
    })
}

#[cfg(test)]
mod tests;

//! Which subnet this node gets, and what the side that reads leases tells the side that acts on them.

use std::{fmt, net::Ipv4Addr, sync::Arc};

use netmodel::{Mac, Subnet, Vni};

use crate::{
    config::Config,
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
    /// A subnet that we would have taken again, and what of this host it overlaps.
    pub overlap: Option<(Subnet, HostPrefix)>,
}

impl Choice {
    /// The key to write, below `<prefix>/subnets/`.
    #[must_use]
    pub fn key(&self) -> String {
        LeaseKey { subnet: self.lease.subnet, ipv6: None }.to_string()
    }

    /// The value to write.
    #[must_use]
    pub fn value(&self) -> String {
        wire::vxlan_value(self.lease.public_ip, self.lease.vni, self.lease.vtep_mac)
    }

    /// The record to write in the same transaction.
    #[must_use]
    pub fn record(&self) -> NodeRecord {
        NodeRecord { subnet: self.lease.subnet, public_ip: self.lease.public_ip }
    }
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
        host: HostPrefix,
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
    let mut own = own_leases(&held, known.records, config, me);
    let mut overlap = None;
    let usable = |subnet: Subnet, overlap: &mut Option<(Subnet, HostPrefix)>| {
        let host = me.foreign_overlap(subnet);
        if let (Some(host), true) = (host, overlap.is_none()) {
            *overlap = Some((subnet, host.clone()));
        }
        config.offers(subnet) && host.is_none()
    };
    let best = own.iter().position(|(lease, _)| usable(lease.subnet, &mut overlap));
    let (subnet, claim, reason, mac) = if let Some(best) = best {
        let (lease, reason) = own.remove(best);
        let claim = Claim::Replace { modified: lease.raw.modified, reservation: lease.raw.ttl_lease == 0 };
        (lease.subnet, claim, reason, lease.mac)
    } else {
        // What is deleted as stale is not in the way.
        let free = |subnet: Subnet| !held.iter().any(|lease| lease.subnet.overlaps(&subnet));
        let mac = own.iter().find_map(|(lease, _)| lease.mac);
        let earlier = earlier(known.records, me).find(|(s, _)| free(*s) && usable(*s, &mut overlap));
        let (subnet, reason) = match earlier {
            Some(found) => found,
            None => (pick(&Taken { held: &held, records: known.records }, config, me, random)?, Reason::Free),
        };
        (subnet, Claim::Create, reason, mac)
    };
    let vni = config.vxlan.vni;
    let device = me.vteps.iter().find(|(v, _)| *v == vni).map(|(_, mac)| *mac);
    let vtep_mac = device.or(mac).unwrap_or_else(|| me.identity.vtep_mac(vni));
    let stale = own
        .into_iter()
        // By its public address alone a lease is deleted only if it can't be used, as flannel does.
        .filter(|(lease, reason)| *reason != Reason::OwnByPublicIp || !usable(lease.subnet, &mut None))
        .map(|(lease, _)| lease.raw.clone())
        .collect();
    let lease = Lease { subnet, public_ip: me.public_ip, vtep_mac, vni, expires: None };
    Ok(Choice { lease, claim, reason, stale, overlap })
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

/// Leases that are this node's own, the surest first.
fn own_leases<'a>(
    held: &[Held<'a>],
    records: &[(NodeIdentity, NodeRecord)],
    config: &Config,
    me: &NodeFacts,
) -> Vec<(Held<'a>, Reason)> {
    let belongs = |lease: &Held<'_>, record: &NodeRecord| {
        record.subnet == lease.subnet && Some(record.public_ip) == lease.public_ip
    };
    let device = me.vteps.iter().find(|(vni, _)| *vni == config.vxlan.vni).map(|(_, mac)| *mac);
    let why = |lease: &Held<'_>| {
        let mut holders = records.iter().filter(|(_, record)| belongs(lease, record)).map(|(id, _)| *id);
        let others = holders.clone().any(|id| id != me.identity);
        if holders.any(|id| id == me.identity) {
            Some((0, Reason::OwnByIdentity))
        } else if device.is_some() && lease.mac == device {
            // No two devices have one address: a record of another identity is our own older one.
            Some((1, Reason::OwnByDevice))
        } else if others {
            None
        } else if lease.public_ip == Some(me.public_ip) {
            Some((2, Reason::OwnByPublicIp))
        } else {
            None
        }
    };
    let mut own: Vec<_> = held.iter().filter_map(|lease| Some((why(lease)?, *lease))).collect();
    own.sort_by_key(|((rank, _), lease)| (*rank, lease.raw.created));
    own.into_iter().map(|((_, reason), lease)| (lease, reason)).collect()
}

/// Subnets that this node had, the surest first.
fn earlier(records: &[(NodeIdentity, NodeRecord)], me: &NodeFacts) -> impl Iterator<Item = (Subnet, Reason)> {
    let by_identity = records.iter().find(|(id, _)| *id == me.identity).map(|(_, record)| record.subnet);
    // Pods that run now hang on the subnet of subnet.env: it comes first.
    let by_file = me.previous.map(|subnet| (subnet, Reason::FreeBySubnetEnv));
    by_file.into_iter().chain(by_identity.map(|subnet| (subnet, Reason::FreeByIdentity)))
}

/// What is in the way of a free subnet.
struct Taken<'a> {
    held: &'a [Held<'a>],
    records: &'a [(NodeIdentity, NodeRecord)],
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
        } else if taken.held.iter().any(|lease| lease.subnet.overlaps(&subnet)) {
            leased += 1;
        } else if taken.records.iter().any(|(id, r)| *id != me.identity && r.subnet == subnet) {
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
        Some((first, host)) if leased == 0 => NoSubnet::AllOverlap { network, first, host: host.clone() },
        _ => NoSubnet::AllLeased { leased, network, min: config.subnet_min, max: config.subnet_max },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::DeviceKind;
    use crate::test::{config, facts, host_address, lease};

    /// Chooses with the first of the free subnets, and says what came out.
    fn check(
        leases: &[RawLease],
        records: &[(u8, &str, &str)],
        me: &NodeFacts,
        expected: &str,
    ) -> Option<Choice> {
        let records: Vec<_> = records
            .iter()
            .map(|(id, subnet, ip)| {
                let record = NodeRecord { subnet: subnet.parse().unwrap(), public_ip: ip.parse().unwrap() };
                (NodeIdentity([*id; 16]), record)
            })
            .collect();
        let known = Known { leases, records: &records };
        let config = config(r#"{"Network":"10.5.0.0/20","Backend":{"Type":"vxlan"}}"#);
        let choice = choose(known, &config, me, &mut |_| 0);
        let text = match &choice {
            Ok(choice) => {
                let stale: String = choice.stale.iter().map(|s| format!(", deletes {}", s.key)).collect();
                let how = match choice.claim {
                    Claim::Create => "create".to_owned(),
                    Claim::Replace { modified, reservation: false } => format!("replace @{modified}"),
                    Claim::Replace { modified, reservation: true } => {
                        format!("replace reservation @{modified}")
                    }
                };
                format!("{} {how}: {}{stale}", choice.key(), choice.reason)
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(text, expected);
        choice.ok()
    }

    #[test]
    fn a_new_node_takes_a_free_subnet() {
        let leases = [lease("10.5.1.0-24", "192.0.2.9", 9)];
        let choice = check(&leases, &[], &facts(), "10.5.2.0-24 create: a free subnet").unwrap();
        let mac = NodeIdentity([1; 16]).vtep_mac(Vni::try_from(1).unwrap());
        assert_eq!(choice.lease.vtep_mac, mac);
        assert_eq!(
            choice.value(),
            format!(
                r#"{{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
            )
        );
    }

    #[test]
    fn a_subnet_that_another_node_had_last_is_left_for_it() {
        check(&[], &[(2, "10.5.1.0/24", "192.0.2.9")], &facts(), "10.5.2.0-24 create: a free subnet");
    }

    #[test]
    fn its_own_lease_is_taken_again() {
        let same_ip = [lease("10.5.3.0-24", "192.0.2.1", 9)];
        let by_ip = "10.5.3.0-24 replace @1: this node's own lease, by its public address";
        let choice = check(&same_ip, &[], &facts(), by_ip).unwrap();
        assert_eq!(
            choice.lease.vtep_mac.to_string(),
            "02:00:00:00:00:09",
            "a new device gets the lease's address"
        );

        let old_ip = [lease("10.5.3.0-24", "192.0.2.77", 9)];
        let by_identity = "10.5.3.0-24 replace @1: this node's own lease, by its identity";
        check(&old_ip, &[(1, "10.5.3.0/24", "192.0.2.77")], &facts(), by_identity);
        let by_device = "10.5.3.0-24 replace @1: this node's own lease, by its device";
        let with_device =
            NodeFacts { vteps: vec![(Vni::try_from(1).unwrap(), Mac([2, 0, 0, 0, 0, 9]))], ..facts() };
        check(&old_ip, &[], &with_device, by_device);
        check(&old_ip, &[(2, "10.5.3.0/24", "192.0.2.77")], &with_device, by_device);
    }

    #[test]
    fn a_lease_that_another_wrote_meanwhile_is_not_its_own() {
        let taken = [lease("10.5.3.0-24", "192.0.2.9", 9)];
        check(&taken, &[(1, "10.5.3.0/24", "192.0.2.1")], &facts(), "10.5.1.0-24 create: a free subnet");
        // Two nodes behind one address: the record says whose it is.
        let shared = [lease("10.5.3.0-24", "192.0.2.1", 9)];
        check(&shared, &[(2, "10.5.3.0/24", "192.0.2.1")], &facts(), "10.5.1.0-24 create: a free subnet");
    }

    #[test]
    fn its_earlier_subnet_is_taken_again_if_it_is_free() {
        let me = NodeFacts { previous: Some("10.5.7.0/24".parse().unwrap()), ..facts() };
        let records = [(1, "10.5.8.0/24", "192.0.2.1")];
        check(&[], &records, &me, "10.5.7.0-24 create: this node's earlier subnet, by subnet.env");
        let taken = [lease("10.5.7.0-24", "192.0.2.9", 9)];
        check(&taken, &records, &me, "10.5.8.0-24 create: this node's earlier subnet, by its identity");
        let outside = NodeFacts { previous: Some("10.99.7.0/24".parse().unwrap()), ..facts() };
        check(&[], &[], &outside, "10.5.1.0-24 create: a free subnet");
    }

    #[test]
    fn a_reservation_stays_one() {
        let reserved = RawLease { ttl_lease: 0, ..lease("10.5.3.0-24", "192.0.2.1", 9) };
        check(
            &[reserved],
            &[],
            &facts(),
            "10.5.3.0-24 replace reservation @1: this node's own lease, by its public address",
        );
    }

    #[test]
    fn a_lease_that_no_longer_fits_is_deleted() {
        let leases = [lease("10.5.0.0-25", "192.0.2.1", 9)];
        check(&leases, &[], &facts(), "10.5.1.0-24 create: a free subnet, deletes 10.5.0.0-25");
    }

    #[test]
    fn what_this_host_uses_is_never_leased() {
        let mut me = facts();
        me.host = host_address("10.5.1.11/24", "eth1", DeviceKind::Other);
        check(&[], &[], &me, "10.5.2.0-24 create: a free subnet");
        let own = [lease("10.5.1.0-24", "192.0.2.1", 9)];
        let choice = check(&own, &[], &me, "10.5.2.0-24 create: a free subnet, deletes 10.5.1.0-24").unwrap();
        let (subnet, host) = choice.overlap.unwrap();
        assert_eq!(format!("{subnet}, {host}"), "10.5.1.0/24, address 10.5.1.11/24 of eth1");
        me.host = host_address("10.5.1.11/8", "eth1", DeviceKind::Other);
        let refused = "no subnet of 10.5.0.0/20 is free of overlap with this host: 10.5.1.0/24 overlaps address 10.5.1.11/8 of eth1";
        check(&[], &[], &me, refused);
    }

    #[test]
    fn its_pods_bridge_is_no_obstacle() {
        let mut me = NodeFacts { previous: Some("10.5.7.0/24".parse().unwrap()), ..facts() };
        for (bridge, address) in [("cni0", "10.5.7.254/24"), ("mybridge", "10.5.7.1/24")] {
            me.host = host_address(address, bridge, DeviceKind::Bridge);
            check(&[], &[], &me, "10.5.7.0-24 create: this node's earlier subnet, by subnet.env");
        }
        // Pods of an earlier subnet that is gone stay out of the way of the next one.
        me.previous = None;
        me.host = host_address("10.5.1.1/24", "cni0", DeviceKind::Bridge);
        check(&[], &[], &me, "10.5.2.0-24 create: a free subnet");
    }

    #[test]
    fn a_garbled_lease_takes_nothing_away() {
        let garbled =
            ["0.0.0.0-0", "10.5.0.0-20", "10.0.0.0-8", "nonsense"].map(|key| lease(key, "192.0.2.9", 9));
        check(&garbled, &[], &facts(), "10.5.1.0-24 create: a free subnet");
    }

    #[test]
    fn no_subnet_left_is_an_error_of_its_own() {
        let all: Vec<_> = (1..16).map(|i| lease(&format!("10.5.{i}.0-24"), "192.0.2.9", i)).collect();
        check(
            &all,
            &[],
            &facts(),
            "no subnet is left: all 15 subnets from 10.5.1.0 to 10.5.15.0 of 10.5.0.0/20 are leased",
        );
    }
}

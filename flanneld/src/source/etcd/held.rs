//! The lease that this node holds, and what a look into etcd says about it. Nothing here does I/O.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use netmodel::Subnet;
use overlay_core::{
    host::{NodeFacts, NodeIdentity},
    lease::{Lease, RawLease, holds},
    wire::{LeaseKey, LeaseValue, NodeRecord},
};
use tokio::time::Instant;

use super::store::Snapshot;

/// How often it is looked whether it is time to renew: no event tells that the machine slept.
const LOOK: Duration = Duration::from_secs(60);

/// A lease of ours.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// What it says.
    pub(super) lease: Lease,
    /// Its key below `<prefix>/subnets/`.
    pub(super) key: String,
    /// Values that we wrote, or may have written before the answer was lost. Any of them is ours.
    values: Vec<String>,
    /// The revision at which it was last written.
    pub(super) modified: i64,
    /// etcd's lease that the key ends with; 0 for a reservation.
    pub(super) ttl_lease: i64,
    /// The one of etcd's leases that this process asked for: nothing else depends on it.
    pub(super) granted: i64,
    /// When to renew; never for a reservation.
    renewal: Option<Renewal>,
}

/// A moment by two clocks, whichever comes first: the one that nobody turns stands still while the machine
/// sleeps, and etcd's does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Renewal {
    at: Instant,
    /// Seconds since 1970.
    wall: u64,
}

impl Renewal {
    fn after(wait: Duration) -> Self {
        // The second that has begun is not over yet.
        let wall = unix_time().saturating_add(wait.as_secs()).saturating_add(1);
        Self { at: Instant::now() + wait, wall }
    }
}

/// What became of a lease that we hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is there as we wrote it.
    Ours,
    /// It is there as we wrote it, but was written again since.
    Rewritten {
        /// When.
        modified: i64,
        /// etcd's lease that it ends with now.
        ttl_lease: i64,
    },
    /// It was deleted, or ended.
    Gone,
    /// Somebody else wrote it.
    Taken {
        /// The address in it, where it can be read.
        by: Option<Ipv4Addr>,
    },
}

/// etcd's lease under which a key is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Term {
    /// Its number; 0 for a reservation.
    pub(super) ttl_lease: i64,
    /// How long it lasts from now on.
    pub(super) lasts: Duration,
    /// How long before its end it is renewed.
    pub(super) margin: Duration,
}

impl Held {
    /// A lease that is about to be written for the first time.
    pub(super) fn new(lease: Lease) -> Self {
        let key = lease.key();
        Self { lease, key, values: Vec::new(), modified: 0, ttl_lease: 0, granted: 0, renewal: None }
    }

    /// The value is about to be sent: from now on it may be there.
    pub(super) fn writing(&mut self) {
        let value = self.lease.value();
        if !self.values.contains(&value) {
            self.values.push(value);
        }
    }

    /// The value was written, at the revision `modified` and under `term`.
    pub(super) fn wrote(&mut self, modified: i64, term: Term) {
        self.values = vec![self.lease.value()];
        self.modified = modified;
        self.ttl_lease = term.ttl_lease;
        self.granted = term.ttl_lease;
        let reservation = term.ttl_lease == 0;
        self.lease.expires = (!reservation).then(|| unix_time().saturating_add(term.lasts.as_secs()));
        let wait = term.lasts.saturating_sub(term.margin).max(Duration::from_secs(1));
        self.renewal = (!reservation).then(|| Renewal::after(wait));
    }

    /// It was written again with the same value.
    pub(super) fn rewritten(&mut self, modified: i64, ttl_lease: i64) {
        self.modified = modified;
        if self.ttl_lease != ttl_lease {
            self.ttl_lease = ttl_lease;
            self.lease.expires = self.lease.expires.filter(|_| ttl_lease != 0);
            self.renewal = (ttl_lease != 0).then(|| Renewal::after(Duration::ZERO));
        }
    }

    /// The store went back to an earlier state: what it holds at our key under our identity, with our Ethernet
    /// address, we wrote before it, at whatever address; unless `rivals` hold that one.
    pub(super) fn recognize(
        &mut self,
        snapshot: &Snapshot,
        identity: NodeIdentity,
        rivals: &BTreeSet<Ipv4Addr>,
    ) {
        let Some(RawLease { value, .. }) = snapshot.leases.get(&self.key) else { return };
        let Ok(LeaseValue { public_ip, vtep_mac, .. }) = value.parse() else { return };
        let is_record =
            |(id, record): &(_, NodeRecord)| *id == identity && record.subnet == self.lease.subnet;
        let mac = vtep_mac.and_then(|mac| mac.parse().ok());
        if mac == Some(self.lease.vtep_mac)
            && snapshot.records.iter().any(is_record)
            && !rivals.contains(&public_ip)
        {
            self.values.push(value.clone());
        }
    }

    /// What `snapshot` says about it.
    pub(super) fn standing(&self, snapshot: &Snapshot) -> Standing {
        let Some(RawLease { value, modified, ttl_lease, .. }) = snapshot.leases.get(&self.key) else {
            return Standing::Gone;
        };
        if !self.values.contains(value) {
            Standing::Taken { by: value.parse::<LeaseValue>().ok().map(|value| value.public_ip) }
        } else if *modified == self.modified {
            Standing::Ours
        } else {
            Standing::Rewritten { modified: *modified, ttl_lease: *ttl_lease }
        }
    }

    /// Takes in what changed about this node. The Ethernet address stays: a device that has another one
    /// gets the lease's again.
    pub(super) fn update(&mut self, facts: &NodeFacts) {
        self.lease.public_ip = facts.public_ip;
    }

    /// What is written there is not what the lease ought to say.
    pub(super) fn differs(&self, snapshot: &Snapshot) -> bool {
        snapshot.leases.get(&self.key).is_none_or(|lease| lease.value != self.lease.value())
    }

    /// It is time to renew.
    pub(super) fn is_due(&self) -> bool {
        self.renewal.is_some_and(|Renewal { at, wall }| at <= Instant::now() || wall <= unix_time())
    }

    /// When to see whether it is time to renew; never for a reservation.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.renewal.map(|renewal| renewal.at.min(Instant::now() + LOOK))
    }
}

/// Seconds since 1970.
fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The oldest lease that overlaps the one at `key` and was there before it; what is no obstacle to the
/// choice of a subnet is none here either.
pub(super) fn older_overlap<'a>(snapshot: &'a Snapshot, key: &str, network: Subnet) -> Option<&'a RawLease> {
    let ours = snapshot.leases.get(key)?;
    let subnet = ours.key.parse::<LeaseKey>().ok()?.subnet;
    let overlaps = |other: &&RawLease| {
        let theirs = other.key.parse::<LeaseKey>().map(|key| key.subnet);
        other.key != ours.key
            && other.created < ours.created
            && theirs.is_ok_and(|theirs| holds(network, theirs) && theirs.overlaps(&subnet))
    };
    snapshot.leases.values().filter(overlaps).min_by_key(|other| other.created)
}

#[cfg(test)]
mod tests {
    use netmodel::Vni;

    use super::*;

    const TERM: Term =
        Term { ttl_lease: 7, lasts: Duration::from_secs(86400), margin: Duration::from_secs(3600) };

    fn held() -> Held {
        let mut held = Held::new(Lease {
            subnet: "10.5.3.0/24".parse().unwrap(),
            public_ip: "192.0.2.1".parse().unwrap(),
            vtep_mac: "c6:d2:32:6f:8f:44".parse().unwrap(),
            vni: Vni::try_from(1).unwrap(),
            expires: None,
        });
        held.writing();
        held.wrote(5, TERM);
        held
    }

    fn raw(key: &str, value: String, created: i64, modified: i64) -> RawLease {
        RawLease { key: key.to_owned(), value, created, modified, ttl_lease: 7 }
    }

    fn snapshot(leases: Vec<RawLease>) -> Snapshot {
        let leases = leases.into_iter().map(|lease| (lease.key.clone(), lease)).collect();
        Snapshot { leases, ..Snapshot::default() }
    }

    #[tokio::test]
    async fn a_lease_is_ours_gone_or_taken() {
        let held = held();
        let other = held.lease.value().replace("192.0.2.1", "192.0.2.9");
        assert_eq!(held.standing(&snapshot(vec![])), Standing::Gone);
        assert_eq!(
            held.standing(&snapshot(vec![raw("10.5.3.0-24", held.lease.value(), 5, 5)])),
            Standing::Ours
        );
        assert_eq!(
            held.standing(&snapshot(vec![raw("10.5.3.0-24", held.lease.value(), 5, 9)])),
            Standing::Rewritten { modified: 9, ttl_lease: 7 }
        );
        assert_eq!(
            held.standing(&snapshot(vec![raw("10.5.3.0-24", other, 5, 9)])),
            Standing::Taken { by: "192.0.2.9".parse().ok() }
        );
        assert_eq!(
            held.standing(&snapshot(vec![raw("10.5.3.0-24", "{".to_owned(), 5, 9)])),
            Standing::Taken { by: None }
        );
    }

    #[tokio::test]
    async fn a_write_whose_answer_was_lost_is_known_again() {
        let mut held = held();
        let before = held.lease.value();
        held.lease.public_ip = "192.0.2.2".parse().unwrap();
        held.writing();
        for value in [before, held.lease.value()] {
            let found = held.standing(&snapshot(vec![raw("10.5.3.0-24", value, 5, 9)]));
            assert_eq!(found, Standing::Rewritten { modified: 9, ttl_lease: 7 });
        }
        held.wrote(9, TERM);
        let old = held.lease.value().replace("192.0.2.2", "192.0.2.1");
        let found = held.standing(&snapshot(vec![raw("10.5.3.0-24", old, 5, 11)]));
        assert!(matches!(found, Standing::Taken { .. }));
    }

    #[tokio::test]
    async fn in_a_store_that_went_back_only_what_we_wrote_ourselves_is_ours() {
        let mut held = held();
        let former = held.lease.value();
        held.lease.public_ip = "192.0.2.2".parse().unwrap();
        held.wrote(9, TERM);
        let (us, twin) = (NodeIdentity([1; 16]), BTreeSet::from([[192, 0, 2, 1].into()]));
        let store = |value: &str, writer| Snapshot {
            records: vec![(writer, held.lease.record())],
            ..snapshot(vec![raw("10.5.3.0-24", value.to_owned(), 5, 5)])
        };
        let other_mac = former.replace("8f:44", "8f:45");
        for (store, rivals, ours) in [
            (store(&former, us), BTreeSet::new(), true),
            (store(&former, us), twin, false),
            (store(&former, NodeIdentity([2; 16])), BTreeSet::new(), false),
            (store(&other_mac, us), BTreeSet::new(), false),
        ] {
            let mut held = held.clone();
            held.recognize(&store, us, &rivals);
            assert_eq!(matches!(held.standing(&store), Standing::Rewritten { .. }), ours, "{store:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_renewed_its_margin_before_the_end_and_a_reservation_never() {
        let mut held = held();
        tokio::time::advance(TERM.lasts - TERM.margin - Duration::from_secs(1)).await;
        assert!(!held.is_due());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(held.is_due());
        held.wrote(6, Term { ttl_lease: 0, ..TERM });
        assert_eq!((held.renewal, held.look_at(), held.lease.expires), (None, None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_came_due_while_the_machine_slept_is_renewed_within_a_minute() {
        let mut held = held();
        assert!(!held.is_due());
        held.renewal = held.renewal.map(|renewal| Renewal { wall: unix_time(), ..renewal });
        assert!(held.is_due());
        assert_eq!(held.look_at(), Some(Instant::now() + Duration::from_secs(60)));
    }

    #[tokio::test]
    async fn the_older_of_two_leases_that_overlap_is_found() {
        let value = held().lease.value();
        let ours = raw("10.5.3.0-24", value.clone(), 5, 5);
        let with = |other: RawLease| snapshot(vec![ours.clone(), other]);
        let older = with(raw("10.5.2.0-23", value.clone(), 4, 8));
        let found = |snapshot: &Snapshot| {
            let network = "10.5.0.0/16".parse().unwrap();
            older_overlap(snapshot, "10.5.3.0-24", network).map(|lease| lease.key.clone())
        };
        assert_eq!(found(&older).as_deref(), Some("10.5.2.0-23"));
        assert_eq!(found(&with(raw("10.5.2.0-23", value.clone(), 6, 6))), None);
        assert_eq!(found(&with(raw("10.5.4.0-24", value.clone(), 1, 1))), None);
        for garbled in ["0.0.0.0-0", "10.5.0.0-16", "10.0.0.0-8"] {
            assert_eq!(found(&with(raw(garbled, value.clone(), 1, 1))), None, "{garbled} is in nobody's way");
        }
    }
}

//! What wakes the loop: the monitors put in what happened, the loop takes out all of it at once.

use std::{
    collections::BTreeMap,
    mem,
    net::Ipv4Addr,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use netmodel::{Mac, Subnet};
use overlay_core::{
    op::{Change, has_one_node},
    overlay::{Remote, RouteKey},
};

/// More changed objects than this are not counted one by one: all is read again.
const MANY: usize = 20_000;

/// What happened since the loop looked last.
#[derive(Debug, Default)]
pub struct Pending {
    /// Objects of ours that somebody changed, the latest word on each.
    pub changes: BTreeMap<Name, Change>,
    /// Our device changed, or events were lost: read all of it again.
    pub everything: bool,
    /// An address or route of this host changed.
    pub host: bool,
    /// The firewall changed.
    pub firewall: bool,
    /// The source has a new word.
    pub source: bool,
    /// The end is near.
    pub stop: bool,
}

impl Pending {
    fn is_empty(&self) -> bool {
        let Self { changes, everything, host, firewall, source, stop } = self;
        changes.is_empty() && !(*everything || *host || *firewall || *source || *stop)
    }
}

/// What objects are known apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// A neighbour.
    Neighbour(Ipv4Addr),
    /// The forwarding entry of one device's address.
    Node(Mac),
    /// A forwarding entry of a group's address, or that of zeros.
    Fdb(Mac, Remote),
    /// A route.
    Route(RouteKey),
}

/// What is of interest to the monitors.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interest {
    /// Index of our device.
    pub device: Option<u32>,
    /// Index of the underlay interface.
    pub underlay: Option<u32>,
    /// The network of all pods.
    pub network: Option<Subnet>,
}

/// The place between the monitors and the loop.
#[derive(Debug, Default)]
pub struct Inbox {
    pending: Mutex<Pending>,
    interest: Mutex<Interest>,
    woken: Condvar,
}

impl Inbox {
    /// Puts something in and wakes the loop.
    pub fn post(&self, put: impl FnOnce(&mut Pending)) {
        put(&mut lock(&self.pending));
        self.woken.notify_one();
    }

    /// Puts in a changed object.
    pub fn post_change(&self, change: Change) {
        let name = match change {
            Change::Neighbour(address, _) => Name::Neighbour(address),
            Change::Fdb(mac, ..) if has_one_node(mac) => Name::Node(mac),
            Change::Fdb(mac, remote, _) => Name::Fdb(mac, remote),
            Change::Route(key, _) => Name::Route(key),
        };
        self.post(|pending| {
            pending.changes.insert(name, change);
            if pending.changes.len() > MANY {
                pending.changes.clear();
                pending.everything = true;
            }
        });
    }

    /// Waits until something is in, at most until `deadline`, and takes it.
    pub fn take(&self, deadline: Instant) -> Pending {
        let mut pending = lock(&self.pending);
        while pending.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                break;
            }
            pending = self.woken.wait_timeout(pending, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        mem::take(&mut *pending)
    }

    /// What the monitors should look at.
    pub fn interest(&self) -> Interest {
        *lock(&self.interest)
    }

    /// Changes what the monitors should look at.
    pub fn set_interest(&self, interest: Interest) {
        *lock(&self.interest) = interest;
    }
}

/// What a thread that panicked left is as good as any: the loop reads all again now and then.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_word_on_an_object_wins_and_all_is_taken_at_once() {
        let inbox = Inbox::default();
        let at = Ipv4Addr::new(10, 5, 3, 0);
        inbox.post_change(Change::Neighbour(at, Some(Mac([2; 6]))));
        inbox.post_change(Change::Neighbour(at, None));
        inbox.post(|pending| pending.host = true);
        let taken = inbox.take(Instant::now());
        assert_eq!(taken.changes.into_values().collect::<Vec<_>>(), [Change::Neighbour(at, None)]);
        assert!(taken.host && !taken.everything);
        assert!(inbox.take(Instant::now()).is_empty());
    }

    #[test]
    fn a_flood_of_changes_becomes_one_wish_to_read_all() {
        let inbox = Inbox::default();
        for n in 0..=u32::try_from(MANY).unwrap() {
            inbox.post_change(Change::Neighbour(n.into(), None));
        }
        let taken = inbox.take(Instant::now());
        assert!(taken.everything && taken.changes.len() < MANY);
    }
}

//! Changes of what this machine is: its links, its addresses, its default route.

use std::{collections::BTreeSet, time::Duration};

use super::{Connection, Message, Protocol};
use crate::{
    Error,
    attribute::{attributes, number},
    netns::Netns,
};

/// The groups of links, IPv4 addresses and IPv4 routes (`RTNLGRP_...`, linux/rtnetlink.h).
const GROUPS: [u32; 3] = [1, 5, 7];
/// `RTM_NEWLINK` and `RTM_DELLINK`.
const LINKS: [u16; 2] = [16, 17];
/// `RTM_NEWROUTE` and `RTM_DELROUTE`.
const ROUTES: [u16; 2] = [24, 25];
/// Bytes of `struct rtmsg`, behind which a route's attributes begin.
const ROUTE_HEADER: usize = 12;
const RTA_PRIORITY: u16 = 6;

/// What may differ now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineChanges {
    /// These links, by index. Whoever needs none of a link's addresses and routes need not look: it tells when they
    /// come, too.
    pub links: BTreeSet<u32>,
    /// Addresses or routes.
    pub others: bool,
}

/// A subscription to changes of links, IPv4 addresses, IPv4 default routes, and routes of last resort of our protocol
/// number. Other routes, such as those to other nodes' pods, come and go without it.
#[derive(Debug)]
pub struct MachineEvents {
    connection: Connection,
}

impl MachineEvents {
    /// Subscribes in the network namespace of the calling thread.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn open() -> Result<Self, Error> {
        Self::join(Connection::open(Protocol::Route)?)
    }

    /// Subscribes in `namespace`.
    ///
    /// # Errors
    /// As [`open`](Self::open), or the namespace could not be entered.
    pub fn open_in(namespace: &Netns) -> Result<Self, Error> {
        Self::join(Connection::open_in(Protocol::Route, namespace)?)
    }

    fn join(mut connection: Connection) -> Result<Self, Error> {
        for group in GROUPS {
            connection.join(group)?;
        }
        Ok(Self { connection })
    }

    /// Waits at most `wait` (`None`: as long as it takes) for changes.
    ///
    /// # Errors
    /// Events were lost ([`Error::is_overrun`]): read again what matters. The subscription goes on.
    pub fn wait(&mut self, wait: Option<Duration>) -> Result<MachineChanges, Error> {
        let mut changes = MachineChanges::default();
        self.connection.events(wait, |event| note(&event, &mut changes))?;
        Ok(changes)
    }
}

fn note(event: &Message<'_>, changes: &mut MachineChanges) {
    // struct ifinfomsg: family, type, and at byte 4 the index.
    let index = || event.payload.get(4..8).and_then(number);
    if LINKS.contains(&event.kind) {
        changes.links.extend(index());
    } else {
        changes.others |= !ROUTES.contains(&event.kind) || is_default_or_ours(event.payload);
    }
}

/// The route is a default one, or one of ours that yields to every other.
fn is_default_or_ours(route: &[u8]) -> bool {
    // struct rtmsg: family, length of the destination's prefix, ..., protocol at byte 5.
    let last_resort = |(kind, value): (u16, &[u8])| kind == RTA_PRIORITY && number(value) == Some(u32::MAX);
    route.get(1) == Some(&0)
        || route.get(5) == Some(&netmodel::ROUTE_PROTOCOL) && attributes(route, ROUTE_HEADER).any(last_resort)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribute::put;

    #[test]
    fn of_routes_only_default_ones_and_our_last_resort_matter() {
        let event = |kind, length, protocol, metric: u32| {
            let mut payload = vec![2, length, 0, 0, 254, protocol, 0, 1, 0, 0, 0, 0];
            put(&mut payload, RTA_PRIORITY, &metric.to_ne_bytes());
            let mut changes = MachineChanges::default();
            note(&Message { kind, flags: 0, sequence: 0, port: 0, payload: &payload }, &mut changes);
            assert!(changes.links.is_empty());
            changes.others
        };
        let ours = netmodel::ROUTE_PROTOCOL;
        assert!(event(24, 0, 3, 100) && event(25, 12, ours, u32::MAX) && event(20, 24, 3, 0));
        assert!(!event(24, 24, 3, u32::MAX) && !event(25, 24, ours, 0), "such as flanneld's to other nodes");
    }

    #[test]
    fn a_link_is_told_by_its_index() {
        let mut changes = MachineChanges::default();
        let payload = [&[0; 4][..], &7_u32.to_ne_bytes(), &[0; 8]].concat();
        note(&Message { kind: 16, flags: 0, sequence: 0, port: 0, payload: &payload }, &mut changes);
        assert_eq!(changes, MachineChanges { links: [7].into(), others: false });
    }
}

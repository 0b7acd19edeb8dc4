//! Changes of what this machine is: its links, its addresses, its default route.

use std::time::Duration;

use super::{Connection, Message, Protocol};
use crate::{Error, netns::Netns};

/// The groups of links, IPv4 addresses and IPv4 routes (`RTNLGRP_...`, linux/rtnetlink.h).
const GROUPS: [u32; 3] = [1, 5, 7];
/// `RTM_NEWROUTE` and `RTM_DELROUTE`.
const ROUTES: [u16; 2] = [24, 25];

/// A subscription to changes of links, IPv4 addresses, IPv4 default routes and routes of our protocol number.
/// Other routes, such as those to other nodes' pods, come and go without it.
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

    /// Waits at most `wait` (`None`: as long as it takes). Whether something changed.
    ///
    /// # Errors
    /// Events were lost ([`Error::is_overrun`]): read again what matters. The subscription goes on.
    pub fn wait(&mut self, wait: Option<Duration>) -> Result<bool, Error> {
        let mut changed = false;
        self.connection.events(wait, |event| changed |= matters(&event))?;
        Ok(changed)
    }
}

fn matters(event: &Message<'_>) -> bool {
    if !ROUTES.contains(&event.kind) {
        return true;
    }
    // struct rtmsg: family, length of the destination's prefix, ..., protocol at byte 5.
    let (length, protocol) = (event.payload.get(1), event.payload.get(5));
    length == Some(&0) || protocol == Some(&netmodel::ROUTE_PROTOCOL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_routes_only_default_ones_and_ours_matter() {
        let event = |kind, length, protocol| {
            let payload = [2, length, 0, 0, 254, protocol, 0, 1];
            matters(&Message { kind, flags: 0, sequence: 0, port: 0, payload: &payload })
        };
        assert!(event(24, 0, 3) && event(25, 32, netmodel::ROUTE_PROTOCOL) && event(16, 24, 3));
        assert!(!event(24, 24, 3) && !event(25, 32, 2));
    }
}

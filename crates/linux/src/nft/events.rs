//! Changes of the ruleset as the kernel announces them.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use ruleset::{Family, Name};

use super::{decode, numbers as n};
use crate::{
    Error,
    netlink::{Connection, Protocol},
    netns::Netns,
};

/// Most datagrams that one call takes: about what the receive buffer holds.
const MOST_DATAGRAMS: usize = 4096;

/// Something in a table was changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Changed {
    /// The table's family.
    pub family: Family,
    /// The table's name.
    pub table: Name,
    /// Whose doing it was: [`Socket::port`](super::Socket::port) of the connection, so that the owner of a
    /// table knows its own changes from those of others.
    pub by: u32,
}

/// A subscription to the changes of all tables in one network namespace.
#[derive(Debug)]
pub struct Events {
    connection: Connection,
}

impl Events {
    /// Subscribes in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The privilege is missing, or the kernel lacks nftables.
    pub fn open() -> Result<Self, Error> {
        Self::join(Connection::open(Protocol::Netfilter)?)
    }

    /// Subscribes in `namespace`.
    ///
    /// # Errors
    /// As [`open`](Self::open), or the namespace could not be entered.
    pub fn open_in(namespace: &Netns) -> Result<Self, Error> {
        Self::join(Connection::open_in(Protocol::Netfilter, namespace)?)
    }

    fn join(mut connection: Connection) -> Result<Self, Error> {
        connection.join(n::GROUP)?;
        Ok(Self { connection })
    }

    /// Waits at most `wait` (`None`: as long as it takes) and returns what has changed since, each table
    /// and author once; nothing if no change came in time, or a signal did. Where others never rest, the
    /// next call tells the rest.
    ///
    /// # Errors
    /// Events were lost ([`Error::is_overrun`]): read again what matters. The subscription goes on.
    pub fn wait(&mut self, wait: Option<Duration>) -> Result<BTreeSet<Changed>, Error> {
        let mut changed = BTreeSet::new();
        let mut patience = wait;
        // What has arrived is taken together, so that a long transaction is few answers.
        for _ in 0..MOST_DATAGRAMS {
            if !self.connection.events(patience, |event| changed.extend(read(event)))? {
                break;
            }
            patience = Some(Duration::ZERO);
        }
        Ok(changed)
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

/// Which table an event is about. The end of a transaction (`NEWGEN`) is about none.
fn read(event: crate::netlink::Message<'_>) -> Option<Changed> {
    if event.kind == n::NEWGEN || event.kind >> 8 != n::SUBSYSTEM {
        return None;
    }
    let family = n::read_family(decode::family(event))?;
    let table = decode::name(decode::attributes(event), n::TABLE)?;
    Some(Changed { family, table, by: event.port })
}

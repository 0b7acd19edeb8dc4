//! nftables: one [`Transaction`] as one send, tables read back, changes by others reported.
//!
//! ```text
//! Transaction --encode--> BATCH_BEGIN, messages, BATCH_END --one send--> kernel: all or nothing
//!                         the last real message asks for the answer (kernels before 6.10 don't answer
//!                         to BATCH_END); errors are matched by sequence number to the change
//! Observed <--decode-- table, chains, sets, elements, rules: repeated while the ruleset changes
//! ```

mod attr;
mod decode;
mod dump;
mod encode;
mod events;
mod numbers;
mod op;

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd},
};

use ruleset::{Family, Name, Transaction};

pub use self::{
    dump::ForeignChain,
    events::{Changed, Events},
};
use crate::{
    Cause, Error,
    netlink::{Connection, Protocol, Request},
    netns::Netns,
    sys,
};

/// What the kernel lacks where it does not know our messages.
const NF_TABLES: &str = "nf_tables (CONFIG_NF_TABLES)";

/// A connection to nftables. It stays in the network namespace that it was opened in.
#[derive(Debug)]
pub struct Socket {
    connection: Connection,
}

impl Socket {
    /// Opens a connection in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel lacks netfilter's netlink, or no descriptor is free.
    pub fn open() -> Result<Self, Error> {
        Connection::open(Protocol::Netfilter).map(|connection| Self { connection })
    }

    /// Opens a connection in `namespace`.
    ///
    /// # Errors
    /// As [`open`](Self::open), or the namespace could not be entered.
    pub fn open_in(namespace: &Netns) -> Result<Self, Error> {
        Connection::open_in(Protocol::Netfilter, namespace).map(|connection| Self { connection })
    }

    /// What the kernel calls this connection: [`Changed::by`] of the changes that it makes.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.connection.port()
    }

    /// Makes all changes of `transaction`, or none. An empty one is done without asking the kernel.
    ///
    /// # Errors
    /// The kernel refused a change, which the error names, or did not answer, or a rule is longer than a
    /// message can be; then nothing was changed.
    pub fn commit(&mut self, transaction: &Transaction) -> Result<(), Error> {
        self.commit_at(transaction, None)
    }

    /// As [`commit`](Self::commit), but with a `generation` only if the ruleset (of all tables) has not
    /// changed since that [generation](Self::generation).
    ///
    /// # Errors
    /// As [`commit`](Self::commit). The ruleset has changed ([`Error::is_overtaken`]).
    pub fn commit_at(&mut self, transaction: &Transaction, generation: Option<u32>) -> Result<(), Error> {
        if transaction.is_empty() {
            return Ok(());
        }
        // Looks at the next number without taking it: how many are needed is known after packing.
        let first = self.connection.reserve(0);
        let batch = encode::batch(transaction, first, generation)?;
        // A change of no elements is no message, and the kernel would have nothing to answer to.
        if batch.messages() <= 2 {
            return Ok(());
        }
        self.connection.reserve(batch.messages());
        let failed = |sequence: u32, cause: Cause| {
            let error = batch.failed(transaction, sequence, cause);
            if sequence == first { error.lacking(libc::EOPNOTSUPP, NF_TABLES) } else { error }
        };
        match self.connection.transact(&batch.bytes, first, batch.last()) {
            Err(cause) => Err(failed(first, cause)),
            Ok(refused) => match refused.into_iter().next() {
                Some((sequence, cause)) => Err(failed(sequence, cause)),
                None => Ok(()),
            },
        }
    }

    /// The generation of the ruleset: every commit by anybody makes it larger by one.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub fn generation(&mut self) -> Result<u32, Error> {
        let request = get("read", "nftables generation", numbers::GETGEN, numbers::UNSPEC, &[]);
        let found = self.connection.ask(&request, |message| {
            decode::attributes(message)
                .be32(numbers::GEN_ID)
                .ok_or_else(|| Cause::Garbled("no generation".to_owned()))
        });
        let found = found.map_err(|error| error.lacking(libc::EINVAL, NF_TABLES))?;
        found.first().copied().ok_or_else(|| request.failed(Cause::Garbled("no generation".to_owned())))
    }
}

impl Socket {
    /// Closes the connection at once. After a deletion the kernel makes whoever closes it last wait some 10 ms:
    /// that is a child with nothing else open, left to whoever inherits it. To be called by a process that ends
    /// soon.
    pub fn close_detached(self) {
        // Without the child it only takes longer.
        let Ok((begin, end)) = std::io::pipe() else { return };
        let _ = sys::fork_to_close(self.as_fd(), begin.as_fd());
        drop((self, end));
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

/// The bytes that [`Socket::commit`] sends for `transaction`, with sequence numbers from 0 on.
///
/// # Errors
/// A rule is longer than a message can be.
pub fn pack(transaction: &Transaction) -> Result<Vec<u8>, Error> {
    encode::batch(transaction, 0, None).map(|batch| batch.bytes)
}

/// A request to read something, filtered by text attributes.
fn get(verb: &'static str, object: &str, kind: u16, family: u8, filter: &[(u16, &str)]) -> Request {
    let mut payload = attr::Writer::default();
    payload.family_header(family, 0);
    for (attribute, text) in filter {
        payload.text(*attribute, text);
    }
    Request { verb, object: object.to_owned(), kind, flags: 0, payload: payload.bytes }
}

/// What to call a table in an error.
fn table_object(family: Family, name: &Name) -> String {
    format!("nftables table {family} {name}")
}

/// Anonymous sets by the name that the kernel gave them.
type AnonymousSets = BTreeMap<Name, ruleset::code::AnonymousSet>;

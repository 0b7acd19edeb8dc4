//! Masquerading: the table of `cni-core` brought into the kernel and kept small.

use std::net::IpAddr;

use cni_core::{
    Attachment, Code, Error, HostAddress, masquerade, masquerade_table, repair_masquerade, sweep_masquerade,
    unmasquerade, unmasqueraded,
};
use linux::nft::Socket;
use ruleset::Transaction;

use crate::{
    failure::kernel,
    undo::{Step, Undo},
};

/// How often a step is begun again because others changed the rules meanwhile.
const ATTEMPTS: usize = 100;

/// Masquerades what `pods` send out of their subnets.
pub(crate) fn start(pods: &[HostAddress], who: &Attachment, undo: &mut Undo<'_>) -> Result<(), Error> {
    let mut socket = open()?;
    undo.push(Step::Masqueraded(pods.to_owned()));
    let elements = masquerade(pods, &who.alias());
    for _ in 0..ATTEMPTS {
        match socket.commit(&elements) {
            Err(e) if e.is_not_found() => {}
            other => return other.map_err(|e| kernel(&e)),
        }
        // The table is missing, or not whole. Of several calls that find it so one makes it: the
        // generation tells the others that they were overtaken.
        let (family, name) = masquerade_table();
        let generation = socket.generation().map_err(|e| kernel(&e))?;
        let have = match socket.table(family, &name) {
            Err(e) if e.retry() == linux::Retry::Now => continue,
            other => other.map_err(|e| kernel(&e))?,
        };
        let whole = repair_masquerade(have.as_ref(), pods, &who.alias());
        match socket.commit_at(&whole, Some(generation)) {
            Err(e) if e.is_overtaken() => {}
            other => return other.map_err(|e| kernel(&e)),
        }
    }
    Err(busy())
}

/// Ends it for `who`: `held` are all its addresses, or none where they are not known or may not be
/// masqueraded: then the elements are looked through.
pub(crate) fn stop(
    socket: Result<Socket, linux::Error>,
    held: &[HostAddress],
    who: &Attachment,
) -> Result<(), Error> {
    let mut socket = match socket {
        // A kernel without nftables masquerades nothing.
        Err(e) if e.is_unsupported() => return Ok(()),
        other => other.map_err(|e| kernel(&e))?,
    };
    if !held.is_empty() {
        match socket.commit(&unmasquerade(held)) {
            Err(e) if e.is_not_found() || e.is_unsupported() => {}
            other => return other.map_err(|e| kernel(&e)),
        }
    }
    let alias = who.alias();
    take_out(&mut socket, |comment| comment == alias)
}

/// Takes out the elements whose comment is doomed.
pub(crate) fn sweep(is_doomed: impl Fn(&str) -> bool) -> Result<(), Error> {
    // A kernel without nftables masquerades nothing.
    Socket::open().map_or(Ok(()), |mut socket| take_out(&mut socket, is_doomed))
}

fn take_out(socket: &mut Socket, is_doomed: impl Fn(&str) -> bool) -> Result<(), Error> {
    let (family, name) = masquerade_table();
    for _ in 0..ATTEMPTS {
        let table = match socket.table(family, &name) {
            Ok(None) => return Ok(()),
            Err(e) if e.is_unsupported() => return Ok(()),
            Ok(Some(table)) => table,
            Err(e) if e.retry() == linux::Retry::Now => continue,
            Err(e) => return Err(kernel(&e)),
        };
        let change: Transaction = sweep_masquerade(&table, &is_doomed);
        match socket.commit(&change) {
            Err(e) if e.is_not_found() => {}
            other => return other.map_err(|e| kernel(&e)),
        }
    }
    Err(busy())
}

/// Those of `pods` that are not masqueraded for `who`: all of them where the rules are not whole.
pub(crate) fn missing(pods: &[HostAddress], who: &Attachment) -> Result<Vec<IpAddr>, Error> {
    let (family, name) = masquerade_table();
    let table = open()?.table(family, &name).map_err(|e| kernel(&e))?;
    if !repair_masquerade(table.as_ref(), &[], "").is_empty() {
        return Ok(pods.iter().map(|pod| pod.address).collect());
    }
    Ok(unmasqueraded(table.as_ref(), pods, &who.alias()))
}

/// A connection to the rules of this namespace.
pub(crate) fn open() -> Result<Socket, Error> {
    Socket::open().map_err(|e| kernel(&e))
}

fn busy() -> Error {
    Error::new(Code::TryAgainLater, "the nftables rules kept changing while masquerading was being set")
}

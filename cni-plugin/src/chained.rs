//! What `portmap` and `bandwidth` make behind another package's interface plugin: a record tells by which interface of
//! the host the attachment can be known to be there, so that nothing of it outlives that interface for long.

use std::collections::BTreeSet;

use cni_core::{Attachment, Error, Network, Trace};
use linux::netlink::RouteSocket;

use crate::{
    links,
    networks::Call,
    pod,
    records::{Held, Records, own_namespace},
    sweep,
    undo::Undo,
};

/// The record of the attachment of `call`, for as long as ADD works; `None` where the interface plugin has one of its own, where
/// the host has no interface for it, and where none can be written: then DEL and GC are waited for.
pub(crate) fn begin(call: &Call) -> Option<Held> {
    let records = Records::of(&call.network).ok()?;
    if records.find(&call.who).ok()?.is_some() {
        return None;
    }
    let near = near_index(call)?;
    let record = records.take(&call.who).ok().filter(|record| record.is_new)?;
    if record.note(&[Trace::Host(own_namespace()), Trace::Link(near)]).is_err() {
        let _ = record.remove();
        return None;
    }
    let _ = sweep::sweep(&records, false);
    Some(record)
}

/// The host's end of the container's interface, by what no renaming changes.
fn near_index(call: &Call) -> Option<u32> {
    let far = RouteSocket::open_in(&pod::open(call).ok()?).ok()?.link(&call.who.ifname).ok()??;
    let near = links::peer_of(&mut RouteSocket::open().ok()?, &far).ok()??;
    Some(near.index)
}

/// The record goes with what ADD takes back.
pub(crate) fn undo<'a>(record: Option<&'a Held>, undo: &mut Undo<'a>) {
    if let Some(record) = record {
        undo.push(|| record.remove());
    }
}

/// DEL: such a record goes.
pub(crate) fn end(call: &Call) -> Result<(), Error> {
    let record = Records::of(&call.network)?.find_if_usable(&call.who)?;
    record.filter(is_such).map_or(Ok(()), |record| record.remove())
}

/// It may be such a record. One that says nothing, as behind a kill, helps nobody else.
fn is_such(record: &Held) -> bool {
    record.before.link.is_some() || record.is_new
}

/// GC: such records go, with what they are of, unless they are of `valid` attachments.
pub(crate) fn sweep(network: &Network, valid: &[Attachment]) -> Result<(), Error> {
    let records = Records::of(network)?;
    let kept: BTreeSet<String> = valid.iter().map(Attachment::record_name).collect();
    let names = records.names();
    sweep::for_all(names.iter().filter(|name| !kept.contains(*name)), |name| {
        let held = records.find_idle(name)?.filter(is_such);
        held.map_or(Ok(()), |held| sweep::clear(&records, &[held]))
    })
}

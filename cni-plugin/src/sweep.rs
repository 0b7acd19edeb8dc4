//! What no runtime will ever delete: attachments whose host's end is gone, with the container's namespace or
//! because ADD was killed. ADD looks for them, and GC finds them too.
//!
//! Whether an attachment lives is judged by the links of this namespace alone, never by a path: the plugin
//! may see other mounts than whoever made them. Whoever works on an attachment holds its record, and is left
//! alone.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime},
};

use cni_core::{Attachment, Code, Error};
use linux::{
    link::{Kind, Link},
    netlink::RouteSocket,
};

use crate::{
    failure::kernel,
    hostports, links,
    records::{Held, Records, make_folder, own_namespace},
    reservations::Reservations,
    scratch, shaping,
};

/// As many records are looked through at every ADD.
const FEW: usize = 20;

/// More of them, once in this time.
const PAUSE: Duration = Duration::from_secs(10);

/// As many are removed at once: each holds a file open, and ADD has other things to do.
const AT_ONCE: usize = 200;

/// Removes what is left of attachments that are gone, and returns of how many. Where there are many records,
/// only once in a while, unless there `is_need`. A record that is the only one is taken for the caller's own.
pub(crate) fn sweep(records: &Records, is_need: bool) -> Result<usize, Error> {
    let marker = records.beside("swept");
    if !is_need && !is_due(&marker) {
        return Ok(0);
    }
    let names = records.names();
    if names.len() <= 1 {
        return Ok(0);
    }
    let dead = find_dead(records, &names)?;
    clear(records, &dead)?;
    // Without it the next ADD looks again.
    if names.len() - dead.len() > FEW {
        let _ = marker.parent().map(make_folder);
        let _ = fs::write(&marker, "");
    } else {
        let _ = fs::remove_file(&marker);
    }
    Ok(dead.len())
}

/// The same for `who` alone: whether it was gone.
pub(crate) fn sweep_one(records: &Records, who: &Attachment) -> Result<bool, Error> {
    let dead = find_dead(records, &[who.record_name()])?;
    clear(records, &dead)?;
    Ok(!dead.is_empty())
}

/// The addresses, or some of them, that the next ADD could free because they are of attachments that are gone.
pub(crate) fn abandoned(records: &Records) -> Result<Vec<IpAddr>, Error> {
    let dead = find_dead(records, &records.names())?;
    Ok(dead.iter().flat_map(|held| held.before.pods()).map(|pod| pod.address).collect())
}

/// There were few records the last time, or it is long ago.
fn is_due(marker: &Path) -> bool {
    let changed = fs::metadata(marker).and_then(|marker| marker.modified());
    // A clock that went back is no reason never to look again.
    changed.map_or(true, |at| SystemTime::now().duration_since(at).map_or(true, |age| age >= PAUSE))
}

/// The records of attachments without a host's end. Records of other namespaces and of address management
/// alone can't be judged by that.
fn find_dead(records: &Records, names: &[String]) -> Result<Vec<Held>, Error> {
    let mut socket = RouteSocket::open().map_err(|e| kernel(&e))?;
    let links = socket.links().map_err(|e| kernel(&e))?;
    let veths: Vec<Link> = links.into_iter().filter(|link| link.kind == Kind::Veth).collect();
    // One that somebody renamed still has its alias.
    let alive: BTreeSet<String> =
        veths.iter().flat_map(|link| [Some(link.name.to_string()), link.alias.clone()]).flatten().collect();
    let here = own_namespace();
    let mut dead = Vec::new();
    for name in names {
        let named = Attachment::of_record(records.network(), name);
        if named.is_some_and(|who| alive.contains(&who.host_link())) {
            continue;
        }
        // What can't be read is DEL's and GC's to tell.
        let Ok(Some(held)) = records.find_idle(name) else { continue };
        let Some(who) = held.who.as_ref().filter(|who| !alive.contains(&who.alias())) else { continue };
        if held.before.link.is_some_and(|index| veths.iter().any(|link| link.index == index)) {
            continue;
        }
        // Its first line is older than anything that is made.
        let is_judged = held.is_new || held.before.host.as_deref() == Some(here.as_str());
        // Since the links were listed an ADD may have come to its end.
        let is_there = socket.link(&links::host_name(who)?).map_err(|e| kernel(&e))?.is_some();
        if is_judged && !is_there {
            dead.push(held);
        }
        if dead.len() == AT_ONCE {
            break;
        }
    }
    Ok(dead)
}

/// Removes whatever is left of these attachments, whose links are gone: first what sends packets to their
/// addresses, then the addresses, then the records. Goes on after a failure and reports the first.
pub(crate) fn clear(records: &Records, dead: &[Held]) -> Result<(), Error> {
    let aliases: BTreeSet<String> = dead.iter().filter_map(|held| Some(held.who.as_ref()?.alias())).collect();
    // Host ports and limits may be a chained plugin's, which the record does not tell of.
    if !aliases.is_empty() {
        hostports::sweep(|alias: &str| aliases.contains(alias))?;
    }
    for_all(dead, |held| {
        // By its name: ADD may have been killed before the device got its alias.
        if let Some(who) = &held.who {
            shaping::end(who)?;
        }
        if let Some((who, folder)) = held.who.as_ref().zip(held.before.folder.as_ref()) {
            Reservations::of(folder.into(), records).release_noted(who, &held.before)?;
        }
        if let Some(path) = &held.before.scratch {
            scratch::remove(Path::new(path))?;
        }
        held.remove()
    })
}

/// Takes `step` with each of `all`, also after a failure, and reports the first one. Ends where others were waited
/// for in vain: the next one would wait for the same.
pub(crate) fn for_all<T>(
    all: impl IntoIterator<Item = T>,
    step: impl Fn(T) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut outcome = Ok(());
    for one in all {
        let done = step(one);
        let in_vain = done.as_ref().is_err_and(|error| error.code == Code::TryAgainLater);
        outcome = outcome.and(done);
        if in_vain {
            break;
        }
    }
    outcome
}

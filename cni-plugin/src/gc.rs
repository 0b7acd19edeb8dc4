//! GC: what belongs to none of the attachments that the runtime still knows goes.

use cni_core::{Attachment, Error, Network, owner_of};
use linux::{
    link::{self, Kind},
    netlink::RouteSocket,
};
use netmodel::MARK;

use crate::{failure::kernel, lock, networks};

/// Removes links, then reservations, of this network alone; goes on after a failure and reports the
/// first. Without the runtime's list nothing is removed.
pub(crate) fn gc(network: &Network) -> Result<(), Error> {
    let Some(valid) = network.valid_attachments()? else { return Ok(()) };
    let links = sweep_links(network, &valid);
    let reservations = sweep_reservations(network, &valid);
    links.and(reservations)
}

fn sweep_links(network: &Network, valid: &[Attachment]) -> Result<(), Error> {
    let mut socket = RouteSocket::open().map_err(|e| kernel(&e))?;
    let keep: Vec<String> = valid.iter().map(Attachment::alias).collect();
    let prefix = format!("{MARK}{}/", network.name);
    let links = socket.links().map_err(|e| kernel(&e))?;
    let doomed = links.into_iter().filter(|link| {
        link.kind == Kind::Veth
            && link.alias.as_ref().is_some_and(|alias| alias.starts_with(&prefix) && !keep.contains(alias))
    });
    let requests: Vec<_> = doomed.map(|link| link::delete(link.index, &link.name)).collect();
    let failed = socket.apply(&requests).into_iter().filter_map(Result::err).find(|e| !e.is_not_found());
    failed.map_or(Ok(()), |e| Err(kernel(&e)))
}

fn sweep_reservations(network: &Network, valid: &[Attachment]) -> Result<(), Error> {
    let Some(reservations) = networks::reservations(&networks::lenient(network)?)? else { return Ok(()) };
    if !reservations.exist() {
        return Ok(());
    }
    // A file of only a container's id stands for any of its interfaces.
    let is_valid = |content: &[u8]| owner_of(content).is_some() && valid.iter().any(|who| who.owns(content));
    let locked = reservations.lock(lock::PATIENCE)?;
    let all = reservations.all()?.into_iter().filter(|(_, content)| !is_valid(content));
    let released: Vec<Result<(), Error>> =
        all.map(|(ip, _)| locked.release_if(ip, |content| !is_valid(content))).collect();
    released.into_iter().collect()
}

//! GC: what belongs to none of the attachments that the runtime still knows goes.

use cni_core::{Attachment, Error, Network, owner_of};
use linux::{
    link::{self, Kind},
    netlink::RouteSocket,
};

use crate::{failure::kernel, lock, nat, networks};

/// Removes links, masquerading, reservations and what the reference left, of this network alone; goes on
/// after a failure and reports the first. Without the runtime's list nothing is removed.
pub(crate) fn gc(network: &Network) -> Result<(), Error> {
    let Some(valid) = network.valid_attachments()? else { return Ok(()) };
    let keep: Vec<String> = valid.iter().map(Attachment::alias).collect();
    let prefix = Attachment::alias_prefix(&network.name);
    let is_doomed = |alias: &str| alias.starts_with(&prefix) && !keep.iter().any(|keep| keep == alias);
    let links = sweep_links(is_doomed);
    let masquerade = nat::sweep(is_doomed);
    let reservations = sweep_reservations(network, &valid);
    let scratch = networks::sweep_scratch(network, |id| valid.iter().any(|who| who.container == id));
    links.and(masquerade).and(reservations).and(scratch)
}

fn sweep_links(is_doomed: impl Fn(&str) -> bool) -> Result<(), Error> {
    let mut socket = RouteSocket::open().map_err(|e| kernel(&e))?;
    let links = socket.links().map_err(|e| kernel(&e))?;
    let doomed = links
        .into_iter()
        .filter(|link| link.kind == Kind::Veth && link.alias.as_deref().is_some_and(&is_doomed));
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
    let released: Vec<_> = all.map(|(ip, _)| locked.release_if(ip, |content| !is_valid(content))).collect();
    released.into_iter().collect::<Result<(), Error>>().and(locked.keep(valid))
}

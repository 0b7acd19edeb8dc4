//! DEL: what ADD made goes, whatever is left of the namespace, the configuration and the state.
//! Absent is done.

use std::os::fd::{AsFd, BorrowedFd};

use cni_core::{Attachment, Error, HostAddress};
use linux::{
    link::{self, Kind, Link},
    netlink::RouteSocket,
    netns::Netns,
    nft::Socket,
};

use crate::{
    addresses,
    failure::kernel,
    hostports,
    index::Entry,
    linkage, nat,
    networks::{self, Call, Scratch},
    pod,
    reservations::Reservations,
    shaping,
};

/// Detaches.
pub(crate) fn del(call: &Call) -> Result<(), Error> {
    let scratch = Scratch::of(call)?;
    let network = networks::to_detach(call, scratch.as_ref())?;
    let reservations = networks::reservations(&network)?;
    let noted = reservations.as_ref().map(|all| all.noted(&call.who)).unwrap_or_default();
    // Whether it can be opened matters only once the link is gone.
    let rules = noted.iter().any(|entry| entry.masqueraded).then(Socket::open);
    if call.network.is_capable_of("portMappings") {
        hostports::del(call)?;
    }
    if call.network.is_capable_of("bandwidth") {
        shaping::del(call)?;
    }
    unplug(call, rules.as_ref().and_then(|rules| rules.as_ref().ok()).map(AsFd::as_fd))?;
    if let Some(reservations) = &reservations {
        if let Some(rules) = rules {
            unmasquerade(call, reservations, &noted, rules)?;
        }
        // Only now: an address must not be given away while anything still goes with it.
        addresses::release(call, reservations)?;
    }
    scratch.map_or(Ok(()), |scratch| scratch.remove())
}

/// Ends masquerading of what ADD `noted`.
fn unmasquerade(
    call: &Call,
    reservations: &Reservations,
    noted: &[Entry],
    rules: Result<Socket, linux::Error>,
) -> Result<(), Error> {
    // Only what is reserved for this container is its own: another one may have its address by now.
    let all_held = noted.iter().all(|entry| reservations.is_held(entry.pod.address, &call.who));
    let pods: Vec<HostAddress> = noted.iter().map(|entry| entry.pod).filter(|_| all_held).collect();
    nat::stop(rules, &pods, &call.who)
}

/// Removes the veth pair by the host's end, which has the same name at every call, or by the
/// container's end where another plugin made it. For `held` see [`link::detach_and_delete`].
fn unplug(call: &Call, held: Option<BorrowedFd<'_>>) -> Result<(), Error> {
    let who = &call.who;
    let mut host = RouteSocket::open().map_err(|e| kernel(&e))?;
    let near = host.link(&linkage::host_name(who)?).map_err(|e| kernel(&e))?;
    if let Some(near) = near.filter(|link| link.kind == Kind::Veth && is_ours(link, who)) {
        return delete(&near, held);
    }
    let Some(netns) = pod::open_if_there(call) else { return Ok(()) };
    match container_end(who, &netns) {
        Some(far) if !is_anothers(&mut host, &far, who) => {
            netns.enter(|| delete(&far, held)).map_err(|e| kernel(&e))?
        }
        _ => Ok(()),
    }
}

/// `None` also where the namespace can't be entered: then it is as good as gone.
fn container_end(who: &Attachment, netns: &Netns) -> Option<Link> {
    let link = RouteSocket::open_in(netns).ok()?.link(&who.ifname).ok()??;
    (link.kind == Kind::Veth).then_some(link)
}

/// The host's end carries our mark for `who`, or, if ADD was killed in between, none yet.
fn is_ours(link: &Link, who: &Attachment) -> bool {
    link.alias.as_deref().is_none_or(|alias| alias.is_empty() || alias == who.alias())
}

/// The container's end belongs to another attachment of ours, such as one whose name was in the
/// way of the ADD that is now taken back.
fn is_anothers(host: &mut RouteSocket, far: &Link, who: &Attachment) -> bool {
    let Some(peer) = far.peer else { return false };
    let near = host.link_by_index(peer.index).ok().flatten();
    near.filter(|near| near.peer.is_some_and(|p| p.index == far.index))
        .and_then(|near| near.alias)
        .is_some_and(|alias| alias.starts_with(netmodel::MARK) && alias != who.alias())
}

/// Deletes a veth pair by one end in the namespace of this thread.
fn delete(link: &Link, held: Option<BorrowedFd<'_>>) -> Result<(), Error> {
    match link::detach_and_delete(link.index, &link.name, held) {
        Err(e) if !e.is_not_found() => Err(kernel(&e)),
        _ => Ok(()),
    }
}

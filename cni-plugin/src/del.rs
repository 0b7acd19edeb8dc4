//! DEL: what ADD made goes, whatever is left of the namespace, the configuration and the state.
//! Absent is done.

use std::net::IpAddr;

use cni_core::{Attachment, Bridge, Error, HostAddress, Outcome};
use linux::{
    link::{self, Kind, Link},
    netlink::RouteSocket,
    netns::Netns,
};

use crate::{
    failure::kernel,
    linkage, nat,
    networks::{self, Call, Scratch},
    pod,
};

/// Detaches.
pub(crate) fn del(call: &Call) -> Result<(), Error> {
    let scratch = Scratch::of(call)?;
    let network = networks::to_detach(call, scratch.as_ref())?;
    let reservations = networks::reservations(&network)?;
    let addresses = reported(call);
    unplug(call)?;
    let now = Bridge::parse(&network, &call.args).ok();
    let count = now.as_ref().and_then(|bridge| bridge.ipam.as_ref()).map(|ipam| ipam.sets.len());
    let complete = count.is_some_and(|count| addresses.len() >= count);
    let masqueraded = complete && now.is_some_and(|bridge| bridge.ip_masq);
    // Only what is reserved for this container is its own: another one may have its address by now.
    let is_held = |ip: IpAddr| reservations.as_ref().is_some_and(|r| r.is_held(ip, &call.who));
    let held = masqueraded && addresses.iter().all(|a| is_held(a.address));
    nat::stop(if held { &addresses } else { &[] }, &call.who)?;
    // Only now: an address must not be given away while anything still goes with it.
    if let Some(reservations) = &reservations {
        let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.address).collect();
        reservations.release(&call.who, &addresses)?;
    }
    scratch.map_or(Ok(()), |scratch| scratch.remove())
}

/// The addresses that ADD reported, where the runtime still knows.
fn reported(call: &Call) -> Vec<HostAddress> {
    let previous = call.network.previous().and_then(|value| Outcome::parse(value).ok()).unwrap_or_default();
    let reported = previous.addresses_of(call.who.ifname.as_str());
    reported.map(|ip| HostAddress { address: ip.address, prefix: ip.prefix }).collect()
}

/// Removes the veth pair by the host's end, which has the same name at every call, or by the
/// container's end where another plugin made it.
fn unplug(call: &Call) -> Result<(), Error> {
    let who = &call.who;
    let mut host = RouteSocket::open().map_err(|e| kernel(&e))?;
    let near = host.link(&linkage::host_name(who)?).map_err(|e| kernel(&e))?;
    if let Some(near) = near.filter(|link| link.kind == Kind::Veth && is_ours(link, who)) {
        return delete(&near);
    }
    let Some(netns) = pod::open_if_there(call) else { return Ok(()) };
    match container_end(who, &netns) {
        Some(far) if !is_anothers(&mut host, &far, who) => {
            netns.enter(|| delete(&far)).map_err(|e| kernel(&e))?
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
fn delete(link: &Link) -> Result<(), Error> {
    match link::detach_and_delete(link.index, &link.name) {
        Err(e) if !e.is_not_found() => Err(kernel(&e)),
        _ => Ok(()),
    }
}

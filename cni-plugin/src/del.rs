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
    let mut addresses = reported(call);
    unplug(call, &mut addresses)?;
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
fn unplug(call: &Call, addresses: &mut Vec<HostAddress>) -> Result<(), Error> {
    let who = &call.who;
    let mut host = RouteSocket::open().map_err(|e| kernel(&e))?;
    let near = host.link(&linkage::host_name(who)?).map_err(|e| kernel(&e))?;
    let near = near.filter(|link| link.kind == Kind::Veth && is_ours(link, who));
    if near.is_some() && !addresses.is_empty() {
        return delete(near);
    }
    let inside = pod::open_if_there(call).and_then(|netns| look_inside(who, netns));
    if let Some(inside) = &inside
        && addresses.is_empty()
    {
        addresses.extend(&inside.addresses);
    }
    match inside {
        _ if near.is_some() => delete(near),
        Some(inside) if !is_anothers(&mut host, &inside.link, who) => {
            let deleted = inside.netns.enter(|| delete(Some(inside.link)));
            deleted.map_err(|e| kernel(&e))?
        }
        _ => Ok(()),
    }
}

/// The container's end as it is seen from inside.
struct Inside {
    netns: Netns,
    link: Link,
    addresses: Vec<HostAddress>,
}

/// `None` also where the namespace can't be entered: then it is as good as gone.
fn look_inside(who: &Attachment, netns: Netns) -> Option<Inside> {
    let mut socket = RouteSocket::open_in(&netns).ok()?;
    let link = socket.link(&who.ifname).ok()??;
    if link.kind != Kind::Veth {
        return None;
    }
    let all = socket.addresses(Some(link.index)).unwrap_or_default();
    let link_local = |ip: IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let assigned = all.into_iter().filter(|a| !link_local(a.address));
    let addresses = assigned.map(|a| HostAddress { address: a.address, prefix: a.prefix }).collect();
    Some(Inside { netns, link, addresses })
}

/// The host's end carries our mark for `who`, or, if ADD was killed in between, none yet.
fn is_ours(link: &Link, who: &Attachment) -> bool {
    link.alias.as_deref().is_none_or(|alias| alias.is_empty() || alias == who.alias())
}

/// The container's end belongs to another attachment of ours, such as one whose name was in the
/// way of the ADD that is now taken back.
fn is_anothers(host: &mut RouteSocket, inside: &Link, who: &Attachment) -> bool {
    let Some(peer) = inside.peer else { return false };
    let near = host.link_by_index(peer.index).ok().flatten();
    near.filter(|near| near.peer.is_some_and(|p| p.index == inside.index))
        .and_then(|near| near.alias)
        .is_some_and(|alias| alias.starts_with(netmodel::MARK) && alias != who.alias())
}

/// Deletes a veth pair by one end in the namespace of this thread.
fn delete(link: Option<Link>) -> Result<(), Error> {
    let Some(link) = link else { return Ok(()) };
    match link::detach_and_delete(link.index, &link.name) {
        Err(e) if !e.is_not_found() => Err(kernel(&e)),
        _ => Ok(()),
    }
}

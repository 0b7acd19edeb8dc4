//! Interfaces by their names, marks and peers.

use std::os::fd::BorrowedFd;

use cni_core::{Attachment, Code, Error, HostAddress, Interface};
use linux::{
    link::{self, Kind, Link},
    netlink::RouteSocket,
};
use netmodel::IfName;

use crate::failure::kernel;

/// The addresses of the interface with that index.
pub(crate) fn addresses_on(socket: &mut RouteSocket, index: u32) -> Result<Vec<HostAddress>, linux::Error> {
    let addresses = socket.addresses(Some(index))?;
    Ok(addresses.iter().map(|a| HostAddress { address: a.address, prefix: a.prefix }).collect())
}

/// Deletes an interface in the namespace of this thread, and returns when it is gone; absent is done. For `held` see
/// [`link::detach_and_delete`].
pub(crate) fn delete(link: &Link, held: Option<BorrowedFd<'_>>) -> Result<(), Error> {
    match link::detach_and_delete(link.index, &link.name, held) {
        Err(e) if !e.is_not_found() => Err(kernel(&e)),
        _ => Ok(()),
    }
}

/// Deletes an interface of the host; absent is done.
pub(crate) fn unlink(index: u32, name: &IfName) -> Result<(), Error> {
    match RouteSocket::open().and_then(|mut socket| socket.request(&link::delete(index, name))) {
        Err(e) if !e.is_not_found() => Err(kernel(&e)),
        _ => Ok(()),
    }
}

/// An interface for the result.
pub(crate) fn reported(link: &Link, sandbox: &str) -> Interface {
    Interface {
        name: link.name.to_string(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        sandbox: sandbox.to_owned(),
        mtu: link.mtu,
    }
}

/// The name of the host's end.
pub(crate) fn host_name(who: &Attachment) -> Result<IfName, Error> {
    parse_name(&who.host_link())
}

/// A name that was made, not asked for.
pub(crate) fn parse_name(name: &str) -> Result<IfName, Error> {
    name.parse().map_err(|e: netmodel::BadIfName| Error::new(Code::Internal, e.to_string()))
}

/// The host's end of `who`: it carries our mark for it, or, if ADD was killed in between, none yet.
pub(crate) fn host_end(host: &mut RouteSocket, who: &Attachment) -> Result<Option<Link>, Error> {
    let near = host.link(&host_name(who)?).map_err(|e| kernel(&e))?;
    Ok(near.filter(|link| link.kind == Kind::Veth && may_be_of(link, who)))
}

/// The host's end of `who` by our mark alone, whatever its name.
pub(crate) fn marked(host: &mut RouteSocket, who: &Attachment) -> Result<Option<Link>, Error> {
    let alias = who.alias();
    let is_it = |link: &Link| link.kind == Kind::Veth && link.alias.as_ref() == Some(&alias);
    Ok(host.links().map_err(|e| kernel(&e))?.into_iter().find(is_it))
}

/// An interface that has a name of ours for `who` carries our mark for it, or none yet.
pub(crate) fn may_be_of(link: &Link, who: &Attachment) -> bool {
    link.alias.as_deref().is_none_or(|alias| alias.is_empty() || alias == who.alias())
}

/// The host's end of a container's interface `far`.
pub(crate) fn peer_of(host: &mut RouteSocket, far: &Link) -> Result<Option<Link>, linux::Error> {
    let Some(peer) = far.peer else { return Ok(None) };
    let near = host.link_by_index(peer.index)?;
    Ok(near.filter(|near| near.peer.is_some_and(|p| p.index == far.index)))
}

/// The container's end belongs to another attachment of ours: one whose name was in the way of the ADD that is now
/// taken back, or one that has the path of a namespace that is gone.
pub(crate) fn is_anothers(host: &mut RouteSocket, far: &Link, who: &Attachment) -> bool {
    let near = peer_of(host, far).ok().flatten();
    near.and_then(|near| near.alias)
        .is_some_and(|alias| alias.starts_with(netmodel::MARK) && alias != who.alias())
}

/// The reference's words for a name that is in use already.
pub(crate) fn taken(ifname: &IfName, host: &IfName) -> Error {
    let text = format!(
        "container veth name ({:?}) peer provided ({:?}) already exists",
        ifname.as_str(),
        host.as_str()
    );
    Error::new(Code::Internal, text)
}

/// Deletes the interfaces of that kind whose alias is doomed.
pub(crate) fn sweep(kind: &Kind, is_doomed: impl Fn(&str) -> bool) -> Result<(), Error> {
    let mut socket = RouteSocket::open().map_err(|e| kernel(&e))?;
    let links = socket.links().map_err(|e| kernel(&e))?;
    let doomed =
        links.into_iter().filter(|link| link.kind == *kind && link.alias.as_deref().is_some_and(&is_doomed));
    let requests: Vec<_> = doomed.map(|link| link::delete(link.index, &link.name)).collect();
    let failed = socket.apply(&requests).into_iter().filter_map(Result::err).find(|e| !e.is_not_found());
    failed.map_or(Ok(()), |e| Err(kernel(&e)))
}

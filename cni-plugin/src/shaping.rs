//! Limits of bandwidth, for `bandwidth` and for an interface plugin whose entry declares the capability
//! `bandwidth`.
//!
//! What the container receives leaves the host's end of its veth pair, and waits there in a token bucket.
//! What it sends comes in there, where nothing can wait: it is redirected to an ifb device, and waits in the
//! bucket of that.

use cni_core::{Attachment, Bucket, Code, Error, Interface, Limit, Limits, Outcome};
use linux::{
    link::{self, Change, Ifb, Kind, Link},
    netlink::{Request, RouteSocket},
    traffic::{self, Qdisc, TokenBucket},
};
use netmodel::IfName;

use crate::{failure::kernel, links, networks::Call, pod, undo::Undo};

/// `limits` are set on the host's end, which `outcome` names; the ifb device is added to it.
pub(crate) fn add(
    call: &Call,
    limits: Limits,
    outcome: &mut Outcome,
    undo: &mut Undo<'_>,
) -> Result<(), Error> {
    if limits == Limits::default() {
        return Ok(());
    }
    let mut host = RouteSocket::open().map_err(|e| kernel(&e))?;
    let near = near_end(&mut host, call, outcome)?;
    let mut steps = Vec::new();
    if let Some(limit) = limits.egress {
        let name = links::parse_name(&call.who.ifb())?;
        let ifb = make_ifb(&mut host, &call.who, &name, &near)?;
        let (index, alias) = (ifb.index, call.who.alias());
        let made = ifb.clone();
        undo.push(move || links::delete(&made, None));
        let change = Change { alias: Some(&alias), up: Some(true), ..Change::default() };
        steps.extend([
            (bucket(limit, &near).add(index, &name), None),
            (link::change(index, &name, &change), None),
            (
                traffic::add_ingress(near.index, &near.name),
                Some(traffic::delete_ingress(near.index, &near.name)),
            ),
            (traffic::redirect(near.index, &near.name, index), None),
        ]);
        outcome.interfaces.push(links::reported(&ifb, ""));
    }
    if let Some(limit) = limits.ingress {
        let undone = TokenBucket::delete(near.index, &near.name);
        steps.push((bucket(limit, &near).add(near.index, &near.name), Some(undone)));
    }
    let (requests, reverse): (Vec<Request>, Vec<Option<Request>>) = steps.into_iter().unzip();
    let results = host.apply(&requests);
    // Not what was there before.
    let done = reverse.into_iter().zip(&results).filter(|(_, result)| result.is_ok());
    let reverse: Vec<Request> = done.filter_map(|(request, _)| request).collect();
    undo.push(move || take_back(&reverse));
    results.into_iter().collect::<Result<(), _>>().map_err(|e| kernel(&e))
}

/// The ifb device of this attachment goes, or the reference's of this container; the rest goes with the
/// host's end.
pub(crate) fn del(call: &Call) -> Result<(), Error> {
    match ifb_of(&mut RouteSocket::open().map_err(|e| kernel(&e))?, call)? {
        Some(ifb) => links::delete(&ifb, None),
        None => Ok(()),
    }
}

/// The ifb device of `who` goes, also one that has no alias yet because ADD was killed.
pub(crate) fn end(who: &Attachment) -> Result<(), Error> {
    let mut host = RouteSocket::open().map_err(|e| kernel(&e))?;
    let found = host.link(&links::parse_name(&who.ifb())?).map_err(|e| kernel(&e))?;
    found.filter(|ifb| is_ifb_of(ifb, who)).map_or(Ok(()), |ifb| links::delete(&ifb, None))
}

/// The same where the host's end stays: it is no longer limited.
pub(crate) fn release(call: &Call) -> Result<(), Error> {
    let mut host = RouteSocket::open().map_err(|e| kernel(&e))?;
    let ifb = ifb_of(&mut host, call)?;
    let is_limited = Limits::parse(&call.network).is_ok_and(|limits| limits.ingress.is_some());
    if ifb.is_none() && !is_limited {
        return Ok(());
    }
    let far = pod::open_if_there(call).and_then(|netns| far_end(call, &netns).ok().flatten());
    let far = far.filter(|far| !links::is_anothers(&mut host, far, &call.who));
    if let Some(near) = far.and_then(|far| links::peer_of(&mut host, &far).ok().flatten()) {
        let redirections = host.redirections(near.index).unwrap_or_default();
        let is_ours = ifb.as_ref().is_some_and(|ifb| redirections.contains(&ifb.index));
        let ingress = is_ours.then(|| traffic::delete_ingress(near.index, &near.name));
        let bucket = is_limited.then(|| TokenBucket::delete(near.index, &near.name));
        // It is as good without: what is refused here goes with the host's end.
        let _ = host.apply(&ingress.into_iter().chain(bucket).collect::<Vec<_>>());
    }
    ifb.map_or(Ok(()), |ifb| links::delete(&ifb, None))
}

/// What [`add`] set is there.
pub(crate) fn check(call: &Call, outcome: &Outcome) -> Result<(), Error> {
    let limits = Limits::parse(&call.network)?;
    if limits == Limits::default() {
        return Ok(());
    }
    let mut host = RouteSocket::open().map_err(|e| kernel(&e))?;
    let near = near_end(&mut host, call, outcome)?;
    let wrong = differences(&mut host, call, &near, limits)?;
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Error::new(Code::Internal, format!("the limits are not as they were set: {}", wrong.join("; "))))
}

/// The ifb devices of attachments whose alias is doomed go.
pub(crate) fn sweep(is_doomed: &dyn Fn(&str) -> bool) -> Result<(), Error> {
    links::sweep(&ifb_kind(), is_doomed)
}

/// The ifb device of `who`, anew where a DEL that was killed has left one: nothing is redirected to that from
/// `near`, the host's end.
fn make_ifb(host: &mut RouteSocket, who: &Attachment, name: &IfName, near: &Link) -> Result<Link, Error> {
    let wanted = Ifb { name, mtu: near.mtu };
    let made = match host.add_ifb(&wanted) {
        Err(e) if e.is_exists() && host.redirections(near.index).is_ok_and(|to| to.is_empty()) => {
            end(who)?;
            host.add_ifb(&wanted)
        }
        made => made,
    };
    made.map_err(|e| match e.is_exists() {
        true => {
            let text =
                format!("ifb device {name} exists: another entry of the chain has limited {}", near.name);
            Error::new(Code::Internal, text)
        }
        false => kernel(&e),
    })
}

fn is_ifb_of(link: &Link, who: &Attachment) -> bool {
    link.kind == ifb_kind() && links::may_be_of(link, who)
}

fn ifb_kind() -> Kind {
    Kind::Other("ifb".to_owned())
}

fn bucket(limit: Limit, near: &Link) -> TokenBucket {
    let Bucket { rate, burst, limit } = limit.bucket(near.mtu);
    TokenBucket { rate, burst, limit }
}

/// The host's end of the container's interface, which is one of those that `outcome` names.
fn near_end(host: &mut RouteSocket, call: &Call, outcome: &Outcome) -> Result<Link, Error> {
    let failed = |text: String| Error::new(Code::Internal, text);
    let ifname = &call.who.ifname;
    if outcome.interfaces.is_empty() {
        return Err(failed("no interfaces provided: prevResult names none".to_owned()));
    }
    let far = far_end(call, &pod::open(call)?).map_err(|e| kernel(&e))?;
    let near = far.map_or(Ok(None), |far| links::peer_of(host, &far)).map_err(|e| kernel(&e))?;
    let near =
        near.ok_or_else(|| failed(format!("container interface {ifname} has no veth peer on this host")))?;
    let is_it = |i: &Interface| i.sandbox.is_empty() && i.name == near.name.as_str();
    if !outcome.interfaces.iter().any(is_it) {
        let text =
            format!("no veth peer of container interface {ifname} found in prevResult: it is {}", near.name);
        return Err(failed(text));
    }
    Ok(near)
}

fn far_end(call: &Call, netns: &linux::netns::Netns) -> Result<Option<Link>, linux::Error> {
    RouteSocket::open_in(netns)?.link(&call.who.ifname)
}

/// The ifb device of this attachment, or that of the reference's plugin for this container.
fn ifb_of(host: &mut RouteSocket, call: &Call) -> Result<Option<Link>, Error> {
    // The reference's name is the same for each interface of a container: the result tells whose it is.
    let previous = call.network.previous().and_then(|value| Outcome::parse(value).ok());
    let is_reported = |name: &str| {
        previous.as_ref().is_none_or(|previous| previous.interfaces.iter().any(|i| i.name == name))
    };
    let theirs = Some(call.who.reference_ifb()).filter(|name| is_reported(name));
    for name in [Some(call.who.ifb()), theirs].into_iter().flatten() {
        let found = host.link(&links::parse_name(&name)?).map_err(|e| kernel(&e))?;
        if let Some(ifb) = found.filter(|link| is_ifb_of(link, &call.who)) {
            return Ok(Some(ifb));
        }
    }
    Ok(None)
}

/// Carries out requests that remove something.
fn take_back(requests: &[Request]) -> Result<(), Error> {
    let results = RouteSocket::open().map_err(|e| kernel(&e))?.apply(requests);
    let failed = results.into_iter().filter_map(Result::err).find(|e| !e.is_not_found());
    failed.map_or(Ok(()), |e| Err(kernel(&e)))
}

/// What is not as [`add`] sets it.
fn differences(
    host: &mut RouteSocket,
    call: &Call,
    near: &Link,
    limits: Limits,
) -> Result<Vec<String>, Error> {
    let mut wrong = Vec::new();
    let here = host.qdiscs(near.index).map_err(|e| kernel(&e))?;
    if let Some(limit) = limits.ingress {
        wrong.extend(compare(&here, limit, near).map(|text| format!("{}: {text}", near.name)));
    }
    let Some(limit) = limits.egress else { return Ok(wrong) };
    let Some(ifb) = ifb_of(host, call)? else {
        wrong.push(format!("ifb device {} does not exist", call.who.ifb()));
        return Ok(wrong);
    };
    let name = &ifb.name;
    if !ifb.up {
        wrong.push(format!("interface {name} is down"));
    }
    let there = host.qdiscs(ifb.index).map_err(|e| kernel(&e))?;
    wrong.extend(compare(&there, limit, near).map(|text| format!("{name}: {text}")));
    if !here.contains(&Qdisc::Ingress) {
        wrong.push(format!("{}: there is no ingress queue", near.name));
    } else if !host.redirections(near.index).map_err(|e| kernel(&e))?.contains(&ifb.index) {
        wrong.push(format!("{}: nothing is redirected to {name}", near.name));
    }
    Ok(wrong)
}

/// How the token bucket among `seen` differs from the one that holds `limit`, by our hand or by the reference's.
fn compare(seen: &[Qdisc], limit: Limit, near: &Link) -> Option<String> {
    let wanted = bucket(limit, near);
    let found = seen.iter().find_map(|qdisc| match qdisc {
        Qdisc::TokenBucket(bucket) => Some(*bucket),
        _ => None,
    });
    let Some(found) = found else { return Some("there is no token bucket".to_owned()) };
    // The kernel keeps a burst as a time in units of 64 ns.
    let close = u64::from(found.burst.abs_diff(wanted.told_burst())) <= wanted.rate / 15_625_000 + 1;
    let same = (found.rate, found.limit) == (wanted.rate, wanted.limit) && close;
    let same = same || limit.is_as_the_reference_sets_it(found.rate, found.limit);
    (!same).then(|| format!("{found:?} doesn't match {wanted:?}"))
}

//! DEL: what ADD made goes, whatever is left of the namespace, the configuration and the state.
//! Absent is done.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use cni_core::{Attachment, Error, HostAddress, Network, Record, foreign_ipam};
use linux::{
    link::{Kind, Link},
    netlink::RouteSocket,
    netns::Netns,
};

use crate::{
    addresses,
    failure::kernel,
    foreign, hostports, links, nat,
    networks::{self, Call},
    pod,
    records::{Held, Records},
    reservations::Reservations,
    scratch, shaping,
};

/// Detaches from `network`, which is the one of `call` or what that delegated.
pub(crate) fn del(call: &Call, network: &Network) -> Result<(), Error> {
    let records = Records::of(&call.network)?;
    let reservations = networks::reservations_beside(network, &records)?;
    let foreign_ipam = foreign_ipam(network)?;
    let record = records.find_if_usable(&call.who)?;
    let mut host = RouteSocket::open().map_err(|e| kernel(&e))?;
    let link = find(call, &mut host, record.is_some())?;
    let was_linked = link.is_some();
    let traces = traces(call, record.as_ref(), was_linked);
    // Whether it can be opened matters only once the link is gone.
    let rules = (traces.masqueraded || traces.host_ports).then(nat::open_if_there);
    if let Some(link) = link {
        let held = rules.as_ref().and_then(|rules| rules.as_ref().ok()?.as_ref());
        link.delete(held.map(AsFd::as_fd))?;
    }
    if traces.limits {
        shaping::del(call)?;
    }
    if let Some(mut rules) = rules.transpose()?.flatten() {
        let pods = own_addresses(call, &traces, &records);
        let ended = nat::stop(&mut rules, &call.who, pods.as_deref(), traces.host_ports)?;
        if !was_linked {
            // Otherwise the child that waits for the link has it open.
            rules.close_detached();
        }
        hostports::end(&ended)?;
    }
    // Only now: an address must not be given away while anything still goes with it.
    addresses::release(call, reservations.as_ref(), record.as_ref(), &records)?;
    // Without a trace of ADD it found that plugin neither, and made nothing; and where we gave the addresses, the
    // configuration has changed.
    let is_asked = |kind: &String| match &record {
        Some(record) => record.before.folder.is_none(),
        None => was_linked || foreign::find(kind).is_ok(),
    };
    if let Some(kind) = foreign_ipam.filter(is_asked) {
        foreign::run(&kind, "DEL", network)?;
    }
    if let Some(path) = &traces.scratch {
        scratch::remove(Path::new(path))?;
    }
    record.map_or(Ok(()), |record| record.remove())
}

/// What there may be of this attachment: what its record says, or anything where there is no record that tells
/// all. Without a record and without a link only what the configuration says was ever made.
fn traces(call: &Call, record: Option<&Held>, is_linked: bool) -> Record {
    match record {
        // The configuration may have changed, and have left to a plugin what is now this one's.
        Some(Held { before, .. }) if before.closed => Record {
            host_ports: before.host_ports || call.network.is_handed("portMappings"),
            limits: before.limits || call.network.is_handed("bandwidth"),
            ..before.clone()
        },
        _ => {
            let is_found = record.is_some() || is_linked;
            Record {
                masqueraded: is_found,
                host_ports: is_found || call.network.is_handed("portMappings"),
                limits: is_found || call.network.is_handed("bandwidth"),
                scratch: record.and_then(|record| record.before.scratch.clone()),
                ..Record::default()
            }
        }
    }
}

/// The masqueraded addresses that the record tells of; `None` where not all of them are still this container's, since
/// another one may have them by now.
fn own_addresses(call: &Call, traces: &Record, records: &Records) -> Option<Vec<HostAddress>> {
    if !traces.masqueraded {
        return Some(Vec::new());
    }
    let reservations = Reservations::of(traces.folder.as_ref()?.into(), records);
    let is_held = |pod: &HostAddress| reservations.is_held(pod.address, &call.who);
    Some(traces.pods()).filter(|pods| !pods.is_empty() && pods.iter().all(is_held))
}

/// One end of the attachment's veth pair, and where it is: `None` for this namespace.
struct Found {
    end: Link,
    netns: Option<Netns>,
}

impl Found {
    /// For `held` see [`links::delete`].
    fn delete(&self, held: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        match &self.netns {
            None => links::delete(&self.end, held),
            Some(netns) => netns.enter(|| links::delete(&self.end, held)).map_err(|e| kernel(&e))?,
        }
    }
}

/// The veth pair by the host's end, which has the same name at every call, or by the container's end where
/// another plugin made it. One that somebody renamed is looked for where there is a record.
fn find(call: &Call, host: &mut RouteSocket, is_recorded: bool) -> Result<Option<Found>, Error> {
    let who = &call.who;
    let mut end = links::host_end(host, who)?;
    if end.is_none() && is_recorded {
        end = links::marked(host, who)?;
    }
    if let Some(end) = end {
        return Ok(Some(Found { end, netns: None }));
    }
    let Some(netns) = pod::open_if_there(call) else { return Ok(None) };
    let far = container_end(who, &netns).filter(|far| !links::is_anothers(host, far, who));
    Ok(far.map(|end| Found { end, netns: Some(netns) }))
}

/// `None` also where the namespace can't be entered: then it is as good as gone.
fn container_end(who: &Attachment, netns: &Netns) -> Option<Link> {
    let link = RouteSocket::open_in(netns).ok()?.link(&who.ifname).ok()??;
    (link.kind == Kind::Veth).then_some(link)
}

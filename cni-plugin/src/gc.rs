//! GC: what belongs to none of the attachments that the runtime still knows goes.

use std::collections::BTreeSet;

use cni_core::{Attachment, Error, Network, foreign_ipam};
use linux::{link::Kind, netlink::RouteSocket};

use crate::{
    addresses,
    failure::kernel,
    foreign, hostports, links,
    records::{Records, own_namespace},
    shaping, sweep,
};

/// Removes what belongs to none of the `valid` attachments of this network; goes on after a failure and reports the
/// first.
pub(crate) fn gc(network: &Network, valid: &[Attachment]) -> Result<(), Error> {
    let attachments = sweep_attachments(network, valid);
    let reservations = addresses::release_invalid(network, valid);
    let foreign = foreign_ipam(network)?.map_or(Ok(()), |kind| foreign::run(&kind, "GC", network).map(drop));
    attachments.and(reservations).and(foreign)
}

/// The same with what only this plugin makes: links, what is in our table, limits, and what records tell of.
pub(crate) fn sweep_attachments(network: &Network, valid: &[Attachment]) -> Result<(), Error> {
    let is_doomed = is_doomed(network, valid);
    let links = links::sweep(&Kind::Veth, &is_doomed);
    let ports = hostports::sweep(&is_doomed);
    let shaped = shaping::sweep(&is_doomed);
    let records = sweep_records(network, valid);
    links.and(ports).and(shaped).and(records)
}

/// The aliases of this network's attachments but the valid ones.
pub(crate) fn is_doomed(network: &Network, valid: &[Attachment]) -> impl Fn(&str) -> bool {
    let keep: BTreeSet<String> = valid.iter().map(Attachment::alias).collect();
    let prefix = Attachment::alias_prefix(&network.name);
    move |alias| alias.starts_with(&prefix) && !keep.contains(alias)
}

/// Removes what the records of attachments that are not valid tell of, and the records; goes on after a failure.
pub(crate) fn sweep_records(network: &Network, valid: &[Attachment]) -> Result<(), Error> {
    let records = Records::of(network)?;
    let kept: BTreeSet<String> = valid.iter().map(Attachment::record_name).collect();
    let here = own_namespace();
    let clear_one = |name: &String| -> Result<(), Error> {
        let Some(held) = records.find_idle(name)? else { return Ok(()) };
        if held.before.host.as_ref().is_some_and(|host| *host != here) {
            return Ok(());
        }
        // One without an alias: ADD was killed before it got one.
        let mut socket = RouteSocket::open().map_err(|e| kernel(&e))?;
        let link = held.who.as_ref().map_or(Ok(None), |who| links::host_end(&mut socket, who))?;
        link.map_or(Ok(()), |link| links::unlink(link.index, &link.name))?;
        sweep::clear(&records, &[held])
    };
    let names = records.names();
    sweep::for_all(names.iter().filter(|name| !kept.contains(*name)), clear_one)
}

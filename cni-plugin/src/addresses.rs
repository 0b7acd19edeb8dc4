//! Address management in this process: what the plugin `host-local` does, for it and for the interface
//! plugins.

use std::{fs, net::IpAddr, path::Path};

use cni_core::{
    Attachment, Chosen, Code, Dns, Error, IpConfig, Ipam, Leased, Network, Outcome, Owners, RangeSet, Trace,
    parse_resolv_conf,
};

use crate::{
    failure, foreign, lock,
    networks::{self, Call},
    records::{Held, Records},
    reservations::{Reservations, Wish},
    sweep,
    undo::{self, Undo},
};

/// One address of each set, with what the configuration says beside.
pub(crate) fn lease<'a>(
    ipam: &Ipam,
    reservations: &'a Reservations,
    wish: Wish<'a>,
    undo: &mut Undo<'a>,
) -> Result<Leased, Error> {
    let dns = name_service(ipam)?;
    let chosen = match reserve_all(ipam, reservations, wish) {
        // Somebody may hold what no runtime will ever release.
        Err(_) if sweep::sweep(wish.records, true).is_ok_and(|freed| freed > 0) => {
            reserve_all(ipam, reservations, wish)?
        }
        other => other?,
    };
    let addresses: Vec<IpAddr> = chosen.iter().map(|chosen| chosen.address).collect();
    let release = move || reservations.release(wish.who, &addresses, undo::PATIENCE);
    undo.push(release);
    Ok(Leased { addresses: chosen, routes: ipam.routes.clone(), dns })
}

/// What another plugin, which is there, gives for `network`.
pub(crate) fn lease_from<'a>(
    kind: &'a str,
    network: &'a Network,
    undo: &mut Undo<'a>,
) -> Result<Leased, Error> {
    // It may have done half of it even where it failed.
    undo.push(|| foreign::run(kind, "DEL", network).map(drop));
    let (_, result) = foreign::add(kind, network)?;
    Leased::from_result(result)
        .map_err(|error| Error { msg: format!("plugin {kind}: {}", error.msg), ..error })
}

/// Either an address of each set, or none.
fn reserve_all(ipam: &Ipam, reservations: &Reservations, wish: Wish<'_>) -> Result<Vec<Chosen>, Error> {
    let locked = reservations.lock(lock::patience())?;
    locked.begin_boot(wish.records)?;
    let mut chosen: Vec<Chosen> = Vec::with_capacity(ipam.sets.len());
    let owned = |content: &[u8]| wish.who.owns(content);
    for (index, set) in ipam.sets.iter().enumerate() {
        match locked.reserve(index, set, wish) {
            Ok(one) => chosen.push(one),
            Err(error) => {
                chosen.iter().try_for_each(|chosen| locked.release_if(chosen.address, owned))?;
                return Err(error);
            }
        }
    }
    // What an ADD that was cut short had reserved, and this one has no use for.
    let before = wish.record.before.pods().into_iter().map(|pod| pod.address);
    let stale = before.filter(|ip| !chosen.iter().any(|chosen| chosen.address == *ip));
    stale.into_iter().try_for_each(|ip| locked.release_if(ip, owned))?;
    Ok(chosen)
}

/// To be called before anything is reserved: notes where it will be, and leaves the place where an ADD that was
/// cut short had reserved something.
pub(crate) fn begin(
    who: &Attachment,
    record: &Held,
    reservations: &Reservations,
    records: &Records,
) -> Result<Trace, Error> {
    let folder = reservations.folder();
    if let Some(old) = record.before.folder.as_ref().filter(|old| Path::new(old) != folder) {
        Reservations::of(old.into(), records).release_noted(who, &record.before)?;
    }
    Ok(Trace::Folder(folder.display().to_string()))
}

/// The addresses for the result, on the interface of that index.
pub(crate) fn reported(chosen: &[Chosen], interface: Option<usize>) -> Vec<IpConfig> {
    let ip = |c: &Chosen| IpConfig { address: c.address, prefix: c.prefix, gateway: c.gateway, interface };
    chosen.iter().map(ip).collect()
}

/// What the file says that `ipam` names.
fn name_service(ipam: &Ipam) -> Result<Dns, Error> {
    let Some(path) = &ipam.resolv_conf else { return Ok(Dns::default()) };
    let text = fs::read_to_string(path).map_err(|e| failure::file("read", Path::new(path), &e))?;
    Ok(parse_resolv_conf(&text))
}

/// Releases what the container of `call` holds: what its record tells, or where that may not be all, as for what
/// other plugins reserved, what is found in its folder and in the one that the configuration names.
pub(crate) fn release(
    call: &Call,
    configured: Option<&Reservations>,
    record: Option<&Held>,
    records: &Records,
) -> Result<(), Error> {
    let noted = record.map(|record| &record.before);
    let folder = noted.and_then(|noted| noted.folder.as_ref());
    let own = folder.map(|folder| Reservations::of(folder.into(), records));
    if let Some(noted) = noted.filter(|noted| noted.closed) {
        return own.map_or(Ok(()), |own| own.release_noted(&call.who, noted));
    }
    for reservations in own.iter().chain(configured) {
        let mut addresses = reservations.held(&call.who)?;
        addresses.extend(reported_before(call));
        addresses.extend(noted.iter().flat_map(|noted| noted.pods()).map(|pod| pod.address));
        reservations.release(&call.who, &addresses, lock::patience())?;
    }
    Ok(())
}

/// The addresses that ADD reported, where the runtime still knows.
pub(crate) fn reported_before(call: &Call) -> Vec<IpAddr> {
    let previous = call.network.previous().and_then(|value| Outcome::parse(value).ok()).unwrap_or_default();
    previous.addresses_of(call.who.ifname.as_str()).map(|ip| ip.address).collect()
}

/// Fails with code 50 where a set has no address left, not even one that ADD would find abandoned.
pub(crate) fn ready(ipam: &Ipam, reservations: &Reservations, records: &Records) -> Result<(), Error> {
    if reservations.are_of_earlier_boot() {
        return Ok(());
    }
    let mut taken = reservations.taken()?;
    if full_set(ipam, &taken).is_some() {
        let abandoned: Vec<IpAddr> = sweep::abandoned(records)?;
        taken.retain(|ip| !abandoned.contains(ip));
    }
    full_set(ipam, &taken).map_or(Ok(()), |set| {
        let text = format!("no IP addresses available in range set: {set}");
        Err(Error::new(Code::NotAvailable, text))
    })
}

fn full_set<'i>(ipam: &'i Ipam, taken: &[IpAddr]) -> Option<&'i RangeSet> {
    ipam.sets.iter().find(|set| {
        let is_inside = |ip: &&IpAddr| set.range_of(**ip).is_some_and(|range| range.gateway != **ip);
        taken.iter().filter(is_inside).count() as u128 >= set.capacity()
    })
}

/// Releases what none of the `valid` attachments holds.
pub(crate) fn release_invalid(network: &Network, valid: &[Attachment]) -> Result<(), Error> {
    let Some(reservations) = networks::reservations(network)? else { return Ok(()) };
    if !reservations.exist() {
        return Ok(());
    }
    // A file of only a container's id stands for any of its interfaces.
    let owners = Owners::of(valid);
    let locked = reservations.lock(lock::patience())?;
    let all = reservations.all()?.into_iter().filter(|(_, content)| !owners.own(content));
    let released: Vec<_> = all.map(|(ip, _)| locked.release_if(ip, |content| !owners.own(content))).collect();
    released.into_iter().collect()
}

//! Address management in this process: what the plugin `host-local` does, for it and for the interface
//! plugins.

use std::{fs, net::IpAddr, path::Path};

use cni_core::{
    Attachment, Chosen, Code, Dns, Error, IpConfig, Ipam, Network, Outcome, owner_of, parse_resolv_conf,
};

use crate::{
    failure, lock,
    networks::{self, Call},
    reservations::{Reservations, Wish},
    undo::{Step, Undo},
};

/// One address of each set.
pub(crate) fn reserve(
    ipam: &Ipam,
    reservations: &Reservations,
    wish: Wish<'_>,
    undo: &mut Undo<'_>,
) -> Result<Vec<Chosen>, Error> {
    let locked = reservations.lock(lock::PATIENCE)?;
    let mut chosen = Vec::with_capacity(ipam.sets.len());
    for (index, set) in ipam.sets.iter().enumerate() {
        let one = locked.reserve(index, set, wish)?;
        if one.is_new {
            undo.push(Step::Reserved(one.chosen));
        }
        chosen.push(one.chosen);
    }
    Ok(chosen)
}

/// The addresses for the result, on the interface of that index.
pub(crate) fn reported(chosen: &[Chosen], interface: Option<usize>) -> Vec<IpConfig> {
    let ip = |c: &Chosen| IpConfig { address: c.address, prefix: c.prefix, gateway: c.gateway, interface };
    chosen.iter().map(ip).collect()
}

/// What the file says that `ipam` names.
pub(crate) fn name_service(ipam: &Ipam) -> Result<Dns, Error> {
    let Some(path) = &ipam.resolv_conf else { return Ok(Dns::default()) };
    let text = fs::read_to_string(path).map_err(|e| failure::file("read", Path::new(path), &e))?;
    Ok(parse_resolv_conf(&text))
}

/// Releases what `call` is about.
pub(crate) fn release(call: &Call, reservations: &Reservations) -> Result<(), Error> {
    let previous = call.network.previous().and_then(|value| Outcome::parse(value).ok()).unwrap_or_default();
    let reported: Vec<IpAddr> =
        previous.addresses_of(call.who.ifname.as_str()).map(|ip| ip.address).collect();
    reservations.release(&call.who, &reported)
}

/// Fails with code 50 where a set has no address left.
pub(crate) fn ready(ipam: &Ipam, reservations: &Reservations) -> Result<(), Error> {
    let taken = reservations.taken()?;
    for set in &ipam.sets {
        let inside = taken.iter().filter(|ip| set.range_of(**ip).is_some_and(|r| r.gateway != **ip)).count();
        if inside as u128 >= set.capacity() {
            let text = format!("no IP addresses available in range set: {set}");
            return Err(Error::new(Code::NotAvailable, text));
        }
    }
    Ok(())
}

/// Releases what none of the `valid` attachments holds.
pub(crate) fn sweep(network: &Network, valid: &[Attachment]) -> Result<(), Error> {
    let Some(reservations) = networks::reservations(network)? else { return Ok(()) };
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

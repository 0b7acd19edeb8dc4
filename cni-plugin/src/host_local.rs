//! Addresses for an interface that another plugin makes (`ipam.type` `host-local`).

use cni_core::{Arguments, Code, Error, Ipam, Network, Outcome};

use crate::{
    addresses, gc,
    networks::{self, Call},
    plugin::Plugin,
    records::Records,
    reservations::{Reservations, Wish, duplicate},
    undo::Undo,
};

/// The plugin `host-local`.
pub(crate) const PLUGIN: Plugin = Plugin { add, del, check, gc, status };

fn add(call: &Call) -> Result<String, Error> {
    let records = Records::of(&call.network)?;
    let (ipam, reservations) = configured(&call.network, &call.args, &records)?;
    let record = records.take(&call.who)?;
    let mut held = record.before.pods().into_iter().map(|pod| pod.address);
    if let Some(ip) = held.find(|ip| reservations.is_held(*ip, &call.who)) {
        return Err(duplicate(ip, &call.who));
    }
    let mut undo = Undo::new(Some(&record));
    record.note(&[addresses::begin(&call.who, &record, &reservations, &records)?])?;
    let wish = Wish { who: &call.who, requested: &ipam.requested, record: &record, records: &records };
    let leased = addresses::lease(&ipam, &reservations, wish, &mut undo)?;
    let ips = addresses::reported(&leased.addresses, None);
    let outcome = Outcome { ips, routes: leased.routes, dns: leased.dns, ..Outcome::default() };
    let text = outcome.to_json(call.network.version)?;
    undo.keep();
    Ok(text)
}

fn del(call: &Call) -> Result<(), Error> {
    let configured = networks::reservations(&call.network)?;
    let records = Records::of(&call.network)?;
    let record = records.find_if_usable(&call.who)?;
    addresses::release(call, configured.as_ref(), record.as_ref(), &records)?;
    record.map_or(Ok(()), |record| record.remove())
}

fn check(call: &Call) -> Result<(), Error> {
    let (_, reservations) = configured(&call.network, &call.args, &Records::of(&call.network)?)?;
    if reservations.held(&call.who)?.is_empty() {
        let text = format!("host-local: Failed to find address added by container {}", call.who.container);
        return Err(Error::new(Code::Internal, text));
    }
    Ok(())
}

fn gc(network: &Network) -> Result<(), Error> {
    let Some(valid) = network.valid_attachments()? else { return Ok(()) };
    gc::sweep_records(network, &valid).and(addresses::release_invalid(network, &valid))
}

fn status(network: &Network) -> Result<(), Error> {
    let records = Records::of(network)?;
    let (ipam, reservations) = configured(network, &Arguments::default(), &records)?;
    addresses::ready(&ipam, &reservations, &records)
}

fn configured(network: &Network, args: &Arguments, records: &Records) -> Result<(Ipam, Reservations), Error> {
    let ipam = Ipam::parse(network, args)?.zip(networks::reservations_beside(network, records)?);
    ipam.ok_or_else(|| Error::new(Code::InvalidConfig, "IPAM config missing 'ipam' key"))
}

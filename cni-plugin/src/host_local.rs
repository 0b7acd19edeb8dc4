//! Addresses for an interface that another plugin makes (`ipam.type` `host-local`).

use cni_core::{Arguments, Code, Error, Ipam, Network, Outcome};

use crate::{
    addresses,
    networks::{self, Call},
    plugin::Plugin,
    reservations::{Reservations, Wish},
    undo::Undo,
};

/// The plugin `host-local`.
pub(crate) const PLUGIN: Plugin = Plugin { add, del, check, gc, status };

fn add(call: &Call) -> Result<String, Error> {
    let ipam = configured(&call.network, &call.args)?;
    let dns = addresses::name_service(&ipam)?;
    let reservations = Reservations::of(&ipam.data_dir, &call.network.name);
    if let Some(ip) = reservations.held(&call.who)?.first() {
        let text =
            format!("{} has been allocated to {ip}, duplicate allocation is not allowed", call.who.container);
        return Err(Error::new(Code::Internal, text));
    }
    let mut undo = Undo::new(&call.who, Some(&reservations));
    let wish = Wish { who: &call.who, requested: &ipam.requested, masquerade: false };
    let chosen = addresses::reserve(&ipam, &reservations, wish, &mut undo)?;
    let ips = addresses::reported(&chosen, None);
    let outcome = Outcome { ips, routes: ipam.routes, dns, ..Outcome::default() };
    let text = outcome.to_json(call.network.version)?;
    undo.keep();
    Ok(text)
}

fn del(call: &Call) -> Result<(), Error> {
    networks::reservations(&call.network)?
        .map_or(Ok(()), |reservations| addresses::release(call, &reservations))
}

fn check(call: &Call) -> Result<(), Error> {
    let ipam = configured(&call.network, &call.args)?;
    let held = Reservations::of(&ipam.data_dir, &call.network.name).held(&call.who)?;
    if held.is_empty() {
        let text = format!("host-local: Failed to find address added by container {}", call.who.container);
        return Err(Error::new(Code::Internal, text));
    }
    Ok(())
}

fn gc(network: &Network) -> Result<(), Error> {
    network.valid_attachments()?.map_or(Ok(()), |valid| addresses::sweep(network, &valid))
}

fn status(network: &Network) -> Result<(), Error> {
    let ipam = configured(network, &Arguments::default())?;
    addresses::ready(&ipam, &Reservations::of(&ipam.data_dir, &network.name))
}

fn configured(network: &Network, args: &Arguments) -> Result<Ipam, Error> {
    let missing = || Error::new(Code::InvalidConfig, "IPAM config missing 'ipam' key");
    Ipam::parse(network, args)?.ok_or_else(missing)
}

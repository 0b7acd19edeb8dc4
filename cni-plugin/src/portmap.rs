//! `portmap`: host ports behind an interface plugin.

use cni_core::{Attachment, Code, Error, Network, Outcome, PortMappings};
use linux::nft::Socket;

use crate::{
    chained,
    failure::kernel,
    gc,
    hostports::{self, HostPorts},
    nat,
    networks::Call,
    plugin::{Plugin, nothing_to_do},
    translate,
    undo::Undo,
};

/// The plugin `portmap`.
pub(crate) const PLUGIN: Plugin = Plugin { add, del, check, gc, status: nothing_to_do };

fn add(call: &Call) -> Result<String, Error> {
    let ports = wanted(call, &call.network.chained()?)?;
    let record = if ports.is_empty() { None } else { chained::begin(call) };
    let mut undo = Undo::new(None);
    chained::undo(record.as_ref(), &mut undo);
    translate::start(call, &ports.nat(&call.who.alias(), &[]), &mut undo)?;
    ports.settle()?;
    let result = call.network.pass_on()?;
    undo.keep();
    Ok(result)
}

/// What the runtime asks for, for the container with the addresses of `outcome`.
fn wanted(call: &Call, outcome: &Outcome) -> Result<HostPorts, Error> {
    let pods = outcome.addresses_of(call.who.ifname.as_str()).map(|ip| ip.address);
    HostPorts::new(&PortMappings::parse(&call.network)?, pods, None)
}

/// Whatever is there of this attachment goes, also where the runtime no longer says what it was.
fn del(call: &Call) -> Result<(), Error> {
    let Some(mut rules) = nat::open_if_there()? else { return chained::end(call) };
    let ended = nat::stop(&mut rules, &call.who, Some(&[]), true)?;
    if !ended.is_empty() {
        rules.close_detached();
    }
    hostports::end(&ended)?;
    chained::end(call)
}

fn check(call: &Call) -> Result<(), Error> {
    let ports = wanted(call, &call.network.chained()?)?;
    let missing = nat::missing(&ports.nat(&call.who.alias(), &[]))?;
    if missing.is_empty() || are_the_references(&call.who)? {
        return Ok(());
    }
    let text = format!("the attachment is not as it was made: {}", missing.join("; "));
    Err(Error::new(Code::Internal, text))
}

/// The reference's plugin has set host ports for the container of `who`, by the kind of iptables that writes nftables.
fn are_the_references(who: &Attachment) -> Result<bool, Error> {
    let chains = Socket::open().and_then(|mut socket| socket.chains()).map_err(|e| kernel(&e))?;
    let name = who.reference_host_ports();
    Ok(chains.iter().any(|chain| chain.table.as_str() == "nat" && chain.name.as_str() == name))
}

fn gc(network: &Network) -> Result<(), Error> {
    let Some(valid) = network.valid_attachments()? else { return Ok(()) };
    hostports::sweep(gc::is_doomed(network, &valid)).and(chained::sweep(network, &valid))
}

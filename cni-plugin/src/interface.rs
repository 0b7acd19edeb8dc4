//! The interface plugins, `flannel` and `bridge`: which network is meant, and who makes it.

use cni_core::{Code, Error, Network, Record, subnet_file};

use crate::{
    add, check, del, delegate, foreign, gc,
    networks::{self, Call},
    plugin::Plugin,
    records::Records,
    scratch::{self, Scratch},
    status,
};

/// Both: what differs is the configuration.
pub(crate) const PLUGIN: Plugin = Plugin { add, del, check, gc, status };

fn add(call: &Call) -> Result<String, Error> {
    let (network, pod_networks) = networks::complete_soon(&call.network)?;
    if is_ours(&network) { add::add(call, &network, &pod_networks) } else { delegate::add(call, &network) }
}

fn del(call: &Call) -> Result<(), Error> {
    if !networks::is_flannel(&call.network) {
        return del::del(call, &call.network);
    }
    let scratch = Scratch::find(call)?;
    let rendered = networks::lenient(&call.network);
    let noted = scratch.as_ref().and_then(|scratch| scratch.network.clone());
    // Nobody can ask a plugin that is not there, and this one would ask itself for ever.
    let can_be_asked = |delegated: &Network| {
        is_ours(delegated) || !networks::is_flannel(delegated) && foreign::find(&delegated.kind).is_ok()
    };
    let network = match noted.filter(can_be_asked) {
        // What is delegated now may be mistaken. What was delegated then is what counts, but for the version, which may
        // be what was wrong with it.
        Some(delegated) => delegated.in_version(call.network.version)?,
        None => rendered?,
    };
    if !is_ours(&network) {
        let record = Records::of(&call.network)?.find_if_usable(&call.who)?.map(|held| held.before);
        if record.is_none() && scratch.is_none() && !can_be_asked(&network) {
            // ADD found it neither, and made nothing.
            return Ok(());
        }
        let is_attached = |record: Record| record.host.is_some() && record.link.is_none();
        if !record.is_some_and(is_attached) {
            return delegate::del(&network, scratch.as_ref());
        }
    }
    del::del(call, &network)?;
    scratch.map_or(Ok(()), |scratch| scratch.remove())
}

fn check(call: &Call) -> Result<(), Error> {
    let network = networks::as_made(call)?;
    if is_ours(&network) { check::check(call, &network) } else { delegate::pass_on("CHECK", &network) }
}

fn gc(network: &Network) -> Result<(), Error> {
    let Some(valid) = network.valid_attachments()? else { return Ok(()) };
    let rendered = networks::lenient(network)?;
    let collected = if is_ours(&rendered) {
        gc::gc(&rendered, &valid)
    } else {
        // Something else may have been delegated before.
        let [attached, passed_on] =
            [gc::sweep_attachments(&rendered, &valid), delegate::pass_on("GC", &rendered)];
        attached.and(passed_on)
    };
    let is_flannel = networks::is_flannel(network);
    collected.and(if is_flannel { scratch::sweep(network, &valid) } else { Ok(()) })
}

fn status(network: &Network) -> Result<(), Error> {
    if networks::is_flannel(network) {
        let path = subnet_file(network)?;
        networks::subnet_env(&path).map_err(|error| Error { code: Code::NotAvailable, ..error })?;
    }
    let (network, pod_networks) = networks::complete(network)?;
    if is_ours(&network) {
        status::status(&network, !pod_networks.is_empty())
    } else {
        delegate::pass_on("STATUS", &network)
    }
}

/// The network is made in this process.
fn is_ours(network: &Network) -> bool {
    network.kind == "bridge"
}

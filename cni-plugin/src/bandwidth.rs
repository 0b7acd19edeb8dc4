//! Limits of bandwidth behind an interface plugin.

use cni_core::{Error, Limits, Network};

use crate::{
    chained, gc,
    networks::Call,
    plugin::{Plugin, nothing_to_do},
    shaping,
    undo::Undo,
};

/// The plugin `bandwidth`.
pub(crate) const PLUGIN: Plugin = Plugin { add, del, check, gc, status: nothing_to_do };

fn add(call: &Call) -> Result<String, Error> {
    let mut outcome = call.network.chained()?;
    let limits = Limits::parse(&call.network)?;
    let record = if limits == Limits::default() { None } else { chained::begin(call) };
    let mut undo = Undo::new(None);
    chained::undo(record.as_ref(), &mut undo);
    shaping::add(call, limits, &mut outcome, &mut undo)?;
    let text = call.network.pass_on_with(&outcome.interfaces)?;
    undo.keep();
    Ok(text)
}

fn del(call: &Call) -> Result<(), Error> {
    shaping::release(call)?;
    chained::end(call)
}

fn check(call: &Call) -> Result<(), Error> {
    shaping::check(call, &call.network.chained()?)
}

fn gc(network: &Network) -> Result<(), Error> {
    let Some(valid) = network.valid_attachments()? else { return Ok(()) };
    shaping::sweep(&gc::is_doomed(network, &valid)).and(chained::sweep(network, &valid))
}

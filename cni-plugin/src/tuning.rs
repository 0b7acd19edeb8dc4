//! Settings of an interface behind an interface plugin.

use cni_core::Error;

use crate::{
    networks::Call,
    plugin::{Plugin, nothing_to_do},
};

/// The plugin `tuning`.
pub(crate) const PLUGIN: Plugin = Plugin { add, del, check, gc: nothing_to_do, status: nothing_to_do };

fn add(call: &Call) -> Result<String, Error> {
    call.network.pass_on()
}

#[allow(clippy::unnecessary_wraps, reason = "the type of a plugin's function")]
fn del(_: &Call) -> Result<(), Error> {
    Ok(())
}

fn check(call: &Call) -> Result<(), Error> {
    call.network.chained().map(drop)
}

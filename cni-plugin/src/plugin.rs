//! The plugins that this program is, and what each does at every verb.

use cni_core::{Error, Network, Role};

use crate::{bandwidth, host_local, interface, loopback, networks::Call, portmap, tuning};

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

impl Plugin {
    /// The plugin of that role.
    pub(crate) const fn of(role: Role) -> Self {
        match role {
            Role::Flannel | Role::Bridge => interface::PLUGIN,
            Role::HostLocal => host_local::PLUGIN,
            Role::Portmap => portmap::PLUGIN,
            Role::Bandwidth => bandwidth::PLUGIN,
            Role::Tuning => tuning::PLUGIN,
            Role::Loopback => loopback::PLUGIN,
        }
    }
}

/// For a plugin that keeps nothing, or needs nothing to be ready.
#[allow(clippy::unnecessary_wraps, reason = "the type of a plugin's function")]
pub(crate) fn nothing_to_do(_: &Network) -> Result<(), Error> {
    Ok(())
}

//! The interface plugins: `flannel` and `bridge`.

use crate::{add, check, del, gc, plugin::Plugin, status};

/// Both: what differs is the configuration.
pub(crate) const PLUGIN: Plugin =
    Plugin { add: add::add, del: del::del, check: check::check, gc: gc::gc, status: status::status };

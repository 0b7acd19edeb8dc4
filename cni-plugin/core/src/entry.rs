//! What an attachment has in our table.

use ruleset::{Element, Key, SetSpec};

/// One element, and the set that it belongs to.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) set: &'static str,
    pub(crate) spec: SetSpec,
    pub(crate) key: Key,
    pub(crate) element: Element,
}

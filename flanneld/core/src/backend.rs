//! How packets reach other nodes: VXLAN, so far.

pub mod vxlan;

//! The rules of the table, one module for each kind of traffic.
//!
//! None belongs to a single Service: chains with a number in their name are shared by all front ends with so
//! many endpoints. A rule that looks something up and uses what it found is one rule, never two: a miss then
//! ends it before `meta priority`, which may hold a socket's own priority, is taken for a value of ours.

pub mod cluster_ip;
pub mod masquerade;
pub mod node_port;
pub mod reject;
pub mod spread;

/// The bit of `meta mark` that asks for masquerade until postrouting, the one that kube-proxy uses.
pub const MASQUERADE_MARK: u32 = 1 << 14;

//! The overlay as pure functions: from leases, configuration and facts about this node to what the
//! kernel should hold, and from what it holds to the operations that lead there.
//!
//! No clock, file, socket, environment variable or thread: time, randomness and facts are arguments.
#![forbid(unsafe_code)]

pub mod backend;
pub mod config;
pub mod desired;
pub mod diff;
mod disjoint;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod forward;
pub mod host;
mod json;
pub mod kernel;
#[cfg(test)]
mod laws;
pub mod lease;
pub mod masquerade;
pub mod op;
pub mod overlay;
#[cfg(test)]
mod test;
pub mod wire;

/// Bytes that VXLAN over IPv4 adds to a packet: IP 20, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348).
pub const VXLAN_OVERHEAD: u16 = 50;

/// The smallest MTU of an interface that still leaves the device 68 bytes, which IPv4 needs.
pub const LEAST_UNDERLAY_MTU: u16 = 68 + VXLAN_OVERHEAD;

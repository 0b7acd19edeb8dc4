//! What Services and endpoints mean as one nftables table, and how that table changes with them.
//!
//! Nothing here knows a clock, a file, a socket or a thread.
#![forbid(unsafe_code)]

pub mod adopt;
pub mod catalog;
pub mod delta;
pub mod endpoints;
pub mod flows;
pub mod ids;
pub mod object;
pub mod ports;
pub mod rules;
pub mod services;
pub mod state;
pub mod tables;
pub mod wire;
#[cfg(test)]
mod world;

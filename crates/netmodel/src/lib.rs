//! The words that every part of Weft shares: names, addresses and numbers of Linux networking,
//! each parsed once into a type that cannot hold a wrong value.
//!
//! Nothing here knows a clock, a file, a socket or a thread.
#![forbid(unsafe_code)]

mod mac;
mod name;
mod number;
mod subnet;
mod vlan;

pub use mac::{BadMac, Mac};
pub use name::{BadIfName, BadNodeName, IfName, NodeName};
pub use number::{BadMtu, BadPort, BadProtocol, BadVni, Mtu, Port, Protocol, Vni};
pub use subnet::{BadSubnet, Subnet};
pub use vlan::PortVlans;

/// Route protocol number of every route that a Weft program adds (`rtm_protocol`, rtnetlink(7)).
pub const ROUTE_PROTOCOL: u8 = 154;

/// What comments on rules and aliases of interfaces begin with, so that we know our own again.
pub const MARK: &str = "weft:";

/// What the names of our nftables tables begin with.
pub const TABLE_PREFIX: &str = "weft-";

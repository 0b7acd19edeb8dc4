//! flanneld: leases a pod subnet for this node and connects it to the pods of all other nodes.
//!
//! ```text
//! source (etcd | file) --assignment--> the loop --operations--> kernel
//! ```
#![forbid(unsafe_code)]

pub mod cleanup;
pub mod commands;
pub mod events;
pub mod firewall;
pub mod flags;
pub mod hold;
pub mod linux;
pub mod lock;
pub mod node;
pub mod report;
pub mod run;
pub mod source;
pub mod status;
pub mod wake;

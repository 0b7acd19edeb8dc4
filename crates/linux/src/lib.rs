//! What Weft asks of the Linux kernel: one blocking, pipelined netlink socket, and typed requests for
//! links, addresses, routes, neighbours, forwarding entries, queues and connections; sysctls and namespaces.
//!
//! Everything blocks and nothing spawns a runtime: a network namespace belongs to a thread, so one plain
//! thread owns the sockets. Nothing here decides anything; callers say what they want and get the kernel's
//! answer with the name of the object it was about.

pub mod address;
mod attribute;
pub mod conntrack;
mod error;
pub mod fdb;
pub mod link;
pub mod neighbour;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod route;
mod sys;
pub mod sysctl;
pub mod traffic;

pub use error::{Cause, Error, Retry};
pub use sys::end_with_starter;

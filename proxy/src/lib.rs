//! The shell of `weft-proxy`: flags, manifests, this node's facts, and the loop that keeps the kernel as
//! `proxy-core` wants it.
//!
//! ```text
//! files --inotify--> Wake --+
//! nft and route events -----+--> one loop: read, sync, commit, forget stale flows, routes, status
//! deadline, signal ---------+
//! ```
#![forbid(unsafe_code)]

pub mod alone;
pub mod flags;
pub mod kernel;
pub mod node;
pub mod run;
pub mod source;
pub mod status;
pub mod wake;
pub mod wanted;

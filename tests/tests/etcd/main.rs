//! Leases in a real etcd on the loopback address: races, lost leases, outages, TLS.
#![forbid(unsafe_code)]

mod answers;
mod chaos;
mod leases;
mod node;
mod outages;
mod program;
mod server;
mod trouble;

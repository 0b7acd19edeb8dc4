//! `weft-proxy` on a real kernel: one node, its pods, and a client outside, judged by their packets and by
//! foreign tools.

mod faults;
mod host_ports;
mod machine;
mod reach;
mod restart;
mod sctp;
mod udp;
mod world;

//! The CNI plugin, driven as a runtime does and judged from outside.

mod add;
mod bandwidth;
mod bed;
mod check;
mod crowd;
mod del;
mod foreign;
mod foreign_faults;
mod hostports;
mod hostports_lab;
mod hostports_owners;
mod input;
mod install;
mod interop;
mod kills;
mod loopback;
mod masquerade;
mod protocol;
mod reference;
mod roles;
mod routes;
mod state;
mod switch;
mod tuning;
mod upkeep;
mod vlan;

//! nftables in the kernel: messages, tables, laws, judged with `nft` and with packets.

#[path = "../../../ruleset/tests/rules/c6.rs"]
mod c6;
#[path = "../../../ruleset/tests/rules/faults.rs"]
mod faults;
mod golden;
mod kernel;
mod laws;
mod nftnl;
#[path = "../../../ruleset/tests/rules/random.rs"]
mod random;
mod tools;

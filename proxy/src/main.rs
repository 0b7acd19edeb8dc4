//! `weft-proxy`: leads connections to Services to their endpoints, by nftables.
#![forbid(unsafe_code)]

fn main() {}

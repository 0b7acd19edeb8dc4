//! Whole programs on a real kernel: the tests are in `tests/`, and what `make demo` shows is here.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod demo;
pub mod nft;

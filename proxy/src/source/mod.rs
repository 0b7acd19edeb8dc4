//! Where Services and endpoints come from.

pub mod file;

//! The rules that a CNI plugin is held to, each by its number: the programs are driven as a runtime does,
//! with environment and standard input, and judged by what the kernel, the files and the wire say.
//!
//! The rules of the runtimes themselves (65, 66, 67 and 69) are in `tests/runtimes`.

mod add;
#[path = "../cni_plugin/bed.rs"]
mod bed;
mod check;
mod config;
mod del;
mod environment;
mod failure;
mod gc;
mod kills;
mod lost;
mod network;
mod result;
mod status;

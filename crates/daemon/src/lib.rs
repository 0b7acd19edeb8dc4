//! What every daemon of Weft needs around its own work: flags in the manner of Go programs,
//! logging, signals, back-off, health endpoints, messages to systemd, and files that are replaced
//! in one step.
//!
//! ```text
//! argv + environment --flags::Program::parse--> Given --the program's own check--> settings
//! signals --Shutdown--> what is being done is finished --> exit
//! ```
#![forbid(unsafe_code)]

pub mod file;
pub mod flags;
pub mod health;
pub mod log;
pub mod notify;
mod retry;
mod secret;
mod shutdown;

pub use retry::{Backoff, OnChange, Random};
pub use secret::Secret;
pub use shutdown::Shutdown;

/// The text of an error and of all its causes on one line: `failed to a: failed to b: c`.
///
/// A cause whose text is already the end of the line is not said twice.
#[must_use]
pub fn one_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !text.is_empty() && !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

//! What the tests stand on: namespaces, processes and directories that clean up after themselves.
//!
//! Everything here is for tests and for the demo; the product never links it. What it makes has a name
//! of its own and dies with the process that made it, also after a panic or a `kill -9`: namespaces are
//! held by open files and by children with a parent-death signal, and directories left by a process that
//! is gone are swept up by the next one.
#![forbid(unsafe_code)]

mod dir;
mod exec;
mod find;
pub mod lab;
mod netns;
pub mod ping;
mod process;
mod random;
mod space;
pub mod traffic;

pub use dir::TempDir;
pub use exec::{Cmd, Ran};
pub use find::{bin, free_port, workspace};
pub use netns::{Entered, Netns, netns_or_skip, require_or_skip};
pub use process::Process;
pub use random::Random;
pub use space::Space;

use std::time::{Duration, Instant};

/// Asks `probe` until it gives a value, at most for `limit`: every few milliseconds at first, then less often,
/// so that a long wait does not slow down what it is for.
///
/// Returns the value and how long it took, or `None` when the time ran out. The probe is asked at least
/// once, and once more after the limit has passed.
pub fn eventually<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<(T, Duration)> {
    let start = Instant::now();
    loop {
        let late = start.elapsed() >= limit;
        if let Some(value) = probe() {
            return Some((value, start.elapsed()));
        }
        if late {
            return None;
        }
        let pause = start.elapsed() / 32;
        std::thread::sleep(pause.clamp(Duration::from_millis(3), Duration::from_millis(100)));
    }
}

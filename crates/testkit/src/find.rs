//! Where the programs under test are, and ports nobody uses.

use std::env;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The root folder of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map_or_else(|| here.to_owned(), Path::to_owned)
}

/// Where the built programs are: `$WEFT_BIN_DIR`, else `bin/` of the workspace.
pub(crate) fn bin_dir() -> PathBuf {
    env::var_os("WEFT_BIN_DIR").map_or_else(|| workspace().join("bin"), PathBuf::from)
}

/// One of the built programs: in `$WEFT_BIN_DIR`, else in `bin/` of the workspace.
///
/// # Panics
/// When it isn't there: the tests judge the programs as they are shipped, so they have to be built first.
#[must_use]
pub fn bin(name: &str) -> PathBuf {
    let path = bin_dir().join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `make build`, or point WEFT_BIN_DIR at a folder with it",
        path.display()
    );
    path
}

/// Ports below those that the kernel takes for connections (32768 and up): none of them turns into the port
/// of somebody's connection while its server is down.
const PORTS: std::ops::Range<u32> = 10_000..32_000;

/// A TCP port on the loopback address of this thread's namespace that nobody listens on, and that no other
/// call in this process gets.
///
/// # Panics
/// When there is none, or the namespace has no loopback device up.
#[must_use]
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Another process begins elsewhere.
    let first = std::process::id().wrapping_mul(64);
    let candidates = PORTS.map(|_| first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)));
    let mut ports = candidates.map(|n| (PORTS.start + n % (PORTS.end - PORTS.start)) as u16);
    ports
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("a free TCP port on 127.0.0.1")
}

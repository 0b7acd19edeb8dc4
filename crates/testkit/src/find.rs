//! Where the programs under test are, and ports nobody uses.

use std::env;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

/// The root folder of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map_or_else(|| here.to_owned(), Path::to_owned)
}

/// One of the built programs: in `$WEFT_BIN_DIR`, else in `bin/` of the workspace.
///
/// # Panics
/// When it isn't there: the tests judge the programs as they are shipped, so they have to be built first.
#[must_use]
pub fn bin(name: &str) -> PathBuf {
    let dir = env::var_os("WEFT_BIN_DIR").map_or_else(|| workspace().join("bin"), PathBuf::from);
    let path = dir.join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `make build`, or point WEFT_BIN_DIR at a folder with it",
        path.display()
    );
    path
}

/// A TCP port on the loopback address of this thread's namespace that nobody listens on.
///
/// # Panics
/// When there is none, or the namespace has no loopback device up.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free TCP port on 127.0.0.1");
    listener.local_addr().expect("the address of a bound socket").port()
}

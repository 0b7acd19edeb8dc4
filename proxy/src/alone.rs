//! One weft-proxy per network namespace: two would undo each other's ids for ever.
//!
//! Who works holds the name of an abstract socket. The kernel takes it back when its holder ends, however that
//! ends. Datagrams, since asking after such a socket leaves nothing behind at its holder.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    thread,
    time::Duration,
};

use daemon::OnChange;

/// Between two looks whether another one still runs.
const PAUSE: Duration = Duration::from_millis(100);

/// No other weft-proxy works in this network namespace as long as this lives.
#[derive(Debug)]
pub struct Alone(#[expect(dead_code, reason = "the open socket holds the name")] UnixDatagram);

/// Becomes the only one; `None` if another weft-proxy runs.
///
/// # Errors
/// The socket could not be made.
pub fn become_alone() -> io::Result<Option<Alone>> {
    match UnixDatagram::bind_addr(&name()?) {
        Ok(socket) => Ok(Some(Alone(socket))),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits until no other weft-proxy runs.
///
/// # Errors
/// See [`become_alone`].
pub fn wait() -> io::Result<Alone> {
    let mut said = OnChange::default();
    loop {
        if let Some(alone) = become_alone()? {
            return Ok(alone);
        }
        if said.is_new("waiting") {
            tracing::warn!("another weft-proxy runs in this network namespace: waiting until it ends");
        }
        thread::sleep(PAUSE);
    }
}

/// A weft-proxy runs in this network namespace.
///
/// # Errors
/// The socket could not be made, or the kernel gave no clear answer.
pub fn is_other_running() -> io::Result<bool> {
    match UnixDatagram::unbound()?.connect_addr(&name()?) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Err(error) => Err(error),
    }
}

fn name() -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name("weft-proxy")
}

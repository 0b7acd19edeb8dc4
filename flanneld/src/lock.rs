//! One flanneld per subnet file and per device.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::{DirBuilderExt, OpenOptionsExt},
            net::{SocketAddr, UnixListener},
        },
    },
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
    time::Duration,
};

use netmodel::IfName;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

/// Something is held by another flanneld, or could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds the subnet file.
    #[error("{} is held by another flanneld: end that one, or give this one its own -subnet-file", .0.display())]
    FileHeld(PathBuf),
    /// Another process holds the device.
    #[error("interface {0} is held by another flanneld: give this one's network another VNI")]
    DeviceHeld(IfName),
    /// The lock could not be taken.
    #[error("failed to lock {object}")]
    Failed {
        /// What was to be locked.
        object: String,
        /// Why not.
        #[source]
        cause: io::Error,
    },
}

/// How often a subnet file that seems to be held is looked at.
const LOOKS: u32 = 3;
/// The time between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Holds a subnet file; released when dropped, or when the process ends in whatever way.
#[derive(Debug)]
pub struct FileLock(#[expect(dead_code, reason = "the open file is the lock")] File);

/// Takes a subnet file, by a lock on `.<name>.lock` beside it: the file itself is replaced now and then.
///
/// # Errors
/// Another process holds it, or its folder can't be written.
pub fn subnet_file(path: &Path) -> Result<FileLock, LockError> {
    let beside = beside(path);
    let failed = |cause| LockError::Failed { object: beside.display().to_string(), cause };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(failed)?;
    }
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(&beside);
    let file = file.map_err(failed)?;
    for look in 1.. {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            // `flanneld status` holds it for a moment, in `is_held`.
            Err(Errno::WOULDBLOCK) if look < LOOKS => thread::sleep(LOOK_AGAIN),
            Err(Errno::WOULDBLOCK) => return Err(LockError::FileHeld(path.to_owned())),
            Err(errno) => return Err(failed(errno.into())),
        }
    }
    Ok(FileLock(file))
}

/// Somebody holds the subnet file; `None` where that can't be told.
#[must_use]
pub fn is_held(path: &Path) -> Option<bool> {
    let file = File::open(beside(path)).ok()?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Some(false),
        Err(Errno::WOULDBLOCK) => Some(true),
        Err(_) => None,
    }
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.lock"))
}

/// Holds a device; released when dropped, or when the process ends in whatever way.
#[derive(Debug)]
pub struct DeviceLock(#[expect(dead_code, reason = "the name of the open socket is the lock")] UnixListener);

/// Takes a device by an abstract socket: its name belongs to the network namespace, as the device's does.
///
/// # Errors
/// Another process holds it.
pub fn device(name: &IfName) -> Result<DeviceLock, LockError> {
    let taken = SocketAddr::from_abstract_name(format!("weft-flanneld/{name}"));
    match taken.and_then(|address| UnixListener::bind_addr(&address)) {
        Ok(listener) => Ok(DeviceLock(listener)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(LockError::DeviceHeld(name.clone())),
        Err(cause) => Err(LockError::Failed { object: format!("interface {name}"), cause }),
    }
}

/// The device that this process holds, once its configuration says which: the source takes it before it
/// leases anything, and whoever started the process lets go when everybody has ended.
#[derive(Debug, Default)]
pub struct OwnDevice(OnceLock<DeviceLock>);

impl OwnDevice {
    /// Takes the device, unless one is held already.
    ///
    /// # Errors
    /// As [`device`].
    pub fn hold(&self, name: &IfName) -> Result<(), LockError> {
        if self.0.get().is_none() {
            // Nobody else sets it: there is one source.
            let _ = self.0.set(device(name)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_until_the_first_lets_go() {
        let folder = std::env::temp_dir().join(format!("weft-lock-{}", std::process::id()));
        let path = folder.join("run/subnet.env");
        let first = subnet_file(&path).unwrap();
        assert!(matches!(subnet_file(&path), Err(LockError::FileHeld(held)) if held == path));
        assert_eq!(is_held(&path), Some(true));
        drop(first);
        assert_eq!(is_held(&path), Some(false));
        subnet_file(&path).unwrap();
        std::fs::remove_dir_all(folder).unwrap();

        let name: IfName = format!("t{}", std::process::id()).parse().unwrap();
        let first = device(&name).unwrap();
        assert!(matches!(device(&name), Err(LockError::DeviceHeld(held)) if held == name));
        drop(first);
        device(&name).unwrap();
    }
}

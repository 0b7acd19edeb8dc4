//! The reference's lock file, waited for with a limit.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::mpsc,
    thread,
    time::Duration,
};

use cni_core::{Code, Error};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::failure;

/// How long ADD and DEL wait for others. Runtimes give up much later.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Takes the lock `path`, which is given back when the file is closed.
pub(crate) fn take(path: &Path, patience: Duration) -> Result<File, Error> {
    let failed = |error: io::Error| failure::file("lock", path, &error);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Ok(file),
        Err(Errno::WOULDBLOCK) => {}
        Err(errno) => return Err(failed(errno.into())),
    }
    // flock(2) has no limit of its own: a thread waits, which ends with the process at the latest.
    let waiting = file.try_clone().map_err(failed)?;
    let (done, answer) = mpsc::channel();
    thread::Builder::new()
        .name("lock".to_owned())
        .spawn(move || done.send(flock(&waiting, FlockOperation::LockExclusive)))
        .map_err(failed)?;
    match answer.recv_timeout(patience) {
        Ok(Ok(())) => Ok(file),
        Ok(Err(errno)) => Err(failed(errno.into())),
        Err(_) => Err(Error::new(
            Code::TryAgainLater,
            format!(
                "failed to lock {}: another process held it for {} s",
                path.display(),
                patience.as_secs()
            ),
        )),
    }
}

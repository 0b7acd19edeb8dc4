//! Locks on files, waited for with a limit.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use cni_core::{Code, Error};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::failure;

/// How long ADD and DEL wait for others in all. Runtimes give up much later.
const PATIENCE: Duration = Duration::from_secs(8);

/// When this program first asked how long to wait.
static START: OnceLock<Instant> = OnceLock::new();

/// How long the next wait may take.
pub(crate) fn patience() -> Duration {
    let spent = START.get_or_init(Instant::now).elapsed();
    PATIENCE.saturating_sub(spent).max(Duration::from_secs(1))
}

/// Takes the lock `path`, which is given back when the file is closed.
pub(crate) fn take(path: &Path, patience: Duration) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    wait(file.map_err(|e| failure::file("lock", path, &e))?, path, patience)
}

/// Locks `file`, which lies at `path`, unless somebody else has.
pub(crate) fn try_now(file: &File, path: &Path) -> Result<bool, Error> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(failure::file("lock", path, &errno.into())),
    }
}

/// Locks `file`, which lies at `path`.
pub(crate) fn wait(file: File, path: &Path, patience: Duration) -> Result<File, Error> {
    if try_now(&file, path)? {
        return Ok(file);
    }
    let failed = |error: io::Error| failure::file("lock", path, &error);
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

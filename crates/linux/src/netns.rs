//! Network namespaces: found by path or by thread, compared, and entered for the length of a call.

use std::{
    fmt,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    process,
};

use rustix::{
    fs::{Mode, OFlags, fstat, fstatfs, open},
    io::Errno,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{Error, sys};

/// What statfs(2) answers for a namespace file (`NSFS_MAGIC`, linux/magic.h).
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// The calling thread's own network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// An open network namespace. It lives at least as long as this handle.
#[derive(Debug)]
pub struct Netns {
    handle: OwnedFd,
    name: String,
    identity: (u64, u64),
}

impl Netns {
    /// Opens the namespace that `path` holds, such as `/run/netns/blue` or `/proc/1234/ns/net`.
    ///
    /// # Errors
    /// The path is absent ([`Error::is_not_found`]), or is not a namespace (EINVAL).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let name = path.display().to_string();
        Self::try_open(path).map_err(|errno| Error::new("open", format!("network namespace {name}"), errno))
    }

    fn try_open(path: &Path) -> Result<Self, Errno> {
        // Whatever else is there must not be waited for: a FIFO is opened when somebody writes to it.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let handle = open(path, flags, Mode::empty())?;
        if u64::try_from(fstatfs(&handle)?.f_type) != Ok(NSFS_MAGIC) {
            return Err(Errno::INVAL);
        }
        let status = fstat(&handle)?;
        Ok(Self { handle, name: path.display().to_string(), identity: (status.st_dev, status.st_ino) })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current() -> Result<Self, Error> {
        Self::open(OWN)
    }

    /// A new namespace with nothing in it but a loopback that is down. It has no name: it ends with its
    /// last handle, process and mount.
    ///
    /// # Errors
    /// The privilege is missing (CAP_SYS_ADMIN).
    pub fn create() -> Result<Self, Error> {
        let _back = WayBack::note()?;
        sys::unshare_network().map_err(|errno| Error::new("create", "a network namespace", errno))?;
        Self::current()
    }

    /// Runs `work` inside this namespace and returns its answer; then the calling thread is back where it was,
    /// also after a panic. What `work` opens (a socket, a process) stays in this namespace.
    ///
    /// # Errors
    /// The namespace could not be entered: the privilege is missing, or it is a namespace of another kind.
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> Result<T, Error> {
        let _back = WayBack::note()?;
        move_into(&self.handle).map_err(|errno| Error::new("enter", self.to_string(), errno))?;
        Ok(work())
    }
}

/// Brings the thread back to the namespace that it was in. A thread of its own for each visit would cost as much
/// as all that is done there.
struct WayBack(Netns);

impl WayBack {
    fn note() -> Result<Self, Error> {
        Netns::current().map(Self)
    }
}

impl Drop for WayBack {
    fn drop(&mut self) {
        // What came in can go out again. If not, whatever this thread did next would hit the wrong host.
        if move_into(&self.0.handle).is_err() {
            process::abort();
        }
    }
}

fn move_into(namespace: &OwnedFd) -> Result<(), Errno> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
}

/// Two handles are equal if they are the same namespace, whatever their paths.
impl PartialEq for Netns {
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

impl Eq for Netns {}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "network namespace {}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_namespace_is_refused() {
        let error = Netns::open("/dev/null").unwrap_err();
        assert_eq!(error.to_string(), "failed to open network namespace /dev/null");
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        assert!(Netns::open("/run/netns/does-not-exist").unwrap_err().is_not_found());
    }

    #[test]
    fn a_fifo_that_nobody_writes_to_is_refused_at_once() {
        let dir = testkit::TempDir::new("netns").unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(Netns::open(&fifo).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn a_thread_is_back_after_a_visit_whatever_happened_there() {
        let Some(_) = testkit::netns_or_skip() else { return };
        let (here, there) = (Netns::current().unwrap(), Netns::create().unwrap());
        assert_eq!(Netns::current().unwrap(), here);
        assert_eq!(there.enter(|| Netns::current().unwrap()).unwrap(), there);
        assert_eq!(Netns::current().unwrap(), here);
        let panic = std::panic::catch_unwind(|| there.enter(|| panic!("inside")));
        assert!(panic.is_err() && Netns::current().unwrap() == here);
    }

    #[test]
    fn the_own_namespace_is_known_by_any_path() {
        let by_process = Netns::open(format!("/proc/{}/ns/net", std::process::id())).unwrap();
        assert_eq!(Netns::current().unwrap(), by_process);
    }
}

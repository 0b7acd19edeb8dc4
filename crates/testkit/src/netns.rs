//! Network namespaces that vanish with their owner.

use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Cmd;

/// A network namespace of its own, with nothing in it but a loopback device that is up.
///
/// It has no name: an open file holds it, so that it can't clash with another one and the kernel removes
/// it with everything inside once this value is gone and nothing runs in it any more.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

impl Netns {
    /// Makes a new namespace.
    ///
    /// # Errors
    /// Without the right to make one.
    pub fn new() -> Result<Self> {
        let maker = Maker::start()?;
        let ns = Self::open(format!("/proc/{}/ns/net", maker.0.id()))?;
        drop(maker);
        ns.cmd("ip link set lo up").ok()?;
        Ok(ns)
    }

    /// Holds a namespace that exists already, by its file (`/proc/<pid>/ns/net`, `/run/netns/<name>`).
    ///
    /// # Errors
    /// When there is no such file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file =
            File::open(path).with_context(|| format!("failed to open namespace {}", path.display()))?;
        // As every process sees it, and valid for as long as this value lives.
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        Ok(Self { file, path })
    }

    /// A path that leads any process to this namespace while this value lives (for `CNI_NETNS`, `nsenter`).
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command, cut at white space, that runs inside.
    pub fn cmd(&self, line: impl AsRef<str>) -> Cmd {
        self.wrap(Cmd::new(line))
    }

    /// Lets a command run inside.
    #[must_use]
    pub fn wrap(&self, cmd: Cmd) -> Cmd {
        cmd.entering(["nsenter".to_owned(), format!("--net={}", self.path.display())])
    }

    /// Puts this thread inside until the guard goes.
    ///
    /// # Errors
    /// Without the right to enter it.
    pub fn enter(&self) -> Result<Entered> {
        let home =
            File::open("/proc/thread-self/ns/net").context("failed to open this thread's namespace")?;
        join(&self.file)?;
        Ok(Entered { home, _thread_bound: PhantomData })
    }

    /// Runs `work` on a thread inside and gives back its answer; sockets it returns stay inside.
    ///
    /// # Errors
    /// Without the right to enter it.
    ///
    /// # Panics
    /// When `work` does.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                join(&self.file)?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

fn join(file: &File) -> Result<()> {
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .context("failed to enter a namespace")
}

/// This thread is in another namespace until this value goes; so it can't be sent to another thread.
#[derive(Debug)]
pub struct Entered {
    home: File,
    _thread_bound: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        // A thread that can't come home would run its next test in a foreign namespace.
        if let Err(error) = join(&self.home) {
            eprintln!("failed to leave a namespace: {error:#}");
            std::process::abort();
        }
    }
}

/// A child that sits in a new namespace until this value goes.
struct Maker(Child);

impl Maker {
    fn start() -> Result<Self> {
        let mut command = Command::new("unshare");
        // `cat` says when it is inside, and ends with its input even if this process is killed.
        command.args(["-n", "--", "sh", "-c", "echo inside; exec cat"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("failed to start unshare")?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        if line.trim() != "inside" {
            let output = child.wait_with_output()?;
            bail!("failed to make a network namespace: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(Self(child))
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A new namespace, or nothing where this machine does not allow one.
///
/// # Panics
/// When there is none and `REQUIRE_NETNS` is set, as CI does: a test that could not run must not be green.
#[must_use]
pub fn netns_or_skip() -> Option<Netns> {
    require_or_skip("network namespace", Netns::new())
}

/// What a test needs, or nothing where this machine does not have it.
///
/// # Panics
/// When it is missing and `REQUIRE_NETNS` is set.
#[must_use]
pub fn require_or_skip<T>(what: &str, got: Result<T>) -> Option<T> {
    match got {
        Ok(value) => Some(value),
        Err(error) if env::var_os("REQUIRE_NETNS").is_some() => {
            panic!("REQUIRE_NETNS is set, but there is no {what}: {error:#}")
        }
        Err(error) => {
            eprintln!("SKIPPED (no {what}): {error:#}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_empty_apart_and_left_again() -> Result<()> {
        let Some(ns) = netns_or_skip() else { return Ok(()) };
        let home = std::fs::read_link("/proc/thread-self/ns/net")?;
        {
            let _inside = ns.enter()?;
            assert_ne!(std::fs::read_link("/proc/thread-self/ns/net")?, home);
        }
        assert_eq!(std::fs::read_link("/proc/thread-self/ns/net")?, home);
        let links = ns.cmd("ip -j link").json()?;
        assert_eq!(links.as_array().map(Vec::len), Some(1), "{links}");
        Ok(())
    }

    #[test]
    fn a_thread_inside_sees_what_commands_made() -> Result<()> {
        let Some(ns) = netns_or_skip() else { return Ok(()) };
        ns.cmd("ip address add 10.1.2.3/24 dev lo").ok()?;
        let bound = ns.inside(|| std::net::TcpListener::bind("10.1.2.3:0").map(|s| s.local_addr()))?;
        assert!(bound.is_ok());
        assert!(std::net::TcpListener::bind("10.1.2.3:0").is_err(), "the address is inside only");
        Ok(())
    }

    #[test]
    fn a_panic_leaves_no_thread_inside() -> Result<()> {
        let Some(ns) = netns_or_skip() else { return Ok(()) };
        let home = std::fs::read_link("/proc/thread-self/ns/net")?;
        let panicked = std::panic::catch_unwind(|| {
            let _inside = ns.enter();
            panic!("on purpose");
        });
        assert!(panicked.is_err());
        assert_eq!(std::fs::read_link("/proc/thread-self/ns/net")?, home);
        Ok(())
    }
}

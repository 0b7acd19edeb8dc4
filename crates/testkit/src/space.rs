//! A machine of its own, as far as the network is concerned: network, mounts and host name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{Cmd, Netns, Process};

/// What the holder runs: private `/run` and `/var/lib`, so that every program finds its usual paths
/// empty, and a host name of its own.
const SETUP: &str = "set -e
mount -t tmpfs weft /run
mount -t tmpfs weft /var/lib
echo \"$0\" > /proc/sys/kernel/hostname
ip link set lo up
echo inside
exec sleep infinity";

/// Namespaces for network, mounts and host name, held by a sleeping process.
///
/// `/run` and `/var/lib` are empty and private. All of it vanishes with the holder, which dies with the
/// process that made this value unless it was told to stay.
#[derive(Debug)]
pub struct Space {
    name: String,
    holder: Process,
    net: Netns,
    keep: bool,
}

impl Space {
    /// Makes the namespaces; `logs` is the folder for its processes' logs. With `keep` it outlives this process.
    ///
    /// # Errors
    /// Without the right to make namespaces and to mount.
    pub fn new(name: &str, logs: &Path, keep: bool) -> Result<Self> {
        let cmd = Cmd::new("unshare --net --mount --uts -- sh -c").arg(SETUP).arg(name);
        let mut holder = start(&cmd, logs.join(format!("{name}.space.log")), keep)?;
        holder.wait_for_log("inside", Duration::from_secs(10))?;
        let net = Netns::open(format!("/proc/{}/ns/net", holder.pid()))?;
        Ok(Self { name: name.to_owned(), holder, net, keep })
    }

    /// Its host name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process that holds it: `nsenter -t <pid> -n -m -u` leads inside.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.holder.pid()
    }

    /// Its network namespace.
    #[must_use]
    pub fn net(&self) -> &Netns {
        &self.net
    }

    /// It outlives this process.
    #[must_use]
    pub fn stays(&self) -> bool {
        self.keep
    }

    /// Words that lead a command inside.
    #[must_use]
    pub fn prefix(&self) -> Vec<String> {
        let pid = self.pid().to_string();
        ["nsenter", "-t", &pid, "-n", "-m", "-u", "--"].map(str::to_owned).to_vec()
    }

    /// A command, cut at white space, that runs inside.
    pub fn cmd(&self, line: impl AsRef<str>) -> Cmd {
        self.wrap(Cmd::new(line))
    }

    /// Lets a command run inside.
    #[must_use]
    pub fn wrap(&self, cmd: Cmd) -> Cmd {
        cmd.entering(self.prefix())
    }

    /// Starts a long-running program inside; it stays when the space was told to stay.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn(&self, cmd: Cmd, log: impl Into<PathBuf>) -> Result<Process> {
        start(&self.wrap(cmd), log.into(), self.keep)
    }

    /// Where the file that is `path` inside can be reached from outside.
    #[must_use]
    pub fn file(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        Path::new(&format!("/proc/{}/root", self.pid())).join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Reads a file as it is inside.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<String> {
        let outside = self.file(&path);
        std::fs::read_to_string(outside)
            .with_context(|| format!("failed to read {}", path.as_ref().display()))
    }
}

fn start(cmd: &Cmd, log: PathBuf, keep: bool) -> Result<Process> {
    if keep { Process::spawn_kept(cmd, log) } else { Process::spawn(cmd, log) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TempDir, require_or_skip};

    #[test]
    fn usual_paths_are_private_and_seen_from_outside() -> Result<()> {
        let dir = TempDir::new("space")?;
        let Some(a) = require_or_skip("namespaces", Space::new("a", dir.path(), false)) else {
            return Ok(());
        };
        let b = Space::new("b", dir.path(), false)?;
        a.wrap(Cmd::shell("hostname > /run/who; ip netns add pod")).ok()?;
        assert_eq!(a.read("/run/who")?.trim(), "a");
        assert!(b.read("/run/who").is_err());
        assert!(Netns::open(a.file("/run/netns/pod")).is_ok());
        let pid = a.pid();
        drop(a);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        Ok(())
    }
}

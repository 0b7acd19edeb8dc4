//! Long-running children that never outlive their test.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::{Cmd, eventually};

/// A running program whose output goes to a file; killed with all that it started when this value goes.
///
/// The kernel also kills it when the thread that started it ends, so start it where it is needed.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    shown: String,
    keep: bool,
}

impl Process {
    /// Starts `cmd`, appending both outputs to `log`.
    ///
    /// # Errors
    /// When the log can't be opened or the program can't be started.
    pub fn spawn(cmd: &Cmd, log: impl Into<PathBuf>) -> Result<Self> {
        let cmd = cmd.clone().entering(["setpriv", "--pdeathsig", "KILL"]);
        Self::start(&cmd, log.into(), false)
    }

    /// As [`Process::spawn`], but the program goes on when this process ends.
    ///
    /// # Errors
    /// As [`Process::spawn`].
    pub fn spawn_kept(cmd: &Cmd, log: impl Into<PathBuf>) -> Result<Self> {
        Self::start(&cmd.clone().entering(["setsid"]), log.into(), true)
    }

    fn start(cmd: &Cmd, log: PathBuf, keep: bool) -> Result<Self> {
        let open = || -> Result<File> {
            let file = File::options().create(true).append(true).open(&log);
            file.with_context(|| format!("failed to open log {}", log.display()))
        };
        let mut command = cmd.to_command();
        command.stdin(Stdio::null()).stdout(open()?).stderr(open()?);
        if !keep {
            // As `setsid` makes one.
            command.process_group(0);
        }
        let child = command.spawn().with_context(|| format!("failed to start {cmd}"))?;
        Ok(Self { child, log, shown: cmd.to_string(), keep })
    }

    /// Its process id: what enters the namespaces becomes the program, so this is the program's own.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The command line as a person would type it.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Everything it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// It has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the program is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("failed to signal {}", self.shown))
    }

    /// `kill -9` for it and all that it started, and waits until it is gone.
    pub fn kill(&mut self) {
        if self.is_running() {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Asks it to end (SIGTERM) and waits for at most `limit`; its exit code, if it ended by itself.
    ///
    /// # Errors
    /// When it did not end in time: it is killed then.
    pub fn terminate(&mut self, limit: Duration) -> Result<Option<i32>> {
        self.signal(Signal::TERM)?;
        self.wait(limit)
    }

    /// Waits for at most `limit` until it ends by itself; its exit code, absent if a signal ended it.
    ///
    /// # Errors
    /// When it did not end in time: it is killed then.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<i32>> {
        let ended = eventually(limit, || self.child.try_wait().ok().flatten());
        if ended.is_none() {
            self.kill();
        }
        let (status, _) = ended.with_context(|| format!("{} did not end within {limit:?}", self.shown))?;
        Ok(status.code())
    }

    /// Waits for at most `limit` until its output holds `text`.
    ///
    /// # Errors
    /// When it does not; the error holds the output.
    pub fn wait_for_log(&mut self, text: &str, limit: Duration) -> Result<Duration> {
        let seen = eventually(limit, || self.log().contains(text).then_some(()));
        let seen = seen
            .with_context(|| format!("no {text:?} within {limit:?} from {}:\n{}", self.shown, self.log()));
        Ok(seen?.1)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.keep {
            self.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TempDir;

    #[test]
    fn it_logs_ends_when_asked_and_dies_with_its_guard() -> Result<()> {
        let dir = TempDir::new("process")?;
        let script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done";
        let mut asked = Process::spawn(&Cmd::shell(script), dir.path().join("a.log"))?;
        asked.wait_for_log("ready", Duration::from_secs(5))?;
        assert_eq!(asked.terminate(Duration::from_secs(5))?, Some(7));

        let dropped = Process::spawn(&Cmd::new("sleep 60"), dir.path().join("b.log"))?;
        let proc = PathBuf::from(format!("/proc/{}", dropped.pid()));
        assert!(proc.exists());
        drop(dropped);
        assert!(!proc.exists());
        Ok(())
    }
}

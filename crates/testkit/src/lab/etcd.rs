//! A real etcd of one or three members, which can be stopped, killed and emptied.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::{Cmd, Process, Ran, Space, eventually};

/// etcd servers on 192.168.100.1, .2 and .3 of the underlay, port 2379.
#[derive(Debug)]
pub struct Etcd {
    dir: PathBuf,
    size: usize,
    members: Vec<Option<Process>>,
    /// Counted up when the store is emptied, so that the data folders are new.
    generation: u32,
}

impl Etcd {
    /// Starts all members and waits until they answer.
    ///
    /// # Errors
    /// When they don't.
    pub fn start(underlay: &Space, dir: &Path, size: usize) -> Result<Self> {
        let mut etcd =
            Self { dir: dir.to_owned(), size, members: (0..size).map(|_| None).collect(), generation: 0 };
        for member in 0..size {
            etcd.launch(underlay, member)?;
        }
        etcd.wait(underlay)?;
        Ok(etcd)
    }

    /// What `-etcd-endpoints` takes: all members.
    #[must_use]
    pub fn endpoints(&self) -> String {
        (1..=self.size).map(|n| format!("http://192.168.100.{n}:2379")).collect::<Vec<_>>().join(",")
    }

    /// Runs `etcdctl` with its v3 API against the members that run.
    #[must_use]
    pub fn ctl(&self, underlay: &Space, line: &str) -> Cmd {
        let running = (0..self.size).filter(|member| self.members[*member].is_some());
        let endpoints: Vec<_> =
            running.map(|member| format!("http://192.168.100.{}:2379", member + 1)).collect();
        // Long enough for an election.
        let cmd =
            Cmd::new(format!("etcdctl --command-timeout=15s --endpoints={} {line}", endpoints.join(",")));
        underlay.wrap(cmd.env("ETCDCTL_API", "3").limit(Duration::from_secs(20)))
    }

    /// Writes one key.
    ///
    /// # Errors
    /// When etcd does not take it.
    pub fn put(&self, underlay: &Space, key: &str, value: &str) -> Result<()> {
        patiently(&self.ctl(underlay, &format!("put {key}")).arg(value)).map(drop)
    }

    /// All keys below `prefix` with their values.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub fn list(&self, underlay: &Space, prefix: &str) -> Result<Vec<(String, String)>> {
        let ran = patiently(&self.ctl(underlay, &format!("get --prefix {prefix}")))?;
        let lines: Vec<_> = ran.stdout.lines().map(str::to_owned).collect();
        if !lines.len().is_multiple_of(2) {
            bail!("etcdctl printed a key without a value:\n{}", ran.stdout);
        }
        Ok(lines.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect())
    }

    /// Process ids of the members that run.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.members.iter().flatten().map(Process::pid)
    }

    /// Stops members without ending them: they answer nothing until [`Etcd::thaw`].
    ///
    /// # Errors
    /// When one is not running.
    pub fn freeze(&self, members: impl IntoIterator<Item = usize>) -> Result<()> {
        members.into_iter().try_for_each(|member| self.running(member)?.signal(Signal::STOP))
    }

    /// Lets stopped members go on.
    ///
    /// # Errors
    /// When one is not running.
    pub fn thaw(&self, members: impl IntoIterator<Item = usize>) -> Result<()> {
        members.into_iter().try_for_each(|member| self.running(member)?.signal(Signal::CONT))
    }

    /// `kill -9` of one member.
    pub fn kill(&mut self, member: usize) {
        if let Some(mut process) = self.members[member].take() {
            process.kill();
        }
    }

    /// `kill -9` of all members.
    pub fn kill_all(&mut self) {
        (0..self.size).for_each(|member| self.kill(member));
    }

    /// Starts the members that are not running, on the data they had, and waits until they answer.
    ///
    /// # Errors
    /// When they don't.
    pub fn revive(&mut self, underlay: &Space) -> Result<()> {
        for member in 0..self.size {
            if self.members[member].is_none() {
                self.launch(underlay, member)?;
            }
        }
        self.wait(underlay)
    }

    /// Ends all members and starts them again with an empty store.
    ///
    /// # Errors
    /// When they don't come up.
    pub fn restart_empty(&mut self, underlay: &Space) -> Result<()> {
        self.kill_all();
        self.generation += 1;
        self.revive(underlay)
    }

    fn running(&self, member: usize) -> Result<&Process> {
        self.members[member].as_ref().with_context(|| format!("etcd member {member} is not running"))
    }

    fn launch(&mut self, underlay: &Space, member: usize) -> Result<()> {
        let number = member + 1;
        let data = self.dir.join(format!("etcd-{number}-{}", self.generation));
        let peers: Vec<_> = (1..=self.size).map(|n| format!("m{n}=http://192.168.100.{n}:2380")).collect();
        let cmd = Cmd::new(format!(
            "etcd --name m{number} --data-dir {} --initial-cluster {} --initial-cluster-token lab-{}
             --listen-client-urls http://192.168.100.{number}:2379 --advertise-client-urls http://192.168.100.{number}:2379
             --listen-peer-urls http://192.168.100.{number}:2380 --initial-advertise-peer-urls http://192.168.100.{number}:2380
             --enable-v2=true",
            data.display(),
            peers.join(","),
            self.generation,
        ));
        let log = self.dir.join(format!("etcd-{number}.log"));
        self.members[member] = Some(underlay.spawn(cmd, log)?);
        Ok(())
    }

    fn wait(&self, underlay: &Space) -> Result<()> {
        let answers = || {
            let health = self.ctl(underlay, "endpoint health").run().ok()?;
            health.success().then_some(())
        };
        let up = eventually(Duration::from_secs(30), answers);
        up.map(drop).with_context(|| {
            let logs = (1..=self.size).map(|n| self.dir.join(format!("etcd-{n}.log")));
            let logs: Vec<_> = logs.map(|path| std::fs::read_to_string(path).unwrap_or_default()).collect();
            format!("etcd does not answer:\n{}", logs.join("\n"))
        })
    }
}

/// Runs what may be repeated a few times: a cluster that has just lost its leader answers with a time-out.
fn patiently(cmd: &Cmd) -> Result<Ran> {
    let mut ran = cmd.ok();
    for _ in 0..3 {
        if ran.is_ok() {
            break;
        }
        ran = cmd.ok();
    }
    ran
}

//! One node with its programs, and its pods.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::cni::{Attachment, Chain};
use crate::{Cmd, Netns, Process, Space};

/// One machine of the cluster.
#[derive(Debug)]
pub struct Node {
    /// Counted from 0; its name is `node1` for 0.
    pub index: usize,
    /// Where it lives.
    pub space: Space,
    /// Its address on the underlay.
    pub address: Ipv4Addr,
    /// The running flanneld.
    pub flanneld: Option<Process>,
    /// The running weft-proxy.
    pub proxy: Option<Process>,
    logs: PathBuf,
}

impl Node {
    pub(super) fn new(index: usize, space: Space, address: Ipv4Addr, logs: &Path) -> Self {
        Self { index, space, address, flanneld: None, proxy: None, logs: logs.to_owned() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.space.name()
    }

    /// A command, cut at white space, that runs on the node.
    pub fn cmd(&self, line: impl AsRef<str>) -> Cmd {
        self.space.cmd(line)
    }

    /// Starts flanneld with these words; the log goes on in the same file.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_flanneld(&mut self, words: Vec<String>) -> Result<()> {
        self.flanneld = Some(self.launch("flanneld", words)?);
        Ok(())
    }

    /// Starts weft-proxy with these words; the log goes on in the same file.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_proxy(&mut self, words: Vec<String>) -> Result<()> {
        self.proxy = Some(self.launch("weft-proxy", words)?);
        Ok(())
    }

    fn launch(&self, program: &str, words: Vec<String>) -> Result<Process> {
        let log = self.logs.join(format!("{}.{program}.log", self.name()));
        self.space.spawn(Cmd::new("").args(words), log)
    }

    /// `kill -9` of flanneld, if it runs.
    pub fn kill_flanneld(&mut self) {
        if let Some(mut process) = self.flanneld.take() {
            process.kill();
        }
    }

    /// `kill -9` of weft-proxy, if it runs.
    pub fn kill_proxy(&mut self) {
        if let Some(mut process) = self.proxy.take() {
            process.kill();
        }
    }

    /// Asks flanneld to end; its exit code.
    ///
    /// # Errors
    /// When it does not end within 10 s.
    pub fn stop_flanneld(&mut self) -> Result<Option<i32>> {
        let mut process = self.flanneld.take().context("flanneld is not running")?;
        process.terminate(Duration::from_secs(10))
    }

    /// What its programs wrote.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut all = String::new();
        for process in [&self.flanneld, &self.proxy].into_iter().flatten() {
            let _ = writeln!(all, "--- {} on {}\n{}", process.shown(), self.name(), process.log());
        }
        all
    }

    /// The pod subnet as `subnet.env` has it: the bridge's address with its length, `172.16.5.1/24`.
    ///
    /// # Errors
    /// While flanneld has not written it.
    pub fn subnet(&self) -> Result<String> {
        let text = self.space.read("/run/flannel/subnet.env")?;
        let line = text.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET="));
        Ok(line.context("subnet.env holds no FLANNEL_SUBNET")?.to_owned())
    }

    /// The subnet without its length and last byte: `172.16.5` of `172.16.5.1/24`.
    ///
    /// # Errors
    /// While flanneld has not written `subnet.env`.
    pub fn subnet_stem(&self) -> Result<String> {
        let subnet = self.subnet()?;
        Ok(subnet.rsplit_once('.').context("not an IPv4 subnet")?.0.to_owned())
    }

    /// It has a subnet, and routes through the overlay to this many peers.
    pub(super) fn meshed(&self, peers: usize) -> bool {
        self.subnet().is_ok() && self.overlay_routes().is_ok_and(|routes| routes.len() == peers)
    }

    /// flanneld was started and ended by itself.
    pub(super) fn flanneld_ended(&mut self) -> bool {
        self.flanneld.as_mut().is_some_and(|process| !process.is_running())
    }

    /// Destinations of the routes through the overlay device.
    ///
    /// # Errors
    /// While the device is not there.
    pub fn overlay_routes(&self) -> Result<Vec<String>> {
        let routes = self.cmd("ip -j route show dev flannel.1").json()?;
        let list = routes.as_array().into_iter().flatten();
        Ok(list.filter_map(|route| route["dst"].as_str().map(str::to_owned)).collect())
    }

    pub(super) fn add_pod(&self, cni: &Chain, name: &str) -> Result<Pod> {
        self.cmd(format!("ip netns add {name}")).ok()?;
        let attachment = Attachment {
            id: format!("{}-{name}", self.name()),
            netns: Some(format!("/run/netns/{name}")),
            ifname: "eth0".to_owned(),
        };
        let net = Netns::open(self.space.file(format!("/run/netns/{name}")))?;
        net.cmd("ip link set lo up").ok()?;
        let result = cni.add(&self.space, &attachment)?;
        let address = result["ips"][0]["address"].as_str().and_then(|text| text.split('/').next());
        let address = address.and_then(|text| text.parse().ok());
        let address = address.with_context(|| format!("ADD gave no IPv4 address: {result}"))?;
        let mut prefix = self.space.prefix();
        prefix.extend(["nsenter".to_owned(), format!("--net=/run/netns/{name}"), "--".to_owned()]);
        let (name, logs, keep) = (name.to_owned(), self.logs.clone(), self.space.stays());
        Ok(Pod { name, node: self.index, address, net, result, attachment, prefix, logs, keep })
    }

    pub(super) fn remove_pod(&self, cni: &Chain, pod: &Pod) -> Result<()> {
        cni.del(&self.space, &pod.attachment, &pod.result)?;
        self.cmd(format!("ip netns delete {}", pod.name)).ok().map(drop)
    }
}

/// A pod: a named network namespace of its node.
#[derive(Debug)]
pub struct Pod {
    /// Its name, also of the namespace.
    pub name: String,
    /// The node, counted from 0.
    pub node: usize,
    /// What ADD gave it.
    pub address: Ipv4Addr,
    /// Its namespace.
    pub net: Netns,
    /// What ADD answered.
    pub result: Value,
    /// What ADD was asked.
    pub attachment: Attachment,
    prefix: Vec<String>,
    logs: PathBuf,
    keep: bool,
}

impl Pod {
    /// A command, cut at white space, that runs in the pod, with the files of its node.
    pub fn cmd(&self, line: impl AsRef<str>) -> Cmd {
        self.wrap(Cmd::new(line))
    }

    /// Lets a command run in the pod, with the files of its node.
    #[must_use]
    pub fn wrap(&self, cmd: Cmd) -> Cmd {
        cmd.entering(self.prefix.clone())
    }

    /// Starts a long-running program in the pod; it stays when the lab was told to stay.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn(&self, cmd: Cmd) -> Result<Process> {
        let log = self.logs.join(format!("{}.log", self.name));
        let cmd = self.wrap(cmd);
        if self.keep { Process::spawn_kept(&cmd, log) } else { Process::spawn(&cmd, log) }
    }
}

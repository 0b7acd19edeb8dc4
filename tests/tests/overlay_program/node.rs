//! A node with flanneld, fed from a file.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::{Cmd, Netns, Process, TempDir, bin, eventually, netns_or_skip};

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// What prints the peers in the kernel.
pub(crate) const ROUTES: &str = "ip route show dev flannel.1";
pub(crate) const NEIGHBOURS: &str = "ip neighbour show dev flannel.1 nud permanent";
pub(crate) const ENTRIES: &str = "bridge fdb show dev flannel.1";

/// Its underlay, and what else it has.
const NODE: [&str; 6] = [
    "ip link set lo up",
    "ip link add eth0 type veth peer name far",
    "ip link set eth0 up",
    "ip link set far up",
    "ip address add 192.0.2.1/24 dev eth0",
    "ip route add default via 192.0.2.254",
];

/// One node: a namespace, a folder, and flanneld when it runs.
pub(crate) struct Node {
    // First: it ends before its namespace and folder go.
    pub(crate) flanneld: Option<Process>,
    pub(crate) net: Netns,
    pub(crate) dir: TempDir,
}

impl Node {
    pub(crate) fn new() -> Result<Option<Self>> {
        let Some(net) = netns_or_skip() else { return Ok(None) };
        for line in NODE {
            net.cmd(line).ok()?;
        }
        Ok(Some(Self { flanneld: None, net, dir: TempDir::new("overlay")? }))
    }

    pub(crate) fn leases(&self, leases: &[(String, Value)]) -> Result<()> {
        self.leases_with(&json!({"Type": "vxlan"}), leases)
    }

    pub(crate) fn leases_with(&self, backend: &Value, leases: &[(String, Value)]) -> Result<()> {
        let leases: serde_json::Map<_, _> = leases.iter().cloned().collect();
        let config = json!({"Network": "10.5.0.0/16", "Backend": backend});
        let text = json!({"config": config, "own": "10.5.1.0-24", "leases": leases});
        // In one step, as an editor does: a half-written file is never seen.
        let draft = self.dir.write("draft", text.to_string())?;
        fs::rename(draft, self.dir.path().join("leases.json"))?;
        Ok(())
    }

    /// flanneld with these words and its usual flags, outside its namespace.
    pub(crate) fn program(&self, words: &str) -> Cmd {
        let dir = self.dir.path().display();
        let flags = format!("-from file:{dir}/leases.json -subnet-file {dir}/run/subnet.env -ip-masq");
        let program = Cmd::new("").arg(bin("flanneld").display().to_string());
        program.args(words.split_whitespace()).args(flags.split_whitespace())
    }

    /// The same inside.
    pub(crate) fn command(&self, words: &str) -> Cmd {
        self.net.wrap(self.program(words))
    }

    pub(crate) fn start(&mut self) -> Result<()> {
        let log = self.dir.path().join("log");
        self.flanneld = Some(Process::spawn(&self.command("run"), log)?);
        let pid = self.flanneld.as_ref().map(Process::pid);
        let ready = eventually(PATIENCE, || {
            let status = self.status().ok()?;
            let own = status["pid"].as_u64() == pid.map(u64::from);
            (own && status["ready"] == json!(true)).then_some(())
        });
        ready.with_context(|| self.log()).map(drop)
    }

    /// Sends flanneld a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        self.flanneld.as_ref().context("not started")?.signal(signal)
    }

    pub(crate) fn log(&self) -> String {
        self.flanneld.as_ref().map(Process::log).unwrap_or_default()
    }

    pub(crate) fn subnet_file(&self) -> PathBuf {
        self.dir.path().join("run/subnet.env")
    }

    pub(crate) fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&fs::read_to_string(self.dir.path().join("run/status.json"))?)?)
    }

    /// What a command prints, however it ends.
    pub(crate) fn shown(&self, line: &str) -> Result<String> {
        Ok(self.net.cmd(line).run()?.stdout)
    }

    /// Waits until `line` prints `text` (or with `!` in front, succeeds without it).
    pub(crate) fn shows(&self, line: &str, text: &str) -> Result<()> {
        let (absent, text) = text.strip_prefix('!').map_or((false, text), |text| (true, text));
        let fits = || {
            let ran = self.net.cmd(line).run().ok()?;
            (ran.stdout.contains(text) != absent && (ran.success() || !absent)).then_some(())
        };
        let verb = if absent { "still shows" } else { "does not show" };
        eventually(PATIENCE, fits).map(drop).with_context(|| {
            format!("{line} {verb} {text:?}:\n{}\n{}", self.shown(line).unwrap_or_default(), self.log())
        })
    }
}

/// The lease of peer `n`, as flannel writes it.
pub(crate) fn peer(n: u8) -> (String, Value) {
    let data = json!({"VNI": 1, "VtepMAC": format!("02:00:00:00:00:{n:02x}")});
    let value = json!({"PublicIP": format!("192.0.2.{n}"), "PublicIPv6": null, "BackendType": "vxlan", "BackendData": data});
    (format!("10.5.{n}.0-24"), value)
}

pub(crate) fn peers(numbers: &[u8]) -> Vec<(String, Value)> {
    numbers.iter().map(|n| peer(*n)).collect()
}

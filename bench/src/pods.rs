//! Wiring pods: one process per ADD and DEL, one at a time, ours beside Debian's plugins and the floor.
//!
//! All three get the same work (bridge, hairpin, MTU, address, default route) in nodes of their own; the two
//! plugins get the same configuration.

use std::{
    io::Write,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use linux::{
    address::{Address, IfPresent},
    link::{self, Bridge},
    netlink::RouteSocket,
    netns::Netns,
};
use netmodel::Mtu;
use serde_json::json;
use testkit::TempDir;

use crate::{
    floor::{COMMAND, GATEWAY},
    report::{RUNS, Report, interleave},
};

/// Where Debian's containernetworking-plugins are.
const DEBIAN: &str = "/usr/lib/cni";

/// Measures the area.
pub(crate) fn run(report: &mut Report) -> Result<()> {
    let folder = TempDir::new("bench-pods")?;
    let mut ours = Plugin::new("ours", testkit::bin("flannel"), folder.path())?;
    let mut debian = Plugin::new("debian", Path::new(DEBIAN).join("bridge"), folder.path())?;
    let floor = Floor::new()?;
    let (mut our_dels, mut debian_dels, mut floor_dels) = (Vec::new(), Vec::new(), Vec::new());
    let runs = 4 * RUNS;
    let [our_adds, debian_adds, floor_adds] = interleave(
        runs,
        [&mut || ours.pod(&mut our_dels), &mut || debian.pod(&mut debian_dels), &mut || {
            floor.pod(&mut floor_dels)
        }],
    )?;
    report.compare("pod-add:debian", "ms", &our_adds, &debian_adds);
    report.compare("pod-add:floor", "ms", &our_adds, &floor_adds);
    // The first of each was the warm-up.
    report.compare("pod-del:debian", "ms", &our_dels[1..], &debian_dels[1..]);
    report.compare("pod-del:floor", "ms", &our_dels[1..], &floor_dels[1..]);
    Ok(())
}

/// A CNI plugin in a node of its own.
struct Plugin {
    program: PathBuf,
    config: String,
    node: Netns,
    count: u32,
}

impl Plugin {
    fn new(name: &str, program: PathBuf, folder: &Path) -> Result<Self> {
        let config = json!({
            "cniVersion": "1.0.0", "name": name, "type": "bridge", "bridge": "cni0",
            "isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "mtu": 1450,
            "ipam": {
                "type": "host-local", "dataDir": folder.join(name),
                "ranges": [[{ "subnet": "10.244.0.0/16" }]],
            },
        });
        Ok(Self { program, config: config.to_string(), node: Netns::create()?, count: 0 })
    }

    /// One pod comes and goes; returns how long ADD took, and puts how long DEL took beside it.
    fn pod(&mut self, dels: &mut Vec<f64>) -> Result<Duration> {
        let pod = Netns::create()?;
        self.count += 1;
        let added = self.call("ADD", &pod)?;
        let deleted = self.call("DEL", &pod)?;
        settle();
        dels.push(deleted.as_secs_f64() * 1000.0);
        Ok(added)
    }

    fn call(&self, verb: &str, pod: &Netns) -> Result<Duration> {
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .envs([
                ("CNI_COMMAND", verb),
                ("CNI_IFNAME", "eth0"),
                ("CNI_PATH", DEBIAN),
                ("PATH", "/usr/sbin:/usr/bin"),
            ])
            .env("CNI_CONTAINERID", format!("pod{}", self.count))
            .env("CNI_NETNS", path(pod));
        self.node.enter(|| time(&mut command, &self.config))?
    }
}

/// One process that does the kernel's work alone, in a node of its own.
struct Floor {
    program: PathBuf,
    node: Netns,
}

impl Floor {
    fn new() -> Result<Self> {
        let node = Netns::create()?;
        node.enter(|| -> Result<()> {
            let mut socket = RouteSocket::open()?;
            let bridge = Bridge { name: "cni0".parse()?, mac: None, mtu: Some(Mtu::try_from(1450)?) };
            socket.request(&bridge.add())?;
            let index = socket.link(&bridge.name)?.context("the bridge that was just made is gone")?.index;
            let address = Address::new(index, GATEWAY.into(), 16).add(&bridge.name, IfPresent::Fail);
            socket.request(&address)?;
            Ok(socket.request(&link::set_up(1, &"lo".parse()?))?)
        })??;
        Ok(Self { program: std::env::current_exe()?, node })
    }

    /// One pod comes and goes, as for [`Plugin`].
    fn pod(&self, dels: &mut Vec<f64>) -> Result<Duration> {
        let pod = Netns::create()?;
        let address = IpAddr::from([10, 244, 0, 2]).to_string();
        let call = |words: &[&str]| {
            let mut command = Command::new(&self.program);
            command.env_clear().arg(COMMAND).args(words);
            self.node.enter(|| time(&mut command, ""))?
        };
        let added = call(&["add", &path(&pod), &address])?;
        let deleted = call(&["del"])?;
        settle();
        dels.push(deleted.as_secs_f64() * 1000.0);
        Ok(added)
    }
}

/// From the start of the process to its end.
fn time(command: &mut Command, stdin: &str) -> Result<Duration> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let begun = Instant::now();
    let mut child = command.spawn().with_context(|| format!("failed to start {command:?}"))?;
    child.stdin.take().context("no stdin")?.write_all(stdin.as_bytes())?;
    let output = child.wait_with_output()?;
    let took = begun.elapsed();
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    ensure!(output.status.success(), "{command:?} failed: {said}");
    Ok(took)
}

/// A path by which another process can open the namespace.
fn path(namespace: &Netns) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd())
}

/// Lets the kernel finish what a deletion left to do, so that it is nobody else's time.
fn settle() {
    std::thread::sleep(Duration::from_millis(60));
}

//! Wiring pods: one process per ADD and DEL, ours beside Debian's plugins and the floor.
//!
//! All three get the same work (bridge, hairpin, MTU, address, default route) in nodes of their own; the two
//! plugins get the same configuration. A floor process does the kernel's part and nothing else.

use std::{
    fs,
    io::{ErrorKind, Write},
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
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
/// How many addresses are taken already; growth is part of the picture.
const TAKEN: [u32; 3] = [0, 1_000, 5_000];
/// Pods that come and go together.
const BURST: u32 = 100;
/// How many processes add pods at a time.
const AT_A_TIME: u32 = 16;

/// Measures the area.
pub(crate) fn run(report: &mut Report) -> Result<()> {
    let floor = Side::floor()?;
    start(report, &floor)?;
    for taken in TAKEN {
        let folder = TempDir::new("bench-pods")?;
        let (ours, debian) = (Side::ours(folder.path())?, Side::debian(folder.path())?);
        for name in ["ours", "debian"] {
            take(&folder.path().join(name).join(name), taken)?;
        }
        one_at_a_time(report, [&ours, &debian, &floor], taken)?;
        if taken == 0 {
            bursts(report, [&ours, &debian, &floor])?;
        }
    }
    Ok(())
}

/// From start to exit of a process that has next to nothing to do.
fn start(report: &mut Report, floor: &Side) -> Result<()> {
    let folder = TempDir::new("bench-start")?;
    let (ours, debian) = (Side::ours(folder.path())?, Side::debian(folder.path())?);
    let pod = Pod::new(0)?;
    let [ours, debian, floor] = interleave(
        16 * RUNS,
        [&mut || ours.call("VERSION", &pod), &mut || debian.call("VERSION", &pod), &mut || {
            floor.call("VERSION", &pod)
        }],
    )?;
    report.compare("plugin-start:debian", "ms", &ours, &debian);
    report.compare("plugin-start:floor", "ms", &ours, &floor);
    Ok(())
}

/// One pod after another comes and goes.
fn one_at_a_time(report: &mut Report, [ours, debian, floor]: [&Side; 3], taken: u32) -> Result<()> {
    let mut dels = [const { Vec::new() }; 3];
    let [our_dels, debian_dels, floor_dels] = &mut dels;
    let runs = 4 * RUNS;
    let [our_adds, debian_adds, floor_adds] = interleave(
        runs,
        [&mut || ours.pods(1, our_dels), &mut || debian.pods(1, debian_dels), &mut || {
            floor.pods(1, floor_dels)
        }],
    )?;
    // The first of each was the warm-up.
    let [our_dels, debian_dels, floor_dels] = dels.each_ref().map(|samples| &samples[1..]);
    let at = if taken == 0 { String::new() } else { format!("-at-{taken}") };
    report.compare(&format!("pod-add{at}:debian"), "ms", &our_adds, &debian_adds);
    report.compare(&format!("pod-add{at}:floor"), "ms", &our_adds, &floor_adds);
    report.compare(&format!("pod-del{at}:debian"), "ms", our_dels, debian_dels);
    report.compare(&format!("pod-del{at}:floor"), "ms", our_dels, floor_dels);
    Ok(())
}

/// Many pods come, 16 at a time, and go at once.
fn bursts(report: &mut Report, [ours, debian, floor]: [&Side; 3]) -> Result<()> {
    let mut dels = [const { Vec::new() }; 3];
    let [our_dels, debian_dels, floor_dels] = &mut dels;
    let [our_adds, debian_adds, floor_adds] = interleave(
        RUNS,
        [&mut || ours.pods(BURST, our_dels), &mut || debian.pods(BURST, debian_dels), &mut || {
            floor.pods(BURST, floor_dels)
        }],
    )?;
    let [our_dels, debian_dels, floor_dels] = dels.each_ref().map(|samples| &samples[1..]);
    report.compare("pod-add-100-by-16:debian", "ms", &our_adds, &debian_adds);
    report.compare("pod-add-100-by-16:floor", "ms", &our_adds, &floor_adds);
    report.compare("pod-del-100-at-once:debian", "ms", our_dels, debian_dels);
    report.compare("pod-del-100-at-once:floor", "ms", our_dels, floor_dels);
    Ok(())
}

/// Takes the last addresses of the range, as host-local notes them.
fn take(folder: &Path, count: u32) -> Result<()> {
    fs::create_dir_all(folder)?;
    for number in 0..count {
        let address = std::net::Ipv4Addr::from(u32::from_be_bytes([10, 244, 255, 250]) - number);
        fs::write(folder.join(address.to_string()), format!("taken{number}\r\neth0"))?;
    }
    Ok(())
}

/// A pod's namespace, and the number that makes its names.
struct Pod {
    number: u32,
    namespace: Netns,
}

impl Pod {
    fn new(number: u32) -> Result<Self> {
        Ok(Self { number, namespace: Netns::create()? })
    }

    /// A path by which another process can open the namespace.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_fd().as_raw_fd())
    }
}

/// Who wires the pods of a node.
struct Side {
    node: Netns,
    program: PathBuf,
    /// What a plugin reads from its standard input; the floor has none.
    config: Option<String>,
}

impl Side {
    fn ours(folder: &Path) -> Result<Self> {
        Self::plugin("ours", testkit::bin("flannel"), folder)
    }

    fn debian(folder: &Path) -> Result<Self> {
        Self::plugin("debian", Path::new(DEBIAN).join("bridge"), folder)
    }

    fn plugin(name: &str, program: PathBuf, folder: &Path) -> Result<Self> {
        let config = json!({
            "cniVersion": "1.0.0", "name": name, "type": "bridge", "bridge": "cni0", "stateDir": folder.join("state"),
            "isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "mtu": 1450,
            "ipam": {
                "type": "host-local", "dataDir": folder.join(name),
                "ranges": [[{ "subnet": "10.244.0.0/16" }]],
            },
        });
        Ok(Self { node: Netns::create()?, program, config: Some(config.to_string()) })
    }

    fn floor() -> Result<Self> {
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
        Ok(Self { node, program: std::env::current_exe()?, config: None })
    }

    /// Pods come and go; returns how long the coming took, and puts how long the going took beside it.
    fn pods(&self, count: u32, dels: &mut Vec<f64>) -> Result<Duration> {
        let pods: Vec<Pod> = (0..count).map(Pod::new).collect::<Result<_>>()?;
        let added = self.call_all("ADD", &pods, AT_A_TIME)?;
        let deleted = self.call_all("DEL", &pods, count)?;
        dels.push(deleted.as_secs_f64() * 1000.0);
        // Let the kernel finish what is left to do, so that it is nobody else's time.
        drop(pods);
        thread::sleep(Duration::from_millis(60) + Duration::from_millis(5) * count);
        Ok(added)
    }

    /// One call for each pod, so many at a time.
    fn call_all(&self, verb: &str, pods: &[Pod], at_a_time: u32) -> Result<Duration> {
        if let [pod] = pods {
            return self.call(verb, pod);
        }
        let share = pods.len().div_ceil(at_a_time as usize);
        let begun = Instant::now();
        thread::scope(|scope| {
            let callers: Vec<_> = pods
                .chunks(share)
                .map(|pods| {
                    scope.spawn(move || pods.iter().try_for_each(|pod| self.call(verb, pod).map(drop)))
                })
                .collect();
            callers.into_iter().try_for_each(|caller| match caller.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        Ok(begun.elapsed())
    }

    /// One process in the node; how long it ran.
    fn call(&self, verb: &str, pod: &Pod) -> Result<Duration> {
        let mut command = Command::new(&self.program);
        command.env_clear();
        if self.config.is_some() {
            command
                .envs([("CNI_COMMAND", verb), ("CNI_IFNAME", "eth0"), ("CNI_PATH", DEBIAN)])
                .env("PATH", "/usr/sbin:/usr/bin")
                .env("CNI_CONTAINERID", format!("pod{}", pod.number))
                .env("CNI_NETNS", pod.path());
        } else {
            let near = format!("veth{}", pod.number);
            let [_, _, high, low] = (pod.number + 2).to_be_bytes();
            command.args([COMMAND, verb]);
            match verb {
                "ADD" => command.args([&near, &pod.path(), &format!("10.244.{high}.{low}")]),
                "DEL" => command.arg(&near),
                _ => &mut command,
            };
        }
        self.node.enter(|| time(&mut command, self.config.as_deref().unwrap_or_default()))?
    }
}

/// From the start of the process to its end.
fn time(command: &mut Command, stdin: &str) -> Result<Duration> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let begun = Instant::now();
    let mut child = command.spawn().with_context(|| format!("failed to start {command:?}"))?;
    match child.stdin.take().context("no stdin")?.write_all(stdin.as_bytes()) {
        // It ended without having read it all.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written?,
    }
    let output = child.wait_with_output()?;
    let took = begun.elapsed();
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    ensure!(output.status.success(), "{command:?} failed: {said}");
    Ok(took)
}

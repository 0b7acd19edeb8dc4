//! Who wires the pods of a node: our plugin, Debian's, or the floor.

use std::{
    io::{ErrorKind, Write},
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use linux::netns::Netns;
use serde_json::{Value, json};
use testkit::TempDir;

use crate::floor::{self, COMMAND};

/// Where Debian's containernetworking-plugins are.
const DEBIAN: &str = "/usr/lib/cni";
/// How many processes add pods at a time.
const AT_A_TIME: u32 = 16;

/// What is done for a pod.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Link, address, default route.
    Plain,
    /// The same, masqueraded, and with one port of the host.
    Full,
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

    fn host_port(&self) -> u32 {
        20_000 + self.number
    }
}

/// One of the programs that a runtime calls in turn, and its configuration.
struct Plugin {
    program: PathBuf,
    config: Value,
}

/// Who wires the pods of a node.
pub(super) struct Side {
    node: Netns,
    work: Work,
    /// In the order of ADD; the floor has none.
    plugins: Vec<Plugin>,
    /// What our plugin knows of its pods.
    _state: Option<TempDir>,
}

impl Side {
    /// Our plugin: one process for everything.
    pub(super) fn ours(folder: &Path, work: Work) -> Result<Self> {
        let mut config = bridge("ours", folder, work);
        // As `/run`, where it lies by default.
        let state = TempDir::in_memory("bench-state")?;
        config["stateDir"] = json!(state.path());
        config["capabilities"] = json!({ "portMappings": work == Work::Full });
        let plugins = vec![Plugin { program: testkit::bin("flannel"), config }];
        Ok(Self { node: Netns::create()?, work, plugins, _state: Some(state) })
    }

    /// Debian's plugins, one process for each and for what they call.
    pub(super) fn debian(folder: &Path, work: Work) -> Result<Self> {
        let program = |name: &str| Path::new(DEBIAN).join(name);
        let mut plugins = vec![Plugin { program: program("bridge"), config: bridge("debian", folder, work) }];
        if work == Work::Full {
            let config = json!({
                "cniVersion": "1.0.0", "name": "debian", "type": "portmap", "capabilities": { "portMappings": true },
            });
            plugins.push(Plugin { program: program("portmap"), config });
        }
        Ok(Self { node: Netns::create()?, work, plugins, _state: None })
    }

    /// One process that does the kernel's part and nothing else.
    pub(super) fn floor(work: Work) -> Result<Self> {
        let node = Netns::create()?;
        node.enter(floor::prepare)??;
        Ok(Self { node, work, plugins: Vec::new(), _state: None })
    }

    /// The node's namespace.
    pub(super) fn node(&self) -> &Netns {
        &self.node
    }

    /// How long a process takes from start to exit that has next to nothing to do.
    pub(super) fn version(&self) -> Result<Duration> {
        self.call("VERSION", &Pod::new(0)?)
    }

    /// Pods come and go; returns how long the coming took, and puts how long the going took beside it.
    pub(super) fn pods(&self, count: u32, dels: &mut Vec<f64>) -> Result<Duration> {
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

    /// The processes of one call in the node; how long they ran.
    fn call(&self, verb: &str, pod: &Pod) -> Result<Duration> {
        if self.plugins.is_empty() {
            return self.node.enter(|| time(&mut self.floor_call(verb, pod)?, "").map(|(took, _)| took))?;
        }
        let mut whole = Duration::ZERO;
        let mut previous = None;
        let mut plugins: Vec<&Plugin> = self.plugins.iter().collect();
        if verb == "DEL" {
            plugins.reverse();
        }
        for plugin in plugins {
            let mut config = plugin.config.clone();
            if let Some(previous) = previous.take() {
                config["prevResult"] = previous;
            }
            if config["capabilities"]["portMappings"] == true {
                config["runtimeConfig"] = json!({ "portMappings":
                    [{ "hostPort": pod.host_port(), "containerPort": 80, "protocol": "tcp" }] });
            }
            let mut command = plugin_call(plugin, verb, pod);
            let (took, said) = self.node.enter(|| time(&mut command, &config.to_string()))??;
            whole += took;
            previous = serde_json::from_str(&said).ok();
        }
        Ok(whole)
    }

    fn floor_call(&self, verb: &str, pod: &Pod) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.env_clear().args([COMMAND, verb]);
        let near = format!("veth{}", pod.number);
        let [_, _, high, low] = (pod.number + 2).to_be_bytes();
        let address = format!("10.244.{high}.{low}");
        match verb {
            "ADD" => drop(command.args([&near, &pod.path(), &address])),
            "DEL" => drop(command.args([&near, &address])),
            _ => {}
        }
        if self.work == Work::Full && verb != "VERSION" {
            command.arg(pod.host_port().to_string());
        }
        Ok(command)
    }
}

/// The network of type `bridge` that both plugins serve.
fn bridge(name: &str, folder: &Path, work: Work) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": name, "type": "bridge", "bridge": "cni0",
        "isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "mtu": 1450,
        "ipMasq": work == Work::Full,
        "ipam": {
            "type": "host-local", "dataDir": folder.join(name),
            "ranges": [[{ "subnet": "10.244.0.0/16" }]],
        },
    })
}

fn plugin_call(plugin: &Plugin, verb: &str, pod: &Pod) -> Command {
    let mut command = Command::new(&plugin.program);
    command
        .env_clear()
        .envs([("CNI_COMMAND", verb), ("CNI_IFNAME", "eth0"), ("CNI_PATH", DEBIAN)])
        .env("PATH", "/usr/sbin:/usr/bin")
        .env("CNI_CONTAINERID", format!("pod{}", pod.number))
        .env("CNI_NETNS", pod.path());
    command
}

/// From the start of the process to its end, and what it said.
fn time(command: &mut Command, stdin: &str) -> Result<(Duration, String)> {
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
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {said}{complaint}");
    Ok((took, said))
}

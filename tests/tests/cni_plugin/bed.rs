//! A host with pods to attach: namespaces, a folder for state, the plugin's environment.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use testkit::{Cmd, Entered, Netns, TempDir, netns_or_skip, require_or_skip};

/// Longest time that a call may take, also beside many others.
const PATIENCE: Duration = Duration::from_secs(60);

/// The test's thread is in the host's namespace for as long as this lives.
pub(crate) struct Bed {
    _inside: Entered,
    pub(crate) host: Netns,
    pub(crate) dir: TempDir,
}

/// One interface of one container.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    pub(crate) id: String,
    pub(crate) ifname: String,
    pub(crate) netns: String,
}

/// What a plugin answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Bed {
    /// A new host; `None` where this machine allows none.
    pub(crate) fn new(what: &str) -> Result<Option<Self>> {
        let Some(host) = netns_or_skip() else { return Ok(None) };
        Ok(Some(Self { _inside: host.enter()?, host, dir: TempDir::new(what)? }))
    }

    /// A path below the test's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Our program under another plugin's name.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.path("bin").join(name);
        if !path.exists() {
            fs::create_dir_all(self.path("bin"))?;
            std::os::unix::fs::symlink(testkit::bin("flannel"), &path)?;
        }
        Ok(path)
    }

    /// A network of type `bridge` with addresses of 10.99.0.0/24.
    pub(crate) fn bridge(&self) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br0",
            "isDefaultGateway": true, "hairpinMode": true, "mtu": 1400, "stateDir": self.path("state"),
            "ipam": {"type": "host-local", "dataDir": self.path("networks"), "ranges": [[{"subnet": "10.99.0.0/24"}]]},
        })
    }

    /// A network of type `flannel` with the reference's defaults; writes `subnet.env`.
    pub(crate) fn flannel(&self) -> Result<Value> {
        self.dir.write(
            "subnet.env",
            "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
        )?;
        Ok(json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "flannel",
            "subnetFile": self.path("subnet.env"), "dataDir": self.path("flannel"), "stateDir": self.path("state"),
            "ipam": {"dataDir": self.path("networks")},
            "delegate": {"hairpinMode": true, "isDefaultGateway": true},
        }))
    }

    /// Records of attachments to `network`, by name.
    pub(crate) fn records(&self, network: &str) -> Vec<String> {
        let names =
            fs::read_dir(self.path("state/attachments").join(network)).into_iter().flatten().flatten();
        let mut names: Vec<String> = names.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Files of reservations of `network`, by name.
    pub(crate) fn reservations(&self, network: &str) -> Vec<String> {
        let names = fs::read_dir(self.path("networks").join(network)).into_iter().flatten().flatten();
        let mut names: Vec<String> = names.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| name.parse::<std::net::IpAddr>().is_ok());
        names.sort();
        names
    }

    /// Names of the host's veth devices.
    pub(crate) fn veths(&self) -> Result<Vec<String>> {
        Ok(names(&Cmd::new("ip -j link show type veth").json()?))
    }
}

/// The names in a list of `ip -j`.
fn names(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|l| l["ifname"].as_str()).map(str::to_owned).collect()
}

impl Who {
    pub(crate) fn new(id: &str, pod: &Netns) -> Self {
        Self { id: id.to_owned(), ifname: "eth0".to_owned(), netns: pod.path().display().to_string() }
    }

    /// The same container after its namespace has gone.
    pub(crate) fn homeless(&self) -> Self {
        Self { netns: String::new(), ..self.clone() }
    }
}

impl Answer {
    /// The result of a successful call.
    #[track_caller]
    pub(crate) fn result(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("no single JSON document: {e}: {self:?}"))
    }

    /// A successful call that says nothing.
    #[track_caller]
    pub(crate) fn silent(&self) {
        assert!(self.code == Some(0) && self.out.is_empty(), "{self:?}");
    }

    /// Code and message of a failed call, which answered with exactly one document.
    #[track_caller]
    pub(crate) fn error(&self) -> (u64, String) {
        assert_eq!(self.code, Some(1), "{self:?}");
        let document: Value = serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        (document["code"].as_u64().unwrap(), document["msg"].as_str().unwrap().to_owned())
    }
}

/// The command of one call of `program`, without standard input.
pub(crate) fn command(program: &Path, verb: &str, who: &Who) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("CNI_COMMAND", verb).env("CNI_PATH", "/usr/lib/cni:/sbin");
    command.env("CNI_CONTAINERID", &who.id).env("CNI_IFNAME", &who.ifname).env("CNI_NETNS", &who.netns);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a command with this standard input; one that hangs is killed.
pub(crate) fn feed(mut command: Command, input: &[u8]) -> Answer {
    let mut child = command.spawn().expect("the plugin starts");
    let (pid, (_until_answered, answered)) = (Pid::from_child(&child), mpsc::channel::<()>());
    thread::spawn(move || {
        if answered.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            let _ = kill_process(pid, Signal::KILL);
        }
    });
    // A plugin may answer without having read everything.
    let _ = child.stdin.take().expect("a pipe").write_all(input);
    let output = child.wait_with_output().expect("the plugin ends");
    Answer {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Calls our plugin in the namespace of this thread.
pub(crate) fn call(verb: &str, who: &Who, config: &Value) -> Answer {
    call_of(&testkit::bin("flannel"), verb, who, config)
}

/// Calls any plugin in the namespace of this thread.
pub(crate) fn call_of(program: &Path, verb: &str, who: &Who, config: &Value) -> Answer {
    feed(command(program, verb, who), config.to_string().as_bytes())
}

/// No container: what GC and STATUS hear.
pub(crate) fn nobody() -> Who {
    Who { id: String::new(), ifname: String::new(), netns: String::new() }
}

/// Starts a call and kills it after `delay`. True if it had ended by itself.
pub(crate) fn kill_after(delay: Duration, verb: &str, who: &Who, input: &[u8]) -> bool {
    let mut child = command(&testkit::bin("flannel"), verb, who).spawn().expect("the plugin starts");
    let _ = child.stdin.take().expect("a pipe").write_all(input);
    thread::sleep(delay);
    let ended = child.try_wait().expect("its state").is_some();
    let _ = child.kill();
    child.wait().expect("its end");
    ended
}

/// How long an undisturbed call takes.
pub(crate) fn usual(verb: &str, who: &Who, config: &Value) -> Duration {
    let start = Instant::now();
    let answer = call(verb, who, config);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    start.elapsed()
}

/// `config` with these changes at the top.
pub(crate) fn with(config: &Value, changes: &Value) -> Value {
    let mut config = config.clone();
    for (key, value) in changes.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    config
}

/// The entry of an interface in `ip -j address`; null where there is none.
pub(crate) fn device(ns: &Netns, name: &str) -> Result<Value> {
    let list = ns.cmd("ip -j -d address show").json()?;
    Ok(list.as_array().and_then(|l| l.iter().find(|d| d["ifname"] == name)).cloned().unwrap_or(Value::Null))
}

/// `address/prefix` of each address of an entry of `ip -j address`, without link-local ones.
pub(crate) fn addresses(device: &Value) -> Vec<String> {
    let all = device["addr_info"].as_array().into_iter().flatten().filter(|a| a["scope"] == "global");
    all.map(|a| format!("{}/{}", a["local"].as_str().unwrap_or("?"), a["prefixlen"])).collect()
}

/// The first address of a result.
pub(crate) fn address(result: &Value) -> String {
    result["ips"][0]["address"].as_str().unwrap_or_default().to_owned()
}

/// Debian's plugin of that name.
pub(crate) fn reference(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from("/usr/lib/cni").join(name);
    let found = path.is_file().then_some(path).context("install containernetworking-plugins");
    require_or_skip("reference plugin", found)
}

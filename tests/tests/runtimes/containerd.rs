//! containerd: sandboxes by its CRI, as the kubelet asks for them, and `ctr run --cni`.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testkit::{
    Cmd, Netns, Process, eventually,
    traffic::{Server, ask_tcp},
};
use tokio::runtime::Runtime as Tokio;

use crate::{
    cri::{Linux, Metadata, PortMapping, Runtime, SandboxConfig},
    stage::{IMAGE, Stage},
};

/// A host with containerd on it.
struct Containerd {
    tokio: Tokio,
    runtime: Runtime,
    _process: Process,
    stage: Stage,
}

impl Containerd {
    fn start(what: &str, conflist: &Value) -> Result<Option<Self>> {
        let Some(stage) = Stage::new(what, conflist)? else { return Ok(None) };
        let at = |name: &str| stage.path(name).display().to_string();
        let config = format!(
            "version = 2\nroot = \"{root}\"\nstate = \"{state}\"\n\
             [grpc]\naddress = \"{socket}\"\n[ttrpc]\naddress = \"{socket}.ttrpc\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{IMAGE}\"\ndisable_apparmor = true\n\
             restrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/opt/cni/bin\"\nconf_dir = \"/etc/cni/net.d\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n",
            root = at("root"),
            state = at("state"),
            socket = at("c.sock"),
        );
        let config = stage.dir.write("config.toml", config)?;
        let process =
            stage.spawn(Cmd::new(format!("containerd -c {}", config.display())), "containerd.log")?;
        let socket = stage.path("c.sock");
        ensure!(
            eventually(Duration::from_secs(60), || socket.exists().then_some(())).is_some(),
            process.log()
        );
        let tokio = Tokio::new()?;
        let runtime = tokio.block_on(async { Runtime::at(&socket) })?;
        let this = Self { tokio, runtime, _process: process, stage };
        let image = this.stage.path("image.tar");
        this.ctr(&format!("-n k8s.io images import --snapshotter native {}", image.display()))?.ok()?;
        Ok(Some(this))
    }

    fn ctr(&self, line: &str) -> Result<Cmd> {
        self.stage.cmd(&format!("ctr -a {} {line}", self.stage.path("c.sock").display()))
    }

    fn run(&self, config: SandboxConfig) -> Result<(String, Ipv4Addr)> {
        self.tokio.block_on(async {
            let id = self.runtime.run(config).await?;
            let address = self.runtime.address(&id).await?.parse().context("no address")?;
            Ok((id, address))
        })
    }

    /// As the kubelet does: stops twice, then removes.
    fn end(&self, id: &str) -> Result<()> {
        self.tokio.block_on(async {
            self.runtime.stop(id).await?;
            self.runtime.stop(id).await?;
            self.runtime.remove(id).await
        })
    }

    /// Kernel objects as `line` lists them inside the host.
    fn seen(&self, line: &str) -> Result<Value> {
        self.stage.space.cmd(line).json()
    }
}

fn sandbox(name: &str) -> SandboxConfig {
    SandboxConfig {
        metadata: Some(Metadata {
            name: name.into(),
            uid: format!("{name}-uid"),
            namespace: "default".into(),
        }),
        hostname: name.into(),
        log_directory: "/tmp".into(),
        port_mappings: Vec::new(),
        annotations: HashMap::new(),
        linux: Some(Linux {}),
    }
}

/// Rule 65: run, stop, stop, remove leaves nothing; the pod answers in between.
fn run_and_end(conflist: &Value) -> Result<()> {
    let Some(host) = Containerd::start("containerd", conflist)? else { return Ok(()) };
    ensure!(host.tokio.block_on(host.runtime.network_ready())?, "the network is not ready");
    let (first, one) = host.run(sandbox("one"))?;
    let (second, two) = host.run(sandbox("two"))?;
    ensure!(one != two && one.octets()[..3] == [10, 42, 3], "{one} {two}");
    for address in [one, two] {
        host.stage.space.cmd(format!("ping -n -c 1 -W 2 {address}")).ok()?;
    }
    host.end(&first)?;
    host.end(&second)?;
    host.stage.is_clean()
}

#[test]
fn rule_65_run_stop_stop_remove() -> Result<()> {
    run_and_end(&Stage::chain())
}

/// containerd 1.6 reads `cniVersion` alone, and could not read a result of 1.1.0.
#[test]
fn rule_69_the_shipped_conflist_works_with_an_old_libcni() -> Result<()> {
    run_and_end(&Stage::shipped()?)
}

/// A host port and both limits, set by the one entry or by the chain, work and go.
fn ports_and_limits(conflist: &Value) -> Result<()> {
    let Some(host) = Containerd::start("ports", conflist)? else { return Ok(()) };
    let mut config = sandbox("web");
    config.port_mappings =
        vec![PortMapping { protocol: 0, container_port: 80, host_port: 18080, host_ip: String::new() }];
    for (key, rate) in [("ingress", "10M"), ("egress", "20M")] {
        config.annotations.insert(format!("kubernetes.io/{key}-bandwidth"), rate.into());
    }
    let (id, address) = host.run(config)?;
    let _server = serve(&host, address)?;
    for to in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(10, 42, 3, 1)] {
        let ask = || ask_tcp(SocketAddrV4::new(to, 18080), Duration::from_secs(2));
        let answer = host.stage.space.net().inside(ask)?.with_context(|| format!("to {to}"))?;
        ensure!(answer.by == "web", "{answer:?}");
    }
    let queues = host.seen("tc -j qdisc show")?;
    let rates: Vec<u64> = queues
        .as_array()
        .into_iter()
        .flatten()
        .filter(|q| q["kind"] == "tbf")
        .filter_map(|q| q["options"]["rate"].as_u64())
        .collect();
    ensure!(rates.len() == 2 && rates.contains(&1_250_000) && rates.contains(&2_500_000), "{queues}");
    host.end(&id)?;
    host.stage.is_clean()
}

/// Something in the only pod that answers on port 80.
fn serve(host: &Containerd, address: Ipv4Addr) -> Result<Server> {
    let listed = host.stage.cmd("ip netns list")?.ok()?.stdout;
    let name = listed.split_whitespace().find(|word| word.starts_with("cni-")).context("no namespace")?;
    let pod = Netns::open(host.stage.file(&format!("run/netns/{name}"))?)?;
    Server::tcp(&pod, SocketAddrV4::new(address, 80), "web")
}

#[test]
fn a_host_port_and_limits_in_one_entry() -> Result<()> {
    ports_and_limits(&Stage::shipped()?)
}

#[test]
fn a_host_port_and_limits_in_the_classic_chain() -> Result<()> {
    ports_and_limits(&Stage::chain())
}

#[test]
fn fifty_sandboxes_at_once() -> Result<()> {
    let Some(host) = Containerd::start("fifty", &Stage::shipped()?)? else { return Ok(()) };
    let all: Vec<String> = host.tokio.block_on(async {
        let runs: Vec<_> = (0..50)
            .map(|n| {
                let runtime = host.runtime.clone();
                tokio::spawn(async move { runtime.run(sandbox(&format!("pod{n}"))).await })
            })
            .collect();
        let mut ids = Vec::new();
        for run in runs {
            ids.push(run.await??);
        }
        anyhow::Ok(ids)
    })?;
    let mut addresses =
        all.iter().map(|id| host.tokio.block_on(host.runtime.address(id))).collect::<Result<Vec<_>>>()?;
    addresses.sort();
    addresses.dedup();
    ensure!(addresses.len() == 50, "{addresses:?}");
    for id in &all {
        host.end(id)?;
    }
    host.stage.is_clean()
}

/// Rule 66: `ctr` calls the plugins itself, with an empty namespace at DEL.
#[test]
fn rule_66_ctr_run() -> Result<()> {
    let Some(host) = Containerd::start("ctr", &Stage::shipped()?)? else { return Ok(()) };
    let rootfs = host.stage.path("rootfs");
    let run = host.ctr(&format!("run --rm --cni --rootfs {} t1", rootfs.display()))?;
    let said = run.args(["/bin/sh", "-c", "ip -o -4 addr show eth0; ping -c 1 -W 2 10.42.3.1"]).ok()?.stdout;
    ensure!(said.contains("10.42.3.") && said.contains("1 packets received"), "{said}");
    host.stage.is_clean()
}

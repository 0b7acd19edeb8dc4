//! Services with two endpoints each: the first load, and the change of one endpoint.
//!
//! The peer is `nft -f` with the ruleset that kube-proxy 1.36 makes, at 1,000 and 4,000 Services only: larger
//! ones freeze the kernel. Beyond that each size stands beside the smaller one, so that the growth can be seen.

mod peer;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use linux::nft;
use netmodel::{Port, Protocol};
use proxy_core::{
    adopt::Found,
    catalog::Catalog,
    delta,
    endpoints::{Endpoint, Part, Slice, SlicePort, State as EndpointState},
    object::{Key, Kind, Object, ObjectName},
    services::{Service, ServicePort},
    state::State,
    tables::{Config, Front, NodePorts},
};
use ruleset::Family;
use testkit::{Cmd, Netns, Process, TempDir, bin, eventually};

use crate::report::{RUNS, Report, interleave};

/// How many Services there are.
const SIZES: [u32; 3] = [1_000, 10_000, 30_000];
/// Where the peer can follow.
const PEER_SIZES: [u32; 2] = [1_000, 4_000];
/// How many changes of one endpoint are measured at each size.
const CHANGES: u32 = 200;

/// Measures the area.
pub(crate) fn run(report: &mut Report) -> Result<()> {
    for size in PEER_SIZES {
        let runs = if size > 1_000 { 5 } else { RUNS };
        let [ours, peer] = interleave(runs, [&mut || load(size), &mut || peer::load(size)])?;
        report.compare(&format!("services-load-{size}:nft-1.36-shape"), "ms", &ours, &peer);
        report.compare(
            &format!("services-change-at-{size}:nft-1.36-shape"),
            "ms",
            &changes(size)?,
            &peer::changes(size)?,
        );
    }
    let [small, middle, large] = SIZES;
    let [smalls, middles, larges] =
        interleave(5, [&mut || load(small), &mut || load(middle), &mut || load(large)])?;
    report.compare(&format!("services-load-{middle}:ours-at-{small}"), "ms", &middles, &smalls);
    report.compare(&format!("services-load-{large}:ours-at-{middle}"), "ms", &larges, &middles);
    let [smalls, middles, larges] = [changes(small)?, changes(middle)?, changes(large)?];
    report.compare(&format!("services-change-at-{middle}:ours-at-{small}"), "ms", &middles, &smalls);
    report.compare(&format!("services-change-at-{large}:ours-at-{middle}"), "ms", &larges, &middles);
    let worst = |samples: &[f64]| vec![percentile(samples, 99)];
    report.compare(
        &format!("services-change-p99-at-{large}:ours-at-{middle}"),
        "ms",
        &worst(&larges),
        &worst(&middles),
    );
    let memory = [resident(small)?, resident(middle)?, resident(large)?];
    report.compare(&format!("services-memory-{middle}:ours-at-{small}"), "MiB", &[memory[1]], &[memory[0]]);
    report.compare(&format!("services-memory-{large}:ours-at-{middle}"), "MiB", &[memory[2]], &[memory[1]]);
    Ok(())
}

fn percentile(samples: &[f64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
        .get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

/// The cluster IP of a Service.
fn cluster_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from((10 << 24) + (96 << 16) + number)
}

/// An endpoint of a Service.
fn endpoint(number: u32, index: u32) -> Ipv4Addr {
    Ipv4Addr::from((10 << 24) + (128 << 16) + number * 4 + index)
}

fn name(number: u32) -> ObjectName {
    ObjectName::new("bench", &format!("service-{number}"))
}

fn port(number: u16) -> Result<Port> {
    Port::try_from(i64::from(number)).context("not a port")
}

/// A Service with port 80.
fn service(number: u32) -> Result<(Key, Arc<Object>)> {
    let ports =
        [ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: port(80)?, node_port: None }];
    let service = Service { cluster_ips: [IpAddr::V4(cluster_ip(number))].into(), ports: ports.into() };
    Ok((Key { kind: Kind::Service, name: name(number) }, Arc::new(Object::Service(service))))
}

/// Its endpoints, at port 8080.
fn slice(number: u32, endpoints: u32) -> Result<(Key, Arc<Object>)> {
    let state =
        EndpointState { ready: true, serving: true, terminating: false, here: number.is_multiple_of(50) };
    let endpoint = |index| Endpoint { address: endpoint(number, index).into(), state };
    let ports = [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: port(8080)? }];
    let part = Part { ports: ports.into(), endpoints: (0..endpoints).map(endpoint).collect() };
    let slice = Slice { service: name(number), legacy: false, parts: [part].into() };
    Ok((Key { kind: Kind::EndpointSlice, name: name(number) }, Arc::new(Object::Slice(slice))))
}

/// A proxy without its shell.
struct Proxy {
    catalog: Catalog,
    state: State,
    socket: nft::Socket,
}

impl Proxy {
    fn new(node: &Netns, size: u32) -> Result<Self> {
        let mut catalog = Catalog::default();
        for number in 0..size {
            for (key, object) in [service(number)?, slice(number, 2)?] {
                catalog.set(key, Some(object));
            }
        }
        let config = Config {
            family: Family::Ip,
            pod_ranges: vec!["10.128.0.0/9".parse()?],
            node_ports: NodePorts::At([].into()),
            masquerade_all: false,
        };
        Ok(Self { catalog, state: State::new(config), socket: node.inside(nft::Socket::open)?? })
    }

    /// From the objects to the last acknowledgement.
    fn load(&mut self) -> Result<()> {
        self.state.sync_with(&mut self.catalog, &mut Found::default(), Duration::ZERO);
        for transaction in delta::transactions(&self.state.table(), None) {
            self.socket.commit(&transaction)?;
        }
        Ok(())
    }

    /// One Service has so many endpoints now.
    fn change(&mut self, number: u32, endpoints: u32, now: Duration) -> Result<()> {
        let (key, object) = slice(number, endpoints)?;
        self.catalog.set(key, Some(object));
        let delta = self.state.sync(&mut self.catalog, now);
        for transaction in delta.into_transactions(self.state.config()) {
            self.socket.commit(&transaction)?;
        }
        Ok(())
    }
}

/// The first load of that many Services.
fn load(size: u32) -> Result<Duration> {
    let node = Netns::new()?;
    let mut proxy = Proxy::new(&node, size)?;
    let begun = Instant::now();
    proxy.load()?;
    Ok(begun.elapsed())
}

/// One endpoint comes or goes, in milliseconds each, while there are that many Services.
fn changes(size: u32) -> Result<Vec<f64>> {
    let node = Netns::new()?;
    let mut proxy = Proxy::new(&node, size)?;
    proxy.load()?;
    let (mut samples, start) = (Vec::new(), Instant::now());
    for change in 0..CHANGES {
        let number = (change * 7919) % size;
        for endpoints in [3, 2] {
            let begun = Instant::now();
            proxy.change(number, endpoints, start.elapsed())?;
            samples.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
    }
    let front = Front::Cluster(cluster_ip(0).into(), Protocol::Tcp, port(80)?);
    let rows = &proxy.state.behind(&front).context("a Service is gone")?.rows;
    anyhow::ensure!(rows[0].0 == SocketAddr::new(endpoint(0, 0).into(), 8080), "a wrong endpoint");
    Ok(samples)
}

/// The resident memory of the program at rest with that many Services, in MiB.
fn resident(size: u32) -> Result<f64> {
    let (node, dir) = (Netns::new()?, TempDir::new("bench-services")?);
    let mut text = String::new();
    for number in 0..size {
        let [ip, first, second] = [cluster_ip(number), endpoint(number, 0), endpoint(number, 1)];
        text += &format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{{\"namespace\":\"bench\",\"name\":\"service-{number}\"}},\
             \"spec\":{{\"clusterIP\":\"{ip}\",\"ports\":[{{\"name\":\"http\",\"port\":80}}]}}}}\n\
             {{\"apiVersion\":\"discovery.k8s.io/v1\",\"kind\":\"EndpointSlice\",\"addressType\":\"IPv4\",\
             \"metadata\":{{\"namespace\":\"bench\",\"name\":\"service-{number}\",\
             \"labels\":{{\"kubernetes.io/service-name\":\"service-{number}\"}}}},\
             \"ports\":[{{\"name\":\"http\",\"port\":8080}}],\
             \"endpoints\":[{{\"addresses\":[\"{first}\"],\"nodeName\":\"x\"}},{{\"addresses\":[\"{second}\"],\"nodeName\":\"x\"}}]}}\n"
        );
    }
    let manifest = dir.write("services.json", text)?;
    let program = Cmd::new("").arg(bin("weft-proxy").display().to_string());
    let status = dir.path().join("status.json");
    let flags = format!(
        "--from file:{} --hostname-override n1 --status-file {}",
        manifest.display(),
        status.display()
    );
    let mut proxy = Process::spawn(&node.wrap(program.args(flags.split(' '))), dir.path().join("log"))?;
    proxy.wait_for_log("ruleset is in place", Duration::from_secs(60))?;
    eventually(Duration::from_secs(60), || status.exists().then_some(())).context("no status file")?;
    std::thread::sleep(Duration::from_secs(2)); // until the second look at the table is over
    let memory = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid()))?;
    let line = memory.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib / 1024.0)
}

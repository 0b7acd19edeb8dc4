//! What `make demo` does: a cluster of three nodes is built, shown, judged from outside, and broken.

mod breaks;
mod faults;
mod reach;
mod report;
mod services;

pub use breaks::Fault;
pub use report::UNMEASURED;
pub use services::serve;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use testkit::lab::{Lab, Plan};
use testkit::{Process, eventually};

use report::Report;
use services::Pods;

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Leave the cluster up.
    pub keep: bool,
    /// Leave out what takes long: repairs, kills, outages.
    pub quick: bool,
    /// Break the cluster first and judge only what should notice it.
    pub fault: Option<Fault>,
}

impl Options {
    /// Reads the command line.
    ///
    /// # Errors
    /// At an unknown word.
    pub fn parse(words: &[String], keep: bool) -> Result<Self> {
        let mut options = Self { keep, ..Self::default() };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--quick" => options.quick = true,
                "--break" => {
                    let fault = words.next().context("--break wants the name of a fault")?;
                    options.fault = Some(fault.parse()?);
                    options.quick = true;
                }
                _ => bail!("unknown argument {word}: there are --quick and --break <fault>"),
            }
        }
        Ok(options)
    }
}

/// The cluster while the demo judges it.
struct Cluster {
    lab: Lab,
    pods: Pods,
    /// Those of myweb first, in the order of the nodes.
    servers: Vec<Process>,
}

/// Runs the demo; the answer is whether every check passed.
///
/// # Errors
/// When the cluster can't be built.
pub fn run(options: &Options) -> Result<bool> {
    let start = Instant::now();
    let mut cluster = build(options.keep)?;
    let mut report = options.fault.map_or_else(Report::default, |fault| Report::only(fault.noticed_by()));
    if let Some(fault) = options.fault {
        println!("\nBreaking it: {fault}");
        breaks::apply(fault, &mut cluster)?;
    }
    println!("\nWho reaches whom");
    reach::judge(&cluster, &mut report);
    if !options.quick {
        println!("\nWhat was removed comes back");
        faults::repairs(&cluster, &mut report);
        println!("\nKills and outages with traffic running");
        faults::outages(&mut cluster, &mut report);
    }
    println!("\n{}", report.table());
    println!("({:.0} s)", start.elapsed().as_secs_f64());
    if options.keep {
        look_around(&cluster);
    }
    Ok(report.passed())
}

fn build(keep: bool) -> Result<Cluster> {
    println!("Three nodes on a bridge, an etcd, a machine outside; node3 has no default route");
    let plan = Plan { without_default_route: vec![2], keep, ..Plan::default() };
    let config = plan.config.clone().unwrap_or_default();
    let mut lab = Lab::new(plan)?;
    println!("  etcdctl put /atomic.io/network/config '{config}'");
    lab.start_overlay(Duration::from_secs(30))?;
    println!("\nLeases in etcd");
    for (key, value) in lab.etcd.list(&lab.underlay, "/atomic.io/network/subnets")? {
        println!("  {key}  {value}");
    }
    println!("\nPods, made by executing the CNI plugin");
    let pods = Pods::make(&lab)?;
    for pod in pods.all() {
        println!("  {:6} {:8} {}", pod.name, lab.nodes[pod.node].name(), pod.address);
    }
    let servers = services::start_servers(&lab, &pods)?;
    services::write_manifests(&lab, &pods)?;
    println!("\nServices");
    println!("  myweb      {} nodePort {}", services::MYWEB, services::NODE_PORT);
    println!("  kubernetes {}", services::KUBERNETES);
    println!("  kube-dns   {} (UDP and TCP)", services::DNS);
    for index in 0..lab.nodes.len() {
        lab.start_proxy(index)?;
    }
    for node in &lab.nodes {
        let serving = || {
            let listed = node.cmd("nft list ruleset").run().ok()?;
            listed.stdout.contains(&services::DNS.ip().to_string()).then_some(())
        };
        eventually(Duration::from_secs(10), serving)
            .with_context(|| format!("weft-proxy wrote no Service on {}:\n{}", node.name(), node.logs()))?;
    }
    Ok(Cluster { lab, pods, servers })
}

fn look_around(cluster: &Cluster) {
    let lab = &cluster.lab;
    println!("\nIt stays up (KEEP=1). To look around:");
    let spaces = lab.nodes.iter().map(|node| &node.space).chain([&lab.outside, &lab.underlay]);
    for space in spaces {
        println!("  {:9} nsenter -t {} -n -m -u bash", space.name(), space.pid());
    }
    let pod = &cluster.pods.web[0];
    let node = &lab.nodes[pod.node].space;
    println!("  {:9} nsenter -t {} -n -m -u ip netns exec {} bash", pod.name, node.pid(), pod.name);
    println!(
        "  leases    nsenter -t {} -n etcdctl --endpoints={} get --prefix /",
        lab.underlay.pid(),
        lab.etcd.endpoints()
    );
    println!("  logs and manifests in {}", lab.dir.path().display());
    let programs =
        lab.nodes.iter().flat_map(|node| [&node.flanneld, &node.proxy]).flatten().map(Process::pid);
    let spaces = lab.nodes.iter().map(|node| &node.space).chain([&lab.outside, &lab.underlay]);
    let all = programs
        .chain(cluster.servers.iter().map(Process::pid))
        .chain(lab.etcd.pids())
        .chain(spaces.map(testkit::Space::pid));
    let all: Vec<_> = all.map(|pid| pid.to_string()).collect();
    println!("To remove it:\n  kill -9 {}; rm -r {}", all.join(" "), lab.dir.path().display());
}

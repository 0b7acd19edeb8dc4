//! Who reaches whom: pods, nodes, Services, and the world outside.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, Result};
use testkit::lab::{Node, Pod};
use testkit::{Cmd, Process, Ran};

use super::Cluster;
use super::report::{Judged, Report};
use super::services::{DNS, KUBERNETES, MYWEB, NODE_PORT, OUTSIDE};

/// Names of the checks that a fault is to be noticed by.
pub(super) const EVERY_PAIR: &str = "every pod to every pod";
pub(super) const CAPTURED: &str = "packets between nodes are VXLAN, VNI 1";
pub(super) const SPREAD: &str = "spread over three endpoints";
pub(super) const HAIRPIN: &str = "a pod reaches itself through its Service";
pub(super) const MASQUERADED: &str = "pod to outside is masqueraded";

/// Connections for the check of the spread, and how many each of three endpoints may get.
const CONNECTIONS: u32 = 900;
const SHARE: std::ops::RangeInclusive<u32> = 240..=360;

pub(super) fn judge(cluster: &Cluster, report: &mut Report) {
    report.check(EVERY_PAIR, || every_pair(cluster));
    report.check(CAPTURED, || captured(cluster));
    let pods: Vec<_> = cluster.pods.all().map(Place::Pod).collect();
    let nodes: Vec<_> = cluster.lab.nodes.iter().map(Place::Node).collect();
    for (who, places) in [("pods", &pods), ("nodes", &nodes)] {
        for (name, at, by) in
            [("myweb", MYWEB, "web"), ("kubernetes", KUBERNETES, "api"), ("kube-dns over TCP", DNS, "dns")]
        {
            report.check(format!("{who} to {name}"), || each(places, &curl(at), by));
        }
        report.check(format!("{who} to kube-dns over UDP"), || each(places, &datagram(DNS), "dns"));
    }
    report.check("outside to the NodePort of every node", || node_ports(cluster));
    report.check(SPREAD, || spread(cluster));
    report.check(HAIRPIN, || hairpin(cluster));
    report.check(MASQUERADED, || masqueraded(cluster, 0));
    report.check("the same without a default route", || masqueraded(cluster, 2));
}

/// Where a command runs.
#[derive(Clone, Copy)]
enum Place<'a> {
    Pod(&'a Pod),
    Node(&'a Node),
}

impl Place<'_> {
    fn name(self) -> String {
        match self {
            Self::Pod(pod) => pod.name.clone(),
            Self::Node(node) => node.name().to_owned(),
        }
    }

    fn run(self, cmd: &Cmd) -> Result<Ran> {
        match self {
            Self::Pod(pod) => pod.wrap(cmd.clone()).run(),
            Self::Node(node) => node.space.wrap(cmd.clone()).run(),
        }
    }
}

/// Asks a web server for one line.
fn curl(at: SocketAddrV4) -> Cmd {
    Cmd::new(format!("curl -sS -m 2 http://{at}/"))
}

/// Sends one datagram and waits for the answer, with nothing but bash.
fn datagram(at: SocketAddrV4) -> Cmd {
    let (ip, port) = (at.ip(), at.port());
    Cmd::shell(format!(
        "exec 3<>/dev/udp/{ip}/{port}; echo hi >&3; timeout 2 dd bs=512 count=1 status=none <&3"
    ))
}

pub(super) fn every_pair(cluster: &Cluster) -> Result<Judged> {
    let (mut good, mut total, mut shown) = (0, 0, None);
    for from in cluster.pods.all() {
        for to in cluster.pods.all().filter(|to| to.name != from.name) {
            total += 1;
            let ran = from.cmd(format!("ping -n -c 1 -W 1 {}", to.address)).run()?;
            good += u32::from(ran.success());
            // A failure is worth more than a success.
            if shown.is_none() || !ran.success() {
                shown = Some((from.name.clone(), ran));
            }
        }
    }
    let (place, ran) = shown.context("there are no pods")?;
    let line = ran.line_with("packets transmitted");
    Ok(Judged::by(good == total, format!("{good} of {total}"), &place, &ran, line))
}

/// Lets every place run the command; each has to get an answer by a server whose name begins so.
fn each(places: &[Place<'_>], cmd: &Cmd, by: &str) -> Result<Judged> {
    let (mut good, mut shown) = (0, None);
    for place in places {
        let ran = place.run(cmd)?;
        let answered = ran.success() && ran.stdout.starts_with(by);
        good += usize::from(answered);
        if shown.is_none() || !answered {
            shown = Some((place.name(), ran));
        }
    }
    let (place, ran) = shown.context("nobody to ask")?;
    Ok(Judged::by(good == places.len(), format!("{good} of {}", places.len()), &place, &ran, None))
}

/// Catches one packet on the underlay, from a pod on node2 to one on node1.
fn captured(cluster: &Cluster) -> Result<Judged> {
    let (from, to) = (&cluster.pods.web[1], &cluster.pods.web[0]);
    let outer = (cluster.lab.nodes[1].address, cluster.lab.nodes[0].address);
    let line = format!(
        "tcpdump -n -l -i br0 -T vxlan -c 1 src host {} and dst host {} and udp port 8472",
        outer.0, outer.1
    );
    let log = cluster.lab.dir.path().join("tcpdump.log");
    let mut dump: Process = cluster.lab.underlay.spawn(Cmd::new(line), &log)?;
    dump.wait_for_log("listening on", Duration::from_secs(5))?;
    from.cmd(format!("ping -n -c 2 -W 1 {}", to.address)).run()?;
    // Nothing may have come: what was caught so far is judged then.
    let _ = dump.wait(Duration::from_secs(3));
    let log = dump.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("vni") || line.contains("ICMP")).collect();
    let outer = (format!("IP {}.", outer.0), format!("> {}.8472: VXLAN", outer.1));
    let inner = format!("IP {} > {}: ICMP echo request", from.address, to.address);
    let is_outer =
        |line: &str| line.contains(&outer.0) && line.contains(&outer.1) && line.ends_with(", vni 1");
    let pass = matches!(*lines, [first, second] if is_outer(first) && second.starts_with(&inner));
    println!("    {}", lines.join("\n    "));
    Ok(Judged {
        pass,
        measured: if pass {
            "VNI 1, outer addresses are the nodes', inner ones the pods'"
        } else {
            "not seen"
        }
        .to_owned(),
        command: format!("underlay# {}", dump.shown()),
        line: if lines.is_empty() { log.trim().to_owned() } else { lines.join("\n") },
    })
}

fn node_ports(cluster: &Cluster) -> Result<Judged> {
    let (mut good, mut shown) = (0, None);
    for node in &cluster.lab.nodes {
        let ran = cluster.lab.outside.wrap(curl(SocketAddrV4::new(node.address, NODE_PORT))).run()?;
        let answered = ran.success() && ran.stdout.starts_with("web");
        good += usize::from(answered);
        if shown.is_none() || !answered {
            shown = Some(ran);
        }
    }
    let ran = shown.context("there are no nodes")?;
    let nodes = cluster.lab.nodes.len();
    Ok(Judged::by(good == nodes, format!("{good} of {nodes}"), "outside", &ran, None))
}

fn spread(cluster: &Cluster) -> Result<Judged> {
    let from = &cluster.pods.plain[2];
    let line =
        format!("curl -sS -m 2 'http://{MYWEB}/[1-{CONNECTIONS}]' 2>&1 | cut -d' ' -f1 | sort | uniq -c");
    let ran = from.wrap(Cmd::shell(line).limit(Duration::from_secs(120))).run()?;
    let counts: Vec<_> = ran.stdout.lines().map(str::trim).collect();
    let of_web = counts.iter().filter_map(|line| line.split_once(" web"));
    let shares: Vec<u32> = of_web.filter_map(|(count, _)| count.parse().ok()).collect();
    let pass = shares.len() == 3
        && shares.iter().sum::<u32>() == CONNECTIONS
        && shares.iter().all(|n| SHARE.contains(n));
    let measured = format!("{shares:?} of {CONNECTIONS} (each {} to {})", SHARE.start(), SHARE.end());
    Ok(Judged::by(pass, measured, &from.name, &ran, Some(&counts.join(", "))))
}

fn hairpin(cluster: &Cluster) -> Result<Judged> {
    let from = &cluster.pods.web[0];
    let cmd = Cmd::new("curl -sS -m 1").arg(format!("http://{MYWEB}/[1-30]")).limit(Duration::from_secs(60));
    let ran = from.wrap(cmd).run()?;
    let answered = ran.stdout.lines().count();
    let itself = ran.stdout.lines().filter(|line| line.starts_with(&from.name)).count();
    let pass = answered == 30 && itself > 0;
    let line = ran.line_with(&from.name).map(str::to_owned);
    let line = if pass { line } else { ran.stderr.lines().next().map(str::to_owned) };
    let measured = format!("{answered} of 30 answered, {itself} by itself");
    Ok(Judged::by(pass, measured, &from.name, &ran, line.as_deref()))
}

/// The machine outside has no route to the pods: it answers only who comes with the node's address.
fn masqueraded(cluster: &Cluster, index: usize) -> Result<Judged> {
    let (from, node) = (&cluster.pods.web[index], &cluster.lab.nodes[index]);
    let ran = from.wrap(curl(OUTSIDE)).run()?;
    let pass = ran.stdout.trim() == format!("outside {}", node.address);
    let seen = ran.stdout.trim().rsplit(' ').next().filter(|seen| !seen.is_empty()).unwrap_or("nothing");
    let measured = format!("outside sees {seen}, {} is {}", node.name(), node.address);
    Ok(Judged::by(pass, measured, &from.name, &ran, None))
}

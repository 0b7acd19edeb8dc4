//! What is removed comes back, and nobody notices kills and outages.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use testkit::lab::{Lab, Node};
use testkit::ping::{Pinger, counter};
use testkit::{Cmd, Process, eventually};

use super::Cluster;
use super::breaks::neighbours;
use super::reach::every_pair;
use super::report::{Judged, Report};
use super::services::MYWEB;
use crate::nft::without_counters;

/// Bars: a removed object is back within, the device with all its peers within.
const OBJECT: Duration = Duration::from_millis(200);
const DEVICE: Duration = Duration::from_millis(500);
/// At 100 packets per second; the bar is at least 1,000.
const PINGS: u16 = 1100;
/// New connections; the bar is at least 500. At 10 ms and more each they last 6 s at least.
const CONNECTIONS: u32 = 600;
/// How long traffic runs before something is done to the cluster.
const BEFORE: Duration = Duration::from_secs(2);
const WITHOUT_ETCD: Duration = Duration::from_secs(20);
/// As many as are sent before, during and shortly after the time without etcd.
const PINGS_WITHOUT_ETCD: u16 = 2400;

pub(super) fn repairs(cluster: &Cluster, report: &mut Report) {
    let node = &cluster.lab.nodes[0];
    report.check("removed route", || {
        let route = node.overlay_routes()?.first().cloned().context("no route to a peer")?;
        let show = node.cmd(format!("ip route show {route} dev flannel.1"));
        repaired(node, &format!("ip route delete {route} dev flannel.1"), OBJECT, || some_line(&show))
    });
    report.check("removed neighbour", || {
        let (peer, _) = neighbours(node)?.first().cloned().context("no neighbour")?;
        let show = node.cmd(format!("ip neighbour show {peer} dev flannel.1 nud permanent"));
        repaired(node, &format!("ip neighbour delete {peer} dev flannel.1"), OBJECT, || some_line(&show))
    });
    report.check("removed FDB entry", || {
        let entry = fdb(node)?.first().cloned().context("no FDB entry")?;
        let delete = format!("bridge fdb delete {} dev flannel.1 dst {}", entry.0, entry.1);
        repaired(node, &delete, OBJECT, || {
            let back = fdb(node).ok()?.contains(&entry);
            back.then(|| ("bridge fdb show dev flannel.1".to_owned(), format!("{} dst {}", entry.0, entry.1)))
        })
    });
    report.check("removed device, with all its peers", || {
        let held = || -> Result<[Vec<(String, String)>; 3]> {
            let routes = node.overlay_routes()?.into_iter().map(|route| (route, String::new()));
            let mut held = [routes.collect(), neighbours(node)?, fdb(node)?];
            held.iter_mut().for_each(|list| list.sort());
            Ok(held)
        };
        let (before, peers) = (held()?, cluster.lab.nodes.len() - 1);
        if before.iter().any(|list| list.len() != peers) {
            bail!("it does not have a route, a neighbour and an FDB entry for {peers} peers: {before:?}");
        }
        repaired(node, "ip link delete flannel.1", DEVICE, || {
            let whole = held().ok()? == before;
            let routes = before[0].iter().map(|(route, _)| route.as_str()).collect::<Vec<_>>();
            whole.then(|| ("ip route show dev flannel.1".to_owned(), routes.join(", ")))
        })
    });
    for table in ["weft-flannel.1", "weft-proxy"] {
        report.check(format!("removed nft table {table}"), || {
            let show = node.cmd(format!("nft list table ip {table}"));
            let before = without_counters(&show.ok()?.stdout);
            repaired(node, &format!("nft delete table ip {table}"), OBJECT, || {
                let now = show.ok().ok()?;
                let whole = without_counters(&now.stdout) == before;
                let lines = before.lines().count();
                whole.then(|| (now.command, format!("table ip {table} {{ ... {lines} lines as before")))
            })
        });
    }
    report.check("and then every pod to every pod", || every_pair(cluster));
}

/// Removes something by a foreign command, and takes the time until `probe` sees it again: the command and
/// its line.
fn repaired(
    node: &Node,
    remove: &str,
    bar: Duration,
    mut probe: impl FnMut() -> Option<(String, String)>,
) -> Result<Judged> {
    if probe().is_none() {
        bail!("it was not there before it was removed (`{remove}`)");
    }
    node.cmd(remove).ok()?;
    let back = eventually(Duration::from_secs(10), probe);
    let ((command, line), took) = back.with_context(|| format!("not back 10 s after `{remove}`"))?;
    let measured = format!("{} ms (at most {})", took.as_millis(), bar.as_millis());
    let command = format!("{}# {remove}; {command}", node.name());
    Ok(Judged { pass: took <= bar, measured, command, line })
}

/// The command and the first line it prints, if it prints one.
fn some_line(show: &Cmd) -> Option<(String, String)> {
    let ran = show.run().ok()?;
    let line = ran.stdout.lines().find(|line| !line.trim().is_empty())?;
    Some((ran.command.clone(), line.trim().to_owned()))
}

/// Unicast entries of the overlay device: MAC and the node behind it.
fn fdb(node: &Node) -> Result<Vec<(String, String)>> {
    let shown = node.cmd("bridge fdb show dev flannel.1").ok()?.stdout;
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let mac = words.next()?.to_owned();
        Some((mac, words.skip_while(|word| *word != "dst").nth(1)?.to_owned()))
    };
    Ok(shown.lines().filter_map(entry).collect())
}

pub(super) fn outages(cluster: &mut Cluster, report: &mut Report) {
    let nodes = 0..cluster.lab.nodes.len();
    report.check("kill -9 of every flanneld: packets lost", || {
        lost(cluster, PINGS, |lab| {
            lab.nodes.iter_mut().for_each(Node::kill_flanneld);
            Ok(())
        })
    });
    report.check("restart of every flanneld: packets lost", || {
        lost(cluster, PINGS, |lab| nodes.clone().try_for_each(|index| lab.start_flanneld(index)))
    });
    proxies(cluster, report, "kill -9", |lab| {
        lab.nodes.iter_mut().for_each(Node::kill_proxy);
        Ok(())
    });
    proxies(cluster, report, "restart", |lab| nodes.clone().try_for_each(|index| lab.start_proxy(index)));
    report.check("20 s without etcd: packets lost", || {
        let before = cluster.lab.etcd.list(&cluster.lab.underlay, &cluster.lab.plan.prefix)?;
        let judged = lost(cluster, PINGS_WITHOUT_ETCD, |lab| {
            lab.etcd.kill_all();
            std::thread::sleep(WITHOUT_ETCD);
            lab.etcd.revive(&lab.underlay)
        })?;
        let after = cluster.lab.etcd.list(&cluster.lab.underlay, &cluster.lab.plan.prefix)?;
        if keys(&before) != keys(&after) {
            bail!("leases changed: {:?} before, {:?} after", keys(&before), keys(&after));
        }
        Ok(judged)
    });
    report.check("after all of it: programs that ended by themselves", || survivors(cluster));
}

/// What packets and new connections notice of `work` done to every weft-proxy.
fn proxies(
    cluster: &mut Cluster,
    report: &mut Report,
    what: &str,
    work: impl FnOnce(&mut Lab) -> Result<()>,
) {
    let mut connections = None;
    report.check(format!("{what} of every weft-proxy: packets lost"), || {
        connections = Some(Connections::start(cluster, what)?);
        lost(cluster, PINGS, work)
    });
    report.check(format!("{what} of every weft-proxy: new connections failed"), || {
        connections.take().context("no connections ran")?.judge()
    });
}

fn keys(list: &[(String, String)]) -> Vec<&str> {
    list.iter().map(|(key, _)| key.as_str()).collect()
}

/// Sends echo requests from node1's pod to node2's while `work` is done to the lab.
fn lost(cluster: &mut Cluster, count: u16, work: impl FnOnce(&mut Lab) -> Result<()>) -> Result<Judged> {
    let from = &cluster.pods.web[0];
    let to: Ipv4Addr = cluster.pods.web[1].address;
    let (before, _) = counter(&from.net, "IcmpInEchoReps")?;
    let pinger = Pinger::start(&from.net, to, count)?;
    std::thread::sleep(BEFORE);
    work(&mut cluster.lab)?;
    let pinged = pinger.finish()?;
    let (after, ran) = counter(&from.net, "IcmpInEchoReps")?;
    let answers = after - before;
    let missing = u64::from(pinged.sent).saturating_sub(answers);
    let pass = pinged.sent == count && pinged.lost.is_empty() && missing == 0;
    let measured = format!("{} of {} at 100 per second", pinged.lost.len(), pinged.sent);
    let line = format!("IcmpInEchoReps grew by {answers} to {after}");
    Ok(Judged::by(pass, measured, &from.name, &ran, Some(&line)))
}

/// New connections to myweb, one after the other, each by a `curl` of its own.
struct Connections {
    process: Process,
    place: String,
}

impl Connections {
    /// Starts them; `what` they are to notice is part of their log's name.
    fn start(cluster: &Cluster, what: &str) -> Result<Self> {
        let from = &cluster.pods.plain[2];
        let line = format!(
            "for i in $(seq {CONNECTIONS}); do curl -sS -m 2 http://{MYWEB}/ 2>&1 || echo FAILED; sleep 0.01; done | cut -c1-3 | sort | uniq -c"
        );
        let log = cluster.lab.dir.path().join(format!("connections, {what}.log"));
        let process = Process::spawn(&from.wrap(Cmd::shell(line)), log)?;
        Ok(Self { process, place: from.name.clone() })
    }

    fn judge(mut self) -> Result<Judged> {
        self.process.wait(Duration::from_secs(180))?;
        let log = self.process.log();
        let counts: Vec<_> = log.lines().map(str::trim).collect();
        let answered =
            counts.iter().find_map(|line| line.strip_suffix(" web")?.parse::<u32>().ok()).unwrap_or(0);
        Ok(Judged {
            pass: answered == CONNECTIONS && counts.len() == 1,
            measured: format!("{} of {CONNECTIONS}", CONNECTIONS.saturating_sub(answered)),
            command: format!("{}# {}", self.place, self.process.shown()),
            line: counts.join(", "),
        })
    }
}

fn survivors(cluster: &mut Cluster) -> Result<Judged> {
    let (mut pids, mut gone) = (Vec::new(), Vec::new());
    for node in &mut cluster.lab.nodes {
        for process in [&mut node.flanneld, &mut node.proxy].into_iter().flatten() {
            pids.push(process.pid().to_string());
            if !process.is_running() {
                gone.push(process.shown().to_owned());
            }
        }
    }
    let ran = Cmd::new(format!("ps -o comm= -p {}", pids.join(","))).run()?;
    let line = ran.stdout.split_whitespace().collect::<Vec<_>>().join(", ");
    let measured = format!("{} of {}", gone.len(), pids.len());
    Ok(Judged::by(gone.is_empty() && pids.len() == 6, measured, "this machine", &ran, Some(&line)))
}

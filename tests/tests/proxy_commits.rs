//! Packets that cross a commit: one Service toggles between two and three endpoints while new flows arrive.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use linux::nft;
use proxy_core::adopt::Found;
use proxy_core::catalog::Catalog;
use proxy_core::delta::transactions;
use proxy_core::object::{Key, Object, check};
use proxy_core::state::State;
use proxy_core::tables::{Config, NodePorts};
use proxy_core::wire::Manifest;
use ruleset::{Family, Transaction};
use testkit::{Cmd, Netns, Random, require_or_skip};

/// What the test must at least do, and how long it may take.
const COMMITS: u64 = 10_000;
const FLOWS: u64 = 300_000;
const LIMIT: Duration = Duration::from_secs(180);
/// The Service, and where its endpoints are.
const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 7), 53);

/// A client, a node and a sink that all endpoints' addresses lead to, in a row.
struct Row {
    client: Netns,
    node: Netns,
    sink: Netns,
}

impl Row {
    fn new() -> Result<Self> {
        let row = Self { client: Netns::new()?, node: Netns::new()?, sink: Netns::new()? };
        // Flows that nobody answers must not fill the kernel's table.
        row.node
            .wrap(Cmd::shell(format!(
                "sysctl -qw net.ipv4.ip_forward=1 net.netfilter.nf_conntrack_udp_timeout=1 && \
                 ip link add c type veth peer name eth0 netns {} && ip link add s type veth peer name eth0 netns {} && \
                 ip addr add 10.8.0.1/24 dev c && ip link set c up && ip addr add 10.7.0.1/24 dev s && ip link set s up && \
                 ip route add 10.9.0.0/16 via 10.8.0.2",
                row.client.path().display(),
                row.sink.path().display(),
            )))
            .ok()?;
        let client = "ip addr add 10.8.0.2/24 dev eth0 && ip link set eth0 up && ip route add default via 10.8.0.1 && \
                      ip route add local 10.9.0.0/16 dev lo";
        row.client.wrap(Cmd::shell(client)).ok()?;
        row.sink.wrap(Cmd::shell("ip addr add 10.7.0.2/24 dev eth0 && ip link set eth0 up")).ok()?;
        row.sink
            .wrap(Cmd::new("nft -f -").stdin(
                "table ip sink {\nchain in {\ntype filter hook prerouting priority -400\nip protocol udp drop\n}\n}\n",
            ))
            .ok()?;
        let mac =
            row.sink.cmd("ip -j link show eth0").json()?[0]["address"].as_str().context("mac")?.to_owned();
        for last in 11..14 {
            row.node.cmd(format!("ip neigh replace 10.7.0.{last} lladdr {mac} dev s")).ok()?;
        }
        // Counted behind our translation and in front of our refusal.
        row.node
            .wrap(Cmd::new("nft -f -").stdin(
                "table ip count {\nchain forward {\ntype filter hook forward priority -10\n\
                 ip daddr 10.96.0.7 counter comment \"untranslated\"\n\
                 ip daddr 10.7.0.11-10.7.0.13 counter comment \"delivered\"\n}\n}\n",
            ))
            .ok()?;
        Ok(row)
    }

    fn counted(&self, comment: &str) -> Result<u64> {
        let listed = self.node.cmd("nft -j list chain ip count forward").json()?;
        let rules = listed["nftables"].as_array().context("no rules")?;
        let rule =
            rules.iter().find(|object| object["rule"]["comment"] == comment).context("no such rule")?;
        let counter = rule["rule"]["expr"].as_array().into_iter().flatten().find_map(|e| e.get("counter"));
        counter.and_then(|counter| counter["packets"].as_u64()).context("no counter")
    }
}

/// The objects of Service `dns` with that many endpoints.
fn objects(endpoints: u8) -> BTreeMap<Key, Arc<Object>> {
    let addresses: Vec<_> = (11..11 + endpoints).map(|n| format!("{{addresses: [10.7.0.{n}]}}")).collect();
    let text = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: dns}}, spec: {{clusterIP: {}, \
           ports: [{{port: {}, protocol: UDP}}]}}}}\n---\n\
         {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{name: dns-x, \
           labels: {{kubernetes.io/service-name: dns}}}}, ports: [{{port: 5353, protocol: UDP}}], \
           endpoints: [{}]}}\n",
        VIP.ip(),
        VIP.port(),
        addresses.join(", ")
    );
    read(&text)
}

fn read(text: &str) -> BTreeMap<Key, Arc<Object>> {
    let node = "n1".parse().expect("a node name");
    let read = Manifest::read(text).expect("a manifest").objects;
    let read = read.iter().filter_map(|object| check(object, &node).expect("a good object"));
    read.map(|(key, object)| (key, Arc::new(object))).collect()
}

/// The proxy's state and its connection to the kernel.
struct Proxy {
    state: State,
    catalog: Catalog,
    socket: nft::Socket,
    started: Instant,
    /// All steps of a change in one transaction: rows and front ends change under a packet's feet.
    at_once: bool,
}

impl Proxy {
    fn start(row: &Row, at_once: bool) -> Result<Self> {
        let socket = row.node.inside(nft::Socket::open)??;
        let config = Config {
            family: Family::Ip,
            pod_ranges: Vec::new(),
            node_ports: NodePorts::At([].into()),
            masquerade_all: false,
        };
        let (state, catalog, started) = (State::new(config), Catalog::default(), Instant::now());
        let mut proxy = Self { state, catalog, socket, started, at_once };
        proxy.catalog.replace(&objects(3));
        proxy.state.sync_with(&mut proxy.catalog, &mut Found::default(), Duration::ZERO);
        for transaction in transactions(&proxy.state.table(), None) {
            proxy.socket.commit(&transaction)?;
        }
        Ok(proxy)
    }

    /// Makes the Service have those endpoints; how many commits that took.
    fn change(&mut self, objects: &BTreeMap<Key, Arc<Object>>) -> Result<u64> {
        self.catalog.replace(objects);
        let delta = self.state.sync(&mut self.catalog, self.started.elapsed());
        let mut transactions = delta.into_transactions(self.state.config());
        if self.at_once {
            let mut whole = Transaction::new(Family::Ip, Config::table_name());
            for step in transactions {
                whole.extend(step);
            }
            transactions = vec![whole];
        }
        for transaction in &transactions {
            self.socket.commit(transaction)?;
        }
        Ok(transactions.len() as u64)
    }
}

/// Sends one datagram on each of ever new flows until told to stop. The first `skip` flows are left out.
fn send_flows(client: &Netns, skip: u64, stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    client.inside(|| {
        let sources = (0..=u16::MAX).flat_map(|address| (0..16).map(move |port| (address, 20_000 + port)));
        for (address, port) in sources.skip(usize::try_from(skip)?) {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let [high, low] = address.to_be_bytes();
            let socket = UdpSocket::bind((Ipv4Addr::new(10, 9, high, low), port)).context("bind")?;
            socket.send_to(b"x", VIP).context("send")?;
            sent.fetch_add(1, Ordering::Relaxed);
        }
        anyhow::bail!("ran out of flows")
    })?
}

/// What became of the flows.
#[derive(Debug, Default)]
struct Outcome {
    commits: u64,
    sent: u64,
    untranslated: u64,
    dropped: u64,
}

/// Toggles while flows arrive, until there were enough of both. `before` is what an earlier round came to.
fn toggle(row: &Row, proxy: &mut Proxy, flows: u64, before: &Outcome) -> Result<Outcome> {
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let (two, three) = (objects(2), objects(3));
    let start = Instant::now();
    let commits = std::thread::scope(|scope| {
        let sender = scope.spawn(|| send_flows(&row.client, before.sent, &stop, &sent));
        let work = (|| {
            let mut commits = 0;
            while (commits < COMMITS || sent.load(Ordering::Relaxed) < flows) && start.elapsed() < LIMIT {
                commits += proxy.change(&two)? + proxy.change(&three)?;
                anyhow::ensure!(!sender.is_finished(), "the sender ended early");
            }
            Ok(commits)
        })();
        stop.store(true, Ordering::Relaxed);
        let sender = sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?;
        work.and_then(|commits| sender.map(|()| commits))
    })?;
    std::thread::sleep(Duration::from_millis(200)); // until the last packets have passed
    let (sent, delivered) = (before.sent + sent.into_inner(), row.counted("delivered")?);
    let untranslated = row.counted("untranslated")?;
    let commits = before.commits + commits;
    Ok(Outcome { commits, sent, untranslated, dropped: sent.saturating_sub(delivered + untranslated) })
}

/// As the proxy does it: rows grow before front ends lead to them, and shrink after.
#[test]
fn no_flow_that_crosses_a_commit_is_lost_or_untranslated() -> Result<()> {
    nothing_is_lost(false)
}

/// Even where the steps were one: the fallback to slot 0 catches what crosses the commit.
#[test]
fn the_fallback_to_slot_0_loses_no_flow_even_without_the_steps() -> Result<()> {
    nothing_is_lost(true)
}

fn nothing_is_lost(at_once: bool) -> Result<()> {
    let Some(row) = require_or_skip("network namespaces", Row::new()) else { return Ok(()) };
    let mut proxy = Proxy::start(&row, at_once)?;
    let outcome = toggle(&row, &mut proxy, FLOWS, &Outcome::default())?;
    println!("{outcome:?}");
    assert!(outcome.commits >= COMMITS && outcome.sent >= FLOWS, "not enough in {LIMIT:?}: {outcome:?}");
    assert_eq!((outcome.untranslated, outcome.dropped), (0, 0), "{outcome:?}");
    Ok(())
}

/// Takes the slot-0 rule out of each chain that spreads.
fn without_the_fallback(row: &Row) -> Result<()> {
    for chain in ["spread2", "spread3"] {
        let listed = row.node.cmd(format!("nft -j -a list chain ip weft-proxy {chain}")).json()?;
        let rules = listed["nftables"].as_array().context("no rules")?;
        let handles: Vec<_> = rules.iter().filter_map(|object| object["rule"]["handle"].as_u64()).collect();
        anyhow::ensure!(handles.len() == 3, "{chain}: {listed}");
        row.node.cmd(format!("nft delete rule ip weft-proxy {chain} handle {}", handles[1])).ok()?;
    }
    Ok(())
}

/// The test above notices what it is there for: with the slot-0 rules taken out it fails.
#[test]
fn without_the_fallback_to_slot_0_flows_are_lost() -> Result<()> {
    let Some(row) = require_or_skip("network namespaces", Row::new()) else { return Ok(()) };
    let mut proxy = Proxy::start(&row, true)?;
    proxy.change(&objects(2))?;
    proxy.change(&objects(3))?;
    without_the_fallback(&row)?;
    let mut outcome = Outcome::default();
    while outcome.sent < FLOWS && outcome.untranslated + outcome.dropped == 0 {
        outcome = toggle(&row, &mut proxy, FLOWS / 10, &outcome)?;
    }
    println!("{outcome:?}");
    assert!(outcome.untranslated + outcome.dropped > 0, "nothing was lost: {outcome:?}");
    Ok(())
}

/// Several Services with random endpoints.
fn some_objects(random: &mut Random) -> BTreeMap<Key, Arc<Object>> {
    let mut text = String::new();
    for service in 1..8 {
        if random.number().is_multiple_of(4) {
            continue;
        }
        let endpoints: Vec<_> = (1..6)
            .filter(|_| random.number().is_multiple_of(2))
            .map(|n| format!("{{addresses: [10.7.{service}.{n}]}}"))
            .collect();
        let node_port = if random.number().is_multiple_of(2) { 30_000 + service } else { 0 };
        write!(
            text,
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: s{service}}}, spec: {{type: NodePort, \
               clusterIP: 10.96.0.{service}, ports: [{{name: a, port: 80, nodePort: {node_port}}}, \
               {{name: b, port: 53, protocol: UDP}}]}}}}\n---\n\
             {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{name: \
               s{service}-x, labels: {{kubernetes.io/service-name: s{service}}}}}, ports: [{{name: a, port: 8080}}, \
               {{name: b, port: 5353, protocol: UDP}}], endpoints: [{}]}}\n",
            endpoints.join(", ")
        )
        .expect("text");
    }
    read(&text)
}

/// What the pure side says that the kernel holds is what it holds, after each of many random changes.
#[test]
fn the_kernel_holds_what_the_model_says() -> Result<()> {
    let Some(row) = require_or_skip("network namespaces", Row::new()) else { return Ok(()) };
    let mut random = Random::printed();
    let mut proxy = Proxy::start(&row, false)?;
    let mut model = None;
    ruleset::apply(&mut model, &Transaction::create(&proxy.state.table()))?;
    let mut now = Duration::ZERO;
    for _ in 0..300 {
        now += random.below(Duration::from_secs(3));
        proxy.catalog.replace(&some_objects(&mut random));
        let delta = proxy.state.sync(&mut proxy.catalog, now);
        for transaction in delta.into_transactions(proxy.state.config()) {
            proxy.socket.commit(&transaction)?;
            ruleset::apply(&mut model, &transaction)?;
        }
        let held = proxy.socket.table(Family::Ip, &Config::table_name())?.context("no table")?;
        let held = held.without_handles();
        assert_eq!(Some(&held), model.as_ref());
        let rest = transactions(&proxy.state.table(), Some(&held));
        assert!(rest.is_empty(), "not as wanted: {rest:?}");
    }
    Ok(())
}

//! Packets that cross a commit: one Service toggles between two and three endpoints while new flows arrive.
//!
//! ```text
//! CPU 0   the node's own new flows:     frontends ... (a slow packet for somebody else) ... endpoints
//! CPU 1   commits without a pause:      to 3 | to 2 | shrink | grow | to 3 | to 2 | shrink | grow | to 3
//!         the client's new flows; the slow packets' sender
//! ```
//!
//! A flow is lost only if both commits of a shrink fall between the two lookups of its first packet. The lookups
//! are less than a microsecond apart, and the commits some twenty. So an interrupt has to part the lookups: a
//! packet comes in on the same CPU, and its way through another namespace's rules takes longer than the commits.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use testkit::{Cmd, Netns, Random, require_or_skip};

/// What the test must at least do, and how long it may take.
const COMMITS: u64 = 10_000;
const FLOWS: u64 = 300_000;
const LIMIT: Duration = Duration::from_secs(180);
/// The Service.
const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 7), 53);
/// Where slow packets go.
const SLOW: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 8, 0, 2), 9);
/// How often one comes, and how often each of four levels of rules in its way leads to the one below: together
/// that takes about half of a CPU's time.
const PAUSE: Duration = Duration::from_micros(400);
const FAN_OUT: usize = 13;

/// A node and a client.
struct Pair {
    node: Netns,
    client: Netns,
}

impl Pair {
    fn new() -> Result<Self> {
        let pair = Self { node: Netns::new()?, client: Netns::new()? };
        let client = pair.client.path().display();
        pair.node
            .wrap(Cmd::shell(format!(
                "sysctl -qw net.ipv4.ip_forward=1 && ip link add c type veth peer name eth0 netns {client} && \
                 ip addr add 10.8.0.1/24 dev c && ip link set c up && ip route add default via 10.8.0.2"
            )))
            .ok()?;
        let client =
            "ip addr add 10.8.0.2/24 dev eth0 && ip link set eth0 up && ip route add default via 10.8.0.1";
        pair.client.wrap(Cmd::shell(client)).ok()?;
        // Counted behind our translation and in front of our refusal. Conntrack forgets what goes no further.
        let counts = "table ip count {\ncounter untranslated { }\ncounter delivered { }\nchain count {\n\
             ip daddr 10.96.0.7 counter name untranslated drop\n\
             ip daddr 10.7.0.0/24 counter name delivered drop\n}\n\
             chain forward {\ntype filter hook forward priority -10\njump count\n}\n\
             chain output {\ntype filter hook output priority -10\njump count\n}\n}\n";
        pair.node.wrap(Cmd::new("nft -f -").stdin(counts)).ok()?;
        Ok(pair)
    }

    fn counted(&self, counter: &str) -> Result<u64> {
        let listed = self.node.cmd(format!("nft -j list counter ip count {counter}")).json()?;
        let objects = listed["nftables"].as_array().context("no objects")?;
        objects.iter().find_map(|object| object["counter"]["packets"].as_u64()).context("no counter")
    }

    /// Lets what the client receives at [`SLOW`] pass a great many rules, on that CPU.
    fn slow_down(&self, cpu: usize) -> Result<()> {
        let mut chains = format!("chain level0 {{\n{}}}\n", "ip saddr 192.0.2.1 drop\n".repeat(FAN_OUT));
        for level in 1..4 {
            let jumps = format!("jump level{}\n", level - 1).repeat(FAN_OUT);
            writeln!(chains, "chain level{level} {{\n{jumps}}}")?;
        }
        let rules = format!(
            "table ip slow {{\n{chains}chain in {{\ntype filter hook prerouting priority -500\n\
             udp dport {} jump level3\nudp dport {} drop\n}}\n}}\n",
            SLOW.port(),
            SLOW.port()
        );
        self.client.wrap(Cmd::new("nft -f -").stdin(rules)).ok()?;
        let mask = format!("{:x}{}", 1_u32 << (cpu % 32), ",00000000".repeat(cpu / 32));
        let steer =
            format!("mount -t sysfs sysfs /sys && echo {mask} > /sys/class/net/eth0/queues/rx-0/rps_cpus");
        self.client.wrap(Cmd::new("unshare -m bash -c").arg(steer)).ok()?;
        Ok(())
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
    /// How fast time passes.
    speed: u32,
}

impl Proxy {
    fn start(node: &Netns) -> Result<Self> {
        let socket = node.inside(nft::Socket::open)??;
        let config = Config {
            family: Family::Ip,
            pod_ranges: vec!["10.8.0.0/14".parse()?],
            node_ports: NodePorts::At([].into()),
            masquerade_all: false,
        };
        let (state, catalog, started) = (State::new(config), Catalog::default(), Instant::now());
        let mut proxy = Self { state, catalog, socket, started, speed: 1 };
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
        let mut commits = 0;
        // Once for the change, and once for what waited for a pass without one.
        for _ in 0..2 {
            let delta = self.state.sync(&mut self.catalog, self.started.elapsed() * self.speed);
            for transaction in delta.into_transactions(self.state.config()) {
                self.socket.commit(&transaction)?;
                commits += 1;
            }
        }
        Ok(commits)
    }
}

/// Keeps this thread on one CPU.
fn pin(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).context("failed to stay on one CPU")
}

/// Two CPUs that this process may use.
fn two_cpus() -> Result<[usize; 2]> {
    let allowed = sched_getaffinity(None)?;
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    Ok([cpus.next().context("no CPU")?, cpus.next().context("only one CPU")?])
}

/// What the threads of a round share.
#[derive(Default)]
struct Round {
    stop: AtomicBool,
    sent: AtomicU64,
}

impl Round {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Works in a namespace on one CPU. Whoever ends, ends the round.
    fn run(&self, netns: &Netns, cpu: usize, work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
        let ended = netns.inside(|| pin(cpu).and_then(|()| work()));
        self.stop.store(true, Ordering::Relaxed);
        ended?
    }

    /// Sends the first packet of ever new flows from sources in 10.`net`.0.0/16, with a `pause` now and then.
    fn send_flows(&self, net: u8, pause: Duration) -> Result<()> {
        let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW))?;
        for flow in 0_u32.. {
            if !self.goes_on() {
                break;
            }
            let [p, q, x, y] = flow.wrapping_add(20_000 << 16).to_be_bytes();
            // The kernel fills in the header's checksum; 0 stands for none in UDP.
            let header = [0x45, 0, 0, 29, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, net, x, y, 10, 96, 0, 7];
            let packet = [&header[..], &[p, q, 0, 53, 0, 9, 0, 0, b'x']].concat();
            match sendto(&raw, &packet, SendFlags::empty(), &VIP) {
                Ok(_) | Err(Errno::PERM) => self.sent.fetch_add(1, Ordering::Relaxed), // a rule dropped it
                Err(errno) => return Err(errno).context("failed to send"),
            };
            if flow.is_multiple_of(16) && !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
        Ok(())
    }

    /// Sends what takes the other CPU a while to receive.
    fn send_slow(&self) -> Result<()> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        while self.goes_on() {
            socket.send_to(b"x", SLOW)?;
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

/// What became of the flows.
#[derive(Debug, Default)]
struct Outcome {
    commits: u64,
    sent: u64,
    untranslated: u64,
    dropped: u64,
}

/// Gives the Service these numbers of endpoints, without a pause while flows arrive, until there were enough of
/// both.
fn toggle(pair: &Pair, proxy: &mut Proxy, counts: &[u8], [first, second]: [usize; 2]) -> Result<Outcome> {
    let Pair { node, client } = pair;
    let (round, start) = (Round::default(), Instant::now());
    let states: Vec<_> = counts.iter().map(|count| objects(*count)).collect();
    let mut commits = 0;
    let mut commit = || {
        let sent = || round.sent.load(Ordering::Relaxed);
        while (commits < COMMITS || sent() < FLOWS) && round.goes_on() && start.elapsed() < LIMIT {
            for state in &states {
                commits += proxy.change(state)?;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads = [
            scope.spawn(|| round.run(node, first, || round.send_flows(10, Duration::ZERO))),
            scope.spawn(|| round.run(client, second, || round.send_flows(9, Duration::from_millis(1)))),
            scope.spawn(|| round.run(node, second, || round.send_slow())),
            scope.spawn(|| round.run(node, second, &mut commit)),
        ];
        let ended = threads.map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        ended.into_iter().collect::<Result<()>>()
    })?;
    std::thread::sleep(Duration::from_millis(200)); // until the last packets have passed
    let (sent, untranslated) = (round.sent.into_inner(), pair.counted("untranslated")?);
    let dropped = sent.saturating_sub(pair.counted("delivered")? + untranslated);
    Ok(Outcome { commits, sent, untranslated, dropped })
}

/// Takes the slot-0 rule out of each chain that spreads.
fn without_the_fallback(node: &Netns) -> Result<()> {
    for chain in ["spread2", "spread3"] {
        let listed = node.cmd(format!("nft -j -a list chain ip weft-proxy {chain}")).json()?;
        let rules = listed["nftables"].as_array().context("no rules")?;
        let handles: Vec<_> = rules.iter().filter_map(|object| object["rule"]["handle"].as_u64()).collect();
        anyhow::ensure!(handles.len() == 3, "{chain}: {listed}");
        node.cmd(format!("nft delete rule ip weft-proxy {chain} handle {}", handles[1])).ok()?;
    }
    Ok(())
}

/// The whole test; `None`: this machine can't run it. `prepare` comes in front of the flows.
fn cross_commits(
    counts: &[u8],
    prepare: impl FnOnce(&Pair, &mut Proxy) -> Result<()>,
) -> Result<Option<Outcome>> {
    // Two of them at once would be in each other's way.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(pair) = require_or_skip("network namespaces", Pair::new()) else { return Ok(None) };
    let Some(cpus) = require_or_skip("two CPUs", two_cpus()) else { return Ok(None) };
    pair.slow_down(cpus[0])?;
    let mut proxy = Proxy::start(&pair.node)?;
    prepare(&pair, &mut proxy)?;
    let outcome = toggle(&pair, &mut proxy, counts, cpus)?;
    println!("{outcome:?}");
    assert!(outcome.commits >= COMMITS && outcome.sent >= FLOWS, "not enough in {LIMIT:?}: {outcome:?}");
    Ok(Some(outcome))
}

#[test]
fn no_flow_that_crosses_a_commit_is_lost_or_untranslated() -> Result<()> {
    let Some(outcome) = cross_commits(&[2, 3], |_, _| Ok(()))? else { return Ok(()) };
    assert_eq!((outcome.untranslated, outcome.dropped), (0, 0), "{outcome:?}");
    Ok(())
}

/// The test above notices what it is there for. Ten to twenty flows are lost, in 300,000; another two rounds are
/// for a machine that has more to do.
#[test]
fn without_the_fallback_to_slot_0_flows_are_lost() -> Result<()> {
    for _ in 0..3 {
        let without = |pair: &Pair, proxy: &mut Proxy| {
            proxy.change(&objects(2))?;
            without_the_fallback(&pair.node)
        };
        let Some(outcome) = cross_commits(&[2, 3], without)? else { return Ok(()) };
        if outcome.untranslated + outcome.dropped > 0 {
            return Ok(());
        }
    }
    anyhow::bail!("nothing was lost")
}

/// Chains come and go, too. Chains that came with the front ends which lead to them would let some flows pass.
#[test]
fn no_flow_that_meets_a_new_chain_is_lost_or_untranslated() -> Result<()> {
    let counts: Vec<u8> = (2..120).chain((2..120).rev()).collect();
    let in_a_hurry = |_: &Pair, proxy: &mut Proxy| {
        proxy.speed = 3000; // a class stays for 20 ms
        Ok(())
    };
    let Some(outcome) = cross_commits(&counts, in_a_hurry)? else { return Ok(()) };
    assert_eq!((outcome.untranslated, outcome.dropped), (0, 0), "{outcome:?}");
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
    let Some(pair) = require_or_skip("network namespaces", Pair::new()) else { return Ok(()) };
    let mut random = Random::printed();
    let mut proxy = Proxy::start(&pair.node)?;
    let mut model = None;
    ruleset::apply(&mut model, &Transaction::create(&proxy.state.table()))?;
    let mut now = Duration::ZERO;
    for _ in 0..300 {
        now += random.below(Duration::from_secs(90));
        proxy.catalog.replace(&some_objects(&mut random));
        let delta = proxy.state.sync(&mut proxy.catalog, now);
        let mut generation = proxy.socket.generation()?;
        for transaction in delta.into_transactions(proxy.state.config()) {
            proxy.socket.commit(&transaction)?;
            ruleset::apply(&mut model, &transaction)?;
            generation += 1;
        }
        assert_eq!(proxy.socket.generation()?, generation, "each transaction makes it larger by one");
        let held = proxy.socket.table(Family::Ip, &Config::table_name())?.context("no table")?;
        let held = held.without_handles();
        assert_eq!(Some(&held), model.as_ref());
        let rest = transactions(&proxy.state.table(), Some(&held));
        assert!(rest.is_empty(), "not as wanted: {rest:?}");
    }
    Ok(())
}

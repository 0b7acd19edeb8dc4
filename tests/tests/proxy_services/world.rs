//! One node with a bridge and pods, a machine outside, and the proxy on the node.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use testkit::traffic::{Answer, Server, ask_tcp};
use testkit::{Cmd, Netns, Process, TempDir, bin, eventually, require_or_skip};

/// The node's address towards the outside.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The node's address on the pods' bridge.
pub(crate) const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
/// The machine outside.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
/// The cluster IP of Service `web`.
pub(crate) const WEB: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 7);
/// The port that endpoints listen on.
pub(crate) const TARGET: u16 = 8080;
/// The node port of Service `web`.
pub(crate) const NODE_PORT: u16 = 30080;
/// How most tests start the proxy.
pub(crate) const USUAL: &str = "run --cluster-cidr 10.244.0.0/16";
/// The longest that a connection may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(2);

/// Everything; it goes with this value.
pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) node: Netns,
    pub(crate) outside: Netns,
    pub(crate) pods: Vec<Netns>,
    pub(crate) proxy: Option<Process>,
    starts: usize,
}

/// The address of a pod.
pub(crate) fn pod_ip(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 1, 10 + u8::try_from(index).unwrap_or(0))
}

impl World {
    /// A node with that many pods, or nothing where this machine does not allow one.
    pub(crate) fn new(name: &str, pods: usize) -> Option<Self> {
        require_or_skip("network namespaces", Self::make(name, pods))
    }

    fn make(name: &str, pods: usize) -> Result<Self> {
        let (node, outside) = (Netns::new()?, Netns::new()?);
        let mut setup = format!(
            "sysctl -qw net.ipv4.ip_forward=1 && ip link add cni0 type bridge && ip link set cni0 up && \
             ip addr add {BRIDGE}/24 dev cni0 && (sysctl -qw net.bridge.bridge-nf-call-iptables=1 || true) && \
             ip link add eth0 type veth peer name eth0 netns {} && ip addr add {NODE}/24 dev eth0 && \
             ip link set eth0 up && ip route add default via {OUTSIDE}",
            outside.path().display()
        );
        let pods = (0..pods).map(|_| Netns::new()).collect::<Result<Vec<_>>>()?;
        for (index, pod) in pods.iter().enumerate() {
            write!(
                setup,
                " && ip link add p{index} type veth peer name eth0 netns {} && \
                 ip link set p{index} master cni0 up && bridge link set dev p{index} hairpin on",
                pod.path().display()
            )?;
        }
        node.wrap(Cmd::shell(setup)).ok()?;
        outside.wrap(Cmd::shell(format!("ip addr add {OUTSIDE}/24 dev eth0 && ip link set eth0 up"))).ok()?;
        for (index, pod) in pods.iter().enumerate() {
            let ip = pod_ip(index);
            let up = format!(
                "ip addr add {ip}/24 dev eth0 && ip link set eth0 up && ip route add default via {BRIDGE}"
            );
            pod.wrap(Cmd::shell(up)).ok()?;
        }
        let dir = TempDir::new(name)?;
        dir.write("manifests/node.yaml", node_manifest())?;
        Ok(Self { dir, node, outside, pods, proxy: None, starts: 0 })
    }

    /// Replaces a manifest in one step, as careful writers do.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<()> {
        let draft = self.dir.write(&format!("manifests/.{name}"), text)?;
        std::fs::rename(draft, self.manifests().join(format!("{name}.yaml"))).context("rename")
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.dir.path().join("manifests")
    }

    /// The program with its usual flags, inside the node.
    pub(crate) fn command(&self, words: &str) -> Cmd {
        let program = Cmd::new("").arg(bin("weft-proxy").display().to_string());
        let status = self.dir.path().join("status.json").display().to_string();
        let from = format!("file:{}", self.manifests().display());
        let program = program.args(words.split_whitespace());
        self.node.wrap(program.args(["--from", &from, "--hostname-override", "n1", "--status-file", &status]))
    }

    /// Starts the proxy, without waiting for anything.
    pub(crate) fn spawn(&mut self, flags: &str) -> Result<()> {
        self.starts += 1;
        let log = self.dir.path().join(format!("proxy{}.log", self.starts));
        self.proxy = Some(Process::spawn(&self.command(flags), log)?);
        Ok(())
    }

    /// Starts the proxy, and waits until its ruleset is in place.
    pub(crate) fn start(&mut self, flags: &str) -> Result<()> {
        self.spawn(flags)?;
        self.proxy().wait_for_log("ruleset is in place", Duration::from_secs(10)).map(drop)
    }

    /// Starts the proxy as most tests want it.
    pub(crate) fn start_usual(&mut self) -> Result<()> {
        self.start(USUAL)
    }

    pub(crate) fn proxy(&mut self) -> &mut Process {
        self.proxy.as_mut().expect("the proxy was started")
    }

    /// A TCP server in each pod, named `pod0` and so on.
    pub(crate) fn tcp_servers(&self) -> Result<Vec<Server>> {
        let server = |(index, pod): (usize, &Netns)| {
            Server::tcp(pod, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, TARGET), &format!("pod{index}"))
        };
        self.pods.iter().enumerate().map(server).collect()
    }

    /// What `nft` lists of our table.
    pub(crate) fn nft(&self, what: &str) -> Result<String> {
        Ok(self.node.cmd(format!("nft list {what}")).ok()?.stdout)
    }

    /// The packets that each counter of a chain has seen, by table and chain.
    pub(crate) fn counts(&self, chain: &str) -> Result<Vec<u64>> {
        let packets = |line: &str| line.split("packets ").nth(1)?.split(' ').next()?.parse().ok();
        Ok(self.nft(&format!("chain ip {chain}"))?.lines().filter_map(packets).collect())
    }

    /// Waits until `nft` shows `text` in a set, map or chain (or, with `!` in front, no longer does).
    pub(crate) fn wait_nft(&self, what: &str, text: &str) -> Result<Duration> {
        let (wanted, text) = text.strip_prefix('!').map_or((true, text), |text| (false, text));
        let look = || (self.nft(what).ok()?.contains(text) == wanted).then_some(());
        let waited = eventually(Duration::from_secs(5), look);
        waited.map(|((), time)| time).with_context(|| {
            format!("{what}: {text:?} should be {wanted}:\n{}", self.nft(what).unwrap_or_default())
        })
    }
}

/// Connects from inside a namespace.
pub(crate) fn ask(from: &Netns, to: (Ipv4Addr, u16)) -> Result<std::io::Result<Answer>> {
    from.inside(|| ask_tcp(SocketAddrV4::new(to.0, to.1), LIMIT))
}

pub(crate) fn node_manifest() -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: n1}}\nstatus:\n  addresses:\n  \
         - {{type: InternalIP, address: {NODE}}}\n"
    )
}

/// Service `web`: TCP 80 with a node port, UDP 53 and SCTP 9, all to [`TARGET`] of these pods.
pub(crate) fn web(pods: &[usize]) -> String {
    web_at(&pods.iter().map(|pod| pod_ip(*pod)).collect::<Vec<_>>())
}

/// The same with endpoints anywhere.
pub(crate) fn web_at(endpoints: &[Ipv4Addr]) -> String {
    let endpoints: Vec<_> =
        endpoints.iter().map(|ip| format!("{{addresses: [{ip}], nodeName: n1}}")).collect();
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: NodePort
  clusterIP: {WEB}
  ports:
  - {{name: http, port: 80, nodePort: {NODE_PORT}}}
  - {{name: dns, port: 53, nodePort: 30053, protocol: UDP}}
  - {{name: sig, port: 9, protocol: SCTP}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-x, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports:
- {{name: http, port: {TARGET}}}
- {{name: dns, port: {TARGET}, protocol: UDP}}
- {{name: sig, port: {TARGET}, protocol: SCTP}}
endpoints: [{}]
",
        endpoints.join(", ")
    )
}

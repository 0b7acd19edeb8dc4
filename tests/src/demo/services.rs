//! What runs in the demo's pods, and the Services in front of it.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use testkit::lab::{Lab, Pod};
use testkit::traffic::Server;
use testkit::{Cmd, Netns, Process};

/// The Service that the guides show, with three endpoints on three nodes.
pub(super) const MYWEB: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 254, 247, 21), 8080);
/// Its port on every node.
pub(super) const NODE_PORT: u16 = 30001;
/// The API server's Service; its endpoint is a host's address.
pub(super) const KUBERNETES: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 254, 0, 1), 443);
/// The cluster's name server, over UDP and TCP.
pub(super) const DNS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 254, 0, 10), 53);
/// Where the machine outside answers.
pub(super) const OUTSIDE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 168, 100, 100), 80);

/// Ports that the servers listen on.
const WEB_PORT: u16 = 80;
const API_PORT: u16 = 6443;
const DNS_PORT: u16 = 5353;

/// The pods by their job: `web` are endpoints of myweb, `plain` the others.
#[derive(Debug)]
pub(super) struct Pods {
    /// `web1` on node1 and so on.
    pub(super) web: Vec<Pod>,
    /// `dns1`, `dns2` and `box3`: name servers on the first two nodes, a client on the last.
    pub(super) plain: Vec<Pod>,
}

impl Pods {
    /// Makes two pods on every node.
    ///
    /// # Errors
    /// When the plugin fails.
    pub(super) fn make(lab: &Lab) -> Result<Self> {
        let (mut web, mut plain) = (Vec::new(), Vec::new());
        for index in 0..lab.nodes.len() {
            let number = index + 1;
            web.push(lab.add_pod(index, &format!("web{number}"))?);
            let name = if index < 2 { format!("dns{number}") } else { format!("box{number}") };
            plain.push(lab.add_pod(index, &name)?);
        }
        Ok(Self { web, plain })
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &Pod> {
        self.web.iter().chain(&self.plain)
    }

    fn dns(&self) -> impl Iterator<Item = &Pod> {
        self.plain.iter().filter(|pod| pod.name.starts_with("dns"))
    }
}

/// Starts a server for every endpoint; the ones of myweb come first, in the order of the nodes.
///
/// # Errors
/// When one does not come up.
pub(super) fn start_servers(lab: &Lab, pods: &Pods) -> Result<Vec<Process>> {
    let mut servers = Vec::new();
    for pod in &pods.web {
        servers.push(pod.spawn(server("tcp", WEB_PORT, &pod.name)?)?);
    }
    for pod in pods.dns() {
        servers.push(pod.spawn(server("udp", DNS_PORT, &pod.name)?)?);
        servers.push(pod.spawn(server("tcp", DNS_PORT, &pod.name)?)?);
    }
    let logs = lab.dir.path();
    servers.push(lab.nodes[0].space.spawn(server("tcp", API_PORT, "api")?, logs.join("api.log"))?);
    servers.push(lab.outside.spawn(server("tcp", OUTSIDE.port(), "outside")?, logs.join("outside.log"))?);
    for server in &mut servers {
        server.wait_for_log("listening", Duration::from_secs(5))?;
    }
    Ok(servers)
}

fn server(protocol: &str, port: u16, name: &str) -> Result<Cmd> {
    let program = std::env::current_exe().context("failed to find this program")?;
    Ok(Cmd::new("").arg(program.display().to_string()).args(["serve", protocol, &port.to_string(), name]))
}

/// `serve <tcp|udp> <port> <name>`: what runs in the pods. Never returns while it serves.
///
/// # Errors
/// When the words are wrong or the port can't be bound.
pub fn serve(words: &[String]) -> Result<()> {
    let [protocol, port, name] = words else { bail!("usage: serve <tcp|udp> <port> <name>") };
    let at = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port.parse().context("not a port")?);
    let here = Netns::open("/proc/thread-self/ns/net")?;
    let _server = match protocol.as_str() {
        "tcp" => Server::tcp(&here, at, name)?,
        "udp" => Server::udp(&here, at, name)?,
        _ => bail!("neither tcp nor udp: {protocol}"),
    };
    println!("listening");
    loop {
        std::thread::park();
    }
}

/// Writes the manifests as `kubectl get -o yaml` users keep them.
///
/// # Errors
/// When they can't be written.
pub(super) fn write_manifests(lab: &Lab, pods: &Pods) -> Result<()> {
    lab.write_manifest("nodes.yaml", &nodes(lab)?)?;
    let web: Vec<_> = pods.web.iter().map(endpoint).collect();
    let dns: Vec<_> = pods.dns().map(endpoint).collect();
    let slices = [slice("myweb", "default", &[("http", "TCP", WEB_PORT)], &web), myweb_service()];
    lab.write_manifest("myweb.yaml", &slices.join("---\n"))?;
    let ports = [("dns", "UDP", DNS_PORT), ("dns-tcp", "TCP", DNS_PORT)];
    let dns = [slice("kube-dns", "kube-system", &ports, &dns), dns_service()];
    lab.write_manifest("kube-dns.yaml", &dns.join("---\n"))?;
    lab.write_manifest("kubernetes.yaml", &kubernetes(lab.nodes[0].address))
}

fn nodes(lab: &Lab) -> Result<String> {
    let mut documents = Vec::new();
    for node in &lab.nodes {
        let (name, stem, address) = (node.name(), node.subnet_stem()?, node.address);
        documents.push(format!(
            "apiVersion: v1
kind: Node
metadata:
  name: {name}
spec:
  podCIDR: {stem}.0/24
status:
  addresses:
  - type: InternalIP
    address: {address}
  - type: Hostname
    address: {name}
"
        ));
    }
    Ok(documents.join("---\n"))
}

fn endpoint(pod: &Pod) -> (Ipv4Addr, usize, &str) {
    (pod.address, pod.node + 1, &pod.name)
}

fn slice(
    service: &str,
    namespace: &str,
    ports: &[(&str, &str, u16)],
    endpoints: &[(Ipv4Addr, usize, &str)],
) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {service}-x7k2p
  namespace: {namespace}
  labels:
    kubernetes.io/service-name: {service}
addressType: IPv4
ports:
"
    );
    for (name, protocol, port) in ports {
        let _ = writeln!(text, "- name: {name}\n  protocol: {protocol}\n  port: {port}");
    }
    text += "endpoints:\n";
    for (address, node, pod) in endpoints {
        let _ = writeln!(
            text,
            "- addresses:
  - {address}
  conditions:
    ready: true
    serving: true
    terminating: false
  nodeName: node{node}
  targetRef:
    kind: Pod
    name: {pod}"
        );
    }
    text
}

fn myweb_service() -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata:
  name: myweb
  namespace: default
spec:
  type: NodePort
  clusterIP: {}
  selector:
    app: myweb
  ports:
  - name: http
    protocol: TCP
    port: {}
    targetPort: {WEB_PORT}
    nodePort: {NODE_PORT}
",
        MYWEB.ip(),
        MYWEB.port()
    )
}

fn dns_service() -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata:
  name: kube-dns
  namespace: kube-system
spec:
  clusterIP: {}
  ports:
  - name: dns
    protocol: UDP
    port: 53
    targetPort: {DNS_PORT}
  - name: dns-tcp
    protocol: TCP
    port: 53
    targetPort: {DNS_PORT}
",
        DNS.ip()
    )
}

/// The API server's Service and its Endpoints, which it writes itself, without a slice's labels.
fn kubernetes(api: Ipv4Addr) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata:
  name: kubernetes
  namespace: default
spec:
  type: ClusterIP
  clusterIP: {}
  ports:
  - name: https
    protocol: TCP
    port: 443
    targetPort: {API_PORT}
---
apiVersion: v1
kind: Endpoints
metadata:
  name: kubernetes
  namespace: default
subsets:
- addresses:
  - ip: {api}
  ports:
  - name: https
    port: {API_PORT}
    protocol: TCP
",
        KUBERNETES.ip()
    )
}

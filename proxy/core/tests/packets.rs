//! Virtual packets walk the table that manifests make: who reaches whom, and as whom.

use std::{
    collections::BTreeSet,
    fmt::Write,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use netmodel::{IfName, Protocol};
use proxy_core::{
    adopt::Found,
    catalog::Catalog,
    object::check,
    state::State,
    tables::{Config, NodePorts},
    wire::Manifest,
};
use ruleset::{
    Family, Table,
    trace::{Masqueraded, Outcome, Packet, Tracer},
};

/// The node's addresses: the primary one, a second one, and the pod bridge's.
const NODE: [&str; 3] = ["192.0.2.1", "192.0.2.2", "10.244.0.1"];

/// Services as in the tests that kube-proxy has for the same purpose: `web` with two endpoints, one of them
/// here, and a node port; `multi` with one port number for three protocols; `empty` without endpoints.
const SERVICES: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: NodePort, clusterIP: 172.30.0.041, ports: [
    {name: http, port: 80, nodePort: 30080, targetPort: 8080}]}}
- {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
   metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}, ports: [{name: http, port: 8080}],
   endpoints: [{addresses: [10.244.0.5], nodeName: n1}, {addresses: [10.244.9.9], nodeName: n2}]}
- {apiVersion: v1, kind: Service, metadata: {name: multi}, spec: {clusterIP: 172.30.0.42, ports: [
    {name: t, port: 53}, {name: u, port: 53, protocol: UDP}, {name: s, port: 53, protocol: SCTP}, {name: only-tcp, port: 54}]}}
- {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
   metadata: {name: multi-1, labels: {kubernetes.io/service-name: multi}},
   ports: [{name: t, port: 1}, {name: u, port: 2, protocol: UDP}, {name: s, port: 3, protocol: SCTP}, {name: only-tcp, port: 4}],
   endpoints: [{addresses: [10.244.9.10], nodeName: n2}]}
- {apiVersion: v1, kind: Service, metadata: {name: empty}, spec: {type: NodePort, clusterIP: 172.30.0.43, ports: [
    {port: 80, nodePort: 30090}]}}
- {apiVersion: v1, kind: Service, metadata: {name: host}, spec: {clusterIP: 172.30.0.44, ports: [{port: 443}]}}
- {apiVersion: v1, kind: Endpoints, metadata: {name: host}, subsets: [
    {addresses: [{ip: 192.0.2.1}], ports: [{port: 6443}]}]}
";

fn table(manifests: &str, pod_ranges: &[&str], node_ports: NodePorts, masquerade_all: bool) -> Table {
    let node = "n1".parse().unwrap();
    let manifest = Manifest::read(manifests).unwrap();
    let mut catalog = Catalog::default();
    for object in &manifest.objects {
        if let Some((key, object)) = check(object, &node).unwrap() {
            catalog.set(key, Some(Arc::new(object)));
        }
    }
    let pod_ranges = pod_ranges.iter().map(|range| range.parse().unwrap()).collect();
    let mut state = State::new(Config { family: Family::Ip, pod_ranges, node_ports, masquerade_all });
    state.sync_with(&mut catalog, &mut Found::default(), Duration::ZERO);
    state.table()
}

fn primary() -> NodePorts {
    NodePorts::At([NODE[0].parse().unwrap()].into())
}

/// Everything that can become of a packet: `a:1 b:2 masqueraded`, `rejected`, `dropped`.
fn outcomes(table: &Table, from: &str, to: &str, protocol: Protocol) -> String {
    let local: Vec<IpAddr> = NODE.iter().map(|ip| ip.parse().unwrap()).collect();
    let source: SocketAddr = format!("{from}:40000").parse().unwrap();
    let destination = to.parse().unwrap();
    let device: IfName = "eth0".parse().unwrap();
    let packet = if local.contains(&source.ip()) {
        Packet::sent(source, destination, protocol)
    } else {
        Packet::arriving(&device, source, destination, protocol)
    };
    let (mut reached, mut ways) = (BTreeSet::new(), BTreeSet::new());
    for number in 0..4 {
        let mut tracer = Tracer::new(table, &local, |modulus| number % modulus);
        match tracer.trace(&packet) {
            Outcome::Reaches(endpoint, Masqueraded(masqueraded)) => {
                reached.insert(endpoint);
                ways.insert(if masqueraded { "masqueraded" } else { "as it is" });
                let leaves = !local.contains(&endpoint.ip());
                assert!(!leaves || tracer.last_priority == 0, "{from} to {to} leaves with our scratch");
            }
            Outcome::Rejected => drop(ways.insert("rejected")),
            Outcome::Dropped => drop(ways.insert("dropped")),
        }
    }
    let mut text = String::new();
    for endpoint in reached {
        write!(text, "{endpoint} ").unwrap();
    }
    text + &ways.into_iter().collect::<Vec<_>>().join(" or ")
}

/// Each line: source, destination, protocol, `->`, what becomes of it.
fn check_flows(table: &Table, flows: &str) {
    let mut wrong = Vec::new();
    for line in flows.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (flow, wanted) = line.split_once("->").unwrap();
        let words: Vec<&str> = flow.split_whitespace().collect();
        let got = outcomes(table, words[0], words[1], words[2].parse().unwrap());
        if got != wanted.trim() {
            wrong.push(format!("{line}\n    got {got}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn connections_to_cluster_ips() {
    let table = table(SERVICES, &["10.244.0.0/16"], primary(), false);
    table.check().unwrap();
    check_flows(
        &table,
        "
        10.244.1.7   172.30.0.41:80  tcp  -> 10.244.0.5:8080 10.244.9.9:8080 as it is
        192.0.2.1    172.30.0.41:80  tcp  -> 10.244.0.5:8080 10.244.9.9:8080 masqueraded
        203.0.113.9  172.30.0.41:80  tcp  -> 10.244.0.5:8080 10.244.9.9:8080 masqueraded
        10.244.1.7   172.30.0.42:53  tcp  -> 10.244.9.10:1 as it is
        10.244.1.7   172.30.0.42:53  udp  -> 10.244.9.10:2 as it is
        10.244.1.7   172.30.0.42:53  sctp -> 10.244.9.10:3 as it is
        10.244.1.7   172.30.0.42:54  tcp  -> 10.244.9.10:4 as it is
        10.244.1.7   172.30.0.42:54  udp  -> rejected
        10.244.1.7   172.30.0.41:53  tcp  -> rejected
        192.0.2.1    172.30.0.41:53  tcp  -> rejected
        10.244.1.7   172.30.0.44:443 tcp  -> 192.0.2.1:6443 as it is
        192.0.2.1    172.30.0.44:443 tcp  -> 192.0.2.1:6443 masqueraded
        10.244.1.7   10.244.9.9:8080 tcp  -> 10.244.9.9:8080 as it is
        10.244.1.7   172.30.9.9:80   tcp  -> 172.30.9.9:80 as it is
        ",
    );
}

#[test]
fn a_pod_that_reaches_itself_is_masqueraded() {
    let table = table(SERVICES, &["10.244.0.0/16"], primary(), false);
    let local: Vec<IpAddr> = vec![NODE[0].parse().unwrap()];
    let device: IfName = "cni0".parse().unwrap();
    let ends = |slot| {
        let (from, to) = ("10.244.0.5:40000".parse().unwrap(), "172.30.0.41:80".parse().unwrap());
        let packet = Packet::arriving(&device, from, to, Protocol::Tcp);
        Tracer::new(&table, &local, move |modulus| slot % modulus).trace(&packet)
    };
    let itself = Outcome::Reaches("10.244.0.5:8080".parse().unwrap(), Masqueraded(true));
    let other = Outcome::Reaches("10.244.9.9:8080".parse().unwrap(), Masqueraded(false));
    assert_eq!((ends(0), ends(1)), (itself, other));
}

#[test]
fn connections_to_node_ports() {
    check_flows(
        &table(SERVICES, &["10.244.0.0/16"], primary(), false),
        "
        203.0.113.9  192.0.2.1:30080  tcp -> 10.244.0.5:8080 10.244.9.9:8080 masqueraded
        10.244.1.7   192.0.2.1:30080  tcp -> 10.244.0.5:8080 10.244.9.9:8080 masqueraded
        192.0.2.1    192.0.2.1:30080  tcp -> 10.244.0.5:8080 10.244.9.9:8080 masqueraded
        203.0.113.9  192.0.2.2:30080  tcp -> 192.0.2.2:30080 as it is
        203.0.113.9  192.0.2.1:30080  udp -> 192.0.2.1:30080 as it is
        192.0.2.1    127.0.0.1:30080  tcp -> 127.0.0.1:30080 as it is
        10.244.1.7   203.0.113.9:30080 tcp -> 203.0.113.9:30080 as it is
        ",
    );
    check_flows(
        &table(SERVICES, &["10.244.0.0/16"], NodePorts::All, false),
        "
        203.0.113.9  192.0.2.1:30080  tcp -> 10.244.0.5:8080 10.244.9.9:8080 masqueraded
        203.0.113.9  192.0.2.2:30080  tcp -> 10.244.0.5:8080 10.244.9.9:8080 masqueraded
        203.0.113.9  192.0.2.2:30090  tcp -> rejected
        192.0.2.1    127.0.0.1:30080  tcp -> 127.0.0.1:30080 as it is
        10.244.1.7   203.0.113.9:30080 tcp -> 203.0.113.9:30080 as it is
        ",
    );
}

#[test]
fn connections_to_a_service_without_endpoints_are_refused() {
    check_flows(
        &table(SERVICES, &["10.244.0.0/16"], primary(), false),
        "
        10.244.1.7   172.30.0.43:80   tcp -> rejected
        192.0.2.1    172.30.0.43:80   tcp -> rejected
        203.0.113.9  172.30.0.43:80   tcp -> rejected
        10.244.1.7   192.0.2.1:30090  tcp -> rejected
        192.0.2.1    192.0.2.1:30090  tcp -> rejected
        203.0.113.9  192.0.2.1:30090  tcp -> rejected
        203.0.113.9  192.0.2.2:30090  tcp -> 192.0.2.2:30090 as it is
        ",
    );
}

/// The truth table of masquerade, as far as external and internal policies are Cluster.
#[test]
fn who_is_masqueraded() {
    let cluster = "172.30.0.41:80 tcp -> 10.244.0.5:8080 10.244.9.9:8080";
    let node = "192.0.2.1:30080 tcp -> 10.244.0.5:8080 10.244.9.9:8080";
    let flows = |pod: &str, host: &str, outside: &str| {
        format!(
            "10.244.1.7 {cluster} {pod}\n192.0.2.1 {cluster} {host}\n203.0.113.9 {cluster} {outside}\n\
             10.244.1.7 {node} masqueraded\n192.0.2.1 {node} masqueraded\n203.0.113.9 {node} masqueraded"
        )
    };
    let range = ["10.244.0.0/16"];
    check_flows(&table(SERVICES, &range, primary(), false), &flows("as it is", "masqueraded", "masqueraded"));
    check_flows(&table(SERVICES, &[], primary(), false), &flows("as it is", "as it is", "as it is"));
    check_flows(
        &table(SERVICES, &range, primary(), true),
        &flows("masqueraded", "masqueraded", "masqueraded"),
    );
    check_flows(&table(SERVICES, &[], primary(), true), &flows("masqueraded", "masqueraded", "masqueraded"));
}

/// A packet that read its front end before a commit and its row after it: slot 0 where that is there, else
/// nothing; never past translation.
#[test]
fn a_packet_that_crosses_a_commit_reaches_slot_0_or_is_dropped() {
    let rows = |removed: fn(u32) -> bool| {
        let mut table = table(SERVICES, &["10.244.0.0/16"], primary(), false);
        let endpoints = table.sets.get_mut(&"endpoints".into()).unwrap();
        endpoints.elements.retain(|key, _| {
            let slot = u32::from_ne_bytes(key.first().as_bytes()[4..8].try_into().unwrap());
            !removed(slot)
        });
        outcomes(&table, "10.244.1.7", "172.30.0.41:80", Protocol::Tcp)
    };
    assert_eq!(rows(|slot| slot == 1), "10.244.0.5:8080 as it is");
    assert_eq!(rows(|_| true), "dropped");
}

#[test]
fn ready_endpoints_go_before_terminating_ones() {
    let state = |first: &str, second: &str| {
        let text = SERVICES
            .replace(
                "{addresses: [10.244.0.5], nodeName: n1}",
                &format!("{{addresses: [10.244.0.5], conditions: {first}}}"),
            )
            .replace(
                "{addresses: [10.244.9.9], nodeName: n2}",
                &format!("{{addresses: [10.244.9.9], conditions: {second}}}"),
            );
        outcomes(
            &table(&text, &["10.244.0.0/16"], primary(), false),
            "10.244.1.7",
            "172.30.0.41:80",
            Protocol::Tcp,
        )
    };
    let going = "{ready: false, serving: true, terminating: true}";
    let gone = "{ready: false, serving: false, terminating: true}";
    assert_eq!(state("{ready: true}", going), "10.244.0.5:8080 as it is");
    assert_eq!(state(going, gone), "10.244.0.5:8080 as it is");
    assert_eq!(state(going, going), "10.244.0.5:8080 10.244.9.9:8080 as it is");
    assert_eq!(state(gone, gone), "rejected");
}

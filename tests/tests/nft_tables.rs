//! The tables that the programs make: what is sent is, byte for byte, what `nft -f` sends for their text, and
//! `nft` lists them as it lists that.

#[path = "../../crates/linux/tests/nft_tools/mod.rs"]
mod nft_tools;

use std::sync::Arc;
use std::time::Duration;

use cni_core::{HostAddress, repair_masquerade};
use linux::nft::{Socket, pack};
use nft_tools::{Result, batch_of, namespace, theirs, without_handles};
use overlay_core::masquerade::{self, Wishes};
use proxy_core::adopt::Found;
use proxy_core::catalog::Catalog;
use proxy_core::object::check;
use proxy_core::state::State;
use proxy_core::tables::{Config, NodePorts};
use proxy_core::wire::Manifest;
use ruleset::{Family, Table, Transaction};

const SERVICES: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: NodePort, clusterIP: 172.30.0.41, ports: [
    {name: http, port: 80, nodePort: 30080, targetPort: 8080}]}}
- {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
   metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}, ports: [{name: http, port: 8080}],
   endpoints: [{addresses: [10.244.0.5], nodeName: n1}, {addresses: [10.244.9.9], nodeName: n2}]}
- {apiVersion: v1, kind: Service, metadata: {name: empty}, spec: {type: NodePort, clusterIP: 172.30.0.43, ports: [
    {port: 80, nodePort: 30090, protocol: SCTP}]}}
";

fn services(node_ports: NodePorts, masquerade_all: bool) -> Result<Table> {
    let mut catalog = Catalog::default();
    for object in &Manifest::read(SERVICES)?.objects {
        if let Some((key, object)) = check(object, &"n1".parse()?).map_err(|bad| format!("{bad:?}"))? {
            catalog.set(key, Some(Arc::new(object)));
        }
    }
    let pod_ranges = vec!["10.244.0.0/16".parse()?];
    let mut state = State::new(Config { family: Family::Ip, pod_ranges, node_ports, masquerade_all });
    state.sync_with(&mut catalog, &mut Found::default(), Duration::ZERO);
    Ok(state.table())
}

fn overlay(at_random: bool) -> Result<Table> {
    let wishes = Wishes { masquerade: true, at_random, forward: true };
    let table =
        masquerade::table(&"flannel.1".parse()?, "10.5.1.0/24".parse()?, "10.5.0.0/16".parse()?, wishes);
    Ok(table.ok_or("no rule is wanted")?)
}

#[test]
fn a_table_is_sent_and_listed_as_its_text() -> Result {
    let Some(ns) = namespace() else { return Ok(()) };
    let at_primary = NodePorts::At(["192.0.2.1".parse()?].into());
    for table in
        [overlay(true)?, overlay(false)?, services(at_primary, false)?, services(NodePorts::All, true)?]
    {
        println!("{table}");
        let (sent, packed) = (theirs(&ns, &table.to_string())?, pack(&Transaction::create(&table))?);
        assert_eq!(batch_of(&packed), batch_of(&sent));
        let listed = without_handles(&ns.cmd("nft -j list ruleset").json()?);
        ns.cmd("nft flush ruleset").ok()?;
        ns.inside(|| Socket::open()?.commit(&Transaction::create(&table)))??;
        assert_eq!(without_handles(&ns.cmd("nft -j list ruleset").json()?), listed);
        ns.cmd("nft flush ruleset").ok()?;
    }
    Ok(())
}

#[test]
fn nft_reads_again_what_it_lists_of_the_plugins_table() -> Result {
    let Some(ns) = namespace() else { return Ok(()) };
    let pods = [
        HostAddress { address: "10.244.1.5".parse()?, prefix: 24 },
        HostAddress { address: "fd00:10:244:1::5".parse()?, prefix: 64 },
    ];
    ns.inside(|| Socket::open()?.commit(&repair_masquerade(None, &pods, "weft:cbr0/c1/eth0")))??;
    let listed = ns.cmd("nft list ruleset").ok()?.stdout;
    println!("{listed}");
    ns.cmd("nft flush ruleset").ok()?;
    ns.cmd("nft -f -").stdin(listed.clone()).ok()?;
    assert_eq!(ns.cmd("nft list ruleset").ok()?.stdout, listed);
    Ok(())
}

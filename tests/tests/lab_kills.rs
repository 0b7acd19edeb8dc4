//! `kill -9` at random moments: the next run ends in the state that an undisturbed one ends in.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use netns_tests::cluster::{UP, leases, overlay};
use testkit::lab::{Lab, Node, Plan};
use testkit::{Cmd, Random, eventually, require_or_skip};

const KILLS: usize = 200;

/// Everything that flanneld makes, as foreign tools show it.
const OVERLAY: &str = "ip -br link | awk '{print $1}' | sort
ip -o link show dev flannel.1 | grep -o 'mtu [0-9]*\\|link/ether [0-9a-f:]*'
ip -o -4 address show dev flannel.1 | awk '{print $4}'
ip route show dev flannel.1 | sort
ip neighbour show dev flannel.1 nud permanent | sort
bridge fdb show dev flannel.1 | sort
nft list ruleset
cat /run/flannel/subnet.env
ls -A /run/flannel | sort";

/// The proxy's table; the order of elements is the kernel's own.
const PROXY: &str = "nft list ruleset | tr -d ' \\t' | tr ',' '\\n' | sort
ip route show proto 154 | sort";

fn state(node: &Node, script: &str) -> Result<String> {
    let shown = node.space.wrap(Cmd::shell(script)).run()?.stdout;
    Ok(if script == PROXY { without_numbers(&shown) } else { shown })
}

/// The proxy keeps the numbers of Services and classes over its restarts, so they depend on the past. What
/// they lead to does not: numbers are replaced by that.
fn without_numbers(shown: &str) -> String {
    let lines = || shown.lines().map(|line| line.trim_start_matches("elements={").trim_end_matches('}'));
    // nft prints the 32-bit number as two halves in hexadecimal; a class is its low 12 bits.
    let class = |low: &str| u16::from_str_radix(low, 16).map(|low| low & 0xfff).unwrap_or_default();
    let classes: BTreeMap<u16, &str> = lines()
        .filter_map(|line| line.split_once(":goto"))
        .map(|(number, chain)| (class(number.rsplit(':').next().unwrap_or_default()), chain))
        .collect();
    let mut clear: Vec<String> = lines()
        .map(|line| match (line.split_once(":goto"), line.rsplit_once("\":"), line.split_once(".")) {
            (Some((_, chain)), ..) => format!("class {chain}"),
            // A front end: ... comment "default/s9:p" : 1:4004
            (_, Some((front, number)), _) if !number.contains('.') => {
                let class = class(number.rsplit(':').next().unwrap_or_default());
                format!("{front}\" to {}", classes.get(&class).unwrap_or(&"nowhere"))
            }
            // A row of the endpoints: 0:2000 . 1 comment "default/s1:p" : 172.16.3.3 . 80
            (_, Some(_), Some((_, slot_and_rest))) => format!("slot {slot_and_rest}"),
            _ => line.to_owned(),
        })
        .collect();
    clear.sort();
    clear.join("\n")
}

/// Lines of one text that the other does not have.
fn lines_beyond(text: &str, other: &str) -> String {
    let beyond = text.lines().filter(|line| !other.lines().any(|theirs| theirs == *line));
    beyond.collect::<Vec<_>>().join("\n")
}

/// Waits until the node's state is `wanted`.
fn settles(node: &Node, script: &str, wanted: &str, round: usize) -> Result<()> {
    let same = eventually(UP, || state(node, script).ok().filter(|now| now == wanted));
    same.map(drop).with_context(|| {
        let now = state(node, script).unwrap_or_default();
        let (is, should) = (lines_beyond(&now, wanted), lines_beyond(wanted, &now));
        format!("after kill {round} there is:\n{is}\nand there should be:\n{should}\n{}", node.logs())
    })
}

/// Waits until the state does not change any more, and takes it.
fn undisturbed(node: &Node, script: &str) -> Result<String> {
    let mut last = state(node, script)?;
    loop {
        sleep(Duration::from_millis(500));
        let now = state(node, script)?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
}

#[test]
fn flanneld_killed_at_any_moment() -> Result<()> {
    let Some(mut lab) = overlay(Plan { nodes: 2, ..Plan::default() })? else { return Ok(()) };
    let mut random = Random::printed();
    let wanted = undisturbed(&lab.nodes[0], OVERLAY)?;
    let held = leases(&lab)?;
    for round in 0..KILLS {
        lab.nodes[0].kill_flanneld();
        // Every other run has everything to make, the others only to look.
        if round % 2 == 0 {
            lab.nodes[0].space.wrap(Cmd::shell("ip link delete flannel.1; nft flush ruleset")).run()?;
        }
        lab.start_flanneld(0)?;
        sleep(random.below(Duration::from_millis(150)));
        lab.nodes[0].kill_flanneld();
        lab.start_flanneld(0)?;
        settles(&lab.nodes[0], OVERLAY, &wanted, round)?;
    }
    assert_eq!(leases(&lab)?, held);
    Ok(())
}

fn service(number: usize, endpoints: usize) -> String {
    let address = |n: usize| format!("10.254.{}.{}", n / 250, n % 250 + 1);
    let list: Vec<_> =
        (0..endpoints).map(|n| format!("- addresses: [172.16.{}.{}]", n + 2, number + 2)).collect();
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: s{number}, namespace: default}}
spec:
  clusterIP: {}
  ports: [{{name: p, port: 80, protocol: TCP, targetPort: 80}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: s{number}-a, namespace: default, labels: {{kubernetes.io/service-name: s{number}}}}}
addressType: IPv4
ports: [{{name: p, port: 80, protocol: TCP}}]
endpoints:
{}
",
        address(number),
        list.join("\n")
    )
}

/// Writes all manifests of the test; how many endpoints each Service has depends on `turn`.
fn manifests(lab: &Lab, turn: usize) -> Result<()> {
    (0..20).try_for_each(|n| lab.write_manifest(&format!("s{n}.yaml"), &service(n, 1 + (n + turn) % 4)))
}

#[test]
fn weft_proxy_killed_at_any_moment() -> Result<()> {
    let plan = Plan { nodes: 1, ..Plan::default() };
    let Some(mut lab) = require_or_skip("lab", Lab::new(plan)) else { return Ok(()) };
    let mut random = Random::printed();
    manifests(&lab, 0)?;
    lab.start_proxy(0)?;
    let up = || state(&lab.nodes[0], PROXY).ok().filter(|text| text.contains("172.16.5.5"));
    eventually(UP, up).with_context(|| format!("no Services:\n{}", lab.nodes[0].logs()))?;
    let wanted = undisturbed(&lab.nodes[0], PROXY)?;
    for round in 0..KILLS {
        lab.nodes[0].kill_proxy();
        if round % 3 == 0 {
            lab.nodes[0].space.wrap(Cmd::shell("nft flush ruleset")).run()?;
        }
        lab.start_proxy(0)?;
        // Half of the kills fall into the start, the others into changes of the manifests.
        sleep(random.below(Duration::from_millis(60)));
        if round % 2 == 0 {
            manifests(&lab, round)?;
            sleep(random.below(Duration::from_millis(20)));
        }
        lab.nodes[0].kill_proxy();
        manifests(&lab, 0)?;
        lab.start_proxy(0)?;
        settles(&lab.nodes[0], PROXY, &wanted, round)?;
    }
    Ok(())
}

//! flanneld beside firewalls of others.

use std::time::Duration;

use anyhow::{Context, Result};
use netns_tests::cluster::{UP, overlay, pods, reach_each_other};
use testkit::lab::{Lab, Node, Plan};
use testkit::{Cmd, eventually};

/// The accept rules of ours in the chain FORWARD, as `iptables-save` shows them.
fn our_accepts(node: &Node) -> Result<Vec<String>> {
    let saved = node.cmd("iptables-nft-save -t filter").ok()?.stdout;
    let ours = saved.lines().filter(|line| line.starts_with("-A FORWARD") && line.contains("weft:"));
    Ok(ours.map(str::to_owned).collect())
}

fn two_accepts(lab: &Lab) -> Result<()> {
    for node in &lab.nodes {
        let two =
            eventually(Duration::from_secs(10), || our_accepts(node).ok().filter(|rules| rules.len() == 2));
        two.with_context(|| format!("{}: {:?}\n{}", node.name(), our_accepts(node), node.logs()))?;
    }
    Ok(())
}

#[test]
fn pods_pass_where_iptables_drops_forwarded_packets() -> Result<()> {
    let Some(lab) = overlay(Plan { nodes: 2, ..Plan::default() })? else { return Ok(()) };
    let pods = pods(&lab)?;
    for node in &lab.nodes {
        node.cmd("iptables-nft -P FORWARD DROP").ok()?;
    }
    two_accepts(&lab)?;
    reach_each_other(&pods)?;

    // Saving and restoring turns our comment into an xt match: the rules are still ours, and not doubled.
    for node in &lab.nodes {
        node.space
            .wrap(Cmd::shell("iptables-nft-save > /run/saved && iptables-nft-restore < /run/saved"))
            .ok()?;
    }
    std::thread::sleep(Duration::from_secs(2));
    two_accepts(&lab)?;
    reach_each_other(&pods)?;

    // A reload by others that forgets them.
    for node in &lab.nodes {
        node.cmd("iptables-nft -F FORWARD").ok()?;
    }
    two_accepts(&lab)?;
    eventually(UP, || reach_each_other(&pods).ok())
        .context("pods don't reach each other after a flush")
        .map(drop)
}

#[test]
fn a_foreign_drop_for_one_pod_keeps_dropping() -> Result<()> {
    let Some(lab) = overlay(Plan { nodes: 2, ..Plan::default() })? else { return Ok(()) };
    let pods = pods(&lab)?;
    let victim = lab.add_pod(1, "victim")?;
    pods[0].cmd(format!("ping -n -c 1 -W 2 {}", victim.address)).ok()?;
    for node in &lab.nodes {
        node.cmd(format!("iptables-nft -A FORWARD -d {} -j DROP", victim.address)).ok()?;
        node.cmd("iptables-nft -P FORWARD DROP").ok()?;
    }
    two_accepts(&lab)?;
    reach_each_other(&pods)?;
    let dropped = pods[0].cmd(format!("ping -n -c 1 -W 1 {}", victim.address)).run()?;
    assert_eq!(dropped.code, Some(1), "{dropped}");
    // On the first node of its way, in front of our rules: DROP, packets, ...
    let rules = lab.nodes[0].cmd("iptables-nft -L FORWARD -v -n -x").ok()?;
    let packets = |line: &str| line.split_whitespace().next().and_then(|count| count.parse::<u32>().ok());
    let drop = rules.line_with("DROP  ").filter(|line| line.contains(&victim.address.to_string()));
    assert_eq!(drop.and_then(packets), Some(1), "{rules}");
    Ok(())
}

#[test]
fn a_ruleset_flushed_by_others_comes_back() -> Result<()> {
    let Some(lab) = overlay(Plan { nodes: 2, ..Plan::default() })? else { return Ok(()) };
    let node = &lab.nodes[0];
    let show = node.cmd("nft list table ip weft-flannel.1");
    let before = show.ok()?.stdout;
    node.cmd("nft flush ruleset").ok()?;
    let back = eventually(Duration::from_secs(10), || show.ok().ok().filter(|now| now.stdout == before));
    back.with_context(|| format!("before:\n{before}\nnow: {:?}\n{}", show.run(), node.logs())).map(drop)
}

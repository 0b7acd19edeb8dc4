//! What an earlier run held is not forgotten, however far a later one gets.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::{Cmd, Process, eventually};

use crate::node::{Node, PATIENCE, peers};

/// Everything that flanneld makes and a later run, or `cleanup`, has to find.
fn state() -> Cmd {
    Cmd::shell("ip -br link | sort; ip route; iptables-nft-save | grep -v '^#'; nft list tables")
}

/// A node whose peers have that VNI, in a network of its own where it is not 7.
fn config(node: &Node, vni: u32) -> Result<()> {
    let network = if vni == 7 { "10.5" } else { "10.6" };
    let mut peer = peers(&[3]).remove(0).1;
    peer["BackendData"]["VNI"] = json!(vni);
    let text = json!({
        "config": {"Network": format!("{network}.0.0/16"), "Backend": {"Type": "vxlan", "VNI": vni, "DirectRouting": true}},
        "own": format!("{network}.1.0-24"),
        "leases": {format!("{network}.3.0-24"): peer},
    });
    node.dir.write("leases.json", text.to_string()).map(drop)
}

/// A start that gets no further than `problem` says.
fn start_in_vain(node: &Node, words: &str, problem: &str) -> Result<()> {
    let mut flanneld = Process::spawn(&node.command(words), node.dir.path().join("vain"))?;
    let told = || node.status().ok()?["problem"].as_str().filter(|told| told.contains(problem)).map(drop);
    eventually(PATIENCE, told).with_context(|| format!("{:?}\n{}", node.status(), flanneld.log()))?;
    flanneld.kill();
    Ok(())
}

fn run_once(node: &mut Node) -> Result<()> {
    node.start()?;
    node.flanneld.take().context("not started")?.terminate(PATIENCE).map(drop)
}

#[test]
fn cleanup_finds_the_device_after_starts_that_got_nowhere() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.net.cmd("iptables-nft -P FORWARD DROP").ok()?;
    let before = node.net.wrap(state()).ok()?.stdout;
    config(&node, 7)?;
    run_once(&mut node)?;
    start_in_vain(&node, "run -iface nosuch", "nosuch")?;
    assert_eq!(node.status()?["node"]["device"], json!("flannel.7"));
    std::fs::remove_file(node.dir.path().join("leases.json"))?;
    start_in_vain(&node, "run", "leases.json")?;
    // And one that was killed before its new device was made.
    node.net.cmd("ip link add other0 type vxlan id 5 dstport 8472 local 192.0.2.1").ok()?;
    config(&node, 5)?;
    start_in_vain(&node, "run", "failed to add VXLAN device flannel.5")?;
    node.net.cmd("ip link del other0").ok()?;
    node.shows("nft list tables", "weft-flannel.5")?;
    node.shows("nft list tables", "weft-flannel.7")?;
    node.command("cleanup").ok()?;
    assert_eq!(node.net.wrap(state()).ok()?.stdout, before);
    Ok(())
}

#[test]
fn a_half_made_device_goes_when_its_vni_is_taken_back() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.net.cmd("iptables-nft -P FORWARD DROP").ok()?;
    config(&node, 7)?;
    run_once(&mut node)?;
    let before = node.net.wrap(state()).ok()?.stdout;
    node.net.cmd("ip link add other0 type vxlan id 5 dstport 8472 local 192.0.2.1").ok()?;
    config(&node, 5)?;
    start_in_vain(&node, "run", "failed to add VXLAN device flannel.5")?;
    node.net.cmd("ip link del other0").ok()?;
    config(&node, 7)?;
    node.start()?;
    node.shows("nft list tables", "!weft-flannel.5")?;
    assert_eq!(node.net.wrap(state()).ok()?.stdout, before);
    assert_eq!(node.status()?["node"]["earlier"], Value::Null);
    Ok(())
}

#[test]
fn what_was_held_under_another_vni_in_another_network_goes() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.net.cmd("iptables-nft -P FORWARD DROP").ok()?;
    config(&node, 7)?;
    run_once(&mut node)?;
    node.shows("ip route", "10.5.3.0/24 via 192.0.2.3 dev eth0 proto 154")?;
    config(&node, 5)?;
    let plan = node.command("plan").ok()?.stdout;
    assert!(plan.contains("ip link del flannel.7"), "{plan}");
    // Nobody's that runs, and not this one's.
    node.net.cmd("ip link add flannel.9 type vxlan id 9 dstport 8472").ok()?;
    node.start()?;
    node.shows("ip link show", "!flannel.7:")?;
    let after = node.net.wrap(state()).ok()?.stdout;
    assert!(!after.contains("flannel.7") && !after.contains("10.5."), "{after}");
    for part in ["flannel.5", "flannel.9", "10.6.3.0/24 via 192.0.2.3", "weft:flannel.5 forward"] {
        assert!(after.contains(part), "{part} is missing in\n{after}");
    }
    Ok(())
}

/// The former device is another flanneld's by now.
#[test]
fn what_another_one_holds_stays() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    config(&node, 7)?;
    run_once(&mut node)?;
    let file = node.dir.path().join("other/subnet.env");
    let mut other = Process::spawn(
        &node.command("run").arg(format!("-subnet-file={}", file.display())),
        node.dir.path().join("other-log"),
    )?;
    eventually(PATIENCE, || file.exists().then_some(())).with_context(|| other.log())?;
    config(&node, 5)?;
    node.start()?;
    let tidy = || (node.status().ok()?["node"]["earlier"] == Value::Null).then_some(());
    eventually(PATIENCE, tidy).with_context(|| node.log())?;
    node.shows("ip link show", "flannel.7:")?;
    node.shows("nft list tables", "weft-flannel.7")?;
    other.terminate(PATIENCE).map(drop)
}

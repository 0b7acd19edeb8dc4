//! `plan`, `cleanup` and `status`, and who may not run.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::{Cmd, Process, eventually};

use crate::node::{Node, PATIENCE, ROUTES, peers};

#[test]
fn a_plan_is_printed_and_nothing_is_done() -> Result<()> {
    let Some(node) = Node::new()? else { return Ok(()) };
    node.leases(&peers(&[3]))?;
    let plan = node.command("plan").ok()?.stdout;
    for part in [
        "ip link add flannel.1 address ",
        "ip route replace 10.5.3.0/24 via 10.5.3.0 dev flannel.1 metric 4 onlink proto 154",
        "table ip weft-flannel.1 {",
    ] {
        assert!(plan.contains(part), "{part} is missing in\n{plan}");
    }
    assert!(!plan.contains("chain FORWARD"), "there is none of others\n{plan}");
    assert_eq!(node.shown("ip -br link show type vxlan")?, "");
    assert_eq!(node.shown("nft list ruleset")?, "");
    assert!(!node.subnet_file().exists());
    Ok(())
}

#[test]
fn an_interface_with_no_address_for_other_nodes_is_refused_until_it_has_one() -> Result<()> {
    let Some(node) = Node::new()? else { return Ok(()) };
    node.leases(&[])?;
    let ran = node.command("plan -iface lo").run()?;
    assert!(!ran.success(), "{ran}");
    assert!(ran.stderr.contains("interface lo has no address that other nodes can send to"), "{ran}");
    // Where routers announce it, a node's address is on lo.
    node.net.cmd("ip address add 198.51.100.1/32 dev lo").ok()?;
    node.command("plan -iface lo").ok().map(drop)
}

#[test]
fn cleanup_takes_what_is_ours_and_nothing_else() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.net.cmd("iptables-nft -A FORWARD -s 10.5.3.7 -j DROP").ok()?;
    node.net.cmd("ip route add 203.0.113.0/24 via 192.0.2.77").ok()?;
    node.net.cmd("ip route add 10.254.0.0/16 dev eth0 proto 154 metric 4294967295").ok()?;
    let state = Cmd::shell("ip -br link | sort; ip route; iptables-nft-save | grep -v '^#'; nft list tables");
    let before = node.net.wrap(state.clone()).ok()?.stdout;
    node.leases(&peers(&[3]))?;
    node.start()?;
    node.shows("iptables-nft -S FORWARD", "-d 10.5.0.0/16")?;
    let refused = node.command("cleanup").run()?;
    assert!(!refused.success() && refused.stderr.contains("is held by another flanneld"), "{refused}");
    let code = node.flanneld.take().context("not started")?.terminate(PATIENCE)?;
    assert_eq!(code, Some(0));
    node.shows(ROUTES, "10.5.3.0/24")?;
    let said = node.command("cleanup").ok()?.stdout;
    assert!(said.contains("the lease of 10.5.1.0/24 stays"), "{said}");
    assert_eq!(node.net.wrap(state).ok()?.stdout, before);
    assert!(!node.subnet_file().exists());
    node.command("cleanup").ok().map(drop)
}

#[test]
fn cleanup_leaves_what_nothing_shows_to_be_ours() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    // As flannel runs.
    for line in [
        "ip link add flannel.1 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning",
        "ip address add 10.5.1.0/32 dev flannel.1",
        "ip link set flannel.1 up",
        "ip route add 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink",
    ] {
        node.net.cmd(line).ok()?;
    }
    let env = node.dir.write("run/subnet.env", "FLANNEL_SUBNET=10.5.1.1/24\n")?;
    let said = node.command("cleanup").ok()?.stdout;
    assert!(said.starts_with("nothing is removed: "), "{said}");
    node.shows(ROUTES, "10.5.3.0/24")?;
    assert!(env.exists());
    // Without its status file our own is known by its table.
    node.leases(&[])?;
    node.start()?;
    node.flanneld.take().context("not started")?.terminate(PATIENCE)?;
    fs::remove_file(node.dir.path().join("run/status.json"))?;
    let said = node.command("cleanup").ok()?.stdout;
    assert!(said.starts_with("removed what belongs to flannel.1"), "{said}");
    assert_eq!((node.shown("ip -br link show type vxlan")?.as_str(), env.exists()), ("", false));
    Ok(())
}

#[test]
fn cleanup_forgets_nothing_that_it_could_not_remove() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.leases(&peers(&[3]))?;
    node.start()?;
    node.flanneld.take().context("not started")?.terminate(PATIENCE)?;
    // A table that another process owns can't be removed.
    node.net.cmd("nft delete table ip weft-flannel.1").ok()?;
    let owner = "(echo 'add table ip weft-flannel.1 { flags owner ; }'; sleep 60) | nft -i";
    let owner = Process::spawn(&node.net.wrap(Cmd::shell(owner)), node.dir.path().join("owner.log"))?;
    node.shows("nft list tables", "weft-flannel.1")?;
    let failed = node.command("cleanup").run()?;
    assert!(!failed.success() && !failed.stdout.contains("removed"), "{failed}");
    assert_eq!(node.shown("ip -br link show type vxlan")?, "", "the rest goes");
    assert!(node.subnet_file().exists() && node.status()?["node"]["device"] == json!("flannel.1"));
    drop(owner);
    node.shows("nft list tables", "!weft-flannel.1")?;
    node.command("cleanup").ok()?;
    assert!(!node.subnet_file().exists() && node.status().is_err());
    Ok(())
}

#[test]
fn cleanup_takes_routes_without_a_tunnel_too() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.leases_with(&json!({"Type": "vxlan", "DirectRouting": true}), &peers(&[3]))?;
    node.start()?;
    node.shows("ip route", "10.5.3.0/24 via 192.0.2.3 dev eth0 proto 154")?;
    node.flanneld.take().context("not started")?.terminate(PATIENCE)?;
    node.command("cleanup").ok()?;
    assert_eq!(node.shown("ip route show proto 154")?, "");
    Ok(())
}

#[test]
fn a_second_one_refuses_a_held_file_and_a_held_device() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.leases(&[])?;
    node.start()?;
    let second = node.command("run").limit(PATIENCE).run()?;
    assert!(
        !second.success() && second.stderr.contains("subnet.env is held by another flanneld"),
        "{second}"
    );
    // The last of a repeated flag wins.
    let other_file = format!("-subnet-file={}", node.dir.path().join("other/subnet.env").display());
    let second = node.command("run").arg(other_file).limit(PATIENCE).run()?;
    assert!(!second.success() && second.stderr.contains("interface flannel.1 is held"), "{second}");
    Ok(())
}

#[test]
fn without_the_privilege_it_says_what_is_missing() -> Result<()> {
    let Some(node) = Node::new()? else { return Ok(()) };
    node.leases(&[])?;
    let bare = node.program("run").entering(["setpriv", "--bounding-set=-all", "--inh-caps=-all"]);
    let ran = node.net.wrap(bare).limit(PATIENCE).run()?;
    assert!(!ran.success() && ran.stderr.contains("CAP_NET_ADMIN"), "{ran}");
    Ok(())
}

#[test]
fn the_status_of_one_that_ended_is_shown_with_a_failure() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    let never = node.command("status").run()?;
    assert!(!never.success() && never.stderr.contains("has flanneld been started?"), "{never}");
    node.leases(&[])?;
    node.start()?;
    let running = node.command("status --json").ok()?.stdout;
    let status: Value = serde_json::from_str(&running)?;
    assert_eq!((&status["ready"], &status["node"]["subnet"]), (&json!(true), &json!("10.5.1.0/24")));
    node.flanneld.take().context("not started")?.kill();
    let ended = node.command("status").run()?;
    assert!(!ended.success() && ended.stdout.contains("10.5.1.0/24"), "{ended}");
    assert!(ended.stderr.contains("flanneld is not running"), "{ended}");
    Ok(())
}

#[test]
fn the_status_names_what_else_drops_forwarded_packets() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.leases(&[])?;
    node.start()?;
    node.net.cmd("nft add table inet wall").ok()?;
    let chain = "nft add chain inet wall gate { type filter hook forward priority 10 ; policy drop ; }";
    node.net.cmd(chain).ok()?;
    let named = |node: &Node| {
        let warnings = node.status().ok()?["warnings"].to_string();
        warnings.contains("chain gate of table inet wall drops what is forwarded by its policy").then_some(())
    };
    eventually(PATIENCE, || named(&node)).with_context(|| format!("{:?}", node.status()))?;
    node.net.cmd("nft delete table inet wall").ok()?;
    eventually(PATIENCE, || named(&node).is_none().then_some(())).context("it is still named")?;
    Ok(())
}

#[test]
fn the_status_says_what_to_type_where_legacy_iptables_filters() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.net.cmd("iptables-legacy -P FORWARD DROP").ok()?;
    node.leases(&[])?;
    node.start()?;
    let wanted = "iptables-legacy -A FORWARD -s 10.5.0.0/16 -j ACCEPT; iptables-legacy -A FORWARD -d 10.5.0.0/16 -j ACCEPT";
    let said =
        eventually(PATIENCE, || node.command("status").ok().ok().filter(|ran| ran.stdout.contains(wanted)));
    said.with_context(|| format!("{:?}", node.status())).map(drop)
}

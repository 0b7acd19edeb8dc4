//! Which subnet this node takes, and keeps.

use std::{fs, os::unix::fs::MetadataExt};

use anyhow::{Context, Result};
use serde_json::json;
use testkit::{Cmd, Process, bin, eventually};

use crate::node::{Node, PATIENCE, ROUTES, peers};

#[test]
fn a_host_that_uses_the_whole_network_gets_no_subnet_and_is_told_why() -> Result<()> {
    let Some(node) = Node::new()? else { return Ok(()) };
    node.net.cmd("ip address add 10.5.9.9/16 dev far").ok()?;
    node.dir.write("leases.json", r#"{"config": {"Network": "10.5.0.0/16"}, "leases": {}}"#)?;
    let ran = node.command("run").limit(PATIENCE).run()?;
    assert!(!ran.success(), "{ran}");
    for part in ["no subnet of 10.5.0.0/16 is free of overlap", "10.5.9.9/16 of far"] {
        assert!(ran.stderr.contains(part), "{ran}");
        let problem = node.status()?["problem"].to_string();
        assert!(problem.contains(part), "{problem}");
    }
    assert!(!node.subnet_file().exists());
    Ok(())
}

#[test]
fn a_subnet_that_this_host_uses_is_left_out_and_the_warning_names_both() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    for address in ["10.5.0.17/30", "10.5.0.25/32"] {
        node.net.cmd(format!("ip address add {address} dev far")).ok()?;
    }
    // Two of the subnets 10.5.0.16/30, .20/30, .24/30 and .28/30 are the host's own.
    let text =
        r#"{"config": {"Network": "10.5.0.0/27", "SubnetLen": 30, "SubnetMin": "10.5.0.16"}, "leases": {}}"#;
    node.dir.write("leases.json", text)?;
    node.start()?;
    let leased = node.status()?["node"]["subnet"].to_string();
    assert!(["\"10.5.0.20/30\"", "\"10.5.0.28/30\""].contains(&leased.as_str()), "{leased}");
    for warning in [
        "10.5.0.16/30 overlaps address 10.5.0.17/30 of far",
        "10.5.0.24/30 overlaps address 10.5.0.25/32 of far",
    ] {
        assert!(node.log().contains(warning), "{}", node.log());
    }
    Ok(())
}

#[test]
fn a_garbled_subnet_file_is_warned_of_once_and_replaced() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.dir.write("leases.json", r#"{"config": {"Network": "10.5.0.0/16"}, "leases": {}}"#)?;
    fs::create_dir_all(node.subnet_file().parent().context("a folder")?)?;
    fs::write(node.subnet_file(), "FLANNEL_SUBNET=10.5.300.1/24\n")?;
    node.start()?;
    let file = node.subnet_file();
    let warning = format!("{}: FLANNEL_SUBNET \"10.5.300.1/24\" is not one IPv4 subnet", file.display());
    assert_eq!(node.log().matches(&warning).count(), 1, "{}", node.log());
    assert!(fs::read_to_string(file)?.contains("FLANNEL_SUBNET=10.5.1.1/24"));
    Ok(())
}

/// Addresses of pods that run stay, and so does the lease that they are from.
#[test]
fn a_restart_with_pods_on_the_bridge_keeps_the_subnet() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.dir.write("leases.json", r#"{"config": {"Network": "10.5.0.0/16"}, "leases": {}}"#)?;
    node.start()?;
    let before = fs::read_to_string(node.subnet_file())?;
    let gateway =
        before.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET=")).context("no subnet")?;
    node.net.cmd("ip link add cni0 type bridge").ok()?;
    node.net.cmd(format!("ip address add {gateway} dev cni0")).ok()?;
    node.net.cmd("ip link set cni0 up").ok()?;
    for _ in 0..3 {
        node.flanneld.take().context("not started")?.kill();
        node.start()?;
        assert_eq!(fs::read_to_string(node.subnet_file())?, before);
        assert!(!node.log().contains("overlaps"), "{}", node.log());
    }
    Ok(())
}

/// The lease was lost and another subnet taken: pods that run keep their addresses on the bridge, and
/// whoever leases the old subnet is not routed into them.
#[test]
fn another_subnet_takes_effect_and_leaves_running_pods_alone() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.leases(&peers(&[3]))?;
    node.start()?;
    node.net.cmd("ip link add cni0 type bridge").ok()?;
    node.net.cmd("ip address add 10.5.1.1/24 dev cni0").ok()?;
    node.net.cmd("ip link set cni0 up").ok()?;
    let leases: serde_json::Map<_, _> = peers(&[1, 3]).into_iter().collect();
    let text = json!({"config": {"Network": "10.5.0.0/16"}, "own": "10.5.2.0-24", "leases": leases});
    node.dir.write("leases.json", text.to_string())?;
    node.shows("ip -4 address show dev flannel.1", "inet 10.5.2.0/32")?;
    node.shows("ip -4 address show dev flannel.1", "!10.5.1.0/32")?;
    node.shows("nft list table ip weft-flannel.1", "ip saddr 10.5.2.0/24 ip daddr 10.5.0.0/16 return")?;
    let env = eventually(PATIENCE, || {
        fs::read_to_string(node.subnet_file()).ok().filter(|env| env.contains("FLANNEL_SUBNET=10.5.2.1/24"))
    });
    env.with_context(|| node.log())?;
    node.shows(ROUTES, "10.5.3.0/24")?;
    assert!(!node.shown(ROUTES)?.contains("10.5.1.0/24"), "the old subnet leads away from its pods");
    assert!(node.shown("ip -4 address show dev cni0")?.contains("10.5.1.1/24"));
    let skipped = node.status()?["skipped"].to_string();
    assert!(skipped.contains("it overlaps address 10.5.1.1/24 of cni0 of this host"), "{skipped}");
    Ok(())
}

#[test]
fn whatever_the_umask_anybody_may_read_the_subnet_file() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.leases(&[])?;
    let (program, dir) = (bin("flanneld"), node.dir.path().display());
    let line =
        format!("{} run -from file:{dir}/leases.json -subnet-file {dir}/run/subnet.env", program.display());
    let strict = node.net.wrap(Cmd::shell(format!("umask 077; exec {line}")));
    node.flanneld = Some(Process::spawn(&strict, node.dir.path().join("log"))?);
    let there = || node.subnet_file().metadata().ok();
    let (file, _) = eventually(PATIENCE, there).with_context(|| node.log())?;
    let folder = node.dir.path().join("run").metadata()?;
    assert_eq!((file.mode() & 0o777, folder.mode() & 0o777), (0o644, 0o755));
    Ok(())
}

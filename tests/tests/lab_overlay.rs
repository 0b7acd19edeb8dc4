//! Pods on several nodes, over leases in a real etcd and VXLAN.

use std::time::Duration;

use anyhow::{Context, Result};
use netns_tests::cluster::{UP, leases, overlay, pods, reach_each_other};
use testkit::eventually;
use testkit::lab::{Lab, Plan};
use testkit::ping::Pinger;

/// Pings from the first pod to the second while `work` is done; nothing may be lost.
fn nothing_is_lost(lab: &mut Lab, count: u16, work: impl FnOnce(&mut Lab) -> Result<()>) -> Result<()> {
    let pods = pods(lab)?;
    let pinger = Pinger::start(&pods[0].net, pods[1].address, count)?;
    std::thread::sleep(Duration::from_secs(1));
    work(lab)?;
    let pinged = pinger.finish()?;
    assert!(pinged.sent == count && pinged.lost.is_empty(), "{pinged:?}");
    Ok(())
}

#[test]
fn every_pod_reaches_every_pod_on_three_nodes() -> Result<()> {
    let Some(lab) = overlay(Plan::default())? else { return Ok(()) };
    let pods = pods(&lab)?;
    reach_each_other(&pods)?;
    assert_eq!(leases(&lab)?.len(), 3);
    for pod in &pods {
        lab.cni.check(&lab.nodes[pod.node].space, &pod.attachment, &pod.result)?;
        lab.remove_pod(pod.node, pod)?;
        let left = lab.nodes[pod.node].cmd("ip -j link show master cni0").json()?;
        assert_eq!(left.as_array().map_or(0, Vec::len), 0, "{left}");
    }
    Ok(())
}

/// The guides' hosts have an address inside the very Network that they give to flannel.
#[test]
fn the_guides_plan_works_and_the_hosts_own_subnet_is_never_leased() -> Result<()> {
    let config = Some(r#"{"Network":"172.16.0.0/16"}"#.to_owned());
    let plan = Plan { second_address: true, config, ..Plan::default() };
    let Some(lab) = overlay(plan)? else { return Ok(()) };
    let keys = leases(&lab)?;
    assert_eq!(keys.len(), 3);
    assert!(!keys.iter().any(|key| key.ends_with("/172.16.1.0-24")), "{keys:?}");
    reach_each_other(&pods(&lab)?)?;
    let direct = lab.nodes[0].cmd("ip route get 172.16.1.12").ok()?;
    assert!(direct.stdout.contains("dev eth0"), "{direct}");
    Ok(())
}

#[test]
fn nodes_without_a_default_route_take_part() -> Result<()> {
    let plan = Plan { without_default_route: vec![0, 2], ..Plan::default() };
    let Some(lab) = overlay(plan)? else { return Ok(()) };
    reach_each_other(&pods(&lab)?)
}

#[test]
fn twenty_seconds_without_an_answer_from_etcd_cost_no_packet() -> Result<()> {
    let Some(mut lab) = overlay(Plan { nodes: 2, ..Plan::default() })? else { return Ok(()) };
    let before = leases(&lab)?;
    nothing_is_lost(&mut lab, 2300, |lab| {
        lab.etcd.freeze([0])?;
        std::thread::sleep(Duration::from_secs(20));
        lab.etcd.thaw([0])
    })?;
    assert_eq!(leases(&lab)?, before);
    Ok(())
}

#[test]
fn with_one_of_three_members_lost_a_new_node_still_joins() -> Result<()> {
    let plan = Plan { etcd_members: 3, ..Plan::default() };
    let Some(mut lab) = testkit::require_or_skip("lab", Lab::new(plan)) else { return Ok(()) };
    lab.start_flanneld(0)?;
    lab.start_flanneld(1)?;
    let two = eventually(UP, || leases(&lab).ok().filter(|keys| keys.len() == 2));
    two.with_context(|| format!("two nodes got no leases:\n{}{}", lab.nodes[0].logs(), lab.nodes[1].logs()))?;
    lab.etcd.kill(0);
    lab.start_flanneld(2)?;
    lab.wait_mesh(UP)?;
    reach_each_other(&pods(&lab)?)
}

#[test]
fn an_etcd_that_comes_back_empty_gets_the_same_leases_again() -> Result<()> {
    let Some(mut lab) = overlay(Plan::default())? else { return Ok(()) };
    let pods = pods(&lab)?;
    let before = leases(&lab)?;
    lab.etcd.restart_empty(&lab.underlay)?;
    let config = lab.plan.config.clone().context("the plan has a config")?;
    lab.etcd.put(&lab.underlay, &format!("{}/config", lab.plan.prefix), &config)?;
    let again = eventually(UP, || leases(&lab).ok().filter(|now| *now == before));
    again.with_context(|| format!("leases before: {before:?}, now: {:?}", leases(&lab)))?;
    lab.wait_mesh(UP)?;
    reach_each_other(&pods)
}

#[test]
fn a_revoked_lease_is_taken_again_by_its_node() -> Result<()> {
    let Some(mut lab) = overlay(Plan { nodes: 2, ..Plan::default() })? else { return Ok(()) };
    let pods = pods(&lab)?;
    let before = leases(&lab)?;
    let subnet = lab.nodes[0].subnet()?;
    let listed = lab.etcd.ctl(&lab.underlay, "lease list").ok()?;
    for lease in
        listed.stdout.lines().filter(|line| line.len() == 16 && line.chars().all(|c| c.is_ascii_hexdigit()))
    {
        lab.etcd.ctl(&lab.underlay, &format!("lease revoke {lease}")).ok()?;
    }
    let again = eventually(UP, || leases(&lab).ok().filter(|now| *now == before));
    again.with_context(|| {
        format!("leases before: {before:?}, now: {:?}\n{}", leases(&lab), lab.nodes[0].logs())
    })?;
    assert_eq!(lab.nodes[0].subnet()?, subnet);
    lab.wait_mesh(UP)?;
    reach_each_other(&pods)
}

#[test]
fn kill_and_restart_of_flanneld_cost_no_packet_and_change_no_lease() -> Result<()> {
    let Some(mut lab) = overlay(Plan { nodes: 2, ..Plan::default() })? else { return Ok(()) };
    let before = leases(&lab)?;
    nothing_is_lost(&mut lab, 1000, |lab| {
        for index in 0..2 {
            lab.nodes[index].kill_flanneld();
            std::thread::sleep(Duration::from_secs(1));
            lab.start_flanneld(index)?;
        }
        Ok(())
    })?;
    assert_eq!(leases(&lab)?, before);
    Ok(())
}

#[test]
fn sigterm_ends_flanneld_well_and_leaves_the_data_plane_up() -> Result<()> {
    let Some(mut lab) = overlay(Plan { nodes: 2, ..Plan::default() })? else { return Ok(()) };
    let pods = pods(&lab)?;
    for node in &mut lab.nodes {
        assert_eq!(node.stop_flanneld()?, Some(0));
    }
    reach_each_other(&pods)
}

/// A peer that moves to another address is reached there, and its old entry is gone.
#[test]
fn a_peer_that_moves_takes_its_fdb_entry_along() -> Result<()> {
    let Some(mut lab) = overlay(Plan { nodes: 2, ..Plan::default() })? else { return Ok(()) };
    let pods = pods(&lab)?;
    let subnet = lab.nodes[1].subnet()?;
    lab.nodes[1].kill_flanneld();
    let moved = &lab.nodes[1];
    moved.cmd("ip address delete 192.168.100.12/24 dev eth0").ok()?;
    moved.cmd("ip address add 192.168.100.52/24 dev eth0").ok()?;
    moved.cmd("ip route replace default via 192.168.100.1").ok()?;
    lab.start_flanneld(1)?;
    let entries = || lab.nodes[0].cmd("bridge fdb show dev flannel.1").ok().map(|ran| ran.stdout);
    let followed = eventually(UP, || {
        entries().ok().filter(|text| text.contains("192.168.100.52") && !text.contains("192.168.100.12"))
    });
    followed.with_context(|| format!("{:?}\n{}", entries(), lab.nodes[1].logs()))?;
    assert_eq!(lab.nodes[1].subnet()?, subnet, "its identity does not hang on its address");
    let reached = eventually(UP, || reach_each_other(&pods).ok());
    reached.context("pods don't reach each other after the move").map(drop)
}

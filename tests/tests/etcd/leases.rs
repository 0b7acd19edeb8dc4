//! Who gets which subnet, and what is written.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use flanneld::{
    lock::{self, LockError},
    source::{
        Fatal, Ports,
        etcd::{Session, Times},
    },
};
use overlay_core::{
    host::NodeFacts,
    lease::{Lease, View},
    wire::vxlan_value,
};
use serde_json::json;
use tokio::{sync::watch, time::timeout};

use crate::{
    node::{LIMIT, Node, eventually, facts, key, quick, settings},
    server::{PREFIX, Server},
};

/// A lease as a Go flannel wrote it.
fn flannels(ip: &str) -> String {
    format!(
        r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}}}"#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_flannels_byte_for_byte_and_nothing_else_is_below_subnets() -> Result<()> {
    let server = Server::start(1)?;
    server.put_config()?;
    let mut node = Node::start(&server, 7);
    let own = node.leased().await?.own;
    let value = vxlan_value(own.public_ip, own.vni, own.vtep_mac);
    assert_eq!(value, flannels("192.0.2.7").replace("c6:d2:32:6f:8f:44", &own.vtep_mac.to_string()));
    assert_eq!(server.list("subnets")?, [(key(own.subnet), value)]);
    let lease = server.ttl_lease(&format!("subnets/{}", key(own.subnet)))?;
    let left = server.ctl(&format!("lease timetolive {lease:x}")).ok()?.stdout;
    assert!(left.contains("granted with TTL(86400s)"), "{left}");
    let record = format!(r#"{{"Subnet":"{}","PublicIP":"192.0.2.7"}}"#, own.subnet);
    assert_eq!(server.list("weft/nodes")?, [("07".repeat(16), record)]);
    Ok(())
}

/// The other one uses the same VNI with a prefix, or a network, of its own.
#[tokio::test]
async fn a_device_that_another_holds_is_refused_before_anything_is_written() -> Result<()> {
    let server = Server::start(1)?;
    let device: netmodel::IfName = format!("flannel.{}", std::process::id()).parse()?;
    let config = json!({"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": std::process::id()}});
    server.put("config", &config.to_string())?;
    let _held = lock::device(&device)?;
    let (_facts, heard) = watch::channel(Some(facts(1)));
    let (said, view) = watch::channel(View::default());
    let ports = Ports { facts: heard, view: said, device: Some(Arc::default()) };
    let ended = timeout(LIMIT, Session::new(&settings(&server), quick(), ports).run()).await?;
    assert!(matches!(&ended, Fatal::Held(LockError::DeviceHeld(name)) if *name == device), "{ended:?}");
    assert_eq!(view.borrow().assignment, None);
    let keys = server.ctl(&format!("get --prefix {PREFIX} --keys-only")).ok()?.stdout;
    assert_eq!(keys.trim(), format!("{PREFIX}/config"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_node_beside_flannels_waits_for_nobody() -> Result<()> {
    let server = Server::start(1)?;
    server.put_config()?;
    server.put("subnets/10.5.9.0-24", &flannels("192.0.2.99"))?;
    // A wait would last longer than the test is patient.
    let times = Times { settle: Duration::from_secs(600), ..Times::default() };
    let mut node = Node::start_with(&settings(&server), times, facts(1));
    node.leased().await?;
    assert_eq!(node.knows(2).await?.note, None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_nodes_race_for_forty_subnets() -> Result<()> {
    let server = Server::start(1)?;
    server.put(
        "config",
        r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.40.0","Backend":{"Type":"vxlan"}}"#,
    )?;
    let mut nodes: Vec<_> = (1..=50).map(|n| Node::start(&server, n)).collect();
    let (mut owners, mut errors) = (BTreeSet::new(), Vec::new());
    for node in &mut nodes {
        let view = node
            .until("leased or refused", |view| view.assignment.is_some() || view.state.problem.is_some())
            .await?;
        match view.assignment {
            Some(assignment) => assert!(owners.insert(assignment.own.subnet), "two nodes hold one subnet"),
            None => errors.extend(view.state.problem),
        }
    }
    assert_eq!((owners.len(), errors.len()), (40, 10));
    for error in &errors {
        assert_eq!(
            error,
            "no subnet is left: all 40 subnets from 10.5.1.0 to 10.5.40.0 of 10.5.0.0/16 are leased"
        );
    }
    let written = server.list("subnets")?;
    let addresses: BTreeSet<_> = written.iter().map(|(_, value)| value).collect();
    assert_eq!((written.len(), addresses.len()), (40, 40));
    // One leaves: one of the ten gets its subnet.
    let gone = nodes.iter().position(|node| node.subnet().is_some()).context("a holder")?;
    let subnet = nodes[gone].subnet().context("its subnet")?;
    drop(nodes.remove(gone));
    server.revoke(server.ttl_lease(&format!("subnets/{}", key(subnet)))?)?;
    eventually("taken over", || Ok(nodes.iter().filter(|node| node.subnet().is_some()).count() == 40)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_gets_its_subnet_again_even_with_another_address() -> Result<()> {
    let server = Server::start(1)?;
    server.put_config()?;
    let mut node = Node::start(&server, 1);
    let first = node.leased().await?.own.subnet;
    drop(node);
    let moved = NodeFacts { public_ip: "192.0.2.99".parse()?, ..facts(1) };
    let mut node = Node::start_with(&settings(&server), quick(), moved);
    let again = node.leased().await?.own;
    assert_eq!((again.subnet, again.public_ip.to_string()), (first, "192.0.2.99".to_owned()));
    let written = server.list("subnets")?;
    assert_eq!(written.len(), 1, "{written:?}");
    assert!(written[0].1.contains(r#""PublicIP":"192.0.2.99""#), "{written:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_flannel_leased_by_public_address_is_taken_over() -> Result<()> {
    let server = Server::start(1)?;
    server.put_config()?;
    server.put("subnets/10.5.34.0-24", &flannels("192.0.2.3"))?;
    server.put("subnets/10.5.35.0-24", &flannels("192.0.2.4").replace("8f:44", "8f:45"))?;
    let mut node = Node::start(&server, 3);
    let assignment = node.leased().await?;
    assert_eq!(assignment.own.subnet.to_string(), "10.5.34.0/24");
    assert_eq!(assignment.own.vtep_mac.to_string(), "c6:d2:32:6f:8f:44", "the device keeps its address");
    assert_eq!(assignment.leases.len(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_subnet_of_subnet_env_is_taken_again_if_it_is_free() -> Result<()> {
    let server = Server::start(1)?;
    server.put_config()?;
    let before = |n: u8| NodeFacts { previous: "10.5.77.0/24".parse().ok(), ..facts(n) };
    let mut first = Node::start_with(&settings(&server), quick(), before(1));
    assert_eq!(first.leased().await?.own.subnet.to_string(), "10.5.77.0/24");
    let mut second = Node::start_with(&settings(&server), quick(), before(2));
    let own = second.leased().await?.own.subnet;
    assert_ne!(own.to_string(), "10.5.77.0/24");
    let lost = format!(
        "the lease of 10.5.77.0/24 was taken by 192.0.2.1 while flanneld was not running; leased {own} instead: \
         running pods keep their addresses"
    );
    assert_eq!((first.note(), second.note()), (None, Some(lost)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reservation_stays_one() -> Result<()> {
    let server = Server::start(1)?;
    server.put_config()?;
    server.put("subnets/10.5.34.0-24", &flannels("192.0.2.3"))?;
    let mut node = Node::start(&server, 3);
    let own = node.leased().await?.own;
    assert_eq!((own.subnet.to_string(), own.expires), ("10.5.34.0/24".to_owned(), None));
    assert_eq!(server.ttl_lease("subnets/10.5.34.0-24")?, 0);
    // Neither a restart nor a change of address gives it an end.
    drop(node);
    let mut node = Node::start(&server, 3);
    node.leased().await?;
    node.facts.send_modify(|facts| {
        if let Some(facts) = facts {
            facts.public_ip = [192, 0, 2, 33].into();
        }
    });
    let moved = |_: &()| server.list("subnets").map(|all| all[0].1.contains("192.0.2.33"));
    eventually("the new address written", || moved(&())).await?;
    assert_eq!(server.ttl_lease("subnets/10.5.34.0-24")?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_address_is_written_in_place_and_seen_by_others() -> Result<()> {
    let server = Server::start(1)?;
    server.put_config()?;
    let (mut moving, mut other) = (Node::start(&server, 1), Node::start(&server, 2));
    let before = moving.leased().await?.own;
    other.knows(2).await?;
    moving.facts.send_modify(|facts| {
        if let Some(facts) = facts {
            facts.public_ip = [192, 0, 2, 111].into();
        }
    });
    let has_new = |view: &View| {
        let leases = view.assignment.iter().flat_map(|a| a.leases.iter());
        leases.into_iter().any(|lease| lease.key == key(before.subnet) && lease.value.contains("192.0.2.111"))
    };
    other.until("the new address seen", has_new).await?;
    let after = moving.until("told", |view| {
        view.assignment.as_ref().is_some_and(|a| a.own.public_ip.to_string() == "192.0.2.111")
    });
    assert_eq!(after.await?.assignment.context("an assignment")?.own.subnet, before.subnet);
    assert_eq!(server.list("subnets")?.len(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_renewed_under_a_new_term_and_the_old_one_is_given_back() -> Result<()> {
    let server = Server::start(1)?;
    server.put_config()?;
    let times = Times { lease: Duration::from_secs(6), ..quick() };
    let renewing =
        flanneld::flags::EtcdSettings { renew_margin: Duration::from_secs(4), ..settings(&server) };
    let mut node = Node::start_with(&renewing, times, facts(1));
    let own = node.leased().await?.own;
    let path = format!("subnets/{}", key(own.subnet));
    let first = server.ttl_lease(&path)?;
    eventually("renewed", || Ok(server.ttl_lease(&path)? != first)).await?;
    // Longer than the first term.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_ne!(server.ttl_lease(&path)?, 0);
    assert_eq!(node.note(), None, "it was never lost");
    let all = server.ctl("lease list").ok()?.stdout;
    assert!(!all.contains(&format!("{first:x}")), "{all}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewal_never_overwrites_a_new_owner() -> Result<()> {
    let server = Server::start(1)?;
    server.put_config()?;
    let times = Times { lease: Duration::from_secs(5), ..quick() };
    let renewing =
        flanneld::flags::EtcdSettings { renew_margin: Duration::from_secs(3), ..settings(&server) };
    let mut node = Node::start_with(&renewing, times, facts(1));
    let before = node.leased().await?.own.subnet;
    let path = format!("subnets/{}", key(before));
    server.put(&path, &flannels("192.0.2.200"))?;
    node.until("moved on", |view| view.assignment.as_ref().is_some_and(|a| a.own.subnet != before)).await?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let owner = server.list("subnets")?.into_iter().find(|(k, _)| *k == key(before)).context("the lease")?;
    assert_eq!(owner.1, flannels("192.0.2.200"));
    let note = node.note().context("a note")?;
    assert!(note.starts_with(&format!("the lease of {before} was taken by 192.0.2.200; leased ")), "{note}");
    assert!(note.ends_with("instead: running pods keep their addresses"), "{note}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_or_deleted_lease_is_taken_again() -> Result<()> {
    let server = Server::start(1)?;
    server.put_config()?;
    let mut node = Node::start(&server, 1);
    let own = node.leased().await?.own.subnet;
    let path = format!("subnets/{}", key(own));
    for round in ["revoked", "deleted"] {
        let before = server.ttl_lease(&path)?;
        if round == "revoked" {
            server.revoke(before)?;
        } else {
            server.ctl(&format!("del {}/{path}", crate::server::PREFIX)).ok()?;
        }
        eventually(round, || Ok(server.ttl_lease(&path).is_ok_and(|now| now != before))).await?;
    }
    node.until("noted", |view| view.assignment.as_ref().is_some_and(|a| a.note.is_some())).await?;
    assert_eq!(node.subnet(), Some(own));
    assert_eq!(node.note(), Some(format!("the lease of {own} was deleted or ended; took it again")));
    assert!(!node.task.is_finished());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbled_keys_and_values_are_passed_on_and_harm_nothing() -> Result<()> {
    let server = Server::start(1)?;
    server.put_config()?;
    let mut node = Node::start(&server, 1);
    let own = node.leased().await?.own.subnet;
    for (name, value) in [("nonsense", "x"), ("0.0.0.0-0", "{not json"), ("10.5.209.0-24", "[]")] {
        server.put(&format!("subnets/{name}"), value)?;
    }
    let assignment = node.knows(4).await?;
    assert!(assignment.leases.iter().any(|lease| lease.key == "nonsense" && lease.value == "x"));
    assert_eq!(node.subnet(), Some(own));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_lease_of_the_whole_network_keeps_no_node_from_its_subnet() -> Result<()> {
    let server = Server::start(1)?;
    server.put_config()?;
    for name in ["10.5.0.0-16", "10.0.0.0-8", "0.0.0.0-0"] {
        server.put(&format!("subnets/{name}"), &flannels("192.0.2.99"))?;
    }
    let mut node = Node::start(&server, 1);
    node.leased().await?;
    assert_eq!(node.knows(4).await?.note, None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_with_one_identity_do_not_fight_and_share_nothing() -> Result<()> {
    let server = Server::start(1)?;
    server.put_config()?;
    // A machine that was cloned: the same identity, another address.
    let one = facts(1);
    let clone = NodeFacts { public_ip: "192.0.2.201".parse()?, ..facts(1) };
    let mut first = Node::start(&server, 1);
    let before = first.leased().await?.own.subnet;
    let mut second = Node::start_with(&settings(&server), quick(), clone.clone());
    second.leased().await?;
    eventually("apart", || Ok(first.subnet() != second.subnet())).await?;
    let note = first.note().context("a note")?;
    let taken =
        format!("the lease of {before} was taken by 192.0.2.201: that machine and this one, 192.0.2.1, have");
    assert!(note.starts_with(&taken), "{note}");
    let mut held = [first.leased().await?.own, second.leased().await?.own];
    // Both restart, as after a boot and as a mere program, one before the other and in turn.
    for (round, keeps_files) in [false, true, true].into_iter().enumerate() {
        quiet(&server).await?;
        assert_ne!(held[0].vtep_mac, held[1].vtep_mac);
        drop((first, second));
        let again = |facts: &NodeFacts, own: &Lease| {
            let vteps = if keeps_files { vec![(own.vni, own.vtep_mac)] } else { vec![] };
            let facts = NodeFacts { vteps, previous: keeps_files.then_some(own.subnet), ..facts.clone() };
            Node::start_with(&settings(&server), quick(), facts)
        };
        if round == 1 {
            second = again(&clone, &held[1]);
            second.leased().await?;
            first = again(&one, &held[0]);
        } else {
            first = again(&one, &held[0]);
            first.leased().await?;
            second = again(&clone, &held[1]);
        }
        let now = [first.leased().await?.own, second.leased().await?.own];
        let parts = |held: &[Lease; 2]| held.map(|own| (own.subnet, own.vtep_mac));
        assert_eq!(parts(&now), parts(&held), "round {round}");
        held = now;
    }
    quiet(&server).await
}

/// Nobody writes anything for a while.
async fn quiet(server: &Server) -> Result<()> {
    tokio::time::sleep(Duration::from_millis(500)).await;
    let revision = server.json("config")?["header"]["revision"].clone();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(server.json("config")?["header"]["revision"], revision, "they still write");
    assert_eq!(server.list("subnets")?.len(), 2);
    Ok(())
}

//! etcd away, back, compacted, emptied.

use anyhow::{Context, Result};
use overlay_core::lease::View;

use crate::{
    node::{Node, eventually, key},
    server::{PREFIX, Server},
};

fn away(view: &View) -> bool {
    !view.state.connected && view.assignment.is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_assignment_stays_while_etcd_is_away_and_the_watch_goes_on_after() -> Result<()> {
    let mut server = Server::start(1)?;
    server.put_config()?;
    let mut node = Node::start(&server, 1);
    let own = node.leased().await?.own;
    let path = format!("subnets/{}", key(own.subnet));
    let lease = server.ttl_lease(&path)?;
    server.kill(0);
    // A connection that was about to be made when it was killed says something else, once.
    let endpoint = &server.endpoints()[0];
    let refused = format!("etcd does not answer: {endpoint}: Connection refused (os error 111)");
    node.until("away", |view| away(view) && view.state.problem.as_ref() == Some(&refused)).await?;
    server.launch()?;
    node.leased().await?;
    server.put("subnets/10.5.209.0-24", "{}")?;
    node.knows(2).await?;
    assert_eq!((node.subnet(), node.note()), (Some(own.subnet), None));
    assert_eq!(server.ttl_lease(&path)?, lease, "nothing was written anew");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_compacted_meanwhile_is_read_anew() -> Result<()> {
    let mut server = Server::start(1)?;
    server.put_config()?;
    server.put("subnets/10.5.208.0-24", "{}")?;
    let mut node = Node::start(&server, 1);
    node.knows(2).await?;
    let own = node.subnet();
    server.kill(0);
    node.until("away", away).await?;
    // While the node cannot look: one lease goes, one comes, and the history is forgotten.
    let endpoint = server.endpoints()[0].clone();
    server.launch_elsewhere(|moved| {
        moved.ctl(&format!("del {PREFIX}/subnets/10.5.208.0-24")).ok()?;
        moved.put("subnets/10.5.209.0-24", "{}")?;
        let revision = moved.json("config")?["header"]["revision"].as_i64().context("a revision")?;
        moved.ctl(&format!("compact {revision}")).ok().map(drop)
    })?;
    assert_eq!(server.endpoints()[0], endpoint);
    server.launch()?;
    let has = |view: &View, key: &str| {
        view.assignment.as_ref().is_some_and(|a| a.leases.iter().any(|lease| lease.key == key))
    };
    node.until("read anew", |view| has(view, "10.5.209.0-24") && !has(view, "10.5.208.0-24")).await?;
    assert_eq!(node.subnet(), own);
    server.put("subnets/10.5.207.0-24", "{}")?;
    node.until("followed on", |view| has(view, "10.5.207.0-24")).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_one_of_three_members_is_not_noticed() -> Result<()> {
    let mut server = Server::start(3)?;
    server.put_config()?;
    let mut nodes: Vec<_> = (1..=3).map(|n| Node::start(&server, n)).collect();
    for node in &mut nodes {
        node.leased().await?;
        node.knows(3).await?;
    }
    for lost in 0..3 {
        server.kill(lost);
        let extra = format!("10.5.{}.0-24", 200 + lost);
        server.put(&format!("subnets/{extra}"), "{}")?;
        for node in &mut nodes {
            node.knows(4 + lost).await?;
        }
        // A node that starts now meets the dead member first, and gets along.
        let mut late = Node::start(&server, 100);
        late.leased().await?;
        drop(late);
        server.ctl(&format!("del --prefix {PREFIX}/weft/nodes/{}", "64".repeat(16))).ok()?;
        server.launch()?;
        let mut late = server.list("subnets")?;
        late.retain(|(_, value)| value.contains("192.0.2.100"));
        for (key, _) in late {
            server.ctl(&format!("del {PREFIX}/subnets/{key}")).ok()?;
        }
    }
    assert!(nodes.iter().all(|node| node.note().is_none()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_store_gets_the_same_leases_again_before_any_newcomer() -> Result<()> {
    let mut server = Server::start(1)?;
    // Four subnets for four nodes: a newcomer that chose too early would take one of the others'.
    let config = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.4.0","Backend":{"Type":"vxlan"}}"#;
    server.put("config", config)?;
    let mut nodes: Vec<_> = (1..=3).map(|n| Node::start(&server, n)).collect();
    let mut before = Vec::new();
    for node in &mut nodes {
        before.push(node.leased().await?.own.subnet);
    }
    server.empty();
    for node in &mut nodes {
        node.until("away", away).await?;
    }
    let mut newcomer = Node::start(&server, 4);
    server.launch()?;
    server.put("config", config)?;
    let theirs = newcomer.leased().await?.own.subnet;
    for (node, before) in nodes.iter_mut().zip(&before) {
        node.knows(4).await?;
        assert_eq!(node.subnet(), Some(*before));
        assert_eq!(node.note(), Some(format!("the lease of {before} was deleted or ended; took it again")));
    }
    assert!(!before.contains(&theirs), "{theirs} changed hands");
    assert_eq!(server.list("subnets")?.len(), 4);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_store_is_known_by_its_mark_and_peers_stay_until_they_are_back() -> Result<()> {
    let mut server = Server::start(1)?;
    server.put_config()?;
    let (mut stays, mut late) = (Node::start(&server, 1), Node::start(&server, 2));
    let before = stays.leased().await?.own.subnet;
    let theirs = late.leased().await?.own.subnet;
    stays.knows(2).await?;
    server.empty();
    stays.until("away", away).await?;
    drop(late);
    // The new store's revisions are past the old one's before anybody sees it.
    server.launch_elsewhere(|moved| {
        (0..30).try_for_each(|n| moved.put("elsewhere", &n.to_string()))?;
        moved.put_config()
    })?;
    server.launch()?;
    let back = stays.leased().await?;
    assert_eq!(back.own.subnet, before);
    assert!(back.leases.iter().any(|lease| lease.key == key(theirs)), "{:?}", back.leases);
    assert_eq!(server.list("subnets")?.len(), 1, "the peer's lease is the peer's to write");
    Ok(())
}

/// The restored store holds what this node wrote when it had another address: that is no other node's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_keeps_its_subnet_when_etcd_is_restored_from_before_its_address_changed() -> Result<()> {
    restored(0).await
}

/// Others have written so much that the restored store's revisions are past those that the node knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_keeps_its_subnet_when_the_restored_etcd_has_caught_up() -> Result<()> {
    restored(30).await
}

/// A restored etcd in which others write that many keys before a node sees it, which changed its address since.
async fn restored(writes: usize) -> Result<()> {
    let mut server = Server::start(1)?;
    server.put_config()?;
    let mut node = Node::start(&server, 1);
    let own = node.leased().await?.own.subnet;
    let path = format!("subnets/{}", key(own));
    let holds =
        |server: &Server, ip: &str| Ok(server.list("subnets")?.iter().all(|(_, value)| value.contains(ip)));
    server.back_up()?;
    node.until("away", away).await?;
    server.launch()?;
    node.leased().await?;
    node.facts.send_modify(|facts| {
        if let Some(facts) = facts {
            facts.public_ip = [192, 0, 2, 62].into();
        }
    });
    eventually("the new address written", || holds(&server, "192.0.2.62")).await?;
    server.empty();
    node.until("away", away).await?;
    server.launch_elsewhere(|moved| (0..writes).try_for_each(|n| moved.put("elsewhere", &n.to_string())))?;
    server.launch()?;
    node.leased().await?;
    eventually("written again", || holds(&server, "192.0.2.62")).await?;
    assert_eq!((node.subnet(), node.note()), (Some(own), None));
    assert_eq!(server.list("subnets")?.len(), 1);
    assert_ne!(server.ttl_lease(&path)?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_ended_while_etcd_was_out_of_reach_is_not_taken_from_its_new_owner() -> Result<()> {
    let mut server = Server::start(1)?;
    server.put_config()?;
    let mut node = Node::start(&server, 1);
    let before = node.leased().await?.own.subnet;
    let path = format!("subnets/{}", key(before));
    let lease = server.ttl_lease(&path)?;
    server.kill(0);
    node.until("away", away).await?;
    let new_owner = r#"{"PublicIP":"192.0.2.200","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
    server.launch_elsewhere(|moved| {
        moved.revoke(lease)?;
        moved.put(&path, new_owner)
    })?;
    server.launch()?;
    node.until("moved on", |view| view.assignment.as_ref().is_some_and(|a| a.own.subnet != before)).await?;
    let owner = server.list("subnets")?.into_iter().find(|(k, _)| *k == key(before)).context("the lease")?;
    assert_eq!(owner.1, new_owner);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_starts_without_etcd_waits_for_it() -> Result<()> {
    let mut server = Server::prepare(testkit::TempDir::new("etcd")?, "http", 2);
    let mut node = Node::start(&server, 1);
    let problem = node.problem().await?;
    let endpoints = server.endpoints();
    let refused = "Connection refused (os error 111)";
    assert_eq!(
        problem,
        format!("etcd does not answer: {}: {refused}; {}: {refused}", endpoints[0], endpoints[1])
    );
    server.launch()?;
    server.put_config()?;
    node.leased().await?;
    eventually("well", || Ok(node.view.borrow().state.problem.is_none())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_stands_still_is_left_for_another() -> Result<()> {
    let server = Server::start(3)?;
    server.put_config()?;
    let mut node = Node::start(&server, 1);
    node.leased().await?;
    // The first endpoint is the one that it talks to.
    server.freeze(0)?;
    // The others may have to find a new leader first.
    let put = server.ctl_at(1, &format!("put {PREFIX}/subnets/10.5.209.0-24 {{}}"));
    eventually("written", || Ok(put.run()?.success())).await?;
    node.knows(2).await?;
    server.thaw(0)?;
    assert_eq!(node.note(), None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_the_assignment_stays_and_the_cause_is_told() -> Result<()> {
    let mut server = Server::start(3)?;
    server.put_config()?;
    let mut node = Node::start(&server, 1);
    let own = node.leased().await?.own.subnet;
    server.kill(1);
    server.kill(2);
    let view = node.until("away", away).await?;
    let problem = view.state.problem.context("a problem")?;
    assert!(problem.contains(&server.endpoints()[0]), "{problem}");
    server.launch()?;
    node.leased().await?;
    assert_eq!((node.subnet(), node.note()), (Some(own), None));
    Ok(())
}

//! Everything at once, at random: whatever happens, each node ends with one lease that says what it should.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use overlay_core::wire::vxlan_value;
use testkit::Random;

use crate::{
    node::{Node, facts, key, quick, settings},
    server::{PREFIX, Server},
};

const NODES: u8 = 6;
const ROUNDS: usize = 40;
const STRANGER: &str = r#"{"PublicIP":"192.0.2.250","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;

/// What every node must hold in the end: its address, and the subnet where it may not have changed.
struct Expected {
    address: [u8; 4],
    subnet: Option<netmodel::Subnet>,
}

struct Cluster {
    server: Server,
    nodes: Vec<Node>,
    expected: Vec<Expected>,
    random: Random,
}

impl Cluster {
    fn below(&mut self, n: u8) -> u8 {
        u8::try_from(self.random.number() % u64::from(n.max(1))).unwrap_or(0)
    }

    /// One thing that may happen to a cluster.
    fn disturb(&mut self) -> Result<String> {
        let who = usize::from(self.below(NODES));
        let path = self.nodes[who].subnet().map(key);
        Ok(match (self.below(7), path) {
            (0, Some(path)) => {
                if let Ok(lease @ 1..) = self.server.ttl_lease(&format!("subnets/{path}")) {
                    // It may just have been given back.
                    self.server.ctl(&format!("lease revoke {lease:x}")).run()?;
                }
                format!("revoke {path}")
            }
            (1, Some(path)) => {
                self.server.ctl(&format!("del {PREFIX}/subnets/{path}")).ok()?;
                format!("delete {path}")
            }
            (2, Some(path)) => {
                // Whoever holds it has to move on.
                for (node, expected) in self.nodes.iter().zip(&mut self.expected) {
                    if node.subnet().map(key).as_ref() == Some(&path) {
                        expected.subnet = None;
                    }
                }
                self.server.put(&format!("subnets/{path}"), STRANGER)?;
                format!("a stranger takes {path}")
            }
            (3, _) => {
                self.server.kill_all();
                self.server.launch()?;
                "etcd killed and started".to_owned()
            }
            (4, _) => {
                let number = u8::try_from(who + 1)?;
                let mut me = facts(number);
                me.public_ip = self.expected[who].address.into();
                self.nodes[who] = Node::start_with(&settings(&self.server), quick(), me);
                format!("node {number} killed and started")
            }
            (5, _) => {
                let address = [192, 0, 3, self.below(200)];
                if self.expected.iter().all(|e| e.address != address) {
                    self.expected[who].address = address;
                    self.nodes[who].facts.send_modify(|facts| {
                        if let Some(facts) = facts {
                            facts.public_ip = address.into();
                        }
                    });
                }
                format!("node {} moves to {address:?}", who + 1)
            }
            _ => {
                let answer = self.server.json("config")?;
                let revision = answer["header"]["revision"].as_i64().context("a revision")?;
                // Compacted already: so be it.
                self.server.ctl(&format!("compact {revision}")).run()?;
                format!("compact {revision}")
            }
        })
    }

    /// What is not as it should be yet.
    fn wrong(&self) -> Result<Option<String>> {
        let written = self.server.list("subnets")?;
        for (n, (node, expected)) in self.nodes.iter().zip(&self.expected).enumerate() {
            let view = node.view.borrow();
            let Some(assignment) = view.assignment.as_ref().filter(|_| view.state.connected) else {
                return Ok(Some(format!("node {} holds nothing: {:?}", n + 1, view.state)));
            };
            let own = assignment.own;
            let value = vxlan_value(expected.address.into(), own.vni, own.vtep_mac);
            if own.public_ip.octets() != expected.address
                || !written.contains(&(key(own.subnet), value.clone()))
            {
                return Ok(Some(format!("node {}: {} {value} is not in {written:?}", n + 1, own.subnet)));
            }
            if expected.subnet.is_some_and(|subnet| subnet != own.subnet) {
                return Ok(Some(format!("node {} has moved to {}", n + 1, own.subnet)));
            }
            let known = assignment.leases.iter().map(|l| (l.key.clone(), l.value.clone()));
            // Strangers that an emptied store knew stay for a while: they may come back.
            let known: Vec<_> = known.filter(|l| l.1 != STRANGER || written.contains(l)).collect();
            if known != written {
                return Ok(Some(format!("node {} knows {known:?}, but there is {written:?}", n + 1)));
            }
        }
        let strangers = written.iter().filter(|(_, value)| value == STRANGER).count();
        let count = self.nodes.len() + strangers;
        Ok((written.len() != count).then(|| format!("{count} leases are expected in {written:?}")))
    }

    /// Waits until all is as it should be.
    async fn settle(&mut self, story: &[String]) -> Result<()> {
        let start = Instant::now();
        loop {
            let Some(wrong) = self.wrong()? else { break };
            if start.elapsed() > Duration::from_secs(20) {
                bail!("{wrong}\nafter {story:#?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for (node, expected) in self.nodes.iter().zip(&mut self.expected) {
            expected.subnet = node.subnet();
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_each_node_ends_with_its_one_lease() -> Result<()> {
    let server = Server::start(1)?;
    server.put_config()?;
    let nodes = (1..=NODES).map(|n| Node::start(&server, n)).collect();
    let expected = (1..=NODES).map(|n| Expected { address: [192, 0, 2, n], subnet: None }).collect();
    let mut cluster = Cluster { server, nodes, expected, random: Random::printed() };
    let mut story = Vec::new();
    cluster.settle(&story).await?;
    for round in 0..ROUNDS {
        story.push(cluster.disturb()?);
        // Mostly one thing comes right after the other.
        if round % 4 == 3 {
            cluster.settle(&story).await?;
        }
        if round % 16 == 15 {
            cluster.server.empty();
            cluster.server.launch()?;
            cluster.server.put_config()?;
            story.push("etcd emptied".to_owned());
            cluster.settle(&story).await?;
        }
    }
    cluster.settle(&story).await
}

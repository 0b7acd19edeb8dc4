//! Several nodes on one machine.
//!
//! ```text
//!   node1            node2            node3           outside
//!   192.168.100.11   192.168.100.12   192.168.100.13  192.168.100.100     (eth0 of each)
//!        |                |                |                |
//!   =====+================+================+================+=====  bridge in the space "underlay"
//!                    192.168.100.1, .2, .3: the members of etcd
//! ```
//!
//! Each box is a [`Space`]: namespaces for network, mounts and host name, with `/run` and `/var/lib` of its
//! own, so that the programs use the same paths as on a real machine. Pods are named network namespaces of
//! their node, filled by executing the CNI plugin as a container runtime does.

mod cni;
mod etcd;
mod node;

pub use cni::{Attachment, Chain};
pub use etcd::Etcd;
pub use node::{Node, Pod};

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{Space, TempDir, bin, eventually};

/// What the lab looks like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many nodes; at most 80.
    pub nodes: usize,
    /// How many members etcd has: 1 or 3.
    pub etcd_members: usize,
    /// Nodes, counted from 0, that get no default route.
    pub without_default_route: Vec<usize>,
    /// Each host also has an address 172.16.1.11, .12, ... in a /24, as the guides' hosts do.
    pub second_address: bool,
    /// What is written to `<prefix>/config` at the start, if anything.
    pub config: Option<String>,
    /// The etcd prefix.
    pub prefix: String,
    /// Further flags for every flanneld.
    pub flanneld: Vec<String>,
    /// The conflist; `manifests/10-flannel.conflist` unless given.
    pub conflist: Option<serde_json::Value>,
    /// The lab outlives this process.
    pub keep: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            nodes: 3,
            etcd_members: 1,
            without_default_route: Vec::new(),
            second_address: false,
            config: Some(r#"{"Network":"172.16.0.0/16","Backend":{"Type":"vxlan"}}"#.to_owned()),
            prefix: "/atomic.io/network".to_owned(),
            flanneld: vec!["-ip-masq".to_owned()],
            conflist: None,
            keep: false,
        }
    }
}

/// Several nodes, an etcd and a client outside, on an underlay of their own.
#[derive(Debug)]
pub struct Lab {
    /// What it was made from.
    pub plan: Plan,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The lease store.
    pub etcd: Etcd,
    /// A machine beside the cluster, 192.168.100.100.
    pub outside: Space,
    /// The network between all of them; etcd runs here.
    pub underlay: Space,
    /// How the runtime calls the plugin.
    pub cni: Chain,
    /// Logs, manifests, etcd's data.
    pub dir: TempDir,
}

impl Lab {
    /// Makes the network and the machines and starts etcd; none of our programs runs yet.
    ///
    /// # Errors
    /// Without the right to make namespaces, or when etcd does not start.
    pub fn new(plan: Plan) -> Result<Self> {
        let mut dir = TempDir::new("lab")?;
        if plan.keep {
            dir.write("keep", "")?;
            dir.keep();
        }
        let cni = match &plan.conflist {
            Some(list) => Chain::new(list.clone()),
            None => Chain::from_conflist(&crate::workspace().join("manifests/10-flannel.conflist"))?,
        };
        let underlay = Space::new("underlay", dir.path(), plan.keep)?;
        underlay.cmd("ip link add br0 type bridge").ok()?;
        for member in 1..=3 {
            underlay.cmd(format!("ip address add 192.168.100.{member}/24 dev br0")).ok()?;
        }
        underlay.cmd("ip link set br0 up").ok()?;
        let outside = Space::new("outside", dir.path(), plan.keep)?;
        plug(&underlay, &outside, Ipv4Addr::new(192, 168, 100, 100))?;
        let mut nodes = Vec::new();
        for index in 0..plan.nodes {
            nodes.push(Self::node(&plan, &underlay, dir.path(), index)?);
        }
        let etcd = Etcd::start(&underlay, dir.path(), plan.etcd_members)?;
        if let Some(config) = &plan.config {
            etcd.put(&underlay, &format!("{}/config", plan.prefix), config)?;
        }
        Ok(Self { plan, nodes, etcd, outside, underlay, cni, dir })
    }

    fn node(plan: &Plan, underlay: &Space, logs: &Path, index: usize) -> Result<Node> {
        let space = Space::new(&format!("node{}", index + 1), logs, plan.keep)?;
        let number = u8::try_from(index + 11).context("too many nodes")?;
        let address = Ipv4Addr::new(192, 168, 100, number);
        plug(underlay, &space, address)?;
        if plan.second_address {
            space.cmd(format!("ip address add 172.16.1.{number}/24 dev eth0")).ok()?;
        }
        if !plan.without_default_route.contains(&index) {
            space.cmd("ip route add default via 192.168.100.1").ok()?;
        }
        Ok(Node::new(index, space, address, logs))
    }

    /// Starts flanneld on one node, with the flags of the plan; does not wait.
    ///
    /// # Errors
    /// When it can't be started.
    ///
    /// # Panics
    /// Without the built program.
    pub fn start_flanneld(&mut self, index: usize) -> Result<()> {
        let mut words = vec![
            bin("flanneld").display().to_string(),
            format!("-etcd-endpoints={}", self.etcd.endpoints()),
            format!("-etcd-prefix={}", self.plan.prefix),
        ];
        words.extend(self.plan.flanneld.iter().cloned());
        self.nodes[index].start_flanneld(words)
    }

    /// Starts weft-proxy on one node, fed from the folder `manifests` of the lab; does not wait.
    ///
    /// # Errors
    /// When it can't be started.
    ///
    /// # Panics
    /// Without the built program.
    pub fn start_proxy(&mut self, index: usize) -> Result<()> {
        let words = vec![
            bin("weft-proxy").display().to_string(),
            format!("--from=file:{}", self.manifests()?.display()),
            "--cluster-cidr=172.16.0.0/16".to_owned(),
            format!("--hostname-override={}", self.nodes[index].space.name()),
        ];
        self.nodes[index].start_proxy(words)
    }

    /// Starts flanneld everywhere and waits until every node has a route to every other.
    ///
    /// # Errors
    /// When that does not happen within `limit`; the error holds the logs.
    pub fn start_overlay(&mut self, limit: Duration) -> Result<()> {
        for index in 0..self.nodes.len() {
            self.start_flanneld(index)?;
        }
        self.wait_mesh(limit)
    }

    /// Waits until every node has a subnet and a route through the overlay to every other.
    ///
    /// # Errors
    /// When that does not happen within `limit`; the error holds the logs.
    pub fn wait_mesh(&mut self, limit: Duration) -> Result<()> {
        let start = Instant::now();
        let peers = self.nodes.len() - 1;
        for node in &mut self.nodes {
            let left = limit.saturating_sub(start.elapsed());
            // A flanneld that ended will not get there any more.
            let _ = eventually(left, || (node.meshed(peers) || node.flanneld_ended()).then_some(()));
            if !node.meshed(peers) {
                let (name, took) = (node.name(), start.elapsed());
                bail!("{name} has no routes to {peers} peers after {took:.1?}:\n{}", node.logs());
            }
        }
        Ok(())
    }

    /// Makes a pod on a node by ADD.
    ///
    /// # Errors
    /// When the plugin fails; the error holds its answer.
    pub fn add_pod(&self, index: usize, name: &str) -> Result<Pod> {
        self.nodes[index].add_pod(&self.cni, name)
    }

    /// Removes a pod by DEL, and its namespace.
    ///
    /// # Errors
    /// When the plugin fails; the error holds its answer.
    pub fn remove_pod(&self, index: usize, pod: &Pod) -> Result<()> {
        self.nodes[index].remove_pod(&self.cni, pod)
    }

    /// The folder that every weft-proxy follows.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn manifests(&self) -> Result<std::path::PathBuf> {
        let folder = self.dir.path().join("manifests");
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Writes or replaces a manifest in one step, as `kubectl` users keep them.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_manifest(&self, name: &str, text: &str) -> Result<()> {
        // Written beside the folder: a follower must never see a half-written one.
        let new = self.dir.write(&format!("{name}.new"), text)?;
        std::fs::rename(new, self.manifests()?.join(name))
            .with_context(|| format!("failed to place manifest {name}"))
    }
}

/// Joins a space to the underlay with a device `eth0` that holds `address`.
fn plug(underlay: &Space, space: &Space, address: Ipv4Addr) -> Result<()> {
    let (name, pid) = (space.name(), space.pid());
    underlay.cmd(format!("ip link add {name} type veth peer name eth0 netns {pid}")).ok()?;
    underlay.cmd(format!("ip link set {name} master br0 up")).ok()?;
    space.cmd(format!("ip address add {address}/24 dev eth0")).ok()?;
    space.cmd("ip link set eth0 up").ok()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::require_or_skip;

    /// The lab by itself, with Debian's plugins in place of ours.
    fn with_foreign_plugins() -> Plan {
        let ipam = json!({"type": "host-local", "subnet": "10.77.0.0/24"});
        let bridge = json!({"type": "bridge", "isDefaultGateway": true, "ipam": ipam});
        let conflist = Some(json!({"cniVersion": "0.4.0", "name": "lab", "plugins": [bridge]}));
        Plan { nodes: 2, conflist, ..Plan::default() }
    }

    #[test]
    fn pods_of_a_node_reach_each_other_and_leave_nothing() -> Result<()> {
        let Some(lab) = require_or_skip("lab", Lab::new(with_foreign_plugins())) else { return Ok(()) };
        let (a, b) = (lab.add_pod(0, "a")?, lab.add_pod(0, "b")?);
        lab.cni.check(&lab.nodes[0].space, &a.attachment, &a.result)?;
        a.cmd(format!("ping -c 1 -W 2 {}", b.address)).ok()?;
        lab.nodes[0].cmd(format!("ping -c 1 -W 2 {}", lab.nodes[1].address)).ok()?;
        lab.outside.cmd(format!("ping -c 1 -W 2 {}", lab.nodes[1].address)).ok()?;
        lab.remove_pod(0, &a)?;
        let ports = lab.nodes[0].cmd("ip -j link show master cni0").json()?;
        assert_eq!(ports.as_array().map(Vec::len), Some(1), "{ports}");
        Ok(())
    }

    #[test]
    fn etcd_survives_a_member_and_forgets_when_told() -> Result<()> {
        let plan = Plan { nodes: 0, etcd_members: 3, ..with_foreign_plugins() };
        let Some(mut lab) = require_or_skip("lab", Lab::new(plan)) else { return Ok(()) };
        lab.etcd.kill(0);
        lab.etcd.put(&lab.underlay, "/a/b", "1")?;
        lab.etcd.revive(&lab.underlay)?;
        assert_eq!(lab.etcd.list(&lab.underlay, "/a/")?, [("/a/b".to_owned(), "1".to_owned())]);
        lab.etcd.restart_empty(&lab.underlay)?;
        assert!(lab.etcd.list(&lab.underlay, "/")?.is_empty());
        Ok(())
    }
}

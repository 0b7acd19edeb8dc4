//! Faults that the demo's checks have to notice.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use testkit::lab::Node;

use super::{Cluster, reach};

/// A way to break the cluster. Where flanneld would repair it, flanneld is killed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// node1 masquerades nothing.
    Masquerade,
    /// node2's device has another VNI.
    Vni,
    /// node1 sends what is for node2 to an address where nobody is.
    Fdb,
    /// No port of any bridge sends back to where a packet came from.
    Hairpin,
    /// The endpoint of myweb on node2 is gone, and nobody told the proxies.
    Endpoint,
}

impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::Masquerade, Self::Vni, Self::Fdb, Self::Hairpin, Self::Endpoint];
        let found = all.into_iter().find(|fault| fault.name() == text);
        found.with_context(|| format!("no fault {text}: there are {}", all.map(Self::name).join(", ")))
    }
}

impl Fault {
    /// The checks that have to fail then.
    #[must_use]
    pub const fn noticed_by(self) -> &'static [&'static str] {
        match self {
            Self::Masquerade => &[reach::MASQUERADED],
            Self::Vni => &[reach::EVERY_PAIR, reach::CAPTURED],
            Self::Fdb => &[reach::EVERY_PAIR],
            Self::Hairpin => &[reach::HAIRPIN],
            Self::Endpoint => &[reach::SPREAD],
        }
    }

    /// The word after `--break`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Masquerade => "masquerade",
            Self::Vni => "vni",
            Self::Fdb => "fdb",
            Self::Hairpin => "hairpin",
            Self::Endpoint => "endpoint",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Masquerade => "no masquerade on node1",
            Self::Vni => "another VNI on node2",
            Self::Fdb => "a stale FDB entry for node2 on node1",
            Self::Hairpin => "no hairpin",
            Self::Endpoint => "one endpoint of myweb gone",
        })
    }
}

/// Breaks the cluster.
pub(super) fn apply(fault: Fault, cluster: &mut Cluster) -> Result<()> {
    match fault {
        Fault::Masquerade => {
            cluster.lab.nodes[0].kill_flanneld();
            cluster.lab.nodes[0].cmd("nft delete table ip weft-flannel.1").ok().map(drop)
        }
        Fault::Vni => {
            cluster.lab.nodes[1].kill_flanneld();
            change_vni(&cluster.lab.nodes[1])
        }
        Fault::Fdb => {
            cluster.lab.nodes[0].kill_flanneld();
            let gateway = format!("{}.0", cluster.lab.nodes[1].subnet_stem()?);
            let node = &cluster.lab.nodes[0];
            let mac = neighbours(node)?.into_iter().find(|(address, _)| *address == gateway);
            let (_, mac) = mac.context("node1 has no neighbour for node2")?;
            node.cmd(format!("bridge fdb replace {mac} dev flannel.1 dst 192.168.100.99")).ok().map(drop)
        }
        Fault::Hairpin => cluster.lab.nodes.iter().try_for_each(|node| {
            for port in names(&node.cmd("ip -j link show master cni0").json()?, "ifname") {
                node.cmd(format!("bridge link set dev {port} hairpin off")).ok()?;
            }
            Ok(())
        }),
        Fault::Endpoint => {
            cluster.servers[1].kill();
            Ok(())
        }
    }
}

/// Makes the overlay device anew with VNI 2 and otherwise all as it was.
fn change_vni(node: &Node) -> Result<()> {
    let link = node.cmd("ip -j link show dev flannel.1").json()?;
    let (mac, mtu) =
        (link[0]["address"].as_str().context("no MAC")?, link[0]["mtu"].as_u64().context("no MTU")?);
    let routes = node.overlay_routes()?;
    let neighbours = neighbours(node)?;
    let entries = node.cmd("bridge fdb show dev flannel.1").ok()?.stdout;
    let stem = node.subnet_stem()?;
    node.cmd("ip link delete flannel.1").ok()?;
    let local = node.address;
    node.cmd("ip link add flannel.1")
        .arg("address")
        .arg(mac)
        .args(["mtu", &mtu.to_string()])
        .args(format!("type vxlan id 2 dev eth0 local {local} dstport 8472 nolearning").split(' '))
        .ok()?;
    node.cmd(format!("ip address add {stem}.0/32 dev flannel.1")).ok()?;
    node.cmd("ip link set flannel.1 up").ok()?;
    for (address, mac) in &neighbours {
        node.cmd(format!("ip neighbour replace {address} lladdr {mac} dev flannel.1 nud permanent")).ok()?;
    }
    for entry in entries.lines() {
        let mut words = entry.split_whitespace();
        let (Some(mac), Some(peer)) = (words.next(), words.skip_while(|word| *word != "dst").nth(1)) else {
            continue;
        };
        node.cmd(format!("bridge fdb append {mac} dev flannel.1 dst {peer}")).ok()?;
    }
    for route in &routes {
        let gateway = route.split('/').next().unwrap_or_default();
        node.cmd(format!("ip route replace {route} via {gateway} dev flannel.1 onlink")).ok()?;
    }
    if routes.is_empty() || neighbours.is_empty() {
        bail!("{} had no peer before it was broken", node.name());
    }
    Ok(())
}

/// Permanent neighbours on the overlay device: address and MAC.
pub(super) fn neighbours(node: &Node) -> Result<Vec<(String, String)>> {
    let list = node.cmd("ip -j neighbour show dev flannel.1 nud permanent").json()?;
    let pairs = names(&list, "dst").into_iter().zip(names(&list, "lladdr"));
    Ok(pairs.collect())
}

fn names(list: &serde_json::Value, key: &str) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(|item| item[key].as_str().map(str::to_owned)).collect()
}

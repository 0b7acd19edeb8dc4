//! The VXLAN device under another name, on another interface, with another VNI.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::{Process, eventually};

use crate::node::{ENTRIES, NEIGHBOURS, Node, PATIENCE, ROUTES, peers};

/// The device's number and Ethernet address.
fn identity(node: &Node) -> Result<(Value, Value)> {
    let link = node.net.cmd("ip -j link show flannel.1").json()?;
    Ok((link[0]["ifindex"].clone(), link[0]["address"].clone()))
}

fn stop(node: &mut Node) -> Result<()> {
    let code = node.flanneld.take().context("not started")?.terminate(PATIENCE)?;
    ensure!(code == Some(0), "it ended with {code:?}");
    Ok(())
}

/// It is the same device, so everything that hangs on it works all the while.
#[test]
fn a_renamed_device_gets_its_name_back() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.leases(&peers(&[3, 4]))?;
    node.start()?;
    node.shows(ROUTES, "10.5.4.0/24")?;
    let before = identity(&node)?;
    node.net.cmd("ip link set flannel.1 name other0").ok()?;
    node.shows("ip link show flannel.1", "flannel.1")?;
    assert_eq!(identity(&node)?, before);
    // Kernels before 6.2 rename no device that is up.
    node.net.cmd("ip link set flannel.1 down name other0 up").ok()?;
    node.shows(ROUTES, "10.5.4.0/24")?;
    assert_eq!(identity(&node)?, before);

    stop(&mut node)?;
    node.net.cmd("ip link set flannel.1 name other0").ok()?;
    let plan = node.command("plan").ok()?.stdout;
    assert!(plan.contains("ip link set other0 name flannel.1") && !plan.contains("link add"), "{plan}");
    assert!(!plan.contains("overlaps"), "its own device is in the way:\n{plan}");
    node.start()?;
    node.shows(ROUTES, "10.5.4.0/24")?;
    assert_eq!(identity(&node)?, before);
    node.shows(ENTRIES, "02:00:00:00:00:04 dst 192.0.2.4")?;
    node.shows(NEIGHBOURS, "10.5.4.0 lladdr 02:00:00:00:00:04")?;
    let status = node.status()?;
    assert_eq!(status["problem"], Value::Null, "{status}");
    assert!(!status["warnings"].to_string().contains("overlaps"), "{status}");
    Ok(())
}

/// Another VXLAN device with our VNI is nobody's of ours: it is named, and stays.
#[test]
fn a_foreign_device_with_the_same_vni_is_left_alone() -> Result<()> {
    let Some(node) = Node::new()? else { return Ok(()) };
    node.net.cmd("ip link add other0 type vxlan id 1 dstport 8472 local 192.0.2.1").ok()?;
    node.leases(&[])?;
    let mut flanneld = Process::spawn(&node.command("run"), node.dir.path().join("log"))?;
    let problem = eventually(PATIENCE, || node.status().ok()?["problem"].as_str().map(str::to_owned));
    let (problem, _) = problem.context("it finds nothing wrong")?;
    assert!(problem.contains("failed to add VXLAN device flannel.1"), "{problem}");
    node.net.cmd("ip link del other0").ok()?;
    node.shows("ip link show flannel.1", "flannel.1")?;
    flanneld.terminate(PATIENCE).map(drop)
}

/// flannel binds its device to an interface. When the way to other nodes is another one, it is of no use.
#[test]
fn an_adopted_device_is_made_anew_when_the_way_to_other_nodes_changes() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    for line in [
        "ip link add flannel.1 address 0a:11:22:33:44:55 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning",
        "ip link set flannel.1 up",
        "ip link add eth1 type veth peer name far1",
        "ip link set far1 up",
        "ip link set eth1 up",
        "ip address add 198.51.100.1/24 dev eth1",
    ] {
        node.net.cmd(line).ok()?;
    }
    node.leases(&peers(&[3]))?;
    node.start()?;
    let line = "ip -d link show flannel.1";
    node.shows(line, "local 192.0.2.1 dev eth0")?;
    node.net.cmd("ip route replace default via 198.51.100.254").ok()?;
    node.shows(line, "local 198.51.100.1 srcport")?;
    node.shows(line, "0a:11:22:33:44:55")?;
    node.shows(ROUTES, "10.5.3.0/24")
}

#[test]
fn what_an_earlier_vni_left_goes_and_nothing_else() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.net.cmd("iptables-nft -P FORWARD DROP").ok()?;
    node.leases(&peers(&[3]))?;
    node.start()?;
    node.shows("nft list chain ip filter FORWARD", "weft:flannel.1 forward")?;
    stop(&mut node)?;
    // That of another flanneld, which is down.
    for line in
        ["ip link add flannel.9 type vxlan id 9 dstport 8472", "ip address add 10.9.0.0/32 dev flannel.9"]
    {
        node.net.cmd(line).ok()?;
    }
    let mut peers = peers(&[3]);
    peers[0].1["BackendData"]["VNI"] = json!(2);
    node.leases_with(&json!({"Type": "vxlan", "VNI": 2}), &peers)?;
    let plan = node.command("plan").ok()?.stdout;
    assert!(plan.contains("ip link del flannel.1") && !plan.contains("flannel.9"), "{plan}");
    node.start()?;
    node.shows("ip link show", "!flannel.1:")?;
    node.shows("ip link show", "flannel.9:")?;
    node.shows("nft list tables", "!weft-flannel.1")?;
    node.shows("nft list tables", "weft-flannel.2")?;
    node.shows("nft list chain ip filter FORWARD", "!weft:flannel.1 forward")?;
    node.shows("nft list chain ip filter FORWARD", "weft:flannel.2 forward")?;
    node.shows("ip route show dev flannel.2", "10.5.3.0/24 via 10.5.3.0 proto 154 metric 4 onlink")?;
    node.shows("ip -4 address show dev flannel.2", "inet 10.5.1.0/32")
}

/// keepalived and kube-vip add such an address, and take it away again.
#[test]
fn an_address_that_comes_beside_the_one_in_use_is_not_told_to_peers() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    let lease = |node: &Node, preferred: u32| {
        let line =
            format!("ip address change 192.0.2.1/24 dev eth0 valid_lft 3000 preferred_lft {preferred}");
        node.net.cmd(line).ok().map(drop)
    };
    lease(&node, 3000)?;
    node.leases(&peers(&[3]))?;
    node.start()?;
    let follows = |node: &Node, ip: &str| node.shows("ip -d link show flannel.1", &format!("local {ip} "));
    node.net.cmd("ip address add 192.0.2.200/32 dev eth0").ok()?;
    // When this is told of, the address has been seen too.
    node.net.cmd("ip route add 10.5.99.0/24 via 192.0.2.77").ok()?;
    eventually(PATIENCE, || node.log().contains("10.5.99.0/24 overlaps").then_some(()))
        .context("not told of")?;
    follows(&node, "192.0.2.1")?;
    stop(&mut node)?;
    node.start()?;
    follows(&node, "192.0.2.1")?;
    assert_eq!(node.status()?["node"]["publicIp"], json!("192.0.2.1"));
    // What is really gone, or about to go, is followed.
    lease(&node, 0)?;
    follows(&node, "192.0.2.200")?;
    lease(&node, 3000)?;
    node.net.cmd("ip address del 192.0.2.200/32 dev eth0").ok()?;
    follows(&node, "192.0.2.1")
}

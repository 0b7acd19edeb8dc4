//! Leases of others, good and bad, and what flannel left of them.

use std::fs;

use anyhow::{Context, Result};
use serde_json::json;

use crate::node::{ENTRIES, NEIGHBOURS, Node, PATIENCE, ROUTES, peer, peers};

/// A change of the file reaches the kernel, and takes nothing else along.
#[test]
fn peers_come_move_and_go() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.leases(&peers(&[3, 4]))?;
    node.start()?;
    node.shows(ROUTES, "10.5.4.0/24")?;
    let mut moved = peers(&[3, 5]);
    moved[0].1["BackendData"]["VtepMAC"] = json!("02:00:00:00:00:33");
    moved[0].1["PublicIP"] = json!("192.0.2.33");
    node.leases(&moved)?;
    node.shows(ROUTES, "10.5.5.0/24")?;
    node.shows(ROUTES, "!10.5.4.0/24")?;
    let entries = node.net.cmd(ENTRIES).ok()?.stdout;
    let mut lines: Vec<_> = entries.lines().map(str::trim).collect();
    lines.sort_unstable();
    let wanted =
        ["02:00:00:00:00:05 dst 192.0.2.5 self permanent", "02:00:00:00:00:33 dst 192.0.2.33 self permanent"];
    assert_eq!(lines, wanted);
    node.shows(NEIGHBOURS, "10.5.3.0 lladdr 02:00:00:00:00:33")?;
    node.shows(NEIGHBOURS, "!10.5.4.0 ")
}

#[test]
fn a_bad_lease_is_named_in_the_status_and_harms_no_other() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.net.cmd("ip address add 10.5.50.1/24 dev far").ok()?;
    let mut leases = peers(&[3, 4, 50]);
    let twin = peer(3).1;
    leases.extend([
        ("nonsense".to_owned(), peer(8).1),
        ("0.0.0.0-0".to_owned(), peer(8).1),
        ("10.5.1.128-25".to_owned(), peer(8).1),
        ("10.5.60.0-24".to_owned(), twin),
        ("10.5.61.0-24".to_owned(), json!({"PublicIP": "192.0.2.8"})),
        ("10.5.62.0-24".to_owned(), json!("garbled")),
    ]);
    let mut own_address = peer(63);
    own_address.1["PublicIP"] = json!("192.0.2.1");
    leases.push(own_address);
    node.leases(&leases)?;
    node.start()?;
    node.shows(ROUTES, "10.5.4.0/24")?;
    assert_eq!(node.net.cmd(ROUTES).ok()?.stdout.lines().count(), 2);
    let status = node.status()?;
    let skipped = status["skipped"].as_array().context("no list")?;
    let names: Vec<_> = skipped.iter().filter_map(|lease| lease["lease"].as_str()).collect();
    for name in [
        "nonsense",
        "0.0.0.0-0",
        "10.5.1.128-25",
        "10.5.50.0-24",
        "10.5.61.0-24",
        "10.5.62.0-24",
        "10.5.63.0-24",
    ] {
        assert!(names.contains(&name), "{name} is not in {skipped:#?}");
        assert!(node.log().contains(name), "{name} is not in the log");
    }
    assert_eq!((names.len(), status["peers"].as_u64()), (8, Some(2)), "{skipped:#?}");
    let printed = node.command("status").ok()?.stdout;
    assert!(printed.contains("10.5.50.0-24: it overlaps address 10.5.50.1/24 of far"), "{printed}");
    Ok(())
}

#[test]
fn peers_on_the_same_link_are_reached_without_a_tunnel_where_that_is_wanted() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    let mut leases = peers(&[3, 4]);
    leases[1].1["PublicIP"] = json!("198.51.100.4");
    node.leases_with(&json!({"Type": "vxlan", "DirectRouting": true}), &leases)?;
    node.start()?;
    let direct = "10.5.3.0/24 via 192.0.2.3 dev eth0 proto 154 metric 4";
    node.shows("ip route", direct)?;
    node.shows(ROUTES, "10.5.4.0/24 via 10.5.4.0")?;
    for removal in ["ip route del 10.5.3.0/24", "ip link set eth0 down"] {
        node.net.cmd(removal).ok()?;
        node.net.cmd("ip link set eth0 up").ok()?;
        node.shows("ip route", direct)?;
    }
    node.leases(&leases)?;
    // The configuration is read once: only a restart turns it.
    node.flanneld.take().context("not started")?.terminate(PATIENCE)?;
    fs::remove_file(node.subnet_file())?;
    node.start()?;
    node.shows(ROUTES, "10.5.3.0/24 via 10.5.3.0")?;
    node.shows("ip route", "!via 192.0.2.3")
}

/// What flannel has left: its device with the address of its lease, routes of metric 0, and a peer that
/// left while flannel was down.
#[test]
fn what_flannel_left_is_adopted_and_what_is_stale_goes() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    for line in [
        "ip link add flannel.1 address 0a:11:22:33:44:55 mtu 1450 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning",
        "ip address add 10.5.1.0/32 dev flannel.1",
        "ip link set flannel.1 up",
    ] {
        node.net.cmd(line).ok()?;
    }
    for n in [3, 9] {
        for line in [
            format!("ip neighbour add 10.5.{n}.0 lladdr 02:00:00:00:00:0{n} dev flannel.1"),
            format!("bridge fdb add 02:00:00:00:00:0{n} dev flannel.1 dst 192.0.2.{n}"),
            format!("ip route add 10.5.{n}.0/24 via 10.5.{n}.0 dev flannel.1 onlink"),
        ] {
            node.net.cmd(line).ok()?;
        }
    }
    let index = node.net.cmd("ip -j link show flannel.1").json()?[0]["ifindex"].clone();
    node.leases(&peers(&[3]))?;
    node.start()?;
    node.shows(ROUTES, "10.5.3.0/24 via 10.5.3.0 proto 154 metric 4 onlink")?;
    let routes = node.net.cmd(ROUTES).ok()?.stdout;
    assert_eq!(routes.lines().count(), 1, "flannel's own routes are left: {routes}");
    let link = node.net.cmd("ip -j link show flannel.1").json()?[0].clone();
    assert_eq!((&link["ifindex"], &link["address"]), (&index, &json!("0a:11:22:33:44:55")), "{link}");
    for (line, stale) in [(NEIGHBOURS, "10.5.9.0"), (ENTRIES, "192.0.2.9")] {
        let shown = node.net.cmd(line).ok()?.stdout;
        assert!(shown.contains("02:00:00:00:00:03") && !shown.contains(stale), "{line}: {shown}");
    }
    Ok(())
}

#[test]
fn flannels_direct_routes_are_adopted_and_one_by_another_gateway_stays_the_hosts() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    let by_hand = "ip route show proto boot root 10.5.0.0/16";
    node.net.cmd("ip route add 10.5.3.0/24 via 192.0.2.3").ok()?;
    node.net.cmd("ip route add 10.5.4.0/24 via 192.0.2.77").ok()?;
    let direct = json!({"Type": "vxlan", "DirectRouting": true});
    node.leases_with(&direct, &peers(&[3, 4]))?;
    let plan = node.command("plan").ok()?.stdout;
    assert!(plan.contains("\nip route del 10.5.3.0/24 via 192.0.2.3 metric 0\n"), "{plan}");
    node.start()?;
    node.shows("ip route", "10.5.3.0/24 via 192.0.2.3 dev eth0 proto 154 metric 4")?;
    node.shows(by_hand, "!10.5.3.0/24")?;
    node.shows(by_hand, "10.5.4.0/24 via 192.0.2.77")?;
    let status = node.status()?;
    assert_eq!(status["skipped"][0]["lease"], json!("10.5.4.0-24"), "{status}");
    assert_eq!((status["skipped"].as_array().map(Vec::len), &status["peers"]), (Some(1), &json!(1)));
    assert!(!node.log().contains("10.5.3.0/24 overlaps"), "{}", node.log());
    Ok(())
}

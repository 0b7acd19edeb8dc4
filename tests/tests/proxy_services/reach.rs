//! Who reaches whom, as whom, and what is refused.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::Result;
use testkit::{Cmd, Netns, eventually};

use crate::world::{BRIDGE, LIMIT, NODE, NODE_PORT, WEB, World, ask, pod_ip, web};

/// 900 connections are spread evenly; from a pod, from the node and from outside, each is seen as whom it must.
#[test]
fn connections_are_spread_and_masqueraded_where_they_must_be() -> Result<()> {
    let Some(mut world) = World::new("spread", 4) else { return Ok(()) };
    let _servers = world.tcp_servers()?;
    world.write("web", &web(&[0, 1, 2]))?;
    world.start_usual()?;
    let client = &world.pods[3];
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..900 {
        let answer = ask(client, (WEB, 80))??;
        assert_eq!(answer.saw, pod_ip(3), "a pod keeps its address");
        *seen.entry(answer.by).or_default() += 1;
    }
    assert!(seen.len() == 3 && seen.values().all(|n| (240..=360).contains(n)), "{seen:?}");
    println!("pod to {WEB}:80, by endpoint: {seen:?}");
    assert_eq!(ask(&world.node, (WEB, 80))??.saw, BRIDGE, "the node is masqueraded");
    assert_eq!(ask(&world.outside, (NODE, NODE_PORT))??.saw, BRIDGE, "so is the outside");
    assert_eq!(ask(&world.node, (NODE, NODE_PORT))??.saw, BRIDGE);
    assert_eq!(ask(client, (NODE, NODE_PORT))??.saw, BRIDGE);
    Ok(())
}

#[test]
fn a_pod_reaches_itself_through_its_service() -> Result<()> {
    let Some(mut world) = World::new("hairpin", 1) else { return Ok(()) };
    let _servers = world.tcp_servers()?;
    world.write("web", &web(&[0]))?;
    world.start_usual()?;
    let answer = ask(&world.pods[0], (WEB, 80))??;
    assert_eq!((answer.by.as_str(), answer.saw), ("pod0", BRIDGE));
    Ok(())
}

/// Connects and expects a refusal at once, not silence.
fn is_refused(from: &Netns, to: (Ipv4Addr, u16)) -> Result<()> {
    let start = Instant::now();
    let error = ask(from, to)?.expect_err("nobody is there");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to:?}: {error}");
    assert!(start.elapsed() < Duration::from_millis(900), "{to:?} took {:?}", start.elapsed());
    Ok(())
}

#[test]
fn what_nobody_serves_is_refused_at_once() -> Result<()> {
    let Some(mut world) = World::new("refused", 2) else { return Ok(()) };
    let _servers = world.tcp_servers()?;
    world.write("web", &web(&[]))?;
    world.start_usual()?;
    for from in [&world.pods[0], &world.node] {
        is_refused(from, (WEB, 80))?;
        is_refused(from, (NODE, NODE_PORT))?;
    }
    is_refused(&world.outside, (NODE, NODE_PORT))?;
    world.write("web", &web(&[1]))?;
    world.wait_nft("map ip weft-proxy frontends", "10.96.0.7 . tcp . 80")?;
    assert_eq!(ask(&world.pods[0], (WEB, 80))??.by, "pod1");
    for from in [&world.pods[0], &world.node] {
        is_refused(from, (WEB, 81))?;
    }
    world.write("web", &web(&[]))?;
    world.wait_nft("set ip weft-proxy rejects", "10.96.0.7 . tcp . 80")?;
    is_refused(&world.pods[0], (WEB, 80))?;
    Ok(())
}

/// Without a cluster range nobody can be told from a pod, so nobody is masqueraded, except a pod from itself.
#[test]
fn without_a_cluster_range_only_hairpins_and_node_ports_are_masqueraded() -> Result<()> {
    let Some(mut world) = World::new("norange", 2) else { return Ok(()) };
    let _servers = world.tcp_servers()?;
    world.write("web", &web(&[0]))?;
    world.start("run")?;
    assert_eq!(ask(&world.pods[1], (WEB, 80))??.saw, pod_ip(1));
    assert_eq!(ask(&world.pods[0], (WEB, 80))??.saw, BRIDGE);
    assert_eq!(ask(&world.outside, (NODE, NODE_PORT))??.saw, BRIDGE);
    Ok(())
}

/// Also to a number of endpoints that no Service had before.
#[test]
fn a_change_of_endpoints_is_two_transactions_at_most() -> Result<()> {
    let Some(mut world) = World::new("small", 1) else { return Ok(()) };
    world.write("web", &web(&[0]))?;
    world.start_usual()?;
    let mut nft = world.node.inside(linux::nft::Socket::open)??;
    for pods in [&[0, 1][..], &[0, 1, 2, 3], &[1, 2, 3], &[3], &[], &[0, 1, 2], &[0, 1, 3]] {
        let before = nft.generation()?;
        world.write("web", &web(pods))?;
        let begun = eventually(LIMIT, || (nft.generation().ok()? > before).then_some(()));
        assert!(begun.is_some(), "{pods:?}: nothing happens");
        std::thread::sleep(Duration::from_millis(300));
        assert!(nft.generation()? - before <= 2, "{pods:?}");
    }
    Ok(())
}

/// A second address of the node is no node port's with `primary`, and is one with `all`.
#[test]
fn node_ports_are_open_where_they_are_told_to() -> Result<()> {
    let second = Ipv4Addr::new(192, 0, 2, 2);
    let Some(mut world) = World::new("nodeports", 1) else { return Ok(()) };
    let _servers = world.tcp_servers()?;
    world.node.cmd(format!("ip addr add {second}/24 dev eth0")).ok()?;
    world.write("web", &web(&[0]))?;
    for (flags, open) in [
        ("run", false),
        ("run --nodeport-addresses all", true),
        ("run --nodeport-addresses 192.0.2.2/32", true),
        ("run --nodeport-addresses primary", false),
    ] {
        world.start(flags)?;
        assert_eq!(ask(&world.outside, (second, NODE_PORT))?.is_ok(), open, "{flags}");
        world.proxy().kill();
    }
    assert!(ask(&world.outside, (NODE, NODE_PORT))?.is_ok());
    assert!(ask(&world.node, (Ipv4Addr::LOCALHOST, NODE_PORT))?.is_err());
    Ok(())
}

/// The scratch in `meta priority` is put back on all three ways: forwarded, the node's own, and bridged.
#[test]
fn no_packet_leaves_with_our_scratch_as_its_priority() -> Result<()> {
    let Some(mut world) = World::new("scratch", 2) else { return Ok(()) };
    let _servers = world.tcp_servers()?;
    world.write("web", &web(&[0]))?;
    world.start_usual()?;
    world.node.cmd("sysctl -qw net.ipv4.ip_forward_update_priority=0").ok()?; // which hides it
    // Another program's masquerade comes first, and ends source NAT for these packets.
    let other = "table ip other {\nchain post {\ntype nat hook postrouting priority 100\n\
                 ip daddr 10.244.1.10 masquerade\n}\n}\n";
    world.node.wrap(Cmd::new("nft -f -").stdin(other)).ok()?;
    let probe = "table ip probe {\nchain post {\ntype filter hook postrouting priority 200\n\
                 ct status dnat counter\nct status dnat meta priority != 0:0 counter\n}\n}\n";
    world.node.wrap(Cmd::new("nft -f -").stdin(probe)).ok()?;
    for from in [&world.outside, &world.node] {
        ask(from, (NODE, NODE_PORT))??;
    }
    ask(&world.pods[1], (WEB, 80))??;
    ask(&world.node, (WEB, 80))??;
    let counts = world.counts("probe post")?;
    assert!(counts.len() == 2 && counts[0] >= 8 && counts[1] == 0, "{counts:?}");
    Ok(())
}

#[test]
fn the_plan_is_what_nft_takes() -> Result<()> {
    let Some(mut world) = World::new("plan", 2) else { return Ok(()) };
    world.write("web", &web(&[0, 1]))?;
    world.write(
        "empty",
        &web(&[]).replace("web", "empty").replace("10.96.0.7", "10.96.0.8").replace("300", "310"),
    )?;
    let plan = world.command("plan --cluster-cidr 10.244.0.0/16").ok()?.stdout;
    world.node.wrap(Cmd::new("nft -c -f -").stdin(plan.clone())).ok()?;
    assert!(plan.contains("10.96.0.7 . tcp . 80 comment \"default/web:http\" : "), "{plan}");
    assert!(plan.contains("tcp . 31080 comment \"default/empty:http\""), "{plan}");
    assert!(!world.nft("tables")?.contains("weft-proxy"), "a plan changes nothing");
    world.start_usual()?;
    world.node.wrap(Cmd::new("nft -c -f -").stdin(plan)).ok()?; // in place of what is there
    Ok(())
}

/// Without a default route the node's own packets need one, which goes when a default route comes.
#[test]
fn a_node_without_a_default_route_reaches_its_services() -> Result<()> {
    let Some(mut world) = World::new("noroute", 1) else { return Ok(()) };
    let _servers = world.tcp_servers()?;
    world.node.cmd("ip route del default").ok()?;
    world.write("web", &web(&[0]))?;
    world.start_usual()?;
    let routes = |world: &World| world.node.cmd("ip -j -d route show proto 154").json();
    let route = testkit::eventually(LIMIT, || routes(&world).ok().filter(|r| r[0]["dst"] == "10.96.0.7"));
    let (route, _) = route.expect("a route to the cluster IP");
    println!("{route}");
    assert_eq!((&route[0]["dev"], &route[0]["metric"]), (&"eth0".into(), &4_294_967_295_u32.into()));
    assert!(ask(&world.node, (WEB, 80))?.is_ok());
    let range = "{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: kubernetes}, \
                 spec: {cidrs: [10.96.0.0/12]}}";
    world.write("range", range)?;
    let becomes = |world: &World, wanted: &str| {
        let waited = testkit::eventually(LIMIT, || {
            let routes = routes(world).ok()?;
            let all: Vec<_> = routes.as_array()?.iter().filter_map(|r| r["dst"].as_str()).collect();
            (all.join(" ") == wanted).then_some(())
        });
        assert!(waited.is_some(), "wanted {wanted:?}, got {:?}", routes(world));
    };
    becomes(&world, "10.96.0.0/12");
    assert!(ask(&world.node, (WEB, 80))?.is_ok());
    is_refused(&world.node, (WEB, 81))?;
    world.node.cmd("ip route add default via 192.0.2.100").ok()?;
    becomes(&world, "");
    world.node.cmd("ip route del default").ok()?;
    becomes(&world, "10.96.0.0/12");
    world.proxy().terminate(LIMIT)?;
    becomes(&world, "10.96.0.0/12");
    world.command("cleanup").ok()?;
    becomes(&world, "");
    assert!(!world.nft("tables")?.contains("weft-proxy"));
    Ok(())
}

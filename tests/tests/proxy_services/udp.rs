//! UDP: a client that goes on from one port follows its Service.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::net::sockopt::set_ip_tos;
use rustix::process::Signal;
use testkit::traffic::{Server, ask_udp};
use testkit::{Cmd, Netns, eventually};

use crate::world::{LIMIT, NODE, TARGET, USUAL, WEB, World, pod_ip, web};

const DNS: SocketAddrV4 = SocketAddrV4::new(WEB, 53);

fn servers(world: &World) -> Result<Vec<Server>> {
    let server = |(index, pod): (usize, &Netns)| {
        Server::udp(pod, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, TARGET), &format!("pod{index}"))
    };
    world.pods.iter().enumerate().map(server).collect()
}

/// A socket that keeps its port.
fn client(pod: &Netns) -> Result<UdpSocket> {
    pod.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 40_000)))?.context("bind")
}

/// Asks until that server answers, on a flow that is never idle; how long it took.
fn answered_by(socket: &UdpSocket, name: &str) -> Result<Duration> {
    answered_at(socket, DNS, name)
}

fn answered_at(socket: &UdpSocket, to: SocketAddrV4, name: &str) -> Result<Duration> {
    let asked = || {
        let answer = ask_udp(socket, to, Duration::from_millis(50));
        answer.ok().filter(|answer| answer.by == name).map(drop)
    };
    eventually(LIMIT, asked).map(|((), time)| time).with_context(|| format!("{name} does not answer"))
}

/// The flows of the client's port, as `conntrack` shows them.
fn flows(world: &World) -> Result<String> {
    Ok(world.node.cmd("conntrack -L -p udp --orig-port-src 40000").run()?.stdout)
}

#[test]
fn one_source_port_survives_the_replacement_of_the_endpoint() -> Result<()> {
    let Some(mut world) = World::new("udp", 3) else { return Ok(()) };
    let _servers = servers(&world)?;
    world.write("web", &web(&[0]))?;
    world.start_usual()?;
    let socket = client(&world.pods[2])?;
    answered_by(&socket, "pod0")?;
    world.write("web", &web(&[1]))?;
    let time = answered_by(&socket, "pod1")?;
    println!("the new endpoint answers the same port after {time:?}");
    assert!(time < Duration::from_secs(1));
    let left = flows(&world)?;
    assert!(
        left.contains(&format!("src={}", pod_ip(1))) && !left.contains(&format!("src={}", pod_ip(0))),
        "{left}"
    );
    Ok(())
}

/// Scaled to zero, or deleted, or changed while no proxy ran: the flow goes, and only the stale one.
#[test]
fn flows_of_a_service_that_is_gone_are_forgotten() -> Result<()> {
    let Some(mut world) = World::new("udpgone", 3) else { return Ok(()) };
    let _servers = servers(&world)?;
    world.write("web", &web(&[0]))?;
    world.start_usual()?;
    let socket = client(&world.pods[2])?;
    let forgotten = |world: &World| {
        let gone = eventually(LIMIT, || (!flows(world).ok()?.contains("sport=40000")).then_some(()));
        gone.map(|((), time)| time).with_context(|| format!("still there: {:?}", flows(world)))
    };
    answered_by(&socket, "pod0")?;
    world.write("web", &web(&[]))?;
    println!("scaled to zero: forgotten after {:?}", forgotten(&world)?);
    world.write("web", &web(&[0]))?;
    answered_by(&socket, "pod0")?;
    world.write("web", "# the Service is deleted\n")?;
    println!("deleted: forgotten after {:?}", forgotten(&world)?);
    world.write("web", &web(&[0, 1]))?;
    world.wait_nft("map ip weft-proxy frontends", "10.96.0.7 . udp . 53")?;
    let both = eventually(LIMIT, || ask_udp(&socket, DNS, Duration::from_millis(100)).ok());
    let (first, _) = both.context("no answer")?;
    let (stays, other) = if first.by == "pod0" { (0, 1) } else { (1, 0) };
    world.proxy().kill();
    world.write("web", &web(&[stays]))?;
    world.start_usual()?;
    answered_by(&socket, &format!("pod{stays}"))?;
    assert_eq!(flows(&world)?.lines().count(), 1, "a flow whose endpoint stays is left alone");
    world.proxy().kill();
    world.write("web", &web(&[other]))?;
    world.start_usual()?;
    answered_by(&socket, &format!("pod{other}"))?;
    Ok(())
}

/// While our table was gone, a flow may have passed untranslated; it must not stay so once the table is back.
#[test]
fn a_flow_that_passed_while_the_table_was_gone_is_forgotten() -> Result<()> {
    let Some(mut world) = World::new("udpgap", 2) else { return Ok(()) };
    let _servers = servers(&world)?;
    world.write("web", &web(&[0]))?;
    world.start_usual()?;
    world.proxy().signal(Signal::STOP)?;
    let gone = "flush ruleset\ntable ip other {\n chain known {\n type filter hook forward priority 0;\n ct state new counter\n }\n}\n";
    world.node.wrap(Cmd::new("nft -f -").stdin(gone)).ok()?;
    let socket = client(&world.pods[1])?;
    assert!(ask_udp(&socket, DNS, Duration::from_millis(100)).is_err());
    assert!(flows(&world)?.contains("sport=40000"), "untranslated");
    world.proxy().signal(Signal::CONT)?;
    answered_by(&socket, "pod0")?;
    Ok(())
}

/// A flow to an address that is not the node's yet passes untranslated; it must not stay so.
#[test]
fn a_flow_to_a_node_address_that_comes_later_is_led_on() -> Result<()> {
    const ANYCAST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);
    for (flags, device) in [("203.0.113.0/24", "eth0"), ("203.0.113.0/24", "lo"), ("all", "lo")] {
        let Some(mut world) = World::new("udplater", 1) else { return Ok(()) };
        let _servers = servers(&world)?;
        world.write("web", &web(&[0]))?;
        world.start(&format!("{USUAL} --nodeport-addresses {flags}"))?;
        world.outside.cmd(format!("ip route add {ANYCAST} via {NODE}")).ok()?;
        let (socket, to) = (client(&world.outside)?, SocketAddrV4::new(ANYCAST, 30053));
        assert!(ask_udp(&socket, to, Duration::from_millis(100)).is_err());
        assert!(flows(&world)?.contains("sport=40000"), "untranslated");
        world.node.cmd(format!("ip addr add {ANYCAST}/32 dev {device}")).ok()?;
        answered_at(&socket, to, "pod0").with_context(|| format!("{flags} on {device}"))?;
    }
    Ok(())
}

/// A flow without answers stays new. Its first packet carried our scratch, and no packet loses the priority that
/// forwarding gives it.
#[test]
fn one_way_packets_keep_their_priority() -> Result<()> {
    let Some(mut world) = World::new("oneway", 1) else { return Ok(()) };
    let silent = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, TARGET);
    let _silent = world.pods[0].inside(|| UdpSocket::bind(silent))?.context("bind")?;
    world.write("web", &web(&[0]))?;
    world.start_usual()?;
    let probe = "table ip probe {\nchain post {\ntype filter hook postrouting priority 200\n\
                 ip daddr 10.244.1.10 meta priority != 0:6 counter\n\
                 ip daddr 10.244.1.10 meta priority 0:6 counter\n}\n}\n";
    world.node.wrap(Cmd::new("nft -f -").stdin(probe)).ok()?;
    let send = |from: &Netns| -> Result<()> {
        let socket = client(from)?;
        set_ip_tos(&socket, 0x10).context("tos")?; // for which the kernel has priority 6
        for _ in 0..5 {
            socket.send_to(b"x", SocketAddrV4::new(NODE, 30053))?;
        }
        Ok(())
    };
    let counted = |counts| eventually(LIMIT, || (world.counts("probe post").ok()? == counts).then_some(()));
    send(&world.outside)?;
    assert!(counted([0, 5]).is_some(), "{:?}", world.counts("probe post"));
    send(&world.node)?;
    assert!(counted([1, 9]).is_some(), "{:?}: only the first lost its own", world.counts("probe post"));
    Ok(())
}

/// What others classify behind the translation stays as they want it, also a connection's first packet.
#[test]
fn a_priority_that_others_give_stays() -> Result<()> {
    let Some(mut world) = World::new("classified", 1) else { return Ok(()) };
    world.write("web", &web(&[0]))?;
    world.start_usual()?;
    let probe = format!(
        "table ip probe {{\n\
         chain classify {{\ntype filter hook postrouting priority -150\n\
         udp dport {TARGET} meta priority set 1:20\n}}\n\
         chain post {{\ntype filter hook postrouting priority 200\n\
         udp dport {TARGET} meta priority != 1:20 counter\nudp dport {TARGET} meta priority 1:20 counter\n}}\n}}\n"
    );
    world.node.wrap(Cmd::new("nft -f -").stdin(probe)).ok()?;
    for from in [&world.outside, &world.node] {
        client(from)?.send_to(b"x", SocketAddrV4::new(NODE, 30053))?;
    }
    let counted = eventually(LIMIT, || (world.counts("probe post").ok()? == [0, 2]).then_some(()));
    assert!(counted.is_some(), "{:?}", world.counts("probe post"));
    Ok(())
}

//! Host ports, judged by the packets that arrive.

use std::{net::IpAddr, time::Duration};

use anyhow::Result;
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};
use serde_json::{Value, json};
use testkit::{Cmd, Netns, Process};

use crate::{
    bed::{call, call_of, reference, with},
    hostports_lab::{Caller, Lab, ask, ask_udp, asking, expect, is_silent, tcp, udp},
};

type Ask = fn(&Netns, &str) -> Result<(String, IpAddr)>;

#[test]
fn a_host_port_leads_to_its_pod_from_everywhere() -> Result<()> {
    let Some(lab) = Lab::new("hostports")? else { return Ok(()) };
    let (host, outside) = (&lab.bed.host, &lab.outside);
    let pod = lab.add("web", &json!([tcp(8080), udp(8080)]))?;
    let neighbour = lab.add("client", &json!([]))?;
    let _beyond =
        testkit::traffic::Server::tcp(outside, "192.0.2.9:8080".parse::<std::net::SocketAddr>()?, "beyond")?;
    for ask in [ask, ask_udp] {
        expect(ask(outside, "192.0.2.1:8080"), "web", "192.0.2.9");
        expect(ask(outside, "192.0.2.2:8080"), "web", "192.0.2.9");
        expect(ask(outside, "[2001:db8::1]:8080"), "web", "2001:db8::9");
        expect(ask(host, "127.0.0.1:8080"), "web", "10.99.0.1");
        expect(ask(host, "192.0.2.1:8080"), "web", "192.0.2.1");
        expect(ask(host, "[2001:db8::1]:8080"), "web", "2001:db8::1");
    }
    for bridged in ["0", "1"] {
        for family in ["iptables", "ip6tables"] {
            Cmd::new(format!("sysctl -qw net.bridge.bridge-nf-call-{family}={bridged}")).ok()?;
        }
        for (from, ask) in
            [&pod.netns, &neighbour.netns].into_iter().flat_map(|from| [(from, ask as Ask), (from, ask_udp)])
        {
            expect(ask(from, "192.0.2.1:8080"), "web", "10.99.0.1");
            expect(ask(from, "10.99.0.1:8080"), "web", "10.99.0.1");
            expect(ask(from, "[2001:db8::1]:8080"), "web", "fd99::1");
        }
    }
    assert!(is_silent(host, "[::1]:8080")? && is_silent(outside, "192.0.2.1:8081")?);
    expect(ask(&neighbour.netns, "192.0.2.9:8080"), "beyond", "192.0.2.1");
    lab.del(&pod, &json!([]));
    assert!(is_silent(outside, "192.0.2.1:8080")? && is_silent(outside, "[2001:db8::1]:8080")?);
    assert_eq!((Lab::elements_of("web")?, Lab::elements_of("client")?), (0, 4));
    Ok(())
}

#[test]
fn loopback_addresses_of_the_host_stay_closed_to_pods() -> Result<()> {
    let Some(lab) = Lab::new("hostportlo")? else { return Ok(()) };
    let (host, any) = (&lab.bed.host, "127.0.0.1:7070".parse::<std::net::SocketAddr>()?);
    let _private = testkit::traffic::Server::tcp(host, any, "private")?;
    let pod = lab.add("web", &json!([tcp(8080)]))?;
    expect(ask(host, "127.0.0.1:7070"), "private", "127.0.0.1");
    expect(ask(host, "127.0.0.1:8080"), "web", "10.99.0.1");
    for line in [
        "sysctl -qw net.ipv4.conf.all.route_localnet=1",
        "ip addr flush dev lo",
        "ip route add 127.0.0.1 via 10.99.0.1",
    ] {
        pod.netns.cmd(line).ok()?;
    }
    assert!(is_silent(&pod.netns, "127.0.0.1:7070")?);
    let translated = "table ip other { chain prerouting { type nat hook prerouting priority -100;
        tcp dport 7071 dnat to 127.0.0.1:7070; }; }";
    Cmd::new("nft -f -").stdin(translated).ok()?;
    expect(ask(&pod.netns, "10.99.0.1:7071"), "private", "10.99.0.2");
    // It is that rule, and no accident, which keeps them out.
    Cmd::new("nft flush chain inet weft-cni input").ok()?;
    expect(ask(&pod.netns, "127.0.0.1:7070"), "private", "10.99.0.2");
    Ok(())
}

#[test]
fn a_host_address_and_a_protocol_make_another_port() -> Result<()> {
    let Some(lab) = Lab::new("hostip")? else { return Ok(()) };
    let at = |host: &str, mapping: Value| with(&mapping, &json!({"hostIP": host}));
    let _one = lab.add("one", &json!([at("192.0.2.1", tcp(80)), udp(81)]))?;
    let _two = lab.add("two", &json!([at("192.0.2.2", tcp(80)), at("2001:db8::1", tcp(80)), tcp(81)]))?;
    let outside = &lab.outside;
    expect(ask(outside, "192.0.2.1:80"), "one", "192.0.2.9");
    expect(ask(outside, "192.0.2.2:80"), "two", "192.0.2.9");
    expect(ask(outside, "[2001:db8::1]:80"), "two", "2001:db8::9");
    expect(ask_udp(outside, "192.0.2.2:81"), "one", "192.0.2.9");
    expect(ask(outside, "192.0.2.1:81"), "two", "192.0.2.9");
    assert!(is_silent(&lab.bed.host, "127.0.0.1:80")?);
    let _local = lab.add("local", &json!([at("127.0.0.1", tcp(82)), at("0.0.0.0", tcp(83))]))?;
    expect(ask(&lab.bed.host, "127.0.0.1:82"), "local", "10.99.0.1");
    assert!(is_silent(outside, "192.0.2.1:82")?);
    expect(ask(outside, "192.0.2.1:83"), "local", "192.0.2.9");
    assert!(is_silent(outside, "[2001:db8::1]:83")?);
    Ok(())
}

#[test]
fn datagrams_of_a_client_that_never_stops_find_the_pod_of_the_moment() -> Result<()> {
    let Some(lab) = Lab::new("hostudp")? else { return Ok(()) };
    let mappings = json!([udp(5353)]);
    for (ipv4, to, saw) in
        [(true, "192.0.2.1:5353", "192.0.2.9"), (false, "[2001:db8::1]:5353", "2001:db8::9")]
    {
        let client = Caller::new(&lab.outside, ipv4)?;
        // Makes the kernel remember that nobody is there.
        assert!(client.is_unheard(to));
        let first = lab.add("first", &mappings)?;
        expect(client.ask(to), "first", saw);
        lab.del(&first, &mappings);
        let second = lab.add("second", &mappings)?;
        expect(client.ask(to), "second", saw);
        lab.del(&second, &json!([]));
        assert!(client.is_unheard(to));
        let third = lab.add("third", &mappings)?;
        expect(client.ask(to), "third", saw);
        lab.del(&third, &mappings);
    }
    // What the host's clients have with others on that port goes on.
    let _resolver = testkit::traffic::Server::udp(
        &lab.outside,
        "192.0.2.9:5353".parse::<std::net::SocketAddr>()?,
        "dns",
    )?;
    expect(ask_udp(&lab.bed.host, "192.0.2.9:5353"), "dns", "192.0.2.1");
    lab.add("fourth", &mappings)?;
    let flows = Cmd::new("conntrack -L -p udp --dport 5353 -d 192.0.2.9").ok()?.stdout;
    assert_eq!(flows.lines().count(), 1, "{flows}");
    Ok(())
}

/// An SCTP packet with an INIT chunk for port `port`.
fn init(port: u16) -> Vec<u8> {
    let mut packet = [&40000_u16.to_be_bytes()[..], &port.to_be_bytes(), &[0; 8]].concat();
    packet.extend([1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let crc = packet.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    });
    packet[8..12].copy_from_slice(&(!crc).to_le_bytes());
    packet
}

#[test]
fn an_sctp_init_is_translated() -> Result<()> {
    let Some(lab) = Lab::new("hostsctp")? else { return Ok(()) };
    let pod = lab.add("web", &json!([{"hostPort": 9899, "containerPort": 80, "protocol": "SCTP"}]))?;
    let mut capture =
        Process::spawn(&pod.netns.cmd("tcpdump -lnni eth0 -c 1 sctp"), lab.bed.path("capture"))?;
    capture.wait_for_log("listening on", Duration::from_secs(10))?;
    lab.outside.inside(|| -> Result<()> {
        let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::SCTP))?;
        sendto(&raw, &init(9899), SendFlags::empty(), &"192.0.2.1:0".parse::<std::net::SocketAddrV4>()?)?;
        Ok(())
    })??;
    capture.wait_for_log("192.0.2.9.40000 > 10.99.0.2.80: sctp (1) [INIT]", Duration::from_secs(5))?;
    Ok(())
}

#[test]
fn sources_are_kept_or_replaced_as_told() -> Result<()> {
    let Some(lab) = Lab::new("hostsnat")? else { return Ok(()) };
    let add = |name: &str, port: u16, keys: Value| -> Result<_> {
        let pod = Lab::pod(name)?;
        let config = with(&lab.config(&json!([tcp(port)])), &keys);
        let result = call("ADD", &pod.who, &config).result();
        call("CHECK", &pod.who, &with(&config, &json!({"prevResult": result}))).silent();
        Ok(pod)
    };
    let _all = add("all", 8001, json!({"masqAll": true}))?;
    let _bit = add("bit", 8002, json!({"markMasqBit": 5}))?;
    let plain = add("plain", 8003, json!({"snat": false}))?;
    let some = add(
        "some",
        8004,
        json!({"conditionsV4": ["ip", "saddr", "!=", "192.0.2.9"], "conditionsV6": ["ip6 saddr 2001:db8::9"]}),
    )?;
    let outside = &lab.outside;
    expect(ask(outside, "192.0.2.1:8001"), "all", "10.99.0.1");
    expect(ask(outside, "[2001:db8::1]:8001"), "all", "fd99::1");
    expect(ask(&plain.netns, "192.0.2.1:8002"), "bit", "10.99.0.1");
    expect(ask(outside, "192.0.2.1:8003"), "plain", "192.0.2.9");
    assert!(is_silent(&plain.netns, "192.0.2.1:8003")?, "a pod doesn't know itself as a stranger");
    assert!(is_silent(outside, "192.0.2.1:8004")?);
    expect(ask(outside, "[2001:db8::1]:8004"), "some", "2001:db8::9");
    expect(ask(&some.netns, "192.0.2.1:8004"), "some", "10.99.0.1");
    assert!(is_silent(&some.netns, "[2001:db8::1]:8004")?);
    Ok(())
}

/// What a proxy in front does with a port of its own.
const NODE_PORT: &str = "table ip proxy {
    map ports { typeof meta l4proto . th dport : ip daddr . th dport; }
    chain prerouting { type nat hook prerouting priority -100; fib daddr type local dnat ip to meta l4proto . th dport map @ports; }
    chain output { type nat hook output priority -100; fib daddr type local dnat ip to meta l4proto . th dport map @ports; }
}";

#[test]
fn the_table_lives_beside_a_proxy_and_reloads_as_nft_lists_it() -> Result<()> {
    let Some(lab) = Lab::new("hostreload")? else { return Ok(()) };
    let _pod =
        lab.add("web", &json!([tcp(8080), tcp(30080), with(&tcp(81), &json!({"hostIP": "192.0.2.1"}))]))?;
    let config =
        with(&lab.config(&json!([udp(53)])), &json!({"masqAll": true, "conditionsV4": ["iifname out0"]}));
    call("ADD", &Lab::pod("dns")?.who, &config).result();
    let other = lab.add("service", &json!([]))?;
    Cmd::new("nft -f -").stdin(NODE_PORT).ok()?;
    Cmd::new("nft add element ip proxy ports").arg("{ tcp . 30080 : 10.99.0.4 . 80 }").ok()?;
    let check = || {
        expect(ask(&lab.outside, "192.0.2.1:8080"), "web", "192.0.2.9");
        expect(ask(&lab.outside, "192.0.2.1:81"), "web", "192.0.2.9");
        expect(ask(&lab.outside, "192.0.2.1:30080"), "service", "192.0.2.9");
        expect(ask(&other.netns, "192.0.2.1:8080"), "web", "10.99.0.1");
    };
    check();
    let listed = Cmd::new("nft list ruleset").ok()?.stdout;
    Cmd::new("nft flush ruleset").ok()?;
    Cmd::new("nft -f -").stdin(listed.clone()).ok()?;
    assert_eq!(Cmd::new("nft list ruleset").ok()?.stdout, listed);
    check();
    Ok(())
}

#[test]
fn portmap_serves_a_chain_of_other_plugins() -> Result<()> {
    let Some(lab) = Lab::new("hostchain")? else { return Ok(()) };
    let pod = Lab::pod("web")?;
    let bridge = crate::masquerade::config(&lab.bed);
    let previous = call("ADD", &pod.who, &bridge).result();
    let portmap = json!({"cniVersion": "1.1.0", "name": "net", "type": "portmap", "capabilities": {"portMappings": true},
        "backend": "iptables", "prevResult": previous, "stateDir": lab.bed.path("state")});
    let asked = asking(&portmap, &json!([tcp(8080), udp(8080)]));
    assert_eq!(call("ADD", &pod.who, &portmap).result(), previous);
    assert_eq!(call("ADD", &pod.who, &asked).result(), previous);
    for ask in [ask, ask_udp] {
        expect(ask(&lab.outside, "192.0.2.1:8080"), "web", "192.0.2.9");
        expect(ask(&lab.outside, "[2001:db8::1]:8080"), "web", "2001:db8::9");
        expect(ask(&lab.bed.host, "127.0.0.1:8080"), "web", "10.99.0.1");
        expect(ask(&pod.netns, "192.0.2.1:8080"), "web", "10.99.0.1");
    }
    call("CHECK", &pod.who, &asked).silent();
    let listed = |id: &str| Lab::elements_of(id);
    assert_eq!(listed("web")?, 12);
    let homeless: Value =
        json!({"cniVersion": "1.1.0", "name": "net", "type": "portmap", "stateDir": lab.bed.path("state")});
    call("DEL", &pod.who.homeless(), &homeless).silent();
    assert_eq!(listed("web")?, 4, "what the bridge plugin made stays");
    assert!(
        call("CHECK", &pod.who, &asked).error().1.contains("host port 8080/tcp does not lead to 10.99.0.2")
    );
    call("DEL", &pod.who, &asked).silent();
    call("DEL", &pod.who, &bridge).silent();
    assert_eq!(listed("web")?, 0);
    Netns::new().map(drop)
}

#[test]
fn portmap_serves_the_references_bridge() -> Result<()> {
    let (Some(bridge), Some(lab)) = (reference("bridge"), Lab::new("hostref")?) else { return Ok(()) };
    // Otherwise its bridge could ask for no pod over IPv6 in the first second.
    Cmd::new("sysctl -qw net.ipv6.conf.default.accept_dad=0").ok()?;
    let pod = Lab::pod("web")?;
    let config = with(&crate::masquerade::config(&lab.bed), &json!({"cniVersion": "1.0.0", "ipMasq": false}));
    let previous = call_of(&bridge, "ADD", &pod.who, &config).result();
    let portmap = json!({"cniVersion": "1.0.0", "name": "net", "type": "portmap", "prevResult": previous,
        "stateDir": lab.bed.path("state")});
    let asked = asking(&portmap, &json!([tcp(8080), udp(8080)]));
    call("ADD", &pod.who, &asked).result();
    call("CHECK", &pod.who, &asked).silent();
    for ask in [ask, ask_udp] {
        expect(ask(&lab.outside, "192.0.2.1:8080"), "web", "192.0.2.9");
        expect(ask(&lab.outside, "[2001:db8::1]:8080"), "web", "2001:db8::9");
        expect(ask(&lab.bed.host, "127.0.0.1:8080"), "web", "10.99.0.1");
        expect(ask(&pod.netns, "192.0.2.1:8080"), "web", "10.99.0.1");
    }
    // Without our record and our mark on a link nobody takes this pod for dead.
    let other = Lab::pod("other")?;
    assert!(lab.try_add(&other, &json!([tcp(8080)])).error().1.contains("taken by container web"));
    call("DEL", &pod.who, &asked).silent();
    assert!(is_silent(&lab.outside, "192.0.2.1:8080")?);
    call_of(&bridge, "DEL", &pod.who, &config).silent();
    Ok(())
}

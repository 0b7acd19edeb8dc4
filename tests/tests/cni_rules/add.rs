//! Rules 25 to 28, 30 and 31: ADD makes what was asked for, and nothing else.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::{
    Cmd, Netns,
    traffic::{Server, ask_tcp},
};

use crate::{
    bed::{Bed, Who, address, addresses, call_of, device, with},
    network::{NONE, Network, changes, links, on, traces, used},
};

fn dual(bed: &Bed) -> Value {
    let ranges = json!([[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]);
    let ipam = json!({"type": "host-local", "dataDir": bed.path("networks"), "ranges": ranges,
        "routes": [{"dst": "192.0.2.0/24"}, {"dst": "2001:db8::/32", "gw": "fd99::9"}]});
    with(&bed.bridge(), &json!({"ipam": ipam}))
}

#[test]
fn rule_25_the_interface_is_there_with_all_that_was_asked_for() -> Result<()> {
    let Some(bed) = Bed::new("rule25")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = on(&Who::new("c1", &pod), "fifteen.bytes-x");
    call_of(&bed.program("bridge")?, "ADD", &who, &dual(&bed)).result();
    let interface = device(&pod, "fifteen.bytes-x")?;
    assert_eq!((&interface["operstate"], &interface["mtu"]), (&json!("UP"), &json!(1400)), "{interface}");
    assert_eq!(addresses(&interface), ["10.99.0.2/24", "fd99::2/64"]);
    for (dst, gateway) in [
        ("default", "10.99.0.1"),
        ("192.0.2.0/24", "10.99.0.1"),
        ("-6 default", "fd99::1"),
        ("-6 2001:db8::/32", "fd99::9"),
    ] {
        let (family, dst) = dst.split_once(' ').unwrap_or(("-4", dst));
        let route = pod.cmd(format!("ip -j {family} route show exact {dst}")).json()?;
        assert_eq!(
            (&route[0]["gateway"], &route[0]["dev"]),
            (&json!(gateway), &json!("fifteen.bytes-x")),
            "{route}"
        );
    }
    for (from, to) in
        [(&pod, "10.99.0.1"), (&pod, "fd99::1"), (&bed.host, "10.99.0.2"), (&bed.host, "fd99::2")]
    {
        from.cmd(format!("ping -n -c1 -W2 {to}")).ok()?;
    }
    Ok(())
}

#[test]
fn rule_25_and_so_are_the_host_port_and_the_limits() -> Result<()> {
    let Some(bed) = Bed::new("rule25port")? else { return Ok(()) };
    for mut network in Network::both(&bed)? {
        network = network.asking(18_080);
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        let given: Ipv4Addr = address(&network.add(&who)).split('/').next().context("an address")?.parse()?;
        let _server = Server::tcp(&pod, SocketAddrV4::new(given, 80), "web")?;
        for to in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(10, 42, 3, 1)] {
            let answer = ask_tcp(SocketAddrV4::new(to, 18_080), Duration::from_secs(5));
            assert_eq!(answer.with_context(|| format!("{to}"))?.by, "web");
        }
        let to_itself =
            || ask_tcp(SocketAddrV4::new(Ipv4Addr::new(10, 42, 3, 1), 18_080), Duration::from_secs(5));
        assert_eq!(pod.inside(to_itself)??.by, "web");
        let queues = Cmd::new("tc -j qdisc show").json()?;
        let rates: BTreeSet<u64> =
            queues.as_array().into_iter().flatten().filter_map(|q| q["options"]["rate"].as_u64()).collect();
        assert_eq!(rates, BTreeSet::from([6_250_000, 7_500_000]));
        network.del(&who);
    }
    Ok(())
}

#[test]
fn rule_26_a_name_that_is_taken_is_an_error_and_nothing_changes() -> Result<()> {
    let Some(bed) = Bed::new("rule26")? else { return Ok(()) };
    for mut network in Network::both(&bed)? {
        network = network.asking(18_080);
        let pod = Netns::new()?;
        pod.cmd("ip link add eth0 type veth peer name other").ok()?;
        pod.cmd("ip address add 203.0.113.1/24 dev eth0").ok()?;
        let before = used(&mut network)?;
        let inside = pod.cmd("ip -j address").json()?;
        let (code, text) = network.try_add(&Who::new("c1", &pod)).expect_err("the name is taken").error();
        let named = text.starts_with("container veth name (\"eth0\") peer provided (\"veth");
        assert!(code == 999 && named && text.ends_with("already exists"), "{code} {text}");
        assert_eq!((changes(&bed, &before)?, pod.cmd("ip -j address").json()?), (vec![], inside));
    }
    Ok(())
}

#[test]
fn rule_27_a_namespace_that_is_none_is_an_error_and_nothing_is_left() -> Result<()> {
    let Some(bed) = Bed::new("rule27")? else { return Ok(()) };
    for mut network in Network::both(&bed)? {
        network = network.asking(18_080);
        let before = used(&mut network)?;
        let file = bed.dir.path().display().to_string();
        for netns in ["/run/netns/does-not-exist", "/dev/null", &file, "/proc/self/ns/mnt", "relative", "/"] {
            let who = Who { id: "c1".into(), ifname: "eth0".into(), netns: netns.to_owned() };
            let (code, text) = network.try_add(&who).expect_err("no namespace").error();
            let wanted = match netns {
                "/proc/self/ns/mnt" => format!("failed to enter network namespace {netns}"),
                _ => format!("failed to open netns {netns:?}"),
            };
            assert!(code == 999 && text.starts_with(&wanted), "{netns}: {code} {text}");
            assert_eq!(changes(&bed, &before)?, NONE, "{netns}");
        }
    }
    Ok(())
}

#[test]
fn rule_28_the_plugins_own_namespace_is_code_8_before_any_change() -> Result<()> {
    let Some(bed) = Bed::new("rule28")? else { return Ok(()) };
    let own = bed.host.path().display().to_string();
    for (name, config) in [("flannel", bed.flannel()?), ("bridge", bed.bridge())] {
        let before = traces(&bed)?;
        for netns in [own.as_str(), "/proc/self/ns/net", "/proc/thread-self/ns/net"] {
            let who = Who { id: "c1".into(), ifname: "eth0".into(), netns: netns.to_owned() };
            assert_eq!(call_of(&bed.program(name)?, "ADD", &who, &config).error().0, 8, "{name} {netns}");
            let mut after = traces(&bed)?;
            after.retain(|line| {
                !line.starts_with("file") || line.contains("state/attachments") || line.contains("networks/")
            });
            assert!(after.iter().all(|line| before.contains(line)), "{name} {netns}: {after:?}");
        }
    }
    Ok(())
}

#[test]
fn rule_30_a_second_add_is_an_error_and_the_first_stays() -> Result<()> {
    let Some(bed) = Bed::new("rule30")? else { return Ok(()) };
    for mut network in Network::both(&bed)? {
        network = network.asking(18_080);
        let (pod, other) = (Netns::new()?, Netns::new()?);
        let who = Who::new("c1", &pod);
        network.add(&who);
        let before = traces(&bed)?;
        for netns in [&pod, &other] {
            let (_, text) = network.try_add(&Who::new("c1", netns)).expect_err("the second").error();
            assert!(text.ends_with("already exists"), "{text}");
            assert_eq!((changes(&bed, &before)?, links(&other)?), (vec![], vec!["lo".to_owned()]));
            assert_eq!(network.check(&who), Ok(()));
        }
        pod.cmd("ping -n -c1 -W2 10.42.3.1").ok()?;
        network.del(&who);
    }
    Ok(())
}

#[test]
fn rule_31_another_interface_of_the_same_container_is_its_own() -> Result<()> {
    let Some(bed) = Bed::new("rule31")? else { return Ok(()) };
    for [mut first, mut second] in [
        [Network::whole(&bed, "1.1.0")?, Network::whole(&bed, "1.1.0")?],
        [Network::chain(&bed, "1.1.0"), Network::chain(&bed, "1.1.0")],
    ] {
        (first, second) = (first.asking(18_080), second.asking(18_081));
        // Two interfaces can't both be the way to everywhere.
        second.plugins[0]["isDefaultGateway"] = false.into();
        second.plugins[0]["delegate"]["isDefaultGateway"] = false.into();
        let before = used(&mut first)?;
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        let eth1 = on(&who, "eth1");
        let (one, two) = (first.add(&who), second.add(&eth1));
        assert_ne!(address(&one), address(&two));
        assert_eq!((first.check(&who), second.check(&eth1)), (Ok(()), Ok(())));
        second.del_bare(&eth1);
        assert_eq!(first.check(&who), Ok(()));
        pod.cmd("ping -n -c1 -W2 10.42.3.1").ok()?;
        first.del(&who);
        assert_eq!(changes(&bed, &before)?, NONE);
    }
    Ok(())
}

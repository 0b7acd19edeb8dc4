//! What the reference's own tests ask for and no other of these tests shows; the table is in `docs/cni.md`.

use std::fs;

use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Cmd, Netns};

use crate::bed::{Bed, Who, addresses, call, call_of, command, device, feed, reference, with};

#[test]
fn a_bridge_keeps_its_ethernet_address_whatever_joins_and_leaves() -> Result<()> {
    let Some(bed) = Bed::new("stable")? else { return Ok(()) };
    let (one, two) = (Netns::new()?, Netns::new()?);
    let address = || device(&bed.host, "br0").map(|bridge| bridge["address"].clone());
    call("ADD", &Who::new("c1", &one), &bed.bridge()).result();
    let first = address()?;
    Cmd::new("ip link add low0 address 00:00:00:00:00:01 master br0 type veth peer name low1").ok()?;
    assert_eq!(address()?, first);
    call("ADD", &Who::new("c2", &two), &bed.bridge()).result();
    Cmd::new("ip link del low0").ok()?;
    for (id, pod) in [("c1", &one), ("c2", &two)] {
        call("DEL", &Who::new(id, pod), &bed.bridge()).silent();
        assert_eq!(address()?, first);
    }
    Ok(())
}

#[test]
fn the_containers_ethernet_address_comes_by_every_way() -> Result<()> {
    let Some(bed) = Bed::new("mac")? else { return Ok(()) };
    let mac = |n: u8| format!("02:00:00:00:00:0{n}");
    let by_arguments = json!({"args": {"cni": {"mac": mac(2)}}});
    let by_runtime = with(&by_arguments, &json!({"runtimeConfig": {"mac": mac(3)}}));
    for (n, changes) in [(1, json!({})), (2, by_arguments), (3, by_runtime)] {
        let pod = Netns::new()?;
        let mut add = command(&testkit::bin("flannel"), "ADD", &Who::new("c1", &pod));
        add.env("CNI_ARGS", format!("MAC={}", mac(1)));
        let config = with(&bed.bridge(), &changes);
        let result = feed(add, config.to_string().as_bytes()).result();
        assert_eq!(result["interfaces"][2]["mac"], mac(n));
        assert_eq!(device(&pod, "eth0")?["address"], mac(n));
        call("DEL", &Who::new("c1", &pod), &config).silent();
    }
    Ok(())
}

#[test]
fn an_error_names_the_pod_that_it_is_about() -> Result<()> {
    let Some(bed) = Bed::new("about")? else { return Ok(()) };
    let mut add = command(&testkit::bin("flannel"), "ADD", &Who::new("c1", &bed.host));
    add.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web;K8S_POD_NAMESPACE=default;K8S_POD_UID=7");
    let answer = feed(add, bed.bridge().to_string().as_bytes());
    answer.error();
    let document: Value = serde_json::from_str(&answer.out)?;
    assert_eq!(document["details"], "network net, container c1, interface eth0, pod default/web");
    Ok(())
}

#[test]
fn udev_finds_addresses_set_and_pods_hear_no_routers() -> Result<()> {
    let Some(bed) = Bed::new("assigned")? else { return Ok(()) };
    let pod = Netns::new()?;
    let veth =
        call("ADD", &Who::new("c1", &pod), &bed.bridge()).result()["interfaces"][1]["name"].to_string();
    for (ns, name) in [(&bed.host, "br0"), (&bed.host, veth.trim_matches('"')), (&pod, "eth0")] {
        let script = format!("mount -t sysfs none /sys && cat /sys/class/net/{name}/addr_assign_type");
        let show = ns.cmd("unshare -m --propagation private sh -c").arg(script);
        // NET_ADDR_SET: udev and systemd leave such an address alone.
        assert_eq!(show.ok()?.stdout.trim(), "3", "{name}");
    }
    assert_eq!(pod.cmd("sysctl -n net.ipv6.conf.eth0.accept_ra").ok()?.stdout.trim(), "0");
    Ok(())
}

#[test]
fn isolated_ports_reach_the_gateway_and_not_each_other() -> Result<()> {
    let Some(bed) = Bed::new("isolated")? else { return Ok(()) };
    let pods = [Netns::new()?, Netns::new()?, Netns::new()?];
    for (number, pod) in pods.iter().enumerate() {
        let config = with(&bed.bridge(), &json!({"portIsolation": number < 2}));
        call("ADD", &Who::new(&format!("c{number}"), pod), &config).result();
    }
    let reaches = |address: &str| -> Result<bool> {
        Ok(pods[0].cmd(format!("ping -n -c1 -W1 {address}")).run()?.success())
    };
    assert!(reaches("10.99.0.1")? && reaches("10.99.0.4")?);
    assert!(!reaches("10.99.0.3")?);
    Ok(())
}

#[test]
fn a_guarded_container_speaks_with_its_own_ethernet_address_alone() -> Result<()> {
    let Some(bed) = Bed::new("spoof")? else { return Ok(()) };
    let (pod, other) = (Netns::new()?, Netns::new()?);
    let who = Who::new("c1", &pod);
    let config = with(&bed.bridge(), &json!({"macspoofchk": true}));
    let result = call("ADD", &who, &config).result();
    let neighbour = call("ADD", &Who::new("c2", &other), &bed.bridge()).result();
    let speaks = || -> Result<bool> { Ok(pod.cmd("ping -n -c1 -W1 10.99.0.1").run()?.success()) };
    assert!(speaks()? && pod.cmd("ping -n -c1 -W2 10.99.0.3").run()?.success());
    let own = &result["interfaces"][2]["mac"];
    for spoofed in [&json!("02:00:00:00:00:66"), &neighbour["interfaces"][2]["mac"], own] {
        pod.cmd(format!("ip link set eth0 address {}", spoofed.as_str().unwrap_or_default())).ok()?;
        pod.cmd("ip neighbour flush all").ok()?;
        assert_eq!(speaks()?, spoofed == own, "{spoofed}");
        other.cmd("ping -n -c1 -W2 10.99.0.1").ok()?;
    }
    let checked = with(&config, &json!({"prevResult": result}));
    call("CHECK", &who, &checked).silent();
    let veth = result["interfaces"][1]["name"].as_str().unwrap_or_default().to_owned();
    Cmd::new(format!("bridge link set dev {veth} locked off")).ok()?;
    let text = call("CHECK", &who, &checked).error().1;
    assert!(text.contains(&format!("{veth} lets in any Ethernet address")), "{text}");
    call("DEL", &who, &config).silent();
    assert!(!Cmd::new("bridge fdb show br br0").ok()?.stdout.contains(&veth));
    Ok(())
}

#[test]
fn either_backend_masquerades() -> Result<()> {
    let Some(bed) = Bed::new("backend")? else { return Ok(()) };
    for backend in ["iptables", "nftables"] {
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        let config = with(&bed.bridge(), &json!({"ipMasq": true, "ipMasqBackend": backend}));
        call("ADD", &who, &config).result();
        let listed = Cmd::new("nft list ruleset").ok()?.stdout;
        assert!(listed.contains("weft:net/c1/eth0") && !listed.contains("table ip nat"), "{listed}");
        call("DEL", &who, &config).silent();
    }
    Ok(())
}

#[test]
fn a_strangers_device_under_the_hosts_name_stays() -> Result<()> {
    let Some(bed) = Bed::new("stranger")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let name = call("ADD", &who, &bed.bridge()).result()["interfaces"][1]["name"].to_string();
    call("DEL", &who, &bed.bridge()).silent();
    let name = name.trim_matches('"');
    Cmd::new(format!("ip link add {name} type veth peer name other1")).ok()?;
    Cmd::new(format!("ip link set {name} alias mine")).ok()?;
    let (_, text) = call("ADD", &who, &bed.bridge()).error();
    assert!(text.ends_with(&format!("peer provided (\"{name}\") already exists")), "{text}");
    call("DEL", &who, &bed.bridge()).silent();
    assert!(bed.veths()?.contains(&name.to_owned()) && bed.reservations("net").is_empty());
    assert_eq!(pod.cmd("ip -j link").json()?.as_array().map(Vec::len), Some(1));
    Ok(())
}

#[test]
fn a_destination_may_have_several_gateways() -> Result<()> {
    let Some(bed) = Bed::new("ecmp")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let routes = json!([
        {"dst": "192.0.2.0/24", "gw": "10.99.0.9"}, {"dst": "192.0.2.0/24", "gw": "10.99.0.8"},
        {"dst": "192.0.2.0/24", "gw": "10.99.0.9"},
        {"dst": "2001:db8::/32", "gw": "fd99::9"}, {"dst": "2001:db8::/32", "gw": "fd99::8"},
    ]);
    let config = with(
        &bed.bridge(),
        &json!({"ipam": {"type": "host-local", "dataDir": bed.path("networks"), "routes": routes,
            "ranges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]}}),
    );
    let result = call("ADD", &who, &config).result();
    let listed = |line: &str| pod.cmd(line).json().map(|found| found.to_string());
    let four = listed("ip -j route show 192.0.2.0/24")?;
    assert!(four.find("10.99.0.9") < four.find("10.99.0.8") && four.contains("10.99.0.9"), "{four}");
    let six = listed("ip -j -6 route show 2001:db8::/32")?;
    assert!(six.contains("fd99::9") && six.contains("fd99::8"), "{six}");
    call("CHECK", &who, &with(&config, &json!({"prevResult": result}))).silent();
    Ok(())
}

#[test]
fn two_interfaces_may_both_be_the_way_out() -> Result<()> {
    let Some(bed) = Bed::new("twogates")? else { return Ok(()) };
    let pod = Netns::new()?;
    let first = Who::new("c1", &pod);
    let second = Who { ifname: "eth1".into(), ..first.clone() };
    let ipam = json!({"type": "host-local", "dataDir": bed.path("networks"), "subnet": "10.98.0.0/24"});
    let other = with(&bed.bridge(), &json!({"name": "other", "bridge": "br1", "ipam": ipam}));
    let mut ends = Vec::new();
    for (who, config) in [(&first, bed.bridge()), (&second, other)] {
        let result = call("ADD", who, &config).result();
        ends.push((who, with(&config, &json!({"prevResult": result}))));
    }
    let defaults = || -> Result<Vec<Value>> {
        let list = pod.cmd("ip -j route show default").json()?;
        Ok(list.as_array().into_iter().flatten().map(|route| route["dev"].clone()).collect())
    };
    assert_eq!(defaults()?, [json!("eth0"), json!("eth1")], "the first one counts");
    for (who, config) in &ends {
        call("CHECK", who, config).silent();
    }
    call("DEL", ends[0].0, &ends[0].1).silent();
    assert_eq!(defaults()?, [json!("eth1")]);
    call("CHECK", ends[1].0, &ends[1].1).silent();
    Ok(())
}

#[test]
fn ipv6_addresses_outlast_a_pause_of_the_interface() -> Result<()> {
    let Some(bed) = Bed::new("pause")? else { return Ok(()) };
    let pod = Netns::new()?;
    let mut config = bed.bridge();
    config["ipam"]["ranges"] = json!([[{"subnet": "fd99::/64"}]]);
    call("ADD", &Who::new("c1", &pod), &config).result();
    pod.cmd("ip link set eth0 down").ok()?;
    pod.cmd("ip link set eth0 up").ok()?;
    assert_eq!(addresses(&device(&pod, "eth0")?), ["fd99::2/64"]);
    Ok(())
}

/// Our `host-local` with these sets of ranges.
fn pool(bed: &Bed, ranges: &Value) -> Value {
    let ipam = json!({"type": "host-local", "dataDir": bed.path("networks"), "ranges": ranges});
    json!({"cniVersion": "1.0.0", "name": "net", "type": "ptp", "stateDir": bed.path("state"), "ipam": ipam})
}

#[test]
fn each_set_gives_one_address_in_the_order_of_the_sets() -> Result<()> {
    let Some(bed) = Bed::new("sets")? else { return Ok(()) };
    let (program, pod) = (bed.program("host-local")?, Netns::new()?);
    let ranges = json!([
        [{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.200", "rangeEnd": "10.1.2.200"},
         {"subnet": "10.2.2.0/24", "rangeStart": "10.2.2.7", "gateway": "10.2.2.3"}],
        [{"subnet": "10.3.2.0/24"}],
        [{"subnet": "fd01::/64"}],
    ]);
    let given = |id: &str, asked: Value| -> Vec<String> {
        let config = with(&pool(&bed, &ranges), &json!({"runtimeConfig": {"ips": asked}}));
        let answer = call_of(&program, "ADD", &Who::new(id, &pod), &config);
        assert_eq!(answer.err, "", "a first ADD makes folders without a word");
        let result = answer.result();
        result["ips"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|ip| format!("{} {}", ip["address"], ip["gateway"]))
            .collect()
    };
    let quoted =
        |pairs: [(&str, &str); 3]| pairs.map(|(address, gateway)| format!("\"{address}\" \"{gateway}\""));
    let first = [("10.1.2.200/24", "10.1.2.1"), ("10.3.2.2/24", "10.3.2.1"), ("fd01::2/64", "fd01::1")];
    assert_eq!(given("c1", json!([])), quoted(first));
    let second = [("10.2.2.7/24", "10.2.2.3"), ("10.3.2.3/24", "10.3.2.1"), ("fd01::3/64", "fd01::1")];
    assert_eq!(given("c2", json!([])), quoted(second));
    let third = [("10.2.2.44/24", "10.2.2.3"), ("10.3.2.55/24", "10.3.2.1"), ("fd01::66/64", "fd01::1")];
    assert_eq!(given("c3", json!(["fd01::66", "10.2.2.44", "10.3.2.55/24"])), quoted(third));
    Ok(())
}

#[test]
fn each_interface_of_a_container_has_its_own_address() -> Result<()> {
    let Some(bed) = Bed::new("each")? else { return Ok(()) };
    let (program, pod) = (bed.program("host-local")?, Netns::new()?);
    let config = pool(&bed, &json!([[{"subnet": "10.99.0.0/24"}]]));
    let first = Who::new("c1", &pod);
    let second = Who { ifname: "eth1".into(), ..first.clone() };
    for who in [&first, &second] {
        call_of(&program, "ADD", who, &config).result();
    }
    call_of(&program, "DEL", &first, &config).silent();
    assert_eq!(bed.reservations("net"), ["10.99.0.3"]);
    assert_eq!(fs::read_to_string(bed.path("networks/net/10.99.0.3"))?, "c1\r\neth1");
    call_of(&program, "DEL", &Who::new("never-added", &pod), &config).silent();
    assert_eq!(bed.reservations("net").len(), 1);
    Ok(())
}

/// The classic chain behind `main`, as (plugin, entry).
fn classic(bed: &Bed, version: &str) -> Vec<(&'static str, Value)> {
    let entry = |kind: &str, keys: Value| {
        with(
            &json!({"cniVersion": version, "name": "cbr0", "type": kind, "stateDir": bed.path("state")}),
            &keys,
        )
    };
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let limits = json!({"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000});
    let handed =
        |name: &str, value: Value| json!({"capabilities": {name: true}, "runtimeConfig": {name: value}});
    vec![
        ("portmap", entry("portmap", handed("portMappings", ports))),
        ("bandwidth", entry("bandwidth", handed("bandwidth", limits))),
        ("tuning", entry("tuning", json!({"mtu": 1400, "dataDir": bed.path("tuning")}))),
    ]
}

/// What may be left of a chain on the host, beside the bridge.
fn traces() -> Result<String> {
    let links = Cmd::new("ip -j link").json()?;
    let names = links.as_array().into_iter().flatten().map(|link| link["ifname"].to_string());
    let rules = Cmd::new("nft list ruleset").ok()?.stdout;
    Ok(format!("{:?} c1: {}", names.collect::<Vec<_>>(), rules.matches("c1").count()))
}

#[test]
fn the_classic_chain_works_with_ours_and_with_the_packaged_plugins() -> Result<()> {
    let (Some(_), Some(bed)) = (reference("portmap"), Bed::new("classic")?) else { return Ok(()) };
    let main = with(&bed.flannel()?, &json!({"cniVersion": "1.0.0"}));
    let mut chain = classic(&bed, "1.0.0");
    chain.push((
        "firewall",
        json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "firewall", "backend": "iptables"}),
    ));
    for ours in [vec![], vec!["portmap", "bandwidth", "tuning"], vec!["bandwidth"]] {
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        let mut result = call("ADD", &who, &main).result();
        let mut called = Vec::new();
        for (kind, entry) in &chain {
            let Some(theirs) = reference(kind) else { return Ok(()) };
            let program = if ours.contains(kind) { bed.program(kind)? } else { theirs };
            result = call_of(&program, "ADD", &who, &with(entry, &json!({"prevResult": result}))).result();
            called.push((program, entry));
        }
        let previous = json!({"prevResult": result});
        call("CHECK", &who, &with(&main, &previous)).silent();
        for (program, entry) in called.iter().filter(|(program, _)| !program.ends_with("lib/cni/portmap")) {
            call_of(program, "CHECK", &who, &with(entry, &previous)).silent();
        }
        assert_eq!(device(&pod, "eth0")?["mtu"], 1400, "{ours:?}");
        for (program, entry) in called.iter().rev() {
            call_of(program, "DEL", &who, &with(entry, &previous)).silent();
        }
        call("DEL", &who, &with(&main, &previous)).silent();
        assert_eq!(traces()?, r#"["\"lo\"", "\"cni0\""] c1: 0"#, "{ours:?}");
    }
    Ok(())
}

#[test]
fn packaged_plugins_know_no_1_1_0() -> Result<()> {
    let (Some(_), Some(bed)) = (reference("portmap"), Bed::new("known")?) else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let main = with(&bed.flannel()?, &json!({"cniVersion": "1.1.0"}));
    let result = call("ADD", &who, &main).result();
    for (kind, entry) in classic(&bed, "1.1.0") {
        let Some(theirs) = reference(kind) else { return Ok(()) };
        let entry = with(&entry, &json!({"prevResult": result}));
        for verb in ["ADD", "DEL", "CHECK"] {
            assert_eq!(call_of(&theirs, verb, &who, &entry).error().0, 1, "{kind} {verb}");
        }
        for verb in ["GC", "STATUS"] {
            assert_eq!(
                call_of(&theirs, verb, &who, &entry).error(),
                (4, format!("unknown CNI_COMMAND: {verb}"))
            );
        }
    }
    Ok(())
}

#[test]
fn a_host_port_leads_to_the_address_of_no_known_interface_and_to_no_hosts_address() -> Result<()> {
    let Some(bed) = Bed::new("index")? else { return Ok(()) };
    let (pod, program) = (Netns::new()?, bed.program("portmap")?);
    let who = Who::new("c1", &pod);
    let previous = call("ADD", &who, &bed.bridge()).result();
    let (_, entry) = classic(&bed, "1.1.0").swap_remove(0);
    for (index, count) in [(Value::Null, 1), (json!(9), 1), (json!(2), 1), (json!(0), 0)] {
        let mut previous = previous.clone();
        previous["ips"][0]["interface"] = index;
        let entry = with(&entry, &json!({"name": "net", "prevResult": previous}));
        call_of(&program, "ADD", &who, &entry).result();
        let ports = Cmd::new("nft list map inet weft-cni hostports4").ok()?.stdout;
        assert_eq!(ports.matches("10.99.0.2 . 80").count(), count, "{ports}");
        call_of(&program, "DEL", &who, &entry).silent();
    }
    Ok(())
}

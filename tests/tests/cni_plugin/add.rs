//! ADD: what it makes, what it reports, what it leaves when it fails.

use std::fs;

use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Cmd, Netns, bin};

use crate::{
    bed::{Bed, Who, addresses, call, command, device, feed, with},
    routes::route,
};

#[test]
fn rule_19_25_a_flannel_pod_is_complete() -> Result<()> {
    let Some(bed) = Bed::new("add")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let result = call("ADD", &who, &bed.flannel()?).result();
    let eth0 = device(&pod, "eth0")?;
    assert_eq!((eth0["operstate"].as_str(), eth0["mtu"].as_u64()), (Some("UP"), Some(1450)), "{eth0}");
    assert_eq!(addresses(&eth0), ["10.42.3.2/24"]);
    assert_eq!(eth0["address"], "0a:58:0a:2a:03:02");
    assert_eq!(route(&pod, "default")?["gateway"], "10.42.3.1");
    assert_eq!(route(&pod, "10.42.0.0/16")?["gateway"], "10.42.3.1");

    let bridge = device(&bed.host, "cni0")?;
    assert_eq!(addresses(&bridge), ["10.42.3.1/24"]);
    assert_eq!((bridge["address"].as_str(), bridge["mtu"].as_u64()), (Some("0a:58:0a:2a:03:01"), Some(1450)));
    let veth = &bed.veths()?[0];
    let port = device(&bed.host, veth)?;
    assert_eq!((&port["master"], &port["ifalias"]), (&json!("cni0"), &json!("weft:cbr0/c1/eth0")), "{port}");
    assert_eq!(port["linkinfo"]["info_slave_data"]["hairpin"], true, "{port}");
    assert_eq!(Cmd::new("sysctl -n net.ipv4.ip_forward").ok()?.stdout.trim(), "1");

    assert_eq!(result["cniVersion"], "1.0.0");
    assert_eq!(
        result["interfaces"],
        json!([
            {"name": "cni0", "mac": "0a:58:0a:2a:03:01"},
            {"name": veth, "mac": port["address"]},
            {"name": "eth0", "mac": "0a:58:0a:2a:03:02", "sandbox": who.netns},
        ])
    );
    assert_eq!(result["ips"], json!([{"address": "10.42.3.2/24", "gateway": "10.42.3.1", "interface": 2}]));
    assert_eq!(result["routes"], json!([{"dst": "10.42.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "10.42.3.1"}]));
    let file = fs::read_to_string(bed.path("networks/cbr0/10.42.3.2"))?;
    assert_eq!(file, "c1\r\neth0");
    Ok(())
}

#[test]
fn two_pods_and_the_host_reach_each_other() -> Result<()> {
    let Some(bed) = Bed::new("ping")? else { return Ok(()) };
    let (one, two) = (Netns::new()?, Netns::new()?);
    call("ADD", &Who::new("c1", &one), &bed.flannel()?).result();
    call("ADD", &Who::new("c2", &two), &bed.flannel()?).result();
    for (from, to) in
        [(&one, "10.42.3.3"), (&two, "10.42.3.2"), (&one, "10.42.3.1"), (&bed.host, "10.42.3.3")]
    {
        from.cmd(format!("ping -n -c1 -W2 {to}")).ok()?;
    }
    // A packet that goes out by the port it came in by (hairpin): to itself through the bridge.
    one.cmd("ip neigh replace 10.42.3.9 lladdr 0a:58:0a:2a:03:02 dev eth0").ok()?;
    let incoming = one.cmd("tcpdump -lnni eth0 -Q in -c 1 icmp and dst host 10.42.3.9");
    let mut dump = testkit::Process::spawn(&incoming, bed.path("capture"))?;
    dump.wait_for_log("listening on", std::time::Duration::from_secs(10))?;
    let unanswered = one.cmd("ping -n -c1 -W1 10.42.3.9").run()?;
    assert_eq!(unanswered.code, Some(1), "{unanswered}");
    dump.wait_for_log("IP 10.42.3.2 > 10.42.3.9: ICMP echo request", std::time::Duration::from_secs(5))?;
    Ok(())
}

#[test]
fn addresses_are_announced_to_the_neighbours() -> Result<()> {
    let Some(bed) = Bed::new("announce")? else { return Ok(()) };
    let (listener, pod) = (Netns::new()?, Netns::new()?);
    let config = with(
        &bed.bridge(),
        &json!({"ipam": {"type": "host-local", "dataDir": bed.path("networks"),
        "ranges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]}}),
    );
    call("ADD", &Who::new("c0", &listener), &config).result();
    let capture = bed.path("capture");
    let filter = "arp or (icmp6 and ip6[40] = 136)";
    let cmd = listener.cmd("tcpdump -lnni eth0 -c 6").arg(filter);
    let mut dump = testkit::Process::spawn(&cmd, &capture)?;
    dump.wait_for_log("listening on", std::time::Duration::from_secs(10))?;
    for id in ["c1", "c2", "c3"] {
        let result = call("ADD", &Who::new(id, &pod), &config).result();
        assert_eq!(result["ips"].as_array().map(Vec::len), Some(2));
        call("DEL", &Who::new(id, &pod), &config).silent();
    }
    dump.wait(std::time::Duration::from_secs(5))?;
    let text = fs::read_to_string(&capture)?;
    for wanted in ["Request who-has 10.99.0.4 tell 10.99.0.4", "neighbor advertisement, tgt is fd99::4"] {
        assert!(text.contains(wanted), "{wanted} in:\n{text}");
    }
    Ok(())
}

#[test]
fn rule_20_21_22_keys_count_in_any_letter_case() -> Result<()> {
    let Some(bed) = Bed::new("case")? else { return Ok(()) };
    let pod = Netns::new()?;
    let config = json!({
        "CNIVERSION": "1.0.0", "Name": "net", "TYPE": "bridge", "BRIDGE": "br7", "IsGateway": true, "capabilities": {"mac": true},
        "Ipam": {"Type": "host-local", "DataDir": bed.path("networks"), "Ranges": [[{"Subnet": "10.98.0.0/24", "RANGEstart": "10.98.0.77"}]]},
        "StateDir": bed.path("state"), "RuntimeConfig": {"Mac": "02:00:00:00:00:77"}, "unknown": {"x": [1]}, "cni.dev/x": null, "dns": null, "args": null,
    });
    let result = call("ADD", &Who::new("c1", &pod), &config).result();
    assert_eq!(result["ips"][0]["address"], "10.98.0.77/24");
    assert_eq!(device(&pod, "eth0")?["address"], "02:00:00:00:00:77");
    assert_eq!(addresses(&device(&bed.host, "br7")?), ["10.98.0.1/24"]);
    Ok(())
}

#[test]
fn an_address_may_be_asked_for() -> Result<()> {
    let Some(bed) = Bed::new("ask")? else { return Ok(()) };
    let (one, two) = (Netns::new()?, Netns::new()?);
    let mut add = command(&bin("flannel"), "ADD", &Who::new("c1", &one));
    add.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web;IP=10.99.0.50;MAC=02:00:00:00:00:50");
    let result = feed(add, bed.bridge().to_string().as_bytes()).result();
    assert_eq!(result["ips"][0]["address"], "10.99.0.50/24");
    assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:50");
    let asked = |ips: Value| with(&bed.bridge(), &json!({"runtimeConfig": {"ips": ips}}));
    let second = Who::new("c2", &two);
    let (_, text) = call("ADD", &second, &asked(json!(["10.99.0.50/24"]))).error();
    assert_eq!(text, "requested IP address 10.99.0.50 is not available in range set 10.99.0.1-10.99.0.254");
    let (_, text) = call("ADD", &second, &asked(json!(["192.0.2.1"]))).error();
    assert_eq!(text, "failed to allocate all requested IPs: 192.0.2.1");
    let (_, text) = call("ADD", &second, &asked(json!(["10.99.0.1"]))).error();
    assert_eq!(text, "requested ip 10.99.0.1 is subnet's gateway");
    assert_eq!(bed.reservations("net"), ["10.99.0.50"]);
    Ok(())
}

#[test]
fn an_add_that_was_cut_short_is_taken_up_again() -> Result<()> {
    let Some(bed) = Bed::new("again")? else { return Ok(()) };
    let (pod, other) = (Netns::new()?, Netns::new()?);
    let who = Who::new("c1", &pod);
    let veth =
        call("ADD", &who, &bed.bridge()).result()["interfaces"][1]["name"].as_str().unwrap().to_owned();
    call("ADD", &Who::new("c2", &other), &bed.bridge()).result();
    // As after a kill between the reservation and the link.
    Cmd::new(format!("ip link del {veth}")).ok()?;
    let again = call("ADD", &who, &bed.bridge()).result();
    assert_eq!(again["ips"][0]["address"], "10.99.0.2/24", "the address that it had");
    assert_eq!(bed.reservations("net"), ["10.99.0.2", "10.99.0.3"]);
    Cmd::new(format!("ip link del {veth}")).ok()?;
    let asked = with(&bed.bridge(), &json!({"runtimeConfig": {"ips": ["10.99.0.44"]}}));
    call("ADD", &who, &asked).result();
    assert_eq!(bed.reservations("net"), ["10.99.0.3", "10.99.0.44"]);
    Ok(())
}

#[test]
fn rule_29_a_failure_at_any_step_leaves_nothing() -> Result<()> {
    let Some(bed) = Bed::new("fail")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let ipam = |more: Value| {
        let base = json!({"type": "host-local", "dataDir": bed.path("networks"), "ranges": [[{"subnet": "10.99.0.0/24"}]]});
        with(&bed.bridge(), &json!({"ipam": with(&base, &more)}))
    };
    let clean = |what: &str| -> Result<()> {
        assert_eq!((bed.reservations("net").len(), bed.veths()?.len()), (0, 0), "{what}");
        assert_eq!(pod.cmd("ip -j link").json()?.as_array().map(Vec::len), Some(1), "{what}");
        Ok(())
    };
    let lost_gateway = json!({"routes": [{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}]});
    let (_, text) = call("ADD", &who, &ipam(lost_gateway)).error();
    assert!(text.contains("failed to add route 192.0.2.0/24 via 203.0.113.1"), "{text}");
    clean("route")?;
    let full =
        json!({"ranges": [[{"subnet": "10.99.0.0/24", "rangeStart": "10.99.0.1", "rangeEnd": "10.99.0.1"}]]});
    let (_, text) = call("ADD", &who, &ipam(full)).error();
    assert_eq!(text, "no IP addresses available in range set: 10.99.0.1-10.99.0.1");
    clean("pool")?;
    let (_, text) = call("ADD", &who, &ipam(json!({"resolvConf": bed.path("absent")}))).error();
    assert!(text.contains("failed to read") && text.contains("no such file or directory"), "{text}");
    clean("resolv.conf")?;
    assert!(addresses(&device(&bed.host, "br0")?).is_empty(), "a failed ADD takes its gateway back");
    Cmd::new("ip address add 10.98.0.1/16 dev br0").ok()?;
    let (_, text) = call("ADD", &who, &bed.bridge()).error();
    assert_eq!(text, "\"br0\" already has an IP address different from 10.99.0.1/24");
    clean("gateway")?;
    call("ADD", &who, &with(&bed.bridge(), &json!({"forceAddress": true}))).result();
    assert_eq!(addresses(&device(&bed.host, "br0")?), ["10.99.0.1/24"]);
    Ok(())
}

#[test]
fn a_device_that_is_no_bridge_is_refused_and_a_bare_bridge_adopted() -> Result<()> {
    let Some(bed) = Bed::new("adopt")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    Cmd::new("ip link add br0 type veth peer name br1").ok()?;
    let (_, text) = call("ADD", &who, &bed.bridge()).error();
    assert_eq!(text, "\"br0\" already exists but is not a bridge");
    Cmd::new("ip link del br0").ok()?;
    Cmd::new("ip link add br0 type bridge").ok()?;
    let before = device(&bed.host, "br0")?;
    call("ADD", &who, &bed.bridge()).result();
    let after = device(&bed.host, "br0")?;
    assert_eq!(before["address"], after["address"], "the address of a bridge that is there stays");
    assert!(after["flags"].to_string().contains("\"UP\""), "{after}");
    Ok(())
}

#[test]
fn what_an_earlier_plugin_reported_is_kept() -> Result<()> {
    let Some(bed) = Bed::new("chain")? else { return Ok(()) };
    let pod = Netns::new()?;
    let earlier = json!({"cniVersion": "1.1.0", "interfaces": [{"name": "x0", "sandbox": "/x"}],
        "ips": [{"address": "192.0.2.1/32", "interface": 0}], "dns": {}});
    let config = with(&bed.bridge(), &json!({"prevResult": earlier}));
    let result = call("ADD", &Who::new("c1", &pod), &config).result();
    assert_eq!(result["interfaces"][0]["name"], "x0");
    assert_eq!((&result["ips"][0]["interface"], &result["ips"][1]["interface"]), (&json!(0), &json!(3)));
    Ok(())
}

#[test]
fn port_and_bridge_settings_are_set() -> Result<()> {
    let Some(bed) = Bed::new("port")? else { return Ok(()) };
    let pod = Netns::new()?;
    let settings = json!({"hairpinMode": false, "promiscMode": true, "portIsolation": true});
    call("ADD", &Who::new("c1", &pod), &with(&bed.bridge(), &settings)).result();
    let port = device(&bed.host, &bed.veths()?[0])?;
    let port = &port["linkinfo"]["info_slave_data"];
    assert_eq!((&port["hairpin"], &port["isolated"]), (&json!(false), &json!(true)), "{port}");
    let bridge = device(&bed.host, "br0")?;
    assert!(bridge["flags"].to_string().contains("\"PROMISC\""), "{bridge}");
    Ok(())
}

#[test]
fn a_network_without_addresses_is_a_cable() -> Result<()> {
    let Some(bed) = Bed::new("cable")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let config = json!({"cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "br0", "stateDir": bed.path("state")});
    let old = with(&config, &json!({"cniVersion": "0.2.0"}));
    assert_eq!(call("ADD", &who, &old).error().1, "cannot convert: no valid IP addresses");
    assert!(bed.veths()?.is_empty(), "a result that can't be told is a failure");
    let result = call("ADD", &who, &config).result();
    assert_eq!((&result["ips"], &result["interfaces"][2]["name"]), (&Value::Null, &json!("eth0")));
    let eth0 = device(&pod, "eth0")?;
    assert!(addresses(&eth0).is_empty() && eth0["operstate"] == "UP", "{eth0}");
    call("CHECK", &who, &with(&config, &json!({"prevResult": result}))).silent();
    call("DEL", &who, &config).silent();
    assert!(bed.veths()?.is_empty());
    Ok(())
}

#[test]
fn an_interface_may_stay_down_and_addresses_be_detected() -> Result<()> {
    let Some(bed) = Bed::new("keys")? else { return Ok(()) };
    let (down, pod, same) = (Netns::new()?, Netns::new()?, Netns::new()?);
    let mut config = bed.bridge();
    config.as_object_mut().unwrap().remove("ipam");
    let closed = with(&config, &json!({"disableContainerInterface": true, "isDefaultGateway": false}));
    let who = Who::new("c1", &down);
    let result = call("ADD", &who, &closed).result();
    let eth0 = device(&down, "eth0")?;
    assert!(!eth0["flags"].to_string().contains("\"UP\""), "{eth0}");
    call("CHECK", &who, &with(&closed, &json!({"prevResult": result}))).silent();
    let ipam = json!({"type": "host-local", "dataDir": bed.path("networks"), "subnet": "fd99::/64"});
    let both = with(&closed, &json!({"ipam": ipam}));
    let wanted = "cannot use IPAM when DisableContainerInterface flag is set";
    assert_eq!(call("ADD", &Who::new("c2", &pod), &both).error(), (7, wanted.into()));

    let careful = with(&bed.bridge(), &json!({"ipam": ipam, "enabledad": true}));
    call("ADD", &Who::new("c3", &pod), &careful).result();
    let eth0 = device(&pod, "eth0")?;
    let address = eth0["addr_info"].as_array().unwrap().iter().find(|a| a["local"] == "fd99::2").unwrap();
    assert_eq!((&address["nodad"], &address["tentative"]), (&Value::Null, &Value::Null), "{address}");
    fs::remove_file(bed.path("networks/net/fd99::2"))?;
    let asked = with(&careful, &json!({"runtimeConfig": {"ips": ["fd99::2"]}}));
    let config = with(&asked, &json!({"runtimeConfig": {"ips": ["fd99::2"], "mac": "02:00:00:00:00:07"}}));
    let (_, text) = call("ADD", &Who::new("c4", &same), &config).error();
    assert_eq!(text, "IPv6 address fd99::2 is in use on the network already");
    assert_eq!(same.cmd("ip -j link").json()?.as_array().map(Vec::len), Some(1));
    Ok(())
}

//! Rules 16 to 19, 32, 33, 68 and 69: what goes to standard output, in each version.

use std::{fs::OpenOptions, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::{Cmd, Netns, workspace};

use crate::{
    bed::{Bed, Who, address, call_of, command, device, feed, reference, with},
    network::{NAMES, NONE, Network, VERSIONS, changes, left, links, used},
};

fn dual(bed: &Bed, version: &str) -> Value {
    let ranges = json!([[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]);
    let ipam = json!({"type": "host-local", "dataDir": bed.path("networks"), "ranges": ranges,
        "routes": [{"dst": "192.0.2.0/24"}]});
    with(&bed.bridge(), &json!({"cniVersion": version, "ipam": ipam}))
}

#[test]
fn rule_16_a_failure_is_one_document_and_a_code_of_exit() -> Result<()> {
    let Some(bed) = Bed::new("rule16")? else { return Ok(()) };
    let lost = Who { id: "c1".into(), ifname: "eth0".into(), netns: "/run/netns/does-not-exist".into() };
    let good = |name: &str| with(&bed.bridge(), &json!({"type": name}));
    for name in NAMES {
        let program = bed.program(name)?;
        for (verb, config) in [
            ("ADD", json!("text")),
            ("ADD", json!({})),
            ("NONE", good(name)),
            ("ADD", with(&good(name), &json!({"cniVersion": "7.0.0"}))),
            ("ADD", with(&good(name), &json!({"name": "a b"}))),
            ("ADD", with(&good(name), &json!({"ipam": [], "runtimeConfig": "x", "prevResult": 7}))),
            ("CHECK", with(&good(name), &json!({"prevResult": {"ips": "x"}}))),
        ] {
            let answer = call_of(&program, verb, &lost, &config);
            assert_ne!(answer.code, Some(0), "{name} {verb} {config}");
            let (code, text) = answer.error();
            assert!(code > 0 && !text.is_empty(), "{name} {verb} {config}: {answer:?}");
        }
        let pod = Netns::new()?;
        let (who, kept) = (Who::new("c1", &pod), json!({"prevResult": {"cniVersion": "1.1.0"}}));
        // A call that succeeds says nothing but its result, whatever it logs.
        call_of(&program, "DEL", &who, &with(&good(name), &kept)).silent();
    }
    Ok(())
}

#[test]
fn rule_16_a_result_that_cannot_be_told_is_a_failure() -> Result<()> {
    let Some(bed) = Bed::new("rule16full")? else { return Ok(()) };
    let mut network = Network::whole(&bed, "1.1.0")?.asking(18_080);
    let before = used(&mut network)?;
    let pod = Netns::new()?;
    let mut add = command(&bed.program("flannel")?, "ADD", &Who::new("c1", &pod));
    add.stdout(OpenOptions::new().write(true).open("/dev/full")?);
    let answer = feed(add, network.input(0, None).to_string().as_bytes());
    assert_ne!(answer.code, Some(0), "{answer:?}");
    assert_eq!(changes(&bed, &before)?, NONE);
    Ok(())
}

/// What `ip -j` says of the three devices, as a result of version 0.3.0 and later.
fn interfaces(bed: &Bed, pod: &Netns, who: &Who, with_mtu: bool) -> Result<Value> {
    let (bridge, veth) = (device(&bed.host, "br0")?, bed.veths()?.pop().context("a veth")?);
    let (port, eth0) = (device(&bed.host, &veth)?, device(pod, "eth0")?);
    let mut list = json!([
        {"name": "br0", "mac": bridge["address"]},
        {"name": veth, "mac": port["address"]},
        {"name": "eth0", "mac": eth0["address"], "sandbox": who.netns},
    ]);
    if with_mtu {
        for (at, device) in [bridge, port, eth0].iter().enumerate() {
            list[at]["mtu"] = device["mtu"].clone();
        }
    }
    Ok(list)
}

/// The result in the version's own shape.
fn wanted(bed: &Bed, pod: &Netns, who: &Who, version: &str) -> Result<Value> {
    let (four, six) = ((1, "10.99.0.1"), (2, "fd99::1"));
    let global = device(pod, "eth0")?["addr_info"].as_array().context("a list")?.clone();
    let address =
        |at: usize| format!("{}/{}", global[at]["local"].as_str().unwrap_or("?"), global[at]["prefixlen"]);
    let default = |dst: &str, gw: &str| json!({"dst": dst, "gw": gw});
    let routes = json!([{"dst": "192.0.2.0/24"}, default("0.0.0.0/0", four.1), default("::/0", six.1)]);
    if version < "0.3.0" {
        return Ok(json!({
            "cniVersion": version,
            "ip4": {"ip": address(0), "gateway": four.1, "routes": [routes[0], routes[1]]},
            "ip6": {"ip": address(1), "gateway": six.1, "routes": [routes[2]]},
            "dns": {},
        }));
    }
    let ip = |at: usize, gateway: &str, family: &str| {
        let ip = json!({"interface": 2, "address": address(at), "gateway": gateway});
        if version < "1.0.0" { with(&ip, &json!({"version": family})) } else { ip }
    };
    let mut result = json!({
        "cniVersion": version,
        "interfaces": interfaces(bed, pod, who, version >= "1.1.0")?,
        "ips": [ip(0, four.1, "4"), ip(1, six.1, "6")],
        "routes": routes,
    });
    if version < "1.0.0" {
        result["dns"] = json!({});
    }
    Ok(result)
}

#[test]
fn rule_17_the_result_is_of_the_requests_version_and_shape() -> Result<()> {
    let Some(bed) = Bed::new("rule17")? else { return Ok(()) };
    let program = bed.program("bridge")?;
    for version in VERSIONS {
        let pod = Netns::new()?;
        let (who, config) = (Who::new("c1", &pod), dual(&bed, version));
        let mut result = call_of(&program, "ADD", &who, &config).result();
        if version >= "1.0.0" && result["dns"] == json!({}) {
            // Both ways to say nothing are in use.
            result.as_object_mut().context("an object")?.remove("dns");
        }
        assert_eq!(result, wanted(&bed, &pod, &who, version)?, "{version}");
        call_of(&program, "DEL", &who, &config).silent();

        // Address management knows of no interfaces.
        let local = bed.program("host-local")?;
        let result = call_of(&local, "ADD", &who, &config).result();
        assert_eq!(result["cniVersion"], version);
        assert!(result["interfaces"].is_null() && result["ips"][0]["interface"].is_null(), "{result}");
        call_of(&local, "DEL", &who, &config).silent();
    }
    Ok(())
}

#[test]
fn rule_18_mtu_from_1_1_0_and_the_family_until_0_4_0() -> Result<()> {
    let Some(bed) = Bed::new("rule18")? else { return Ok(()) };
    for version in &VERSIONS[2..] {
        for mut network in
            [Network::whole(&bed, version)?.asking(18_080), Network::chain(&bed, version).asking(18_080)]
        {
            let pod = Netns::new()?;
            let who = Who::new("c1", &pod);
            let result = network.add(&who);
            let interfaces = result["interfaces"].as_array().context("a list")?;
            assert_eq!(interfaces.len(), 4, "with the device of egress limits: {result}");
            for interface in interfaces {
                let told = interface["mtu"] == 1450;
                assert!(told || (*version < "1.1.0" && interface["mtu"].is_null()), "{version}: {interface}");
            }
            let family = if *version < "1.0.0" { json!("4") } else { Value::Null };
            assert_eq!(result["ips"][0]["version"], family, "{version}");
            network.del(&who);
        }
    }
    Ok(())
}

#[test]
fn rule_19_an_address_points_to_the_interface_in_the_sandbox() -> Result<()> {
    let Some(bed) = Bed::new("rule19")? else { return Ok(()) };
    let pod = Netns::new()?;
    // A path as no one else would write it.
    let odd = pod.path().display().to_string().replacen("/proc/", "/proc/./../proc//", 1);
    let who = Who { netns: odd.clone(), ifname: "net-1".into(), ..Who::new("c1", &pod) };
    for mut network in Network::both(&bed)? {
        network = network.asking(18_080);
        let result = network.add(&who);
        for ip in result["ips"].as_array().context("a list")? {
            let index = usize::try_from(ip["interface"].as_u64().context("an index")?)?;
            let interface = &result["interfaces"][index];
            assert_eq!(
                (&interface["name"], &interface["sandbox"]),
                (&json!("net-1"), &json!(odd)),
                "{result}"
            );
        }
        assert_eq!(network.check(&who), Ok(()));
        network.del(&who);
    }
    Ok(())
}

#[test]
fn rule_32_what_came_before_is_passed_on() -> Result<()> {
    let Some(bed) = Bed::new("rule32")? else { return Ok(()) };
    for version in &VERSIONS[2..] {
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        let family = if *version < "1.0.0" { json!({"version": "4"}) } else { json!({}) };
        let earlier = json!({"cniVersion": version, "interfaces": [{"name": "x0", "sandbox": "/x"}],
            "ips": [with(&family, &json!({"address": "198.51.100.1/32", "interface": 0}))],
            "routes": [{"dst": "198.51.100.0/24", "gw": "198.51.100.9"}], "dns": {"nameservers": ["192.0.2.53"]}});
        let config = with(&dual(&bed, version), &json!({"prevResult": earlier}));
        let result = call_of(&bed.program("bridge")?, "ADD", &who, &config).result();
        assert_eq!(
            (&result["interfaces"][0], &result["ips"][0]),
            (&earlier["interfaces"][0], &earlier["ips"][0])
        );
        assert_eq!((&result["ips"][1]["interface"], &result["ips"][2]["interface"]), (&json!(3), &json!(3)));
        for name in ["tuning", "portmap", "bandwidth", "loopback"] {
            let config = json!({"cniVersion": version, "name": "net", "type": name,
                "stateDir": bed.path("state"), "prevResult": result});
            let same = call_of(&bed.program(name)?, "ADD", &who, &config).result();
            assert_eq!(same, result, "{name} {version}");
        }
        call_of(&bed.program("bridge")?, "DEL", &who, &config).silent();
    }
    Ok(())
}

#[test]
fn rule_33_a_chained_plugin_without_a_previous_result_is_an_error() -> Result<()> {
    let Some(bed) = Bed::new("rule33")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    for name in ["portmap", "bandwidth", "tuning"] {
        for version in &VERSIONS[2..] {
            for more in [json!({}), json!({"prevResult": null})] {
                let config = with(&json!({"cniVersion": version, "name": "net", "type": name}), &more);
                let (_, text) = call_of(&bed.program(name)?, "ADD", &who, &config).error();
                assert!(text.contains("must be called as chained plugin"), "{name} {version}: {text}");
            }
        }
    }
    assert_eq!(links(&pod)?, ["lo"]);
    Ok(())
}

/// ADD, CHECK and DEL with what libcni keeps, in this version; nothing stays.
fn round(bed: &Bed, mut network: Network<'_>, version: &str) -> Result<()> {
    network = network.asking(18_080);
    let before = used(&mut network)?;
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let result = network.add(&who);
    assert_eq!(result["cniVersion"], version);
    if version >= "0.4.0" {
        assert_eq!(network.check(&who), Ok(()), "{version}");
    }
    pod.cmd("ping -n -c1 -W2 10.42.3.1").ok()?;
    for _ in 0..2 {
        network.del(&who);
        assert_eq!(changes(bed, &before)?, NONE, "{version}");
    }
    if version >= "1.1.0" {
        network.gc(&[]);
        network.status().expect("ready");
        assert_eq!(left(bed, &before)?, NONE, "{version}");
    }
    Ok(())
}

#[test]
fn rule_68_what_libcni_sends_in_every_version() -> Result<()> {
    let Some(bed) = Bed::new("rule68")? else { return Ok(()) };
    for version in &VERSIONS[2..] {
        round(&bed, Network::chain(&bed, version), version)?;
    }
    Ok(())
}

#[test]
fn rule_68_a_plugin_of_the_reference_behind_ours() -> Result<()> {
    let (Some(theirs), Some(bed)) = (reference("bandwidth"), Bed::new("rule68mixed")?) else { return Ok(()) };
    std::fs::create_dir_all(bed.path("bin"))?;
    std::os::unix::fs::symlink(theirs, bed.path("bin/bandwidth"))?;
    for version in ["0.4.0", "1.0.0"] {
        round(&bed, Network::chain(&bed, version), version)?;
    }
    assert!(bed.records("cbr0").is_empty());
    Ok(())
}

#[test]
fn rule_69_each_version_that_a_libcni_may_choose_of_the_shipped_list() -> Result<()> {
    let Some(bed) = Bed::new("rule69")? else { return Ok(()) };
    let shipped: PathBuf = workspace().join("manifests/10-flannel.conflist");
    let list: Value = serde_json::from_str(&std::fs::read_to_string(shipped)?)?;
    let mut choices: Vec<&str> =
        list["cniVersions"].as_array().context("a list")?.iter().filter_map(Value::as_str).collect();
    choices.push(list["cniVersion"].as_str().context("a version")?);
    // An old library reads `cniVersion` alone, and knows nothing above 1.0.0.
    assert!(choices.last() <= Some(&"1.0.0") && choices.contains(&"1.1.0"), "{choices:?}");
    for version in choices {
        let folders = bed.flannel()?;
        let entries = list["plugins"].as_array().context("plugins")?;
        let entries = entries.iter().map(|entry| {
            let mut entry = with(entry, &json!({"name": list["name"], "cniVersion": version}));
            for key in ["subnetFile", "dataDir", "stateDir", "ipam"] {
                entry[key] = folders[key].clone();
            }
            entry
        });
        round(&bed, Network::of(&bed, entries.collect()), version)?;
    }
    for version in VERSIONS {
        let pod = Netns::new()?;
        let mut network = Network::whole(&bed, version)?;
        let result = network.add(&Who::new("c1", &pod));
        let given = if version < "0.3.0" { result["ip4"]["ip"].to_string() } else { address(&result) };
        assert!(given.contains("10.42.3."), "{result}");
        network.del(&Who::new("c1", &pod));
    }
    assert!(Cmd::new("ip -j link show type veth").json()?.as_array().is_none_or(Vec::is_empty));
    Ok(())
}

//! Host ports: who has one, and that it is there.

use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Cmd, Netns};

use crate::{
    bed::{Answer, Bed, Who, call, call_of, command, feed, reference, with},
    hostports_lab::{Lab, Pod, ask, asking, expect, is_silent, tcp, udp},
};

#[test]
fn a_taken_port_is_refused_by_name_of_its_owner() -> Result<()> {
    let Some(lab) = Lab::new("hosttaken")? else { return Ok(()) };
    let at = |host: &str| json!([with(&tcp(8080), &json!({"hostIP": host}))]);
    let one = lab.add("one", &json!([tcp(8080), udp(8081)]))?;
    let two = Lab::pod("two")?;
    for (asked, port) in [
        (json!([tcp(8080)]), "8080/tcp"),
        (json!([tcp(7070), udp(8081)]), "8081/udp"),
        (at("192.0.2.1"), "192.0.2.1:8080/tcp"),
        (at("::"), "8080/tcp"),
    ] {
        let (code, text) = lab.try_add(&two, &asked).error();
        assert!((100..999).contains(&code), "{code}");
        assert_eq!(text, format!("host port {port} is taken by container one (interface eth0, network net)"));
        assert_eq!((Lab::elements_of("two")?, lab.bed.reservations("net").len()), (0, 2));
        assert_eq!(lab.bed.veths()?.len(), 2, "one of the pod, one to the outside");
    }
    // A new pod before the end of the old one: the old one's DEL must not harm whoever comes next.
    lab.del(&one, &json!([tcp(8080)]));
    lab.try_add(&two, &json!([tcp(8080)])).result();
    lab.del(&one, &json!([tcp(8080), udp(8081)]));
    lab.del(&one, &json!([]));
    expect(ask(&lab.outside, "192.0.2.1:8080"), "two", "192.0.2.9");
    Ok(())
}

#[test]
fn a_pod_of_kubernetes_is_named() -> Result<()> {
    let Some(lab) = Lab::new("hostpod")? else { return Ok(()) };
    let (one, two) = (Lab::pod("one")?, Lab::pod("two")?);
    let config = lab.config(&json!([tcp(8080)]));
    let mut add = command(&testkit::bin("flannel"), "ADD", &one.who);
    add.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web");
    feed(add, config.to_string().as_bytes()).result();
    let text = lab.try_add(&two, &json!([tcp(8080)])).error().1;
    assert!(
        text.ends_with("is taken by pod default/web, container one (interface eth0, network net)"),
        "{text}"
    );
    Ok(())
}

#[test]
fn a_port_of_one_address_and_of_any_are_rivals() -> Result<()> {
    let Some(lab) = Lab::new("hostrivals")? else { return Ok(()) };
    let at = |host: &str| json!([with(&tcp(8080), &json!({"hostIP": host}))]);
    let _one = lab.add("one", &at("192.0.2.1"))?;
    let two = Lab::pod("two")?;
    for refused in [json!([tcp(8080)]), at("0.0.0.0"), at("192.0.2.1")] {
        assert!(lab.try_add(&two, &refused).error().1.contains("is taken by container one"));
    }
    for free in [at("192.0.2.2"), at("2001:db8::1"), at("::"), json!([udp(8080)])] {
        lab.try_add(&two, &free).result();
        lab.del(&two, &free);
    }
    Ok(())
}

#[test]
fn a_port_of_a_pod_that_died_without_a_word_is_free() -> Result<()> {
    let Some(lab) = Lab::new("hostdead")? else { return Ok(()) };
    let one = lab.add("one", &json!([tcp(8080)]))?;
    let two = Lab::pod("two")?;
    lab.try_add(&two, &json!([tcp(8080)])).error();
    one.netns.cmd("ip link del eth0").ok()?;
    lab.try_add(&two, &json!([tcp(8080)])).result();
    expect(ask(&lab.outside, "192.0.2.1:8080"), "two", "192.0.2.9");
    lab.del(&one, &json!([tcp(8080)]));
    assert_eq!((Lab::elements_of("one")?, Lab::elements_of("two")?), (0, 8));
    Ok(())
}

/// Nor does a chain's, where the interface plugin's record tells of no port and no limit.
#[test]
fn what_chained_plugins_gave_a_pod_that_died_without_a_word_goes() -> Result<()> {
    let Some(lab) = Lab::new("hostdeadchain")? else { return Ok(()) };
    let (one, two) = (Lab::pod("one")?, Lab::pod("two")?);
    let bridge = with(&lab.bed.bridge(), &json!({"cniVersion": "0.3.1"}));
    let entry = |kind: &str| {
        json!({"cniVersion": "0.3.1", "name": "net", "type": kind, "stateDir": lab.bed.path("state"),
               "capabilities": {"portMappings": true}})
    };
    let limits = json!({"egressRate": 8_000_000, "egressBurst": 800_000});
    let (portmap, bandwidth) =
        (asking(&entry("portmap"), &json!([tcp(8080)])), with(&entry("bandwidth"), &limits));
    for pod in [&one, &two] {
        let mut result = call("ADD", &pod.who, &bridge).result();
        for plugin in [&portmap, &bandwidth] {
            result = call("ADD", &pod.who, &with(plugin, &json!({"prevResult": result}))).result();
        }
        if pod.who.id == one.who.id {
            one.netns.cmd("ip link del eth0").ok()?;
        }
    }
    let limited = Cmd::new("ip -j link show type ifb").json()?;
    assert_eq!(limited.as_array().map(Vec::len), Some(1), "{limited}");
    assert_eq!(Lab::elements_of("one")?, 0);
    Ok(())
}

#[test]
fn a_container_with_two_networks_has_its_port_on_the_first() -> Result<()> {
    let Some(lab) = Lab::new("hosttwice")? else { return Ok(()) };
    let web = lab.add("web", &json!([tcp(8080)]))?;
    let second = Who { ifname: "eth1".into(), ..web.who.clone() };
    let ipam = json!({"type": "host-local", "dataDir": lab.bed.path("networks"), "subnet": "10.98.0.0/24"});
    let other =
        json!({"name": "other", "bridge": "br1", "isDefaultGateway": false, "isGateway": true, "ipam": ipam});
    let config = with(&lab.config(&json!([tcp(8080)])), &other);
    let result = call("ADD", &second, &config).result();
    call("CHECK", &second, &with(&config, &json!({"prevResult": result}))).silent();
    expect(ask(&lab.outside, "192.0.2.1:8080"), "web", "192.0.2.9");
    let hairpins = Cmd::new("nft list set inet weft-cni hairpins4").ok()?.stdout;
    assert!(!hairpins.contains("/eth1"), "it is not the second one's: {hairpins}");
    call("DEL", &second, &config).silent();
    expect(ask(&lab.outside, "192.0.2.1:8080"), "web", "192.0.2.9");
    let (_, text) = lab.try_add(&Lab::pod("rival")?, &json!([tcp(8080)])).error();
    assert!(text.contains("is taken by container web (interface eth0, network net)"), "{text}");
    Ok(())
}

/// Nor does that of another package's interface plugin.
#[test]
fn what_chained_plugins_gave_a_pod_of_the_reference_goes_with_its_interface() -> Result<()> {
    let (Some(bridge), Some(lab)) = (reference("bridge"), Lab::new("hostdeadref")?) else { return Ok(()) };
    let ipam = json!({"type": "host-local", "dataDir": lab.bed.path("theirs"), "subnet": "10.99.0.0/24"});
    let config = with(&lab.bed.bridge(), &json!({"cniVersion": "1.0.0", "ipam": ipam}));
    let entry = |kind: &str, keys: &Value| {
        let entry =
            json!({"cniVersion": "1.0.0", "name": "net", "type": kind, "stateDir": lab.bed.path("state")});
        with(&entry, keys)
    };
    let chain = [
        asking(&entry("portmap", &json!({"capabilities": {"portMappings": true}})), &json!([tcp(8080)])),
        entry("bandwidth", &json!({"egressRate": 8_000_000, "egressBurst": 800_000})),
    ];
    let attach = |pod: &Pod| {
        let mut result = call_of(&bridge, "ADD", &pod.who, &config).result();
        let mut answers = Vec::new();
        for plugin in &chain {
            answers.push(call("ADD", &pod.who, &with(plugin, &json!({"prevResult": result}))));
            result = answers.last().filter(|a| a.code == Some(0)).map_or(result, Answer::result);
        }
        answers
    };
    let (one, two, three) = (Lab::pod("one")?, Lab::pod("two")?, Lab::pod("three")?);
    assert!(attach(&one).iter().all(|answer| answer.code == Some(0)));
    let (_, text) = attach(&two)[0].error();
    assert!(text.contains("host port 8080/tcp is taken by container one"), "{text}");
    // Whatever its name is by now.
    let near = lab.bed.veths()?.into_iter().find(|name| name.starts_with("veth")).expect("a host's end");
    Cmd::shell(format!("ip link set {near} down && ip link set {near} name other && ip link set other up"))
        .ok()?;
    assert_eq!(attach(&three)[0].error().0, 100);
    call_of(&bridge, "DEL", &three.who, &config).silent();
    one.netns.cmd("ip link del eth0").ok()?;
    assert!(attach(&three).iter().all(|answer| answer.code == Some(0)));
    expect(ask(&lab.outside, "192.0.2.1:8080"), "three", "192.0.2.9");
    assert_eq!(lab.bed.records("net"), ["three-eth0", "two-eth0"], "a port refused, a limit set");
    for plugin in chain.iter().rev() {
        call("DEL", &three.who, plugin).silent();
    }
    call("GC", &two.who, &with(&chain[1], &json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": []})))
        .silent();
    assert_eq!(lab.bed.records("net").len(), 0);
    assert_eq!(Cmd::new("ip -j link show type ifb").json()?, json!([]));
    Ok(())
}

#[test]
fn rule_44_del_by_the_one_entry_ends_what_the_chain_gave() -> Result<()> {
    let Some(lab) = Lab::new("hostswitch")? else { return Ok(()) };
    let pod = Lab::pod("web")?;
    let state = json!({"stateDir": lab.bed.path("state")});
    let bridge = crate::masquerade::config(&lab.bed);
    let mut result = call("ADD", &pod.who, &bridge).result();
    let limits = json!({"egressRate": 8_000_000, "egressBurst": 800_000});
    let handed = json!({"runtimeConfig": {"portMappings": [tcp(8080)], "bandwidth": limits},
                        "capabilities": {"portMappings": true, "bandwidth": true}});
    for kind in ["portmap", "bandwidth"] {
        let entry =
            with(&json!({"cniVersion": "1.1.0", "name": "net", "type": kind, "prevResult": result}), &state);
        result = call("ADD", &pod.who, &with(&entry, &handed)).result();
    }
    call("DEL", &pod.who, &with(&bridge, &handed)).silent();
    assert_eq!(Lab::elements_of("web")?, 0);
    assert_eq!(Cmd::new("ip -j link show type ifb").json()?, json!([]));
    Ok(())
}

#[test]
fn sixteen_at_once_have_one_winner() -> Result<()> {
    let Some(lab) = Lab::new("hostrace")? else { return Ok(()) };
    let pods: Vec<Netns> = (0..16).map(|_| Netns::new()).collect::<Result<_>>()?;
    let answers = crate::crowd::add_all(&lab.bed.host, &pods, &lab.config(&json!([tcp(8080)])), 16);
    let (won, lost): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.code == Some(0));
    assert_eq!((won.len(), lost.len()), (1, 15));
    for answer in lost {
        assert!(answer.error().1.contains("host port 8080/tcp is taken by container c"), "{answer:?}");
    }
    assert_eq!(lab.bed.reservations("net").len(), 2);
    Ok(())
}

#[test]
fn check_sees_what_is_missing_of_a_host_port() -> Result<()> {
    let Some(lab) = Lab::new("hostcheck")? else { return Ok(()) };
    let config = lab.config(&json!([tcp(8080), with(&tcp(81), &json!({"hostIP": "192.0.2.1"}))]));
    let pod = Lab::pod("web")?;
    for harm in [
        "nft flush map inet weft-cni hostports4",
        "nft flush map inet weft-cni hostip-ports4",
        "nft flush set inet weft-cni hairpins6",
        "nft flush chain inet weft-cni hostports",
        "nft flush chain inet weft-cni prerouting",
        "nft delete table inet weft-cni",
    ] {
        let result = call("ADD", &pod.who, &config).result();
        let full = with(&config, &json!({"prevResult": result}));
        call("CHECK", &pod.who, &full).silent();
        Cmd::new(harm).ok()?;
        let before = Cmd::new("nft list ruleset").ok()?.stdout;
        let (_, text) = call("CHECK", &pod.who, &full).error();
        assert!(
            text.contains("host port") || text.contains("rules of address translation"),
            "{harm}: {text}"
        );
        assert_eq!(Cmd::new("nft list ruleset").ok()?.stdout, before, "CHECK changes nothing");
        call("DEL", &pod.who, &full).silent();
    }
    Ok(())
}

#[test]
fn gc_ends_the_host_ports_of_the_dead_alone() -> Result<()> {
    let Some(lab) = Lab::new("hostgc")? else { return Ok(()) };
    let pods = [lab.add("c1", &json!([tcp(81)]))?, lab.add("c2", &json!([tcp(82)]))?];
    let other = Lab::pod("c3")?;
    let elsewhere = with(
        &lab.config(&json!([tcp(83)])),
        &json!({"name": "other", "bridge": "br1",
            "ipam": {"type": "host-local", "dataDir": lab.bed.path("networks"), "subnet": "10.88.0.0/24"}}),
    );
    call("ADD", &other.who, &elsewhere).result();
    Cmd::new("nft flush chain inet weft-cni usual").ok()?;
    let valid = json!([{"containerID": "c2", "ifname": "eth0"}]);
    let config = with(&lab.config(&json!([])), &json!({"cni.dev/valid-attachments": valid}));
    call("GC", &pods[0].who, &config).silent();
    assert_eq!((Lab::elements_of("c1")?, Lab::elements_of("c2")?), (0, 8));
    assert!(is_silent(&lab.outside, "192.0.2.1:81")?);
    for (port, name) in [(82, "c2"), (83, "c3")] {
        expect(ask(&lab.outside, &format!("192.0.2.1:{port}")), name, "192.0.2.9");
    }
    let some =
        with(&lab.config(&json!([tcp(84)])), &json!({"conditionsV4": ["iifname out0"], "masqAll": true}));
    call("ADD", &Lab::pod("c4")?.who, &some).result();
    let chained = with(&config, &json!({"type": "portmap", "cni.dev/valid-attachments": []}));
    call("GC", &pods[0].who, &chained).silent();
    assert_eq!((Lab::elements_of("c2")?, Lab::elements_of("c4")?), (0, 0));
    assert!(!Cmd::new("nft list table inet weft-cni").ok()?.stdout.contains("chain class-"));
    Ok(())
}

#[test]
fn bad_mappings_are_refused_before_anything_is_touched() -> Result<()> {
    let Some(bed) = Bed::new("hostbad")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let refused = |mapping: Value, keys: Value| {
        let asked =
            json!({"capabilities": {"portMappings": true}, "runtimeConfig": {"portMappings": [mapping]}});
        call("ADD", &who, &with(&with(&bed.bridge(), &asked), &keys)).error()
    };
    for (mapping, text) in [
        (json!({"hostPort": 0, "containerPort": 80}), "Invalid host port number: 0"),
        (json!({"hostPort": 65536, "containerPort": 80}), "Invalid host port number: 65536"),
        (json!({"hostPort": 80, "containerPort": -1}), "Invalid container port number: -1"),
        (
            json!({"hostPort": 80, "containerPort": 80, "protocol": "icmp"}),
            "invalid runtimeConfig.portMappings.protocol \"icmp\"",
        ),
    ] {
        assert_eq!(refused(mapping, json!({})), (7, text.into()));
    }
    for (key, value) in
        [("externalSetMarkChain", json!("X")), ("conditionsV4", json!(["!", "-d", "192.0.2.1"]))]
    {
        let (code, text) = refused(tcp(80), json!({key: value}));
        assert!(code == 2 && text.contains(key), "{code} {text}");
    }
    assert!(bed.reservations("net").is_empty() && bed.veths()?.is_empty());
    assert!(!Cmd::new("nft list table inet weft-cni").run()?.success());
    Ok(())
}

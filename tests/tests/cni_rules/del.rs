//! Rules 37, 38, 39, 47 and 48: DEL removes its own, and its own alone.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::json;
use testkit::{
    Cmd, Netns, eventually,
    traffic::{Server, ask_tcp},
};

use crate::{
    bed::{Bed, Who, address, call_of, device, with},
    network::{NAMES, NONE, Network, VERSIONS, changes, frozen, links, on, traces, used, wrapped},
};

#[test]
fn rule_37_link_address_reservation_rules_and_queues_go() -> Result<()> {
    let Some(bed) = Bed::new("rule37")? else { return Ok(()) };
    for version in &VERSIONS[2..] {
        for mut network in
            [Network::whole(&bed, version)?.asking(18_080), Network::chain(&bed, version).asking(18_080)]
        {
            let before = used(&mut network)?;
            let pod = Netns::new()?;
            let who = Who::new("c1", &pod);
            network.add(&who);
            let during = traces(&bed)?;
            for wanted in [
                "queue \"tbf\" of \"veth",
                "queue \"ingress\"",
                "queue \"tbf\" of \"bwp",
                "18080",
                "10.42.3.",
            ] {
                assert!(
                    during.iter().any(|line| line.contains(wanted)),
                    "{version}: {wanted} in {during:#?}"
                );
            }
            network.del(&who);
            assert_eq!((changes(&bed, &before)?, links(&pod)?), (vec![], vec!["lo".to_owned()]), "{version}");
        }
    }
    Ok(())
}

#[test]
fn rule_38_a_repeat_is_fine() -> Result<()> {
    let Some(bed) = Bed::new("rule38")? else { return Ok(()) };
    for mut network in Network::both(&bed)? {
        network = network.asking(18_080);
        let before = used(&mut network)?;
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        network.add(&who);
        // As containerd does: once with everything, then without namespace and result.
        for _ in 0..3 {
            network.del(&who);
            network.del_bare(&who.homeless());
            assert_eq!(changes(&bed, &before)?, NONE);
        }
    }
    Ok(())
}

#[test]
fn rule_39_a_container_that_was_never_added_is_fine() -> Result<()> {
    let Some(bed) = Bed::new("rule39")? else { return Ok(()) };
    let (pod, neighbour) = (Netns::new()?, Netns::new()?);
    pod.cmd("ip link add eth0 type veth peer name other").ok()?;
    let never = Who::new("never", &pod);
    for name in NAMES {
        for version in VERSIONS {
            let config = with(&bed.bridge(), &json!({"type": name, "cniVersion": version}));
            for who in [on(&never, "eth9"), never.homeless()] {
                call_of(&bed.program(name)?, "DEL", &who, &config).silent();
            }
        }
    }
    for mut network in Network::both(&bed)? {
        network = network.asking(18_080);
        network.add(&Who::new("c1", &neighbour));
        let before = traces(&bed)?;
        network.del(&on(&never, "eth9"));
        network.del_bare(&never.homeless());
        assert_eq!((changes(&bed, &before)?, network.check(&Who::new("c1", &neighbour))), (vec![], Ok(())));
        network.del(&Who::new("c1", &neighbour));
    }
    assert!(!device(&pod, "other")?.is_null(), "the link of a stranger");
    Ok(())
}

#[test]
fn rule_47_what_a_later_pod_got_is_not_touched() -> Result<()> {
    let Some(bed) = Bed::new("rule47")? else { return Ok(()) };
    for mut network in Network::both(&bed)? {
        network = network.asking(18_080);
        for deleted_before in [true, false] {
            let (old, new) = (Netns::new()?, Netns::new()?);
            let (first, second) = (Who::new("a", &old), Who::new("b", &new));
            let result = network.add(&first);
            let given = address(&result);
            if deleted_before {
                network.del(&first);
            } else {
                // The pod went without a word, and with it its veth.
                drop(old);
                eventually(Duration::from_secs(10), || bed.veths().ok()?.is_empty().then_some(()))
                    .context("the veth of a pod that is gone")?;
                network.gc(&[]);
            }
            network.runtime["ips"] = json!([given]);
            assert_eq!(address(&network.add(&second)), given);
            network.runtime = with(&network.runtime, &json!({"ips": []}));
            let before = traces(&bed)?;
            network.del_with(&first.homeless(), Some(&result));
            network.del_bare(&first);
            assert_eq!((changes(&bed, &before)?, network.check(&second)), (vec![], Ok(())));
            let at: Ipv4Addr = given.split('/').next().context("an address")?.parse()?;
            let _server = Server::tcp(&new, SocketAddrV4::new(at, 80), "later")?;
            let answer = ask_tcp(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 18_080), Duration::from_secs(5))?;
            assert_eq!(answer.by, "later");
            network.del(&second);
        }
    }
    Ok(())
}

#[test]
fn rule_48_input_and_rights_that_are_wrong_are_not_swallowed() -> Result<()> {
    let Some(bed) = Bed::new("rule48")? else { return Ok(()) };
    let mut network = Network::whole(&bed, "1.1.0")?.asking(18_080);
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    network.add(&who);
    let before = traces(&bed)?;
    let flannel = bed.program("flannel")?;
    let good = network.input(0, network.cached(&who));
    for (config, wanted) in [
        (json!("text"), 6),
        (json!([]), 6),
        (with(&good, &json!({"name": ""})), 7),
        (with(&good, &json!({"cniVersion": "9.9.9"})), 1),
    ] {
        let answer = call_of(&flannel, "DEL", &who, &config);
        assert_ne!(answer.code, Some(0), "{config}");
        assert_eq!(answer.error().0, wanted, "{config}");
    }
    let garbled = with(&bed.bridge(), &json!({"ipam": 7}));
    assert_eq!(call_of(&bed.program("bridge")?, "DEL", &who, &garbled).error().0, 6);
    let powerless = wrapped(&bed, "powerless", "exec setpriv --bounding-set=-all --inh-caps=-all")?;
    call_of(&powerless, "DEL", &who, &good).error();
    call_of(&frozen(&bed)?, "DEL", &who, &good).error();
    let mut left = traces(&bed)?;
    left.retain(|line| line.contains("networks/cbr0/10."));
    assert!(before.iter().any(|line| *line == left[0]), "the reservation is still there: {left:?}");
    network.del(&who);
    let after = Cmd::new("ip -j link show type veth").json()?;
    assert!(after.as_array().is_none_or(Vec::is_empty), "{after}");
    Ok(())
}

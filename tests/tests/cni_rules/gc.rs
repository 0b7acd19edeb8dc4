//! Rules 54 to 60: GC.

use std::fs;

use anyhow::Result;
use serde_json::{Value, json};
use testkit::Netns;

use crate::{
    bed::{Bed, Who, call_of, nobody, with},
    network::{NONE, Network, changes, frozen, left, on, traces, used},
};

/// Pods of one network, of which some have two interfaces, each with a host port of its own.
struct Pods<'a> {
    network: Network<'a>,
    pods: Vec<Netns>,
    next_port: u16,
}

impl<'a> Pods<'a> {
    fn new(network: Network<'a>) -> Self {
        let mut network = network;
        // Several interfaces of a pod can't all be the way to everywhere.
        network.plugins[0]["isDefaultGateway"] = false.into();
        network.plugins[0]["isGateway"] = true.into();
        network.plugins[0]["delegate"]["isDefaultGateway"] = false.into();
        Self { network, pods: Vec::new(), next_port: 20_000 }
    }

    fn add(&mut self, id: &str, ifnames: &[&str]) -> Result<()> {
        let pod = Netns::new()?;
        for (at, ifname) in ifnames.iter().enumerate() {
            self.next_port += 1;
            let mut network = Network::of_same(&self.network).asking(self.next_port);
            if at > 0 {
                // One route to the network is enough.
                network.plugins[0]["ipam"]["routes"] = json!([]);
            }
            network.add(&on(&Who::new(id, &pod), ifname));
        }
        self.pods.push(pod);
        Ok(())
    }
}

/// Those lines of `all` that were not in `before`, and name one of `words`.
fn naming(all: &[String], before: &[String], words: &[&str]) -> Vec<String> {
    let new = all.iter().filter(|line| !before.contains(line));
    new.filter(|line| words.iter().any(|word| line.contains(word))).cloned().collect()
}

#[test]
fn rule_54_exactly_the_valid_pairs_stay() -> Result<()> {
    let Some(bed) = Bed::new("rule54")? else { return Ok(()) };
    for network in Network::both(&bed)? {
        let mut pods = Pods::new(network);
        let before = used(&mut pods.network)?;
        pods.add("keep", &["eth0"])?;
        pods.add("both", &["eth0"])?;
        let wanted = traces(&bed)?;
        // Pairs, not containers: one interface of a container goes and the other stays.
        let other = Netns::new()?;
        let second = on(&Who::new("keep", &other), "eth1");
        let mut gone = Network::of_same(&pods.network).asking(20_100);
        gone.add(&second);
        pods.add("drop", &["eth0"])?;
        let all = traces(&bed)?;
        assert!(all.len() > wanted.len() + 8 && wanted.len() > before.len() + 8, "{all:#?}");
        pods.network.gc(&[("keep", "eth0"), ("both", "eth0"), ("unknown", "eth0")]);
        assert_eq!(changes(&bed, &wanted)?, NONE);
        for pod in &pods.pods[..2] {
            pod.cmd("ping -n -c1 -W2 10.42.3.1").ok()?;
        }
        pods.network.gc(&[]);
        assert_eq!(left(&bed, &before)?, NONE);
    }
    Ok(())
}

#[test]
fn rule_55_an_empty_list_ends_this_network_alone() -> Result<()> {
    let Some(bed) = Bed::new("rule55")? else { return Ok(()) };
    for network in Network::both(&bed)? {
        let mut pods = Pods::new(network);
        let (here, there) = (Netns::new()?, Netns::new()?);
        let mut other = Network::chain(&bed, "1.1.0").asking(20_200);
        for plugin in &mut other.plugins {
            plugin["name"] = "cbr00".into();
        }
        other.plugins[0] = with(
            &other.plugins[0],
            &json!({"bridge": "cni1",
            "ipam": {"type": "host-local", "dataDir": bed.path("networks"), "subnet": "10.43.0.0/24"}}),
        );
        other.add(&Who::new("there", &there));
        used(&mut pods.network)?;
        let before = traces(&bed)?;
        pods.network = pods.network.asking(20_300);
        pods.network.add(&Who::new("here", &here));
        pods.network.gc(&[]);
        assert_eq!(left(&bed, &before)?, NONE);
        assert_eq!(other.check(&Who::new("there", &there)), Ok(()));
        there.cmd("ping -n -c1 -W2 10.43.0.1").ok()?;
        other.del(&Who::new("there", &there));
    }
    Ok(())
}

#[test]
fn rule_56_without_a_list_nothing_goes() -> Result<()> {
    let Some(bed) = Bed::new("rule56")? else { return Ok(()) };
    for network in Network::both(&bed)? {
        let mut network = network.asking(18_080);
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        network.add(&who);
        let before = traces(&bed)?;
        for index in 0..network.plugins.len() {
            for keys in [json!({}), json!({"cni.dev/valid-attachments": null})] {
                network.gc_one(index, &keys).silent();
            }
        }
        assert_eq!((changes(&bed, &before)?, network.check(&who)), (vec![], Ok(())));
        network.del(&who);
    }
    Ok(())
}

#[test]
fn rule_57_reservations_of_the_old_form_are_respected() -> Result<()> {
    let Some(bed) = Bed::new("rule57")? else { return Ok(()) };
    for network in Network::both(&bed)? {
        for (last, text) in
            [(50, "valid"), (51, "stale"), (52, " valid \n"), (53, "valid\r\neth9"), (54, "valid\r\neth0")]
        {
            bed.dir.write(&format!("networks/cbr0/10.42.3.{last}"), text)?;
        }
        network.gc(&[("valid", "eth0")]);
        assert_eq!(bed.reservations("cbr0"), ["10.42.3.50", "10.42.3.52", "10.42.3.54"]);
        network.gc(&[]);
        assert!(bed.reservations("cbr0").is_empty());
    }
    Ok(())
}

#[test]
fn rule_58_the_lock_and_the_last_addresses_stay() -> Result<()> {
    let Some(bed) = Bed::new("rule58")? else { return Ok(()) };
    for network in Network::both(&bed)? {
        for (name, text) in
            [("lock", ""), ("last_reserved_ip.0", "10.42.3.77"), ("last_reserved_ip.1", "fd42::7")]
        {
            bed.dir.write(&format!("networks/cbr0/{name}"), text)?;
        }
        network.gc(&[("valid", "eth0")]);
        network.gc(&[]);
        let read = |name: &str| fs::read_to_string(bed.path("networks/cbr0").join(name));
        assert_eq!((read("lock")?, read("last_reserved_ip.0")?), (String::new(), "10.42.3.77".into()));
        assert_eq!(read("last_reserved_ip.1")?, "fd42::7");
    }
    Ok(())
}

#[test]
fn rule_59_it_goes_on_after_an_error_and_reports_it() -> Result<()> {
    let Some(bed) = Bed::new("rule59")? else { return Ok(()) };
    let mut network = Network::whole(&bed, "1.1.0")?.asking(18_080);
    let before = used(&mut network)?;
    let (one, two) = (Netns::new()?, Netns::new()?);
    network.add(&Who::new("c1", &one));
    network.runtime["portMappings"][0]["hostPort"] = 18_081.into();
    network.add(&Who::new("c2", &two));
    // What no removal of a file gets rid of.
    let stubborn = bed.path("networks/cbr0/10.42.3.99");
    fs::create_dir_all(stubborn.join("folder"))?;
    let answer = network.gc_one(0, &json!({"cni.dev/valid-attachments": []}));
    let left = traces(&bed)?;
    assert!(naming(&left, &before, &["veth", "bwp", "18080", "18081", "c1", "c2"]).is_empty(), "{left:#?}");
    if answer.code != Some(0) {
        assert!(answer.error().1.contains("10.42.3.99"), "{answer:?}");
    }

    // Reservations can't be removed, but everything else.
    fs::remove_dir_all(&stubborn)?;
    network.add(&Who::new("c1", &one));
    let input = with(&network.input(0, None), &json!({"cni.dev/valid-attachments": []}));
    let answer = call_of(&frozen(&bed)?, "GC", &nobody(), &input);
    let (_, text) = answer.error();
    assert!(text.contains("networks/cbr0"), "{text}");
    let left = traces(&bed)?;
    assert!(naming(&left, &before, &["veth", "bwp", "18081"]).is_empty(), "{left:#?}");
    Ok(())
}

#[test]
fn rule_60_success_says_nothing() -> Result<()> {
    let Some(bed) = Bed::new("rule60")? else { return Ok(()) };
    for network in Network::both(&bed)? {
        let mut network = network.asking(18_080);
        let pod = Netns::new()?;
        for (add, list) in [
            (true, json!([])),
            (true, json!([{"containerID": "c1", "ifname": "eth0"}])),
            (false, Value::Null),
        ] {
            if add {
                let _ = network.try_add(&Who::new("c1", &pod));
            }
            for index in 0..network.plugins.len() {
                network.gc_one(index, &json!({"cni.dev/valid-attachments": list})).silent();
            }
        }
        network.del(&Who::new("c1", &pod));
    }
    Ok(())
}

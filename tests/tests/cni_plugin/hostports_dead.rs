//! Host ports of pods that went without DEL.

use std::{thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testkit::{Cmd, Netns};

use crate::bed::{Bed, Who, call, with};

/// A network with a bridge of its own whose entry asks for these host ports.
fn network(bed: &Bed, number: u8, ports: &[u16]) -> Value {
    let mapping = |port: &u16| json!({"hostPort": port, "containerPort": 80, "protocol": "tcp"});
    let mappings: Vec<Value> = ports.iter().map(mapping).collect();
    let own = json!({"name": format!("net{number}"), "bridge": format!("br{number}"),
        "capabilities": {"portMappings": true}, "runtimeConfig": {"portMappings": mappings},
        "ipam": {"type": "host-local", "dataDir": bed.path("networks"), "subnet": format!("10.9{number}.0.0/24")}});
    with(&bed.bridge(), &own)
}

#[test]
fn a_port_of_a_dead_pod_of_another_network_is_free() -> Result<()> {
    let Some(bed) = Bed::new("deadports")? else { return Ok(()) };
    let pods = [Netns::new()?, Netns::new()?, Netns::new()?];
    let [dead, other, alive] =
        [("c1", &pods[0]), ("c2", &pods[1]), ("c3", &pods[2])].map(|(id, pod)| Who::new(id, pod));
    call("ADD", &dead, &network(&bed, 1, &[8081])).result();
    call("ADD", &other, &network(&bed, 2, &[8082])).result();
    call("ADD", &alive, &network(&bed, 3, &[8083])).result();
    let fresh = Netns::new()?;
    let (who, all) = (Who::new("c4", &fresh), network(&bed, 4, &[8081, 8082]));
    let (code, text) = call("ADD", &who, &all).error();
    assert!(code == 100 && text.contains("network net"), "{text}");
    let [first, second, _alive] = pods;
    drop((first, second));
    for _ in 0..500 {
        if bed.veths()?.len() == 1 {
            break;
        }
        sleep(Duration::from_millis(10));
    }
    ensure!(bed.veths()?.len() == 1, "the pairs of the dead stay");
    call("ADD", &who, &all).result();
    for (network, left) in [("net1", 0), ("net2", 0), ("net3", 1), ("net4", 1)] {
        assert_eq!((bed.records(network).len(), bed.reservations(network).len()), (left, left), "{network}");
    }
    let table = Cmd::new("nft list table inet weft-cni").ok()?.stdout;
    assert!(!table.contains("weft:net1/") && !table.contains("weft:net2/") && table.contains("weft:net3/"));
    let late = Netns::new()?;
    let (_, text) = call("ADD", &Who::new("c5", &late), &network(&bed, 4, &[8083])).error();
    assert!(text.ends_with("taken by container c3 (interface eth0, network net3)"), "{text}");
    Ok(())
}

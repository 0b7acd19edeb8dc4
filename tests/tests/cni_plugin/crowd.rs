//! Many at once.

use std::{
    collections::BTreeSet,
    sync::{Barrier, Mutex},
    thread,
};

use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Cmd, Netns};

use crate::bed::{Answer, Bed, Who, addresses, call, device, with};

/// Calls ADD for each pod, `width` at a time.
pub(crate) fn add_all(host: &Netns, pods: &[Netns], config: &Value, width: usize) -> Vec<Answer> {
    call_all("ADD", host, pods, config, width)
}

/// Calls `verb` for each pod, `width` at a time.
pub(crate) fn call_all(
    verb: &str,
    host: &Netns,
    pods: &[Netns],
    config: &Value,
    width: usize,
) -> Vec<Answer> {
    let (answers, start) = (Mutex::new(Vec::new()), Barrier::new(width));
    thread::scope(|scope| {
        for lane in 0..width {
            let (answers, start) = (&answers, &start);
            scope.spawn(move || {
                let run = || {
                    start.wait();
                    for (i, pod) in pods.iter().enumerate().filter(|(i, _)| i % width == lane) {
                        let answer = call(verb, &Who::new(&format!("c{i}"), pod), config);
                        answers.lock().unwrap().push(answer);
                    }
                };
                let guard = host.enter().expect("the host's namespace");
                run();
                drop(guard);
            });
        }
    });
    answers.into_inner().unwrap()
}

#[test]
fn rule_34_two_hundred_pods_get_two_hundred_addresses() -> Result<()> {
    let Some(bed) = Bed::new("crowd")? else { return Ok(()) };
    let pods: Vec<Netns> = (0..200).map(|_| Netns::new()).collect::<Result<_>>()?;
    let ipam = json!({"type": "host-local", "dataDir": bed.path("networks"), "subnet": "10.96.0.0/16"});
    let config = with(&bed.bridge(), &json!({"ipam": ipam}));
    let answers = add_all(&bed.host, &pods, &config, 16);
    let given: BTreeSet<String> =
        answers.iter().map(|a| a.result()["ips"][0]["address"].to_string()).collect();
    assert_eq!((given.len(), bed.reservations("net").len(), bed.veths()?.len()), (200, 200, 200));
    let bridges = Cmd::new("ip -j link show type bridge").json()?;
    assert_eq!(bridges.as_array().map(Vec::len), Some(1), "{bridges}");
    pods[199].cmd("ping -n -c1 -W2 10.96.0.1").ok()?;
    for (i, pod) in pods.iter().enumerate() {
        call("DEL", &Who::new(&format!("c{i}"), pod), &config).silent();
    }
    assert_eq!((bed.reservations("net").len(), bed.veths()?.len()), (0, 0));
    Ok(())
}

#[test]
fn a_bridge_of_an_earlier_subnet_is_readdressed_by_the_first_of_many() -> Result<()> {
    let Some(bed) = Bed::new("moved")? else { return Ok(()) };
    let pods: Vec<Netns> = (0..16).map(|_| Netns::new()).collect::<Result<_>>()?;
    let config = bed.flannel()?;
    call("ADD", &Who::new("c0", &pods[0]), &config).result();
    call("DEL", &Who::new("c0", &pods[0]), &config).silent();
    for net in 50..56 {
        let env = format!(
            "FLANNEL_NETWORK=10.{net}.0.0/16\nFLANNEL_SUBNET=10.{net}.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        );
        bed.dir.write("subnet.env", env)?;
        for answer in add_all(&bed.host, &pods, &config, 16) {
            answer.result();
        }
        assert_eq!(addresses(&device(&bed.host, "cni0")?), [format!("10.{net}.7.1/24")]);
        for answer in call_all("DEL", &bed.host, &pods, &config, 16) {
            answer.silent();
        }
    }
    Ok(())
}

#[test]
fn rule_35_the_first_sixteen_make_one_bridge_with_one_address() -> Result<()> {
    for round in 0..3 {
        let Some(bed) = Bed::new("first")? else { return Ok(()) };
        let pods: Vec<Netns> = (0..16).map(|_| Netns::new()).collect::<Result<_>>()?;
        for answer in add_all(&bed.host, &pods, &bed.bridge(), 16) {
            answer.result();
        }
        let bridge = device(&bed.host, "br0")?;
        assert_eq!(addresses(&bridge), ["10.99.0.1/24"], "round {round}");
        assert_eq!(bridge["address"], "0a:58:0a:63:00:01");
        pods[15].cmd("ping -n -c1 -W2 10.99.0.1").ok()?;
    }
    Ok(())
}

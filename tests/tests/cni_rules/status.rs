//! Rules 61 to 64: STATUS.

use std::fs;

use anyhow::Result;
use serde_json::json;
use testkit::{Cmd, Netns};

use crate::{
    bed::{Bed, Who, with},
    network::{NONE, Network, changes, traces},
};

#[test]
fn rule_61_ready_is_silent() -> Result<()> {
    let Some(bed) = Bed::new("rule61")? else { return Ok(()) };
    for mut network in Network::both(&bed)? {
        let before = traces(&bed)?;
        assert_eq!(network.status(), Ok(()), "before the first pod");
        assert_eq!(changes(&bed, &before)?, NONE, "it makes nothing");
        let pod = Netns::new()?;
        network = network.asking(18_080);
        network.add(&Who::new("c1", &pod));
        assert_eq!(network.status(), Ok(()), "with a pod");
        network.del(&Who::new("c1", &pod));
        assert_eq!(network.status(), Ok(()), "after the last pod");
        Cmd::new("ip link del cni0").ok()?;
        Cmd::new("nft flush ruleset").ok()?;
        fs::remove_dir_all(bed.path("networks"))?;
    }
    Ok(())
}

#[test]
fn rule_62_without_a_subnet_it_is_50() -> Result<()> {
    let Some(bed) = Bed::new("rule62")? else { return Ok(()) };
    let network = Network::whole(&bed, "1.1.0")?;
    for text in [None, Some(""), Some("FLANNEL_NETWORK=10.42.0.0/16\n"), Some("\0\0")] {
        match text {
            None => fs::remove_file(bed.path("subnet.env"))?,
            Some(text) => drop(bed.dir.write("subnet.env", text)?),
        }
        let (code, text) = network.status().expect_err("no subnet");
        assert!(code == 50 && text.contains("subnet.env"), "{code} {text}");
        let missing = text.starts_with("failed to load flannel 'subnet.env' file: open");
        assert_eq!(missing, !bed.path("subnet.env").exists(), "{text}");
    }
    Ok(())
}

#[test]
fn rule_62_with_pods_that_are_cut_off_it_is_51() -> Result<()> {
    let Some(bed) = Bed::new("rule62pods")? else { return Ok(()) };
    let mut network = Network::whole(&bed, "1.1.0")?;
    let pod = Netns::new()?;
    network.add(&Who::new("c1", &pod));
    for damage in ["ip link set cni0 down", "ip address flush dev cni0", "ip link del cni0"] {
        Cmd::new(damage).ok()?;
        let (code, text) = network.status().expect_err(damage);
        assert!(code == 51 && text.contains("cni0"), "{damage}: {code} {text}");
        assert!(pod.cmd("ping -n -c1 -W1 10.42.3.1").run()?.code != Some(0), "{damage}");
        if damage.contains("flush") {
            Cmd::new("ip address add 10.42.3.1/24 dev cni0").ok()?;
        } else if damage.contains("down") {
            Cmd::new("ip link set cni0 up").ok()?;
            assert_eq!(network.status(), Ok(()), "mended");
        }
    }
    Ok(())
}

fn small(bed: &Bed) -> Network<'_> {
    let ipam = json!({"type": "host-local", "dataDir": bed.path("networks"), "subnet": "10.99.0.0/30"});
    Network::of(bed, vec![with(&bed.bridge(), &json!({"ipam": ipam}))])
}

#[test]
fn rule_63_an_exhausted_pool_is_50() -> Result<()> {
    let Some(bed) = Bed::new("rule63")? else { return Ok(()) };
    let mut bridge = small(&bed);
    let local = Network::of(&bed, vec![with(&bridge.plugins[0], &json!({"type": "host-local"}))]);
    let (pod, other) = (Netns::new()?, Netns::new()?);
    assert_eq!((bridge.status(), local.status()), (Ok(()), Ok(())));
    bridge.add(&Who::new("c1", &pod));
    let full = (50, "no IP addresses available in range set: 10.99.0.1-10.99.0.2".to_owned());
    assert_eq!((bridge.status(), local.status()), (Err(full.clone()), Err(full)));
    bridge.del(&Who::new("c1", &pod));
    assert_eq!((bridge.status(), local.status()), (Ok(()), Ok(())));

    let mut whole = Network::whole(&bed, "1.1.0")?;
    let lease =
        "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/30\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    bed.dir.write("subnet.env", lease)?;
    whole.add(&Who::new("c1", &pod));
    assert_eq!(whole.status().expect_err("full").0, 50);
    whole.try_add(&Who::new("c2", &other)).expect_err("full").error();
    whole.del(&Who::new("c1", &pod));
    assert_eq!(whole.status(), Ok(()));
    Ok(())
}

#[test]
fn rule_64_add_and_del_do_what_they_can_while_status_fails() -> Result<()> {
    let Some(bed) = Bed::new("rule64")? else { return Ok(()) };
    let mut bridge = small(&bed);
    let (pod, other) = (Netns::new()?, Netns::new()?);
    bridge.add(&Who::new("c1", &pod));
    bridge.status().expect_err("full");
    bridge.try_add(&Who::new("c2", &other)).expect_err("full").error();
    bridge.del(&Who::new("c1", &pod));
    bridge.add(&Who::new("c2", &other));
    bridge.del(&Who::new("c2", &other));

    let mut whole = Network::whole(&bed, "1.1.0")?;
    whole.add(&Who::new("c1", &pod));
    let file = fs::read_to_string(bed.path("subnet.env"))?;
    fs::remove_file(bed.path("subnet.env"))?;
    whole.status().expect_err("no subnet");
    assert_eq!(whole.try_add(&Who::new("c2", &other)).expect_err("no subnet").error().0, 11);
    whole.del(&Who::new("c1", &pod));
    assert!(bed.veths()?.is_empty());
    bed.dir.write("subnet.env", file)?;
    whole.add(&Who::new("c2", &other));
    // A bridge that somebody took away comes back with the next pod.
    Cmd::new("ip link del cni0").ok()?;
    whole.add(&Who::new("c3", &pod));
    pod.cmd("ping -n -c1 -W2 10.42.3.1").ok()?;
    for (id, pod) in [("c2", &other), ("c3", &pod)] {
        whole.del(&Who::new(id, pod));
    }
    assert!(bed.veths()?.is_empty());
    Ok(())
}

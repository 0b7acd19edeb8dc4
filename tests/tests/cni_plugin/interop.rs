//! Beside and after the reference's plugins.

use std::fs;

use anyhow::Result;
use serde_json::{Value, json};
use testkit::Netns;

use crate::bed::{Bed, Who, address, addresses, call, call_of, device, reference, with};

/// The network in a version that the packaged plugins speak.
fn network(bed: &Bed) -> Value {
    with(&bed.bridge(), &json!({"cniVersion": "1.0.0"}))
}

#[test]
fn reservations_are_shared() -> Result<()> {
    let (Some(local), Some(bed)) = (reference("host-local"), Bed::new("shared")?) else { return Ok(()) };
    let (one, two) = (Netns::new()?, Netns::new()?);
    let config = network(&bed);
    let who = |id: &str| Who::new(id, &one);
    assert_eq!(address(&call_of(&local, "ADD", &who("r1"), &config).result()), "10.99.0.2/24");
    assert_eq!(address(&call("ADD", &who("c1"), &config).result()), "10.99.0.3/24");
    assert_eq!(address(&call_of(&local, "ADD", &who("r2"), &config).result()), "10.99.0.4/24");
    assert_eq!(address(&call("ADD", &Who::new("c2", &two), &config).result()), "10.99.0.5/24");
    call_of(&local, "DEL", &Who::new("c2", &two), &config).silent();
    assert_eq!(bed.reservations("net"), ["10.99.0.2", "10.99.0.3", "10.99.0.4"]);
    let twice = call_of(&local, "ADD", &who("c1"), &config).error().1;
    assert!(twice.contains("duplicate allocation is not allowed"), "it reads whose address it is: {twice}");
    call("DEL", &Who { ifname: "eth7".into(), ..who("r1") }, &config).silent();
    assert_eq!(bed.reservations("net").len(), 3, "another interface's address stays");
    Ok(())
}

#[test]
fn a_pod_of_the_reference_is_detached_wholly() -> Result<()> {
    let (Some(bridge), Some(bed)) = (reference("bridge"), Bed::new("after")?) else { return Ok(()) };
    let config = network(&bed);
    let (ours, theirs) = (Netns::new()?, Netns::new()?);
    call("ADD", &Who::new("c1", &ours), &config).result();
    let who = Who::new("r1", &theirs);
    let result = call_of(&bridge, "ADD", &who, &config).result();
    assert_eq!(addresses(&device(&theirs, "eth0")?), ["10.99.0.3/24"]);
    theirs.cmd("ping -n -c1 -W2 10.99.0.2").ok()?;
    call("CHECK", &who, &with(&config, &json!({"prevResult": result}))).silent();
    call("DEL", &who, &config).silent();
    assert_eq!((bed.reservations("net"), bed.veths()?.len()), (vec!["10.99.0.2".to_owned()], 1));
    assert_eq!(device(&theirs, "eth0")?, Value::Null);
    Ok(())
}

#[test]
fn the_reference_accepts_and_detaches_a_pod_of_ours() -> Result<()> {
    let (Some(bridge), Some(bed)) = (reference("bridge"), Bed::new("back")?) else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    for version in ["0.4.0", "1.0.0"] {
        let config = with(&network(&bed), &json!({"cniVersion": version}));
        let result = call("ADD", &who, &config).result();
        let config = with(&config, &json!({"prevResult": result}));
        call_of(&bridge, "CHECK", &who, &config).silent();
        call_of(&bridge, "DEL", &who, &config).silent();
        assert_eq!((bed.reservations("net").len(), bed.veths()?.len()), (0, 0));
    }
    Ok(())
}

#[test]
fn what_flannels_own_plugin_left_is_adopted() -> Result<()> {
    let (Some(bridge), Some(bed)) = (reference("bridge"), Bed::new("scratch")?) else { return Ok(()) };
    let flannel = bed.flannel()?;
    let pod = Netns::new()?;
    let who = Who::new("g1", &pod);
    // As flannel's plugin renders it, with a folder of its own for addresses.
    let rendered = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "mtu": 1450, "hairpinMode": true, "ipMasq": false,
        "isGateway": true, "isDefaultGateway": true,
        "ipam": {"type": "host-local", "dataDir": bed.path("elsewhere"), "ranges": [[{"subnet": "10.42.3.0/24"}]],
                 "routes": [{"dst": "10.42.0.0/16"}]},
    });
    call_of(&bridge, "ADD", &who, &rendered).result();
    let scratch = bed.dir.write("flannel/g1", rendered.to_string())?;
    fs::remove_file(bed.path("subnet.env"))?;
    call("DEL", &who, &flannel).silent();
    assert!(!scratch.exists() && !bed.path("elsewhere/cbr0/10.42.3.2").exists());
    assert!(bed.veths()?.is_empty());
    assert_eq!(device(&pod, "eth0")?, Value::Null);
    Ok(())
}

#[test]
fn an_old_reservation_of_only_a_container_is_released() -> Result<()> {
    let Some(bed) = Bed::new("old")? else { return Ok(()) };
    bed.dir.write("networks/net/10.99.0.9", "c1")?;
    bed.dir.write("networks/net/10.99.0.8", " c2 \n")?;
    let pod = Netns::new()?;
    call("DEL", &Who::new("c1", &pod), &network(&bed)).silent();
    assert_eq!(bed.reservations("net"), ["10.99.0.8"]);
    Ok(())
}

#[test]
fn a_garbled_reservation_counts_as_free() -> Result<()> {
    let Some(bed) = Bed::new("garbled")? else { return Ok(()) };
    let small = json!({"type": "host-local", "dataDir": bed.path("networks"), "subnet": "10.99.0.0/30"});
    let config = with(&network(&bed), &json!({"ipam": small}));
    for garbage in ["", "\0\0\0\0", "{}", "\r\n"] {
        bed.dir.write("networks/net/10.99.0.2", garbage)?;
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        assert_eq!(address(&call("ADD", &who, &config).result()), "10.99.0.2/30", "{garbage:?}");
        call("DEL", &who, &config).silent();
    }
    bed.dir.write("networks/net/10.99.0.2", "somebody\r\neth0")?;
    let pod = Netns::new()?;
    let (_, text) = call("ADD", &Who::new("c1", &pod), &config).error();
    assert_eq!(text, "no IP addresses available in range set: 10.99.0.1-10.99.0.2");
    Ok(())
}

//! STATUS and GC.

use std::fs;

use anyhow::Result;
use serde_json::json;
use testkit::{Cmd, Netns};

use crate::bed::{Bed, Who, call, with};

fn nobody() -> Who {
    Who { id: String::new(), ifname: String::new(), netns: String::new() }
}

#[test]
fn rule_61_62_63_64_status_says_whether_a_pod_could_be_attached() -> Result<()> {
    let Some(bed) = Bed::new("status")? else { return Ok(()) };
    let flannel = with(&bed.flannel()?, &json!({"cniVersion": "1.1.0"}));
    call("STATUS", &nobody(), &flannel).silent();
    fs::remove_file(bed.path("subnet.env"))?;
    let (code, text) = call("STATUS", &nobody(), &flannel).error();
    assert!(code == 50 && text.starts_with("failed to load flannel 'subnet.env' file"), "{code} {text}");
    let small = json!({"type": "host-local", "dataDir": bed.path("networks"), "subnet": "10.99.0.0/30"});
    let small = with(&bed.bridge(), &json!({"ipam": small}));
    call("STATUS", &nobody(), &small).silent();
    let pod = Netns::new()?;
    call("ADD", &Who::new("c1", &pod), &small).result();
    assert_eq!(
        call("STATUS", &nobody(), &small).error(),
        (50, "no IP addresses available in range set: 10.99.0.1-10.99.0.2".into())
    );
    call("DEL", &Who::new("c1", &pod), &small).silent();
    call("STATUS", &nobody(), &small).silent();
    Ok(())
}

#[test]
fn rule_06_54_55_56_57_58_60_gc_keeps_exactly_what_is_valid() -> Result<()> {
    let Some(bed) = Bed::new("gc")? else { return Ok(()) };
    let pods = [Netns::new()?, Netns::new()?, Netns::new()?];
    for (pod, id) in pods.iter().zip(["c1", "c2", "c3"]) {
        call("ADD", &Who::new(id, pod), &bed.bridge()).result();
    }
    let other = with(&bed.bridge(), &json!({"name": "other", "bridge": "br1"}));
    let other = with(
        &other,
        &json!({"ipam": {"type": "host-local", "dataDir": bed.path("networks"), "subnet": "10.88.0.0/24"}}),
    );
    let pod = Netns::new()?;
    call("ADD", &Who::new("c9", &pod), &other).result();
    bed.dir.write("networks/net/10.99.0.100", "c2")?;
    bed.dir.write("networks/net/10.99.0.101", "")?;
    call("GC", &nobody(), &bed.bridge()).silent();
    for unnamed in [json!({"containerID": "c1"}), json!({}), json!({"containerID": "c1", "ifname": ""})] {
        let answer =
            call("GC", &nobody(), &with(&bed.bridge(), &json!({"cni.dev/valid-attachments": [unnamed]})));
        assert_eq!(answer.error().0, 6);
    }
    assert_eq!(bed.reservations("net").len(), 5, "without a list nothing goes");
    let valid = json!([{"containerID": "c2", "ifname": "eth0"}]);
    call("GC", &nobody(), &with(&bed.bridge(), &json!({"cni.dev/valid-attachments": valid}))).silent();
    assert_eq!(bed.reservations("net"), ["10.99.0.100", "10.99.0.3"]);
    let aliases = Cmd::new("ip -j link show type veth").json()?.to_string();
    for (alias, stays) in [("weft:net/c1/", false), ("weft:net/c2/", true), ("weft:other/c9/", true)] {
        assert_eq!(aliases.contains(alias), stays, "{alias} in {aliases}");
    }
    // An ADD that was killed before it reserved what it had noted, and one before it noted anything.
    bed.dir.write("state/attachments/net/c7-eth0", "weft attachment 1\naddress 0 10.99.0.9/24\n")?;
    bed.dir.write("state/attachments/net/c8-eth0", "")?;
    call("GC", &nobody(), &with(&bed.bridge(), &json!({"cni.dev/valid-attachments": []}))).silent();
    assert!(bed.reservations("net").is_empty() && bed.records("net").is_empty());
    assert_eq!(bed.reservations("other").len(), 1);
    assert!(["lock", "last_reserved_ip.0"].iter().all(|name| bed.path("networks/net").join(name).exists()));
    Ok(())
}

#[test]
fn gc_removes_what_flannels_own_plugin_left() -> Result<()> {
    let Some(bed) = Bed::new("gcscratch")? else { return Ok(()) };
    let config = with(&bed.flannel()?, &json!({"cniVersion": "1.1.0"}));
    for (id, name) in [("c1", "cbr0"), ("c2", "cbr0"), ("c3", "other")] {
        bed.dir.write(&format!("flannel/{id}"), json!({"name": name, "type": "bridge"}).to_string())?;
    }
    let valid = json!([{"containerID": "c2", "ifname": "eth0"}]);
    call("GC", &nobody(), &with(&config, &json!({"cni.dev/valid-attachments": valid}))).silent();
    let left = ["c1", "c2", "c3"].map(|id| bed.path(&format!("flannel/{id}")).exists());
    assert_eq!(left, [false, true, true]);
    Ok(())
}

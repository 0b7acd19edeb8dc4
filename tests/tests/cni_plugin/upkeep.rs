//! GC.

use anyhow::Result;
use serde_json::{Value, json};
use testkit::Netns;

use crate::bed::{Bed, Who, call, nobody, with};

#[test]
fn gc_refuses_entries_that_name_nobody_and_ends_what_a_kill_left() -> Result<()> {
    let Some(bed) = Bed::new("gc")? else { return Ok(()) };
    let pod = Netns::new()?;
    call("ADD", &Who::new("c1", &pod), &bed.bridge()).result();
    let gc = |valid: Value| {
        call("GC", &nobody(), &with(&bed.bridge(), &json!({"cni.dev/valid-attachments": valid})))
    };
    for unnamed in [json!({"containerID": "c1"}), json!({}), json!({"containerID": "c1", "ifname": ""})] {
        assert_eq!(gc(json!([unnamed])).error().0, 6);
    }
    assert_eq!(bed.reservations("net").len(), 1, "nothing goes");
    // An ADD that was killed before it reserved what it had noted, and one before it noted anything.
    bed.dir.write("state/attachments/net/c7-eth0", "weft attachment 1\naddress 0 10.99.0.9/24\n")?;
    bed.dir.write("state/attachments/net/c8-eth0", "")?;
    gc(json!([])).silent();
    assert!(bed.reservations("net").is_empty() && bed.records("net").is_empty());
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

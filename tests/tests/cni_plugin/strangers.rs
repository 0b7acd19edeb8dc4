//! Addresses that the reference's `host-local` gave, beside ours.

use anyhow::Result;
use serde_json::{Value, json};
use testkit::Netns;

use crate::bed::{Bed, Who, addresses, call, call_of, device, reference, with};

#[test]
fn rule_30_an_address_of_the_reference_is_the_containers_only_one() -> Result<()> {
    let (Some(theirs), Some(bed)) = (reference("host-local"), Bed::new("strangers")?) else { return Ok(()) };
    let (ours, pod) = (bed.program("host-local")?, Netns::new()?);
    let config = with(&bed.bridge(), &json!({"cniVersion": "1.0.0"}));
    let who = |id: &str| Who::new(id, &pod);
    let refused = |who: &Who, ip: &str| {
        let text = format!("{ip} has been allocated to {}, duplicate allocation is not allowed", who.id);
        let before = (bed.reservations("net"), bed.records("net"));
        assert_eq!(call("ADD", who, &config).error(), (999, text.clone()));
        assert_eq!(call_of(&ours, "ADD", who, &config).error(), (999, text.clone()));
        let theirs = call_of(&theirs, "ADD", who, &config).error();
        assert!(theirs.0 == 999 && theirs.1.ends_with(&text), "{theirs:?}");
        assert_eq!((bed.reservations("net"), bed.records("net")), before);
    };
    call_of(&theirs, "ADD", &who("r1"), &config).result();
    refused(&who("r1"), "10.99.0.2");
    assert_eq!(device(&pod, "eth0")?, Value::Null);
    // What was looked through is known, and what came since is looked for.
    call_of(&ours, "ADD", &who("c1"), &config).result();
    refused(&who("r1"), "10.99.0.2");
    call_of(&theirs, "ADD", &who("r2"), &config).result();
    refused(&who("r2"), "10.99.0.4");
    let own = call_of(&ours, "ADD", &who("c1"), &config).error();
    assert!(own.1.starts_with("10.99.0.3 has been allocated to c1"), "{own:?}");
    // Another interface, another network, and an address that was released.
    call_of(&ours, "ADD", &Who { ifname: "eth1".into(), ..who("r1") }, &config).result();
    call_of(&ours, "ADD", &who("r1"), &with(&config, &json!({"name": "other"}))).result();
    call_of(&theirs, "DEL", &who("r2"), &config).silent();
    call("ADD", &who("r2"), &config).result();
    assert_eq!(addresses(&device(&pod, "eth0")?), ["10.99.0.6/24"]);
    // Our own DEL ends it as well.
    call_of(&ours, "DEL", &who("r1"), &config).silent();
    call_of(&ours, "ADD", &who("r1"), &config).result();
    Ok(())
}

#[test]
fn other_reservations_are_not_looked_into_again() -> Result<()> {
    let Some(bed) = Bed::new("lookedinto")? else { return Ok(()) };
    let (ours, pod) = (bed.program("host-local")?, Netns::new()?);
    bed.dir.write("networks/net/10.99.0.2", "r1\r\neth0")?;
    call_of(&ours, "ADD", &Who::new("c1", &pod), &bed.bridge()).result();
    // As nobody writes it: without the file that names the last address.
    bed.dir.write("networks/net/10.99.0.9", "r2\r\neth0")?;
    call_of(&ours, "ADD", &Who::new("r2", &pod), &bed.bridge()).result();
    let (_, text) = call_of(&ours, "ADD", &Who::new("r1", &pod), &bed.bridge()).error();
    assert!(text.starts_with("10.99.0.2 has been allocated to r1"), "{text}");
    Ok(())
}

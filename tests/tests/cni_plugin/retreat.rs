//! What an ADD that fails takes back, and what it does not wait for.

use anyhow::Result;
use serde_json::json;
use testkit::{Cmd, Netns};

use crate::bed::{Bed, Who, addresses, call, device, with};

#[test]
fn the_bridge_has_the_addresses_again_that_it_had() -> Result<()> {
    let Some(bed) = Bed::new("retreat")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let mut ipam = bed.bridge()["ipam"].clone();
    ipam["routes"] = json!([{"dst": "10.9.0.0/16", "gw": "172.31.0.1"}]);
    let unreachable = with(&bed.bridge(), &json!({"ipam": ipam, "forceAddress": true}));
    let bridge = || Ok::<_, anyhow::Error>(addresses(&device(&bed.host, "br0")?));
    call("ADD", &who, &unreachable).error();
    assert_eq!(bridge()?, [""; 0]);
    Cmd::new("ip address add 192.168.44.1/24 dev br0").ok()?;
    call("ADD", &who, &unreachable).error();
    assert_eq!(bridge()?, ["192.168.44.1/24"]);

    // A container that has come meanwhile needs its gateway.
    Cmd::new("ip address flush dev br0").ok()?;
    let other = Netns::new()?;
    call("ADD", &Who::new("c2", &other), &bed.bridge()).result();
    call("ADD", &who, &unreachable).error();
    assert_eq!(bridge()?, ["10.99.0.1/24"]);
    Ok(())
}

#[test]
fn limits_that_are_none_are_refused_before_anything_is_made() -> Result<()> {
    let Some(bed) = Bed::new("half")? else { return Ok(()) };
    let pod = Netns::new()?;
    let half =
        json!({"capabilities": {"bandwidth": true}, "runtimeConfig": {"bandwidth": {"ingressRate": 100}}});
    let (_, text) = call("ADD", &Who::new("c1", &pod), &with(&bed.bridge(), &half)).error();
    assert!(text.contains("if rate is set, burst must also be set"), "{text}");
    assert!(device(&bed.host, "br0")?.is_null());
    assert!(!bed.path("networks").exists() && !bed.path("state").exists());
    Ok(())
}

#[test]
fn the_kernel_may_still_be_removing_the_containers_last_namespace() -> Result<()> {
    let Some(bed) = Bed::new("again")? else { return Ok(()) };
    for _ in 0..12 {
        let pod = Netns::new()?;
        call("ADD", &Who::new("c1", &pod), &bed.bridge()).result();
    }
    assert_eq!(bed.reservations("net").len(), 1);
    Ok(())
}

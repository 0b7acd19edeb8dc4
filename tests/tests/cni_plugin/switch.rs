//! CHECK of pods that the reference's plugins made.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::{Cmd, Netns};

use crate::bed::{Bed, Who, call, call_of, reference, with};

fn limits(rate: u64, burst: u64) -> Value {
    json!({"ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst})
}

#[test]
fn the_references_address_translation_is_its_own_affair() -> Result<()> {
    let (Some(bridge), Some(bed)) = (reference("bridge"), Bed::new("switchnat")?) else { return Ok(()) };
    let (theirs, ours) = (reference("portmap").context("portmap")?, bed.program("portmap")?);
    let pod = Netns::new()?;
    let who = Who::new("r1", &pod);
    let one = json!({"capabilities": {"portMappings": true},
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}});
    let masquerading = json!({"cniVersion": "1.0.0", "ipMasq": true});
    let config = with(&bed.bridge(), &masquerading);
    let result = call_of(&bridge, "ADD", &who, &config).result();
    let previous = json!({"prevResult": result});
    call("CHECK", &who, &with(&config, &previous)).silent();
    call("CHECK", &who, &with(&with(&config, &one), &previous)).silent();

    let chained = with(
        &json!({"cniVersion": "1.0.0", "name": "net", "type": "portmap", "stateDir": bed.path("state")}),
        &one,
    );
    let chained = with(&chained, &previous);
    let missing = call_of(&ours, "CHECK", &who, &chained).error().1;
    assert!(missing.contains("host port 8080/tcp"), "nobody has set it: {missing}");
    call_of(&theirs, "ADD", &who, &chained).result();
    call_of(&ours, "CHECK", &who, &chained).silent();
    call_of(&theirs, "DEL", &who, &chained).silent();
    call_of(&ours, "CHECK", &who, &chained).error();

    // What else there is to see is judged as ever.
    pod.cmd("ip address flush dev eth0").ok()?;
    call("CHECK", &who, &with(&config, &previous)).error();
    call_of(&bridge, "DEL", &who, &config).silent();
    Ok(())
}

#[test]
fn limits_count_as_the_reference_sets_them() -> Result<()> {
    let (Some(theirs), Some(bed)) = (reference("bandwidth"), Bed::new("switchlimits")?) else {
        return Ok(());
    };
    let ours = bed.program("bandwidth")?;
    let bridge = with(&bed.bridge(), &json!({"cniVersion": "1.0.0"}));
    let base =
        json!({"cniVersion": "1.0.0", "name": "net", "type": "bandwidth", "stateDir": bed.path("state")});
    for (rate, burst) in [(10_000_000, 4_294_967_295), (10_000_000, 80_000), (1_000_000_000, 8_000_000)] {
        let pod = Netns::new()?;
        let who = Who::new("r1", &pod);
        let before = call("ADD", &who, &bridge).result();
        let config = with(&base, &limits(rate, burst));
        let result = call_of(&theirs, "ADD", &who, &with(&config, &json!({"prevResult": before}))).result();
        let made = with(&config, &json!({"prevResult": result}));
        call_of(&ours, "CHECK", &who, &made).silent();
        let other = with(&made, &limits(2 * rate, burst));
        assert!(call_of(&ours, "CHECK", &who, &other).error().1.contains("doesn't match"));
        let ifb = result["interfaces"].as_array().context("a list")?.last().context("one")?;
        Cmd::new(format!("ip link delete {}", ifb["name"].as_str().unwrap_or_default())).ok()?;
        let gone = call_of(&ours, "CHECK", &who, &made).error().1;
        assert!(gone.contains("ifb device bwp"), "{gone}");
        call("DEL", &who, &bridge).silent();
    }
    Ok(())
}

#[test]
fn no_rate_is_too_high() -> Result<()> {
    let Some(bed) = Bed::new("highest")? else { return Ok(()) };
    for rate in [u64::MAX, 1 << 60, 1 << 50] {
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        let handed = json!({"capabilities": {"bandwidth": true},
            "runtimeConfig": {"bandwidth": limits(rate, 4_294_967_295)}});
        let config = with(&bed.bridge(), &handed);
        let result = call("ADD", &who, &config).result();
        pod.cmd("ping -n -c2 -i0.1 -W2 -s1300 10.99.0.1").ok()?;
        call("CHECK", &who, &with(&config, &json!({"prevResult": result}))).silent();
        call("DEL", &who, &config).silent();
    }
    Ok(())
}

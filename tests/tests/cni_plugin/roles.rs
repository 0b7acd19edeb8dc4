//! One program under the names of all plugins, and beside the reference's.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Cmd, Netns};

use crate::bed::{Bed, Who, addresses, call, call_of, command, device, feed, reference, with};

/// A network of the reference's `ptp` with our `host-local`.
fn routed(bed: &Bed) -> Value {
    let ipam = json!({"type": "host-local", "dataDir": bed.path("networks"), "subnet": "10.97.0.0/24",
        "routes": [{"dst": "0.0.0.0/0"}]});
    json!({"cniVersion": "1.0.0", "name": "net", "type": "ptp", "stateDir": bed.path("state"), "ipam": ipam})
}

/// A call of a foreign plugin that finds ours first.
fn beside(bed: &Bed, program: &Path, verb: &str, who: &Who, config: &Value) -> crate::bed::Answer {
    let mut command = command(program, verb, who);
    command.env("CNI_PATH", format!("{}:/usr/lib/cni", bed.path("bin").display()));
    feed(command, config.to_string().as_bytes())
}

#[test]
fn a_foreign_main_plugin_gets_its_addresses_from_ours() -> Result<()> {
    let (Some(ptp), Some(bed)) = (reference("ptp"), Bed::new("ipam")?) else { return Ok(()) };
    bed.program("host-local")?;
    let (pod, config) = (Netns::new()?, routed(&bed));
    let who = Who::new("c1", &pod);
    let result = beside(&bed, &ptp, "ADD", &who, &config).result();
    assert_eq!(result["ips"][0]["address"], "10.97.0.2/24");
    assert_eq!(addresses(&device(&pod, "eth0")?), ["10.97.0.2/24"]);
    assert_eq!(bed.reservations("net"), ["10.97.0.2"]);
    let checked = with(&config, &json!({"prevResult": result}));
    beside(&bed, &ptp, "CHECK", &who, &checked).silent();
    beside(&bed, &ptp, "DEL", &who, &checked).silent();
    assert_eq!((bed.reservations("net").len(), bed.veths()?.len()), (0, 0));
    Ok(())
}

#[test]
fn host_local_answers_as_address_management() -> Result<()> {
    let Some(bed) = Bed::new("hostlocal")? else { return Ok(()) };
    let (program, pod) = (bed.program("host-local")?, Netns::new()?);
    let (who, config) = (Who::new("c1", &pod), with(&routed(&bed), &json!({"cniVersion": "1.1.0"})));
    let result = call_of(&program, "ADD", &who, &config).result();
    assert_eq!(
        result,
        json!({"cniVersion": "1.1.0", "ips": [{"address": "10.97.0.2/24", "gateway": "10.97.0.1"}],
            "routes": [{"dst": "0.0.0.0/0"}]})
    );
    let (_, twice) = call_of(&program, "ADD", &who, &config).error();
    assert_eq!(twice, "10.97.0.2 has been allocated to c1, duplicate allocation is not allowed");
    call_of(&program, "CHECK", &who, &config).silent();
    call_of(&program, "STATUS", &who, &config).silent();
    let other =
        with(&config, &json!({"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth1"}]}));
    call_of(&program, "GC", &who, &other).silent();
    let (_, lost) = call_of(&program, "CHECK", &who, &config).error();
    assert_eq!(lost, "host-local: Failed to find address added by container c1");
    for _ in 0..2 {
        call_of(&program, "DEL", &who, &config).silent();
    }
    assert!(bed.reservations("net").is_empty());
    Ok(())
}

#[test]
fn rule_32_33_a_chained_plugin_needs_and_keeps_a_previous_result() -> Result<()> {
    let Some(bed) = Bed::new("chained")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let result = call("ADD", &who, &bed.bridge()).result();
    for name in ["portmap", "bandwidth", "tuning"] {
        let program = bed.program(name)?;
        let config =
            json!({"cniVersion": "1.1.0", "name": "net", "type": name, "stateDir": bed.path("state")});
        let (_, text) = call_of(&program, "ADD", &who, &config).error();
        assert!(text.contains("must be called as chained plugin"), "{name}: {text}");
        let chained = with(&config, &json!({"prevResult": result}));
        assert_eq!(call_of(&program, "ADD", &who, &chained).result(), result, "{name}");
        assert_eq!(call("ADD", &who, &chained).result(), result, "{name} by its type");
        call_of(&program, "CHECK", &who, &chained).silent();
        call_of(&program, "DEL", &who, &config).silent();
    }
    assert!(Cmd::new("ip -j link show type ifb").json()?.as_array().is_none_or(Vec::is_empty));
    Ok(())
}

#[test]
fn a_type_that_nobody_serves_is_named() -> Result<()> {
    let Some(bed) = Bed::new("nobody")? else { return Ok(()) };
    let pod = Netns::new()?;
    let config = with(&bed.bridge(), &json!({"type": "macvlan"}));
    let error = call("ADD", &Who::new("c1", &pod), &config).error();
    assert_eq!(error, (2, "unsupported value for key \"type\": \"macvlan\"".into()));
    let program = bed.program("bridge")?;
    call_of(&program, "ADD", &Who::new("c1", &pod), &config).result();
    Ok(())
}

//! Environment and standard input at their edges.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Cmd, bin};

use crate::bed::{Answer, Bed, Who, addresses, call, command, device, feed, with};

fn nobody() -> Who {
    Who { id: "c1".into(), ifname: "eth0".into(), netns: "/proc/1/ns/none".into() }
}

#[test]
fn a_variable_that_is_no_text_is_code_4_by_its_name() {
    let config = json!({"cniVersion": "1.0.0", "name": "n", "type": "loopback"}).to_string();
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH", "CNI_ARGS"] {
        for verb in ["ADD", "DEL", "CHECK"] {
            let mut command = command(&bin("flannel"), verb, &nobody());
            command.env(name, OsStr::from_bytes(b"/a\xff"));
            let answer = feed(command, config.as_bytes());
            let wanted = format!("{name} is not UTF-8: \"/a\\xFF\"");
            assert_eq!(answer.error(), (4, wanted), "{verb}");
            assert!(!answer.out.contains('\u{fffd}'), "{answer:?}");
        }
    }
    let mut command = command(&bin("flannel"), "VERSION", &nobody());
    command.env("CNI_ARGS", OsStr::from_bytes(b"\xff"));
    feed(command, b"").result();
}

#[test]
fn rule_23_an_empty_argument_is_an_invalid_pair() {
    let config = json!({"cniVersion": "1.0.0", "name": "n", "type": "bridge"}).to_string();
    for wrong in [";", "IP=10.1.2.3;", "IgnoreUnknown=1;;FOO=bar", ";IgnoreUnknown=1"] {
        let mut command = command(&bin("flannel"), "DEL", &nobody());
        command.env("CNI_ARGS", wrong);
        let answer = feed(command, config.as_bytes());
        assert_eq!(answer.error(), (4, "ARGS: invalid pair \"\"".into()), "{wrong}");
    }
}

#[test]
fn rule_24_input_that_is_too_long_is_said_to_be() {
    const LONGEST: usize = 16 << 20;
    let of_length = |length: usize| -> Answer {
        let mut text = json!({"cniVersion": "1.0.0", "name": "n", "type": "portmap"}).to_string();
        text.push_str(&" ".repeat(length - text.len()));
        feed(command(&bin("flannel"), "DEL", &nobody()), text.as_bytes())
    };
    of_length(LONGEST).silent();
    for length in [LONGEST + 1, 2 * LONGEST] {
        let wanted = "standard input is too long: more than 16777216 bytes";
        assert_eq!(of_length(length).error(), (6, wanted.into()), "{length}");
    }
}

#[test]
fn the_plugins_own_namespace_is_used_where_the_runtime_insists() -> Result<()> {
    let Some(bed) = Bed::new("override")? else { return Ok(()) };
    let who = Who::new("c1", &bed.host);
    let config = with(&bed.bridge(), &json!({"isDefaultGateway": false, "isGateway": true}));
    let insist = |verb: &str, value: &str, config: &Value| {
        let mut command = command(&bin("flannel"), verb, &who);
        command.env("CNI_NETNS_OVERRIDE", value);
        feed(command, config.to_string().as_bytes())
    };
    for no in ["", "0", "yes"] {
        assert_eq!(insist("ADD", no, &config).error().0, 8, "{no:?}");
    }
    assert_eq!(device(&bed.host, "br0")?, Value::Null, "nothing was touched");
    for yes in ["1", "true", "True"] {
        let result = insist("ADD", yes, &config).result();
        let address = result["ips"][0]["address"].as_str().unwrap_or_default().to_owned();
        assert_eq!(addresses(&device(&bed.host, "eth0")?), [address]);
        let checked = with(&config, &json!({"prevResult": result}));
        insist("CHECK", yes, &checked).silent();
        assert_eq!(call("CHECK", &who, &checked).error().0, 8);
        insist("DEL", yes, &config).silent();
        insist("DEL", yes, &config).silent();
        assert!(bed.veths()?.is_empty() && bed.reservations("net").is_empty());
    }
    // A setting that only the container's side knows.
    Cmd::new("ip link add eth0 type veth peer name near").ok()?;
    let before = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": who.netns}]});
    let tuning = json!({"cniVersion": "1.0.0", "name": "net", "type": "tuning", "mtu": 1234,
        "dataDir": bed.path("tuning"), "stateDir": bed.path("state"), "prevResult": before});
    assert_eq!(call("ADD", &who, &tuning).error().0, 8);
    insist("ADD", "1", &tuning).result();
    assert_eq!(device(&bed.host, "eth0")?["mtu"], 1234);
    insist("DEL", "1", &tuning).silent();
    assert_eq!(device(&bed.host, "eth0")?["mtu"], 1500);
    Ok(())
}

#[test]
fn what_it_cannot_do_is_named_by_key_and_value() {
    let answer = |text: &str| feed(command(&bin("flannel"), "ADD", &nobody()), text.as_bytes()).error();
    for (text, code, message) in [
        (
            r#"{"cniVersion":"1.0.0","name":"n","type":"macvlan"}"#,
            2,
            "unsupported value for key \"type\": \"macvlan\"",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"n","type":"bridge","ipam":{"type":"../dhcp"}}"#,
            7,
            "invalid ipam.type \"../dhcp\": it must be the name of a plugin",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"n","type":"bridge","vlan":100}"#,
            2,
            "unsupported value for key \"vlan\": 100",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"n","type":"bridge","hairpinMode":true,"promiscMode":true}"#,
            7,
            "cannot set hairpin mode and promiscuous mode at the same time",
        ),
    ] {
        let found = answer(text);
        assert!(found.0 == code && found.1.starts_with(message), "{text}: {found:?}");
    }
}

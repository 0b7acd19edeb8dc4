//! Environment, standard input, versions: one document whatever happens.

use std::process::Stdio;

use anyhow::Result;
use serde_json::{Value, json};
use testkit::bin;

use crate::bed::{Bed, Who, call, command, feed, with};

fn who() -> Who {
    Who { id: "c1".into(), ifname: "eth0".into(), netns: "/proc/1/ns/none".into() }
}

fn network() -> Value {
    json!({"cniVersion": "1.0.0", "name": "n", "type": "bridge"})
}

/// Calls with one variable set otherwise, or not at all.
fn with_variable(verb: &str, name: &str, value: Option<&str>) -> (u64, String) {
    let mut command = command(&bin("flannel"), verb, &who());
    match value {
        Some(value) => command.env(name, value),
        None => command.env_remove(name),
    };
    feed(command, network().to_string().as_bytes()).error()
}

#[test]
fn rule_01_version_needs_nothing_but_the_verb_and_does_not_wait_for_input() {
    let mut command = command(&bin("flannel"), "VERSION", &who());
    command.env_clear().env("CNI_COMMAND", "VERSION");
    let mut child = command.spawn().unwrap();
    let _held_open = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(reply["cniVersion"], "1.1.0");
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        assert!(reply["supportedVersions"].as_array().unwrap().contains(&json!(version)), "{reply}");
    }
}

#[test]
fn rule_02_without_a_verb_it_says_what_it_is() {
    let mut command = command(&bin("flannel"), "", &who());
    command.env_clear().stdin(Stdio::piped());
    let answer = feed(command, b"");
    answer.silent();
    assert!(answer.err.contains("CNI protocol versions supported: 0.1.0"), "{answer:?}");
}

#[test]
fn rule_03_04_07_08_23_a_wrong_environment_is_code_4() {
    assert_eq!(with_variable("FOO", "X", None), (4, "unknown CNI_COMMAND: FOO".into()));
    let mut command = command(&bin("flannel"), "ADD", &who());
    command.env_clear().env("CNI_COMMAND", "ADD");
    let missing = "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH] missing";
    assert_eq!(feed(command, b"{}").error(), (4, missing.into()));
    assert_eq!(
        with_variable("ADD", "CNI_CONTAINERID", Some("a/b")),
        (4, "invalid characters in containerID".into())
    );
    for name in ["sixteen-bytes-xx", ".", "..", "a/b", "a:b", "a b"] {
        assert_eq!(with_variable("ADD", "CNI_IFNAME", Some(name)).0, 4, "{name}");
    }
    let unknown = with_variable("ADD", "CNI_ARGS", Some("FOO=bar"));
    assert_eq!(unknown, (4, "ARGS: unknown args [\"FOO=bar\"]".into()));
    assert_eq!(with_variable("ADD", "CNI_ARGS", Some("IgnoreUnknown=1;FOO")).0, 4);
}

#[test]
fn rule_09_10_11_12_16_a_wrong_configuration_is_one_clear_error() {
    let answer = |text: &str| feed(command(&bin("flannel"), "ADD", &who()), text.as_bytes()).error();
    for (text, code, message) in [
        ("", 6, "error unmarshall network config: "),
        ("{", 6, "error unmarshall network config: "),
        ("\u{0}\u{1}", 6, "error unmarshall network config: "),
        (r#"{"cniVersion":7,"name":"n","type":"bridge"}"#, 6, "error unmarshall network config: cniVersion"),
        (r#"{"cniVersion":"9.9.9","name":"n","type":"bridge"}"#, 1, "incompatible CNI versions"),
        (r#"{"cniVersion":"one","name":"n","type":"bridge"}"#, 1, "incompatible CNI versions"),
        (r#"{"cniVersion":"1.0.0","type":"bridge"}"#, 7, "missing network name"),
        (
            r#"{"cniVersion":"1.0.0","name":"a b","type":"bridge"}"#,
            7,
            "invalid characters found in network name",
        ),
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

#[test]
fn rule_14_15_verbs_are_refused_before_their_version() {
    let at = |verb: &str, version: &str| {
        call(verb, &who(), &with(&network(), &json!({"cniVersion": version}))).error()
    };
    assert_eq!(at("CHECK", "0.3.1"), (1, "config version does not allow CHECK".into()));
    assert_eq!(at("GC", "1.0.0"), (1, "config version does not allow GC".into()));
    assert_eq!(at("STATUS", "0.4.0"), (1, "config version does not allow STATUS".into()));
}

#[test]
fn rule_27_28_a_namespace_that_is_none_leaves_nothing() -> Result<()> {
    let Some(bed) = Bed::new("nons")? else { return Ok(()) };
    let config = bed.bridge();
    let at = |netns: &str| call("ADD", &Who { netns: netns.into(), ..who() }, &config).error();
    let (code, text) = at("/run/netns/does-not-exist");
    assert_eq!(code, 999);
    assert!(
        text.starts_with("failed to open netns \"/run/netns/does-not-exist\": failed to Statfs"),
        "{text}"
    );
    assert!(at("/dev/null").1.starts_with("failed to open netns \"/dev/null\""));
    assert_eq!(at("/proc/self/ns/net").0, 8);
    assert_eq!(at("/proc/thread-self/ns/net").0, 8);
    assert_eq!((bed.reservations("net").len(), bed.veths()?.len()), (0, 0));
    assert!(bed.host.cmd("ip link show br0").run()?.code != Some(0), "no bridge either");
    Ok(())
}

#[test]
fn rule_24_a_large_input_is_read() -> Result<()> {
    let Some(bed) = Bed::new("large")? else { return Ok(()) };
    let interfaces: Vec<Value> =
        (0..4000).map(|i| json!({"name": format!("veth{i}"), "mac": "", "sandbox": ""})).collect();
    let config =
        with(&bed.bridge(), &json!({"prevResult": {"cniVersion": "1.1.0", "interfaces": interfaces}}));
    assert!(config.to_string().len() > 128 << 10);
    call("DEL", &who(), &config).silent();
    Ok(())
}

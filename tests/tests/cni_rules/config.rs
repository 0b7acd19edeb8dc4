//! Rules 9 to 15, 20, 21, 22 and 24: what standard input says.

use std::{io::Write, time::Duration};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use testkit::{Cmd, Netns};

use crate::{
    bed::{Answer, Bed, Who, addresses, call_of, command, device, feed, nobody, with},
    network::{NAMES, Network, VERSIONS, on},
};

const VERBS: [&str; 5] = ["ADD", "DEL", "CHECK", "GC", "STATUS"];

fn who() -> Who {
    Who { id: "c1".into(), ifname: "eth0".into(), netns: "/run/netns/does-not-exist".into() }
}

/// Every program's answer to this input, for each verb.
fn answers(bed: &Bed, input: &[u8], mut judge: impl FnMut(&str, Answer)) -> Result<()> {
    for name in NAMES {
        for verb in VERBS {
            let answer = feed(command(&bed.program(name)?, verb, &who()), input);
            judge(
                &format!("{name} {verb} {:?}", String::from_utf8_lossy(&input[..input.len().min(80)])),
                answer,
            );
        }
    }
    Ok(())
}

#[test]
fn rule_09_input_that_is_no_configuration_is_code_6() -> Result<()> {
    let Some(bed) = Bed::new("rule09")? else { return Ok(()) };
    let deep = "[".repeat(100_000);
    let garbage: [&[u8]; 10] = [
        b"",
        b" \n",
        b"{",
        b"nonsense",
        b"[]",
        b"7",
        b"\"text\"",
        b"\xff\xfe\x00",
        br#"{"cniVersion":"1.1.0","name":"net","type":"bridge"} and more"#,
        deep.as_bytes(),
    ];
    for input in garbage {
        answers(&bed, input, |what, answer| {
            let (code, text) = answer.error();
            assert!(code == 6 && text.starts_with("error unmarshall network config: "), "{what}: {text}");
        })?;
    }
    Ok(())
}

#[test]
fn rule_10_a_missing_or_bad_name_is_code_7() -> Result<()> {
    let Some(bed) = Bed::new("rule10")? else { return Ok(()) };
    for name in
        [None, Some(""), Some("a b"), Some("a/b"), Some("../a"), Some("-a"), Some("a\n"), Some("\u{e4}")]
    {
        let mut config = json!({"cniVersion": "1.1.0", "type": "bridge"});
        if let Some(name) = name {
            config["name"] = name.into();
        }
        answers(&bed, config.to_string().as_bytes(), |what, answer| {
            let (code, text) = answer.error();
            assert_eq!(code, 7, "{what}: {text}");
            let missing = name.is_none_or(str::is_empty);
            let wanted =
                if missing { "missing network name" } else { "invalid characters found in network name" };
            assert!(text.contains(wanted), "{what}: {text}");
        })?;
    }
    Ok(())
}

fn versioned(version: &Value) -> Vec<u8> {
    json!({"cniVersion": version, "name": "net", "type": "bridge"}).to_string().into_bytes()
}

#[test]
fn rule_11_a_version_that_is_not_known_is_code_1_with_details() -> Result<()> {
    let Some(bed) = Bed::new("rule11")? else { return Ok(()) };
    for version in ["9.9.9", "2.0.0", "1.2.0", "0.5.0", "0.0.1"] {
        answers(&bed, &versioned(&version.into()), |what, answer| {
            assert_eq!(answer.error(), (1, "incompatible CNI versions".into()), "{what}");
            let document: Value = serde_json::from_str(&answer.out).expect("one document");
            let details = document["details"].as_str().unwrap_or_default().to_owned();
            let told = details.starts_with(&format!("config is \"{version}\", plugin supports ["));
            assert!(told && details.contains("1.1.0"), "{what}: {details}");
        })?;
    }
    Ok(())
}

#[test]
fn rule_12_a_malformed_version_is_code_1_or_6() -> Result<()> {
    let Some(bed) = Bed::new("rule12")? else { return Ok(()) };
    for version in
        ["one", "1", "1.0", "v1.0.0", "1.0.0.0", "1.0.x", " 1.0.0", "-1.0.0", "1.0.99999999999999999999"]
    {
        answers(&bed, &versioned(&version.into()), |what, answer| {
            assert!(matches!(answer.error().0, 1 | 6), "{what}");
        })?;
    }
    for version in [json!(7), json!(1.0), json!(true), json!(["1.0.0"]), json!({})] {
        answers(&bed, &versioned(&version), |what, answer| assert_eq!(answer.error().0, 6, "{what}"))?;
    }
    Ok(())
}

#[test]
fn rule_13_no_version_is_the_first() -> Result<()> {
    let Some(bed) = Bed::new("rule13")? else { return Ok(()) };
    for version in [None, Some("")] {
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        let mut config = with(&bed.bridge(), &json!({"cniVersion": version}));
        if version.is_none() {
            config.as_object_mut().context("an object")?.remove("cniVersion");
        }
        let program = bed.program("bridge")?;
        let result = call_of(&program, "ADD", &who, &config).result();
        assert_eq!(
            (&result["cniVersion"], &result["interfaces"]),
            (&json!("0.1.0"), &Value::Null),
            "{result}"
        );
        assert!(result["ip4"]["ip"].is_string(), "{result}");
        call_of(&program, "DEL", &who, &config).silent();
    }
    Ok(())
}

/// `verb` is refused below `since`, and by its name.
fn refused_before(verb: &str, since: &str) -> Result<()> {
    let Some(bed) = Bed::new("early")? else { return Ok(()) };
    for name in NAMES {
        let absent = json!({"name": "net", "type": name});
        let early = VERSIONS.iter().filter(|version| **version < since);
        let configs =
            early.map(|version| with(&absent, &json!({"cniVersion": version}))).chain([absent.clone()]);
        for config in configs {
            let error = call_of(&bed.program(name)?, verb, &who(), &config).error();
            assert_eq!(error, (1, format!("config version does not allow {verb}")), "{name} {config}");
        }
    }
    Ok(())
}

#[test]
fn rule_14_check_is_refused_below_0_4_0() -> Result<()> {
    refused_before("CHECK", "0.4.0")
}

#[test]
fn rule_15_gc_and_status_are_refused_below_1_1_0() -> Result<()> {
    refused_before("GC", "1.1.0")?;
    refused_before("STATUS", "1.1.0")
}

#[test]
fn rule_20_keys_that_it_does_not_know_do_not_matter() -> Result<()> {
    let Some(bed) = Bed::new("rule20")? else { return Ok(()) };
    let strange = json!({
        "unknown": {"deep": [1, {"x": null}]}, "capabilities": {"portMappings": true, "future": true, "io.kubernetes.cri.pod-annotations": true},
        "args": {"cni": {"labels": [{"key": "a", "value": "b"}], "other": 7}, "acme": {"x": 1}},
        "cni.dev/future": [1], "cni.dev/valid-attachments": [], "cni.dev/attachments": [], "disableCheck": "true",
        "runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"a": "b"}, "aliases": ["x"], "cgroupPath": "/x", "dns": {"servers": ["192.0.2.53"]}},
    });
    for mut network in Network::both(&bed)? {
        for plugin in &mut network.plugins {
            let capabilities = plugin["capabilities"].clone();
            *plugin = with(plugin, &strange);
            if plugin["type"] == "tuning" || plugin["type"] == "bridge" {
                plugin["capabilities"] = capabilities;
            }
        }
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        network.add(&who);
        assert_eq!(network.check(&who), Ok(()));
        network.status().expect("ready");
        network.del(&who);
        assert!(bed.veths()?.is_empty());
    }
    Ok(())
}

#[test]
fn rule_21_keys_count_in_any_letter_case() -> Result<()> {
    let Some(bed) = Bed::new("rule21")? else { return Ok(()) };
    for (index, change) in
        [str::to_owned, str::to_lowercase, str::to_uppercase, capitalised].into_iter().enumerate()
    {
        for mut network in Network::both(&bed)? {
            network = network.asking(18_080);
            let pod = Netns::new()?;
            let who = Who::new(&format!("c{index}"), &pod);
            let mut result = None;
            for at in 0..network.plugins.len() {
                let input = recased(&network.input(at, result.as_ref()), change);
                let name = network.plugins[at]["type"].as_str().context("a type")?;
                result = Some(call_of(&bed.program(name)?, "ADD", &who, &input).result());
            }
            let queues = Cmd::new("tc -j qdisc show").json()?.to_string();
            let rules = Cmd::new("nft -j list ruleset").json()?.to_string();
            assert_eq!(
                (queues.matches("tbf").count(), rules.contains("18080")),
                (2, true),
                "{queues} {rules}"
            );
            assert_eq!(device(&pod, "eth0")?["mtu"], 1450);
            network.del_bare(&who);
        }
    }
    Ok(())
}

fn capitalised(key: &str) -> String {
    let mut letters = key.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect()
}

/// The same document with other letters in its keys, but not in names of system settings.
fn recased(value: &Value, change: fn(&str) -> String) -> Value {
    match value {
        Value::Array(all) => all.iter().map(|v| recased(v, change)).collect(),
        Value::Object(all) => {
            let key = |key: &str| if key.contains('.') { key.to_owned() } else { change(key) };
            all.iter().map(|(k, v)| (key(k), recased(v, change))).collect()
        }
        other => other.clone(),
    }
}

#[test]
fn rule_22_null_and_what_older_readers_wrote_is_tolerated() -> Result<()> {
    let Some(bed) = Bed::new("rule22")? else { return Ok(()) };
    let nulls =
        json!({"args": null, "capabilities": null, "dns": null, "prevResult": null, "runtimeConfig": null});
    for mut network in Network::both(&bed)? {
        network.plugins[0] = with(&network.plugins[0], &nulls);
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        let result = network.add(&who);
        let mut empty = result.clone();
        empty["dns"] = json!({});
        let mut null = with(&result, &json!({"dns": null}));
        null["ips"][0]["version"] = json!("");
        let mut bare = result.clone();
        bare.as_object_mut().context("an object")?.remove("dns");
        bare["ips"][0].as_object_mut().context("an object")?.remove("gateway");
        for previous in [&empty, &null, &bare] {
            for index in 0..network.plugins.len() {
                network.call("CHECK", index, &who, Some(previous)).silent();
            }
            // A plugin of the chain passes it on.
            for index in 1..network.plugins.len() {
                network.call("ADD", index, &who, Some(previous)).result();
            }
        }
        network.del_with(&who, Some(&null));
        assert!(bed.veths()?.is_empty());
    }
    // What runtimes keep of the loopback device.
    let kept = json!({"cniVersion": "0.3.1", "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": "/n"}],
        "ips": [{"version": "", "interface": -1, "address": "127.0.0.1/8"}, {"address": "::1/128"}], "dns": {}});
    let (pod, program) = (Netns::new()?, bed.program("loopback")?);
    let lo = on(&Who::new("c1", &pod), "lo");
    let config =
        json!({"cniVersion": "0.4.0", "name": "cni-loopback", "type": "loopback", "prevResult": kept});
    for verb in ["CHECK", "DEL"] {
        call_of(&program, verb, &lo, &config).silent();
    }
    Ok(())
}

#[test]
fn rule_24_input_larger_than_a_pipe_and_interrupted_is_read_whole() -> Result<()> {
    let Some(bed) = Bed::new("rule24")? else { return Ok(()) };
    let pod = Netns::new()?;
    let many: Vec<Value> =
        (0..4000).map(|i| json!({"name": format!("veth{i}"), "mac": "", "sandbox": ""})).collect();
    let previous = json!({"cniVersion": "1.1.0", "interfaces": many});
    for name in ["bridge", "tuning", "loopback"] {
        let base = with(&bed.bridge(), &json!({"type": name, "prevResult": previous}));
        let input = base.to_string().into_bytes();
        assert!(input.len() > 128 << 10);
        let mut child = command(&bed.program(name)?, "ADD", &Who::new("c1", &pod)).spawn()?;
        let (pid, mut pipe) = (Pid::from_child(&child), child.stdin.take().context("a pipe")?);
        let writer = std::thread::spawn(move || -> Result<()> {
            for chunk in input.chunks(input.len() / 7 + 1) {
                pipe.write_all(chunk)?;
                for signal in [Signal::STOP, Signal::CONT, Signal::WINCH] {
                    kill_process(pid, signal)?;
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            Ok(())
        });
        let output = child.wait_with_output()?;
        writer.join().expect("no panic")?;
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
        let result: Value = serde_json::from_slice(&output.stdout)?;
        assert_eq!(result["interfaces"][3999]["name"], "veth3999", "{name}");
    }
    assert_eq!(addresses(&device(&pod, "eth0")?), ["10.99.0.2/24"]);
    call_of(
        &bed.program("bridge")?,
        "DEL",
        &Who::new("c1", &pod),
        &with(&bed.bridge(), &json!({"prevResult": previous})),
    )
    .silent();
    assert!(bed.veths()?.is_empty());
    call_of(
        &bed.program("bridge")?,
        "STATUS",
        &nobody(),
        &with(&bed.bridge(), &json!({"prevResult": previous})),
    )
    .silent();
    Ok(())
}

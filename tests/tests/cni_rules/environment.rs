//! Rules 1 to 8 and 23: what the environment says.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, process::Command};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::Netns;

use crate::{
    bed::{Answer, Bed, Who, command, feed, nobody},
    network::{NAMES, VERSIONS},
};

fn who() -> Who {
    Who { id: "c1".into(), ifname: "eth0".into(), netns: "/run/netns/does-not-exist".into() }
}

fn config(name: &str) -> Value {
    json!({"cniVersion": "1.1.0", "name": "net", "type": name})
}

/// A call with another environment.
fn called(
    bed: &Bed,
    name: &str,
    verb: &str,
    change: impl FnOnce(&mut Command) -> &mut Command,
) -> Result<Answer> {
    let mut command = command(&bed.program(name)?, verb, &who());
    change(&mut command);
    let config = crate::bed::with(
        &config(name),
        &json!({"stateDir": bed.path("state"),
        "ipam": {"type": "host-local", "dataDir": bed.path("networks"), "subnet": "10.99.0.0/24"}}),
    );
    Ok(feed(command, config.to_string().as_bytes()))
}

#[test]
fn rule_01_version_needs_nothing_else_and_reads_nothing() -> Result<()> {
    let Some(bed) = Bed::new("rule01")? else { return Ok(()) };
    for name in NAMES {
        let mut command = command(&bed.program(name)?, "", &nobody());
        command.env_clear().env("CNI_COMMAND", "VERSION");
        let mut child = command.spawn()?;
        let held_open = child.stdin.take().context("a pipe")?;
        let output = child.wait_with_output()?;
        drop(held_open);
        assert!(output.status.success(), "{name}: {output:?}");
        let reply: Value = serde_json::from_slice(&output.stdout)?;
        assert_eq!(reply["cniVersion"], "1.1.0", "{name}");
        for version in &VERSIONS[3..] {
            let all = reply["supportedVersions"].as_array().context("a list")?;
            assert!(all.contains(&json!(version)), "{name}: {version} in {reply}");
        }
    }
    Ok(())
}

#[test]
fn rule_02_without_a_command_it_tells_its_versions_on_stderr() -> Result<()> {
    let Some(bed) = Bed::new("rule02")? else { return Ok(()) };
    for name in NAMES {
        for empty in [false, true] {
            let mut command = command(&bed.program(name)?, "", &nobody());
            command.env_clear();
            if empty {
                command.env("CNI_COMMAND", "");
            }
            let answer = feed(command, b"");
            answer.silent();
            let told = answer.err.contains("CNI protocol versions supported: 0.1.0");
            assert!(told && answer.err.contains("1.1.0"), "{name}: {answer:?}");
        }
    }
    Ok(())
}

#[test]
fn rule_03_an_unknown_command_is_code_4() -> Result<()> {
    let Some(bed) = Bed::new("rule03")? else { return Ok(()) };
    for name in NAMES {
        for verb in ["FOO", "add", "ADD ", "UPDATE"] {
            let (code, text) = called(&bed, name, verb, |c| c)?.error();
            assert_eq!((code, text), (4, format!("unknown CNI_COMMAND: {verb}")), "{name}");
        }
    }
    Ok(())
}

#[test]
fn rule_04_every_missing_variable_is_named_at_once() -> Result<()> {
    let Some(bed) = Bed::new("rule04")? else { return Ok(()) };
    let all = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"];
    for (verb, needed) in [
        ("ADD", &all[..]),
        ("CHECK", &all[..]),
        ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"][..]),
        ("GC", &["CNI_PATH"][..]),
    ] {
        for mask in 1..1_u32 << needed.len() {
            let is_missing = |at: usize| mask >> at & 1 == 1;
            let part =
                |missing: bool| needed.iter().enumerate().filter(move |(at, _)| is_missing(*at) == missing);
            let names = |missing: bool| part(missing).map(|(_, name)| *name).collect::<Vec<&str>>();
            let (missing, present) = (names(true), names(false));
            for empty in [false, true] {
                let (code, text) = called(&bed, "flannel", verb, |command| {
                    for name in &missing {
                        if empty {
                            command.env(name, "")
                        } else {
                            command.env_remove(name)
                        };
                    }
                    command
                })?
                .error();
                assert_eq!(code, 4, "{verb}: {text}");
                assert!(missing.iter().all(|name| text.contains(name)), "{verb} {missing:?}: {text}");
                assert!(!present.iter().any(|name| text.contains(name)), "{verb} {present:?}: {text}");
            }
        }
    }
    for name in NAMES {
        let text = called(&bed, name, "ADD", |c| c.env_clear().env("CNI_COMMAND", "ADD"))?.error().1;
        assert_eq!(text, "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH] missing");
    }
    Ok(())
}

#[test]
fn rule_05_del_without_a_namespace_is_accepted() -> Result<()> {
    let Some(bed) = Bed::new("rule05")? else { return Ok(()) };
    for name in NAMES {
        called(&bed, name, "DEL", |c| c.env_remove("CNI_NETNS"))?.silent();
        called(&bed, name, "DEL", |c| c.env("CNI_NETNS", ""))?.silent();
    }
    Ok(())
}

#[test]
fn rule_06_status_and_gc_need_no_container() -> Result<()> {
    let Some(bed) = Bed::new("rule06")? else { return Ok(()) };
    bed.flannel()?;
    for name in NAMES {
        for verb in ["STATUS", "GC"] {
            let bare = |c: &mut Command| {
                for variable in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
                    c.env_remove(variable);
                }
            };
            let mut command = command(&bed.program(name)?, verb, &who());
            bare(&mut command);
            let base = if name == "flannel" { bed.flannel()? } else { config(name) };
            let config = crate::bed::with(
                &base,
                &json!({"cniVersion": "1.1.0", "stateDir": bed.path("state"),
                "ipam": {"type": "host-local", "dataDir": bed.path("networks"), "subnet": "10.99.0.0/24"}}),
            );
            feed(command, config.to_string().as_bytes()).silent();
        }
    }
    Ok(())
}

/// Every program refuses each of these values of the variable, for each verb; DEL takes `right`.
fn refused_values(variable: &str, wrong: &[&[u8]], right: &str) -> Result<()> {
    let Some(bed) = Bed::new("values")? else { return Ok(()) };
    for name in NAMES {
        for value in wrong {
            for verb in ["ADD", "DEL", "CHECK"] {
                let answer = called(&bed, name, verb, |c| c.env(variable, OsStr::from_bytes(value)))?;
                assert_eq!(answer.error().0, 4, "{name} {verb} {}", value.escape_ascii());
            }
        }
        called(&bed, name, "DEL", |c| c.env(variable, right))?.silent();
    }
    Ok(())
}

#[test]
fn rule_07_a_container_id_of_other_characters_is_code_4() -> Result<()> {
    let wrong: [&[u8]; 10] =
        [b"a b", b"-a", b".a", b"_a", b"a/b", b"../a", b"a\n", b"a:b", "a\u{e4}".as_bytes(), b"a\xff"];
    refused_values("CNI_CONTAINERID", &wrong, "0a_b.c-D")
}

#[test]
fn rule_08_an_interface_name_that_is_none_is_code_4() -> Result<()> {
    let wrong: [&[u8]; 9] =
        [b"sixteen-bytes-xx", b".", b"..", b"a/b", b"a:b", b"a b", b"a\tb", b"a\n", b"\xffeth0/"];
    refused_values("CNI_IFNAME", &wrong, "fifteen.bytes-x")
}

#[test]
fn rule_23_an_unknown_argument_is_an_error_unless_it_is_to_be_ignored() -> Result<()> {
    let Some(bed) = Bed::new("rule23")? else { return Ok(()) };
    let attempt = |arguments: &str, verb: &str| -> Result<Answer> {
        let pod = Netns::new()?;
        let mut command = command(&bed.program("bridge")?, verb, &Who::new("c1", &pod));
        command.env("CNI_ARGS", arguments);
        Ok(feed(command, bed.bridge().to_string().as_bytes()))
    };
    for wrong in [
        "FOO=bar",
        "IgnoreUnknown=0;FOO=bar",
        "FOO",
        "IgnoreUnknown=1;FOO",
        "IgnoreUnknown=1;A=b=c",
        "IgnoreUnknown=true;=;FOO",
        "IgnoreUnknown=perhaps",
    ] {
        assert_eq!(attempt(wrong, "ADD")?.error().0, 4, "{wrong}");
        assert!(bed.veths()?.is_empty() && bed.reservations("net").is_empty(), "{wrong}");
    }
    for fine in [
        "",
        "IgnoreUnknown=1",
        "IgnoreUnknown=1;FOO=bar",
        "FOO=bar;IgnoreUnknown=true",
        "IP=10.99.0.9",
        "K8S_POD_NAMESPACE=a;IgnoreUnknown=1;K8S_POD_NAME=b;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=",
    ] {
        attempt(fine, "ADD")?.result();
        attempt(fine, "DEL")?.silent();
    }
    Ok(())
}

//! Plugins of other packages, executed for addresses and as flannel's delegate.

use std::{fs, os::unix::fs::PermissionsExt};

use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Cmd, Netns};

use crate::bed::{Answer, Bed, Who, addresses, call, command, device, feed, reference, with};

/// A plugin that notes each call and what it got, and answers what `answers` says for ADD.
pub(crate) fn scripted(bed: &Bed, name: &str, answer: &str) -> Result<()> {
    let log = bed.path("calls");
    let text = format!(
        "#!/bin/sh\n{{ echo \"$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME\"; cat; echo; }} >> {}\n{answer}\n",
        log.display()
    );
    let path = bed.dir.write(&format!("bin/{name}"), text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The verbs of all calls.
pub(crate) fn verbs(bed: &Bed) -> Vec<String> {
    let text = fs::read_to_string(bed.path("calls")).unwrap_or_default();
    let known = ["ADD", "DEL", "CHECK", "GC", "STATUS"];
    let lines = text.lines().filter_map(|line| line.split(' ').next().filter(|verb| known.contains(verb)));
    lines.map(str::to_owned).collect()
}

/// A call that finds the scripted plugins.
pub(crate) fn ask(bed: &Bed, verb: &str, who: &Who, config: &Value) -> Answer {
    let mut command = command(&testkit::bin("flannel"), verb, who);
    command.env("CNI_PATH", format!("{}:/usr/lib/cni", bed.path("bin").display()));
    feed(command, config.to_string().as_bytes())
}

fn static_ipam(bed: &Bed) -> Value {
    let ipam = json!({"type": "static", "addresses": [{"address": "10.93.0.7/24", "gateway": "10.93.0.1"}],
        "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["192.0.2.53"]}});
    with(&bed.bridge(), &json!({"cniVersion": "1.0.0", "ipam": ipam}))
}

#[test]
fn a_foreign_ipam_gives_the_addresses() -> Result<()> {
    let (Some(_), Some(bed)) = (reference("static"), Bed::new("static")?) else { return Ok(()) };
    let pod = Netns::new()?;
    let (who, config) = (Who::new("c1", &pod), static_ipam(&bed));
    let result = call("ADD", &who, &config).result();
    assert_eq!(result["ips"], json!([{"address": "10.93.0.7/24", "gateway": "10.93.0.1", "interface": 2}]));
    assert_eq!(result["dns"], json!({"nameservers": ["192.0.2.53"]}));
    assert_eq!(addresses(&device(&pod, "eth0")?), ["10.93.0.7/24"]);
    pod.cmd("ping -n -c1 -W2 10.93.0.1").ok()?;
    let checked = with(&config, &json!({"prevResult": result}));
    call("CHECK", &who, &checked).silent();
    pod.cmd("ip address flush dev eth0").ok()?;
    call("CHECK", &who, &checked).error();
    for _ in 0..2 {
        call("DEL", &who, &config).silent();
    }
    assert_eq!((bed.veths()?.len(), bed.records("net").len()), (0, 0));
    Ok(())
}

#[test]
fn every_verb_reaches_a_foreign_ipam_and_its_error_is_passed_on() -> Result<()> {
    let Some(bed) = Bed::new("verbs")? else { return Ok(()) };
    let answer = r#"[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.1.0","ips":[{"address":"10.93.0.8/24","gateway":"10.93.0.1"}]}'; exit 0"#;
    scripted(&bed, "mine", answer)?;
    let (pod, other) = (Netns::new()?, Netns::new()?);
    let who = Who::new("c1", &pod);
    let config = with(&bed.bridge(), &json!({"ipam": {"type": "mine", "x": "y"}}));
    let result = ask(&bed, "ADD", &who, &config).result();
    ask(&bed, "CHECK", &who, &with(&config, &json!({"prevResult": result}))).silent();
    ask(&bed, "STATUS", &who, &config).silent();
    let valid = json!([{"containerID": "c1", "ifname": "eth0"}]);
    ask(&bed, "GC", &who, &with(&config, &json!({"cni.dev/valid-attachments": valid}))).silent();
    ask(&bed, "DEL", &who, &config).silent();
    assert_eq!(verbs(&bed), ["ADD", "CHECK", "STATUS", "GC", "DEL"]);
    let calls = fs::read_to_string(bed.path("calls"))?;
    assert!(
        calls.contains("ADD c1 eth0\n")
            && calls.contains("valid-attachments")
            && calls.contains("\"x\":\"y\"")
    );

    fs::remove_file(bed.path("calls"))?;
    scripted(&bed, "mine", r#"echo '{"code":114,"msg":"pool is gone","details":"why"}'; exit 1"#)?;
    let (code, text) = ask(&bed, "ADD", &Who::new("c2", &other), &config).error();
    assert_eq!((code, text.as_str()), (114, "plugin mine: pool is gone"));
    assert_eq!(verbs(&bed), ["ADD", "DEL"]);
    scripted(&bed, "mine", "echo panic: oh; exit 2")?;
    let (code, text) = ask(&bed, "ADD", &Who::new("c2", &other), &config).error();
    assert_eq!(code, 999);
    assert!(text.starts_with("plugin mine failed with exit status: 2: \"panic: oh\""), "{text}");
    scripted(&bed, "mine", "exec head -c 200000 /dev/zero")?;
    ask(&bed, "ADD", &Who::new("c2", &other), &config).error();
    let (_, text) = ask(&bed, "ADD", &who, &with(&config, &json!({"ipam": {"type": "absent"}}))).error();
    assert!(text.starts_with("failed to find plugin \"absent\" in path ["), "{text}");
    assert!(bed.records("net").is_empty());
    assert_eq!(bed.veths()?.len(), 0);
    Ok(())
}

#[test]
fn a_later_failure_takes_a_foreign_address_back() -> Result<()> {
    let Some(bed) = Bed::new("back")? else { return Ok(()) };
    let answer = r#"[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.1.0","ips":[{"address":"10.93.0.8/24","gateway":"10.93.0.1"}],"routes":[{"dst":"192.0.2.0/24","gw":"203.0.113.1"}]}'; exit 0"#;
    scripted(&bed, "mine", answer)?;
    let pod = Netns::new()?;
    let config = with(&bed.bridge(), &json!({"ipam": {"type": "mine"}}));
    let (_, text) = ask(&bed, "ADD", &Who::new("c1", &pod), &config).error();
    assert!(text.contains("failed to add route"), "{text}");
    assert_eq!((verbs(&bed), bed.veths()?.len()), (vec!["ADD".into(), "DEL".into()], 0));
    Ok(())
}

/// A flannel network whose pods are routed by the reference's `ptp`.
fn delegated(bed: &Bed) -> Result<Value> {
    let config = bed.flannel()?;
    Ok(with(&config, &json!({"delegate": {"type": "ptp"}})))
}

#[test]
fn a_foreign_delegate_does_it_all() -> Result<()> {
    let (Some(_), Some(bed)) = (reference("ptp"), Bed::new("ptp")?) else { return Ok(()) };
    bed.program("host-local")?;
    let pod = Netns::new()?;
    let (who, config) = (Who::new("c1", &pod), delegated(&bed)?);
    let result = ask(&bed, "ADD", &who, &config).result();
    assert_eq!(addresses(&device(&pod, "eth0")?), ["10.42.3.2/24"]);
    assert!(Cmd::new("ip link show type bridge").ok()?.stdout.is_empty());
    let scratch: Value = serde_json::from_slice(&fs::read(bed.path("flannel/c1"))?)?;
    assert_eq!(
        (&scratch["type"], &scratch["ipam"]["ranges"]),
        (&json!("ptp"), &json!([[{"subnet": "10.42.3.0/24"}]]))
    );
    // The packaged ptp does not find a route without a gateway again, and says so.
    let (_, text) = ask(&bed, "CHECK", &who, &with(&config, &json!({"prevResult": result}))).error();
    assert!(text.starts_with("plugin ptp: "), "{text}");
    let other = Netns::new()?;
    let second = Who { ifname: "eth1".into(), ..Who::new("c1", &other) };
    ask(&bed, "ADD", &second, &config).result();
    assert_eq!(fs::read_dir(bed.path("flannel"))?.count(), 2, "one file per interface");
    fs::remove_file(bed.path("subnet.env"))?;
    ask(&bed, "DEL", &who, &config).silent();
    assert_eq!(bed.reservations("cbr0"), ["10.42.3.3"]);
    assert_ne!(device(&other, "eth1")?, Value::Null);
    ask(&bed, "DEL", &second, &config).silent();
    assert_eq!((bed.reservations("cbr0").len(), bed.veths()?.len()), (0, 0));
    assert_eq!(fs::read_dir(bed.path("flannel"))?.count(), 0);
    Ok(())
}

#[test]
fn rule_26_28_30_a_delegates_del_never_removes_what_its_add_did_not_make() -> Result<()> {
    let (Some(_), Some(bed)) = (reference("ptp"), Bed::new("guard")?) else { return Ok(()) };
    bed.program("host-local")?;
    let (pod, config) = (Netns::new()?, delegated(&bed)?);
    let who = Who::new("c1", &pod);
    Cmd::new("ip link add eth0 type veth peer name up0").ok()?;
    let own = Who { netns: bed.host.path().display().to_string(), ..who.clone() };
    assert_eq!(ask(&bed, "ADD", &own, &config).error().0, 8);
    ask(&bed, "ADD", &who, &config).result();
    let there = device(&pod, "eth0")?;
    for config in [&config, &bed.flannel()?] {
        assert!(ask(&bed, "ADD", &who, config).error().1.contains("(\"eth0\")"), "a second one");
    }
    let stranger = Who::new("c2", &pod);
    ask(&bed, "ADD", &stranger, &config).error();
    assert_eq!((device(&pod, "eth0")?, bed.reservations("cbr0").len()), (there, 1));
    assert!(bed.path("flannel/c1").exists() && !bed.path("flannel/c2").exists());
    Cmd::new("ip link show eth0").ok().map(drop)
}

#[test]
fn rule_44_54_what_was_a_bridge_goes_when_another_is_delegated_by_now() -> Result<()> {
    let Some(bed) = Bed::new("wasbridge")? else { return Ok(()) };
    scripted(&bed, "mine", "exit 0")?;
    let bridge = with(&bed.flannel()?, &json!({"cniVersion": "1.1.0"}));
    let mine = with(&bridge, &json!({"delegate": {"type": "mine"}}));
    let is_gone = || {
        Ok::<_, anyhow::Error>((
            bed.veths()?.len(),
            bed.records("cbr0").len(),
            bed.reservations("cbr0").len(),
        ))
    };
    for verb in ["GC", "DEL"] {
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        ask(&bed, "ADD", &who, &bridge).result();
        fs::remove_file(bed.path("flannel/c1"))?;
        ask(&bed, verb, &who.homeless(), &with(&mine, &json!({"cni.dev/valid-attachments": []}))).silent();
        assert_eq!(is_gone()?, (0, 0, 0), "{verb}");
    }
    Ok(())
}

#[test]
fn rule_44_the_addresses_are_released_where_they_were_reserved() -> Result<()> {
    let Some(bed) = Bed::new("wasours")? else { return Ok(()) };
    scripted(&bed, "mine", "echo '{\"code\":7,\"msg\":\"who?\"}'; exit 1")?;
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    ask(&bed, "ADD", &who, &bed.bridge()).result();
    ask(&bed, "DEL", &who, &with(&bed.bridge(), &json!({"ipam": {"type": "mine"}}))).silent();
    assert_eq!((bed.reservations("net").len(), bed.records("net").len(), verbs(&bed).len()), (0, 0, 0));
    Ok(())
}

#[test]
fn a_delegate_that_refuses_the_version_leaves_nothing_and_can_be_deleted_in_another() -> Result<()> {
    let Some(bed) = Bed::new("version")? else { return Ok(()) };
    let answer = r#"cat > "${0%/*}/config"; grep -q 1.1.0 "${0%/*}/config" || exit 0
        echo '{"cniVersion":"1.0.0","code":1,"msg":"incompatible CNI versions"}'; exit 1"#;
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let newer = with(&bed.flannel()?, &json!({"cniVersion": "1.1.0", "delegate": {"type": "mine"}}));
    let path = bed.dir.write("bin/mine", format!("#!/bin/sh\n{answer}\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    assert_eq!(ask(&bed, "ADD", &who, &newer).error().0, 1);
    assert!(!bed.path("flannel/c1").exists());
    bed.dir.write("flannel/c1", newer.to_string().replace("\"flannel\"", "\"mine\""))?;
    ask(&bed, "DEL", &who, &with(&newer, &json!({"cniVersion": "1.0.0"}))).silent();
    assert!(!bed.path("flannel/c1").exists());
    Ok(())
}

#[test]
fn a_failed_delegate_is_taken_back() -> Result<()> {
    let Some(bed) = Bed::new("failed")? else { return Ok(()) };
    scripted(&bed, "mine", r#"[ "$CNI_COMMAND" = ADD ] || exit 0; echo '{"code":7,"msg":"no"}'; exit 1"#)?;
    let pod = Netns::new()?;
    let config = with(&bed.flannel()?, &json!({"cniVersion": "1.1.0", "delegate": {"type": "mine"}}));
    let who = Who::new("c1", &pod);
    assert_eq!(ask(&bed, "ADD", &who, &config).error(), (7, "plugin mine: no".into()));
    ask(&bed, "STATUS", &who, &config).silent();
    ask(&bed, "GC", &who, &with(&config, &json!({"cni.dev/valid-attachments": []}))).silent();
    assert_eq!(verbs(&bed), ["ADD", "DEL", "STATUS", "GC"]);
    assert_eq!(fs::read_dir(bed.path("flannel"))?.count(), 0);
    let escape = with(&config, &json!({"delegate": {"type": "../sh"}}));
    assert_eq!(ask(&bed, "ADD", &who, &escape).error().0, 7);
    Ok(())
}

#[test]
fn rule_59_gc_goes_on_after_a_failure_and_tells_it() -> Result<()> {
    let Some(bed) = Bed::new("goeson")? else { return Ok(()) };
    let answer = r#"[ "$CNI_COMMAND" = GC ] && { echo '{"code":5,"msg":"disk"}'; exit 1; }
        [ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.1.0","ips":[{"address":"10.93.0.8/24","gateway":"10.93.0.1"}]}'; exit 0"#;
    scripted(&bed, "mine", answer)?;
    let pod = Netns::new()?;
    let config = with(&bed.bridge(), &json!({"ipMasq": true, "ipam": {"type": "mine"}}));
    let who = Who::new("c1", &pod);
    ask(&bed, "ADD", &who, &config).result();
    let collected = ask(&bed, "GC", &who, &with(&config, &json!({"cni.dev/valid-attachments": []})));
    assert_eq!(collected.error(), (5, "plugin mine: disk".into()));
    assert_eq!((bed.veths()?.len(), bed.records("net").len()), (0, 0));
    assert!(!Cmd::new("nft list ruleset").ok()?.stdout.contains("weft:net/c1"));
    Ok(())
}

#[test]
fn a_foreign_ipam_finds_the_interface_in_its_place() -> Result<()> {
    let Some(bed) = Bed::new("early")? else { return Ok(()) };
    let answer = r#"if [ "$CNI_COMMAND" = ADD ]; then
        nsenter --net="$CNI_NETNS" ip -j link show "$CNI_IFNAME" > "${0%/*}/seen" || exit 1
        echo '{"cniVersion":"1.1.0","ips":[{"address":"10.93.0.8/24","gateway":"10.93.0.1"}]}'
    fi"#;
    scripted(&bed, "mine", answer)?;
    let pod = Netns::new()?;
    let (who, config) = (Who::new("c1", &pod), with(&bed.bridge(), &json!({"ipam": {"type": "mine"}})));
    let result = ask(&bed, "ADD", &who, &config).result();
    let seen: Value = serde_json::from_slice(&fs::read(bed.path("bin/seen"))?)?;
    assert_eq!(seen[0]["address"], device(&pod, "eth0")?["address"], "the one that a lease is for");
    pod.cmd("ping -n -c1 -W2 10.93.0.1").ok()?;
    ask(&bed, "CHECK", &who, &with(&config, &json!({"prevResult": result}))).silent();
    ask(&bed, "DEL", &who, &config).silent();
    assert_eq!((bed.veths()?.len(), bed.records("net").len()), (0, 0));
    Ok(())
}

#[test]
fn del_does_not_ask_a_foreign_ipam_that_add_did_not_find() -> Result<()> {
    let Some(bed) = Bed::new("absent")? else { return Ok(()) };
    let pod = Netns::new()?;
    let (who, config) = (Who::new("c1", &pod), with(&bed.bridge(), &json!({"ipam": {"type": "mine"}})));
    let (_, text) = ask(&bed, "ADD", &who, &config).error();
    assert!(text.starts_with("failed to find plugin \"mine\""), "{text}");
    ask(&bed, "DEL", &who, &config).silent();
    scripted(&bed, "mine", r#"echo '{"cniVersion":"1.1.0","ips":[{"address":"10.93.0.8/24"}]}'"#)?;
    ask(&bed, "ADD", &who, &config).result();
    fs::remove_file(bed.path("bin/mine"))?;
    assert!(
        ask(&bed, "DEL", &who, &config).error().1.starts_with("failed to find plugin"),
        "it holds an address"
    );
    Ok(())
}

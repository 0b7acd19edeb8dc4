//! DEL: complete whatever is missing, and never anybody else's.

use std::fs;

use anyhow::Result;
use serde_json::{Value, json};
use testkit::Netns;

use crate::bed::{Bed, Who, call, device, with};

/// One attached pod of a bridge network.
fn attached(bed: &Bed, id: &str) -> Result<(Netns, Who, Value)> {
    let pod = Netns::new()?;
    let who = Who::new(id, &pod);
    let result = call("ADD", &who, &bed.bridge()).result();
    Ok((pod, who, result))
}

fn assert_gone(bed: &Bed, what: &str) -> Result<()> {
    assert!(bed.records("net").is_empty(), "{what}");
    assert_eq!((bed.reservations("net"), bed.veths()?), (vec![], vec![]), "{what}");
    Ok(())
}

#[test]
fn rule_37_38_39_everything_goes_and_repeats_are_fine() -> Result<()> {
    let Some(bed) = Bed::new("del")? else { return Ok(()) };
    let (pod, who, result) = attached(&bed, "c1")?;
    let config = with(&bed.bridge(), &json!({"prevResult": result}));
    for round in 0..3 {
        call("DEL", &who, &config).silent();
        assert_gone(&bed, &format!("round {round}"))?;
        assert_eq!(device(&pod, "eth0")?, Value::Null);
    }
    call("DEL", &who.homeless(), &bed.bridge()).silent();
    call("DEL", &Who { id: "never".into(), ..who }, &bed.bridge()).silent();
    Ok(())
}

#[test]
fn rule_05_40_41_42_without_a_namespace_or_a_previous_result_it_is_still_complete() -> Result<()> {
    let Some(bed) = Bed::new("homeless")? else { return Ok(()) };
    let (pod, who, _) = attached(&bed, "c1")?;
    call("DEL", &who.homeless(), &bed.bridge()).silent();
    assert_gone(&bed, "empty CNI_NETNS while the pod lives")?;
    assert_eq!(device(&pod, "eth0")?, Value::Null);

    let (_pod, who, _) = attached(&bed, "c2")?;
    call("DEL", &Who { netns: "/run/netns/is-gone".into(), ..who.clone() }, &bed.bridge()).silent();
    assert_gone(&bed, "missing path")?;

    let (_pod, who, _) = attached(&bed, "c3")?;
    call("DEL", &Who { netns: "/dev/null".into(), ..who.clone() }, &bed.bridge()).silent();
    assert_gone(&bed, "a path that is no namespace any more")?;

    let (_pod, who, _) = attached(&bed, "c4")?;
    call("DEL", &Who { netns: "/proc/self/ns/net".into(), ..who.clone() }, &bed.bridge()).silent();
    assert_gone(&bed, "the plugin's own namespace")?;

    let (pod, who, _) = attached(&bed, "c5")?;
    drop(pod);
    call("DEL", &who, &bed.bridge()).silent();
    assert_gone(&bed, "the namespace is gone")
}

#[test]
fn rule_43_44_a_changed_configuration_still_removes_what_add_made() -> Result<()> {
    let Some(bed) = Bed::new("changed")? else { return Ok(()) };
    let (_pod, who, result) = attached(&bed, "c1")?;
    let ranges = json!([[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]]);
    let changed = json!({
        "bridge": "br9", "mtu": 9, "cniVersion": "0.4.0", "prevResult": result,
        "ipam": {"type": "host-local", "dataDir": bed.path("networks"), "ranges": ranges},
    });
    call("DEL", &who, &with(&bed.bridge(), &changed)).silent();
    assert_gone(&bed, "other bridge and ranges")?;
    let (_pod, who, _) = attached(&bed, "c2")?;
    let ipam =
        json!({"type": "host-local", "dataDir": bed.path("networks"), "ranges": [["garbage"]], "routes": 7});
    call("DEL", &who, &with(&bed.bridge(), &json!({"ipam": ipam}))).silent();
    assert_gone(&bed, "garbled ranges")
}

#[test]
fn rule_45_46_a_missing_subnet_file_and_a_garbled_state_are_fine() -> Result<()> {
    let Some(bed) = Bed::new("noenv")? else { return Ok(()) };
    let config = bed.flannel()?;
    let damages = [
        "",
        "\0\0\0",
        "{\"name\":",
        r#"{"name":"cbr0","type":"../../bin/false"}"#,
        r#"{"name":"cbr0","type":"bridge","ipam":7}"#,
    ];
    for (round, garbage) in damages.into_iter().enumerate() {
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        bed.flannel()?;
        call("ADD", &who, &config).result();
        fs::remove_file(bed.path("subnet.env"))?;
        let scratch = bed.dir.write("flannel/c1", garbage)?;
        bed.dir.write("networks/cbr0/10.42.3.200", garbage)?;
        call("DEL", &who.homeless(), &config).silent();
        assert_eq!(bed.reservations("cbr0"), ["10.42.3.200"], "round {round}");
        assert!(bed.veths()?.is_empty() && !scratch.exists());
    }
    Ok(())
}

#[test]
fn a_garbled_reservation_of_its_own_goes_too() -> Result<()> {
    let Some(bed) = Bed::new("own")? else { return Ok(()) };
    for (garbage, homeless) in [("", true), ("\0\0", false)] {
        let (_pod, who, _) = attached(&bed, "c1")?;
        let file = bed.reservations("net").remove(0);
        bed.dir.write(&format!("networks/net/{file}"), garbage)?;
        call("DEL", &if homeless { who.homeless() } else { who }, &bed.bridge()).silent();
        assert_gone(&bed, garbage)?;
    }
    Ok(())
}

#[test]
fn rule_47_what_a_later_pod_got_is_not_touched() -> Result<()> {
    let Some(bed) = Bed::new("later")? else { return Ok(()) };
    let (_pod, who, result) = attached(&bed, "c1")?;
    call("DEL", &who, &bed.bridge()).silent();
    let later = Netns::new()?;
    let asked = with(&bed.bridge(), &json!({"runtimeConfig": {"ips": ["10.99.0.2"]}}));
    let second = Who::new("c2", &later);
    call("ADD", &second, &asked).result();
    call("DEL", &who, &with(&bed.bridge(), &json!({"prevResult": result}))).silent();
    assert_eq!(bed.reservations("net"), ["10.99.0.2"]);
    later.cmd("ping -n -c1 -W2 10.99.0.1").ok()?;
    Ok(())
}

#[test]
fn the_interface_of_another_network_stays() -> Result<()> {
    let Some(bed) = Bed::new("other")? else { return Ok(()) };
    let (pod, who, _) = attached(&bed, "c1")?;
    let other = with(&bed.bridge(), &json!({"name": "other", "bridge": "br1"}));
    assert!(call("ADD", &who, &other).error().1.ends_with("already exists"));
    call("DEL", &who, &other).silent();
    pod.cmd("ping -n -c1 -W2 10.99.0.1").ok()?;
    assert_eq!(bed.reservations("net"), ["10.99.0.2"]);
    Ok(())
}

#[test]
fn rule_48_errors_that_are_the_callers_are_not_swallowed() -> Result<()> {
    let Some(bed) = Bed::new("caller")? else { return Ok(()) };
    let (_pod, who, _) = attached(&bed, "c1")?;
    assert_eq!(call("DEL", &who, &json!("x")).error().0, 6);
    assert_eq!(call("DEL", &who, &with(&bed.bridge(), &json!({"ipam": 7}))).error().0, 6);
    assert_eq!(call("DEL", &who, &with(&bed.bridge(), &json!({"name": ""}))).error().0, 7);
    assert_eq!(bed.reservations("net"), ["10.99.0.2"]);
    Ok(())
}

#[test]
fn a_lock_that_is_held_is_waited_for_with_a_limit() -> Result<()> {
    let Some(bed) = Bed::new("lock")? else { return Ok(()) };
    let folder = bed.path("networks/net");
    fs::create_dir_all(&folder)?;
    let lock = folder.join("lock");
    let hold = |seconds: &str| {
        let held = bed.path(&format!("held{seconds}"));
        let cmd =
            testkit::Cmd::shell(format!("flock {} sh -c 'echo held; exec sleep {seconds}'", lock.display()));
        let mut holder = testkit::Process::spawn(&cmd, &held)?;
        holder.wait_for_log("held", std::time::Duration::from_secs(5))?;
        anyhow::Ok(holder)
    };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let short = hold("1")?;
    call("ADD", &who, &bed.bridge()).result();
    call("DEL", &who, &bed.bridge()).silent();
    drop(short);
    let _long = hold("60")?;
    let start = std::time::Instant::now();
    let (code, text) = call("ADD", &who, &bed.bridge()).error();
    assert!(start.elapsed().as_secs() < 15, "answered after {:?}", start.elapsed());
    assert_eq!(code, 11);
    assert!(text.starts_with(&format!("failed to lock {}", lock.display())), "{text}");
    assert!(bed.veths()?.is_empty());
    Ok(())
}

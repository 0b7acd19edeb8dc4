//! DEL: complete whatever is missing, and never anybody else's.

use std::fs;

use anyhow::Result;
use serde_json::json;
use testkit::Netns;

use crate::bed::{Bed, Who, call, with};

/// One attached pod of a bridge network.
fn attached(bed: &Bed, id: &str) -> Result<(Netns, Who)> {
    let pod = Netns::new()?;
    let who = Who::new(id, &pod);
    call("ADD", &who, &bed.bridge()).result();
    Ok((pod, who))
}

fn assert_gone(bed: &Bed, what: &str) -> Result<()> {
    assert!(bed.records("net").is_empty(), "{what}");
    assert_eq!((bed.reservations("net"), bed.veths()?), (vec![], vec![]), "{what}");
    Ok(())
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
        let (_pod, who) = attached(&bed, "c1")?;
        let file = bed.reservations("net").remove(0);
        bed.dir.write(&format!("networks/net/{file}"), garbage)?;
        call("DEL", &if homeless { who.homeless() } else { who }, &bed.bridge()).silent();
        assert_gone(&bed, garbage)?;
    }
    Ok(())
}

#[test]
fn the_interface_of_another_network_stays() -> Result<()> {
    let Some(bed) = Bed::new("other")? else { return Ok(()) };
    let (pod, who) = attached(&bed, "c1")?;
    let other = with(&bed.bridge(), &json!({"name": "other", "bridge": "br1"}));
    assert!(call("ADD", &who, &other).error().1.ends_with("already exists"));
    call("DEL", &who, &other).silent();
    pod.cmd("ping -n -c1 -W2 10.99.0.1").ok()?;
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

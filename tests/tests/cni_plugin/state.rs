//! What outlives a call: records of attachments, reservations, and what happens to them after crashes, boots
//! and pods that went without DEL.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;
use testkit::{Cmd, Netns, Process};

use crate::bed::{Bed, Who, address, call, with};

#[test]
fn an_attachment_has_one_record_until_it_goes() -> Result<()> {
    let Some(bed) = Bed::new("record")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let config = with(&bed.bridge(), &json!({"ipMasq": true}));
    call("ADD", &who, &config).result();
    let text = fs::read_to_string(bed.path("state/attachments/net/c1-eth0"))?;
    for line in
        ["container c1", "interface eth0", "address 0 10.99.0.2/24", "masquerade", "host net:[", "made "]
    {
        assert!(text.contains(line), "{line} in {text}");
    }
    let long = Who { id: "x".repeat(300), ifname: "eth1".into(), ..who.clone() };
    call("ADD", &long, &with(&config, &json!({"isDefaultGateway": false}))).result();
    assert_eq!(bed.records("net").len(), 2);
    call("DEL", &long.homeless(), &config).silent();
    call("DEL", &who.homeless(), &config).silent();
    assert_eq!((bed.records("net"), bed.reservations("net")), (vec![], vec![]));
    let dashes = Who { id: "c1-eth0".into(), ifname: "a-b".into(), ..who };
    call("ADD", &dashes, &config).result();
    call("DEL", &dashes, &config).silent();
    assert!(bed.records("net").is_empty() && bed.veths()?.is_empty());
    Ok(())
}

#[test]
fn rule_44_a_configuration_of_another_folder_and_without_addresses() -> Result<()> {
    let Some(bed) = Bed::new("moved")? else { return Ok(()) };
    for changed in [json!({"ipam": {"type": "host-local", "dataDir": "/nowhere"}}), json!({"ipam": {}})] {
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        let config = with(&bed.bridge(), &json!({"ipMasq": true}));
        call("ADD", &who, &config).result();
        call("DEL", &who.homeless(), &with(&bed.bridge(), &changed)).silent();
        assert_eq!((bed.reservations("net").len(), bed.veths()?.len()), (0, 0), "{changed}");
        assert!(!Cmd::new("nft list ruleset").ok()?.stdout.contains("weft:net/c1"), "{changed}");
    }
    Ok(())
}

#[test]
fn rule_46_a_garbled_record_hides_nothing() -> Result<()> {
    let Some(bed) = Bed::new("corrupt")? else { return Ok(()) };
    let config = with(&bed.bridge(), &json!({"ipMasq": true}));
    for garbage in [Some(""), Some("\0\0\0"), Some("{\"name\":"), Some("weft"), None] {
        for is_linked in [true, false] {
            let pod = Netns::new()?;
            let who = Who::new("c1", &pod);
            call("ADD", &who, &config).result();
            match garbage {
                Some(garbage) => drop(bed.dir.write("state/attachments/net/c1-eth0", garbage)?),
                None => fs::remove_dir_all(bed.path("state"))?,
            }
            if !is_linked {
                pod.cmd("ip link del eth0").ok()?;
            }
            call("DEL", &who.homeless(), &config).silent();
            assert_eq!((bed.reservations("net").len(), bed.veths()?.len()), (0, 0), "{garbage:?}");
            assert!(bed.records("net").is_empty(), "{garbage:?}");
            let rules = Cmd::new("nft list ruleset").ok()?.stdout;
            assert!(
                !rules.contains("weft:net/c1") || (garbage.is_none() && !is_linked),
                "{garbage:?}: {rules}"
            );
        }
    }
    Ok(())
}

#[test]
fn rule_46_a_record_that_was_cut_short_hides_nothing() -> Result<()> {
    let Some(bed) = Bed::new("cut")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let config = with(&bed.bridge(), &json!({"ipMasq": true}));
    let asked = json!({
        "capabilities": {"portMappings": true, "bandwidth": true},
        "runtimeConfig": {
            "portMappings": [{"hostPort": 18_080, "containerPort": 80, "protocol": "tcp"}],
            "bandwidth": {"egressRate": 8_000_000, "egressBurst": 80_000},
        },
    });
    let elsewhere = json!({"ipam": {"type": "host-local", "dataDir": "/nowhere"}});
    let path = bed.path("state/attachments/net/c1-eth0");
    for line in 0.. {
        for (part, parts) in [(0, 1), (1, 2), (1, 1)] {
            call("ADD", &who, &with(&config, &asked)).result();
            let text = fs::read_to_string(&path)?;
            assert!(text.lines().last().is_some_and(|last| last.starts_with("made ")), "{text}");
            let lines: Vec<&str> = text.split_inclusive('\n').collect();
            let start: usize = lines.iter().take(line).map(|line| line.len()).sum();
            let length = lines.get(line).map_or(0, |line| line.trim_end().len());
            let cut = start + length * part / parts;
            fs::write(&path, &text[..cut])?;
            // Where the record still tells the folder, nobody else needs to.
            let knows = text[..cut].contains("networks/net\n");
            let changed = if knows { with(&config, &elsewhere) } else { config.clone() };
            call("DEL", &who.homeless(), &changed).silent();
            let at = format!("after {:?}", &text[..cut]);
            assert_eq!((bed.reservations("net"), bed.records("net")), (vec![], vec![]), "{at}");
            assert!(bed.veths()?.is_empty(), "{at}");
            let ifbs = Cmd::new("ip -o link show type ifb").ok()?.stdout;
            assert!(!ifbs.contains("bwp"), "{at}: {ifbs}");
            let rules = Cmd::new("nft list ruleset").ok()?.stdout;
            assert!(!rules.contains("weft:net/"), "{at}: {rules}");
            if line >= lines.len() {
                return Ok(());
            }
        }
    }
    Ok(())
}

#[test]
fn what_went_without_del_is_swept_by_the_next_add() -> Result<()> {
    let Some(bed) = Bed::new("swept")? else { return Ok(()) };
    let small = json!({"type": "host-local", "dataDir": bed.path("networks"), "subnet": "10.99.0.0/29"});
    let config = with(&bed.bridge(), &json!({"ipMasq": true, "ipam": small}));
    let stays = Netns::new()?;
    call("ADD", &Who::new("stays", &stays), &config).result();
    for round in 0..3 {
        let pods: Vec<Netns> = (0..4).map(|_| Netns::new()).collect::<Result<_>>()?;
        for (i, pod) in pods.iter().enumerate() {
            call("ADD", &Who::new(&format!("c{round}-{i}"), pod), &config).result();
        }
        drop(pods);
        testkit::eventually(Duration::from_secs(5), || (bed.veths().ok()?.len() == 1).then_some(()))
            .context("veths of pods that are gone")?;
    }
    let last = Netns::new()?;
    call("ADD", &Who::new("last", &last), &config).result();
    assert_eq!(
        (bed.records("net"), bed.reservations("net").len()),
        (vec!["last-eth0".into(), "stays-eth0".into()], 2)
    );
    let rules = Cmd::new("nft list ruleset").ok()?.stdout;
    assert!(rules.contains("weft:net/stays") && !rules.contains("weft:net/c"), "{rules}");
    stays.cmd("ping -n -c1 -W2 10.99.0.1").ok()?;
    Ok(())
}

#[test]
fn an_attachment_in_progress_or_of_another_host_is_not_swept() -> Result<()> {
    let Some(bed) = Bed::new("busy")? else { return Ok(()) };
    let own = fs::read_link("/proc/thread-self/ns/net")?;
    let record = |id: &str, last: u8, host: &str| -> Result<()> {
        let folder = bed.path("networks/net");
        let text = format!(
            "weft attachment 1\ncontainer {id}\ninterface eth0\nhost {host}\nfolder {}\naddress 0 10.99.0.{last}/24\n",
            folder.display()
        );
        bed.dir.write(&format!("state/attachments/net/{id}-eth0"), text)?;
        bed.dir.write(&format!("networks/net/10.99.0.{last}"), format!("{id}\r\neth0"))?;
        Ok(())
    };
    record("killed", 50, &own.display().to_string())?;
    record("busy", 51, &own.display().to_string())?;
    record("elsewhere", 52, "net:[1]")?;
    let path = bed.path("state/attachments/net/busy-eth0");
    let hold = Cmd::shell(format!("flock {} sh -c 'echo held; exec sleep 60'", path.display()));
    let mut holder = Process::spawn(&hold, bed.path("holder"))?;
    holder.wait_for_log("held", Duration::from_secs(5))?;
    let pod = Netns::new()?;
    call("ADD", &Who::new("c1", &pod), &bed.bridge()).result();
    assert_eq!(bed.records("net"), ["busy-eth0", "c1-eth0", "elsewhere-eth0"]);
    assert_eq!(bed.reservations("net"), ["10.99.0.2", "10.99.0.51", "10.99.0.52"]);
    Ok(())
}

#[test]
fn a_full_range_is_swept_even_among_many() -> Result<()> {
    let Some(bed) = Bed::new("full")? else { return Ok(()) };
    let small = json!({"type": "host-local", "dataDir": bed.path("networks"), "subnet": "10.99.0.0/30"});
    let config = with(&bed.bridge(), &json!({"ipam": small}));
    let pod = Netns::new()?;
    call("ADD", &Who::new("c1", &pod), &config).result();
    drop(pod);
    testkit::eventually(Duration::from_secs(5), || bed.veths().ok()?.is_empty().then_some(()))
        .context("a veth of a pod that is gone")?;
    bed.dir.write("state/networks/net.swept", "5000")?;
    let next = Netns::new()?;
    assert_eq!(address(&call("ADD", &Who::new("c2", &next), &config).result()), "10.99.0.2/30");
    Ok(())
}

#[test]
fn another_boot_frees_reservations_without_a_record() -> Result<()> {
    let Some(bed) = Bed::new("boot")? else { return Ok(()) };
    let (one, two, three) = (Netns::new()?, Netns::new()?, Netns::new()?);
    bed.dir.write("networks/net/10.99.0.40", "of the reference\r\neth0")?;
    bed.dir.write("networks/net/10.99.0.41", "ref\r\neth0")?;
    call("ADD", &Who::new("c1", &one), &bed.bridge()).result();
    assert_eq!(bed.reservations("net").len(), 3, "no boot was known");
    let identity = bed.path("networks/net/.boot_id");
    assert_eq!(fs::read_to_string(&identity)?, fs::read_to_string("/proc/sys/kernel/random/boot_id")?);
    call("ADD", &Who::new("c2", &two), &bed.bridge()).result();
    fs::write(&identity, "00000000-0000-0000-0000-000000000000\n")?;
    fs::remove_file(bed.path("state/attachments/net/c2-eth0"))?;
    call("ADD", &Who::new("c3", &three), &bed.bridge()).result();
    assert_eq!(bed.reservations("net"), ["10.99.0.2", "10.99.0.4"], "those with a record");
    Ok(())
}

#[test]
fn a_pool_that_an_earlier_boot_filled_is_ready() -> Result<()> {
    let Some(bed) = Bed::new("bootfull")? else { return Ok(()) };
    let pod = Netns::new()?;
    let small = json!({"type": "host-local", "dataDir": bed.path("networks"), "subnet": "10.99.0.0/29"});
    let config = with(&bed.bridge(), &json!({"ipam": small}));
    for last in 2..7 {
        bed.dir.write(&format!("networks/net/10.99.0.{last}"), format!("old{last}\r\neth0"))?;
    }
    let who = Who::new("c1", &pod);
    bed.dir.write("networks/net/.boot_id", fs::read_to_string("/proc/sys/kernel/random/boot_id")?)?;
    assert_eq!(call("STATUS", &who, &config).error().0, 50);
    bed.dir.write("networks/net/.boot_id", "00000000-0000-0000-0000-000000000000\n")?;
    call("STATUS", &who, &config).silent();
    call("ADD", &who, &config).result();
    Ok(())
}

#[test]
fn a_pod_whose_host_end_was_renamed_is_not_taken_for_gone() -> Result<()> {
    let Some(bed) = Bed::new("renamed")? else { return Ok(()) };
    let (one, two) = (Netns::new()?, Netns::new()?);
    call("ADD", &Who::new("c1", &one), &bed.bridge()).result();
    let veth = bed.veths()?.pop().expect("a host's end");
    Cmd::shell(format!("ip link set {veth} down && ip link set {veth} name other && ip link set other up"))
        .ok()?;
    call("ADD", &Who::new("c2", &two), &bed.bridge()).result();
    assert_eq!(bed.reservations("net").len(), 2);
    Ok(())
}

#[test]
fn an_address_rests_where_the_range_allows() -> Result<()> {
    let Some(bed) = Bed::new("rest")? else { return Ok(()) };
    let pod = Netns::new()?;
    let small = json!({"type": "host-local", "dataDir": bed.path("networks"), "subnet": "10.99.0.0/29"});
    let config = with(&bed.bridge(), &json!({"ipam": small}));
    let who = Who::new("c1", &pod);
    let mut given = Vec::new();
    for _ in 0..6 {
        given.push(address(&call("ADD", &who, &config).result()));
        call("DEL", &who, &config).silent();
    }
    assert_eq!(given[5], given[0], "when all rest, the one that has rested longest");
    assert_eq!(given[..5].iter().collect::<std::collections::BTreeSet<_>>().len(), 5);
    let asked = with(&config, &json!({"runtimeConfig": {"ips": ["10.99.0.2"]}}));
    assert_eq!(address(&call("ADD", &who, &asked).result()), "10.99.0.2/29");
    Ok(())
}

#[test]
fn a_state_folder_that_cannot_be_written_is_one_error() -> Result<()> {
    let Some(bed) = Bed::new("nostate")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    bed.dir.write("file", "")?;
    let config = with(&bed.bridge(), &json!({"stateDir": bed.path("file")}));
    let (code, text) = call("ADD", &who, &config).error();
    assert!(code == 5 && text.starts_with("failed to create"), "{code} {text}");
    assert_eq!((bed.reservations("net").len(), bed.veths()?.len()), (0, 0));
    call("ADD", &who, &bed.bridge()).result();
    call("DEL", &who, &config).silent();
    assert_eq!((bed.reservations("net").len(), bed.veths()?.len()), (0, 0));
    Ok(())
}

#[test]
fn a_pool_that_the_next_add_would_find_abandoned_is_ready() -> Result<()> {
    let Some(bed) = Bed::new("abandoned")? else { return Ok(()) };
    let ipam = json!({"type": "host-local", "dataDir": bed.path("networks"), "ranges": [[{"subnet": "10.99.0.0/30"}]]});
    let config = with(&bed.bridge(), &json!({"ipam": ipam}));
    let (first, second) = (Netns::new()?, Netns::new()?);
    call("ADD", &Who::new("c1", &first), &config).result();
    let next = Who::new("c2", &second);
    assert_eq!(call("STATUS", &next, &config).error().0, 50);
    Cmd::new(format!("ip link del {}", bed.veths()?[0])).ok()?;
    call("STATUS", &next, &config).silent();
    assert_eq!(bed.reservations("net").len(), 1, "it only looks");
    call("ADD", &next, &config).result();
    Ok(())
}

#[test]
fn rule_37_reservations_of_a_relative_folder_are_released() -> Result<()> {
    let Some(bed) = Bed::new("relative")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let absolute = bed.path("networks").display().to_string();
    let relative = format!("{}{absolute}", "../".repeat(std::env::current_dir()?.components().count() - 1));
    let ipam = json!({"type": "host-local", "dataDir": relative, "ranges": [[{"subnet": "10.99.0.0/24"}]]});
    let config = with(&bed.bridge(), &json!({"ipam": ipam}));
    call("ADD", &who, &config).result();
    assert_eq!(bed.reservations("net").len(), 1);
    call("DEL", &who, &config).silent();
    assert_eq!((bed.reservations("net").len(), bed.records("net").len()), (0, 0));
    Ok(())
}

//! `kill -9` at random moments, then DEL, GC or a sweep: nothing is left.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::{Cmd, Netns, Random};

use crate::bed::{Bed, Who, call, kill_after, usual, with};

/// What an attachment of container `c1` may leave, by foreign tools.
fn traces_of_the_dead(bed: &Bed) -> Result<String> {
    let mut found = String::new();
    for list in [bed.records("cbr0"), bed.reservations("cbr0"), names(&bed.path("flannel"))] {
        found.push_str(&format!("{} ", list.len()));
    }
    let links = Cmd::new("ip -j link").json()?;
    let kinds = |start: &str| {
        let named = |link: &&Value| link["ifname"].as_str().is_some_and(|name| name.starts_with(start));
        links.as_array().into_iter().flatten().filter(named).count()
    };
    found.push_str(&format!("{} {} ", kinds("veth"), kinds("bwp")));
    let rules = Cmd::new("nft list ruleset").ok()?.stdout;
    found.push_str(&format!("{}", rules.matches("weft:cbr0/c1/").count()));
    Ok(found)
}

/// The names of the files in a folder.
fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path().display().to_string()).collect()
}

/// One pod with everything, killed at any moment of ADD or DEL; then DEL, or GC, or its namespace goes and
/// another ADD sweeps. A neighbour with everything notices nothing.
fn hammer_everything(kills: u32) -> Result<()> {
    let Some(bed) = Bed::new("everything")? else { return Ok(()) };
    let mut random = Random::printed();
    let mut base = with(&bed.flannel()?, &json!({"cniVersion": "1.1.0"}));
    base["capabilities"] = json!({"portMappings": true, "bandwidth": true});
    base["delegate"]["ipMasq"] = true.into();
    let limits = json!({"ingressRate": 8_000_000, "ingressBurst": 80_000, "egressRate": 8_000_000, "egressBurst": 80_000});
    let asks = |port: u16| {
        let mapping =
            |port: u16, protocol: &str| json!({"hostPort": port, "containerPort": 80, "protocol": protocol});
        let ports = json!([mapping(port, "tcp"), mapping(port, "udp")]);
        with(&base, &json!({"runtimeConfig": {"portMappings": ports, "bandwidth": limits}}))
    };
    let stays = Netns::new()?;
    let neighbour = Who::new("stays", &stays);
    let theirs = call("ADD", &neighbour, &asks(8080)).result();
    let (config, valid) = (asks(9090), json!([{"containerID": "stays", "ifname": "eth0"}]));
    let first = Netns::new()?;
    let length = usual("ADD", &Who::new("c1", &first), &config);
    let limit = (length + usual("DEL", &Who::new("c1", &first), &config)) * 3 / 4;
    let undisturbed = traces_of_the_dead(&bed)?;
    for round in 0..kills {
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        let verb = if random.number().is_multiple_of(2) { "ADD" } else { "DEL" };
        if verb == "DEL" {
            usual("ADD", &who, &config);
        }
        kill_after(random.below(limit), verb, &who, config.to_string().as_bytes());
        let end = random.number() % 3;
        match end {
            0 => call("DEL", &who, &config).silent(),
            1 => call("GC", &who, &with(&config, &json!({"cni.dev/valid-attachments": valid}))).silent(),
            _ => {
                drop(pod);
                let gone = || bed.veths().ok().filter(|veths| veths.len() == 1);
                testkit::eventually(Duration::from_secs(10), gone).context("a veth of a pod that is gone")?;
                let other = Netns::new()?;
                usual("ADD", &Who::new("c2", &other), &base);
                usual("DEL", &Who::new("c2", &other), &base);
            }
        }
        assert_eq!(traces_of_the_dead(&bed)?, undisturbed, "round {round}: {verb}, end {end}");
    }
    call("CHECK", &neighbour, &with(&asks(8080), &json!({"prevResult": theirs}))).silent();
    stays.cmd("ping -n -c1 -W2 10.42.3.1").ok()?;
    Ok(())
}

#[test]
fn rule_36_everything_killed_at_any_moment_then_del_gc_or_a_sweep() -> Result<()> {
    hammer_everything(60)
}

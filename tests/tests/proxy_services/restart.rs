//! Killed at any moment, started again: connections don't notice, and the table ends up the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use testkit::traffic::{Connector, Server};
use testkit::{Cmd, Random, eventually};

use crate::world::{LIMIT, USUAL, WEB, World, web};

#[test]
fn a_kill_and_a_restart_cost_no_connection() -> Result<()> {
    let Some(mut world) = World::new("kill", 3) else { return Ok(()) };
    let servers = world.tcp_servers()?;
    world.write("web", &web(&[0, 1]))?;
    world.start_usual()?;
    let connector =
        Connector::start(&world.pods[2], SocketAddrV4::new(WEB, 80), 200, Duration::from_secs(1))?;
    let served = || servers.iter().map(Server::served).sum::<u64>();
    let wait_for = |more: u64| {
        let wanted = served() + more;
        let came = eventually(Duration::from_secs(30), || (served() >= wanted).then_some(()));
        came.with_context(|| format!("only {} of {wanted} connections", served()))
    };
    for _ in 0..3 {
        wait_for(100)?;
        world.proxy().kill();
        wait_for(60)?;
        world.start_usual()?;
        let log = world.proxy().log();
        assert!(log.contains("restarted=true transactions=0"), "nothing had changed: {log}");
    }
    wait_for(100)?;
    assert_eq!(world.proxy().terminate(LIMIT)?, Some(0));
    assert!(world.nft("tables")?.contains("weft-proxy"), "the table outlives the program");
    let tally = connector.stop()?;
    println!("{tally:?}");
    assert!(tally.total() >= 500 && tally.failures() == 0, "{tally:?}");
    Ok(())
}

/// The number that `nft` writes as two hexadecimal halves, `1:f003`.
fn class_id(text: &str) -> Option<u64> {
    let (high, low) = text.split_once(':')?;
    let half = |text: &str| if text.is_empty() { Ok(0) } else { u64::from_str_radix(text, 16) };
    Some(half(high).ok()? << 16 | half(low).ok()?)
}

/// What the table says, whatever numbers it says it with: each front end with its chain and endpoints, and all
/// other elements. As `nft -j` reads it.
fn meaning(world: &World) -> Result<BTreeSet<String>> {
    let listed = world.node.cmd("nft -j list table ip weft-proxy").json()?;
    let objects = listed["nftables"].as_array().context("no objects")?;
    let mut elements: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut said = BTreeSet::new();
    for object in objects {
        if let Some(set) = object.get("set").or_else(|| object.get("map")) {
            let name = set["name"].as_str().context("no name")?.to_owned();
            elements.insert(name, set["elem"].as_array().cloned().unwrap_or_default());
        } else if let Some(rule) = object.get("rule") {
            said.insert(format!("{} {}", rule["chain"], rule["expr"]));
        } else if let Some(chain) = object.get("chain") {
            said.insert(format!("chain {} {} {}", chain["name"], chain["hook"], chain["prio"]));
        }
    }
    let of = |name: &str| elements.get(name).into_iter().flatten();
    let number = |value: &Value| value.as_u64().or_else(|| class_id(value.as_str()?)).unwrap_or_default();
    let mut rows: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for row in of("endpoints") {
        rows.entry(number(&plain(&row[0])["concat"][0])).or_default().push(row[1].to_string());
    }
    let mut used = BTreeSet::new();
    for map in ["frontends", "nodeports"] {
        for front in of(map) {
            let value = number(&front[1]);
            let class = of("classes").find(|class| number(&class[0]) == value & 0xfff).context("no class")?;
            let mut endpoints = rows.get(&(value & !0xfff)).cloned().unwrap_or_default();
            endpoints.sort();
            used.insert(value & !0xfff);
            said.insert(format!("{map} {} {} {endpoints:?}", plain(&front[0]), class[1]));
        }
    }
    let leftover: Vec<_> = rows.keys().filter(|id| !used.contains(id)).collect();
    anyhow::ensure!(leftover.is_empty(), "rows without a front end: {leftover:?}");
    for set in ["cluster-ips", "nodeport-ips", "pod-ranges", "hairpins", "rejects", "nodeport-rejects"] {
        said.extend(of(set).map(|element| format!("{set} {}", plain(element))));
    }
    Ok(said)
}

/// An element's key without counter and comment.
fn plain(key: &Value) -> Value {
    key.get("elem").map_or_else(|| key.clone(), |elem| elem["val"].clone())
}

/// Once nothing changes any more, the chains of classes without a front end have gone, too.
fn settled(world: &World) -> Result<BTreeSet<String>> {
    std::thread::sleep(Duration::from_millis(1300));
    meaning(world)
}

/// Writes two Services with these endpoints.
fn write_both(world: &World, first: &[usize], second: &[usize]) -> Result<()> {
    world.write("web", &web(first))?;
    let more = web(second).replace("web", "more").replace("10.96.0.7", "10.96.0.8").replace("300", "310");
    world.write("more", &more)
}

/// Writes them with any endpoints.
fn write_any(world: &World, random: &mut Random) -> Result<()> {
    let mut some = || (0..4).filter(|_| random.number().is_multiple_of(2)).collect::<Vec<usize>>();
    write_both(world, &some(), &some())
}

#[test]
fn killed_at_200_random_moments_it_ends_where_an_undisturbed_one_does() -> Result<()> {
    let Some(mut world) = World::new("kills", 0) else { return Ok(()) };
    let mut random = Random::printed();
    let write_last = |world: &World| write_both(world, &[0, 2], &[1, 2, 3]);
    write_last(&world)?;
    let begun = Instant::now();
    world.start_usual()?;
    let length = begun.elapsed();
    println!("an undisturbed start takes {length:?}");
    let wanted = settled(&world)?;
    for round in 0..200 {
        world.proxy().kill();
        if round % 3 == 0 {
            world.node.cmd("nft flush ruleset").ok()?;
        }
        // Half of the kills fall into the start, the others into changes of the manifests.
        if round % 2 == 0 {
            write_any(&world, &mut random)?;
            world.spawn(USUAL)?;
            std::thread::sleep(random.below(length));
        } else {
            world.start_usual()?;
            for _ in 0..=random.number() % 3 {
                write_any(&world, &mut random)?;
                std::thread::sleep(random.below(Duration::from_millis(15)));
            }
        }
        world.proxy().kill();
        write_last(&world)?;
        world.start_usual()?;
        let right = eventually(2 * LIMIT, || (meaning(&world).ok()? == wanted).then_some(()));
        right
            .with_context(|| format!("after kill {round}: {:#?} instead of {wanted:#?}", meaning(&world)))?;
    }
    Ok(())
}

/// The kernel refuses a range that overlaps one that is there.
#[test]
fn a_restart_with_other_pod_ranges_puts_them_in_place_of_the_old_ones() -> Result<()> {
    let Some(mut world) = World::new("ranges", 0) else { return Ok(()) };
    world.write("web", &web(&[0]))?;
    for range in ["10.244.0.0/16", "10.244.0.0/15", "10.244.0.0/17", "10.0.0.0/8"] {
        world.start(&format!("run --cluster-cidr {range}"))?;
        let set = world.nft("set ip weft-proxy pod-ranges")?;
        assert!(set.contains(&format!("elements = {{ {range} }}")), "{range}: {set}");
        assert_eq!(world.proxy().terminate(LIMIT)?, Some(0));
    }
    world.start("run --cluster-cidr 10.0.0.0/8")?;
    let replaced = "delete element ip weft-proxy pod-ranges { 10.0.0.0/8 }\n\
                    add element ip weft-proxy pod-ranges { 10.128.0.0/9 }\n";
    world.node.wrap(Cmd::new("nft -f -").stdin(replaced)).ok()?;
    world.wait_nft("set ip weft-proxy pod-ranges", "{ 10.0.0.0/8 }")?;
    Ok(())
}

#[test]
fn cleanup_and_status_know_whether_a_proxy_runs() -> Result<()> {
    let Some(mut world) = World::new("whether", 0) else { return Ok(()) };
    let none = world.command("status").run()?;
    assert!(!none.success() && none.stderr.contains("no weft-proxy runs here"), "{none}");
    world.write("web", &web(&[0]))?;
    world.start_usual()?;
    let before = settled(&world)?;
    let refused = world.command("cleanup").run()?;
    assert!(
        !refused.success() && refused.stderr.contains("a weft-proxy runs here; end it first"),
        "{refused}"
    );
    assert_eq!(before, settled(&world)?);
    assert!(eventually(LIMIT, || world.command("status").ok().ok()).is_some());
    world.proxy().kill();
    let gone = world.command("status --json").run()?;
    assert!(!gone.success() && gone.stdout.starts_with('{'), "{gone}");
    assert!(gone.stderr.contains("no weft-proxy runs here"), "{gone}");
    world.command("cleanup").ok()?;
    Ok(())
}

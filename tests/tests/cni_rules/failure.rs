//! Rule 29: a failure at any step takes back all that this call has made.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::{Cmd, Netns, Process, eventually};

use crate::{
    bed::{Bed, Who, with},
    network::{NONE, Network, changes, links, traces, used},
};

/// ADD fails with this text, and the host and the pod are as before.
#[track_caller]
fn refused(bed: &Bed, network: &mut Network<'_>, wanted: &str, before: &[String]) -> Result<()> {
    let pod = Netns::new()?;
    let answer = network.try_add(&Who::new("c1", &pod)).expect_err(wanted);
    let (_, text) = answer.error();
    assert!(text.contains(wanted), "{wanted}: {text}");
    assert_eq!(changes(bed, before)?, NONE, "{wanted}: {text}");
    assert_eq!(links(&pod)?, ["lo"], "{wanted}: {text}");
    Ok(())
}

fn with_ipam(config: &Value, more: &Value) -> Value {
    with(config, &json!({"ipam": with(&config["ipam"], more)}))
}

#[test]
fn rule_29_addresses_routes_and_the_bridge() -> Result<()> {
    let Some(bed) = Bed::new("rule29")? else { return Ok(()) };
    let base = with(&bed.bridge(), &json!({"ipMasq": true}));
    let mut network = Network::of(&bed, vec![base.clone()]);
    let before = used(&mut network)?;
    let mut attempt = |config: Value, wanted: &str| {
        network.plugins[0] = config;
        refused(&bed, &mut network, wanted, &before)
    };
    let one = json!([[{"subnet": "10.99.0.0/24", "rangeStart": "10.99.0.1", "rangeEnd": "10.99.0.1"}]]);
    attempt(
        with_ipam(&base, &json!({"ranges": one})),
        "no IP addresses available in range set: 10.99.0.1-10.99.0.1",
    )?;
    let second = json!([[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64", "rangeStart": "fd99::1", "rangeEnd": "fd99::1"}]]);
    attempt(
        with_ipam(&base, &json!({"ranges": second})),
        "no IP addresses available in range set: fd99::1-fd99::1",
    )?;
    attempt(
        with_ipam(&base, &json!({"routes": [{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}]})),
        "192.0.2.0/24",
    )?;
    attempt(with_ipam(&base, &json!({"resolvConf": "/does-not-exist"})), "/does-not-exist")?;
    attempt(with_ipam(&base, &json!({"type": "no-such-plugin"})), "no-such-plugin")?;
    attempt(with(&base, &json!({"bridge": "lo"})), "not a bridge")?;
    let other = json!([[{"subnet": "10.98.0.0/24"}]]);
    attempt(
        with_ipam(&base, &json!({"ranges": other})),
        "already has an IP address different from 10.98.0.1/24",
    )?;
    Ok(())
}

#[test]
fn rule_29_host_ports_limits_and_settings() -> Result<()> {
    let Some(bed) = Bed::new("rule29late")? else { return Ok(()) };
    let limits = json!({"ingressRate": 1_000_000, "ingressBurst": 1_000_000, "egressRate": 8_000_000});
    let mut whole = Network::whole(&bed, "1.1.0")?.asking(18_080);
    let owner = Netns::new()?;
    whole.add(&Who::new("owner", &owner));
    whole.runtime["portMappings"][0]["hostPort"] = 18_081.into();
    let before = used(&mut whole)?;
    let fine = whole.runtime.clone();
    let refuse = |network: &mut Network<'_>, runtime: Value, wanted: &str| {
        network.runtime = with(&fine, &runtime);
        refused(&bed, network, wanted, &before)
    };
    let port = |host: Value| {
        json!({"portMappings": [{"hostPort": 18_082, "containerPort": 80, "protocol": "tcp"},
                                {"hostPort": host, "containerPort": 80, "protocol": "tcp"}]})
    };
    refuse(&mut whole, json!({"bandwidth": limits}), "if rate is set, burst must also be set")?;
    refuse(&mut whole, port(json!(18_080)), "owner")?;
    refuse(&mut whole, port(json!(0)), "0")?;
    refuse(&mut whole, port(json!(70_000)), "70000")?;
    let unknown = json!({"portMappings": [{"hostPort": 18_082, "containerPort": 80, "protocol": "icmp"}]});
    refuse(&mut whole, unknown, "icmp")?;

    // In the chain, each plugin takes back its own; DEL, which has to follow, the rest.
    for (index, change) in [
        (1, json!({"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.no.such.key": "1"}})),
        (
            2,
            json!({"ingressRate": 1_000_000, "ingressBurst": 1_000_000, "egressRate": 8_000_000, "egressBurst": 0}),
        ),
        (3, json!({"runtimeConfig": port(json!(18_080))})),
    ] {
        let mut chain = Network::chain(&bed, "1.1.0").asking(18_081);
        chain.plugins[index] = with(&chain.plugins[index], &change);
        if index == 3 {
            chain.runtime = port(json!(18_080));
        }
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        let mut result = chain.call("ADD", 0, &who, None).result();
        for earlier in 1..index {
            result = chain.call("ADD", earlier, &who, Some(&result)).result();
        }
        let middle = traces(&bed)?;
        chain.call("ADD", index, &who, Some(&result)).error();
        assert_eq!(changes(&bed, &middle)?, NONE, "{change}");
        chain.del(&who);
        assert_eq!(changes(&bed, &before)?, NONE, "{change}");
    }
    Ok(())
}

#[test]
fn rule_29_the_state_the_lock_and_the_kernels_tables() -> Result<()> {
    let Some(bed) = Bed::new("rule29state")? else { return Ok(()) };
    let mut network = Network::whole(&bed, "1.1.0")?.asking(18_080);
    let before = used(&mut network)?;
    let good = network.plugins[0].clone();
    // A file where a folder has to be.
    network.plugins[0] = with(&good, &json!({"stateDir": bed.path("subnet.env")}));
    refused(&bed, &mut network, "", &before)?;
    network.plugins[0] = with(&good, &json!({"ipam": {"dataDir": bed.path("subnet.env")}}));
    refused(&bed, &mut network, "", &before)?;
    network.plugins[0] = good;

    // Somebody has the table, and nobody else may change it.
    let tables = Cmd::new("nft list tables").ok()?.stdout;
    let table = tables.lines().find_map(|line| line.strip_prefix("table ")).context("a table")?;
    Cmd::new(format!("nft delete table {table}")).ok()?;
    let own = Cmd::shell(format!("(echo 'add table {table} {{ flags owner; }}'; exec sleep 60) | nft -i"));
    let owner = Process::spawn(&own, bed.path("bin/owner"))?;
    let is_owned = || Cmd::new("nft list tables").ok().ok()?.stdout.contains(table).then_some(());
    eventually(Duration::from_secs(5), is_owned).context("the table of another")?;
    let pod = Netns::new()?;
    let (_, text) = network.try_add(&Who::new("c1", &pod)).expect_err("the table is another's").error();
    assert!(text.contains("not permitted"), "{text}");
    assert_eq!((links(&pod)?, bed.veths()?, bed.records("cbr0")), (vec!["lo".to_owned()], vec![], vec![]));
    assert!(bed.reservations("cbr0").is_empty());
    drop(owner);

    let lock = bed.path("networks/cbr0/lock");
    let hold = Cmd::shell(format!("flock {} sh -c 'echo held; exec sleep 60'", lock.display()));
    let mut holder = Process::spawn(&hold, bed.path("bin/holder"))?;
    holder.wait_for_log("held", Duration::from_secs(5))?;
    let before = traces(&bed)?;
    let start = std::time::Instant::now();
    refused(&bed, &mut network, "lock", &before)?;
    assert!(start.elapsed().as_secs() < 15, "answered after {:?}", start.elapsed());
    Ok(())
}

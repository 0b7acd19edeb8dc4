//! What the overlay believes of the kernel, against the kernel: the fake one ends where the real one
//! does, and what was acknowledged and announced is what a fresh look shows.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use flanneld::{
    linux::{LinuxKernel, Scope},
    wake::{Inbox, Interest},
};
use netmodel::{IfName, Mac, Subnet};
use overlay_core::{
    fake::FakeKernel,
    kernel::Kernel,
    op::Op,
    overlay::{Device, Hop, Overlay, Remote, RouteKey},
};
use testkit::{Cmd, Netns, Random, netns_or_skip};

/// A number below `limit`.
fn below(random: &mut Random, limit: u64) -> u8 {
    u8::try_from(random.number() % limit).unwrap_or(0)
}

fn name() -> IfName {
    "flannel.1".parse().unwrap()
}

/// What somebody else calls our device.
fn other_name() -> IfName {
    "other0".parse().unwrap()
}

fn network() -> Subnet {
    "10.5.0.0/16".parse().unwrap()
}

fn device(random: &mut Random) -> Device {
    Device {
        vni: 1_u64.try_into().unwrap(),
        port: 8472.try_into().unwrap(),
        local: [192, 0, 2, 1 + below(random, 2)].into(),
        gbp: false,
        learning: below(random, 2) == 1,
        mac: mac(below(random, 3)),
        mtu: (1400 + u64::from(below(random, 3))).try_into().unwrap(),
        up: true,
        foreign: false,
    }
}

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

fn key(third: u8, metric: u8) -> RouteKey {
    RouteKey { subnet: format!("10.5.{third}.0/24").parse().unwrap(), metric: metric.into() }
}

/// Any operation, sensible or not.
fn operation(random: &mut Random) -> Op {
    let (third, node) = (below(random, 4), 10 + below(random, 3));
    let address = std::net::Ipv4Addr::from([10, 5, third, 0]);
    let hop = if below(random, 5) == 0 { Hop::Blackhole } else { Hop::Tunnel(address) };
    // Never 0, as ours: a removal of that metric removes any.
    let metric = if hop == Hop::Blackhole { 9 } else { 1 + below(random, 2) };
    match below(random, 32) {
        0 => Op::DelDevice(name()),
        1..=4 => Op::AddDevice(name(), device(random)),
        5 => Op::ChangeDevice(name(), device(random)),
        6 => Op::SetMac(name(), mac(below(random, 3))),
        7 => Op::SetMtu(name(), device(random).mtu),
        8..=9 => Op::SetUp(name()),
        10..=12 => Op::AddAddress(name(), address, 32),
        13 => Op::DelAddress(name(), address, 32),
        14..=17 => Op::SetFdb(name(), mac(third), [192, 0, 2, node].into()),
        18..=21 => Op::SetNeighbour(name(), address, mac(third)),
        22..=26 => Op::SetRoute(name(), key(third, metric), hop),
        27 => Op::DelRoute(name(), key(third, metric), hop),
        28 => Op::DelNeighbour(name(), address),
        29 if below(random, 2) == 0 => Op::RenameDevice(name(), other_name()),
        29 => Op::RenameDevice(other_name(), name()),
        _ => Op::DelFdb(name(), mac(third), Remote::plain([192, 0, 2, node].into())),
    }
}

/// A namespace with an underlay, and our view of it.
fn kernel(net: &Netns) -> Result<LinuxKernel> {
    for line in [
        "ip link set lo up",
        "ip link add e0 type veth peer name e1",
        "ip link set e0 up",
        "ip link set e1 up",
        "ip address add 192.0.2.1/24 dev e0",
    ] {
        net.cmd(line).ok()?;
    }
    let underlay = net.cmd("ip -j link show e0").json()?[0]["ifindex"].as_u64().context("no index")?;
    let wanted = device(&mut Random::printed());
    let underlay = u32::try_from(underlay)?;
    let scope = Scope { device: name(), network: network(), underlay, wanted, sysctls: Vec::new() };
    Ok(net.inside(|| LinuxKernel::open(scope))??)
}

#[test]
fn the_fake_kernel_ends_where_the_real_one_does() -> Result<()> {
    let Some(net) = netns_or_skip() else { return Ok(()) };
    let mut real = kernel(&net)?;
    let mut fake = FakeKernel { now: Overlay::empty(name()) };
    let mut random = Random::printed();
    let mut carried_out = 0;
    for step in 0..2000 {
        let op = operation(&mut random);
        // What the fake refuses, Linux may do all the same: the fake is stricter.
        if fake.apply(std::slice::from_ref(&op)).remove(0).is_err() {
            continue;
        }
        carried_out += 1;
        let result = real.apply(std::slice::from_ref(&op)).remove(0);
        assert!(result.is_ok(), "step {step}: {op}: {result:?}");
        assert_eq!(fake.now, real.observe()?, "step {step}: after {op}");
    }
    assert!(carried_out > 400, "only {carried_out} operations were carried out");
    Ok(())
}

/// A change that somebody else makes, as a command; many fail, since what they are about is not there.
fn foreign(random: &mut Random) -> String {
    let (third, node, last) = (below(random, 4), 10 + below(random, 3), below(random, 4));
    match below(random, 18) {
        16 => "ip link set flannel.1 name other0".to_owned(),
        17 => format!("ip route replace 10.5.{third}.0/24 via 192.0.2.{node}"),
        0 => "ip link del flannel.1".to_owned(),
        1 => "ip link set flannel.1 down".to_owned(),
        2 => format!("ip link set flannel.1 address 02:00:00:00:00:0{last}"),
        3 => format!("ip address add 10.5.{third}.0/32 dev flannel.1"),
        4 => format!("ip address del 10.5.{third}.0/32 dev flannel.1"),
        5 => format!("ip route del 10.5.{third}.0/24"),
        6 => format!("ip route replace 10.5.{third}.0/24 dev flannel.1 metric {last}"),
        7 => format!("ip route replace 10.5.{third}.0/24 dev e0 metric {last}"),
        8 => format!("ip neigh del 10.5.{third}.0 dev flannel.1"),
        9 => format!("ip neigh replace 10.5.{third}.0 lladdr 02:00:00:00:00:0{last} dev flannel.1"),
        10 => {
            format!("ip neigh replace 10.5.{third}.0 lladdr 02:00:00:00:00:0{last} dev flannel.1 nud stale")
        }
        11 => format!("bridge fdb del 02:00:00:00:00:0{last} dev flannel.1"),
        14 => {
            format!("bridge fdb replace 02:00:00:00:00:0{last} dev flannel.1 dst 192.0.2.{node} vni {node}")
        }
        15 => format!("ip route replace 10.5.{third}.0/24 dev flannel.1 metric {last} proto 154 mtu 1300"),
        12 => format!("bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.{node}"),
        _ => format!("bridge fdb replace 02:00:00:00:00:0{last} dev flannel.1 dst 192.0.2.{node}"),
    }
}

/// How long no event may come until all are thought to be in.
const QUIET: Duration = Duration::from_millis(60);
/// How long events may take on a busy machine.
const LATE: Duration = Duration::from_secs(5);

/// Takes events in until none has come for a while and the shadow is what a fresh look shows, or it is too
/// late for that. The fresh look.
fn catch_up(inbox: &Inbox, shadow: &mut Overlay, real: &mut LinuxKernel) -> Result<Overlay> {
    let start = Instant::now();
    loop {
        let begun = Instant::now();
        let pending = inbox.take(begun + QUIET);
        for change in pending.changes.values() {
            shadow.note(change);
        }
        if pending.everything {
            *shadow = real.observe()?;
        }
        inbox.set_interest(Interest { device: real.index(), underlay: None, network: Some(network()) });
        if begun.elapsed() >= QUIET {
            let fresh = real.observe()?;
            if *shadow == fresh || start.elapsed() > LATE {
                return Ok(fresh);
            }
        }
    }
}

#[test]
fn the_shadow_with_the_events_is_what_a_fresh_look_shows() -> Result<()> {
    let Some(net) = netns_or_skip() else { return Ok(()) };
    let mut real = kernel(&net)?;
    let mut random = Random::printed();
    let inbox = Arc::new(Inbox::default());
    let watcher = {
        let (inbox, path) = (Arc::clone(&inbox), net.path().to_owned());
        move || -> Result<()> {
            let net = Netns::open(path)?;
            let _inside = net.enter()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(flanneld::events::watch(inbox));
            Ok(())
        }
    };
    // It ends with the process: nothing tells it to end earlier.
    thread::spawn(watcher);
    let mut shadow = real.observe()?;
    catch_up(&inbox, &mut shadow, &mut real)?;
    let mut changed = 0;
    for step in 0..250 {
        let mut done = Vec::new();
        for _ in 0..=below(&mut random, 3) {
            if below(&mut random, 2) == 0 {
                let op = operation(&mut random);
                if real.apply(std::slice::from_ref(&op)).remove(0).is_ok() {
                    shadow.acknowledge(&op);
                    done.push(op.to_string());
                }
            } else {
                let line = foreign(&mut random);
                let ran = net.wrap(Cmd::new(&line)).run()?;
                done.push(format!("{line} -> {}", ran.success()));
            }
        }
        let fresh = catch_up(&inbox, &mut shadow, &mut real)?;
        assert_eq!(shadow, fresh, "step {step}: after {done:#?}");
        changed += usize::from(!fresh.fdb.is_empty() || !fresh.routes.is_empty());
    }
    assert!(changed > 20, "the device was bare almost always");
    Ok(())
}

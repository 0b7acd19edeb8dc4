//! flanneld killed with `kill -9` at random moments: the next run ends in the state that an undisturbed one
//! ends in.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netns_tests::cluster::{UP, leases, overlay};
use testkit::lab::{Lab, Node, Plan};
use testkit::{Cmd, Random, eventually};

const KILLS: usize = 200;

/// Everything that flanneld makes, as foreign tools show it.
const STATE: &str = "ip -br link | awk '{print $1}' | sort
ip -o link show dev flannel.1 | grep -o 'mtu [0-9]*\\|link/ether [0-9a-f:]*'
ip -o -4 address show dev flannel.1 | awk '{print $4}'
ip route show dev flannel.1 | sort
ip neighbour show dev flannel.1 nud permanent | sort
bridge fdb show dev flannel.1 | sort
nft list ruleset
cat /run/flannel/subnet.env
ls -A /run/flannel | sort";

/// One part of what each of those commands shows.
const PARTS: [&str; 9] = [
    "eth0@",
    "mtu 1450",
    ".0/32",
    "via 172.16.",
    "PERMANENT",
    "dst 192.168.100.12",
    "masquerade",
    "FLANNEL_SUBNET=",
    "status.json",
];

fn state(node: &Node) -> Result<String> {
    Ok(node.space.wrap(Cmd::shell(STATE)).run()?.stdout)
}

/// Lines of one text that the other does not have.
fn lines_beyond(text: &str, other: &str) -> String {
    let beyond = text.lines().filter(|line| !other.lines().any(|theirs| theirs == *line));
    beyond.collect::<Vec<_>>().join("\n")
}

/// Waits until the node's state is `wanted`.
fn settles(node: &Node, wanted: &str) -> Result<()> {
    let same = eventually(UP, || state(node).ok().filter(|now| now == wanted));
    same.map(drop).with_context(|| {
        let now = state(node).unwrap_or_default();
        let (is, should) = (lines_beyond(&now, wanted), lines_beyond(wanted, &now));
        format!("there is:\n{is}\nand there should be:\n{should}\n{}", node.logs())
    })
}

/// Waits until the state does not change any more, and takes it.
fn undisturbed(node: &Node) -> Result<String> {
    let mut last = state(node)?;
    loop {
        sleep(Duration::from_millis(500));
        let now = state(node)?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
}

/// Kills flanneld, takes away what it made in the kernel, and starts it.
fn start_from_nothing(lab: &mut Lab) -> Result<()> {
    lab.nodes[0].kill_flanneld();
    lab.nodes[0].space.wrap(Cmd::shell("ip link delete flannel.1; nft flush ruleset")).run()?;
    lab.start_flanneld(0)
}

#[test]
fn flanneld_killed_at_any_moment() -> Result<()> {
    let Some(mut lab) = overlay(Plan { nodes: 2, ..Plan::default() })? else { return Ok(()) };
    let mut random = Random::printed();
    let wanted = undisturbed(&lab.nodes[0])?;
    for part in PARTS {
        assert!(wanted.contains(part), "{part} is missing in\n{wanted}");
    }
    let held = leases(&lab)?;
    start_from_nothing(&mut lab)?;
    let begun = Instant::now();
    settles(&lab.nodes[0], &wanted)?;
    let length = begun.elapsed();
    println!("an undisturbed start takes {length:?}");
    for round in 0..KILLS {
        // Every other run has everything to make, the others only to look.
        if round % 2 == 0 {
            start_from_nothing(&mut lab)?;
        } else {
            lab.nodes[0].kill_flanneld();
            lab.start_flanneld(0)?;
        }
        sleep(random.below(length));
        lab.nodes[0].kill_flanneld();
        lab.start_flanneld(0)?;
        settles(&lab.nodes[0], &wanted).with_context(|| format!("after kill {round}"))?;
    }
    assert_eq!(leases(&lab)?, held);
    Ok(())
}

//! Rule 36: `kill -9` at random moments, then DEL and GC: nothing is left, and no neighbour is harmed.

use std::{env, fs, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;
use testkit::{Netns, Random};

use crate::{
    bed::{Bed, Who, call, kill_after, usual},
    network::{NONE, Network, changes, used},
};

/// Moments at which each verb is killed: `WEFT_KILLS`, else as many as a machine that does other things, too, has
/// time for.
fn kills() -> u32 {
    env::var("WEFT_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(200)
}

/// Kills between two looks at everything; every kill is followed by a look at the links.
const PART: u32 = 50;

/// The number of links in the namespace of this thread, without asking another program.
fn links() -> Result<usize> {
    Ok(fs::read_to_string("/proc/thread-self/net/dev")?.lines().count())
}

fn hammer(verb: &str) -> Result<()> {
    let Some(bed) = Bed::new("kills")? else { return Ok(()) };
    let (mut random, kills) = (Random::printed(), kills());
    let (neighbour, pod) = (Netns::new()?, Netns::new()?);
    let mut beside = Network::whole(&bed, "1.1.0")?.asking(18_081);
    beside.add(&Who::new("neighbour", &neighbour));
    let mut network = Network::whole(&bed, "1.1.0")?.asking(18_080);
    let list = network.runtime["portMappings"].as_array_mut().context("a list")?;
    list.push(json!({"hostPort": 53, "containerPort": 53, "protocol": "udp"}));
    let before = used(&mut network)?;
    let config = network.input(0, None);
    let input = config.to_string().into_bytes();
    let first = Who::new("measured", &pod);
    // The shortest of a few: the machine does other things too.
    let pairs = (0..8).map(|_| (usual("ADD", &first, &config), usual("DEL", &first, &config)));
    let (adds, dels): (Vec<_>, Vec<_>) = pairs.unzip();
    let length = if verb == "ADD" { adds } else { dels }.into_iter().min().unwrap_or_default();
    let limit = length.max(Duration::from_micros(500)) * 5 / 4;
    let (mut completed, undisturbed) = (0, links()?);
    for round in 0..kills {
        // Each under its own name, so that no later call removes what this one leaves.
        let who = Who::new(&format!("c{round}"), &pod);
        if verb == "DEL" {
            usual("ADD", &who, &config);
        }
        completed += u32::from(kill_after(random.below(limit), verb, &who, &input));
        if random.number().is_multiple_of(8) {
            // A runtime that tries again first: a second result, or what is left is in the way.
            let again = call("ADD", &who, &config);
            assert!(again.code == Some(0) || !again.error().1.is_empty(), "{again:?}");
        }
        let homeless = random.number().is_multiple_of(4);
        call("DEL", &if homeless { who.homeless() } else { who }, &config).silent();
        let what = format!("{verb} {round}, homeless {homeless}");
        assert_eq!((links()?, pod.inside(links)??), (undisturbed, 3), "{what}");
        if round % PART == PART - 1 {
            assert_eq!(changes(&bed, &before)?, NONE, "up to {what}");
            network.gc(&[("neighbour", "eth0")]);
            assert_eq!(changes(&bed, &before)?, NONE, "GC after {what}");
        }
    }
    println!("{verb}: {kills} kills within {limit:?}, {completed} calls had ended before");
    assert!(completed < kills * 3 / 4, "too few calls were cut short");
    assert_eq!(changes(&bed, &before)?, NONE);
    assert_eq!(beside.check(&Who::new("neighbour", &neighbour)), Ok(()));
    neighbour.cmd("ping -n -c1 -W2 10.42.3.1").ok()?;
    Ok(())
}

#[test]
fn rule_36_add_killed_at_any_moment() -> Result<()> {
    hammer("ADD")
}

#[test]
fn rule_36_del_killed_at_any_moment() -> Result<()> {
    hammer("DEL")
}

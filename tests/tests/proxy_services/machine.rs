//! The node's own addresses, as they come and go.

use anyhow::Result;
use testkit::{Cmd, Process, eventually};

use crate::world::{LIMIT, NODE, NODE_PORT, OUTSIDE, USUAL, World, ask, web};

/// The node's next address.
const NEXT: std::net::Ipv4Addr = std::net::Ipv4Addr::new(192, 0, 2, 2);

impl World {
    /// Gives the node another address, on which the default route depends.
    fn move_to_next_address(&self) -> Result<()> {
        let script = format!(
            "ip addr del {NODE}/24 dev eth0 && ip addr add {NEXT}/24 dev eth0 && \
             ip route replace default via {OUTSIDE}"
        );
        self.node.wrap(Cmd::shell(script)).ok().map(drop)
    }

    /// The node port answers at the next address.
    fn is_open_at_next_address(&self) -> bool {
        let asked = || ask(&self.outside, (NEXT, NODE_PORT)).ok()?.ok();
        eventually(2 * LIMIT, asked).is_some()
    }
}

/// What an earlier run knew of the node stands in for manifests that can't be read only while the machine agrees.
#[test]
fn a_broken_manifest_does_not_hold_on_to_an_address_that_went() -> Result<()> {
    let Some(mut world) = World::new("moved", 1) else { return Ok(()) };
    let _servers = world.tcp_servers()?;
    std::fs::remove_file(world.manifests().join("node.yaml"))?;
    world.write("web", &web(&[0]))?;
    world.start_usual()?;
    assert_eq!(world.proxy().terminate(LIMIT)?, Some(0));
    world.write("broken", "a: [b")?;
    world.start_usual()?;
    world.wait_nft("set ip weft-proxy nodeport-ips", &NODE.to_string())?;
    world.move_to_next_address()?;
    assert!(world.is_open_at_next_address(), "{}", world.nft("set ip weft-proxy nodeport-ips")?);
    Ok(())
}

#[test]
fn an_address_that_comes_while_manifests_are_awaited_counts() -> Result<()> {
    let Some(world) = World::new("awaited", 0) else { return Ok(()) };
    std::fs::remove_file(world.manifests().join("node.yaml"))?;
    world.write("web", &web(&[]))?;
    let aside = world.dir.path().join("aside");
    std::fs::rename(world.manifests(), &aside)?;
    let mut waiting = Process::spawn(&world.command(USUAL), world.dir.path().join("waiting.log"))?;
    waiting.wait_for_log("failed to read it", LIMIT)?;
    world.move_to_next_address()?;
    std::thread::sleep(std::time::Duration::from_millis(200)); // what is told of it comes before them
    std::fs::rename(&aside, world.manifests())?;
    waiting.wait_for_log("ruleset is in place", LIMIT)?;
    let open = world.nft("set ip weft-proxy nodeport-ips")?;
    assert!(open.contains(&NEXT.to_string()), "{open}");
    Ok(())
}

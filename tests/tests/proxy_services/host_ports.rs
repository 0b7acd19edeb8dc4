//! Services beside host ports: the CNI plugin's table and the proxy's in one node, whoever comes first.

use std::net::Ipv4Addr;

use anyhow::Result;
use serde_json::json;
use testkit::{Cmd, Netns, bin};

use crate::world::{BRIDGE, NODE, NODE_PORT, OUTSIDE, TARGET, USUAL, WEB, World, ask, pod_ip, web};

/// A host port among the node ports.
const HOST_PORT: u16 = 30001;
/// The cluster IP of Service `inner`, whose only endpoint is the pod with the host port.
const INNER: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 8);

impl World {
    /// Calls the CNI plugin for the host ports of pod 0: one of its own, and one that is a node port already.
    fn portmap(&self, verb: &str) -> Result<()> {
        let mapping = |port| json!({"hostPort": port, "containerPort": TARGET, "protocol": "tcp"});
        let pod = self.pods[0].path().display().to_string();
        let config = json!({
            "cniVersion": "1.0.0", "name": "net", "type": "portmap", "stateDir": self.dir.path().join("state"),
            "runtimeConfig": {"portMappings": [mapping(HOST_PORT), mapping(NODE_PORT)]},
            "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": pod}],
                "ips": [{"address": format!("{}/24", pod_ip(0)), "interface": 0}]},
        });
        let call = Cmd::new("").arg(bin("flannel").display().to_string()).stdin(config.to_string());
        let call = call.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", "c0").env("CNI_IFNAME", "eth0");
        self.node.wrap(call.env("CNI_NETNS", pod).env("CNI_PATH", "/sbin")).ok().map(drop)
    }

    /// Both Services lead where they should, and are seen as from whom they should.
    fn check_services(&self) -> Result<()> {
        let (own, other) = (&self.pods[0], &self.pods[2]);
        let (outside, node) = (&self.outside, &self.node);
        for (from, to, by, saw) in [
            (other, (WEB, 80), "pod1", pod_ip(2)),
            (own, (WEB, 80), "pod1", pod_ip(0)),
            (node, (WEB, 80), "pod1", BRIDGE),
            (other, (INNER, 80), "pod0", pod_ip(2)),
            (own, (INNER, 80), "pod0", BRIDGE),
            (node, (INNER, 80), "pod0", BRIDGE),
            (outside, (NODE, NODE_PORT), "pod1", BRIDGE),
            (other, (NODE, NODE_PORT), "pod1", BRIDGE),
            (node, (NODE, NODE_PORT), "pod1", BRIDGE),
        ] {
            expect(from, to, by, saw)?;
        }
        Ok(())
    }

    /// `port` of the node leads to pod 0.
    fn check_host_port(&self, port: u16) -> Result<()> {
        expect(&self.outside, (NODE, port), "pod0", OUTSIDE)?;
        expect(&self.pods[2], (NODE, port), "pod0", BRIDGE)?;
        expect(&self.pods[0], (NODE, port), "pod0", BRIDGE)?;
        expect(&self.node, (NODE, port), "pod0", NODE)?;
        expect(&self.node, (Ipv4Addr::LOCALHOST, port), "pod0", BRIDGE)
    }
}

/// Who answers, and as whom it sees the client.
fn expect(from: &Netns, to: (Ipv4Addr, u16), by: &str, saw: Ipv4Addr) -> Result<()> {
    let answer = ask(from, to)??;
    assert_eq!((answer.by.as_str(), answer.saw), (by, saw), "{to:?}");
    Ok(())
}

/// Service `inner`, without node ports.
fn inner() -> String {
    web(&[0])
        .replace("web", "inner")
        .replace(&WEB.to_string(), &INNER.to_string())
        .replace(&format!(", nodePort: {NODE_PORT}"), "")
        .replace(", nodePort: 30053", "")
        .replace("type: NodePort", "type: ClusterIP")
}

#[test]
fn host_ports_and_services_leave_each_other_alone() -> Result<()> {
    for plugin_first in [true, false] {
        let Some(mut world) = World::new("hostports", 3) else { return Ok(()) };
        let _servers = world.tcp_servers()?;
        world.write("web", &web(&[1]))?;
        world.write("inner", &inner())?;
        if plugin_first {
            world.portmap("ADD")?;
        }
        world.start(USUAL)?;
        if !plugin_first {
            world.portmap("ADD")?;
        }
        world.check_services()?;
        world.check_host_port(HOST_PORT)?;

        let services = world.nft("table ip weft-proxy")?;
        world.portmap("DEL")?;
        assert_eq!(world.nft("table ip weft-proxy")?, services);
        world.check_services()?;
        assert!(ask(&world.outside, (NODE, HOST_PORT))?.is_err());

        world.portmap("ADD")?;
        world.proxy().kill();
        let ports = world.nft("table inet weft-cni")?;
        world.command("cleanup").ok()?;
        assert_eq!(world.nft("table inet weft-cni")?, ports);
        assert!(!world.nft("tables")?.contains("weft-proxy"));
        // The node port's Service came before the host port of that number.
        world.check_host_port(HOST_PORT)?;
        world.check_host_port(NODE_PORT)?;
        assert!(ask(&world.pods[2], (INNER, 80))?.is_err());
    }
    Ok(())
}

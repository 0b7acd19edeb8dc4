//! Rules 49 to 53: CHECK.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::{Cmd, Netns};

use crate::{
    bed::{Bed, Who, address, call_of, with},
    network::{NAMES, NONE, Network, VERSIONS, changes, links, nft_objects, traces},
};

#[test]
fn rule_49_right_after_add_it_is_content() -> Result<()> {
    let Some(bed) = Bed::new("rule49")? else { return Ok(()) };
    let four = json!([{"subnet": "10.99.0.0/24"}]);
    let six = json!([{"subnet": "fd99::/64"}]);
    for (index, ranges) in [json!([four]), json!([six]), json!([four, six])].into_iter().enumerate() {
        for version in &VERSIONS[4..] {
            let mut network = Network::chain(&bed, version).asking(18_080);
            network.plugins[0]["bridge"] = format!("br{index}").into();
            network.plugins[0]["ipam"]["routes"] = json!([]);
            network.plugins[0]["ipam"]["ranges"] = ranges.clone();
            // As a later plugin does: another address, and its result says so.
            network.plugins[1]["mac"] = "02:00:00:00:00:99".into();
            let pod = Netns::new()?;
            let who = Who::new("c1", &pod);
            let result = network.add(&who);
            assert!(result["interfaces"].to_string().contains("02:00:00:00:00:99"), "{result}");
            assert_eq!(network.check(&who), Ok(()), "{version} {ranges}");
            network.del(&who);
        }
    }
    for version in &VERSIONS[4..] {
        let mut network = Network::whole(&bed, version)?.asking(18_080);
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        network.add(&who);
        assert_eq!(network.check(&who), Ok(()), "{version}");
        network.del(&who);
    }
    Ok(())
}

#[test]
fn rule_50_without_a_previous_result_it_is_an_error() -> Result<()> {
    let Some(bed) = Bed::new("rule50")? else { return Ok(()) };
    for mut network in Network::both(&bed)? {
        network = network.asking(18_080);
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        network.add(&who);
        for index in 0..network.plugins.len() {
            let (_, text) = network.call("CHECK", index, &who, None).error();
            assert!(text.to_lowercase().contains("prevresult"), "{text}");
            assert!(index > 0 || text == "Required prevResult missing", "{text}");
        }
        network.del(&who);
    }
    Ok(())
}

/// What somebody does to an attachment: a line for the shell inside the pod or on the host. `VETH`, `IFB` and
/// `IP` are filled in.
const DAMAGE: [(bool, &str); 17] = [
    (true, "ip link del eth0"),
    (true, "ip link set eth0 down"),
    (true, "ip link set eth0 name eth7"),
    (true, "ip address flush dev eth0"),
    (true, "ip address replace IP/32 dev eth0; ip address del IP/24 dev eth0"),
    (true, "ip route del 10.42.0.0/16"),
    (true, "ip route del default"),
    (false, "ip link set VETH nomaster"),
    (false, "ip link add other type bridge; ip link set VETH master other"),
    (false, "ip link set VETH down"),
    (false, "tc qdisc del dev VETH root"),
    (false, "tc qdisc change dev VETH root tbf rate 9mbit burst 50000 latency 25ms"),
    (false, "tc qdisc del dev VETH ingress"),
    (false, "tc qdisc del dev IFB root"),
    (false, "ip link del IFB"),
    (false, "rm FOLDER/networks/cbr0/IP"),
    (false, "nft flush ruleset"),
];

struct Case<'a> {
    network: Network<'a>,
    pod: Netns,
    who: Who,
    result: Value,
}

impl<'a> Case<'a> {
    fn new(mut network: Network<'a>) -> Result<Self> {
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        let result = network.add(&who);
        Ok(Self { network, pod, who, result })
    }

    fn ip(&self) -> String {
        address(&self.result).split('/').next().unwrap_or_default().to_owned()
    }

    fn damage(&self, bed: &Bed, inside: bool, line: &str) -> Result<()> {
        let interfaces = self.result["interfaces"].as_array().context("a list")?;
        let name = |start: &str| {
            interfaces
                .iter()
                .filter_map(|i| i["name"].as_str())
                .find(|n| n.starts_with(start))
                .unwrap_or_default()
        };
        let folder = bed.dir.path().display().to_string();
        let line = line.replace("VETH", name("veth")).replace("IFB", name("bwp"));
        let line = Cmd::shell(line.replace("IP", &self.ip()).replace("FOLDER", &folder));
        if inside { self.pod.wrap(line) } else { line }.ok()?;
        Ok(())
    }

    /// CHECK is not content, and changes nothing.
    fn is_noticed(&self, bed: &Bed, what: &str) -> Result<()> {
        let state = || anyhow::Ok((traces(bed)?, settled(self.pod.cmd("ip -j address").json()?)));
        let before = state()?;
        let found = self.network.check(&self.who);
        assert!(found.is_err(), "{what} is not noticed");
        assert_eq!(state()?, before, "{what}");
        Ok(())
    }
}

/// Without what follows a damage late: that there is no carrier, and that an address is checked.
fn settled(mut links: Value) -> Value {
    for link in links.as_array_mut().into_iter().flatten() {
        link["operstate"] = Value::Null;
        if let Some(flags) = link["flags"].as_array_mut() {
            flags.retain(|flag| flag != "NO-CARRIER" && flag != "LOWER_UP");
        }
        for address in link["addr_info"].as_array_mut().into_iter().flatten() {
            address["tentative"] = Value::Null;
        }
    }
    links
}

#[test]
fn rule_51_each_loss_is_noticed() -> Result<()> {
    let Some(bed) = Bed::new("rule51")? else { return Ok(()) };
    for (inside, line) in DAMAGE {
        for network in Network::both(&bed)? {
            let case = Case::new(network.asking(18_080))?;
            assert_eq!(case.network.check(&case.who), Ok(()), "before {line}");
            case.damage(&bed, inside, line)?;
            case.is_noticed(&bed, line)?;
            case.network.del(&case.who);
            let _ = Cmd::new("ip link del other").run()?;
        }
    }
    Ok(())
}

#[test]
fn rule_51_each_lost_element_is_noticed() -> Result<()> {
    let Some(bed) = Bed::new("rule51nft")? else { return Ok(()) };
    for at in 0..2 {
        let network = || -> Result<Network<'_>> {
            let [one, two] = Network::both(&bed)?;
            Ok(if at == 0 { one } else { two }.asking(18_080))
        };
        let case = Case::new(network()?)?;
        let mut sets: Vec<(String, String)> = Vec::new();
        let ruleset = Cmd::new("nft -j list ruleset").json()?;
        for (kind, set) in
            ruleset["nftables"].as_array().into_iter().flatten().flat_map(|o| o.as_object()).flatten()
        {
            let elements = set["elem"].to_string();
            let own = elements.contains(&format!("\"{}\"", case.ip())) || elements.contains("18080");
            if (kind == "set" || kind == "map") && own {
                let text = |key: &str| set[key].as_str().unwrap_or_default().to_owned();
                sets.push((kind.clone(), format!("{} {} {}", text("family"), text("table"), text("name"))));
            }
        }
        case.network.del(&case.who);
        println!("{sets:?}");
        assert!(sets.len() >= 2, "masquerade and host port: {sets:?}");
        for (kind, set) in sets {
            let case = Case::new(network()?)?;
            Cmd::new(format!("nft flush {kind} {set}")).ok()?;
            case.is_noticed(&bed, &format!("the loss of the elements of {set}"))?;
            case.network.del(&case.who);
        }
    }
    Ok(())
}

#[test]
fn rule_52_it_makes_nothing() -> Result<()> {
    let Some(bed) = Bed::new("rule52")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("never", &pod);
    let previous = json!({"cniVersion": "1.1.0",
        "interfaces": [{"name": "cni0"}, {"name": "veth0"}, {"name": "eth0", "sandbox": who.netns}],
        "ips": [{"address": "10.42.3.9/24", "gateway": "10.42.3.1", "interface": 2}]});
    for network in Network::both(&bed)? {
        let network = network.asking(18_080);
        // The links to the program are the test's own.
        let before = traces(&bed)?;
        assert!(nft_objects()?.is_empty());
        for index in 0..network.plugins.len() {
            network.call("CHECK", index, &who, Some(&previous)).error();
        }
        assert_eq!((changes(&bed, &before)?, links(&pod)?), (vec![], vec!["lo".to_owned()]));
    }
    for name in NAMES {
        let config = with(&bed.bridge(), &json!({"type": name, "prevResult": previous}));
        let before = traces(&bed)?;
        call_of(&bed.program(name)?, "CHECK", &who, &config);
        assert_eq!(changes(&bed, &before)?, NONE, "{name}");
    }
    assert!(fs::exists(bed.path("bin/flannel"))? && !fs::exists(bed.path("networks"))?);
    Ok(())
}

#[test]
fn rule_53_what_others_add_does_not_matter() -> Result<()> {
    let Some(bed) = Bed::new("rule53")? else { return Ok(()) };
    for network in Network::both(&bed)? {
        let case = Case::new(network.asking(18_080))?;
        for line in [
            "ip address add 203.0.113.1/32 dev eth0",
            "ip address add fd53::1/64 dev eth0 nodad",
            "ip address add 10.42.3.250/24 dev eth0",
            "ip route add 203.0.113.0/24 via 10.42.3.1",
            "ip route add default via 10.42.3.1 metric 500",
            "ip link add more type dummy || ip link add more type veth peer name more1",
        ] {
            case.pod.wrap(Cmd::shell(line)).ok()?;
        }
        let elsewhere = Netns::new()?;
        let mut neighbour = Network::chain(&bed, "1.1.0").asking(18_085);
        neighbour.add(&Who::new("c2", &elsewhere));
        Cmd::new("ip address add 203.0.113.9/24 dev cni0").ok()?;
        Cmd::new("nft add table inet theirs").ok()?;
        assert_eq!(case.network.check(&case.who), Ok(()));
        Cmd::new("ip address del 203.0.113.9/24 dev cni0").ok()?;
        neighbour.del(&Who::new("c2", &elsewhere));
        case.network.del(&case.who);
    }
    Ok(())
}

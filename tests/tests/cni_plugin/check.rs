//! CHECK: silent right after ADD, and it notices each loss.

use std::fs;

use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Cmd, Netns};

use crate::bed::{Bed, Who, call, with};

fn dual(bed: &Bed) -> Value {
    let ranges = json!([[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]);
    with(
        &bed.bridge(),
        &json!({"ipam": {"type": "host-local", "dataDir": bed.path("networks"), "ranges": ranges,
                        "routes": [{"dst": "192.0.2.0/24"}]}}),
    )
}

#[test]
fn rule_51_52_each_loss_is_noticed_and_nothing_made() -> Result<()> {
    let Some(bed) = Bed::new("loss")? else { return Ok(()) };
    type Break = fn(&Bed, &Netns) -> Result<()>;
    let breaks: [(&str, Break); 10] = [
        ("interface eth0 does not exist", |_, pod| pod.cmd("ip link del eth0").ok().map(drop)),
        ("interface eth0 is down", |_, pod| pod.cmd("ip link set eth0 down").ok().map(drop)),
        ("address 10.99.0", |_, pod| pod.cmd("ip -4 address flush dev eth0").ok().map(drop)),
        ("address fd99::", |_, pod| pod.cmd("ip -6 address flush dev eth0 scope global").ok().map(drop)),
        ("route 192.0.2.0/24 is missing", |_, pod| pod.cmd("ip route del 192.0.2.0/24").ok().map(drop)),
        ("route 0.0.0.0/0 is missing", |_, pod| pod.cmd("ip route del default").ok().map(drop)),
        ("doesn't match", |_, pod| pod.cmd("ip link set eth0 address 02:00:00:00:00:01").ok().map(drop)),
        ("is not reserved for this container", |bed, _| {
            bed.reservations("net").iter().try_for_each(|ip| {
                fs::remove_file(bed.path("networks/net").join(ip)).map_err(anyhow::Error::from)
            })
        }),
        ("is no port of br0", |bed, _| {
            let veths = bed.veths()?;
            Cmd::new(format!("ip link set {} nomaster", veths[0])).ok().map(drop)
        }),
        ("gateway 10.99.0.1 is not on bridge br0", |_, _| {
            Cmd::new("ip address del 10.99.0.1/24 dev br0").ok().map(drop)
        }),
    ];
    for (wanted, damage) in breaks {
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        let config = dual(&bed);
        let result = call("ADD", &who, &config).result();
        let with_result = with(&config, &json!({"prevResult": result}));
        call("CHECK", &who, &with_result).silent();
        damage(&bed, &pod)?;
        let before = pod.cmd("ip -j address").json()?;
        let (_, text) = call("CHECK", &who, &with_result).error();
        assert!(text.contains(wanted), "{wanted}: {text}");
        assert_eq!(pod.cmd("ip -j address").json()?, before);
        call("DEL", &who, &with_result).silent();
        assert_eq!((bed.reservations("net").len(), bed.veths()?.len()), (0, 0), "{wanted}");
    }
    Ok(())
}

#[test]
fn a_flannel_pod_is_checked_without_the_subnet_file() -> Result<()> {
    let Some(bed) = Bed::new("nosubnet")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let mut config = with(&bed.flannel()?, &json!({"cniVersion": "1.1.0"}));
    config["delegate"]["ipMasq"] = true.into();
    let result = call("ADD", &who, &config).result();
    let config = with(&config, &json!({"prevResult": result}));
    fs::remove_file(bed.path("subnet.env"))?;
    call("CHECK", &who, &config).silent();
    Cmd::new("nft delete table inet weft-cni").ok()?;
    pod.cmd("ip route del default").ok()?;
    let (_, text) = call("CHECK", &who, &config).error();
    assert!(text.contains("route 0.0.0.0/0 is missing") && text.contains("10.42.3.2"), "{text}");
    Ok(())
}

#[test]
fn routes_of_absent_families_and_other_tables_are_not_missed() -> Result<()> {
    let Some(bed) = Bed::new("routes")? else { return Ok(()) };
    let ipam = json!({"type": "host-local", "dataDir": bed.path("networks"), "ranges": [[{"subnet": "10.99.0.0/24"}]],
        "routes": [{"dst": "::/0"}, {"dst": "192.0.2.0/24", "table": 300}, {"dst": "198.51.100.0/24"}]});
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        let config = with(&bed.bridge(), &json!({"cniVersion": version, "ipam": ipam}));
        let result = call("ADD", &who, &config).result();
        assert_eq!(pod.cmd("ip -j route show table 300").json()?[0]["dst"], "192.0.2.0/24");
        let checked = with(&config, &json!({"prevResult": result}));
        call("CHECK", &who, &checked).silent();
        assert!(!result.to_string().contains("::/0"), "it is not set: {result}");
        for (removed, missed) in
            [("198.51.100.0/24", "198.51.100.0/24"), ("192.0.2.0/24 table 300", "192.0.2.0/24")]
        {
            pod.cmd(format!("ip route del {removed}")).ok()?;
            let (_, text) = call("CHECK", &who, &checked).error();
            assert!(text.contains(&format!("route {missed} is missing")), "{text}");
        }
        call("DEL", &who, &config).silent();
    }
    Ok(())
}

//! `ipMasq`: what leaves the pod's subnet has the host's address.

use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Cmd, Netns};

use crate::bed::{Bed, Who, call, with};

/// Another machine beyond the host, which knows no way back to pods.
pub(crate) fn outside(bed: &Bed) -> Result<Netns> {
    let outside = Netns::new()?;
    bed.host
        .cmd(format!("ip link add out0 type veth peer name out1 netns {}", outside.path().display()))
        .ok()?;
    for line in [
        "ip addr add 192.0.2.1/24 dev out0",
        "ip -6 addr add 2001:db8::1/64 dev out0 nodad",
        "ip link set out0 up",
    ] {
        Cmd::new(line).ok()?;
    }
    for line in [
        "ip addr add 192.0.2.9/24 dev out1",
        "ip -6 addr add 2001:db8::9/64 dev out1 nodad",
        "ip link set out1 up",
    ] {
        outside.cmd(line).ok()?;
    }
    Ok(outside)
}

pub(crate) fn config(bed: &Bed) -> Value {
    let ranges = json!([[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]);
    with(
        &bed.bridge(),
        &json!({"ipMasq": true, "ipam": {"type": "host-local", "dataDir": bed.path("networks"), "ranges": ranges}}),
    )
}

/// The elements of our table as `nft` lists them.
fn elements() -> Result<String> {
    let sets = ["pods4", "homes4", "pods6", "homes6"].map(|set| format!("nft list set inet weft-cni {set}"));
    sets.iter().map(|line| Ok(Cmd::new(line).ok()?.stdout)).collect()
}

#[test]
fn what_leaves_is_masqueraded_and_what_stays_is_not() -> Result<()> {
    let Some(bed) = Bed::new("masq")? else { return Ok(()) };
    let outside = outside(&bed)?;
    let (one, two) = (Netns::new()?, Netns::new()?);
    let plain = with(&config(&bed), &json!({"ipMasq": false}));
    let (first, second) = (Who::new("c1", &one), Who::new("c2", &two));
    call("ADD", &second, &plain).result();
    assert_eq!(two.cmd("ping -n -c1 -W1 192.0.2.9").run()?.code, Some(1), "the far side knows no pods");
    let result = call("ADD", &first, &config(&bed)).result();
    for to in ["192.0.2.9", "2001:db8::9", "10.99.0.2", "10.99.0.1"] {
        one.cmd(format!("ping -n -c1 -W2 {to}")).ok()?;
    }
    let capture = bed.path("capture");
    let mut dump = testkit::Process::spawn(&two.cmd("tcpdump -lnni eth0 -c 1 icmp"), &capture)?;
    dump.wait_for_log("listening on", std::time::Duration::from_secs(10))?;
    one.cmd("ping -n -c1 -W2 10.99.0.2").ok()?;
    dump.wait_for_log("IP 10.99.0.3 > 10.99.0.2", std::time::Duration::from_secs(5))?;
    let listed = elements()?;
    assert_eq!(listed.matches("weft:net/c1/eth0").count(), 4, "{listed}");
    assert!(listed.contains("10.99.0.3 . 10.99.0.0/24"), "{listed}");
    call("CHECK", &first, &with(&config(&bed), &json!({"prevResult": result}))).silent();
    drop(outside);
    Ok(())
}

#[test]
fn del_takes_the_elements_of_its_own_pod_alone() -> Result<()> {
    let Some(bed) = Bed::new("unmasq")? else { return Ok(()) };
    let config = config(&bed);
    let pods = [Netns::new()?, Netns::new()?, Netns::new()?, Netns::new()?];
    let whos: Vec<Who> =
        pods.iter().zip(["c1", "c2", "c3", "c4"]).map(|(pod, id)| Who::new(id, pod)).collect();
    let results: Vec<Value> = whos.iter().map(|who| call("ADD", who, &config).result()).collect();
    call("DEL", &whos[0], &with(&config, &json!({"prevResult": results[0]}))).silent();
    call("DEL", &whos[1].homeless(), &config).silent();
    call("DEL", &whos[2], &with(&config, &json!({"ipMasq": false}))).silent();
    let left = elements()?;
    for (id, count) in [("c1", 0), ("c2", 0), ("c3", 0), ("c4", 4)] {
        assert_eq!(left.matches(&format!("weft:net/{id}/eth0")).count(), count, "{id}: {left}");
    }
    let full = with(&config, &json!({"prevResult": results[3]}));
    call("CHECK", &whos[3], &full).silent();
    Cmd::new("nft flush set inet weft-cni pods4").ok()?;
    let (_, text) = call("CHECK", &whos[3], &full).error();
    assert!(text.contains("address 10.99.0.5 is not masqueraded"), "{text}");
    call("DEL", &whos[3], &full).silent();
    let result = call("ADD", &whos[3], &config).result();
    let full = with(&config, &json!({"prevResult": result}));
    call("CHECK", &whos[3], &full).silent();
    Cmd::new("nft flush chain inet weft-cni postrouting").ok()?;
    assert!(call("CHECK", &whos[3], &full).error().1.contains("rules of address translation are not whole"));
    Cmd::new("nft flush ruleset").ok()?;
    call("DEL", &whos[3], &full).silent();
    assert_eq!((bed.reservations("net").len(), bed.veths()?.len()), (0, 0));
    Ok(())
}

#[test]
fn a_table_that_others_broke_is_made_whole() -> Result<()> {
    let Some(bed) = Bed::new("masqbroken")? else { return Ok(()) };
    let (one, two) = (Netns::new()?, Netns::new()?);
    let config = config(&bed);
    call("ADD", &Who::new("c1", &one), &config).result();
    Cmd::new("nft delete chain inet weft-cni postrouting").ok()?;
    Cmd::new("nft delete set inet weft-cni homes4").ok()?;
    let who = Who::new("c2", &two);
    let result = call("ADD", &who, &config).result();
    call("CHECK", &who, &with(&config, &json!({"prevResult": result}))).silent();
    let listed = elements()?;
    // What was in that set of others is gone with it.
    assert_eq!((listed.matches("/c1/").count(), listed.matches("/c2/").count()), (3, 4), "{listed}");
    Ok(())
}

#[test]
fn rules_that_others_flushed_are_there_after_the_next_add() -> Result<()> {
    let Some(bed) = Bed::new("masqflush")? else { return Ok(()) };
    let outside = outside(&bed)?;
    let (one, two) = (Netns::new()?, Netns::new()?);
    call("ADD", &Who::new("c1", &one), &config(&bed)).result();
    Cmd::new("nft flush chain inet weft-cni postrouting").ok()?;
    assert_eq!(one.cmd("ping -n -c1 -W1 192.0.2.9").run()?.code, Some(1));
    call("ADD", &Who::new("c2", &two), &config(&bed)).result();
    for pod in [&one, &two] {
        pod.cmd("ping -n -c1 -W2 192.0.2.9").ok()?;
    }
    Cmd::new("nft flush chain inet weft-cni postrouting").ok()?;
    let valid = json!([{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c2", "ifname": "eth0"}]);
    call("GC", &Who::new("c1", &one), &with(&config(&bed), &json!({"cni.dev/valid-attachments": valid})))
        .silent();
    one.cmd("ping -n -c1 -W2 192.0.2.9").ok()?;
    drop(outside);
    Ok(())
}

#[test]
fn an_element_that_a_dead_owner_left_is_the_new_owners() -> Result<()> {
    let Some(bed) = Bed::new("masqold")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let config = config(&bed);
    call("ADD", &who, &config).result();
    call("DEL", &who, &config).silent();
    Cmd::new("nft add element inet weft-cni pods4")
        .arg("{ 10.99.0.3 comment \"weft:net/dead/eth0\" }")
        .ok()?;
    let result = call("ADD", &who, &config).result();
    assert_eq!(result["ips"][0]["address"], "10.99.0.3/24");
    call("CHECK", &who, &with(&config, &json!({"prevResult": result}))).silent();
    let valid = json!([{"containerID": "c1", "ifname": "eth0"}]);
    call("GC", &who, &with(&config, &json!({"cni.dev/valid-attachments": valid}))).silent();
    call("CHECK", &who, &with(&config, &json!({"prevResult": result}))).silent();
    Ok(())
}

#[test]
fn rule_47_a_late_del_leaves_the_address_to_who_has_it_in_another_network() -> Result<()> {
    let Some(bed) = Bed::new("masqlate")? else { return Ok(()) };
    let (lost, pod) = (Netns::new()?, Netns::new()?);
    let old = config(&bed);
    let who = Who::new("c1", &lost);
    call("ADD", &who, &old).result();
    lost.cmd("ip link del eth0").ok()?;
    let config = with(&old, &json!({"name": "new"}));
    let result = call("ADD", &Who::new("c2", &pod), &config).result();
    assert_eq!(result["ips"][0]["address"], "10.99.0.2/24", "the same");
    call("DEL", &who.homeless(), &old).silent();
    call("CHECK", &Who::new("c2", &pod), &with(&config, &json!({"prevResult": result}))).silent();
    call("DEL", &Who::new("c2", &pod), &config).silent();
    assert!(!elements()?.contains("weft:"));
    Ok(())
}

#[test]
fn networks_with_subnets_in_each_other_are_both_masqueraded() -> Result<()> {
    for subnets in [["10.99.0.0/16", "10.99.7.0/24"], ["10.99.7.0/24", "10.99.0.0/16"]] {
        let Some(bed) = Bed::new("masqnested")? else { return Ok(()) };
        let outside = outside(&bed)?;
        let pods = [Netns::new()?, Netns::new()?];
        for ((pod, subnet), name) in pods.iter().zip(subnets).zip(["one", "two"]) {
            let ipam = json!({"type": "host-local", "dataDir": bed.path("networks"), "subnet": subnet});
            let network = json!({"name": name, "bridge": name, "ipMasq": true, "ipam": ipam});
            let config = with(&bed.bridge(), &network);
            let result = call("ADD", &Who::new("c1", pod), &config).result();
            call("CHECK", &Who::new("c1", pod), &with(&config, &json!({"prevResult": result}))).silent();
            pod.cmd("ping -n -c1 -W2 192.0.2.9").ok()?;
        }
        // What lies in the wide one is outside of the narrow one.
        outside.cmd("ip address add 10.99.50.1/32 dev lo").ok()?;
        Cmd::new("ip route add 10.99.50.1/32 via 192.0.2.9").ok()?;
        assert_eq!(Cmd::new("nft list set inet weft-cni homes4").ok()?.stdout.matches("/c1/").count(), 2);
        for (pod, subnet) in pods.iter().zip(subnets) {
            pod.cmd("ping -n -c1 -W2 192.0.2.9").ok()?;
            if subnet.ends_with("/24") {
                pod.cmd("ping -n -c1 -W2 10.99.50.1").ok()?;
            }
        }
        drop(outside);
    }
    Ok(())
}

#[test]
fn a_failed_add_leaves_no_element() -> Result<()> {
    let Some(bed) = Bed::new("masqfail")? else { return Ok(()) };
    let pod = Netns::new()?;
    let ports = json!([{"hostPort": 8080, "containerPort": 80}]);
    let handed = json!({"capabilities": {"portMappings": true}, "runtimeConfig": {"portMappings": ports}});
    let mut config = with(&config(&bed), &handed);
    config["ipam"]["routes"] = json!([{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}]);
    call("ADD", &Who::new("c1", &pod), &config).error();
    let table = Cmd::new("nft list table inet weft-cni").ok()?.stdout;
    assert!(!table.contains("weft:net"), "{table}");
    Ok(())
}

#[test]
fn sixteen_first_calls_make_one_table_and_sixteen_last_ones_empty_it() -> Result<()> {
    let Some(bed) = Bed::new("masq16")? else { return Ok(()) };
    let pods: Vec<Netns> = (0..16).map(|_| Netns::new()).collect::<Result<_>>()?;
    for answer in crate::crowd::add_all(&bed.host, &pods, &config(&bed), 16) {
        answer.result();
    }
    let table = Cmd::new("nft list table inet weft-cni").ok()?.stdout;
    assert_eq!(table.matches(" masquerade").count(), 4, "{table}");
    assert_eq!(elements()?.matches("weft:net/").count(), 64);
    for answer in crate::crowd::call_all("DEL", &bed.host, &pods, &config(&bed), 16) {
        answer.silent();
    }
    let left = elements()?;
    assert!(!left.contains("elements"), "{left}");
    Ok(())
}

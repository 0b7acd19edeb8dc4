//! Both families of addresses, and a host with routers or without IPv6.

use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Cmd, Netns};

use crate::{
    bed::{Bed, Who, addresses, call, device, with},
    routes::route,
};

#[test]
fn both_families_at_once_and_no_waiting_for_duplicates() -> Result<()> {
    let Some(bed) = Bed::new("dual")? else { return Ok(()) };
    let pod = Netns::new()?;
    // What container runtimes set in every new namespace.
    pod.cmd("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1").ok()?;
    let ranges = json!([[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]);
    let config = with(
        &bed.bridge(),
        &json!({"ipam": {"type": "host-local", "dataDir": bed.path("networks"), "ranges": ranges}}),
    );
    let result = call("ADD", &Who::new("c1", &pod), &config).result();
    let eth0 = device(&pod, "eth0")?;
    assert_eq!(addresses(&eth0), ["10.99.0.2/24", "fd99::2/64"]);
    let global = eth0["addr_info"].as_array().unwrap().iter().find(|a| a["local"] == "fd99::2").unwrap();
    assert_eq!((&global["nodad"], &global["tentative"]), (&json!(true), &Value::Null), "{global}");
    assert_eq!(route(&pod, "default")?["gateway"], "10.99.0.1");
    assert_eq!(pod.cmd("ip -j -6 route show default").json()?[0]["gateway"], "fd99::1");
    pod.cmd("ping -6 -n -c1 -W2 fd99::1").ok()?;
    assert_eq!(addresses(&device(&bed.host, "br0")?), ["10.99.0.1/24", "fd99::1/64"]);
    assert_eq!(
        result["routes"],
        json!([{"dst": "0.0.0.0/0", "gw": "10.99.0.1"}, {"dst": "::/0", "gw": "fd99::1"}])
    );
    assert_eq!(Cmd::new("sysctl -n net.ipv6.conf.all.forwarding").ok()?.stdout.trim(), "1");
    Ok(())
}

#[test]
fn routes_that_routers_advertised_survive_forwarding() -> Result<()> {
    let Some(bed) = Bed::new("ra")? else { return Ok(()) };
    Cmd::new("sysctl -qw net.ipv6.conf.default.disable_ipv6=0 net.ipv6.conf.all.forwarding=0").ok()?;
    for line in [
        "ip link add up0 type veth peer name far0",
        "ip link add quiet0 type veth peer name far1",
        "ip link set up0 up",
        "ip link set far0 up",
        "ip -6 route add default via fe80::1 dev up0 proto ra",
        "sysctl -qw net.ipv6.conf.default.disable_ipv6=1",
    ] {
        Cmd::new(line).ok()?;
    }
    let pod = Netns::new()?;
    let mut config = bed.bridge();
    config["ipam"]["ranges"] = json!([[{"subnet": "fd99::/64"}]]);
    call("ADD", &Who::new("c1", &pod), &config).result();
    pod.cmd("ping -6 -n -c1 -W2 fd99::1").ok()?;
    let value = |name: &str| Cmd::new(format!("sysctl -n net.ipv6.conf.{name}")).ok();
    assert_eq!(value("all.forwarding")?.stdout.trim(), "1");
    assert_eq!((value("up0.accept_ra")?.stdout.trim(), value("quiet0.accept_ra")?.stdout.trim()), ("2", "1"));
    Ok(())
}

#[test]
fn a_host_without_ipv6_is_fine() -> Result<()> {
    let Some(bed) = Bed::new("no6")? else { return Ok(()) };
    Cmd::new("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1").ok()?;
    let pod = Netns::new()?;
    pod.cmd("sysctl -qw net.ipv6.conf.all.disable_ipv6=1").ok()?;
    let who = Who::new("c1", &pod);
    let config = bed.flannel()?;
    let result = call("ADD", &who, &config).result();
    pod.cmd("ping -n -c1 -W2 10.42.3.1").ok()?;
    call("CHECK", &who, &with(&config, &json!({"prevResult": result}))).silent();
    call("DEL", &who, &config).silent();
    Ok(())
}

//! Routes of `ipam.routes`, and their options.

use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Cmd, Netns};

use crate::bed::{Bed, Who, call, with};

/// The first route to exactly that destination.
pub(crate) fn route(ns: &Netns, dst: &str) -> Result<Value> {
    let six = if dst.contains(':') { "-6" } else { "-4" };
    Ok(ns.cmd(format!("ip -j {six} route show exact {dst}")).json()?[0].clone())
}

fn of(bed: &Bed, routes: &Value) -> Value {
    let mut config = bed.bridge();
    config["ipam"]["routes"] = routes.clone();
    config["ipam"]["ranges"] = json!([[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]);
    config
}

#[test]
fn what_is_on_the_link_gets_no_gateway() -> Result<()> {
    let Some(bed) = Bed::new("scope")? else { return Ok(()) };
    let pod = Netns::new()?;
    let routes = json!([{"dst": "192.0.2.0/24", "scope": 253}, {"dst": "198.51.100.0/24", "scope": 254},
        {"dst": "203.0.113.0/24", "scope": 0}, {"dst": "fd77::/64", "scope": 253}]);
    let (who, config) = (Who::new("c1", &pod), of(&bed, &routes));
    let result = call("ADD", &who, &config).result();
    assert_eq!(result["routes"].as_array().map(|all| &all[..4]), routes.as_array().map(|all| &all[..]));
    let found = |family: &str, dst: &str| pod.cmd(format!("ip -j {family} route show {dst}")).json();
    for (dst, scope) in [("192.0.2.0/24", "link"), ("198.51.100.0/24", "host")] {
        let route = &found("-4", dst)?[0];
        assert_eq!((&route["scope"], &route["gateway"]), (&json!(scope), &Value::Null), "{route}");
    }
    assert_eq!(found("-4", "203.0.113.0/24")?[0]["gateway"], "10.99.0.1");
    assert_eq!(found("-6", "fd77::/64")?[0]["gateway"], Value::Null);
    // A neighbour on the bridge, outside the pod's subnet.
    Cmd::new("ip address add 192.0.2.7/24 dev br0").ok()?;
    pod.cmd("ping -n -c1 -W2 192.0.2.7").ok()?;
    call("CHECK", &who, &with(&config, &json!({"prevResult": result}))).silent();
    Ok(())
}

#[test]
fn segments_are_as_long_as_the_route_says() -> Result<()> {
    let Some(bed) = Bed::new("advmss")? else { return Ok(()) };
    let pod = Netns::new()?;
    let routes =
        json!([{"dst": "192.0.2.0/24", "advmss": 1200, "mtu": 1300}, {"dst": "fd77::/64", "advmss": 1210}]);
    let result = call("ADD", &Who::new("c1", &pod), &of(&bed, &routes)).result();
    assert_eq!(result["routes"].as_array().map(|all| &all[..2]), routes.as_array().map(|all| &all[..]));
    let four = pod.cmd("ip -4 route show 192.0.2.0/24").ok()?.stdout;
    assert!(four.contains("mtu 1300") && four.contains("advmss 1200"), "{four}");
    let six = pod.cmd("ip -6 route show fd77::/64").ok()?.stdout;
    assert!(six.contains("advmss 1210"), "{six}");
    Ok(())
}

#[test]
fn routes_keep_their_options() -> Result<()> {
    let Some(bed) = Bed::new("routes")? else { return Ok(()) };
    let pod = Netns::new()?;
    let routes = json!([
        {"dst": "192.0.2.0/24", "priority": 77, "mtu": 1280},
        {"dst": "198.51.100.0/24", "gw": "10.99.0.9", "table": 300},
        {"dst": "10.99.0.0/24"},
    ]);
    let mut config = bed.bridge();
    config["ipam"]["routes"] = routes.clone();
    let result = call("ADD", &Who::new("c1", &pod), &config).result();
    assert_eq!(result["routes"].as_array().unwrap()[..3], routes.as_array().unwrap()[..]);
    let first = route(&pod, "192.0.2.0/24")?;
    assert_eq!((&first["metric"], &first["gateway"]), (&json!(77), &json!("10.99.0.1")), "{first}");
    assert!(first["metrics"].to_string().contains("1280"), "{first}");
    let other = pod.cmd("ip -j route show table 300").json()?;
    assert_eq!(other[0]["gateway"], "10.99.0.9", "{other}");
    Ok(())
}

//! The loopback interface.

use std::thread;

use anyhow::Result;
use serde_json::{Value, json};
use testkit::Netns;

use crate::bed::{Bed, Who, call, call_of, device, with};

fn config(version: &str) -> Value {
    json!({"cniVersion": version, "name": "cni-loopback", "type": "loopback"})
}

fn on_lo(id: &str, pod: &Netns) -> Result<Who> {
    pod.cmd("ip link set lo down").ok()?;
    Ok(Who { ifname: "lo".to_owned(), ..Who::new(id, pod) })
}

fn is_up(pod: &Netns) -> Result<bool> {
    Ok(device(pod, "lo")?["flags"].as_array().is_some_and(|flags| flags.contains(&json!("UP"))))
}

#[test]
fn lo_goes_up_and_down_in_every_version() -> Result<()> {
    let Some(bed) = Bed::new("lo")? else { return Ok(()) };
    let program = bed.program("loopback")?;
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Netns::new()?;
        let (who, config) = (on_lo("c1", &pod)?, config(version));
        let result = call_of(&program, "ADD", &who, &config).result();
        assert!(is_up(&pod)?);
        pod.cmd("ping -c1 -W1 127.0.0.1").ok()?;
        let ip = |address: &str| match version {
            "0.3.0" | "0.3.1" | "0.4.0" => {
                let family = if address.contains(':') { "6" } else { "4" };
                json!({"version": family, "interface": 0, "address": address})
            }
            _ => json!({"interface": 0, "address": address}),
        };
        let lo = json!([{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": who.netns}]);
        let mut wanted = match version {
            "0.1.0" | "0.2.0" => json!({"ip4": {"ip": "127.0.0.1/8"}, "ip6": {"ip": "::1/128"}}),
            _ => json!({"interfaces": lo, "ips": [ip("127.0.0.1/8"), ip("::1/128")]}),
        };
        wanted["cniVersion"] = json!(version);
        if !version.starts_with('1') {
            wanted["dns"] = json!({});
        }
        assert_eq!(result, wanted);
        // A second time is as good.
        assert_eq!(call_of(&program, "ADD", &who, &config).result(), wanted);
        let checks = version.starts_with('1') || version == "0.4.0";
        let with_result = with(&config, &json!({"prevResult": result}));
        if checks {
            call_of(&program, "CHECK", &who, &with_result).silent();
        }
        for _ in 0..2 {
            call_of(&program, "DEL", &who, &with_result).silent();
            assert!(!is_up(&pod)?);
        }
        if checks {
            let (_, text) = call_of(&program, "CHECK", &who, &with_result).error();
            assert_eq!(text, "loopback interface is down");
        }
    }
    Ok(())
}

#[test]
fn a_lost_namespace_is_an_error_at_add_alone() -> Result<()> {
    let Some(bed) = Bed::new("nolo")? else { return Ok(()) };
    let program = bed.program("loopback")?;
    for netns in ["", "/run/netns/does-not-exist"] {
        let who = Who { id: "c1".into(), ifname: "lo".into(), netns: netns.into() };
        call_of(&program, "DEL", &who, &config("0.3.1")).silent();
        call_of(&program, "ADD", &who, &config("0.3.1")).error();
    }
    Ok(())
}

#[test]
fn in_a_chain_it_passes_on_what_came() -> Result<()> {
    let Some(bed) = Bed::new("lochain")? else { return Ok(()) };
    let (program, pod) = (bed.program("loopback")?, Netns::new()?);
    let previous =
        json!({"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "/n", "pciID": "0"}]});
    let config = with(&config("1.1.0"), &json!({"prevResult": previous}));
    assert_eq!(call_of(&program, "ADD", &on_lo("c1", &pod)?, &config).result(), previous);
    assert!(is_up(&pod)?);
    Ok(())
}

#[test]
fn it_runs_beside_the_main_chain_in_one_namespace() -> Result<()> {
    let Some(bed) = Bed::new("lobeside")? else { return Ok(()) };
    let (program, main) = (bed.program("loopback")?, bed.bridge());
    for round in 0..10 {
        let pod = Netns::new()?;
        let (lo, eth) = (on_lo(&format!("c{round}"), &pod)?, Who::new(&format!("c{round}"), &pod));
        thread::scope(|scope| {
            // In the namespace of the host, too.
            let host = &bed.host;
            let side =
                scope.spawn(|| host.inside(|| call_of(&program, "ADD", &lo, &config("0.3.1")).result()));
            call("ADD", &eth, &main).result();
            side.join().expect("no panic")
        })?;
        assert!(is_up(&pod)? && !device(&pod, "eth0")?.is_null());
        call_of(&program, "DEL", &lo, &config("0.3.1")).silent();
        call("DEL", &eth, &main).silent();
    }
    Ok(())
}

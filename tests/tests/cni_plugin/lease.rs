//! `flannel` and the node's subnet: there, late, garbled, another one.

use std::fs;

use anyhow::Result;
use serde_json::json;
use testkit::{Cmd, Netns};

use crate::bed::{Bed, Who, addresses, call, device, nobody, with};

#[test]
fn a_missing_subnet_file_is_named_with_flannelds_reason() -> Result<()> {
    let Some(bed) = Bed::new("noenv")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let config = bed.flannel()?;
    fs::remove_file(bed.path("subnet.env"))?;
    let path = bed.path("subnet.env");
    let wanted = format!(
        "failed to load flannel 'subnet.env' file: open {}: no such file or directory. Check the flannel pod log for this node.",
        path.display()
    );
    assert_eq!(call("ADD", &who, &config).error(), (11, wanted.clone()));
    bed.dir.write(
        "status.json",
        r#"{"ready":false,"problem":"etcd at http://192.0.2.1:2379 does not answer"}"#,
    )?;
    let (_, text) = call("ADD", &who, &config).error();
    assert_eq!(text, format!("{wanted} flanneld says: etcd at http://192.0.2.1:2379 does not answer"));
    bed.dir.write("subnet.env", "FLANNEL_NETWORK=10.42.0.0/16\ngarbage\n\n")?;
    let (code, text) = call("ADD", &who, &config).error();
    assert_eq!(code, 11);
    assert_eq!(text, format!("{} is missing FLANNEL_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ", path.display()));
    bed.dir.write("subnet.env", "FLANNEL_SUBNET=nonsense\n")?;
    assert!(call("ADD", &who, &config).error().1.contains("\"nonsense\" is not a subnet"));
    fs::remove_file(&path)?;
    Cmd::new(format!("mkfifo {}", path.display())).ok()?;
    assert!(
        call("STATUS", &nobody(), &with(&config, &json!({"cniVersion": "1.1.0"})))
            .error()
            .1
            .contains("it is no regular file")
    );
    Ok(())
}

#[test]
fn a_flannel_node_of_both_families_works() -> Result<()> {
    let Some(bed) = Bed::new("flannel6")? else { return Ok(()) };
    let pod = Netns::new()?;
    let config = bed.flannel()?;
    bed.dir.write(
        "subnet.env",
        "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\nFLANNEL_IPV6_NETWORK=fd42::/56\n\
         FLANNEL_IPV6_SUBNET=fd42:0:0:3::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n",
    )?;
    let who = Who::new("c1", &pod);
    call("ADD", &who, &config).result();
    assert_eq!(addresses(&device(&pod, "eth0")?), ["10.42.3.2/24", "fd42:0:0:3::2/64"]);
    assert_eq!(pod.cmd("ip -j -6 route show fd42::/56").json()?[0]["gateway"], "fd42:0:0:3::1");
    pod.cmd("ping -6 -n -c1 -W2 fd42:0:0:3::1").ok()?;
    let masquerade = Cmd::new("nft list set inet weft-cni pods4").ok()?.stdout;
    assert!(masquerade.contains("weft:cbr0/c1/eth0"), "flanneld does not, so the plugin does: {masquerade}");
    call("DEL", &who, &config).silent();
    assert!(!Cmd::new("nft list table inet weft-cni").ok()?.stdout.contains("weft:cbr0"));
    Ok(())
}

#[test]
fn a_bridge_of_an_earlier_subnet_is_readdressed_once_it_is_empty() -> Result<()> {
    let Some(bed) = Bed::new("lease")? else { return Ok(()) };
    let (old, new) = (Netns::new()?, Netns::new()?);
    let config = with(&bed.flannel()?, &json!({"cniVersion": "1.1.0"}));
    let lease = |net: u8, third: u8, mtu: u16| {
        let text = format!(
            "FLANNEL_NETWORK=10.{net}.0.0/16\nFLANNEL_SUBNET=10.{net}.{third}.1/24\nFLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=true\n"
        );
        bed.dir.write("subnet.env", text)
    };
    call("ADD", &Who::new("c1", &old), &config).result();
    lease(42, 7, 1450)?;
    let wanted = "\"cni0\" already has an IP address different from 10.42.7.1/24: 10.42.3.1/24 is held by c1/eth0 of cbr0";
    assert_eq!(call("ADD", &Who::new("c2", &new), &config).error(), (999, wanted.into()));
    assert_eq!(call("STATUS", &nobody(), &config).error(), (51, wanted.into()));
    old.cmd("ping -n -c1 -W2 10.42.3.1").ok()?;
    call("DEL", &Who::new("c1", &old), &config).silent();
    call("STATUS", &nobody(), &config).silent();
    call("ADD", &Who::new("c2", &new), &config).result();
    assert_eq!(addresses(&device(&bed.host, "cni0")?), ["10.42.7.1/24"]);
    new.cmd("ping -n -c1 -W2 10.42.7.1").ok()?;
    call("DEL", &Who::new("c2", &new), &config).silent();
    lease(55, 9, 1380)?;
    call("ADD", &Who::new("c3", &new), &config).result();
    let bridge = device(&bed.host, "cni0")?;
    assert_eq!((addresses(&bridge), bridge["mtu"].as_u64()), (vec!["10.55.9.1/24".into()], Some(1380)));
    // An MTU that grew counts for new pods, which an address that is held keeps nobody from.
    lease(55, 9, 1450)?;
    call("ADD", &Who::new("c4", &old), &config).result();
    assert_eq!(device(&bed.host, "cni0")?["mtu"], 1450);
    old.cmd("ping -n -c1 -W2 -M do -s 1422 10.55.9.1").ok()?;
    Ok(())
}

#[test]
fn a_bridge_of_an_earlier_subnet_of_ipv6_is_readdressed_once_it_is_empty() -> Result<()> {
    let Some(bed) = Bed::new("lease6")? else { return Ok(()) };
    let (old, new) = (Netns::new()?, Netns::new()?);
    let config = with(&bed.flannel()?, &json!({"cniVersion": "1.1.0"}));
    let lease = |third: u8, six: Option<u8>| {
        let six = six
            .map(|six| format!("FLANNEL_IPV6_NETWORK=fd42::/56\nFLANNEL_IPV6_SUBNET=fd42:0:0:{six}::1/64\n"));
        let text = format!(
            "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.{third}.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n{}",
            six.unwrap_or_default()
        );
        bed.dir.write("subnet.env", text)
    };
    let bridge = || device(&bed.host, "cni0");
    lease(3, Some(3))?;
    call("ADD", &Who::new("c1", &old), &config).result();
    lease(3, Some(9))?;
    let wanted = "\"cni0\" already has an IP address different from fd42:0:0:9::1/64: fd42:0:0:3::1/64 is held by c1/eth0 of cbr0";
    assert_eq!(call("ADD", &Who::new("c2", &new), &config).error(), (999, wanted.into()));
    assert_eq!(call("STATUS", &nobody(), &config).error(), (51, wanted.into()));
    old.cmd("ping -6 -n -c1 -W2 fd42:0:0:3::1").ok()?;
    call("DEL", &Who::new("c1", &old), &config).silent();
    call("STATUS", &nobody(), &config).silent();
    call("ADD", &Who::new("c2", &new), &config).result();
    assert_eq!(addresses(&bridge()?), ["10.42.3.1/24", "fd42:0:0:9::1/64"]);
    assert!(bridge()?.to_string().contains("\"fe80::"), "the link-local address stays");
    assert!(!Cmd::new("ip -6 route").ok()?.stdout.contains("fd42:0:0:3::"));
    new.cmd("ping -6 -n -c1 -W2 fd42:0:0:9::1").ok()?;
    call("STATUS", &nobody(), &config).silent();
    call("DEL", &Who::new("c2", &new), &config).silent();
    lease(8, None)?;
    call("ADD", &Who::new("c3", &new), &config).result();
    assert_eq!(addresses(&bridge()?), ["10.42.8.1/24"]);
    Ok(())
}

#[test]
fn add_waits_for_flanneld_to_start() -> Result<()> {
    let Some(bed) = Bed::new("soon")? else { return Ok(()) };
    let pod = Netns::new()?;
    let config = bed.flannel()?;
    let (file, away) = (bed.path("subnet.env"), bed.path("later.env"));
    fs::rename(&file, &away)?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_secs(1));
            fs::rename(&away, &file).expect("renamed");
        });
        call("ADD", &Who::new("c1", &pod), &config).result();
    });
    Ok(())
}

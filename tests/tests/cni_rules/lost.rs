//! Rules 40 to 46: DEL is complete, whatever has been lost since ADD.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::{Cmd, Netns};

use crate::{
    bed::{Bed, Who, address, with},
    network::{NONE, Network, VERSIONS, changes, left, links, traces, used},
};

/// Adds `c1`, lets `lose` happen, calls what it gives back, and looks that nothing is left.
fn complete(
    bed: &Bed,
    mut network: Network<'_>,
    what: &str,
    lose: impl Fn(&mut Network<'_>, Who, Netns, &Value) -> Result<()>,
) -> Result<()> {
    network = network.asking(18_080);
    let before = used(&mut network)?;
    let plugins = network.plugins.clone();
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let result = network.add(&who);
    lose(&mut network, who, pod, &result)?;
    // What was broken on purpose is not a trace.
    network.plugins = plugins;
    bed.flannel()?;
    assert_eq!(changes(bed, &before)?, NONE, "{what}");
    Ok(())
}

/// Both forms of a network.
fn each(what: &str, lose: impl Fn(&mut Network<'_>, Who, Netns, &Value) -> Result<()> + Copy) -> Result<()> {
    let Some(bed) = Bed::new("lost")? else { return Ok(()) };
    for network in Network::both(&bed)? {
        complete(&bed, network, what, lose)?;
    }
    Ok(())
}

#[test]
fn rule_40_the_namespace_is_missing() -> Result<()> {
    for with_result in [true, false] {
        each("closed", |network, who, pod, result| {
            drop(pod);
            network.del_with(&who, with_result.then_some(result));
            Ok(())
        })?;
    }
    let paths = ["/run/netns/is-gone", "/dev/null", "/proc/self/ns/mnt", "/", "/proc/self/ns/net"];
    for (at, path) in paths.into_iter().enumerate() {
        each(path, |network, who, _pod, result| {
            let who = Who { netns: path.to_owned(), ..who };
            network.del_with(&who, (at % 2 == 0).then_some(result));
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn rule_40_the_path_is_another_namespace_by_now() -> Result<()> {
    each("another", |network, who, _pod, result| {
        let other = Netns::new()?;
        other.cmd("ip link add eth0 type veth peer name theirs").ok()?;
        network.del_with(&Who { netns: other.path().display().to_string(), ..who }, Some(result));
        assert_eq!(links(&other)?.len(), 3, "links of a stranger under the same name stay");
        Ok(())
    })
}

#[test]
fn rule_41_no_namespace_is_named_while_it_lives() -> Result<()> {
    each("homeless", |network, who, pod, result| {
        network.del_with(&who.homeless(), Some(result));
        assert_eq!(links(&pod)?, ["lo"], "the pod can't go on using the address");
        let second = Netns::new()?;
        network.add(&Who::new("c2", &second));
        second.cmd("ping -n -c1 -W2 10.42.3.1").ok()?;
        network.del(&Who::new("c2", &second));
        Ok(())
    })
}

#[test]
fn rule_42_there_is_no_previous_result() -> Result<()> {
    each("bare", |network, who, _pod, _| {
        network.del_bare(&who);
        Ok(())
    })
}

#[test]
fn rule_43_the_previous_result_is_of_another_version() -> Result<()> {
    for version in VERSIONS {
        each(version, |network, who, _pod, result| {
            let ip = &result["ips"][0];
            let old = json!({"cniVersion": version, "dns": {},
                "ip4": {"ip": ip["address"], "gateway": ip["gateway"], "routes": result["routes"]}});
            let mut new = with(result, &json!({"cniVersion": version}));
            if version < "1.0.0" {
                new["ips"][0]["version"] = "4".into();
            }
            network.del_with(&who, Some(if version < "0.3.0" { &old } else { &new }));
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn rule_44_the_configuration_has_changed() -> Result<()> {
    let ranges = json!([[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]]);
    let changes = [
        json!({"bridge": "br9", "mtu": 9000, "ipMasq": false, "delegate": {"bridge": "br9", "ipMasq": false}}),
        json!({"ipam": {"type": "host-local", "dataDir": "/does-not-exist", "ranges": ranges}}),
        json!({"ipam": {"type": "host-local", "subnet": "10.77.0.0/24"}, "subnetFile": "/does-not-exist"}),
        json!({"ipam": {"type": "host-local", "ranges": [["garbage"]], "routes": 7}}),
        json!({"ipam": {}, "capabilities": null, "delegate": null}),
        json!({"sysctl": {}, "runtimeConfig": null, "capabilities": {}, "snat": false}),
    ];
    for change in &changes {
        each(&change.to_string(), |network, who, _pod, _| {
            for plugin in &mut network.plugins {
                *plugin = with(plugin, change);
            }
            network.runtime = Value::Null;
            network.del_bare(&who);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn rule_45_the_subnet_file_is_missing() -> Result<()> {
    let Some(bed) = Bed::new("rule45")? else { return Ok(()) };
    for text in [None, Some(""), Some("\0\0garbage"), Some("FLANNEL_SUBNET=10.77.0.1/24\n")] {
        for with_result in [true, false] {
            complete(
                &bed,
                Network::whole(&bed, "1.1.0")?,
                &format!("{text:?}"),
                |network, who, _pod, result| {
                    match text {
                        None => fs::remove_file(bed.path("subnet.env"))?,
                        Some(text) => drop(bed.dir.write("subnet.env", text)?),
                    }
                    network.del_with(&who, with_result.then_some(result));
                    Ok(())
                },
            )?;
        }
    }
    Ok(())
}

/// Files of the attachment, as paths below the test's folder.
fn own_files(bed: &Bed, before: &[String]) -> Result<Vec<String>> {
    let folder = format!("file {}/", bed.dir.path().display());
    let now = traces(bed)?.into_iter().filter(|line| !before.contains(line));
    Ok(now.filter_map(|line| Some(line.strip_prefix(&folder)?.to_owned())).collect())
}

/// Overwrites or removes one file of an attachment after the other, and at last all of them.
fn spoiled(bed: &Bed, network: Network<'_>, garbage: Option<&str>, homeless: bool) -> Result<()> {
    let mut network = network.asking(18_080);
    let before = used(&mut network)?;
    for round in 0.. {
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        let result = network.add(&who);
        let files = own_files(bed, &before)?;
        let all = round == files.len();
        let some = if all { &files[..] } else { &files[round..=round] };
        for file in some {
            match garbage {
                Some(garbage) => drop(bed.dir.write(file, garbage)?),
                None => fs::remove_file(bed.path(file))?,
            }
        }
        if homeless {
            network.del_bare(&who.homeless());
        } else {
            network.del_with(&who, Some(&result));
        }
        if all {
            // Nothing may tell any more whose the address was.
            network.gc(&[]);
        }
        assert_eq!(left(bed, &before)?, NONE, "{garbage:?} in {some:?}, homeless {homeless}");
        if all {
            break;
        }
    }
    Ok(())
}

#[test]
fn rule_46_a_file_of_its_state_is_empty_garbled_or_gone() -> Result<()> {
    let Some(bed) = Bed::new("rule46")? else { return Ok(()) };
    for (garbage, homeless) in [
        (Some(""), true),
        (Some(""), false),
        (Some("\0\0\0\0"), true),
        (Some("{\"name\":"), false),
        (None, true),
        (None, false),
    ] {
        for network in Network::both(&bed)? {
            spoiled(&bed, network, garbage, homeless)?;
        }
    }
    Ok(())
}

#[test]
fn rule_46_the_state_of_another_does_not_matter() -> Result<()> {
    let Some(bed) = Bed::new("rule46other")? else { return Ok(()) };
    let mut network = Network::whole(&bed, "1.1.0")?.asking(18_080);
    let before = used(&mut network)?;
    bed.dir.write("networks/cbr0/10.42.3.200", "")?;
    bed.dir.write("networks/cbr0/10.42.3.201", "\0\0")?;
    bed.dir.write("flannel/other", "{\"name\":")?;
    bed.dir.write("state/attachments/cbr0/other-eth0", "\0garbage")?;
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let given = address(&network.add(&who));
    network.del(&who);
    let veths = Cmd::new("ip -j link show type veth").json()?;
    assert!(veths.as_array().is_none_or(Vec::is_empty), "{veths}");
    let own = given.split('/').next().context("an address")?;
    assert!(!traces(&bed)?.iter().any(|line| line.contains(own) && !before.contains(line)));
    Ok(())
}

//! Settings of a container's interface and namespace.

use std::{fs, path::PathBuf};

use anyhow::Result;
use serde_json::{Value, json};
use testkit::Netns;

use crate::bed::{Answer, Bed, Who, call, call_of, command, device, feed, reference, with};

/// `tuning` behind a bridge network, with one container attached.
struct Tuned {
    bed: Bed,
    program: PathBuf,
    pod: Netns,
    who: Who,
    before: Value,
}

impl Tuned {
    fn new(what: &str) -> Result<Option<Self>> {
        let Some(bed) = Bed::new(what)? else { return Ok(None) };
        let (program, pod) = (bed.program("tuning")?, Netns::new()?);
        let who = Who::new("c1", &pod);
        let before = call("ADD", &who, &bed.bridge()).result();
        Ok(Some(Self { bed, program, pod, who, before }))
    }

    fn config(&self, wanted: &Value) -> Value {
        let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "tuning",
            "dataDir": self.bed.path("tuning"), "prevResult": self.before});
        with(&config, wanted)
    }

    fn call(&self, verb: &str, wanted: &Value) -> Answer {
        call_of(&self.program, verb, &self.who, &self.config(wanted))
    }

    /// What may be set of the interface.
    fn link(&self) -> Result<Value> {
        let link = device(&self.pod, "eth0")?;
        let has = |flag: &str| link["flags"].as_array().is_some_and(|flags| flags.contains(&json!(flag)));
        Ok(json!([link["address"], link["mtu"], has("PROMISC"), has("ALLMULTI"), link["txqlen"], has("UP")]))
    }

    fn sysctl(&self, path: &str) -> Result<String> {
        Ok(self.pod.cmd(format!("cat /proc/sys/{path}")).ok()?.stdout.trim().to_owned())
    }

    fn backups(&self) -> Vec<String> {
        let files = fs::read_dir(self.bed.path("tuning")).into_iter().flatten().flatten();
        files.map(|file| file.file_name().to_string_lossy().into_owned()).collect()
    }
}

fn everything() -> Value {
    json!({"mac": "02:00:00:00:00:77", "mtu": 1300, "promisc": true, "allmulti": true, "txQLen": 55,
        "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net/core/somaxconn": "99",
                   "net.ipv4.ip_local_port_range": "20000 30000"}})
}

#[test]
fn everything_is_set_reported_and_restored() -> Result<()> {
    let Some(tuned) = Tuned::new("tune")? else { return Ok(()) };
    let (before, routes) = (tuned.link()?, tuned.pod.cmd("ip -j route").json()?);
    let result = tuned.call("ADD", &everything()).result();
    assert_eq!(tuned.link()?, json!(["02:00:00:00:00:77", 1300, true, true, 55, true]));
    assert_eq!(tuned.pod.cmd("ip -j route").json()?, routes);
    assert_eq!(tuned.sysctl("net/ipv4/conf/eth0/arp_filter")?, "1");
    assert_eq!(tuned.sysctl("net/core/somaxconn")?, "99");
    let mut wanted = tuned.before.clone();
    wanted["interfaces"][2]["mac"] = json!("02:00:00:00:00:77");
    wanted["interfaces"][2]["mtu"] = json!(1300);
    assert_eq!(result, wanted);

    let with_result = with(&everything(), &json!({"prevResult": result}));
    tuned.call("CHECK", &with_result).silent();
    // The bridge's own CHECK takes what the chain reported.
    call("CHECK", &tuned.who, &with(&tuned.bed.bridge(), &json!({"prevResult": result}))).silent();
    // What was before a first ADD is restored, not what a second one finds.
    tuned.call("ADD", &json!({"mac": "02:00:00:00:00:78", "mtu": 1200})).result();
    assert_eq!(tuned.backups(), ["c1_eth0.json"]);
    for _ in 0..3 {
        tuned.call("DEL", &json!({})).silent();
        assert_eq!((tuned.link()?, tuned.backups()), (before.clone(), vec![]));
    }
    assert_eq!(tuned.pod.cmd("ip -j route").json()?, routes);
    Ok(())
}

#[test]
fn two_entries_of_a_chain_are_both_restored() -> Result<()> {
    let Some(tuned) = Tuned::new("tunetwice")? else { return Ok(()) };
    let before = tuned.link()?;
    tuned.call("ADD", &json!({"mtu": 1300})).result();
    tuned.call("ADD", &json!({"mac": "02:00:00:00:00:77", "mtu": 1200})).result();
    assert_eq!(tuned.backups(), ["c1_eth0.json"]);
    for _ in 0..2 {
        tuned.call("DEL", &json!({})).silent();
        assert_eq!((tuned.link()?, tuned.backups()), (before.clone(), vec![]));
    }
    Ok(())
}

#[test]
fn a_late_del_restores_nothing_of_whoever_has_the_namespace_now() -> Result<()> {
    let Some(tuned) = Tuned::new("tunelate")? else { return Ok(()) };
    let before = tuned.link()?;
    let gone = json!({"mtu": 1500, "network": "net"}).to_string();
    tuned.bed.dir.write("tuning/old_eth0.json", gone)?;
    let late = Who { id: "old".into(), ..tuned.who.clone() };
    let config =
        json!({"cniVersion": "1.1.0", "name": "net", "type": "tuning", "dataDir": tuned.bed.path("tuning")});
    call("DEL", &late, &config).silent();
    assert_eq!((tuned.link()?, tuned.backups()), (before, vec![]));
    Ok(())
}

#[test]
fn the_address_comes_by_every_way() -> Result<()> {
    let Some(tuned) = Tuned::new("tunemac")? else { return Ok(()) };
    let mac = |n: u8| format!("02:00:00:00:00:0{n}");
    for (n, wanted) in [
        (1, json!({"mac": mac(1)})),
        (2, json!({"mac": mac(1), "args": {"cni": {"mac": mac(2)}}})),
        (3, json!({"mac": mac(1), "capabilities": {"mac": true}, "runtimeConfig": {"mac": mac(3)}})),
    ] {
        let result = tuned.call("ADD", &wanted).result();
        assert_eq!((&result["interfaces"][2]["mac"], &tuned.link()?[0]), (&json!(mac(n)), &json!(mac(n))));
    }
    let mut command = command(&tuned.program, "ADD", &tuned.who);
    command.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=p;MAC=02:00:00:00:00:04");
    feed(command, tuned.config(&json!({})).to_string().as_bytes()).result();
    assert_eq!(tuned.link()?[0], json!(mac(4)));
    Ok(())
}

#[test]
fn a_failure_leaves_everything_as_it_was() -> Result<()> {
    let Some(tuned) = Tuned::new("tunefail")? else { return Ok(()) };
    let before = (tuned.link()?, tuned.sysctl("net/core/somaxconn")?);
    let error = |wanted: Value| -> Result<String> {
        let (_, text) = tuned.call("ADD", &with(&everything(), &wanted)).error();
        assert_eq!((tuned.link()?, tuned.sysctl("net/core/somaxconn")?), before, "{text}");
        assert_eq!(
            (tuned.sysctl("net/ipv4/conf/eth0/arp_filter")?, tuned.backups()),
            ("0".into(), vec![]),
            "{text}"
        );
        Ok(text)
    };
    let sysctl = |key: &str| {
        let mut all = everything()["sysctl"].clone();
        all[key] = json!("1");
        json!({"sysctl": all})
    };
    // The kernel refuses an address of a group, after the length of the queue was set.
    assert!(error(json!({"mac": "01:00:5e:00:00:01"}))?.contains("failed to set link eth0"));
    assert!(error(sysctl("net.zzz"))?.contains("failed to set sysctl net/zzz"));
    assert_eq!(error(sysctl("kernel.pid_max"))?, "invalid net sysctl key: \"kernel.pid_max\"");
    assert!(error(sysctl("net.ipv4.conf.eth0.arp_filter"))?.starts_with("duplicate sysctl keys"));
    assert!(error(json!({"mtu": 7}))?.starts_with("invalid mtu: 7 is not an MTU"));
    assert!(
        error(json!({"dataDir": "/proc/nowhere"}))?.starts_with("failed to write /proc/nowhere/c1_eth0.json")
    );

    let lost = Who { ifname: "eth9".into(), ..tuned.who.clone() };
    let (_, text) = call_of(&tuned.program, "ADD", &lost, &tuned.config(&json!({"mtu": 1300}))).error();
    assert!(text.starts_with("interface eth9 does not exist in"), "{text}");
    Ok(())
}

#[test]
fn an_administrator_says_what_may_be_set() -> Result<()> {
    let Some(tuned) = Tuned::new("tunelist")? else { return Ok(()) };
    let list = tuned.bed.dir.write("allowlist.conf", "^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\n")?;
    // It lies at a fixed place: this call sees a folder of its own there.
    let add = |wanted: Value| {
        let mut command = command("/usr/bin/unshare".as_ref(), "ADD", &tuned.who);
        let folder = "mount -t tmpfs none /etc && mkdir -p /etc/cni/tuning";
        let script =
            format!("{folder} && cp {} /etc/cni/tuning && exec {}", list.display(), tuned.program.display());
        command.args(["-m", "--propagation", "private", "sh", "-c", &script]);
        feed(command, tuned.config(&wanted).to_string().as_bytes())
    };
    add(json!({"mtu": 1300, "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}})).result();
    assert_eq!(tuned.sysctl("net/ipv4/conf/eth0/arp_filter")?, "1");
    let (_, text) = add(json!({"sysctl": {"net.core.somaxconn": "99"}})).error();
    assert!(text.starts_with("Sysctl net.core.somaxconn is not allowed"), "{text}");
    Ok(())
}

#[test]
fn each_difference_is_noticed() -> Result<()> {
    let Some(tuned) = Tuned::new("tunelost")? else { return Ok(()) };
    let result = tuned.call("ADD", &everything()).result();
    let wanted = with(&everything(), &json!({"prevResult": result}));
    for (damage, text, repair) in [
        ("mtu 1299", "MTU of eth0 is 1300, current value is 1299", "mtu 1300"),
        ("promisc off", "promisc of eth0 is true, current value is false", "promisc on"),
        ("allmulticast off", "allmulti of eth0 is true, current value is false", "allmulticast on"),
        ("txqueuelen 7", "txQLen of eth0 is 55, current value is 7", "txqueuelen 55"),
        (
            "address 02:00:00:00:00:01",
            "Ethernet of eth0 is 02:00:00:00:00:77, current value is 02:00:00:00:00:01",
            "address 02:00:00:00:00:77",
        ),
    ] {
        tuned.pod.cmd(format!("ip link set eth0 {damage}")).ok()?;
        assert_eq!(tuned.call("CHECK", &wanted).error().1, format!("Tuning configured {text}"));
        tuned.pod.cmd(format!("ip link set eth0 {repair}")).ok()?;
        tuned.call("CHECK", &wanted).silent();
    }
    tuned.pod.cmd("sysctl -w net.core.somaxconn=100").ok()?;
    let text = "Tuning configured value of net/core/somaxconn is 99, current value is 100";
    assert_eq!(tuned.call("CHECK", &wanted).error().1, text);
    let none = with(&tuned.config(&everything()), &json!({"prevResult": null}));
    assert!(
        call_of(&tuned.program, "CHECK", &tuned.who, &none).error().1.contains("Required prevResult missing")
    );
    Ok(())
}

#[test]
fn del_and_gc_take_the_file_whatever_is_left() -> Result<()> {
    let Some(tuned) = Tuned::new("tunegone")? else { return Ok(()) };
    let homeless = Who { netns: "/run/netns/does-not-exist".into(), ..tuned.who.clone() };
    for who in [tuned.who.homeless(), homeless] {
        tuned.call("ADD", &everything()).result();
        call_of(&tuned.program, "DEL", &who, &tuned.config(&json!({}))).silent();
        assert!(tuned.backups().is_empty());
    }
    tuned.call("ADD", &json!({"mtu": 1300})).result();
    fs::write(tuned.bed.path("tuning/c1_eth0.json"), "{")?;
    tuned.call("DEL", &json!({})).silent();
    assert!(tuned.backups().is_empty());

    tuned.call("ADD", &json!({"mtu": 1300})).result();
    fs::write(tuned.bed.path("tuning/c9_eth0.json"), "{\"mtu\":1500,\"network\":\"net\"}")?;
    // Of the reference, and of another network: not known to be of this one.
    fs::write(tuned.bed.path("tuning/c8_eth0.json"), "{\"mtu\":1500}")?;
    fs::write(tuned.bed.path("tuning/c7_eth0.json"), "{\"mtu\":1500,\"network\":\"net2\"}")?;
    tuned.call("GC", &json!({})).silent();
    assert_eq!(tuned.backups().len(), 4);
    let valid = json!({"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]});
    tuned.call("GC", &valid).silent();
    let mut left = tuned.backups();
    left.sort();
    assert_eq!(left, ["c1_eth0.json", "c7_eth0.json", "c8_eth0.json"]);
    Ok(())
}

#[test]
fn what_the_reference_wrote_down_is_restored_and_the_other_way_round() -> Result<()> {
    let (Some(theirs), Some(tuned)) = (reference("tuning"), Tuned::new("tuneswitch")?) else { return Ok(()) };
    let before = tuned.link()?;
    let previous = with(&tuned.before, &json!({"cniVersion": "1.0.0"}));
    let wanted = json!({"cniVersion": "1.0.0", "sysctl": {}, "prevResult": previous});
    let wanted = with(&everything(), &wanted);
    for (adds, ends) in [(&theirs, &tuned.program), (&tuned.program, &theirs)] {
        call_of(adds, "ADD", &tuned.who, &tuned.config(&wanted)).result();
        let link = tuned.link()?;
        assert_eq!((&link[0], &link[1]), (&json!("02:00:00:00:00:77"), &json!(1300)));
        assert_eq!(tuned.backups(), ["c1_eth0.json"]);
        call_of(ends, "DEL", &tuned.who, &tuned.config(&wanted)).silent();
        // Its version 1.1.1 knows no length of the queue.
        tuned.pod.cmd("ip link set eth0 txqueuelen 1000").ok()?;
        assert_eq!((tuned.link()?, tuned.backups()), (before.clone(), vec![]));
    }
    Ok(())
}

#[test]
fn what_an_interface_was_is_kept_whole_or_not_at_all() -> Result<()> {
    let Some(tuned) = Tuned::new("tunewhole")? else { return Ok(()) };
    // Where half of it would be, which a kill would leave, there is no room.
    fs::create_dir_all(tuned.bed.path("tuning/c1_eth0.json.new"))?;
    tuned.call("ADD", &json!({"mtu": 1300})).result();
    let kept: Value = serde_json::from_slice(&fs::read(tuned.bed.path("tuning/c1_eth0.json"))?)?;
    assert_eq!(kept["mtu"], 1400);
    tuned.call("DEL", &json!({"mtu": 1300})).silent();
    assert_eq!(tuned.backups(), ["c1_eth0.json.new"], "nor does DEL look there");
    Ok(())
}

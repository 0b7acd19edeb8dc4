//! The program `flanneld` on one node, fed from a file, judged by foreign tools.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::{Cmd, Netns, Process, TempDir, bin, eventually, netns_or_skip};

/// Everything but the time that one object may be away takes far less.
const PATIENCE: Duration = Duration::from_secs(10);
/// An object that somebody removed is back within this time.
const REPAIR: Duration = Duration::from_millis(200);
/// The device is back with all its peers within this time.
const REPAIR_DEVICE: Duration = Duration::from_millis(500);

const NODE: [&str; 6] = [
    "ip link set lo up",
    "ip link add eth0 type veth peer name far",
    "ip link set eth0 up",
    "ip link set far up",
    "ip address add 192.0.2.1/24 dev eth0",
    "ip route add default via 192.0.2.254",
];

/// One node: a namespace, a folder, and flanneld when it runs.
struct Node {
    // First: it ends before its namespace and folder go.
    flanneld: Option<Process>,
    net: Netns,
    dir: TempDir,
}

impl Node {
    fn new() -> Result<Option<Self>> {
        let Some(net) = netns_or_skip() else { return Ok(None) };
        for line in NODE {
            net.cmd(line).ok()?;
        }
        Ok(Some(Self { flanneld: None, net, dir: TempDir::new("overlay")? }))
    }

    fn leases(&self, leases: &[(&str, Value)]) -> Result<()> {
        self.leases_with(&json!({"Type": "vxlan"}), leases)
    }

    fn leases_with(&self, backend: &Value, leases: &[(&str, Value)]) -> Result<()> {
        let leases: serde_json::Map<_, _> =
            leases.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        let config = json!({"Network": "10.5.0.0/16", "Backend": backend});
        let text = json!({"config": config, "own": "10.5.1.0-24", "leases": leases});
        // In one step, as an editor does: a half-written file is never seen.
        let draft = self.dir.write("draft", text.to_string())?;
        fs::rename(draft, self.dir.path().join("leases.json"))?;
        Ok(())
    }

    fn command(&self, words: &str) -> Cmd {
        let (dir, program) = (self.dir.path().display(), bin("flanneld"));
        let flags = format!("-from file:{dir}/leases.json -subnet-file {dir}/run/subnet.env -ip-masq");
        self.net.wrap(Cmd::new(format!("{} {words} {flags}", program.display())))
    }

    fn start(&mut self) -> Result<()> {
        let log = self.dir.path().join("log");
        self.flanneld = Some(Process::spawn(&self.command("run"), log)?);
        let pid = self.flanneld.as_ref().map(Process::pid);
        let ready = eventually(PATIENCE, || {
            let status = self.status().ok()?;
            let own = status["pid"].as_u64() == pid.map(u64::from);
            (own && status["ready"] == json!(true)).then_some(())
        });
        ready.with_context(|| self.log()).map(drop)
    }

    fn log(&self) -> String {
        self.flanneld.as_ref().map(Process::log).unwrap_or_default()
    }

    fn subnet_file(&self) -> PathBuf {
        self.dir.path().join("run/subnet.env")
    }

    fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&fs::read_to_string(self.dir.path().join("run/status.json"))?)?)
    }

    /// What a command prints, however it ends.
    fn shown(&self, line: &str) -> Result<String> {
        Ok(self.net.wrap(Cmd::new(line)).run()?.stdout)
    }

    /// Waits until `line` prints `text` (or with `!` in front, no more), and tells how long that took.
    fn shows(&self, line: &str, text: &str, limit: Duration) -> Result<Duration> {
        let begun = Instant::now();
        let (absent, text) = text.strip_prefix('!').map_or((false, text), |text| (true, text));
        let shown =
            eventually(limit, || self.shown(line).ok().filter(|shown| shown.contains(text) != absent));
        let verb = if absent { "still shows" } else { "does not show" };
        shown.with_context(|| {
            format!("{line} {verb} {text:?}:\n{}\n{}", self.shown(line).unwrap_or_default(), self.log())
        })?;
        Ok(begun.elapsed())
    }
}

/// The lease of peer `n`, as flannel writes it.
fn peer(n: u8) -> (String, Value) {
    let data = json!({"VNI": 1, "VtepMAC": format!("02:00:00:00:00:{n:02x}")});
    let value = json!({"PublicIP": format!("192.0.2.{n}"), "PublicIPv6": null, "BackendType": "vxlan", "BackendData": data});
    (format!("10.5.{n}.0-24"), value)
}

fn peers(numbers: &[u8]) -> Vec<(String, Value)> {
    numbers.iter().map(|n| peer(*n)).collect()
}

fn borrowed(leases: &[(String, Value)]) -> Vec<(&str, Value)> {
    leases.iter().map(|(key, value)| (key.as_str(), value.clone())).collect()
}

const ROUTES: &str = "ip route show dev flannel.1";
const NEIGHBOURS: &str = "ip neighbour show dev flannel.1 nud permanent";
const ENTRIES: &str = "bridge fdb show dev flannel.1";

#[test]
fn each_removed_object_comes_back_in_time() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.leases(&borrowed(&peers(&[3, 4])))?;
    node.start()?;
    node.shows(ROUTES, "10.5.4.0/24 via 10.5.4.0 proto 154 metric 5 onlink", PATIENCE)?;
    let mac = node.net.cmd("ip -j link show flannel.1").json()?[0]["address"].clone();
    let mac = mac.as_str().context("no address")?.to_owned();
    let route = "10.5.3.0/24 via 10.5.3.0 proto 154 metric 4 onlink";
    let entry = "02:00:00:00:00:03 dst 192.0.2.3 self permanent";
    for (removal, line, text, limit) in [
        ("ip route del 10.5.3.0/24", ROUTES, route, REPAIR),
        ("ip route replace 10.5.3.0/24 dev eth0 metric 4", ROUTES, route, REPAIR),
        ("ip neighbour del 10.5.3.0 dev flannel.1", NEIGHBOURS, "10.5.3.0 lladdr 02:00:00:00:00:03", REPAIR),
        ("bridge fdb del 02:00:00:00:00:03 dev flannel.1 dst 192.0.2.3", ENTRIES, entry, REPAIR),
        ("bridge fdb replace 02:00:00:00:00:03 dev flannel.1 dst 192.0.2.99", ENTRIES, entry, REPAIR),
        (
            "bridge fdb replace 02:00:00:00:00:03 dev flannel.1 dst 192.0.2.3 port 9999",
            ENTRIES,
            "!port 9999",
            REPAIR,
        ),
        (
            "bridge fdb replace 02:00:00:00:00:03 dev flannel.1 dst 192.0.2.3 vni 77",
            ENTRIES,
            "!vni 77",
            REPAIR,
        ),
        ("bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.99", ENTRIES, "!192.0.2.99", REPAIR),
        (
            "ip neighbour add 10.5.77.0 lladdr 02:00:00:00:00:77 dev flannel.1",
            NEIGHBOURS,
            "!10.5.77.0",
            REPAIR,
        ),
        ("ip route add 10.5.77.0/24 dev flannel.1", ROUTES, "!10.5.77.0/24", REPAIR),
        ("ip address flush dev flannel.1", ROUTES, route, REPAIR),
        ("ip link set flannel.1 down", ROUTES, route, REPAIR),
        ("ip link set flannel.1 mtu 1300", "ip link show flannel.1", "mtu 1450", REPAIR),
        ("ip link set flannel.1 address 02:99:99:99:99:99", "ip link show flannel.1", &mac, REPAIR),
        ("nft delete table ip weft-flannel.1", "nft list tables", "weft-flannel.1", REPAIR),
        ("nft flush ruleset", "nft list table ip weft-flannel.1", "masquerade fully-random", REPAIR),
        (
            "nft flush chain ip weft-flannel.1 postrouting",
            "nft list table ip weft-flannel.1",
            "masquerade",
            REPAIR,
        ),
        ("ip link del flannel.1", ROUTES, "10.5.4.0/24", REPAIR_DEVICE),
    ] {
        node.net.cmd(removal).ok()?;
        let away = node.shows(line, text, PATIENCE)?;
        println!("{removal}: back after {} ms", away.as_millis());
        ensure!(away < limit, "{removal}: back after {} ms only", away.as_millis());
    }
    // The device that was made anew.
    node.shows("ip link show flannel.1", &mac, REPAIR)?;
    node.shows("ip -4 address show dev flannel.1", "inet 10.5.1.0/32", REPAIR)?;
    node.shows(ENTRIES, "02:00:00:00:00:04 dst 192.0.2.4", REPAIR)?;
    node.shows(NEIGHBOURS, "10.5.4.0 lladdr 02:00:00:00:00:04", REPAIR)?;
    Ok(())
}

#[test]
fn forwarding_is_switched_on_and_kept_on() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.leases(&[])?;
    node.start()?;
    let line = "sysctl -n net.ipv4.ip_forward";
    node.shows(line, "1", PATIENCE)?;
    node.net.cmd("sysctl -w net.ipv4.ip_forward=0").ok()?;
    node.shows(line, "1", PATIENCE)?;
    // Not every kernel has it.
    if node.net.cmd("sysctl -w net.bridge.bridge-nf-call-iptables=0").run()?.success() {
        node.shows("sysctl -n net.bridge.bridge-nf-call-iptables", "1", PATIENCE)?;
    }
    Ok(())
}

#[test]
fn its_files_come_back_when_they_are_removed_or_overwritten() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.leases(&[])?;
    node.start()?;
    let (env, status) = (node.subnet_file(), node.subnet_file().with_file_name("status.json"));
    let (before, folder) = (fs::read(&env)?, node.dir.path().join("run"));
    let back = || fs::read(&env).is_ok_and(|now| now == before) && status.exists();
    fs::write(&env, "FLANNEL_SUBNET=10.99.9.1/24\n")?;
    eventually(PATIENCE, || back().then_some(())).context("subnet.env stays overwritten")?;
    fs::remove_dir_all(&folder)?;
    eventually(PATIENCE, || back().then_some(())).context("the files stay away")?;
    Ok(())
}

#[test]
fn the_status_says_what_to_type_where_legacy_iptables_filters() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.net.cmd("iptables-legacy -P FORWARD DROP").ok()?;
    node.leases(&[])?;
    node.start()?;
    let wanted = "iptables-legacy -A FORWARD -s 10.5.0.0/16 -j ACCEPT; iptables-legacy -A FORWARD -d 10.5.0.0/16 -j ACCEPT";
    let said =
        eventually(PATIENCE, || node.command("status").ok().ok().filter(|ran| ran.stdout.contains(wanted)));
    said.with_context(|| format!("{:?}", node.status())).map(drop)
}

/// What flannel has left: its device with the address of its lease, routes of metric 0, and a peer that
/// left while flannel was down.
#[test]
fn what_flannel_left_is_adopted_and_what_is_stale_goes() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    for line in [
        "ip link add flannel.1 address 0a:11:22:33:44:55 mtu 1450 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning",
        "ip address add 10.5.1.0/32 dev flannel.1",
        "ip link set flannel.1 up",
    ] {
        node.net.cmd(line).ok()?;
    }
    for n in [3, 9] {
        for line in [
            format!("ip neighbour add 10.5.{n}.0 lladdr 02:00:00:00:00:0{n} dev flannel.1"),
            format!("bridge fdb add 02:00:00:00:00:0{n} dev flannel.1 dst 192.0.2.{n}"),
            format!("ip route add 10.5.{n}.0/24 via 10.5.{n}.0 dev flannel.1 onlink"),
        ] {
            node.net.cmd(line).ok()?;
        }
    }
    let index = node.net.cmd("ip -j link show flannel.1").json()?[0]["ifindex"].clone();
    node.leases(&borrowed(&peers(&[3])))?;
    node.start()?;
    node.shows(ROUTES, "10.5.3.0/24 via 10.5.3.0 proto 154 metric 4 onlink", PATIENCE)?;
    let routes = node.net.cmd(ROUTES).ok()?.stdout;
    assert_eq!(routes.lines().count(), 1, "flannel's own routes are left: {routes}");
    let link = node.net.cmd("ip -j link show flannel.1").json()?[0].clone();
    assert_eq!((&link["ifindex"], &link["address"]), (&index, &json!("0a:11:22:33:44:55")), "{link}");
    for (line, stale) in [(NEIGHBOURS, "10.5.9.0"), (ENTRIES, "192.0.2.9")] {
        let shown = node.net.cmd(line).ok()?.stdout;
        assert!(shown.contains("02:00:00:00:00:03") && !shown.contains(stale), "{line}: {shown}");
    }
    Ok(())
}

#[test]
fn a_bad_lease_is_named_in_the_status_and_harms_no_other() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.net.cmd("ip address add 10.5.50.1/24 dev far").ok()?;
    let mut leases = peers(&[3, 4, 50]);
    let twin = peer(3).1;
    leases.extend([
        ("nonsense".to_owned(), peer(8).1),
        ("0.0.0.0-0".to_owned(), peer(8).1),
        ("10.5.1.128-25".to_owned(), peer(8).1),
        ("10.5.60.0-24".to_owned(), twin),
        ("10.5.61.0-24".to_owned(), json!({"PublicIP": "192.0.2.8"})),
        ("10.5.62.0-24".to_owned(), json!("garbled")),
    ]);
    let mut own_address = peer(63);
    own_address.1["PublicIP"] = json!("192.0.2.1");
    leases.push(own_address);
    node.leases(&borrowed(&leases))?;
    node.start()?;
    node.shows(ROUTES, "10.5.4.0/24", PATIENCE)?;
    assert_eq!(node.net.cmd(ROUTES).ok()?.stdout.lines().count(), 2);
    let status = node.status()?;
    let skipped = status["skipped"].as_array().context("no list")?;
    let names: Vec<_> = skipped.iter().filter_map(|lease| lease["lease"].as_str()).collect();
    for name in [
        "nonsense",
        "0.0.0.0-0",
        "10.5.1.128-25",
        "10.5.50.0-24",
        "10.5.61.0-24",
        "10.5.62.0-24",
        "10.5.63.0-24",
    ] {
        assert!(names.contains(&name), "{name} is not in {skipped:#?}");
        assert!(node.log().contains(name), "{name} is not in the log");
    }
    assert_eq!((names.len(), status["peers"].as_u64()), (8, Some(2)), "{skipped:#?}");
    let printed = node.command("status").ok()?.stdout;
    assert!(printed.contains("10.5.50.0-24: it overlaps address 10.5.50.1/24 of far"), "{printed}");
    Ok(())
}

#[test]
fn peers_on_the_same_link_are_reached_without_a_tunnel_where_that_is_wanted() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    let mut leases = peers(&[3, 4]);
    leases[1].1["PublicIP"] = json!("198.51.100.4");
    node.leases_with(&json!({"Type": "vxlan", "DirectRouting": true}), &borrowed(&leases))?;
    node.start()?;
    let direct = "10.5.3.0/24 via 192.0.2.3 dev eth0 proto 154 metric 4";
    node.shows("ip route", direct, PATIENCE)?;
    node.shows(ROUTES, "10.5.4.0/24 via 10.5.4.0", PATIENCE)?;
    for removal in ["ip route del 10.5.3.0/24", "ip link set eth0 down"] {
        node.net.cmd(removal).ok()?;
        node.net.cmd("ip link set eth0 up").ok()?;
        node.shows("ip route", direct, PATIENCE)?;
    }
    node.leases(&borrowed(&leases))?;
    // The configuration is read once: only a restart turns it.
    node.flanneld.take().context("not started")?.terminate(PATIENCE)?;
    fs::remove_file(node.subnet_file())?;
    node.start()?;
    node.shows(ROUTES, "10.5.3.0/24 via 10.5.3.0", PATIENCE)?;
    node.shows("ip route", "!via 192.0.2.3", PATIENCE).map(drop)
}

#[test]
fn cleanup_takes_routes_without_a_tunnel_too() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.leases_with(&json!({"Type": "vxlan", "DirectRouting": true}), &borrowed(&peers(&[3])))?;
    node.start()?;
    node.shows("ip route", "10.5.3.0/24 via 192.0.2.3 dev eth0 proto 154", PATIENCE)?;
    node.flanneld.take().context("not started")?.terminate(PATIENCE)?;
    node.command("cleanup").ok()?;
    assert_eq!(node.shown("ip route show proto 154")?, "");
    Ok(())
}

#[test]
fn a_plan_is_printed_and_nothing_is_done() -> Result<()> {
    let Some(node) = Node::new()? else { return Ok(()) };
    node.leases(&borrowed(&peers(&[3])))?;
    let plan = node.command("plan").ok()?.stdout;
    for part in [
        "ip link add flannel.1 address ",
        "ip route replace 10.5.3.0/24 via 10.5.3.0 dev flannel.1 metric 4 onlink proto 154",
        "table ip weft-flannel.1 {",
    ] {
        assert!(plan.contains(part), "{part} is missing in\n{plan}");
    }
    assert!(!plan.contains("chain FORWARD"), "there is none of others\n{plan}");
    assert_eq!(node.shown("ip -br link show type vxlan")?, "");
    assert_eq!(node.shown("nft list ruleset")?, "");
    assert!(!node.subnet_file().exists());
    Ok(())
}

#[test]
fn cleanup_takes_what_is_ours_and_nothing_else() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.net.cmd("iptables-nft -A FORWARD -s 10.5.3.7 -j DROP").ok()?;
    node.net.cmd("ip route add 203.0.113.0/24 via 192.0.2.77").ok()?;
    node.net.cmd("ip route add 10.254.0.0/16 dev eth0 proto 154 metric 4294967295").ok()?;
    let state = Cmd::shell("ip -br link | sort; ip route; iptables-nft-save | grep -v '^#'; nft list tables");
    let before = node.net.wrap(state.clone()).ok()?.stdout;
    node.leases(&borrowed(&peers(&[3])))?;
    node.start()?;
    node.shows("iptables-nft -S FORWARD", "-d 10.5.0.0/16", PATIENCE)?;
    let refused = node.command("cleanup").run()?;
    assert!(!refused.success() && refused.stderr.contains("is held by another flanneld"), "{refused}");
    let code = node.flanneld.take().context("not started")?.terminate(PATIENCE)?;
    assert_eq!(code, Some(0));
    node.shows(ROUTES, "10.5.3.0/24", PATIENCE)?;
    let said = node.command("cleanup").ok()?.stdout;
    assert!(said.contains("the lease of 10.5.1.0/24 stays"), "{said}");
    assert_eq!(node.net.wrap(state).ok()?.stdout, before);
    assert!(!node.subnet_file().exists());
    node.command("cleanup").ok().map(drop)
}

#[test]
fn a_second_one_refuses_a_held_file_and_a_held_device() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.leases(&[])?;
    node.start()?;
    let second = node.command("run").limit(PATIENCE).run()?;
    assert!(
        !second.success() && second.stderr.contains("subnet.env is held by another flanneld"),
        "{second}"
    );
    let other_file = format!("run -subnet-file={}", node.dir.path().join("other/subnet.env").display());
    let line = node.command(&other_file);
    // The last of a repeated flag wins: ours comes first.
    let line = line.arg(format!("-subnet-file={}", node.dir.path().join("other/subnet.env").display()));
    let second = line.limit(PATIENCE).run()?;
    assert!(!second.success() && second.stderr.contains("interface flannel.1 is held"), "{second}");
    Ok(())
}

#[test]
fn a_host_that_uses_the_whole_network_gets_no_subnet_and_is_told_why() -> Result<()> {
    let Some(node) = Node::new()? else { return Ok(()) };
    node.net.cmd("ip address add 10.5.9.9/16 dev far").ok()?;
    node.dir.write("leases.json", r#"{"config": {"Network": "10.5.0.0/16"}, "leases": {}}"#)?;
    let ran = node.command("run").limit(PATIENCE).run()?;
    assert!(!ran.success(), "{ran}");
    for part in ["no subnet of 10.5.0.0/16 is free of overlap", "10.5.9.9/16 of far"] {
        assert!(ran.stderr.contains(part), "{ran}");
        let problem = node.status()?["problem"].to_string();
        assert!(problem.contains(part), "{problem}");
    }
    assert!(!node.subnet_file().exists());
    Ok(())
}

#[test]
fn a_subnet_that_this_host_uses_is_left_out_and_the_warning_names_both() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    for address in ["10.5.0.17/30", "10.5.0.25/32"] {
        node.net.cmd(format!("ip address add {address} dev far")).ok()?;
    }
    // Two of the subnets 10.5.0.16/30, .20/30, .24/30 and .28/30 are the host's own.
    let text =
        r#"{"config": {"Network": "10.5.0.0/27", "SubnetLen": 30, "SubnetMin": "10.5.0.16"}, "leases": {}}"#;
    node.dir.write("leases.json", text)?;
    node.start()?;
    let leased = node.status()?["node"]["subnet"].to_string();
    assert!(["\"10.5.0.20/30\"", "\"10.5.0.28/30\""].contains(&leased.as_str()), "{leased}");
    for warning in [
        "10.5.0.16/30 overlaps address 10.5.0.17/30 of far",
        "10.5.0.24/30 overlaps address 10.5.0.25/32 of far",
    ] {
        assert!(node.log().contains(warning), "{}", node.log());
    }
    Ok(())
}

/// Addresses of pods that run stay, and so does the lease that they are from.
#[test]
fn a_restart_with_pods_on_the_bridge_keeps_the_subnet() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.dir.write("leases.json", r#"{"config": {"Network": "10.5.0.0/16"}, "leases": {}}"#)?;
    node.start()?;
    let before = fs::read_to_string(node.subnet_file())?;
    let gateway =
        before.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET=")).context("no subnet")?;
    node.net.cmd("ip link add cni0 type bridge").ok()?;
    node.net.cmd(format!("ip address add {gateway} dev cni0")).ok()?;
    node.net.cmd("ip link set cni0 up").ok()?;
    for _ in 0..3 {
        node.flanneld.take().context("not started")?.kill();
        fs::remove_file(node.dir.path().join("run/status.json"))?;
        node.start()?;
        eventually(PATIENCE, || node.status().ok().filter(|status| status["ready"] == json!(true)))
            .with_context(|| node.log())?;
        assert_eq!(fs::read_to_string(node.subnet_file())?, before);
        assert!(!node.log().contains("overlaps"), "{}", node.log());
    }
    Ok(())
}

#[test]
fn without_the_privilege_it_says_what_is_missing() -> Result<()> {
    let Some(node) = Node::new()? else { return Ok(()) };
    node.leases(&[])?;
    let ran = node
        .net
        .wrap(Cmd::new("setpriv --bounding-set=-all --inh-caps=-all"))
        .args(node_words(&node)?)
        .limit(PATIENCE)
        .run()?;
    assert!(!ran.success() && ran.stderr.contains("CAP_NET_ADMIN"), "{ran}");
    Ok(())
}

fn node_words(node: &Node) -> Result<Vec<String>> {
    let dir = node.dir.path().display();
    let program = bin("flanneld").display().to_string();
    Ok(vec![
        program,
        "run".to_owned(),
        format!("-from=file:{dir}/leases.json"),
        format!("-subnet-file={dir}/run/subnet.env"),
    ])
}

#[test]
fn the_status_names_what_else_drops_forwarded_packets() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.leases(&[])?;
    node.start()?;
    node.net.cmd("nft add table inet wall").ok()?;
    let chain = "nft add chain inet wall gate { type filter hook forward priority 10 ; policy drop ; }";
    node.net.cmd(chain).ok()?;
    let named = |node: &Node| {
        let warnings = node.status().ok()?["warnings"].to_string();
        warnings.contains("chain gate of table inet wall drops what is forwarded by its policy").then_some(())
    };
    eventually(PATIENCE, || named(&node)).with_context(|| format!("{:?}", node.status()))?;
    node.net.cmd("nft delete table inet wall").ok()?;
    eventually(PATIENCE, || named(&node).is_none().then_some(())).context("it is still named")?;
    Ok(())
}

#[test]
fn the_status_of_one_that_ended_is_shown_with_a_failure() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    let never = node.command("status").run()?;
    assert!(!never.success() && never.stderr.contains("has flanneld been started?"), "{never}");
    node.leases(&[])?;
    node.start()?;
    let running = node.command("status --json").ok()?.stdout;
    let status: Value = serde_json::from_str(&running)?;
    assert_eq!((&status["ready"], &status["node"]["subnet"]), (&json!(true), &json!("10.5.1.0/24")));
    node.flanneld.take().context("not started")?.kill();
    let ended = node.command("status").run()?;
    assert!(!ended.success() && ended.stdout.contains("10.5.1.0/24"), "{ended}");
    assert!(ended.stderr.contains("flanneld is not running"), "{ended}");
    Ok(())
}

/// The lease was lost and another subnet taken: pods that run keep their addresses on the bridge, and
/// whoever leases the old subnet is not routed into them.
#[test]
fn another_subnet_takes_effect_and_leaves_running_pods_alone() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.leases(&borrowed(&peers(&[3])))?;
    node.start()?;
    node.net.cmd("ip link add cni0 type bridge").ok()?;
    node.net.cmd("ip address add 10.5.1.1/24 dev cni0").ok()?;
    node.net.cmd("ip link set cni0 up").ok()?;
    let leases: serde_json::Map<_, _> = peers(&[1, 3]).into_iter().collect();
    let text = json!({"config": {"Network": "10.5.0.0/16"}, "own": "10.5.2.0-24", "leases": leases});
    node.dir.write("leases.json", text.to_string())?;
    node.shows("ip -4 address show dev flannel.1", "inet 10.5.2.0/32", PATIENCE)?;
    node.shows("ip -4 address show dev flannel.1", "!10.5.1.0/32", PATIENCE)?;
    node.shows(
        "nft list table ip weft-flannel.1",
        "ip saddr 10.5.2.0/24 ip daddr 10.5.0.0/16 return",
        PATIENCE,
    )?;
    let env = eventually(PATIENCE, || {
        fs::read_to_string(node.subnet_file()).ok().filter(|env| env.contains("FLANNEL_SUBNET=10.5.2.1/24"))
    });
    env.with_context(|| node.log())?;
    node.shows(ROUTES, "10.5.3.0/24", PATIENCE)?;
    assert!(!node.shown(ROUTES)?.contains("10.5.1.0/24"), "the old subnet leads away from its pods");
    assert!(node.shown("ip -4 address show dev cni0")?.contains("10.5.1.1/24"));
    let skipped = node.status()?["skipped"].to_string();
    assert!(skipped.contains("it overlaps address 10.5.1.1/24 of cni0 of this host"), "{skipped}");
    Ok(())
}

/// A change of the file reaches the kernel, and takes nothing else along.
#[test]
fn peers_come_move_and_go() -> Result<()> {
    let Some(mut node) = Node::new()? else { return Ok(()) };
    node.leases(&borrowed(&peers(&[3, 4])))?;
    node.start()?;
    node.shows(ROUTES, "10.5.4.0/24", PATIENCE)?;
    let mut moved = peers(&[3, 5]);
    moved[0].1["BackendData"]["VtepMAC"] = json!("02:00:00:00:00:33");
    moved[0].1["PublicIP"] = json!("192.0.2.33");
    node.leases(&borrowed(&moved))?;
    node.shows(ROUTES, "10.5.5.0/24", PATIENCE)?;
    node.shows(ROUTES, "!10.5.4.0/24", PATIENCE)?;
    let entries = node.net.cmd(ENTRIES).ok()?.stdout;
    let mut lines: Vec<_> = entries.lines().map(str::trim).collect();
    lines.sort_unstable();
    let wanted =
        ["02:00:00:00:00:05 dst 192.0.2.5 self permanent", "02:00:00:00:00:33 dst 192.0.2.33 self permanent"];
    assert_eq!(lines, wanted);
    node.shows(NEIGHBOURS, "10.5.3.0 lladdr 02:00:00:00:00:33", PATIENCE)?;
    node.shows(NEIGHBOURS, "!10.5.4.0 ", PATIENCE).map(drop)
}

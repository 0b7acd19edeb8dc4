//! Limits of bandwidth, judged with `tc -j` and by what really goes through.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::{Cmd, Netns, Random};

use crate::bed::{Bed, Who, call, call_of, command, reference, with};

/// What containerd asks for with a burst.
const HUGE: u64 = 4_294_967_295;

/// `bandwidth` behind another plugin.
struct Chain {
    program: PathBuf,
    config: Value,
}

impl Chain {
    fn new(bed: &Bed, limits: &Value) -> Result<Self> {
        let config =
            json!({"cniVersion": "1.1.0", "name": "net", "type": "bandwidth", "stateDir": bed.path("state")});
        Ok(Self { program: bed.program("bandwidth")?, config: with(&config, limits) })
    }

    fn call(&self, verb: &str, who: &Who, previous: &Value) -> crate::bed::Answer {
        call_of(&self.program, verb, who, &with(&self.config, &json!({"prevResult": previous})))
    }
}

fn both(rate: u64, burst: u64) -> Value {
    json!({"ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst})
}

/// The queueing disciplines of the host that somebody chose, by device.
fn chosen() -> Result<Vec<(String, Value)>> {
    let all = Cmd::new("tc -j qdisc show").json()?;
    let all = all.as_array().into_iter().flatten().filter(|q| q["kind"] == "tbf" || q["kind"] == "ingress");
    Ok(all.map(|q| (q["dev"].as_str().unwrap_or_default().to_owned(), q.clone())).collect())
}

fn ifbs() -> Result<Vec<String>> {
    let list = Cmd::new("ip -j link show type ifb").json()?;
    let names = list.as_array().into_iter().flatten().filter_map(|l| l["ifname"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// Where what comes in by `device` is redirected to.
fn redirection(device: &str) -> Result<Value> {
    let filters = Cmd::new(format!("tc -j filter show dev {device} ingress")).json()?;
    let all = filters.as_array().cloned().unwrap_or_default();
    let action = all.iter().map(|f| &f["options"]["actions"][0]).find(|a| !a.is_null());
    Ok(action.map(|a| json!([a["kind"], a["mirred_action"], a["to_dev"]])).unwrap_or_default())
}

#[test]
fn a_veth_of_another_plugin_is_limited_both_ways_in_every_version() -> Result<()> {
    let Some(bed) = Bed::new("shape")? else { return Ok(()) };
    Cmd::new("ip link add other0 type veth peer name other1").ok()?;
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        let version = json!({"cniVersion": version});
        let main = with(&bed.bridge(), &version);
        let mut before = call("ADD", &who, &main).result();
        // Another plugin may have made more interfaces.
        before["interfaces"].as_array_mut().context("a list")?.push(json!({"name": "other0"}));
        let mut chain = Chain::new(&bed, &both(10_000_000, HUGE))?;
        chain.config = with(&chain.config, &version);
        let result = chain.call("ADD", &who, &before).result();

        let veth = before["interfaces"][1]["name"].as_str().context("a name")?.to_owned();
        let ifb = ifbs()?[0].clone();
        let link = &Cmd::new(format!("ip -j link show {ifb}")).json()?[0];
        assert_eq!((&link["mtu"], &link["ifalias"]), (&json!(1400), &json!("weft:net/c1/eth0")), "{link}");
        let mut wanted = before.clone();
        let mut made = json!({"name": ifb, "mac": link["address"]});
        if version["cniVersion"] == "1.1.0" {
            made["mtu"] = json!(1400);
        }
        wanted["interfaces"].as_array_mut().context("a list")?.push(made);
        assert_eq!(result, wanted);

        for device in [&veth, &ifb] {
            let qdisc = &Cmd::new(format!("tc -j qdisc show dev {device}")).json()?[0];
            let options = &qdisc["options"];
            assert_eq!((&qdisc["kind"], &options["rate"]), (&json!("tbf"), &json!(1_250_000)), "{qdisc}");
            assert_eq!((&options["burst"], &options["lat"]), (&json!(62_500), &json!(25_000)), "{qdisc}");
        }
        assert_eq!(redirection(&veth)?, json!(["mirred", "redirect", ifb]));
        if version["cniVersion"].as_str() >= Some("0.4.0") {
            chain.call("CHECK", &who, &result).silent();
        }
        for _ in 0..3 {
            chain.call("DEL", &who, &result).silent();
            assert_eq!((chosen()?, ifbs()?), (vec![], vec![]));
        }
        call("DEL", &who, &main).silent();
    }
    Ok(())
}

#[test]
fn one_direction_is_one_direction_and_none_is_none() -> Result<()> {
    let Some(bed) = Bed::new("oneway")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let before = call("ADD", &who, &bed.bridge()).result();
    let kinds = |limits: Value| -> Result<Vec<(String, String)>> {
        let chain = Chain::new(&bed, &limits)?;
        let result = chain.call("ADD", &who, &before).result();
        assert_eq!(result["interfaces"].as_array().map(Vec::len), Some(3 + ifbs()?.len()));
        chain.call("CHECK", &who, &result).silent();
        let found = chosen()?.into_iter();
        let found =
            found.map(|(dev, q)| (dev[..4].to_owned(), q["kind"].to_string().replace('"', ""))).collect();
        chain.call("DEL", &who, &result).silent();
        assert_eq!((chosen()?, ifbs()?), (vec![], vec![]));
        Ok(found)
    };
    let pair = |dev: &str, kind: &str| (dev.to_owned(), kind.to_owned());
    assert_eq!(kinds(json!({}))?, []);
    assert_eq!(kinds(json!({"runtimeConfig": {"bandwidth": {}}}))?, []);
    assert_eq!(kinds(json!({"ingressRate": 8_000_000, "ingressBurst": 80_000}))?, [pair("veth", "tbf")]);
    let egress =
        kinds(json!({"RuntimeConfig": {"Bandwidth": {"EgressRate": 8_000_000, "EgressBurst": HUGE}}}))?;
    assert_eq!(egress[0], pair("veth", "ingress"));
    assert!(egress.len() == 2 && egress[1].1 == "tbf" && egress[1].0.starts_with("bwp"), "{egress:?}");
    // What is fixed comes first.
    let fixed = json!({"egressRate": 0, "runtimeConfig": {"bandwidth": both(8_000_000, HUGE)}});
    assert_eq!(kinds(fixed)?, []);
    Ok(())
}

#[test]
fn what_cannot_be_limited_is_an_error_and_nothing_is_left() -> Result<()> {
    let Some(bed) = Bed::new("unlimited")? else { return Ok(()) };
    let (pod, other) = (Netns::new()?, Netns::new()?);
    let who = Who::new("c1", &pod);
    let before = call("ADD", &who, &bed.bridge()).result();
    let elsewhere = call("ADD", &Who::new("c2", &other), &bed.bridge()).result();
    let refused = |limits: &Value, who: &Who, previous: &Value| -> Result<String> {
        let (code, text) = Chain::new(&bed, limits)?.call("ADD", who, previous).error();
        assert_eq!((code, chosen()?, ifbs()?), (999, vec![], vec![]), "{text}");
        Ok(text)
    };
    let limits = both(8_000_000, HUGE);
    let half = refused(&json!({"egressRate": 8}), &who, &before)?;
    assert_eq!(half, "if rate is set, burst must also be set");
    assert_eq!(refused(&json!({"egressBurst": 8}), &who, &before)?, "if burst is set, rate must also be set");
    for nothing in [json!({}), json!({"interfaces": []}), json!({"interfaces": null, "dns": {}})] {
        assert!(refused(&limits, &who, &nothing)?.starts_with("no interfaces provided"));
    }
    let text = refused(&limits, &who, &elsewhere)?;
    assert!(text.starts_with("no veth peer of container interface eth0 found in prevResult"), "{text}");
    for ifname in ["lo", "eth7"] {
        let who = Who { ifname: ifname.to_owned(), ..who.clone() };
        let text = refused(&limits, &who, &before)?;
        assert_eq!(text, format!("container interface {ifname} has no veth peer on this host"));
    }
    let homeless = Who { netns: "/run/netns/does-not-exist".into(), ..who.clone() };
    assert!(refused(&limits, &homeless, &before)?.starts_with("failed to open netns"));

    // Somebody's own queue of incoming packets is in the way: it stays, and nothing comes beside it.
    let veth = before["interfaces"][1]["name"].as_str().context("a name")?;
    Cmd::new(format!("tc qdisc add dev {veth} clsact")).ok()?;
    let (_, text) = Chain::new(&bed, &limits)?.call("ADD", &who, &before).error();
    assert!(text.contains("ingress queue"), "{text}");
    let left = Cmd::new(format!("tc -j qdisc show dev {veth}")).json()?;
    let kinds: Vec<_> = left.as_array().into_iter().flatten().map(|q| q["kind"].clone()).collect();
    assert_eq!((kinds, ifbs()?), (vec![json!("noqueue"), json!("clsact")], vec![]));
    Ok(())
}

#[test]
fn what_a_kill_left_is_replaced_and_what_is_in_use_is_not() -> Result<()> {
    let Some(bed) = Bed::new("staleifb")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let before = call("ADD", &who, &bed.bridge()).result();
    let chain = Chain::new(&bed, &both(10_000_000, HUGE))?;
    let result = chain.call("ADD", &who, &before).result();
    let limited = (chosen()?, ifbs()?);
    chain.call("ADD", &who, &before).error();
    assert_eq!((chosen()?, ifbs()?), limited);
    chain.call("CHECK", &who, &result).silent();
    chain.call("DEL", &who, &result).silent();
    for alias in ["", "weft:net/c1/eth0"] {
        Cmd::new(format!("ip link add {} type ifb", limited.1[0])).ok()?;
        if !alias.is_empty() {
            Cmd::new(format!("ip link set {} alias {alias}", limited.1[0])).ok()?;
        }
        let result = chain.call("ADD", &who, &before).result();
        chain.call("CHECK", &who, &result).silent();
        chain.call("DEL", &who, &result).silent();
    }
    // Somebody else's stays.
    Cmd::new(format!("ip link add {} type ifb", limited.1[0])).ok()?;
    Cmd::new(format!("ip link set {} alias mine", limited.1[0])).ok()?;
    let (_, text) = chain.call("ADD", &who, &before).error();
    assert!(text.contains("exists"), "{text}");
    assert_eq!(ifbs()?, limited.1);
    Ok(())
}

#[test]
fn the_lowest_rates_are_as_they_were_set() -> Result<()> {
    let Some(bed) = Bed::new("slow")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let before = call("ADD", &who, &bed.bridge()).result();
    for rate in [1, 8, 40, 44, 100, 1000] {
        for burst in [rate, HUGE] {
            let chain = Chain::new(&bed, &both(rate, burst))?;
            let result = chain.call("ADD", &who, &before).result();
            chain.call("CHECK", &who, &result).silent();
            chain.call("DEL", &who, &result).silent();
        }
    }
    Ok(())
}

#[test]
fn each_loss_of_a_limit_is_noticed() -> Result<()> {
    let Some(bed) = Bed::new("lostlimit")? else { return Ok(()) };
    let breaks = [
        ("tc qdisc del dev VETH root", "VETH: there is no token bucket"),
        ("tc qdisc change dev VETH root tbf rate 9mbit burst 50000 latency 25ms", "VETH: TokenBucket"),
        ("tc qdisc change dev IFB root tbf rate 10mbit burst 62500 latency 50ms", "IFB: TokenBucket"),
        ("tc qdisc del dev VETH ingress", "VETH: there is no ingress queue"),
        ("tc filter del dev VETH ingress", "VETH: nothing is redirected to IFB"),
        ("ip link set IFB down", "interface IFB is down"),
        ("ip link del IFB", "ifb device IFB does not exist"),
    ];
    for (damage, wanted) in breaks {
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        let chain = Chain::new(&bed, &both(10_000_000, HUGE))?;
        let before = call("ADD", &who, &bed.bridge()).result();
        let result = chain.call("ADD", &who, &before).result();
        let (veth, ifb) = (bed.veths()?[0].clone(), ifbs()?[0].clone());
        let fill = |text: &str| text.replace("VETH", &veth).replace("IFB", &ifb);
        chain.call("CHECK", &who, &result).silent();
        Cmd::new(fill(damage)).ok()?;
        let (_, text) = chain.call("CHECK", &who, &result).error();
        assert!(text.contains(&fill(wanted)), "{damage}: {text}");
        chain.call("DEL", &who, &result).silent();
        call("DEL", &who, &bed.bridge()).silent();
        assert_eq!((chosen()?, ifbs()?, bed.veths()?), (vec![], vec![], vec![]));
    }
    Ok(())
}

#[test]
fn del_and_gc_need_neither_namespace_nor_result() -> Result<()> {
    let Some(bed) = Bed::new("limitgone")? else { return Ok(()) };
    let (pod, other) = (Netns::new()?, Netns::new()?);
    let first = Who::new("c1", &pod);
    let second = Who { ifname: "eth1".into(), ..first.clone() };
    let third = Who::new("c2", &other);
    let chain = Chain::new(&bed, &both(10_000_000, HUGE))?;
    let mut results = Vec::new();
    let main = with(&bed.bridge(), &json!({"isDefaultGateway": false}));
    for who in [&first, &second, &third] {
        let before = call("ADD", who, &main).result();
        results.push(chain.call("ADD", who, &before).result());
    }
    // Two interfaces of one container have a device each.
    assert_eq!((ifbs()?.len(), chosen()?.len()), (3, 9));
    let bare = Chain::new(&bed, &json!({}))?;
    call_of(&bare.program, "DEL", &second.homeless(), &bare.config).silent();
    chain.call("CHECK", &first, &results[0]).silent();
    chain.call("CHECK", &third, &results[2]).silent();
    assert_eq!(ifbs()?.len(), 2);

    let valid = |list: Value| with(&bare.config, &json!({"cni.dev/valid-attachments": list}));
    call_of(&bare.program, "GC", &first, &bare.config).silent();
    let foreign = with(&valid(json!([])), &json!({"name": "net2"}));
    call_of(&bare.program, "GC", &first, &foreign).silent();
    assert_eq!(ifbs()?.len(), 2);
    let keep = json!([{"containerID": "c2", "ifname": "eth0"}]);
    call_of(&bare.program, "GC", &first, &valid(keep)).silent();
    chain.call("CHECK", &third, &results[2]).silent();
    call_of(&bare.program, "GC", &first, &valid(json!([]))).silent();
    assert_eq!(ifbs()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn one_entry_of_flannel_does_it_all() -> Result<()> {
    let Some(bed) = Bed::new("whole")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let capable = json!({"cniVersion": "1.1.0", "capabilities": {"bandwidth": true, "portMappings": true},
        "runtimeConfig": {"bandwidth": {"IngressRate": 10_000_000, "IngressBurst": HUGE,
                                        "EgressRate": 20_000_000, "EgressBurst": HUGE}}});
    let config = with(&bed.flannel()?, &capable);
    let result = call("ADD", &who, &config).result();
    let (veth, ifb) = (bed.veths()?[0].clone(), ifbs()?[0].clone());
    assert_eq!((&result["interfaces"][3]["name"], &result["ips"][0]["interface"]), (&json!(ifb), &json!(2)));
    let rates: Vec<_> = chosen()?.into_iter().map(|(dev, q)| (dev, q["options"]["rate"].clone())).collect();
    assert!(
        rates.contains(&(veth.clone(), json!(1_250_000))) && rates.contains(&(ifb, json!(2_500_000))),
        "{rates:?}"
    );
    call("CHECK", &who, &with(&config, &json!({"prevResult": result}))).silent();
    Cmd::new(format!("tc qdisc del dev {veth} root")).ok()?;
    assert!(
        call("CHECK", &who, &with(&config, &json!({"prevResult": result})))
            .error()
            .1
            .contains("token bucket")
    );
    for _ in 0..2 {
        call("DEL", &who.homeless(), &config).silent();
        assert_eq!((chosen()?, ifbs()?, bed.veths()?), (vec![], vec![], vec![]));
    }
    // A failure takes everything back.
    let half = with(&config, &json!({"runtimeConfig": {"bandwidth": {"egressRate": 8}}}));
    assert_eq!(call("ADD", &who, &half).error().1, "if rate is set, burst must also be set");
    assert_eq!((bed.reservations("cbr0").len(), bed.veths()?.len(), ifbs()?.len()), (0, 0, 0));
    Ok(())
}

#[test]
fn what_the_reference_limited_is_ours_to_end_and_the_other_way_round() -> Result<()> {
    let (Some(theirs), Some(bed)) = (reference("bandwidth"), Bed::new("limitswitch")?) else { return Ok(()) };
    let (ptp, chain) = (reference("ptp").context("ptp")?, Chain::new(&bed, &both(10_000_000, 1_000_000))?);
    let old = json!({"cniVersion": "1.0.0"});
    let main = json!({"cniVersion": "1.0.0", "name": "net", "type": "ptp",
        "ipam": {"type": "host-local", "dataDir": bed.path("networks"), "subnet": "10.97.0.0/24"}});
    for (adds, ends) in [(&theirs, &chain.program), (&chain.program, &theirs)] {
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        let before = call_of(&ptp, "ADD", &who, &main).result();
        let config = with(&with(&chain.config, &old), &json!({"prevResult": before}));
        let result = call_of(adds, "ADD", &who, &config).result();
        assert_eq!((ifbs()?.len(), result["interfaces"].as_array().map(Vec::len)), (1, Some(3)));
        // Another interface of the container, which is not limited: the reference's name would fit it.
        let beside = Who { ifname: "eth1".into(), ..who.homeless() };
        call_of(&chain.program, "DEL", &beside, &config).silent();
        assert_eq!(ifbs()?.len(), 1);
        call_of(ends, "DEL", &who, &with(&config, &json!({"prevResult": result}))).silent();
        if ends == &theirs {
            // It knows no other name than its own.
            call_of(adds, "DEL", &who, &config).silent();
        }
        assert_eq!(ifbs()?, Vec::<String>::new());
        call_of(&ptp, "DEL", &who, &main).silent();
    }
    Ok(())
}

/// Bytes that arrive within the first second and within `SECONDS` of a connection from one namespace to
/// `to` in another.
fn arriving(from: &Netns, receiver: &Netns, to: Ipv4Addr) -> Result<(u64, u64)> {
    const SECONDS: u64 = 3;
    let listener = receiver.inside(|| TcpListener::bind((to, 0)))??;
    let address = listener.local_addr()?;
    thread::scope(|scope| {
        let sender = scope.spawn(|| -> Result<()> {
            let mut stream = from.inside(|| TcpStream::connect(address))??;
            stream.set_write_timeout(Some(Duration::from_millis(200)))?;
            // Ends when the other side closes.
            while stream.write(&[7; 65536]).is_ok_or_slow() {}
            Ok(())
        });
        let (mut stream, _) = listener.accept()?;
        let (start, mut buffer, mut first, mut all) = (Instant::now(), vec![0; 1 << 18], 0, 0);
        while start.elapsed() < Duration::from_secs(SECONDS) {
            all += stream.read(&mut buffer)? as u64;
            if start.elapsed() < Duration::from_secs(1) {
                first = all;
            }
        }
        drop(stream);
        sender.join().expect("the sender does not panic")?;
        Ok((first, all / SECONDS))
    })
}

#[test]
fn a_kill_at_any_moment_leaves_nothing_behind_del() -> Result<()> {
    let Some(bed) = Bed::new("limitkill")? else { return Ok(()) };
    let (pod, mut random) = (Netns::new()?, Random::printed());
    let who = Who::new("c1", &pod);
    let chain = Chain::new(&bed, &both(10_000_000, HUGE))?;
    let before = call("ADD", &who, &bed.bridge()).result();
    let config = with(&chain.config, &json!({"prevResult": before}));
    let mut cut_short = 0;
    for round in 0..120 {
        let verb = if round % 2 == 0 { "ADD" } else { "DEL" };
        if verb == "DEL" {
            call_of(&chain.program, "ADD", &who, &config).result();
        }
        let mut child = command(&chain.program, verb, &who).spawn()?;
        child.stdin.take().context("a pipe")?.write_all(config.to_string().as_bytes())?;
        thread::sleep(random.below(Duration::from_millis(6)));
        cut_short += u32::from(child.try_wait()?.is_none());
        child.kill()?;
        child.wait()?;
        call_of(&chain.program, "DEL", &who, &config).silent();
        assert_eq!((chosen()?, ifbs()?), (vec![], vec![]), "{verb} round {round}");
    }
    println!("{cut_short} of 120 calls were cut short");
    assert!(cut_short >= 12);
    pod.cmd("ping -n -c1 -W2 10.99.0.1").ok()?;
    Ok(())
}

trait OkOrSlow {
    fn is_ok_or_slow(&self) -> bool;
}

impl OkOrSlow for std::io::Result<usize> {
    /// Written, or not written in time; not refused.
    fn is_ok_or_slow(&self) -> bool {
        self.as_ref().map_or_else(|e| e.kind() == std::io::ErrorKind::WouldBlock, |_| true)
    }
}

/// The bytes of the first second and of each, which are that many. The machine may do other things meanwhile: the best
/// of three counts.
fn at_least(least: u64, what: &str, measure: impl Fn() -> Result<(u64, u64)>) -> Result<(u64, u64)> {
    for _ in 0..3 {
        let (first, mean) = measure()?;
        println!("{what}: {first} bytes in the first second, {mean} per second");
        if mean > least {
            return Ok((first, mean));
        }
    }
    anyhow::bail!("{what}: fewer than {least} bytes per second, three times")
}

#[test]
fn a_limit_is_a_limit_from_the_first_second_and_for_nobody_else() -> Result<()> {
    let Some(bed) = Bed::new("measured")? else { return Ok(()) };
    let limit = 1_250_000;
    let (slow, fast) = (Netns::new()?, Netns::new()?);
    let mut address = Vec::new();
    for (pod, id) in [(&slow, "c1"), (&fast, "c2")] {
        let who = Who::new(id, pod);
        let before = call("ADD", &who, &bed.bridge()).result();
        let text =
            before["ips"][0]["address"].as_str().and_then(|a| a.split('/').next()).context("an address")?;
        address.push(text.parse::<Ipv4Addr>()?);
        if id == "c1" {
            Chain::new(&bed, &both(limit * 8, HUGE))?.call("ADD", &who, &before).result();
        }
    }
    let gateway = Ipv4Addr::new(10, 99, 0, 1);
    for (what, from, to, address) in
        [("into the pod", &bed.host, &slow, address[0]), ("out of the pod", &slow, &bed.host, gateway)]
    {
        let (first, mean) = at_least(limit * 75 / 100, what, || arriving(from, to, address))?;
        // TCP begins with losses and pauses: no lower bound for its first second.
        assert!(first < limit * 115 / 100 && mean < limit * 103 / 100, "{what}: {first}, {mean}");
    }
    for (what, from, to, address) in [
        ("into its neighbour", &bed.host, &fast, address[1]),
        ("out of its neighbour", &fast, &bed.host, gateway),
    ] {
        at_least(limit * 20, what, || arriving(from, to, address))?;
    }
    Ok(())
}

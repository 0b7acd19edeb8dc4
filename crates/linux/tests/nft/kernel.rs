//! What happens to tables in the kernel: ours, and those of others that we read or put rules into.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use linux::nft::{Events, Socket};
use ruleset::{
    Change, Element, Family, Field, Hook, Name, Observed, Place, Rule, Selector, Statement, Table,
    Transaction, Value, Verdict, apply, diff,
};

use crate::{
    c6, faults,
    tools::{Result, namespace},
};

const QUICK: Option<Duration> = Some(Duration::from_secs(2));
const NOW: Option<Duration> = Some(Duration::ZERO);

fn read(socket: &mut Socket, table: &Table) -> Result<Option<Observed>> {
    Ok(socket.table(table.family, &table.name)?.map(Observed::without_handles))
}

#[test]
fn a_table_goes_whether_it_was_there_or_not() -> Result {
    let Some(ns) = namespace() else { return Ok(()) };
    let _inside = ns.enter()?;
    let (mut socket, table) = (Socket::open()?, c6::overlay());
    let gone = Transaction::delete(table.family, &table.name);
    socket.commit(&gone)?;
    assert_eq!(read(&mut socket, &table)?, None);
    socket.commit(&Transaction::create(&table))?;
    assert!(ns.cmd("nft list tables").ok()?.stdout.contains("table ip weft-flannel.1"));
    socket.commit(&gone)?;
    assert_eq!(ns.cmd("nft list ruleset").ok()?.stdout, "");
    Ok(())
}

/// What `check` finds is refused by `nft` or by the kernel, but for what is known to be tolerated.
#[test]
fn what_check_finds_is_refused() -> Result {
    let Some(ns) = namespace() else { return Ok(()) };
    let _inside = ns.enter()?;
    let mut socket = Socket::open()?;
    for case in faults::cases() {
        let by_kernel = socket.commit(&Transaction::create(&case.table)).err();
        ns.cmd("nft flush ruleset").ok()?;
        let loaded = ns.cmd("nft -f -").stdin(case.table.to_string()).run()?;
        ns.cmd("nft flush ruleset").ok()?;
        let by_nft = loaded.stderr.lines().next();
        println!("{:?}\n  kernel: {by_kernel:?}\n  nft: {by_nft:?}", case.faults);
        let refused = by_kernel.is_some() || !loaded.success();
        assert_eq!(case.tolerated.is_none(), refused, "{:?}: {:?}", case.faults, case.tolerated);
    }
    let table = faults::at_the_limits();
    ns.cmd("nft -f -").stdin(table.to_string()).ok()?;
    ns.cmd("nft flush ruleset").ok()?;
    Ok(socket.commit(&Transaction::create(&table))?)
}

#[test]
fn a_refused_change_is_named_and_nothing_of_its_transaction_stays() -> Result {
    let Some(ns) = namespace() else { return Ok(()) };
    let _inside = ns.enter()?;
    let mut socket = Socket::open()?;
    let mut table = c6::overlay();
    let lost = Rule::new([Statement::goto("nowhere")]);
    let mut transaction = Transaction::create(&table);
    transaction.add_rule(&table, &"forward".into(), &lost).add_chain(&"later".into(), None);
    let error = socket.commit(&transaction).unwrap_err();
    assert_eq!(error.to_string(), "failed to add rule of chain forward in nftables table ip weft-flannel.1");
    assert!(error.is_not_found(), "{error:?}");
    assert_eq!(read(&mut socket, &table)?, None);

    table.set("s", ruleset::SetSpec::set(Field::IpDaddr));
    let mut transaction = Transaction::create(&table);
    let set = Name::from("s");
    transaction.delete_elements(&set, &table.sets[&set].spec, [c6::ip("10.0.0.1").into()]);
    let error = socket.commit(&transaction).unwrap_err();
    assert_eq!(error.to_string(), "failed to delete element of s in nftables table ip weft-flannel.1");
    assert!(error.is_not_found(), "{error:?}");
    // The connection is still good.
    socket.commit(&Transaction::create(&table))?;
    Ok(())
}

#[test]
fn a_loop_is_refused_and_the_connection_goes_on() -> Result {
    let Some(ns) = namespace() else { return Ok(()) };
    let _inside = ns.enter()?;
    let (mut socket, mut table) = (Socket::open()?, c6::overlay());
    table.chain("loop", ruleset::Chain::regular([Rule::new([Statement::jump("loop")])]));
    table.chains.get_mut(&Name::from("forward")).unwrap().rules.push(Rule::new([Statement::jump("loop")]));
    assert!(table.check().is_err());
    let error = socket.commit(&Transaction::create(&table)).unwrap_err();
    assert_eq!(error.to_string(), "failed to add rule of chain loop in nftables table ip weft-flannel.1");
    socket.commit(&Transaction::create(&c6::overlay()))?;
    assert!(diff(&c6::overlay(), read(&mut socket, &table)?.as_ref()).is_empty());
    Ok(())
}

#[test]
fn elements_count_what_they_match() -> Result {
    let Some(ns) = namespace() else { return Ok(()) };
    let _inside = ns.enter()?;
    let mut socket = Socket::open()?;
    let mut table = Table::new(Family::Ip, "counting");
    let set = Name::from("s");
    table.set(&set, ruleset::SetSpec::set(Field::IpDaddr).counter());
    table.element(&set, [127, 0, 0, 1], Element::default());
    table.element(&set, [127, 0, 0, 2], Element::default());
    let look_up = Rule::new([Field::IpDaddr.in_set(&set)]);
    let chain = ruleset::Chain::base(ruleset::ChainType::Filter, Hook::Output, 0, [look_up]);
    table.chain("c", chain);
    socket.commit(&Transaction::create(&table))?;
    let receiver = std::net::UdpSocket::bind("127.0.0.1:0")?;
    for _ in 0..3 {
        std::net::UdpSocket::bind("127.0.0.1:0")?.send_to(b"weft", receiver.local_addr()?)?;
    }
    let counted = ns.cmd("nft list set ip counting s").ok()?.stdout;
    let bytes = 3 * (20 + 8 + 4);
    for element in
        [&format!("127.0.0.1 counter packets 3 bytes {bytes}"), "127.0.0.2 counter packets 0 bytes 0"]
    {
        assert!(counted.contains(element), "{counted}");
    }
    Ok(())
}

#[test]
fn a_commit_can_depend_on_the_generation() -> Result {
    let Some(ns) = namespace() else { return Ok(()) };
    let _inside = ns.enter()?;
    let (mut socket, table) = (Socket::open()?, c6::overlay());
    let generation = socket.generation()?;
    ns.cmd("nft add table ip other").ok()?;
    let late = socket.commit_at(&Transaction::create(&table), Some(generation)).unwrap_err();
    assert!(late.is_overtaken(), "{late:?}");
    assert_eq!(late.to_string(), "failed to change nftables table ip weft-flannel.1");
    let generation = socket.generation()?;
    socket.commit_at(&Transaction::create(&table), Some(generation))?;
    assert_eq!(socket.generation()?, generation + 1);
    Ok(())
}

/// Each state in turn is reached from the one before by its difference, in the kernel as in the shadow.
#[test]
fn differences_lead_from_state_to_state_in_the_kernel() -> Result {
    let Some(ns) = namespace() else { return Ok(()) };
    let _inside = ns.enter()?;
    let mut socket = Socket::open()?;
    let mut shadow = None;
    for want in states() {
        let step = diff(&want, shadow.as_ref());
        socket.commit(&step)?;
        apply(&mut shadow, &step)?;
        let have = read(&mut socket, &want)?;
        assert_eq!(have, shadow, "after {step:?}");
        assert!(diff(&want, have.as_ref()).is_empty(), "{:?}", diff(&want, have.as_ref()));
    }
    Ok(())
}

/// Who looks up the map, and who is reached from it, change places: at no moment may both lead to each other.
#[test]
fn a_way_through_a_map_turns_round() -> Result {
    let Some(ns) = namespace() else { return Ok(()) };
    let _inside = ns.enter()?;
    let mut socket = Socket::open()?;
    let [from_a, from_b] = [["a", "b"], ["b", "a"]].map(|[from, to]| {
        let (mut table, map) = (Table::new(Family::Ip, "turning"), Name::from("classes"));
        let look_up = Rule::new([Selector::from(Field::MetaMark).vmap(&map)]);
        let enter = Rule::new([Statement::jump(from)]);
        table.set(&map, ruleset::SetSpec::vmap(Field::MetaMark));
        table.element(&map, Value::number(1), Element::verdict(Verdict::Goto(to.into())));
        table.chain("base", ruleset::Chain::base(ruleset::ChainType::Filter, Hook::Output, 0, [enter]));
        table.chain(from, ruleset::Chain::regular([look_up])).chain(to, ruleset::Chain::regular([]));
        table
    });
    for want in [&from_a, &from_b, &from_a] {
        assert_eq!(want.check(), Ok(()));
        let have = socket.table(want.family, &want.name)?;
        socket.commit(&diff(want, have.as_ref()))?;
        assert!(diff(want, read(&mut socket, want)?.as_ref()).is_empty());
    }
    Ok(())
}

fn states() -> Vec<Table> {
    let full = c6::services();
    let [endpoints, frontends, classes, pods] =
        ["endpoints", "frontends", "classes", "pod-ranges"].map(Name::from);
    let mut grown = full.clone();
    grown.element(&endpoints, c6::row(2, 2), Element::value(c6::target("172.16.3.5", 5353)));
    let mut swapped = grown.clone();
    swapped.element(&endpoints, c6::row(2, 0), Element::value(c6::target("172.16.9.9", 1)).comment("new"));
    swapped.element(&classes, Value::number(2), Element::verdict(Verdict::Goto("external2".into())));
    let mut ranges = swapped.clone();
    ranges.sets.get_mut(&pods).unwrap().elements.clear();
    ranges.element(&pods, c6::subnet("172.16.0.0/17"), Element::default());
    ranges.element(&pods, c6::subnet("172.16.128.0/17"), Element::default());
    ranges.element(&pods, c6::subnet("255.0.0.0/8"), Element::default());
    let mut fewer = ranges.clone();
    fewer.sets.remove(&Name::from("hairpins"));
    fewer.sets.get_mut(&frontends).unwrap().elements.clear();
    fewer.chains.remove(&Name::from("external-local2"));
    let postrouting = fewer.chains.get_mut(&Name::from("nat-postrouting")).unwrap();
    postrouting.rules.remove(1);
    postrouting.base.as_mut().unwrap().policy = ruleset::Policy::Drop;
    let mut other_kind = full.clone();
    other_kind.set("cluster-ips", ruleset::SetSpec::set(Field::IpDaddr).interval());
    let mut other_hook = full.clone();
    other_hook.chains.get_mut(&Name::from("nat-output")).unwrap().base.as_mut().unwrap().priority = -101;
    let empty = Table::new(Family::Ip, "weft-proxy");
    vec![empty.clone(), full.clone(), grown, swapped, ranges, fewer, full, other_kind, other_hook, empty]
}

#[test]
fn many_elements_are_one_transaction() -> Result {
    const MANY: u32 = 20_000;
    let Some(ns) = namespace() else { return Ok(()) };
    let _inside = ns.enter()?;
    let (mut socket, mut table) = (Socket::open()?, c6::services());
    let endpoints = Name::from("endpoints");
    for id in 10..10 + MANY {
        let target = c6::target("172.16.7.7", id as u16);
        table.element(&endpoints, c6::row(id, 0), Element::value(target).comment(format!("ns/service-{id}")));
    }
    let generation = socket.generation()?;
    socket.commit(&Transaction::create(&table))?;
    assert_eq!(socket.generation()?, generation + 1);
    let have = read(&mut socket, &table)?;
    assert!(diff(&table, have.as_ref()).is_empty());
    let mut nothing = Transaction::new(table.family, table.name.clone());
    let form = table.sets[&endpoints].spec.form();
    nothing.push(Change::AddElements { set: endpoints, form, elements: Vec::new() });
    socket.commit(&nothing)?;
    assert_eq!(socket.generation()?, generation + 1, "no elements are no commit");
    Ok(())
}

#[test]
fn a_foreign_chain_is_read_and_our_rule_goes_before_its_last() -> Result {
    let Some(ns) = namespace() else { return Ok(()) };
    let _inside = ns.enter()?;
    let mut socket = Socket::open()?;
    ns.cmd("iptables-nft -P FORWARD DROP").ok()?;
    ns.cmd("iptables-nft -A FORWARD -s 10.9.9.9 -m conntrack --ctstate NEW -j DROP").ok()?;
    ns.cmd("iptables-nft -A FORWARD -m comment --comment last -j REJECT").ok()?;
    let (filter, forward) = (Name::from("filter"), Name::from("FORWARD"));
    let at_hook = socket.base_chains(Hook::Forward)?;
    assert_eq!(at_hook.len(), 1);
    assert_eq!((&at_hook[0].table, &at_hook[0].name), (&filter, &forward));
    assert_eq!(at_hook[0].base.unwrap().policy, ruleset::Policy::Drop);
    let rules = socket.rules(Family::Ip, &filter, &forward)?;
    let refuses: Vec<bool> = rules.iter().map(|rule| rule.code.refuses_all()).collect();
    assert_eq!(refuses, [false, true]);
    assert_eq!(rules[1].code.comment.as_deref(), Some("last"));

    let ours = Rule::new([Field::IpSaddr.within(c6::subnet("172.16.0.0/16")), Statement::ACCEPT])
        .comment("weft:flannel.1");
    let scope = Table::new(Family::Ip, &filter);
    let mut insert = Transaction::new(Family::Ip, &filter);
    insert.push(Change::AddRule {
        chain: forward.clone(),
        place: Place::Before(rules[1].handle),
        code: ours.lower(&scope),
    });
    socket.commit(&insert)?;
    let saved = ns.cmd("iptables-nft-save -t filter").ok()?.stdout;
    let forwards: Vec<&str> = saved.lines().filter(|line| line.starts_with("-A FORWARD")).collect();
    assert_eq!(
        forwards[1], "-A FORWARD -s 172.16.0.0/16 -m comment --comment \"weft:flannel.1\" -j ACCEPT",
        "{saved}"
    );
    assert_eq!(forwards.len(), 3);

    // Restored, the comment is a match of iptables; it is still ours, and goes by its handle.
    ns.cmd("iptables-nft-restore").stdin(saved).ok()?;
    let rules = socket.rules(Family::Ip, &filter, &forward)?;
    let comments: Vec<_> = rules.iter().map(|rule| rule.code.comment.as_deref()).collect();
    assert_eq!(comments, [None, Some("weft:flannel.1"), Some("last")]);
    let mut remove = Transaction::new(Family::Ip, &filter);
    remove.push(Change::DeleteRule { chain: forward.clone(), handle: rules[1].handle });
    socket.commit(&remove)?;
    assert_eq!(socket.rules(Family::Ip, &filter, &forward)?.len(), 2);
    Ok(())
}

/// What we have no word for is written as it was read.
#[test]
fn a_foreign_rule_can_be_copied() -> Result {
    let Some(ns) = namespace() else { return Ok(()) };
    let _inside = ns.enter()?;
    let mut socket = Socket::open()?;
    ns.cmd("iptables-nft -A FORWARD -s 10.9.9.9 -m conntrack --ctstate NEW -j LOG").ok()?;
    let (filter, forward) = (Name::from("filter"), Name::from("FORWARD"));
    let code = socket.rules(Family::Ip, &filter, &forward)?.remove(0).code;
    let mut copy = Transaction::new(Family::Ip, &filter);
    copy.push(Change::AddRule { chain: forward, place: Place::End, code });
    socket.commit(&copy)?;
    let saved = ns.cmd("iptables-nft-save -t filter").ok()?.stdout;
    println!("{saved}");
    let rules: Vec<&str> = saved.lines().filter(|line| line.starts_with("-A FORWARD")).collect();
    assert_eq!(rules.len(), 2);
    assert_eq!(rules[0], rules[1]);
    Ok(())
}

#[test]
fn rules_keep_their_place() -> Result {
    let Some(ns) = namespace() else { return Ok(()) };
    let _inside = ns.enter()?;
    let mut socket = Socket::open()?;
    ns.cmd("nft -f -")
        .stdin("table ip t { chain c { counter comment \"a\"; counter comment \"b\"; }; }")
        .ok()?;
    let (table, chain) = (Name::from("t"), Name::from("c"));
    let first = socket.rules(Family::Ip, &table, &chain)?[0].handle;
    let mut transaction = Transaction::new(Family::Ip, &table);
    for (place, comment) in [(Place::End, "end"), (Place::Before(first), "before")] {
        let code = Rule::new([Statement::Counter]).comment(comment).lower(&Table::new(Family::Ip, &table));
        transaction.push(Change::AddRule { chain: chain.clone(), place, code });
    }
    socket.commit(&transaction)?;
    let rules = socket.rules(Family::Ip, &table, &chain)?;
    let order: Vec<_> = rules.iter().filter_map(|rule| rule.code.comment.as_deref()).collect();
    assert_eq!(order, ["before", "a", "b", "end"]);
    Ok(())
}

#[test]
fn changes_are_announced_with_their_author() -> Result {
    let Some(ns) = namespace() else { return Ok(()) };
    let _inside = ns.enter()?;
    let (mut socket, mut events) = (Socket::open()?, Events::open()?);
    assert!(events.wait(NOW)?.is_empty());
    let table = c6::services();
    socket.commit(&Transaction::create(&table))?;
    let ours = events.wait(QUICK)?;
    assert!(!ours.is_empty() && ours.iter().all(|changed| changed.by == socket.port()), "{ours:?}");
    assert!(ours.iter().all(|changed| changed.table == table.name));
    ns.cmd("nft delete element ip weft-proxy cluster-ips { 10.254.0.10 }").ok()?;
    let theirs = events.wait(QUICK)?;
    assert_eq!(theirs.len(), 1);
    let changed = theirs.first().unwrap();
    assert_eq!((changed.family, &changed.table), (Family::Ip, &table.name));
    assert_ne!(changed.by, socket.port());
    ns.cmd("nft flush ruleset").ok()?;
    assert!(events.wait(QUICK)?.iter().any(|changed| changed.table == table.name));
    assert!(events.wait(NOW)?.is_empty());
    Ok(())
}

#[test]
fn a_table_is_read_while_others_never_rest() -> Result {
    let Some(ns) = namespace() else { return Ok(()) };
    let (table, mut busy) = (c6::services(), c6::services());
    busy.name = "busy".into();
    let _inside = ns.enter()?;
    let mut socket = Socket::open()?;
    socket.commit(&Transaction::create(&table))?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result {
        let others = scope.spawn(|| {
            ns.inside(|| {
                let mut socket = Socket::open().unwrap();
                while !stop.load(Ordering::Relaxed) {
                    socket.commit(&Transaction::create(&busy)).unwrap();
                    socket.commit(&Transaction::delete(busy.family, &busy.name)).unwrap();
                }
            })
        });
        let _stop = Stop(&stop);
        let mut disturbed = 0;
        while disturbed < 50 {
            assert!(!others.is_finished(), "nobody disturbs any more");
            let before = socket.generation()?;
            assert!(diff(&table, read(&mut socket, &table)?.as_ref()).is_empty());
            disturbed += usize::from(socket.generation()? != before);
        }
        Ok(())
    })
}

/// Tells a thread to end, however its test ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn lost_events_are_reported_and_the_subscription_goes_on() -> Result {
    let Some(ns) = namespace() else { return Ok(()) };
    let _inside = ns.enter()?;
    let (mut socket, mut events) = (Socket::open()?, Events::open()?);
    let mut table = c6::services();
    let endpoints = Name::from("endpoints");
    for id in 10..10_010 {
        table.element(&endpoints, c6::row(id, 0), Element::value(c6::target("172.16.7.7", 80)));
    }
    // Each round announces some megabytes, and nobody reads.
    for _ in 0..20 {
        socket.commit(&Transaction::create(&table))?;
        socket.commit(&Transaction::delete(table.family, &table.name))?;
    }
    assert!(events.wait(QUICK).unwrap_err().is_overrun());
    while !events.wait(NOW)?.is_empty() {}
    socket.commit(&Transaction::create(&c6::overlay()))?;
    let changed = events.wait(QUICK)?;
    let tables: Vec<_> = changed.iter().map(|changed| changed.table.as_str()).collect();
    assert_eq!(tables, ["weft-flannel.1"]);
    Ok(())
}

/// Whatever others do to a table, the difference undoes it.
#[test]
fn what_others_did_to_a_table_is_undone() -> Result {
    let Some(ns) = namespace() else { return Ok(()) };
    let _inside = ns.enter()?;
    let (mut socket, table) = (Socket::open()?, c6::services());
    socket.commit(&Transaction::create(&table))?;
    let goal = read(&mut socket, &table)?;
    let asleep = "add table ip weft-proxy { flags dormant; }";
    for harm in [
        &[asleep][..],
        &[asleep, "delete chain ip weft-proxy nat-postrouting"],
        &["add chain ip weft-proxy x { type filter hook input priority 0; }", asleep],
        &["add element ip weft-proxy cluster-ips { * }"],
        &["add element ip weft-proxy frontends { * : 1 }"],
        &["add element ip weft-proxy classes { * : drop }"],
        &["add element ip weft-proxy hairpins { * }"],
    ] {
        for step in harm {
            ns.cmd("nft").arg(*step).ok()?;
        }
        let have = read(&mut socket, &table)?;
        assert_ne!(have, goal, "{harm:?}");
        let undo = diff(&table, have.as_ref());
        socket.commit(&undo)?;
        assert_eq!(read(&mut socket, &table)?, goal, "{harm:?}");
        println!("{harm:?}: {:?}", undo.changes.iter().map(Change::to_string).collect::<Vec<_>>());
    }
    let mut everything = Transaction::new(table.family, &table.name);
    let (pods, spec) = (Name::from("pod-ranges"), &table.sets[&Name::from("pod-ranges")].spec);
    everything.add_elements(&pods, spec, [(Value::bytes(&[]).into(), Element::default())]);
    socket.commit(&everything)?;
    assert!(ns.cmd("nft list set ip weft-proxy pod-ranges").ok()?.stdout.contains(" * }"));
    let have = read(&mut socket, &table)?;
    assert_eq!(diff(&table, have.as_ref()).changes.len(), 1);
    socket.commit(&diff(&table, have.as_ref()))?;
    assert_eq!(read(&mut socket, &table)?, goal);
    Ok(())
}

#[test]
fn elements_that_packets_made_are_left_alone() -> Result {
    let Some(ns) = namespace() else { return Ok(()) };
    let _inside = ns.enter()?;
    let (mut socket, table) = (Socket::open()?, c6::services());
    socket.commit(&Transaction::create(&table))?;
    ns.cmd("nft add element ip weft-proxy affinity { 0:2000 . 10.0.0.1 timeout 1h : 0:2001 }").ok()?;
    let have = socket.table(table.family, &table.name)?;
    assert_eq!(have.as_ref().map(|table| table.sets[&Name::from("affinity")].elements.len()), Some(1));
    assert!(diff(&table, have.as_ref()).is_empty());
    Ok(())
}

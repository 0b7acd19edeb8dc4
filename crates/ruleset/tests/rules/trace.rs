//! Virtual packets walk the tables that the other tests load into a kernel.

use std::net::SocketAddr;

use netmodel::Protocol;
use ruleset::{
    Chain, ChainType, Data, DynamicOp, Element, Family, Field, Hook, Name, Rule, SetSpec, Statement, Table,
    Value,
    trace::{Masqueraded, Outcome, Packet, Tracer},
};

use crate::c6;

const NODE: &str = "192.0.2.1";

/// A packet as "source:port > destination:port/protocol", from a pod's device unless its source is the node.
fn packet(text: &str) -> Packet {
    let (source, rest) = text.split_once(" > ").unwrap();
    let (destination, protocol) = rest.split_once('/').unwrap();
    let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
    let protocol: Protocol = protocol.parse().unwrap();
    if text.starts_with(NODE) {
        Packet::sent(source, destination, protocol)
    } else {
        Packet::arriving(&"cni0".parse().unwrap(), source, destination, protocol)
    }
}

fn tracer(table: &Table, random: u32) -> Tracer<'_> {
    Tracer::new(table, &[NODE.parse().unwrap()], move |modulus| random % modulus)
}

/// Where packets end: one line each, "packet => outcome".
fn check(table: &Table, random: u32, cases: &str) {
    for line in cases.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (text, expected) = line.split_once(" => ").unwrap();
        let outcome = match tracer(table, random).trace(&packet(text)) {
            Outcome::Reaches(to, Masqueraded(false)) => to.to_string(),
            Outcome::Reaches(to, Masqueraded(true)) => format!("{to} masqueraded"),
            Outcome::Rejected => "rejected".to_owned(),
            Outcome::Dropped => "dropped".to_owned(),
        };
        assert_eq!(outcome, expected, "{text}");
    }
}

#[test]
fn a_service_leads_to_its_endpoints() {
    let table = c6::services();
    check(
        &table,
        0,
        "172.16.3.3:999 > 10.254.0.10:53/udp => 172.16.1.5:5353
         172.16.3.3:999 > 10.254.0.10:53/tcp => 172.16.1.5:5353
         172.16.1.5:999 > 10.254.0.10:53/udp => 172.16.1.5:5353 masqueraded
         192.0.2.1:999 > 10.254.0.10:53/udp => 172.16.1.5:5353 masqueraded
         192.0.2.77:999 > 10.254.0.10:53/udp => 172.16.1.5:5353 masqueraded
         192.0.2.77:999 > 192.0.2.1:30001/tcp => 172.16.1.5:5353 masqueraded
         192.0.2.77:999 > 192.0.2.1:30001/udp => 192.0.2.1:30001
         172.16.3.3:999 > 10.254.0.10:54/udp => rejected
         172.16.3.3:999 > 10.254.0.11:80/tcp => rejected
         192.0.2.1:999 > 10.254.0.11:80/tcp => rejected
         172.16.3.3:999 > 172.16.1.5:5353/udp => 172.16.1.5:5353
         172.16.3.3:999 > 198.51.100.1:80/tcp => 198.51.100.1:80",
    );
    check(&table, 1, "172.16.3.3:999 > 10.254.0.10:53/udp => 172.16.2.5:5353");
}

#[test]
fn the_scratch_priority_is_put_back() {
    let table = c6::services();
    let mut tracer = tracer(&table, 0);
    let mut marked = packet("172.16.3.3:999 > 10.254.0.10:53/udp");
    marked.priority = 0x0001_0001;
    tracer.trace(&marked);
    assert_eq!(tracer.last_priority, 0);
    marked.destination = "198.51.100.1:80".parse().unwrap();
    tracer.trace(&marked);
    assert_eq!(tracer.last_priority, 0x0001_0001, "what is not ours stays");
}

#[test]
fn a_packet_that_crosses_a_commit_takes_slot_0_or_is_dropped() {
    let mut table = c6::services();
    let endpoints = table.sets.get_mut(&Name::from("endpoints")).unwrap();
    endpoints.elements.remove(&c6::row(2, 1).into());
    check(&table, 1, "172.16.3.3:999 > 10.254.0.10:53/udp => 172.16.1.5:5353");
    table.sets.get_mut(&Name::from("endpoints")).unwrap().elements.clear();
    check(&table, 1, "172.16.3.3:999 > 10.254.0.10:53/udp => dropped");
}

#[test]
fn affinity_holds_until_its_endpoint_is_gone() {
    let mut table = c6::services();
    let [classes, slots, sticky] = ["classes", "slots", "sticky-endpoints"].map(Name::from);
    let endpoint = |index: u32| Value::number(2 << 12 | index);
    let to = |chain: &str| Element::verdict(ruleset::Verdict::Goto(chain.into()));
    table
        .element(&classes, Value::number(2), to("sticky2"))
        .element(&slots, c6::row(2, 0), Element::value(endpoint(7)))
        .element(&slots, c6::row(2, 1), Element::value(endpoint(8)))
        .element(&sticky, endpoint(7), Element::value(c6::target("172.16.1.5", 5353)))
        .element(&sticky, endpoint(8), Element::value(c6::target("172.16.2.5", 5353)));
    let from_pod = packet("172.16.3.3:999 > 10.254.0.10:53/udp");
    let reaches = |to: &str| Outcome::Reaches(to.parse().unwrap(), Masqueraded(false));
    let mut numbers = [1, 0, 0, 0].into_iter();
    let mut tracer = Tracer::new(&table, &[], |_| numbers.next().unwrap_or(0));
    assert_eq!(tracer.trace(&from_pod), reaches("172.16.2.5:5353"));
    assert_eq!(tracer.trace(&from_pod), reaches("172.16.2.5:5353"), "whatever the random number");
    let learned = std::mem::take(&mut tracer.learned);
    drop(tracer);
    table.sets.get_mut(&sticky).unwrap().elements.remove(&endpoint(8).into());
    let mut tracer = Tracer::new(&table, &[], |_| 0);
    tracer.learned = learned;
    assert_eq!(tracer.trace(&from_pod), reaches("172.16.1.5:5353"), "forgotten and picked again");
    assert_eq!(tracer.trace(&from_pod), reaches("172.16.1.5:5353"));
}

#[test]
fn what_is_learned_is_as_long_as_the_data_of_its_map() {
    let (last, mut table) = (Name::from("seen-last"), Table::new(Family::Ip6, "t"));
    let (key, data) = (Field::Ip6Saddr.into(), Some(Field::Ip6Daddr.into()));
    let learn = Statement::Dynamic { op: DynamicOp::Update, set: last.clone(), key, timeout: None, data };
    table.set(&last, SetSpec::map(Field::Ip6Saddr, Field::Ip6Daddr).dynamic(10));
    table.chain("c", Chain::base(ChainType::Filter, Hook::Output, 0, [Rule::new([learn])]));
    let [from, to] = ["[fd00::1]:1", "[fd00::2]:2"].map(|end| end.parse::<SocketAddr>().unwrap());
    let mut tracer = tracer(&table, 0);
    tracer.trace(&Packet::sent(from, to, Protocol::Udp));
    assert_eq!(tracer.learned[&last][&from.ip().into()], Data::Value(to.ip().into()));
}

#[test]
fn pods_are_masqueraded_only_on_their_way_out() {
    check(
        &c6::overlay(),
        0,
        "172.16.34.5:1 > 198.51.100.1:80/tcp => 198.51.100.1:80 masqueraded
         172.16.34.5:1 > 172.16.9.9:80/tcp => 172.16.9.9:80
         172.16.9.9:1 > 172.16.34.5:80/tcp => 172.16.34.5:80
         198.51.100.1:1 > 172.16.34.5:80/tcp => 172.16.34.5:80
         192.0.2.1:1 > 172.16.9.9:80/tcp => 172.16.9.9:80 masqueraded
         172.16.34.5:1 > 224.0.0.251:5353/udp => 224.0.0.251:5353
         192.0.2.1:1 > 198.51.100.1:80/tcp => 198.51.100.1:80",
    );
}

#[test]
fn ranges_policies_and_jumps_are_followed() {
    let table = c6::oddments();
    check(
        &table,
        0,
        "198.51.100.1:81 > 198.51.100.2:443/tcp => rejected
         198.51.100.1:81 > 10.5.5.5:9/tcp => dropped
         198.51.100.1:81 > 198.51.100.2:9/udp => dropped",
    );
    let mut tracer = tracer(&table, 0);
    let mut allowed = packet("198.51.100.1:81 > 198.51.100.2:9/udp");
    allowed.mark = 1;
    allowed.state = ruleset::ct_state::ESTABLISHED;
    assert!(matches!(tracer.trace(&allowed), Outcome::Reaches(..)));
    allowed.mark = 0;
    assert_eq!(tracer.trace(&allowed), Outcome::Dropped);
    assert!(tracer.learned[&Name::from("seen")].contains_key(&c6::ip("198.51.100.1")));
    let mut listed = packet("10.200.0.1:81 > 10.0.0.1:80/tcp");
    listed.state = ruleset::ct_state::ESTABLISHED;
    tracer.learned.clear();
    tracer.trace(&listed);
    assert!(tracer.learned.is_empty(), "10.0.0.0/8 is allowed there");
}

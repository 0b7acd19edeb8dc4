//! Tables that several tests use: the shape in which Services are looked up, with two Services, and
//! masquerade and forward rules of an overlay.

use std::time::Duration;

use netmodel::{Protocol, Subnet};
use ruleset::*;

/// Service id in the upper 20 bits, class in the lower 12.
pub(crate) const ID: u32 = 0xffff_f000;
pub(crate) const CLASS: u32 = 0xfff;
/// Asks for masquerade.
pub(crate) const MASQUERADE: u32 = 0x4000;

pub(crate) const PRIORITY: Field = Field::MetaPriority;

fn rule(statements: impl IntoIterator<Item = Statement>) -> Rule {
    Rule::new(statements)
}

pub(crate) fn subnet(text: &str) -> Subnet {
    text.parse().unwrap()
}

pub(crate) fn ip(text: &str) -> Value {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

/// `address . port`
pub(crate) fn target(address: &str, port: u16) -> Value {
    Value::concat([ip(address), Value::port(port)])
}

/// `address . protocol . port`
pub(crate) fn front(address: &str, protocol: Protocol, port: u16) -> Value {
    Value::concat([ip(address), protocol.into(), Value::port(port)])
}

/// `id . slot`
pub(crate) fn row(id: u32, slot: u32) -> Value {
    Value::concat([Value::number(id << 12), Value::number(slot)])
}

fn id() -> Expr {
    PRIORITY.and(ID)
}

fn random(modulus: u32) -> Expr {
    Expr::Random { modulus }
}

fn by_class(map: &str) -> Statement {
    Selector::from(PRIORITY.and(CLASS)).vmap(map)
}

fn mark() -> Statement {
    Writable::MetaMark.set(Field::MetaMark.or(MASQUERADE))
}

/// The shape, without elements.
pub(crate) fn shape(family: Family) -> Table {
    let AddressFields { source, destination } = family.addresses();
    let front = [destination, Field::MetaL4proto, Field::ThDport];
    let node = [Field::MetaL4proto, Field::ThDport];
    let target = [destination, Field::ThDport];
    let mut table = Table::new(family, "weft-proxy");
    table.comment = Some("weft: services".into());
    table
        .set("frontends", SetSpec::map(front, PRIORITY).counter())
        .set("nodeports", SetSpec::map(node, PRIORITY).counter())
        .set("classes", SetSpec::vmap(PRIORITY))
        .set("endpoints", SetSpec::map([PRIORITY.into(), SLOT], target).counter())
        .set("views", SetSpec::map(PRIORITY, PRIORITY))
        .set("view-classes", SetSpec::vmap(PRIORITY))
        .set("slots", SetSpec::map([PRIORITY.into(), SLOT], PRIORITY))
        .set("sticky-endpoints", SetSpec::map(PRIORITY, target))
        .set("affinity", SetSpec::map([PRIORITY, source], PRIORITY).dynamic(65_536))
        .set("cluster-ips", SetSpec::set(destination))
        .set("nodeport-ips", SetSpec::set(destination))
        .set("pod-ranges", SetSpec::set(source).interval())
        .set("hairpins", SetSpec::set([source, destination]))
        .set("rejects", SetSpec::set(front))
        .set("nodeport-rejects", SetSpec::set(node));
    spread_chains(&mut table, source);
    sticky_chains(&mut table, source);
    base_chains(&mut table);
    table
}

fn spread_chains(table: &mut Table, source: Field) {
    let to_views = || Writable::MetaPriority.set(Selector::from(id()).map("views"));
    let spread = |n| rule([has_ports(), Statement::dnat_by("endpoints", [id(), random(n)])]);
    table
        .chain("spread2", Chain::regular([spread(2), spread(1), rule([Statement::DROP])]))
        .chain(
            "cluster2",
            Chain::regular([
                rule([source.not_in_set("pod-ranges"), mark()]),
                rule([Statement::goto("spread2")]),
            ]),
        )
        .chain("external2", Chain::regular([rule([mark()]), rule([Statement::goto("spread2")])]))
        .chain(
            "external-local2",
            Chain::regular([
                rule([source.in_set("pod-ranges"), to_views(), by_class("view-classes")]),
                rule([
                    Field::FibSaddrType.is(Value::number(FIB_LOCAL)),
                    to_views(),
                    mark(),
                    by_class("view-classes"),
                ]),
                rule([Statement::goto("spread2")]),
            ]),
        );
}

fn sticky_chains(table: &mut Table, source: Field) {
    let key = || Selector::concat([id(), source.into()]);
    let refresh = || Statement::Dynamic {
        op: DynamicOp::Update,
        set: "affinity".into(),
        key: key(),
        timeout: Some(Duration::from_secs(3 * 3600)),
        data: Some(PRIORITY.into()),
    };
    let forget = Statement::Dynamic {
        op: DynamicOp::Delete,
        set: "affinity".into(),
        key: key(),
        timeout: None,
        data: Some(PRIORITY.into()),
    };
    let pick = |n| {
        let slot = Selector::from([id(), random(n)]).map("slots");
        rule([Writable::MetaPriority.set(slot), Statement::goto("sticky-use")])
    };
    let use_it = || rule([has_ports(), Statement::dnat_by("sticky-endpoints", PRIORITY)]);
    table
        .chain(
            "sticky2",
            Chain::regular([
                rule([Writable::MetaPriority.set(key().map("affinity")), Statement::goto("sticky-hit2")]),
                rule([Statement::goto("sticky-pick2")]),
            ]),
        )
        .chain("sticky-pick2", Chain::regular([pick(2), pick(1), rule([Statement::DROP])]))
        .chain("sticky-use", Chain::regular([rule([refresh()]), use_it(), rule([Statement::DROP])]))
        .chain(
            "sticky-hit2",
            Chain::regular([
                rule([refresh()]),
                use_it(),
                rule([forget]),
                rule([Statement::goto("sticky-pick2")]),
            ]),
        );
}

fn base_chains(table: &mut Table) {
    let AddressFields { source, destination } = table.family.addresses();
    let front = || Selector::from([destination, Field::MetaL4proto, Field::ThDport]);
    let node = || Selector::from([Field::MetaL4proto, Field::ThDport]);
    let to_class = |key: Selector, map: &str| Writable::MetaPriority.set(key.map(map));
    let base = |kind, hook, priority, to: Statement| Chain::base(kind, hook, priority, [rule([to])]);
    let nat_done = || Field::CtStatus.has_any(ct_status::DNAT);
    let first_nat =
        Field::CtStatus.and(ct_status::DNAT | ct_status::CONFIRMED).is(Value::number(ct_status::DNAT));
    table
        .chain(
            "services",
            Chain::regular([
                rule([to_class(front(), "frontends"), by_class("classes")]),
                rule([
                    destination.in_set("nodeport-ips"),
                    to_class(node(), "nodeports"),
                    by_class("classes"),
                ]),
            ]),
        )
        .chain("nat-prerouting", base(ChainType::Nat, Hook::Prerouting, -100, Statement::goto("services")))
        .chain("nat-output", base(ChainType::Nat, Hook::Output, -100, Statement::goto("services")))
        .chain(
            "nat-postrouting",
            Chain::base(
                ChainType::Nat,
                Hook::Postrouting,
                100,
                [
                    rule([first_nat, Writable::MetaPriority.set(Value::number(0))]),
                    rule([
                        nat_done(),
                        Selector::from([source, destination]).in_set("hairpins"),
                        Statement::Masquerade(PortChoice::FullyRandom),
                    ])
                    .comment("weft: hairpin"),
                    rule([Field::MetaMark.and(MASQUERADE).is(Value::number(0)), Statement::RETURN]),
                    rule([Writable::MetaMark.set(Field::MetaMark.xor(MASQUERADE))]),
                    rule([Statement::Masquerade(PortChoice::FullyRandom)]),
                ],
            ),
        )
        .chain(
            "reject-new",
            Chain::regular([
                rule([Field::CtState.is_not(Value::number(ct_state::NEW)), Statement::RETURN]),
                rule([front().in_set("rejects"), Statement::REJECT]),
                rule([
                    destination.in_set("nodeport-ips"),
                    node().in_set("nodeport-rejects"),
                    Statement::REJECT,
                ]),
                rule([destination.in_set("cluster-ips"), Statement::REJECT]),
            ]),
        );
    for (name, hook) in
        [("filter-input", Hook::Input), ("filter-forward", Hook::Forward), ("filter-output", Hook::Output)]
    {
        table.chain(name, base(ChainType::Filter, hook, 0, Statement::jump("reject-new")));
    }
}

/// The shape with two Services, IPv4: id 2 (DNS, two endpoints, class 2) and id 3 (without endpoints).
pub(crate) fn services() -> Table {
    let mut table = shape(Family::Ip);
    let [frontends, nodeports, classes, endpoints, hairpins, cluster, nodes, pods, rejects] = [
        "frontends",
        "nodeports",
        "classes",
        "endpoints",
        "hairpins",
        "cluster-ips",
        "nodeport-ips",
        "pod-ranges",
        "rejects",
    ]
    .map(Name::from);
    let goto = |chain: &str| Element::verdict(Verdict::Goto(chain.into()));
    let to = |class: u32| Element::value(Value::number(2 << 12 | class));
    table
        .element(&frontends, front("10.254.0.10", Protocol::Udp, 53), to(2).comment("kube-system/dns:udp"))
        .element(&frontends, front("10.254.0.10", Protocol::Tcp, 53), to(2).comment("kube-system/dns:tcp"))
        .element(&nodeports, Value::concat([Protocol::Tcp.into(), Value::port(30_001)]), to(3))
        .element(&classes, Value::number(2), goto("cluster2"))
        .element(&classes, Value::number(3), goto("external2"))
        .element(
            &endpoints,
            row(2, 0),
            Element::value(target("172.16.1.5", 5353)).comment("kube-system/dns-a"),
        )
        .element(&endpoints, row(2, 1), Element::value(target("172.16.2.5", 5353)))
        .element(&hairpins, Value::concat([ip("172.16.1.5"), ip("172.16.1.5")]), Element::default())
        .element(&cluster, ip("10.254.0.10"), Element::default())
        .element(&cluster, ip("10.254.0.11"), Element::default())
        .element(&nodes, ip("192.0.2.1"), Element::default())
        .element(&pods, subnet("172.16.0.0/16"), Element::default().comment("cluster"))
        .element(&pods, subnet("10.9.0.0/24"), Element::default())
        .element(&rejects, front("10.254.0.11", Protocol::Tcp, 80), Element::default());
    table
}

/// Masquerade and forward rules of an overlay: this node's 172.16.34.0/24 of 172.16.0.0/16.
pub(crate) fn overlay() -> Table {
    let (pod, net, multicast) = (subnet("172.16.34.0/24"), subnet("172.16.0.0/16"), subnet("224.0.0.0/4"));
    let (from, to) = (Field::IpSaddr, Field::IpDaddr);
    let masquerade = || Statement::Masquerade(PortChoice::FullyRandom);
    let mut table = Table::new(Family::Ip, "weft-flannel.1");
    table.chain(
        "postrouting",
        Chain::base(
            ChainType::Nat,
            Hook::Postrouting,
            100,
            [
                rule([Field::MetaMark.and(MASQUERADE).is(Value::number(MASQUERADE)), Statement::RETURN]),
                rule([from.within(pod), to.within(net), Statement::RETURN]),
                rule([from.within(net), to.within(pod), Statement::RETURN]),
                rule([from.not_within(net), to.within(pod), Statement::RETURN]),
                rule([from.within(net), to.not_within(multicast), masquerade()]).comment("weft: flannel.1"),
                rule([from.not_within(net), to.within(net), masquerade()]),
            ],
        ),
    );
    table.chain(
        "forward",
        Chain::base(
            ChainType::Filter,
            Hook::Forward,
            0,
            [rule([from.within(net), Statement::ACCEPT]), rule([to.within(net), Statement::ACCEPT])],
        ),
    );
    table
}

/// Statements and declarations that the other tables don't have.
pub(crate) fn oddments() -> Table {
    let mut table = Table::new(Family::Ip, "oddments");
    odd_sets(&mut table);
    odd_filter(&mut table);
    odd_nat(&mut table);
    table
}

const ALLOWED: [Field; 4] = [Field::IpDaddr, Field::MetaL4proto, Field::ThDport, Field::IpSaddr];

fn odd_sets(table: &mut Table) {
    let allowed =
        |port, source| Value::concat([ip("10.0.0.1"), Protocol::Tcp.into(), Value::port(port), ip(source)]);
    let wide = Key::range(allowed(80, "10.0.0.0"), allowed(80, "10.255.255.255"));
    let [by_source, ranges, verdicts] = ["allowed", "ranges", "verdicts"].map(Name::from);
    table
        .set(&by_source, SetSpec::set(ALLOWED).interval())
        .set("seen", SetSpec::set(Field::IpSaddr).dynamic(100))
        .set("noted", SetSpec::map(Field::CtMark, Field::IpDaddr))
        .set(&ranges, SetSpec::set(Field::IpDaddr).interval())
        .set(&verdicts, SetSpec::vmap(Field::MetaMark))
        .set("links", SetSpec::set([Field::Iifname, Field::Oifname]))
        .element(&by_source, wide, Element::default())
        .element(&by_source, allowed(81, "10.0.0.1"), Element::default())
        .element(&ranges, subnet("10.0.0.0/8"), Element::default())
        .element(&ranges, subnet("11.0.0.0/8"), Element::default())
        .element(&ranges, Key::range(ip("12.0.0.1"), ip("12.0.0.9")), Element::default())
        .element(&ranges, subnet("255.255.255.0/24"), Element::default().comment("the end"))
        .element(&verdicts, Value::number(1), Element::verdict(Verdict::Accept))
        .element(&verdicts, Value::number(2), Element::verdict(Verdict::Jump("side".into())))
        .element(&verdicts, Value::number(3), Element::verdict(Verdict::Return));
}

fn eth0() -> Value {
    Value::interface(&"eth0".parse().unwrap())
}

fn odd_filter(table: &mut Table) {
    let drop_new = rule([
        Field::CtState.has_any(ct_state::NEW | ct_state::INVALID),
        Field::Iifname.is(eth0()),
        Field::IpSaddr.within(subnet("172.16.0.0/12")),
        Statement::Counter,
        Statement::DROP,
    ]);
    let reset = rule([
        Field::MetaL4proto.is(Protocol::Tcp),
        Field::ThDport.any_of([Value::port(443), Value::port(8443)]),
        Statement::Reject(RejectWith::TcpReset),
    ]);
    let see = Statement::Dynamic {
        op: DynamicOp::Update,
        set: "seen".into(),
        key: Field::IpSaddr.into(),
        timeout: Some(Duration::from_secs(90_061)),
        data: None,
    };
    let chain = [
        drop_new,
        reset,
        rule([Field::IpDaddr.any_of([subnet("10.0.0.0/8"), subnet("192.168.0.0/16")]), Statement::RETURN]),
        rule([Selector::from(Field::MetaMark).vmap("verdicts")]),
        rule([Selector::from(ALLOWED).not_in_set("allowed"), see]),
        rule([Selector::from([Field::Iifname, Field::Oifname]).in_set("links"), Statement::ACCEPT]),
        rule([Field::IpDaddr.in_set("ranges"), Writable::CtMark.set(Expr::from(Field::MetaMark))]),
    ];
    table.chain("side", Chain::regular([rule([Field::IpProtocol.is(Protocol::Udp), Statement::RETURN])]));
    let base = Base { kind: ChainType::Filter, hook: Hook::Forward, priority: 17, policy: Policy::Drop };
    table.chain("forward", Chain { base: Some(base), rules: chain.to_vec() });
}

fn odd_nat(table: &mut Table) {
    table.chain(
        "rewrite",
        Chain::base(
            ChainType::Nat,
            Hook::Output,
            -99,
            [rule([Field::IpProtocol.is(Protocol::Tcp), Statement::dnat_by("noted", Field::CtMark)])],
        ),
    );
    table.chain(
        "leave",
        Chain::base(
            ChainType::Nat,
            Hook::Postrouting,
            99,
            [
                rule([Field::Oifname.is_not(eth0()), Statement::Masquerade(PortChoice::Keep)]),
                rule([Statement::Masquerade(PortChoice::Random)]),
            ],
        ),
    );
}

/// Every field as the type of a set and of a map's data, and in an anonymous set.
pub(crate) fn fields() -> Table {
    let sample = |kind: Type, n: u8| match kind {
        Type::IfName => Value::interface(&format!("eth{n}").parse().unwrap()),
        Type::NfProto => Value::bytes(&[[2], [10]][usize::from(n - 1)]),
        _ => Value::bytes(&[&[n][..], &vec![0; kind.width() - 1]].concat()),
    };
    let mut table = Table::new(Family::Inet, "fields");
    let mut rules = Vec::new();
    for (field, number) in Field::ALL.into_iter().zip(1..) {
        let (set, map) = (Name::from(format!("set{number}")), Name::from(format!("map{number}")));
        let [first, second] = [1, 2].map(|n| sample(field.data_type(), n));
        table
            .set(&set, SetSpec::set([field, Field::MetaMark]))
            .set(&map, SetSpec::map(field, field))
            .element(&map, first.clone(), Element::value(second.clone()));
        rules.push(rule([field.any_of([first, second]), Statement::Counter]));
    }
    table.chain("filter-input", Chain::base(ChainType::Filter, Hook::Input, 0, rules));
    table
}

/// A table that sees both families.
pub(crate) fn both() -> Table {
    let mut table = Table::new(Family::Inet, "both");
    let (v4, v6) = (Field::IpSaddr, Field::Ip6Saddr);
    let six: std::net::Ipv6Addr = "fd00::1".parse().unwrap();
    let to = |protocol: Protocol, map| {
        rule([Field::MetaL4proto.is(protocol), Statement::dnat_by(map, Field::MetaMark)])
    };
    table
        .set("hosts", SetSpec::set([v4, Field::IpDaddr]))
        .set("hosts6", SetSpec::set(v6).interval())
        .set("targets", SetSpec::map(Field::MetaMark, [Field::IpDaddr, Field::ThDport]))
        .set("targets6", SetSpec::map(Field::MetaMark, [Field::Ip6Daddr, Field::ThDport]))
        .element(&"hosts6".into(), subnet("fd00:1::/64"), Element::default())
        .element(&"hosts6".into(), subnet("ff00::/8"), Element::default());
    let filter = [
        rule([v4.within(subnet("10.0.0.0/8")), Field::IpDaddr.is([10, 0, 0, 1]), Statement::ACCEPT]),
        rule([
            Field::MetaNfproto.is(Value::bytes(&[2])),
            v4.within(subnet("172.16.0.0/12")),
            Statement::DROP,
        ]),
        rule([Field::CtMark.is(Value::number(7)), Field::Ip6Daddr.is(six), Statement::RETURN]),
        rule([Selector::from([v4, Field::IpDaddr]).in_set("hosts"), Statement::Counter]),
        rule([v6.in_set("hosts6"), Field::Oifname.is(eth0()), Statement::DROP]),
        rule([v6.within(subnet("fd00::/60")), Statement::DROP]),
        rule([Statement::REJECT]),
    ];
    let nat = [to(Protocol::Udp, "targets"), to(Protocol::Tcp, "targets6")];
    table
        .chain("filter-forward", Chain::base(ChainType::Filter, Hook::Forward, 0, filter))
        .chain("nat-prerouting", Chain::base(ChainType::Nat, Hook::Prerouting, -100, nat));
    table
}

//! Tables with something wrong, and what [`Table::check`] calls it.

use std::time::Duration;

use netmodel::Protocol;
use ruleset::*;

/// A table with something wrong.
pub(crate) struct Case {
    pub(crate) table: Table,
    /// What `check` finds, all of it.
    pub(crate) faults: Vec<String>,
    /// Why neither `nft` nor the kernel minds; `None` where one of them refuses it.
    pub(crate) tolerated: Option<&'static str>,
}

impl Case {
    fn new(table: Table, faults: &[&str]) -> Self {
        Self { table, faults: faults.iter().map(ToString::to_string).collect(), tolerated: None }
    }

    fn tolerated(self, why: &'static str) -> Self {
        Self { tolerated: Some(why), ..self }
    }
}

/// All of them.
pub(crate) fn cases() -> Vec<Case> {
    [names(), statements(), lookups(), dynamic(), sets(), elements(), ways()].into_iter().flatten().collect()
}

/// A table that goes to each limit, and has no fault.
pub(crate) fn at_the_limits() -> Table {
    let mut table = Table::new(Family::Ip, "x".repeat(255));
    let ports = SetSpec::set([Field::MetaL4proto, Field::ThDport]).interval();
    let range = |protocol: Protocol, from, to| {
        let [first, last] = [from, to].map(|port| Value::concat([protocol.into(), Value::port(port)]));
        Key::range(first, last)
    };
    table.comment = Some("x".repeat(LONGEST_COMMENT).into());
    table
        .set("full", SetSpec::set([Field::Iifname; 4]))
        .set("ports", ports)
        .element(&"ports".into(), range(Protocol::Tcp, 1, 100), Element::default())
        .element(&"ports".into(), range(Protocol::Tcp, 101, 200), Element::default())
        .element(&"ports".into(), range(Protocol::Udp, 50, 150), Element::default());
    table
}

fn table() -> Table {
    let mut table = Table::new(Family::Ip, "t");
    table
        .set("addresses", SetSpec::set(Field::IpDaddr))
        .set("marks", SetSpec::map(Field::IpDaddr, Field::MetaMark))
        .set("seen", SetSpec::set(Field::IpDaddr).dynamic(10))
        .set("verdicts", SetSpec::vmap(Field::MetaMark))
        .chain("other", Chain::regular([]));
    table
}

/// A table whose only rule has a fault.
fn rule(rule: Rule, fault: &str) -> Case {
    let mut table = table();
    table.chain("c", Chain::regular([rule]));
    Case::new(table, &[&format!("chain c, rule 1: {fault}")])
}

fn statement(statement: Statement, fault: &str) -> Case {
    rule(Rule::new([statement]), fault)
}

/// A table with that set, named "s".
fn set(spec: SetSpec, keys: impl IntoIterator<Item = Key>, faults: &[&str]) -> Case {
    let (mut table, name) = (table(), Name::from("s"));
    table.set(&name, spec);
    for key in keys {
        table.element(&name, key, Element::default());
    }
    Case::new(table, faults)
}

fn subnet(text: &str) -> Key {
    text.parse::<netmodel::Subnet>().unwrap().into()
}

fn names() -> Vec<Case> {
    let named = |name: &str| Table::new(Family::Ip, name);
    let mut reserved = table();
    reserved.set("devices", SetSpec::set(Field::Iifname));
    let long = "x".repeat(LONGEST_COMMENT + 1);
    let commented = |comment: &str| Rule::new([Statement::Counter]).comment(comment);
    vec![
        Case::new(named("weft a"), &["table weft a: \"weft a\" is not a name that nft can write"]),
        Case::new(named("1st"), &["table 1st: \"1st\" is not a name that nft can write"]),
        Case::new(reserved, &["set devices: nft takes the name devices for a word of its own"]),
        rule(commented("a\"b"), "nft can't write the comment \"a\\\"b\""),
        rule(commented(&long), &format!("nft can't write the comment {long:?}")),
    ]
}

fn statements() -> Vec<Case> {
    let none: [Value; 0] = [];
    vec![
        statement(Statement::goto("nowhere"), "there is no chain nowhere"),
        statement(Writable::CtMark.set(Field::IpDaddr.and(1)), "`ip daddr` is not a 32-bit number"),
        statement(Writable::CtMark.set(Value::port(1)), "the value 0x0001 does not fit")
            .tolerated("nft reads a number"),
        statement(Field::IpDaddr.is(Value::port(1)), "the value 0x0001 is not 4 bytes long")
            .tolerated("nft reads an address of it"),
        statement(Field::IpDaddr.within("fd00::/8".parse().unwrap()), "`ip daddr` can't lie in fd00::/8"),
        statement(Field::MetaMark.has_any(1), "`meta mark` has no bits with names")
            .tolerated("`meta mark 1` is a comparison"),
        statement(Field::IpDaddr.any_of(none), "an anonymous set needs an element"),
        statement(
            Field::Ip6Daddr.is(std::net::Ipv6Addr::LOCALHOST),
            "`ip6 daddr` means nothing in a table of family ip",
        ),
        statement(
            Field::MetaNfproto.is(Value::bytes(&[2])),
            "`meta nfproto` means nothing in a table of family ip",
        ),
        statement(Expr::Random { modulus: 0 }.is(Value::number(1)), "`numgen random mod 0` has no outcome"),
        statement(Field::ThDport.and(1).is(Value::port(1)), "`th dport` is not a 32-bit number"),
    ]
}

fn lookups() -> Vec<Case> {
    let daddr = || Selector::from(Field::IpDaddr);
    vec![
        statement(Field::IpDaddr.in_set("nowhere"), "there is no set or map nowhere"),
        statement(
            Field::ThDport.in_set("addresses"),
            "`th dport` is not of the type of the keys of addresses",
        ),
        statement(Field::IpDaddr.in_set("marks"), "marks is a map, not a set")
            .tolerated("kernels from 6.4 on"),
        statement(daddr().vmap("marks"), "marks is not a verdict map"),
        statement(
            Writable::CtMark.set(daddr().map("addresses")),
            "the data of addresses can't be assigned to `ct mark`",
        ),
        statement(
            Statement::dnat_by("marks", Field::IpDaddr),
            "the data of marks is neither an address nor an address and a port",
        ),
    ]
}

fn update(set: &str, timeout: Option<Duration>, data: Option<Expr>) -> Statement {
    let key = Field::IpDaddr.into();
    Statement::Dynamic { op: DynamicOp::Update, set: set.into(), key, timeout, data }
}

fn dynamic() -> Vec<Case> {
    let (second, half) = (Some(Duration::from_secs(1)), Some(Duration::from_millis(1500)));
    let mut wide = table();
    let parts = [Field::Iifname, Field::Oifname, Field::Iifname, Field::MetaMark];
    wide.set("wide", SetSpec::map(parts, Field::MetaMark).dynamic(10));
    let (key, data) = (parts.into(), Some(Field::MetaMark.into()));
    let widest = Statement::Dynamic { op: DynamicOp::Update, set: "wide".into(), key, timeout: None, data };
    wide.chain("c", Chain::regular([Rule::new([widest])]));
    let unsized_set = SetSpec { size: None, ..SetSpec::set(Field::IpDaddr).dynamic(1) };
    vec![
        statement(update("addresses", None, None), "addresses has no `flags dynamic`")
            .tolerated("a set without a size can grow all the same"),
        statement(update("seen", half, None), "a time to live is one or more whole seconds")
            .tolerated("the kernel rounds to ticks of its clock"),
        statement(update("seen", second, Some(Field::MetaMark.into())), "the data isn't of the type of seen"),
        Case::new(wide, &["chain c, rule 1: the key and the data of wide don't fit into the registers"]),
        set(unsized_set, [], &["set s: a dynamic set needs a size: the kernel would choose one"])
            .tolerated("the kernel chooses one"),
    ]
}

fn sets() -> Vec<Case> {
    let masked = SetSpec::set(Field::MetaMark.and(1));
    let wide =
        SetSpec::set([Field::Iifname, Field::Iifname, Field::Iifname, Field::Iifname, Field::MetaMark]);
    let wide_fault =
        "set s: `iifname . iifname . iifname . iifname . meta mark` does not fit into the registers";
    let many = SetSpec::set([Field::MetaMark; 16]);
    vec![
        set(masked, [], &["set s: `meta mark & 0x00000001` can't declare a type"]),
        set(wide, [], &[wide_fault]),
        set(many, [], &["set s: its types are too many for nft to note"]),
        set(SetSpec::set(Selector(Vec::new())), [], &["set s: a key or data needs at least one part"]),
        set(
            SetSpec::set(Field::MetaMark).interval(),
            [],
            &["set s: ranges of Mark would compare bytes in the machine's order"],
        )
        .tolerated("nft turns the bytes round"),
    ]
}

fn elements() -> Vec<Case> {
    let (plain, ranges) = (SetSpec::set(Field::IpDaddr), SetSpec::set(Field::IpDaddr).interval());
    let concat = || SetSpec::set([Field::IpDaddr, Field::ThDport]).interval();
    let row = |from: [u8; 4], to: [u8; 4], ports: [u16; 2]| {
        let [first, last] = [(from, ports[0]), (to, ports[1])];
        let value = |(address, port): ([u8; 4], u16)| Value::concat([address.into(), Value::port(port)]);
        Key::range(value(first), value(last))
    };
    let (net, wide_net) = ([[10, 0, 0, 0], [10, 255, 255, 255]], [[9, 0, 0, 0], [11, 0, 0, 0]]);
    let mut verdict = table();
    verdict.element(&"addresses".into(), [1, 2, 3, 4], Element::verdict(Verdict::Drop));
    let mut nowhere = table();
    nowhere.element(&"verdicts".into(), Value::number(1), Element::verdict(Verdict::Jump("nowhere".into())));
    vec![
        set(
            plain.clone(),
            [Value::port(1).into()],
            &["set s: the element One(0x0001) is not as long as its type"],
        ),
        set(
            plain,
            [subnet("10.0.0.0/8")],
            &[
                "set s: the element Range((0x0a000000, 0x0affffff)) is a range, but the set has no `flags interval`",
            ],
        ),
        set(
            ranges.clone(),
            [subnet("10.0.0.0/8"), subnet("11.0.0.0/8"), subnet("10.9.0.0/16")],
            &[
                "set s: the elements Range((0x0a000000, 0x0affffff)) and Range((0x0a090000, 0x0a09ffff)) overlap",
            ],
        ),
        set(
            ranges,
            [Key::range([10, 0, 0, 2].into(), [10, 0, 0, 1].into())],
            &["set s: the element Range((0x0a000002, 0x0a000001)) ends before it begins"],
        ),
        set(
            concat(),
            [row(net[0], net[1], [80, 80]), row([10, 0, 0, 1], [10, 0, 0, 1], [80, 80])],
            &[
                "set s: the elements Range((0x0a00000000500000, 0x0affffff00500000)) and One(0x0a00000100500000) overlap",
            ],
        ),
        set(
            concat(),
            [row(net[0], net[1], [10, 900]), row(wide_net[0], wide_net[1], [20, 30])],
            &["set s: the elements Range((0x0900000000140000, 0x0b000000001e0000)) and \
             Range((0x0a000000000a0000, 0x0affffff03840000)) overlap"],
        )
        .tolerated("neither begins or ends in the other"),
        Case::new(verdict, &["set addresses: the data of element One(0x01020304) is not of the map's type"]),
        Case::new(nowhere, &["map verdicts: there is no chain nowhere"]),
    ]
}

fn ways() -> Vec<Case> {
    let to = |chain: &str| Chain::regular([Rule::new([Statement::jump(chain)])]);
    let base = |rules| Chain::base(ChainType::Filter, Hook::Output, 0, rules);
    let mut looped = table();
    looped
        .chain("enter", base(vec![Rule::new([Statement::jump("a")])]))
        .chain("a", to("b"))
        .chain("b", to("c"))
        .chain("c", to("b"));
    let mut by_map = table();
    by_map
        .chain("enter", base(vec![Rule::new([Statement::jump("a")])]))
        .chain("a", Chain::regular([Rule::new([Selector::from(Field::MetaMark).vmap("verdicts")])]))
        .chain("b", to("a"))
        .element(&"verdicts".into(), Value::number(1), Element::verdict(Verdict::Goto("b".into())));
    let mut to_base = table();
    to_base.chain("enter", base(Vec::new())).chain("a", to("enter"));
    vec![
        Case::new(looped, &["chain b: it leads back to itself"]),
        Case::new(by_map, &["chain a: it leads back to itself"]),
        Case::new(to_base, &["chain a, rule 1: nothing can lead to base chain enter"]),
    ]
}

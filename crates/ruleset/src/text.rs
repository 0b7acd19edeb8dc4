//! The text form, in the syntax of `nft` from 1.0.6 on.

use std::{
    fmt::{self, Display, Formatter, Write},
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use netmodel::Subnet;

use crate::{
    Base, BitOp, Chain, Data, DynamicOp, Element, Expr, Family, Field, Key, MapData, NatTarget, PortChoice,
    RejectWith, Relation, Rule, Selector, Set, SetSpec, Source, Statement, Table, Type, Value, Verdict,
    Writable,
};

impl Display for Field {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IpSaddr => "ip saddr",
            Self::IpDaddr => "ip daddr",
            Self::IpProtocol => "ip protocol",
            Self::Ip6Saddr => "ip6 saddr",
            Self::Ip6Daddr => "ip6 daddr",
            Self::ThSport => "th sport",
            Self::ThDport => "th dport",
            Self::MetaMark => "meta mark",
            Self::MetaPriority => "meta priority",
            Self::MetaL4proto => "meta l4proto",
            Self::MetaNfproto => "meta nfproto",
            Self::Iifname => "iifname",
            Self::Oifname => "oifname",
            Self::CtState => "ct state",
            Self::CtStatus => "ct status",
            Self::CtMark => "ct mark",
            Self::FibSaddrType => "fib saddr type",
            Self::FibDaddrType => "fib daddr type",
        })
    }
}

impl Display for Writable {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.field().fmt(f)
    }
}

/// A value with the type that says how to write it.
struct Typed<'a>(Type, &'a [u8]);

impl Display for Typed<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(kind, bytes) = *self;
        let number = || bytes.try_into().ok().map(u32::from_ne_bytes);
        let written = match kind {
            Type::Ipv4Addr => <[u8; 4]>::try_from(bytes).ok().map(|b| Ipv4Addr::from(b).to_string()),
            Type::Ipv6Addr => <[u8; 16]>::try_from(bytes).ok().map(|b| Ipv6Addr::from(b).to_string()),
            Type::InetProto => bytes.first().map(|n| protocol_name(*n)),
            Type::InetService => bytes.try_into().ok().map(|b| u16::from_be_bytes(b).to_string()),
            Type::Mark => number().map(|n| format!("{n:#010x}")),
            Type::ClassId => number().map(|n| format!("{:x}:{:x}", n >> 16, n & 0xffff)),
            Type::Integer => number().map(|n| n.to_string()),
            Type::NfProto => bytes.first().map(|n| nfproto_name(*n)),
            Type::CtState => number().map(|n| bit_names(n, &CT_STATES)),
            Type::CtStatus => number().map(|n| bit_names(n, &CT_STATUSES)),
            Type::FibAddrType => number().map(fib_type_name),
            Type::IfName => {
                let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
                std::str::from_utf8(&bytes[..end]).ok().map(|name| format!("\"{name}\""))
            }
        };
        match written {
            Some(text) => f.write_str(&text),
            None => write!(f, "{:?}", Value::bytes(bytes)),
        }
    }
}

fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "ipv6-icmp".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

fn nfproto_name(number: u8) -> String {
    match number {
        2 => "ipv4".to_owned(),
        10 => "ipv6".to_owned(),
        other => other.to_string(),
    }
}

const CT_STATES: [(u32, &str); 5] =
    [(1, "invalid"), (2, "established"), (4, "related"), (8, "new"), (64, "untracked")];

const CT_STATUSES: [(u32, &str); 7] = [
    (1, "expected"),
    (2, "seen-reply"),
    (4, "assured"),
    (8, "confirmed"),
    (0x10, "snat"),
    (0x20, "dnat"),
    (0x200, "dying"),
];

fn bit_names(bits: u32, names: &[(u32, &str)]) -> String {
    let known = names.iter().fold(0, |all, (bit, _)| all | bit);
    if bits == 0 || bits & !known != 0 {
        return format!("{bits:#x}");
    }
    let set: Vec<_> = names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect();
    set.join(",")
}

fn fib_type_name(number: u32) -> String {
    const NAMES: [&str; 9] = [
        "unspec",
        "unicast",
        "local",
        "broadcast",
        "anycast",
        "multicast",
        "blackhole",
        "unreachable",
        "prohibit",
    ];
    usize::try_from(number)
        .ok()
        .and_then(|n| NAMES.get(n))
        .map_or_else(|| number.to_string(), |n| (*n).to_owned())
}

/// The parts of a concatenated value, or the value itself, each cut to its type's length.
fn parts<'a>(types: &'a [Type], bytes: &'a [u8]) -> impl Iterator<Item = (Type, &'a [u8])> {
    let mut rest = bytes;
    types.iter().map(move |kind| {
        let (padded, behind) = rest.split_at(kind.width().next_multiple_of(4).min(rest.len()));
        rest = behind;
        (*kind, &padded[..kind.width().min(padded.len())])
    })
}

/// A value of these types.
struct Joined<'a>(&'a [Type], &'a Value);

impl Display for Joined<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, (kind, bytes)) in parts(self.0, self.1.as_bytes()).enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { " . " }, Typed(kind, bytes))?;
        }
        Ok(())
    }
}

/// A key of these types.
struct TypedKey<'a>(&'a [Type], &'a Key);

impl Display for TypedKey<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Key::Range(range) = self.1 else { return Joined(self.0, self.1.first()).fmt(f) };
        let last = parts(self.0, range.1.as_bytes());
        for (i, ((kind, from), (_, to))) in parts(self.0, range.0.as_bytes()).zip(last).enumerate() {
            f.write_str(if i == 0 { "" } else { " . " })?;
            match prefix_length(kind, from, to) {
                _ if from == to => Typed(kind, from).fmt(f)?,
                Some(length) => write!(f, "{}/{length}", Typed(kind, from))?,
                None => write!(f, "{}-{}", Typed(kind, from), Typed(kind, to))?,
            }
        }
        Ok(())
    }
}

/// The length of the prefix that covers exactly `from` to `to`, where there is one.
fn prefix_length(kind: Type, from: &[u8], to: &[u8]) -> Option<u32> {
    if !matches!(kind, Type::Ipv4Addr | Type::Ipv6Addr) {
        return None;
    }
    let number = |bytes: &[u8]| bytes.iter().fold(0_u128, |n, b| n << 8 | u128::from(*b));
    let (from, differ) = (number(from), number(from) ^ number(to));
    let is_prefix = differ & differ.wrapping_add(1) == 0 && from & differ == 0;
    is_prefix.then(|| 8 * kind.width() as u32 - differ.count_ones())
}

impl Display for Expr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(field) => field.fmt(f),
            Self::Bits { field, op, operand } => {
                let op = match op {
                    BitOp::And => '&',
                    BitOp::Or => '|',
                    BitOp::Xor => '^',
                };
                write!(f, "{field} {op} {}", Typed(field.data_type(), &operand.to_ne_bytes()))
            }
            Self::Random { modulus } => write!(f, "numgen random mod {modulus}"),
        }
    }
}

impl Display for Selector {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, part) in self.0.iter().enumerate() {
            write!(f, "{}{part}", if i == 0 { "" } else { " . " })?;
        }
        Ok(())
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Continue => f.write_str("continue"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl Relation {
    /// What stands between the sides where `==` goes without saying.
    const fn implied(self) -> &'static str {
        match self {
            Self::Eq => "",
            Self::Ne => "!= ",
        }
    }

    const fn spelled(self) -> &'static str {
        match self {
            Self::Eq => "== ",
            Self::Ne => "!= ",
        }
    }
}

impl Display for Statement {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compare { left, relation, right } => {
                let kind = left.data_type();
                // `ct state new` would ask for one bit of several, and behind an operator `==` is needed.
                let bits =
                    matches!(left, Expr::Bits { .. }) || matches!(kind, Type::CtState | Type::CtStatus);
                let relation = if bits { relation.spelled() } else { relation.implied() };
                write!(f, "{left} {relation}{}", Typed(kind, right.as_bytes()))
            }
            Self::Within { field, relation, subnet } => {
                write!(f, "{field} {}{}", relation.implied(), Net(*subnet))
            }
            Self::HasAny { field, bits } => {
                write!(f, "{field} {}", Typed(field.data_type(), &bits.to_ne_bytes()))
            }
            Self::AnyOf { field, relation, elements } => {
                write!(f, "{field} {}{{ ", relation.implied())?;
                let types = [field.data_type()];
                list(f, elements.iter().map(|key| TypedKey(&types, key)))?;
                f.write_str(" }")
            }
            Self::Lookup { key, relation, set } => write!(f, "{key} {}@{set}", relation.implied()),
            Self::Vmap { key, map } => write!(f, "{key} vmap @{map}"),
            Self::Set { field, to } => match to {
                Source::Value(value) => {
                    write!(f, "{field} set {}", Typed(field.field().data_type(), value.as_bytes()))
                }
                Source::Expr(expr) => write!(f, "{field} set {expr}"),
                Source::Map { key, map } => write!(f, "{field} set {key} map @{map}"),
            },
            Self::Dnat(_) => f.write_str("dnat"),
            Self::Masquerade(PortChoice::Keep) => f.write_str("masquerade"),
            Self::Masquerade(PortChoice::Random) => f.write_str("masquerade random"),
            Self::Masquerade(PortChoice::FullyRandom) => f.write_str("masquerade fully-random"),
            Self::Reject(RejectWith::PortUnreachable) => f.write_str("reject"),
            Self::Reject(RejectWith::TcpReset) => f.write_str("reject with tcp reset"),
            Self::Counter => f.write_str("counter"),
            Self::Dynamic { .. } => self.write_dynamic(f),
            Self::Verdict(verdict) => verdict.fmt(f),
        }
    }
}

/// A subnet as `nft` writes it: an address alone where it is the whole subnet.
struct Net(Subnet);

impl Display for Net {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0.address() == self.0.last() { self.0.address().fmt(f) } else { self.0.fmt(f) }
    }
}

impl Statement {
    /// `update @map { key timeout 3h : data }`
    fn write_dynamic(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self::Dynamic { op, set, key, timeout, data } = self else { return Ok(()) };
        let op = match op {
            DynamicOp::Add => "add",
            DynamicOp::Update => "update",
            DynamicOp::Delete => "delete",
        };
        write!(f, "{op} @{set} {{ {key}")?;
        if let Some(timeout) = timeout {
            write!(f, " timeout {}", Time(*timeout))?;
        }
        if let Some(data) = data {
            write!(f, " : {data}")?;
        }
        f.write_str(" }")
    }

    /// `dnat`, whose family `nft` wants to read where the target is a map.
    fn write_dnat(&self, f: &mut Formatter<'_>, table: &Table) -> fmt::Result {
        let Self::Dnat(target) = self else { return self.fmt(f) };
        let family = table.family;
        match target {
            NatTarget::Address(address, None) => {
                write!(f, "dnat {}to {address}", nat_family(family, address))
            }
            NatTarget::Address(address, Some(port)) => {
                let to = std::net::SocketAddr::new(*address, *port);
                write!(f, "dnat {}to {to}", nat_family(family, address))
            }
            NatTarget::Map { key, map } => {
                let family = if table.maps_to_ipv6(map) { "ip6" } else { "ip" };
                write!(f, "dnat {family} to {key} map @{map}")
            }
        }
    }
}

fn nat_family(table: Family, address: &std::net::IpAddr) -> &'static str {
    match (table, address) {
        (Family::Inet, std::net::IpAddr::V4(_)) => "ip ",
        (Family::Inet, std::net::IpAddr::V6(_)) => "ip6 ",
        _ => "",
    }
}

/// A time as `nft` reads it, to the millisecond.
struct Time(Duration);

impl Display for Time {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (seconds, milliseconds) = (self.0.as_secs(), self.0.subsec_millis());
        let units = [
            (seconds / 86_400, "d"),
            (seconds / 3600 % 24, "h"),
            (seconds / 60 % 60, "m"),
            (seconds % 60, "s"),
            (u64::from(milliseconds), "ms"),
        ];
        if units.iter().all(|(n, _)| *n == 0) {
            return f.write_str("0s");
        }
        units.iter().filter(|(n, _)| *n != 0).try_for_each(|(n, unit)| write!(f, "{n}{unit}"))
    }
}

fn list<T: Display>(f: &mut Formatter<'_>, items: impl Iterator<Item = T>) -> fmt::Result {
    for (i, item) in items.enumerate() {
        write!(f, "{}{item}", if i == 0 { "" } else { ", " })?;
    }
    Ok(())
}

fn comment(f: &mut Formatter<'_>, comment: Option<&str>) -> fmt::Result {
    comment.map_or(Ok(()), |text| write!(f, " comment \"{text}\""))
}

impl Rule {
    /// The rule as it stands in `table`, whose family and maps decide how some statements are written.
    pub fn display<'a>(&'a self, table: &'a Table) -> impl Display + 'a {
        fmt_fn(move |f: &mut Formatter<'_>| {
            for (i, statement) in self.statements.iter().enumerate() {
                f.write_str(if i == 0 { "" } else { " " })?;
                statement.write_dnat(f, table)?;
            }
            comment(f, self.comment.as_deref())
        })
    }
}

/// A value that is written by a function.
fn fmt_fn<F: Fn(&mut Formatter<'_>) -> fmt::Result>(write: F) -> impl Display {
    struct Written<F>(F);
    impl<F: Fn(&mut Formatter<'_>) -> fmt::Result> Display for Written<F> {
        fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
            (self.0)(f)
        }
    }
    Written(write)
}

impl SetSpec {
    /// `set` or `map`, the word in front of the name.
    #[must_use]
    pub fn keyword(&self) -> &'static str {
        if self.data.is_some() { "map" } else { "set" }
    }

    fn write_body(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.data {
            None => writeln!(f, "\t\ttypeof {}", self.key)?,
            Some(MapData::Value(data)) => writeln!(f, "\t\ttypeof {} : {data}", self.key)?,
            Some(MapData::Verdict) => writeln!(f, "\t\ttypeof {} : verdict", self.key)?,
        }
        if let Some(size) = self.size {
            writeln!(f, "\t\tsize {size}")?;
        }
        let flags = [(self.interval, "interval"), (self.dynamic, "dynamic"), (self.timeout, "timeout")];
        let flags: Vec<_> = flags.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        if !flags.is_empty() {
            writeln!(f, "\t\tflags {}", flags.join(","))?;
        }
        if let Some(timeout) = self.default_timeout {
            writeln!(f, "\t\ttimeout {}", Time(timeout))?;
        }
        if self.counter {
            f.write_str("\t\tcounter\n")?;
        }
        match &self.comment {
            Some(comment) => writeln!(f, "\t\tcomment \"{comment}\""),
            None => Ok(()),
        }
    }

    /// An element as it stands in `elements = { ... }` of such a set.
    pub fn element<'a>(&'a self, key: &'a Key, element: &'a Element) -> impl Display + 'a {
        fmt_fn(move |f: &mut Formatter<'_>| {
            TypedKey(&self.key.types(), key).fmt(f)?;
            comment(f, element.comment.as_deref())?;
            match (&element.data, &self.data) {
                (Data::None, _) => Ok(()),
                (Data::Value(value), Some(MapData::Value(data))) => {
                    write!(f, " : {}", Joined(&data.types(), value))
                }
                (Data::Value(value), _) => write!(f, " : {value:?}"),
                (Data::Verdict(verdict), _) => write!(f, " : {verdict}"),
            }
        })
    }
}

impl Set {
    fn write_body(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.spec.write_body(f)?;
        if self.elements.is_empty() {
            return Ok(());
        }
        f.write_str("\t\telements = { ")?;
        for (i, (key, element)) in self.elements.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { ",\n\t\t\t     " }, self.spec.element(key, element))?;
        }
        f.write_str(" }\n")
    }
}

impl Display for Base {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { kind, hook, priority, policy } = self;
        let (kind, policy) = (kind.as_str(), policy.as_str());
        write!(f, "type {kind} hook {hook} priority {priority}; policy {policy};")
    }
}

impl Chain {
    fn write_body(&self, f: &mut Formatter<'_>, table: &Table) -> fmt::Result {
        if let Some(base) = &self.base {
            writeln!(f, "\t\t{base}")?;
        }
        self.rules.iter().try_for_each(|rule| writeln!(f, "\t\t{}", rule.display(table)))
    }
}

impl Display for Table {
    /// The whole table as `nft -f` reads it.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {} {{", self.family, self.name)?;
        let mut gap = "";
        if let Some(comment) = &self.comment {
            writeln!(f, "\tcomment \"{comment}\"")?;
            gap = "\n";
        }
        for (name, set) in &self.sets {
            writeln!(f, "{gap}\t{} {name} {{", set.spec.keyword())?;
            set.write_body(f)?;
            f.write_str("\t}\n")?;
            gap = "\n";
        }
        for (name, chain) in &self.chains {
            writeln!(f, "{gap}\tchain {name} {{")?;
            chain.write_body(f, self)?;
            f.write_str("\t}\n")?;
            gap = "\n";
        }
        f.write_char('}')
    }
}

//! The text form, in the syntax of `nft` from 1.0.6 on.

mod typed;

use std::{
    fmt::{self, Display, Formatter, Write},
    time::Duration,
};

use netmodel::Subnet;

use self::typed::{Joined, Typed, TypedKey};
use crate::{
    Base, BitOp, Chain, Data, DynamicOp, Element, Expr, Field, Key, MapData, PortChoice, RejectWith,
    Relation, Rule, Selector, Set, SetSpec, Source, Statement, Table, Type, Verdict, Writable,
};

impl Display for Field {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IpSaddr => "ip saddr",
            Self::IpDaddr => "ip daddr",
            Self::IpProtocol => "ip protocol",
            Self::Ip6Saddr => "ip6 saddr",
            Self::Ip6Daddr => "ip6 daddr",
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
                let names = Typed(field.data_type(), &operand.to_ne_bytes()).to_string();
                match names.split_once(',') {
                    Some(_) => write!(f, "{field} {op} ({})", names.replace(',', " | ")),
                    None => write!(f, "{field} {op} {names}"),
                }
            }
            Self::Random { modulus } => write!(f, "numgen random mod {modulus}"),
        }
    }
}

impl Display for Selector {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        join(f, " . ", &self.0)
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

/// A subnet as `nft` writes it: an address alone where it is the whole subnet.
struct Net(Subnet);

impl Display for Net {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0.address() == self.0.last() { self.0.address().fmt(f) } else { self.0.fmt(f) }
    }
}

impl Statement {
    /// The statement as it stands in a rule of `table`.
    fn write(&self, f: &mut Formatter<'_>, table: &Table) -> fmt::Result {
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
            Self::AnyOf { field, elements } => {
                write!(f, "{field} {{ ")?;
                let types = [field.data_type()];
                join(f, ", ", elements.iter().map(|key| TypedKey(&types, key)))?;
                f.write_str(" }")
            }
            Self::Lookup { key, relation, set } => write!(f, "{key} {}@{set}", relation.implied()),
            Self::Vmap { key, map } => write!(f, "{key} vmap @{map}"),
            Self::Set { field, to: Source::Value(value) } => {
                write!(f, "{field} set {}", Typed(field.field().data_type(), value.as_bytes()))
            }
            Self::Set { field, to: Source::Expr(expr) } => write!(f, "{field} set {expr}"),
            Self::Set { field, to: Source::Map { key, map } } => write!(f, "{field} set {key} map @{map}"),
            // `nft` wants to read the family where the target is a map.
            Self::Dnat { key, map } => {
                write!(f, "dnat {} to {key} map @{map}", if table.maps_to_ipv6(map) { "ip6" } else { "ip" })
            }
            Self::Masquerade(PortChoice::Keep) => f.write_str("masquerade"),
            Self::Masquerade(PortChoice::Random) => f.write_str("masquerade random"),
            Self::Masquerade(PortChoice::FullyRandom) => f.write_str("masquerade fully-random"),
            Self::Reject(RejectWith::PortUnreachable) => f.write_str("reject"),
            Self::Reject(RejectWith::TcpReset) => f.write_str("reject with tcp reset"),
            Self::Counter => f.write_str("counter"),
            Self::Dynamic { op, set, key, timeout, data } => {
                let op = match op {
                    DynamicOp::Update => "update",
                    DynamicOp::Delete => "delete",
                };
                write!(f, "{op} @{set} {{ {key}")?;
                timeout.map_or(Ok(()), |timeout| write!(f, " timeout {}", Time(timeout)))?;
                data.map_or(Ok(()), |data| write!(f, " : {data}"))?;
                f.write_str(" }")
            }
            Self::Verdict(verdict) => verdict.fmt(f),
        }
    }
}

/// A time of whole seconds as `nft` writes it.
struct Time(Duration);

impl Display for Time {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let units = [
            (seconds / 86_400, "d"),
            (seconds / 3600 % 24, "h"),
            (seconds / 60 % 60, "m"),
            (seconds % 60, "s"),
        ];
        units.iter().filter(|(n, _)| *n != 0).try_for_each(|(n, unit)| write!(f, "{n}{unit}"))
    }
}

fn join<T: Display>(f: &mut Formatter<'_>, gap: &str, items: impl IntoIterator<Item = T>) -> fmt::Result {
    for (i, item) in items.into_iter().enumerate() {
        write!(f, "{}{item}", if i == 0 { "" } else { gap })?;
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
            let statements = self.statements.iter();
            join(f, " ", statements.map(|statement| fmt_fn(|f| statement.write(f, table))))?;
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
        f.write_str(if self.counter { "\t\tcounter\n" } else { "" })
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
        let elements = self.elements.iter().map(|(key, element)| self.spec.element(key, element));
        join(f, ",\n\t\t\t     ", elements)?;
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

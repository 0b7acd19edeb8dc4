//! What the kernel or `nft` would not accept, found before anything is sent.

use std::{collections::BTreeMap, fmt};

use crate::{
    Data, Expr, Family, Field, Key, MapData, Name, NatTarget, Selector, Set, SetSpec, Source, Statement,
    Table, Type, Value, Verdict,
};

/// Longest name (`NFT_NAME_MAXLEN` with the final zero), in bytes.
const LONGEST_NAME: usize = 255;
/// Longest comment (`NFTNL_UDATA_COMMENT_MAXLEN`), in bytes.
const LONGEST_COMMENT: usize = 128;

/// Words that `nft` (1.0.6) takes for its own wherever a name could stand.
const RESERVED: &str = "\
    accept add ah all and arp auto-merge bridge cgroup chain comment comp constant continue counter cpu \
    create ct day dccp define delete describe device devices dnat drop dst dup dynamic ecn element \
    elements esp ether exists expires exthdr fib flags flow flowtable flush frag fwd gc-interval get \
    goto handle hbh hook hour ibriport ibrname icmp icmpv6 igmp iif iifgroup iifname iiftype include \
    index inet insert interval ip ip6 ipsec jhash jump limit list log lt map mark masquerade meta meter \
    mh missing monitor netdev nftrace not notrack numgen obriport obrname offload oif oifgroup oifname \
    oiftype or osf pkttype policy position priority queue quota random redefine redirect reject rename \
    replace reset return rt rt0 rt2 rtclassid rule ruleset sctp secmark set size skgid skuid snat socket \
    srh symhash synproxy table tcp th time timeout tproxy type typeof udp udplite undefine update vlan \
    vmap xt";

/// One thing in a table that can't be loaded or listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{object}: {what}")]
pub struct Fault {
    /// Which object: "chain services, rule 2".
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

impl Table {
    /// Checks that every chain, set and map that is named exists and fits, that values have the length of
    /// their types, that no chain leads back to itself, and that `nft` can write all names and comments.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn check(&self) -> Result<(), Vec<Fault>> {
        let mut check = Check { table: self, object: String::new(), faults: Vec::new() };
        check.all();
        if check.faults.is_empty() { Ok(()) } else { Err(check.faults) }
    }
}

struct Check<'a> {
    table: &'a Table,
    object: String,
    faults: Vec<Fault>,
}

impl<'a> Check<'a> {
    fn fault(&mut self, what: impl fmt::Display) {
        self.faults.push(Fault { object: self.object.clone(), what: what.to_string() });
    }

    fn all(&mut self) {
        let table = self.table;
        self.object = format!("table {}", table.name);
        self.name(&table.name);
        self.comment(table.comment.as_deref());
        for (name, set) in &table.sets {
            self.object = format!("{} {name}", set.spec.keyword());
            self.name(name);
            self.set(set);
        }
        for (name, chain) in &table.chains {
            self.object = format!("chain {name}");
            self.name(name);
            for (rule, number) in chain.rules.iter().zip(1..) {
                self.object = format!("chain {name}, rule {number}");
                self.comment(rule.comment.as_deref());
                rule.statements.iter().for_each(|statement| self.statement(statement));
            }
        }
        self.loops();
    }

    fn name(&mut self, name: &Name) {
        let text = name.as_str();
        let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let fits = |c: char| c.is_ascii_alphanumeric() || "/_.-".contains(c);
        if !begins || text.len() > LONGEST_NAME || !text.chars().all(fits) {
            self.fault(format!("{text:?} is not a name that nft can write"));
        }
        if RESERVED.split(' ').any(|word| word == text) {
            self.fault(format!("nft takes the name {text} for a word of its own"));
        }
    }

    fn comment(&mut self, comment: Option<&str>) {
        let Some(text) = comment else { return };
        if text.len() >= LONGEST_COMMENT || text.contains(['"', '\n', '\0']) {
            self.fault(format!("nft can't write the comment {text:?}"));
        }
    }

    fn set(&mut self, set: &Set) {
        let spec = &set.spec;
        self.comment(spec.comment.as_deref());
        self.typed(&spec.key);
        if let Some(MapData::Value(data)) = &spec.data {
            self.typed(data);
        }
        let is_host_order = |kind: &Type| kind.is_host_order() && kind.width() > 1;
        if let Some(kind) = spec.key.types().iter().find(|kind| spec.interval && is_host_order(kind)) {
            self.fault(format!("ranges of {kind:?} would compare bytes in the machine's order"));
        }
        if spec.dynamic && spec.size.is_none() {
            self.fault("a dynamic set needs a size: the kernel would choose one");
        }
        for (key, element) in &set.elements {
            self.comment(element.comment.as_deref());
            if !spec.key.fits(key.first()) || !spec.key.fits(key.last()) {
                self.fault(format!("the element {key:?} is not as long as its type"));
            }
            if matches!(key, Key::Range(_)) && !spec.interval {
                self.fault(format!("the element {key:?} is a range, but the set has no `flags interval`"));
            }
            match (&element.data, &spec.data) {
                (Data::None, None) => {}
                (Data::Value(value), Some(MapData::Value(data))) if data.fits(value) => {}
                (Data::Verdict(verdict), Some(MapData::Verdict)) => self.verdict(verdict),
                _ => self.fault(format!("the data of element {key:?} is not of the map's type")),
            }
        }
    }

    /// `typeof` of this can be written down for `nft`.
    fn typed(&mut self, selector: &Selector) {
        if selector.0.is_empty() {
            self.fault("a key or data needs at least one part");
        }
        for part in &selector.0 {
            if matches!(part, Expr::Field(Field::FibSaddrType | Field::FibDaddrType)) {
                self.fault(format!("`{part}` can't declare a type"));
            }
            self.expr(*part);
        }
    }

    fn expr(&mut self, expr: Expr) {
        match expr {
            Expr::Random { modulus: 0 } => self.fault("`numgen random mod 0` has no outcome"),
            Expr::Bits { field, .. } => {
                let kind = field.data_type();
                if !kind.is_host_order() || kind.width() != 4 {
                    self.fault(format!("`{field}` is not a 32-bit number"));
                }
            }
            Expr::Random { .. } => {}
            Expr::Field(field) => {
                let foreign = match self.table.family {
                    Family::Ip => matches!(field, Field::Ip6Saddr | Field::Ip6Daddr),
                    Family::Ip6 => matches!(field, Field::IpSaddr | Field::IpDaddr | Field::IpProtocol),
                    Family::Inet => false,
                };
                if foreign || (field == Field::MetaNfproto && self.table.family != Family::Inet) {
                    self.fault(format!("`{field}` means nothing in a table of family {}", self.table.family));
                }
            }
        }
    }

    fn verdict(&mut self, verdict: &Verdict) {
        let Some(chain) = verdict.chain() else { return };
        match self.table.chains.get(chain) {
            None => self.fault(format!("there is no chain {chain}")),
            Some(to) if to.base.is_some() => self.fault(format!("nothing can lead to base chain {chain}")),
            Some(_) => {}
        }
    }

    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Compare { left, right, .. } => {
                self.expr(*left);
                self.value(right, left.data_type());
            }
            Statement::Within { field, subnet, .. } => {
                self.expr((*field).into());
                let family = if subnet.is_ipv4() { Type::Ipv4Addr } else { Type::Ipv6Addr };
                if field.data_type() != family {
                    self.fault(format!("`{field}` can't lie in {subnet}"));
                }
            }
            Statement::HasAny { field, .. } => {
                if !matches!(field, Field::CtState | Field::CtStatus) {
                    self.fault(format!("`{field}` has no bits with names"));
                }
            }
            Statement::AnyOf { field, elements, .. } => {
                self.expr((*field).into());
                if elements.is_empty() {
                    self.fault("an anonymous set needs an element");
                }
                elements.iter().flat_map(|e| [e.first(), e.last()]).for_each(|value| {
                    self.value(value, field.data_type());
                });
            }
            Statement::Set { field, to } => self.source(to, &field.field().into()),
            Statement::Dnat(target) => self.nat(target),
            Statement::Verdict(verdict) => self.verdict(verdict),
            Statement::Masquerade(_) | Statement::Reject(_) | Statement::Counter => {}
            Statement::Lookup { .. } | Statement::Vmap { .. } | Statement::Dynamic { .. } => {
                self.lookup(statement);
            }
        }
    }

    fn lookup(&mut self, statement: &Statement) {
        match statement {
            Statement::Lookup { key, set, .. } => drop(self.spec(set, key)),
            Statement::Vmap { key, map } => {
                let spec = self.spec(map, key);
                if spec.is_some_and(|spec| spec.data != Some(MapData::Verdict)) {
                    self.fault(format!("{map} is not a verdict map"));
                }
            }
            Statement::Dynamic { set, key, data, timeout, .. } => {
                let Some(spec) = self.spec(set, key) else { return };
                if !spec.dynamic {
                    self.fault(format!("{set} has no `flags dynamic`"));
                }
                if timeout.is_some() && !spec.timeout {
                    self.fault(format!("{set} has no `flags timeout`"));
                }
                let wanted = match &spec.data {
                    Some(MapData::Value(data)) => data.types(),
                    Some(MapData::Verdict) | None => Vec::new(),
                };
                if wanted != data.iter().map(|data| data.data_type()).collect::<Vec<_>>() {
                    self.fault(format!("the data isn't of the type of {set}"));
                }
            }
            _ => {}
        }
    }

    fn value(&mut self, value: &Value, kind: Type) {
        if value.as_bytes().len() != kind.width() {
            self.fault(format!("the value {value:?} is not {} bytes long", kind.width()));
        }
    }

    /// The set of that name, if there is one with such keys.
    fn spec(&mut self, name: &Name, key: &Selector) -> Option<&'a SetSpec> {
        key.0.iter().for_each(|part| self.expr(*part));
        let table = self.table;
        let Some(set) = table.sets.get(name) else {
            self.fault(format!("there is no set or map {name}"));
            return None;
        };
        if set.spec.key.types() != key.types() {
            self.fault(format!("`{key}` is not of the type of the keys of {name}"));
        }
        Some(&set.spec)
    }

    fn source(&mut self, source: &Source, to: &Selector) {
        match source {
            Source::Value(value) if to.fits(value) => {}
            Source::Value(value) => self.fault(format!("the value {value:?} does not fit")),
            Source::Expr(expr) => {
                self.expr(*expr);
                if Selector::from(*expr).width() != to.width() {
                    self.fault(format!("`{expr}` can't be assigned to `{to}`"));
                }
            }
            Source::Map { key, map } => {
                let fits =
                    |data: &MapData| matches!(data, MapData::Value(data) if data.types() == to.types());
                if self.spec(map, key).is_some_and(|spec| !spec.data.as_ref().is_some_and(fits)) {
                    self.fault(format!("the data of {map} can't be assigned to `{to}`"));
                }
            }
        }
    }

    fn nat(&mut self, target: &NatTarget) {
        match target {
            NatTarget::Address(address, _) => {
                let fits = match self.table.family {
                    Family::Ip => address.is_ipv4(),
                    Family::Ip6 => address.is_ipv6(),
                    Family::Inet => true,
                };
                if !fits {
                    self.fault(format!("{address} is not of the table's family"));
                }
            }
            NatTarget::Map { key, map } => {
                let is_target = |data: &MapData| match data {
                    MapData::Value(data) => matches!(
                        data.types().as_slice(),
                        [Type::Ipv4Addr | Type::Ipv6Addr]
                            | [Type::Ipv4Addr | Type::Ipv6Addr, Type::InetService]
                    ),
                    MapData::Verdict => false,
                };
                if self.spec(map, key).is_some_and(|spec| !spec.data.as_ref().is_some_and(is_target)) {
                    self.fault(format!("the data of {map} is neither an address nor an address and a port"));
                }
            }
        }
    }

    /// Chains that lead back to themselves, by rules or by the elements of verdict maps.
    fn loops(&mut self) {
        let table = self.table;
        let ways: BTreeMap<_, _> = table.chains.keys().map(|name| (name, table.ways(name))).collect();
        let mut known = BTreeMap::new();
        for chain in table.chains.keys() {
            if reaches_itself(chain, &ways, &mut known) {
                self.object = format!("chain {chain}");
                self.fault("it leads back to itself");
            }
        }
    }
}

/// Where a walk through the chains has been.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Visit {
    /// On the way that is being walked.
    Open,
    /// Everything behind it is known.
    Done,
}

/// A walk from `chain` comes to a chain that it has already come through.
fn reaches_itself<'a>(
    chain: &'a Name,
    ways: &BTreeMap<&'a Name, Vec<&'a Name>>,
    known: &mut BTreeMap<&'a Name, Visit>,
) -> bool {
    match known.get(chain) {
        Some(Visit::Open) => return true,
        Some(Visit::Done) => return false,
        None => {}
    }
    known.insert(chain, Visit::Open);
    let next = ways.get(chain).map_or(&[][..], Vec::as_slice);
    let looped = next.iter().any(|to| reaches_itself(to, ways, known));
    known.insert(chain, Visit::Done);
    looped
}

impl Table {
    /// Every chain that the rules of `chain` lead to.
    fn ways(&self, chain: &Name) -> Vec<&Name> {
        let statements =
            self.chains.get(chain).into_iter().flat_map(|c| &c.rules).flat_map(|r| &r.statements);
        let mut ways: Vec<&Name> = statements
            .flat_map(|statement| match statement {
                Statement::Verdict(verdict) => verdict.chain().into_iter().collect(),
                Statement::Vmap { map, .. } => self.targets(map),
                _ => Vec::new(),
            })
            .collect();
        ways.sort_unstable();
        ways.dedup();
        ways
    }

    /// Every chain that the elements of a verdict map lead to.
    fn targets(&self, map: &Name) -> Vec<&Name> {
        let elements = self.sets.get(map).into_iter().flat_map(|set| set.elements.values());
        elements.filter_map(|element| element.verdict_data()?.chain()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Chain, ChainType, Element, Hook, Rule, Writable};

    fn faults(table: &Table) -> Vec<String> {
        table.check().err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    fn with_rule(statement: Statement) -> Table {
        let mut table = Table::new(Family::Ip, "t");
        table.set("addresses", SetSpec::set(Field::IpDaddr));
        table.set("marks", SetSpec::map(Field::IpDaddr, Field::MetaMark));
        table.chain("c", Chain::regular([Rule::new([statement])]));
        table
    }

    #[test]
    fn what_fits_has_no_fault() {
        let fine = [
            Field::IpDaddr.in_set("addresses"),
            Field::IpDaddr.is([10, 0, 0, 1]),
            Writable::MetaMark.set(Selector::from(Field::IpDaddr).map("marks")),
            Writable::MetaMark.set(Field::MetaMark.or(1)),
        ];
        for statement in fine {
            assert_eq!(faults(&with_rule(statement.clone())), [""; 0], "{statement}");
        }
    }

    #[test]
    fn every_mistake_is_named() {
        let cases = [
            (Statement::goto("x"), "there is no chain x"),
            (Field::IpDaddr.in_set("x"), "there is no set or map x"),
            (Field::ThDport.in_set("addresses"), "`th dport` is not of the type of the keys of addresses"),
            (Selector::from(Field::IpDaddr).vmap("marks"), "marks is not a verdict map"),
            (
                Writable::CtMark.set(Selector::from(Field::IpDaddr).map("addresses")),
                "the data of addresses can't be assigned to `ct mark`",
            ),
            (
                Statement::dnat_by("marks", Field::IpDaddr),
                "the data of marks is neither an address nor an address and a port",
            ),
            (Field::IpDaddr.is(Value::port(1)), "the value 0x0001 is not 4 bytes long"),
            (Field::IpDaddr.within("fd00::/8".parse().unwrap()), "`ip daddr` can't lie in fd00::/8"),
            (Field::Ip6Daddr.is([0; 4]), "`ip6 daddr` means nothing in a table of family ip"),
            (Expr::Random { modulus: 0 }.is(Value::number(1)), "`numgen random mod 0` has no outcome"),
            (Field::ThDport.and(1).is(Value::port(1)), "`th dport` is not a 32-bit number"),
            (
                Statement::Dynamic {
                    op: crate::DynamicOp::Add,
                    set: "addresses".into(),
                    key: Field::IpDaddr.into(),
                    timeout: None,
                    data: None,
                },
                "addresses has no `flags dynamic`",
            ),
        ];
        for (statement, expected) in cases {
            let found = faults(&with_rule(statement));
            assert_eq!(found.first(), Some(&format!("chain c, rule 1: {expected}")));
        }
    }

    #[test]
    fn a_chain_that_is_reached_from_a_map_must_not_look_it_up() {
        let mut table = Table::new(Family::Ip, "t");
        let classes = Name::from("classes");
        table.set(&classes, SetSpec::vmap(Field::MetaPriority));
        let look_up = Rule::new([Selector::from(Field::MetaPriority).vmap(&classes)]);
        table
            .chain("base", Chain::base(ChainType::Nat, Hook::Output, 0, [Rule::new([Statement::jump("a")])]));
        table.chain("a", Chain::regular([look_up]));
        table.chain("b", Chain::regular([Rule::new([Statement::goto("a")])]));
        assert_eq!(faults(&table), [""; 0]);
        table.element(&classes, Value::number(1), Element::verdict(Verdict::Goto("b".into())));
        assert_eq!(faults(&table), ["chain a: it leads back to itself"]);
    }

    #[test]
    fn elements_names_and_comments_are_checked() {
        let mut table = Table::new(Family::Ip, "weft-a b");
        let set = Name::from("s");
        table.set("devices", SetSpec::set(Field::Iifname));
        table.set(&set, SetSpec::set(Field::IpDaddr));
        table.element(&set, Value::port(1), Element::default());
        table.element(&set, "10.0.0.0/8".parse::<netmodel::Subnet>().unwrap(), Element::default());
        table.element(&set, [1, 2, 3, 4], Element::verdict(Verdict::Drop).comment("a\"b"));
        assert_eq!(
            faults(&table),
            [
                "table weft-a b: \"weft-a b\" is not a name that nft can write",
                "set devices: nft takes the name devices for a word of its own",
                "set s: the element One(0x0001) is not as long as its type",
                "set s: nft can't write the comment \"a\\\"b\"",
                "set s: the data of element One(0x01020304) is not of the map's type",
                "set s: the element Range((0x0a000000, 0x0affffff)) is a range, but the set has no `flags interval`",
            ]
        );
    }
}

//! What the kernel or `nft` would not accept, found before anything is sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::{
    Data, Expr, Family, Field, Key, MapData, Name, Selector, Set, SetSpec, Source, Statement, Table, Type,
    Value, Verdict, userdata,
};

/// Longest name (`NFT_NAME_MAXLEN` with the final zero), in bytes.
const LONGEST_NAME: usize = 255;
/// Longest comment that `nft` reads and shows (`NFTNL_UDATA_COMMENT_MAXLEN`), in bytes.
pub const LONGEST_COMMENT: usize = 128;
/// Most bytes that the kernel keeps for `nft` beside an object (`NFT_USERDATA_MAXLEN`).
const LONGEST_USERDATA: usize = 256;
/// Most bytes that the registers of a rule hold: 16 of 4 bytes each.
const REGISTERS: usize = 64;

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
        if text.len() > LONGEST_COMMENT || text.contains(['"', '\n', '\0']) {
            self.fault(format!("nft can't write the comment {text:?}"));
        }
    }

    fn set(&mut self, set: &Set) {
        let spec = &set.spec;
        self.typed(&spec.key);
        if let Some(MapData::Value(data)) = &spec.data {
            self.typed(data);
        }
        let is_host_order = |kind: &Type| kind.is_host_order() && kind.width() > 1;
        if let Some(kind) = spec.key.types().iter().find(|kind| spec.interval && is_host_order(kind)) {
            self.fault(format!("ranges of {kind:?} would compare bytes in the machine's order"));
        }
        if userdata::of_set(spec).len() > LONGEST_USERDATA {
            self.fault("its types are too many for nft to note");
        }
        if spec.dynamic && spec.size.is_none() {
            self.fault("a dynamic set needs a size: the kernel would choose one");
        }
        self.overlaps(set);
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

    /// Elements of which one value would find two. Where ranges are concatenated, the kernel refuses some of
    /// these, by the order in which they come.
    fn overlaps(&mut self, set: &Set) {
        if !set.spec.interval || set.spec.key.0.is_empty() {
            return;
        }
        let widths: Vec<usize> = set.spec.key.types().iter().map(|kind| kind.width()).collect();
        let keys: Vec<&Key> = set.elements.keys().collect();
        for (key, at) in keys.iter().zip(1..) {
            if !key.overlaps(key, &widths) {
                self.fault(format!("the element {key:?} ends before it begins"));
            }
            // Keys are in the order of their first values, so that only neighbours share a first part.
            let near = keys[at..].iter().take_while(|other| other.overlaps(key, &widths[..1]));
            for other in near.filter(|other| other.overlaps(key, &widths)) {
                self.fault(format!("the elements {key:?} and {other:?} overlap"));
            }
        }
    }

    /// `typeof` of this can be written down for `nft`.
    fn typed(&mut self, selector: &Selector) {
        if selector.0.is_empty() {
            self.fault("a key or data needs at least one part");
        }
        for part in &selector.0 {
            if matches!(part, Expr::Bits { .. }) {
                self.fault(format!("`{part}` can't declare a type"));
            }
            self.expr(*part);
        }
        if selector.width() > REGISTERS {
            self.fault(format!("`{selector}` does not fit into the registers"));
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
            Statement::Dnat { key, map } => self.dnat(key, map),
            Statement::Verdict(verdict) => self.verdict(verdict),
            Statement::Masquerade(_) | Statement::Reject(_) | Statement::Counter => {}
            Statement::Lookup { .. } | Statement::Vmap { .. } | Statement::Dynamic { .. } => {
                self.lookup(statement);
            }
        }
    }

    fn lookup(&mut self, statement: &Statement) {
        match statement {
            Statement::Lookup { key, set, .. } => {
                let spec = self.spec(set, key);
                if spec.is_some_and(|spec| spec.data.is_some()) {
                    self.fault(format!("{set} is a map, not a set"));
                }
            }
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
                if timeout.is_some_and(|time| time.is_zero() || time.subsec_nanos() != 0) {
                    self.fault("a time to live is one or more whole seconds");
                }
                let wanted = match &spec.data {
                    Some(MapData::Value(data)) => data.types(),
                    Some(MapData::Verdict) | None => Vec::new(),
                };
                if wanted != data.iter().map(|data| data.data_type()).collect::<Vec<_>>() {
                    self.fault(format!("the data isn't of the type of {set}"));
                }
                let data = data.map_or(0, |data| data.data_type().width());
                if data > 0 && key.width().next_multiple_of(16) + data > REGISTERS {
                    self.fault(format!("the key and the data of {set} don't fit into the registers"));
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

    fn dnat(&mut self, key: &Selector, map: &Name) {
        let is_target = |data: &MapData| match data {
            MapData::Value(data) => matches!(
                data.types().as_slice(),
                [Type::Ipv4Addr | Type::Ipv6Addr] | [Type::Ipv4Addr | Type::Ipv6Addr, Type::InetService]
            ),
            MapData::Verdict => false,
        };
        if self.spec(map, key).is_some_and(|spec| !spec.data.as_ref().is_some_and(is_target)) {
            self.fault(format!("the data of {map} is neither an address nor an address and a port"));
        }
    }

    /// Chains that lead back to themselves, by rules or by the elements of verdict maps.
    fn loops(&mut self) {
        let mut walk = Walk { table: self.table, known: BTreeMap::new(), loops: BTreeSet::new() };
        self.table.chains.keys().for_each(|chain| walk.through(chain));
        for chain in walk.loops {
            self.object = format!("chain {chain}");
            self.fault("it leads back to itself");
        }
    }
}

/// A walk through all chains.
struct Walk<'a> {
    table: &'a Table,
    known: BTreeMap<&'a Name, Visit>,
    /// Chains that were met again on the way from them.
    loops: BTreeSet<&'a Name>,
}

/// Where a walk through the chains has been.
enum Visit {
    /// On the way that is being walked.
    Open,
    /// Everything behind it is known.
    Done,
}

impl<'a> Walk<'a> {
    fn through(&mut self, chain: &'a Name) {
        match self.known.get(chain) {
            Some(Visit::Open) => drop(self.loops.insert(chain)),
            Some(Visit::Done) => {}
            None => {
                self.known.insert(chain, Visit::Open);
                self.table.ways(chain).into_iter().for_each(|to| self.through(to));
                self.known.insert(chain, Visit::Done);
            }
        }
    }
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

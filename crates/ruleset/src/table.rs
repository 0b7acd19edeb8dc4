//! Tables and what they hold.

use std::{collections::BTreeMap, fmt};

use crate::{Expr, Field, Key, Rule, Selector, Type, Value, Verdict};

/// The name of a table, chain, set or map. [`Table::check`] tells whether `nft` can write it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<S: Into<Box<str>>> From<S> for Name {
    fn from(name: S) -> Self {
        Self(name.into())
    }
}

impl From<&Name> for Name {
    fn from(name: &Name) -> Self {
        name.clone()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4
    Ip,
    /// IPv6
    Ip6,
    /// Both
    Inet,
}

impl Family {
    /// As `nft` writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a base chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainType {
    /// Lets through, drops, rejects.
    Filter,
    /// Sees the first packet of each connection and rewrites addresses and ports.
    Nat,
}

impl ChainType {
    /// As `nft` and the kernel write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

/// Where in a packet's way a base chain sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Arrived, not yet routed.
    Prerouting,
    /// For this host.
    Input,
    /// Passing through.
    Forward,
    /// Made by this host.
    Output,
    /// About to leave.
    Postrouting,
}

impl Hook {
    /// As `nft` writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happens to a packet that reaches the end of a base chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Policy {
    /// On to the next base chain.
    #[default]
    Accept,
    /// Dropped.
    Drop,
}

impl Policy {
    /// As `nft` writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Drop => "drop",
        }
    }
}

/// What makes a chain a base chain: packets come to it by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Base {
    /// What it may do.
    pub kind: ChainType,
    /// Where it sits.
    pub hook: Hook,
    /// Its place among the chains of the hook; lower runs first.
    pub priority: i32,
    /// What happens at its end.
    pub policy: Policy,
}

/// A chain of rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// `None`: packets come by jump, goto or verdict map only.
    pub base: Option<Base>,
    /// From first to last.
    pub rules: Vec<Rule>,
}

impl Chain {
    /// A chain that is reached from other chains.
    #[must_use]
    pub fn regular(rules: impl IntoIterator<Item = Rule>) -> Self {
        Self { base: None, rules: rules.into_iter().collect() }
    }

    /// A base chain with policy accept.
    #[must_use]
    pub fn base(kind: ChainType, hook: Hook, priority: i32, rules: impl IntoIterator<Item = Rule>) -> Self {
        let base = Base { kind, hook, priority, policy: Policy::Accept };
        Self { base: Some(base), rules: rules.into_iter().collect() }
    }
}

/// What the values of a map are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MapData {
    /// Values of the type of this expression or concatenation.
    Value(Selector),
    /// Verdicts.
    Verdict,
}

/// Everything about a set or map but its elements.
///
/// Key and data are declared as in `typeof`: by an expression of the wanted type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetSpec {
    /// What elements are found by.
    pub key: Selector,
    /// `None` for a set.
    pub data: Option<MapData>,
    /// Elements may be ranges.
    pub interval: bool,
    /// Rules add and delete elements (`flags dynamic`): their elements are not ours to compare.
    pub dynamic: bool,
    /// Elements may have a time to live.
    pub timeout: bool,
    /// The largest number of elements. A full set refuses with ENFILE, so leave it out where we fill it.
    pub size: Option<u32>,
    /// Each element counts packets and bytes.
    pub counter: bool,
}

impl SetSpec {
    /// A set of such keys.
    #[must_use]
    pub fn set(key: impl Into<Selector>) -> Self {
        Self {
            key: key.into(),
            data: None,
            interval: false,
            dynamic: false,
            timeout: false,
            size: None,
            counter: false,
        }
    }

    /// A map from such keys to such data.
    #[must_use]
    pub fn map(key: impl Into<Selector>, data: impl Into<Selector>) -> Self {
        Self { data: Some(MapData::Value(data.into())), ..Self::set(key) }
    }

    /// A map from such keys to verdicts.
    #[must_use]
    pub fn vmap(key: impl Into<Selector>) -> Self {
        Self { data: Some(MapData::Verdict), ..Self::set(key) }
    }

    /// The same with `flags interval`.
    #[must_use]
    pub fn interval(self) -> Self {
        Self { interval: true, ..self }
    }

    /// The same with `counter` for each element.
    #[must_use]
    pub fn counter(self) -> Self {
        Self { counter: true, ..self }
    }

    /// The same with `flags dynamic,timeout` and that largest number of elements.
    #[must_use]
    pub fn dynamic(self, size: u32) -> Self {
        Self { dynamic: true, timeout: true, size: Some(size), ..self }
    }

    /// The key is a concatenation.
    #[must_use]
    pub fn is_concat(&self) -> bool {
        self.key.0.len() > 1
    }
}

/// A set or map and its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// What it is.
    pub spec: SetSpec,
    /// What is in it.
    pub elements: BTreeMap<Key, Element>,
}

impl Set {
    /// Without elements.
    #[must_use]
    pub fn empty(spec: SetSpec) -> Self {
        Self { spec, elements: BTreeMap::new() }
    }
}

impl From<SetSpec> for Set {
    fn from(spec: SetSpec) -> Self {
        Self::empty(spec)
    }
}

/// What an element's key leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Data {
    /// Nothing: the element of a set.
    #[default]
    None,
    /// A value: the element of a map.
    Value(Value),
    /// A verdict: the element of a verdict map.
    Verdict(Verdict),
}

/// An element of a set or map, without its key.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// What the key leads to.
    pub data: Data,
    /// Up to [`LONGEST_COMMENT`](crate::LONGEST_COMMENT) bytes without `"`.
    pub comment: Option<Box<str>>,
}

impl Element {
    /// An element of a map.
    #[must_use]
    pub fn value(data: impl Into<Value>) -> Self {
        Self { data: Data::Value(data.into()), comment: None }
    }

    /// An element of a verdict map.
    #[must_use]
    pub fn verdict(verdict: Verdict) -> Self {
        Self { data: Data::Verdict(verdict), comment: None }
    }

    /// The same element with that comment.
    #[must_use]
    pub fn comment(mut self, comment: impl Into<Box<str>>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    /// The verdict that the element leads to, where it is one of a verdict map.
    #[must_use]
    pub const fn verdict_data(&self) -> Option<&Verdict> {
        match &self.data {
            Data::Verdict(verdict) => Some(verdict),
            Data::None | Data::Value(_) => None,
        }
    }
}

/// A table: the whole of what one program wants in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Which packets it sees.
    pub family: Family,
    /// Its name.
    pub name: Name,
    /// Up to [`LONGEST_COMMENT`](crate::LONGEST_COMMENT) bytes without `"`.
    pub comment: Option<Box<str>>,
    /// Sets and maps.
    pub sets: BTreeMap<Name, Set>,
    /// Chains.
    pub chains: BTreeMap<Name, Chain>,
}

impl Table {
    /// An empty table.
    #[must_use]
    pub fn new(family: Family, name: impl Into<Name>) -> Self {
        let name = name.into();
        Self { family, name, comment: None, sets: BTreeMap::new(), chains: BTreeMap::new() }
    }

    /// Adds a chain, or replaces the one of that name.
    pub fn chain(&mut self, name: impl Into<Name>, chain: Chain) -> &mut Self {
        self.chains.insert(name.into(), chain);
        self
    }

    /// Adds a set or map, or replaces the one of that name.
    pub fn set(&mut self, name: impl Into<Name>, set: impl Into<Set>) -> &mut Self {
        self.sets.insert(name.into(), set.into());
        self
    }

    /// Adds an element to the set or map `set`, or replaces the one of that key. Where there is no such set,
    /// nothing happens.
    pub fn element(&mut self, set: &Name, key: impl Into<Key>, element: Element) -> &mut Self {
        if let Some(set) = self.sets.get_mut(set) {
            set.elements.insert(key.into(), element);
        }
        self
    }
}

impl Selector {
    /// `value` has the length that values of these types have in the kernel.
    #[must_use]
    pub fn fits(&self, value: &Value) -> bool {
        self.width() == value.as_bytes().len()
    }

    /// Length of such values in the kernel, in bytes: the parts of a concatenation are padded to four.
    #[must_use]
    pub fn width(&self) -> usize {
        match self.0.as_slice() {
            [one] => one.data_type().width(),
            many => many.iter().map(|part| part.data_type().width().next_multiple_of(4)).sum(),
        }
    }
}

/// `numgen random mod 65536`, which is how `typeof` declares the type of a slot number.
pub const SLOT: Expr = Expr::Random { modulus: 65_536 };

/// The fields that hold addresses in a table of that family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressFields {
    /// Source.
    pub source: Field,
    /// Destination.
    pub destination: Field,
}

impl Family {
    /// The address fields of the family's header, for rules that are written once for both; those of IPv4
    /// for `inet`.
    #[must_use]
    pub const fn addresses(self) -> AddressFields {
        match self {
            Self::Ip6 => AddressFields { source: Field::Ip6Saddr, destination: Field::Ip6Daddr },
            Self::Ip | Self::Inet => AddressFields { source: Field::IpSaddr, destination: Field::IpDaddr },
        }
    }

    /// The type of those addresses.
    #[must_use]
    pub const fn address_type(self) -> Type {
        self.addresses().source.data_type()
    }
}

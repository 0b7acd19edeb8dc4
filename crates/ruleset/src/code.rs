//! What the kernel runs: the operations of a rule and the header of a set, as `nft` would make them.

use std::time::Duration;

pub use crate::origin::{Header, Origin};
use crate::{DynamicOp, Field, Key, Name, PortChoice, RejectWith, Relation, Type, Value, Verdict, Writable};

/// A data register, counted in units of four bytes from 0 to 15. A longer value takes those behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reg(pub u8);

impl Reg {
    /// Where every value begins that isn't a further part of a key.
    pub const FIRST: Self = Self(0);

    /// The register that lies `bytes` behind this one, rounded up to whole units.
    #[must_use]
    pub fn behind(self, bytes: usize) -> Self {
        Self(self.0.saturating_add(u8::try_from(bytes.div_ceil(4)).unwrap_or(u8::MAX)))
    }

    /// The next register at a multiple of 16 bytes, at or behind this one.
    #[must_use]
    pub fn aligned(self) -> Self {
        Self(self.0.next_multiple_of(4))
    }
}

/// An unnamed set that belongs to one rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AnonymousSet {
    /// The type of its elements.
    pub kind: Type,
    /// Elements may be ranges.
    pub interval: bool,
    /// Sorted by their first value.
    pub elements: Vec<Key>,
    /// What `nft` remembers about it (see [`crate::userdata`]). Not compared, because it says nothing to
    /// the kernel.
    pub userdata: Userdata,
}

/// Bytes that the kernel keeps for `nft`; all are equal.
#[derive(Clone, Debug, Default)]
pub struct Userdata(pub Vec<u8>);

impl PartialEq for Userdata {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Userdata {}

impl PartialOrd for Userdata {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Userdata {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl std::hash::Hash for Userdata {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

/// A set that a rule uses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetRef {
    /// A set or map of the table.
    Named(Name),
    /// A set of the rule's own.
    Anonymous(AnonymousSet),
}

/// Where a lookup in a map puts what it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Found {
    /// Into a register.
    Data(Reg),
    /// It is a verdict.
    Verdict,
}

/// One operation of a rule. The first that doesn't match ends the rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// Loads bytes of a header.
    Payload {
        /// Counted from here.
        header: Header,
        /// In bytes.
        offset: u32,
        /// In bytes.
        length: u32,
        /// Where to.
        to: Reg,
    },
    /// Loads a field that isn't in a header.
    Load {
        /// Of `meta`, `ct` or `fib`.
        field: Field,
        /// Where to.
        to: Reg,
    },
    /// Writes a field.
    Store {
        /// Which.
        field: Writable,
        /// From where.
        from: Reg,
    },
    /// Makes a random number below `modulus`.
    Random {
        /// The number of outcomes.
        modulus: u32,
        /// Where to.
        to: Reg,
    },
    /// `register = register & mask ^ xor`
    Bitwise {
        /// Read and written.
        register: Reg,
        /// As long as the value in the register.
        mask: Value,
        /// As long as the mask.
        xor: Value,
    },
    /// Goes on only if the comparison holds.
    Compare {
        /// What is compared.
        register: Reg,
        /// Equal or not.
        relation: Relation,
        /// With what.
        value: Value,
    },
    /// Goes on only if the key is (or with [`Relation::Ne`]: isn't) in the set.
    Lookup {
        /// Where the key begins.
        key: Reg,
        /// In which set.
        set: SetRef,
        /// In it or not.
        relation: Relation,
        /// What becomes of a map's data.
        found: Option<Found>,
    },
    /// Loads a constant.
    Immediate {
        /// Where to.
        to: Reg,
        /// What.
        value: Value,
    },
    /// Decides.
    Verdict(Verdict),
    /// Rewrites the destination.
    Dnat {
        /// IPv6, not IPv4.
        ipv6: bool,
        /// Where the address is.
        address: Reg,
        /// Where the port is.
        port: Option<Reg>,
    },
    /// Rewrites the source to the outgoing interface's address.
    Masquerade(PortChoice),
    /// Refuses.
    Reject(RejectWith),
    /// Counts.
    Counter,
    /// Changes a dynamic set.
    Dynamic {
        /// How.
        op: DynamicOp,
        /// Which.
        set: Name,
        /// Where the key begins.
        key: Reg,
        /// Where the data begins, for a map.
        data: Option<Reg>,
        /// The element's time to live.
        timeout: Option<Duration>,
    },
    /// An operation of somebody else's rule that we have no word for.
    Other {
        /// The kernel's name for it; `xt match NAME` and `xt target NAME` for those of iptables.
        name: Box<str>,
        /// Its attributes as they came.
        attributes: Vec<u8>,
    },
}

/// A rule as the kernel holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code {
    /// From first to last.
    pub ops: Vec<Op>,
    /// The comment, which only `nft` reads.
    pub comment: Option<Box<str>>,
}

impl Code {
    /// Every named set or map that the rule uses.
    pub fn sets(&self) -> impl Iterator<Item = &Name> {
        self.ops.iter().filter_map(|op| match op {
            Op::Lookup { set: SetRef::Named(name), .. } | Op::Dynamic { set: name, .. } => Some(name),
            _ => None,
        })
    }

    /// Every chain that the rule itself leads to (maps lead to further ones).
    pub fn chains(&self) -> impl Iterator<Item = &Name> {
        self.ops.iter().filter_map(|op| match op {
            Op::Verdict(verdict) => verdict.chain(),
            _ => None,
        })
    }

    /// The anonymous sets of the rule, in order.
    pub fn anonymous_sets(&self) -> impl Iterator<Item = &AnonymousSet> {
        self.ops.iter().filter_map(|op| match op {
            Op::Lookup { set: SetRef::Anonymous(set), .. } => Some(set),
            _ => None,
        })
    }

    /// Nothing in the rule can fail to match: it does to every packet what it does to any.
    ///
    /// Matches and targets of iptables count by their names: a `comment` and a target always match.
    fn is_unconditional(&self) -> bool {
        self.ops.iter().all(|op| match op {
            Op::Counter | Op::Verdict(_) | Op::Reject(_) => true,
            Op::Other { name, .. } => {
                matches!(&**name, "log" | "reject" | "xt match comment") || name.starts_with(XT_TARGET)
            }
            _ => false,
        })
    }

    /// No packet that comes to this rule gets any further: it drops or rejects all.
    #[must_use]
    pub fn refuses_all(&self) -> bool {
        self.is_unconditional()
            && self.ops.last().is_some_and(|op| match op {
                Op::Verdict(Verdict::Drop) | Op::Reject(_) => true,
                Op::Other { name, .. } => {
                    let target = name.strip_prefix(XT_TARGET);
                    &**name == "reject" || matches!(target, Some("REJECT" | "DROP"))
                }
                _ => false,
            })
    }
}

/// What the name of an iptables target begins with in [`Op::Other`].
const XT_TARGET: &str = "xt target ";

impl Verdict {
    /// The chain that it leads to.
    #[must_use]
    pub const fn chain(&self) -> Option<&Name> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            Self::Accept | Self::Drop | Self::Continue | Self::Return => None,
        }
    }
}

/// How the elements of a set are found, which decides how they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyForm {
    /// One value each.
    Exact,
    /// A value where the range begins, and a mark behind its end.
    Interval,
    /// First and last value together, part by part.
    ConcatInterval,
}

/// Everything about a set or map but its elements, as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetHeader {
    /// How elements are found.
    pub form: KeyForm,
    /// The number that `nft` knows the key's type by.
    pub key_type: u32,
    /// Bytes of a key.
    pub key_width: u32,
    /// Bytes of each part of a key; empty unless the form is [`KeyForm::ConcatInterval`].
    pub key_parts: Vec<u32>,
    /// What a map's elements lead to.
    pub data: Option<DataHeader>,
    /// Rules may change it.
    pub dynamic: bool,
    /// Elements may have a time to live.
    pub timeout: bool,
    /// The largest number of elements.
    pub size: Option<u32>,
    /// Each element counts.
    pub counter: bool,
    /// What `nft` wants to remember: byte orders, `typeof`, comment (see [`crate::userdata`]).
    pub userdata: Vec<u8>,
}

/// What a map's elements lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DataHeader {
    /// Verdicts.
    Verdict,
    /// Values.
    Value {
        /// The number that `nft` knows the type by.
        kind: u32,
        /// In bytes.
        width: u32,
    },
}

impl Type {
    /// The number that `nft` knows the type by (`enum datatypes`).
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::NfProto => 2,
            Self::Integer => 4,
            Self::Ipv4Addr => 7,
            Self::Ipv6Addr => 8,
            Self::InetProto => 12,
            Self::InetService => 13,
            Self::Mark => 19,
            Self::ClassId => 23,
            Self::CtState => 26,
            Self::CtStatus => 28,
            Self::IfName => 41,
            Self::FibAddrType => 38,
        }
    }

    /// The type that `nft` knows by that number, if it is one of ours.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        [
            Self::Ipv4Addr,
            Self::Ipv6Addr,
            Self::InetProto,
            Self::InetService,
            Self::Mark,
            Self::ClassId,
            Self::Integer,
            Self::IfName,
            Self::NfProto,
            Self::CtState,
            Self::CtStatus,
            Self::FibAddrType,
        ]
        .into_iter()
        .find(|kind| kind.number() == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuses(ops: impl IntoIterator<Item = Op>) -> bool {
        Code { ops: ops.into_iter().collect(), comment: None }.refuses_all()
    }

    #[test]
    fn a_last_rule_refuses_only_if_nothing_in_it_can_miss() {
        let other = |name: &str| Op::Other { name: name.into(), attributes: Vec::new() };
        let drop = || Op::Verdict(Verdict::Drop);
        let load = Op::Load { field: Field::MetaMark, to: Reg::FIRST };
        assert!(refuses([Op::Counter, drop()]));
        assert!(refuses([other("xt match comment"), Op::Counter, other("xt target REJECT")]));
        assert!(refuses([other("reject")]));
        assert!(refuses([Op::Reject(RejectWith::TcpReset)]));
        assert!(!refuses([load, drop()]), "only some packets");
        assert!(!refuses([other("xt match conntrack"), drop()]), "only some packets");
        assert!(!refuses([Op::Counter, other("xt target LOG")]), "goes on");
        assert!(!refuses([Op::Verdict(Verdict::Accept)]) && !refuses([]));
    }

    #[test]
    fn registers_count_in_units_of_four_bytes() {
        assert_eq!(Reg::FIRST.behind(4).behind(1), Reg(2));
        assert_eq!(Reg::FIRST.behind(16), Reg(4));
        assert_eq!((Reg(4).aligned(), Reg(5).aligned()), (Reg(4), Reg(8)));
    }
}

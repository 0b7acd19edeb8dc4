//! Rules and what they are made of.

use std::time::Duration;

use netmodel::Subnet;

use crate::{Expr, Field, Key, Name, Selector, Source, Value};

/// Equal or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Relation {
    /// `==`, which `nft` may leave out.
    Eq,
    /// `!=`
    Ne,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Ends this base chain; other tables still decide.
    Accept,
    /// The packet is gone.
    Drop,
    /// On with the next rule; as an element of a map: nothing happens.
    Continue,
    /// Back behind the jump that led here; in a base chain its policy.
    Return,
    /// To a chain, and back where that ends.
    Jump(Name),
    /// To a chain, and not back.
    Goto(Name),
}

/// A field that a rule can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Writable {
    /// `meta mark set`
    MetaMark,
    /// `meta priority set`
    MetaPriority,
    /// `ct mark set`
    CtMark,
}

impl Writable {
    /// The same field for reading.
    #[must_use]
    pub const fn field(self) -> Field {
        match self {
            Self::MetaMark => Field::MetaMark,
            Self::MetaPriority => Field::MetaPriority,
            Self::CtMark => Field::CtMark,
        }
    }

    /// `field set source`
    #[must_use]
    pub fn set(self, to: impl Into<Source>) -> Statement {
        Statement::Set { field: self, to: to.into() }
    }
}

/// How NAT chooses a source port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortChoice {
    /// The packet's own where it is free.
    #[default]
    Keep,
    /// `random`: by a hash with a secret.
    Random,
    /// `fully-random`: by a random number.
    FullyRandom,
}

/// What the sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RejectWith {
    /// ICMP or ICMPv6 "port unreachable", by the table's family: `nft`'s bare `reject`.
    PortUnreachable,
    /// `with tcp reset`; only behind a match on TCP.
    TcpReset,
}

/// What a rule does with a dynamic set or map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DynamicOp {
    /// `update`: makes it, or refreshes its time; the value of an element that is there stays.
    Update,
    /// `delete`
    Delete,
}

/// One statement of a rule. Statements are carried out from left to right; one that doesn't match, or a
/// lookup that misses, ends the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// `left == right`
    Compare {
        /// What is read.
        left: Expr,
        /// Equal or not.
        relation: Relation,
        /// What it is compared with, of the same type.
        right: Value,
    },
    /// `ip saddr 10.0.0.0/8`
    Within {
        /// An address.
        field: Field,
        /// Inside or outside.
        relation: Relation,
        /// A subnet of the field's family.
        subnet: Subnet,
    },
    /// `ct state established,related`: at least one bit is set.
    HasAny {
        /// `ct state` or `ct status`.
        field: Field,
        /// The bits.
        bits: u32,
    },
    /// `meta l4proto { tcp, udp }`: an anonymous set, which belongs to the rule.
    AnyOf {
        /// What is read.
        field: Field,
        /// Values or ranges, of the field's type, none twice.
        elements: Vec<Key>,
    },
    /// `key @set`
    Lookup {
        /// What is looked up.
        key: Selector,
        /// In the set or not.
        relation: Relation,
        /// A set of the table. A map won't do: kernels before 6.4 want its data to go somewhere.
        set: Name,
    },
    /// `key vmap @map`: the verdict of the element; a miss ends the rule.
    Vmap {
        /// What is looked up.
        key: Selector,
        /// A verdict map of the table.
        map: Name,
    },
    /// `meta mark set ...`
    Set {
        /// What is written.
        field: Writable,
        /// Where the value comes from.
        to: Source,
    },
    /// `dnat ip to key map @map`, in chains of type nat at prerouting and output: to the address, or the
    /// address and port, that the key finds. Ends the chain; a miss ends the rule.
    Dnat {
        /// What is looked up.
        key: Selector,
        /// A map of the table whose data is an address, or an address and a port.
        map: Name,
    },
    /// `masquerade`, in chains of type nat at postrouting. Ends the chain.
    Masquerade(PortChoice),
    /// `reject`, in chains of type filter at input, forward and output. Ends everything.
    Reject(RejectWith),
    /// `counter`: packets and bytes.
    Counter,
    /// `update @set { key timeout 3h : data }`
    Dynamic {
        /// What is done.
        op: DynamicOp,
        /// A set or map with `flags dynamic`.
        set: Name,
        /// The element's key.
        key: Selector,
        /// The element's time to live, in whole seconds: the kernel rounds to ticks of its clock. `None`: it
        /// stays until it is deleted.
        timeout: Option<Duration>,
        /// The element's data, where `set` is a map.
        data: Option<Expr>,
    },
    /// `accept`, `drop`, `return`, `jump`, `goto`
    Verdict(Verdict),
}

impl Statement {
    /// `jump chain`
    #[must_use]
    pub fn jump(chain: impl Into<Name>) -> Self {
        Self::Verdict(Verdict::Jump(chain.into()))
    }

    /// `goto chain`
    #[must_use]
    pub fn goto(chain: impl Into<Name>) -> Self {
        Self::Verdict(Verdict::Goto(chain.into()))
    }

    /// `accept`
    pub const ACCEPT: Self = Self::Verdict(Verdict::Accept);
    /// `drop`
    pub const DROP: Self = Self::Verdict(Verdict::Drop);
    /// `return`
    pub const RETURN: Self = Self::Verdict(Verdict::Return);
    /// `reject`
    pub const REJECT: Self = Self::Reject(RejectWith::PortUnreachable);

    /// `dnat to key map @map`
    #[must_use]
    pub fn dnat_by(map: impl Into<Name>, key: impl Into<Selector>) -> Self {
        Self::Dnat { key: key.into(), map: map.into() }
    }
}

impl From<Verdict> for Statement {
    fn from(verdict: Verdict) -> Self {
        Self::Verdict(verdict)
    }
}

/// A rule: statements from left to right, and a comment that `nft` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// What it does, in order.
    pub statements: Vec<Statement>,
    /// Up to [`LONGEST_COMMENT`](crate::LONGEST_COMMENT) bytes without `"`.
    pub comment: Option<Box<str>>,
}

impl Rule {
    /// A rule without a comment.
    #[must_use]
    pub fn new(statements: impl IntoIterator<Item = Statement>) -> Self {
        Self { statements: statements.into_iter().collect(), comment: None }
    }

    /// The same rule with that comment.
    #[must_use]
    pub fn comment(mut self, comment: impl Into<Box<str>>) -> Self {
        self.comment = Some(comment.into());
        self
    }
}

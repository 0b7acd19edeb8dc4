//! What a rule reads from a packet, its flow or the machine.

use netmodel::{Protocol, Subnet};

use crate::{Key, Name, Relation, Statement, Value};

/// The type of a value, under the name that `nft` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Type {
    /// `ipv4_addr`, 4 bytes.
    Ipv4Addr,
    /// `ipv6_addr`, 16 bytes.
    Ipv6Addr,
    /// `inet_proto`, 1 byte.
    InetProto,
    /// `inet_service`, 2 bytes.
    InetService,
    /// `mark`, 4 bytes in the machine's order.
    Mark,
    /// `classid`, 4 bytes in the machine's order, written `hi:lo` in hexadecimal.
    ClassId,
    /// `integer`, here always of 4 bytes in the machine's order.
    Integer,
    /// `ifname`, 16 bytes.
    IfName,
    /// `nf_proto`, 1 byte.
    NfProto,
    /// `ct_state`, bits in 4 bytes of the machine's order.
    CtState,
    /// `ct_status`, bits in 4 bytes of the machine's order.
    CtStatus,
    /// `fib_addrtype`, 4 bytes in the machine's order.
    FibAddrType,
}

impl Type {
    /// Length of a value in bytes.
    #[must_use]
    pub const fn width(self) -> usize {
        match self {
            Self::InetProto | Self::NfProto => 1,
            Self::InetService => 2,
            Self::Ipv6Addr | Self::IfName => 16,
            _ => 4,
        }
    }

    /// Values are in the machine's byte order (else in network order).
    #[must_use]
    pub const fn is_host_order(self) -> bool {
        !matches!(self, Self::Ipv4Addr | Self::Ipv6Addr | Self::InetProto | Self::InetService)
    }
}

/// Something that can be read from a packet, its connection or the routing tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// `ip saddr`
    IpSaddr,
    /// `ip daddr`
    IpDaddr,
    /// `ip protocol`
    IpProtocol,
    /// `ip6 saddr`
    Ip6Saddr,
    /// `ip6 daddr`
    Ip6Daddr,
    /// `th dport`, the destination port of whatever transport header there is.
    ThDport,
    /// `meta mark`
    MetaMark,
    /// `meta priority`, the socket buffer's priority, which we use as scratch.
    MetaPriority,
    /// `meta l4proto`, the transport protocol behind extension headers.
    MetaL4proto,
    /// `meta nfproto`, the family; for tables of family inet only.
    MetaNfproto,
    /// `iifname`
    Iifname,
    /// `oifname`
    Oifname,
    /// `ct state`
    CtState,
    /// `ct status`
    CtStatus,
    /// `ct mark`
    CtMark,
    /// `fib saddr type`, how this host would route to the source address.
    FibSaddrType,
    /// `fib daddr type`, how this host would route to the destination address.
    FibDaddrType,
}

/// `fib ... type local`: the address is one of this host's (RTN_LOCAL).
pub const FIB_LOCAL: u32 = 2;

/// Bits of [`Field::CtState`].
pub mod ct_state {
    /// Not fitting to any connection.
    pub const INVALID: u32 = 1;
    /// Of a connection that was seen in both directions.
    pub const ESTABLISHED: u32 = 2;
    /// New, but belonging to a known one (an ICMP error, for example).
    pub const RELATED: u32 = 4;
    /// The first of its connection.
    pub const NEW: u32 = 8;
    /// Exempt from tracking.
    pub const UNTRACKED: u32 = 64;
}

/// Bits of [`Field::CtStatus`].
pub mod ct_status {
    /// Its first packet has left.
    pub const CONFIRMED: u32 = 0x8;
    /// The source was or will be rewritten.
    pub const SNAT: u32 = 0x10;
    /// The destination was or will be rewritten.
    pub const DNAT: u32 = 0x20;
}

impl Field {
    /// The type of what is read.
    #[must_use]
    pub const fn data_type(self) -> Type {
        match self {
            Self::IpSaddr | Self::IpDaddr => Type::Ipv4Addr,
            Self::Ip6Saddr | Self::Ip6Daddr => Type::Ipv6Addr,
            Self::IpProtocol | Self::MetaL4proto => Type::InetProto,
            Self::ThDport => Type::InetService,
            Self::MetaMark | Self::CtMark => Type::Mark,
            Self::MetaPriority => Type::ClassId,
            Self::MetaNfproto => Type::NfProto,
            Self::Iifname | Self::Oifname => Type::IfName,
            Self::CtState => Type::CtState,
            Self::CtStatus => Type::CtStatus,
            Self::FibSaddrType | Self::FibDaddrType => Type::FibAddrType,
        }
    }

    /// `field & mask`
    #[must_use]
    pub const fn and(self, mask: u32) -> Expr {
        Expr::Bits { field: self, op: BitOp::And, operand: mask }
    }

    /// `field | bits`
    #[must_use]
    pub const fn or(self, bits: u32) -> Expr {
        Expr::Bits { field: self, op: BitOp::Or, operand: bits }
    }

    /// `field ^ bits`
    #[must_use]
    pub const fn xor(self, bits: u32) -> Expr {
        Expr::Bits { field: self, op: BitOp::Xor, operand: bits }
    }

    /// `field value`
    #[must_use]
    pub fn is(self, value: impl Into<Value>) -> Statement {
        Expr::Field(self).is(value)
    }

    /// `field != value`
    #[must_use]
    pub fn is_not(self, value: impl Into<Value>) -> Statement {
        Expr::Field(self).is_not(value)
    }

    /// `field subnet`, for fields that are addresses.
    #[must_use]
    pub const fn within(self, subnet: Subnet) -> Statement {
        Statement::Within { field: self, relation: Relation::Eq, subnet }
    }

    /// `field != subnet`, for fields that are addresses.
    #[must_use]
    pub const fn not_within(self, subnet: Subnet) -> Statement {
        Statement::Within { field: self, relation: Relation::Ne, subnet }
    }

    /// `ct state a,b` or `ct status a,b`: at least one of the bits is set.
    #[must_use]
    pub const fn has_any(self, bits: u32) -> Statement {
        Statement::HasAny { field: self, bits }
    }

    /// `field { a, b }`, an anonymous set.
    #[must_use]
    pub fn any_of<K: Into<Key>>(self, values: impl IntoIterator<Item = K>) -> Statement {
        Statement::AnyOf { field: self, elements: values.into_iter().map(Into::into).collect() }
    }

    /// `field @set`
    #[must_use]
    pub fn in_set(self, set: impl Into<Name>) -> Statement {
        Selector::from(self).in_set(set)
    }

    /// `field != @set`
    #[must_use]
    pub fn not_in_set(self, set: impl Into<Name>) -> Statement {
        Selector::from(self).not_in_set(set)
    }
}

/// An operation on the bits of a 32-bit field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BitOp {
    /// `&`
    And,
    /// `|`
    Or,
    /// `^`
    Xor,
}

/// An expression whose value fills one part of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Expr {
    /// A field as it is.
    Field(Field),
    /// A field of 32 bits in the machine's order, with an operation on its bits.
    Bits {
        /// What is read.
        field: Field,
        /// What is done with it.
        op: BitOp,
        /// The right-hand side.
        operand: u32,
    },
    /// `numgen random mod N`: a random number below `modulus`, which is at least 1.
    Random {
        /// The number of different outcomes.
        modulus: u32,
    },
}

impl Expr {
    /// The type of its value.
    #[must_use]
    pub const fn data_type(self) -> Type {
        match self {
            Self::Field(field) | Self::Bits { field, .. } => field.data_type(),
            Self::Random { .. } => Type::Integer,
        }
    }

    /// `expression == value`
    #[must_use]
    pub fn is(self, value: impl Into<Value>) -> Statement {
        Statement::Compare { left: self, relation: Relation::Eq, right: value.into() }
    }

    /// `expression != value`
    #[must_use]
    pub fn is_not(self, value: impl Into<Value>) -> Statement {
        Statement::Compare { left: self, relation: Relation::Ne, right: value.into() }
    }
}

impl From<Field> for Expr {
    fn from(field: Field) -> Self {
        Self::Field(field)
    }
}

/// What is looked up in a set or map: one expression, or several that are concatenated (`a . b`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(pub Vec<Expr>);

impl Selector {
    /// The concatenation of these.
    #[must_use]
    pub fn concat<E: Into<Expr>>(parts: impl IntoIterator<Item = E>) -> Self {
        Self(parts.into_iter().map(Into::into).collect())
    }

    /// The types of the parts.
    #[must_use]
    pub fn types(&self) -> Vec<Type> {
        self.0.iter().map(|part| part.data_type()).collect()
    }

    /// `selector @set`
    #[must_use]
    pub fn in_set(self, set: impl Into<Name>) -> Statement {
        Statement::Lookup { key: self, relation: Relation::Eq, set: set.into() }
    }

    /// `selector != @set`
    #[must_use]
    pub fn not_in_set(self, set: impl Into<Name>) -> Statement {
        Statement::Lookup { key: self, relation: Relation::Ne, set: set.into() }
    }

    /// `selector vmap @map`
    #[must_use]
    pub fn vmap(self, map: impl Into<Name>) -> Statement {
        Statement::Vmap { key: self, map: map.into() }
    }

    /// `selector map @map`, to be assigned or used as a NAT target.
    #[must_use]
    pub fn map(self, map: impl Into<Name>) -> Source {
        Source::Map { key: self, map: map.into() }
    }
}

impl From<Field> for Selector {
    fn from(field: Field) -> Self {
        Self(vec![field.into()])
    }
}

impl From<Expr> for Selector {
    fn from(expr: Expr) -> Self {
        Self(vec![expr])
    }
}

impl<E: Into<Expr>, const N: usize> From<[E; N]> for Selector {
    fn from(parts: [E; N]) -> Self {
        Self::concat(parts)
    }
}

/// Where an assigned value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A constant.
    Value(Value),
    /// An expression.
    Expr(Expr),
    /// The data of the element that the key finds. A miss ends the rule: nothing behind it happens.
    Map {
        /// What is looked up.
        key: Selector,
        /// The name of a map with data.
        map: Name,
    },
}

impl From<Value> for Source {
    fn from(value: Value) -> Self {
        Self::Value(value)
    }
}

impl From<Expr> for Source {
    fn from(expr: Expr) -> Self {
        Self::Expr(expr)
    }
}

/// `meta l4proto { tcp, udp, sctp }`: the packet has ports.
#[must_use]
pub fn has_ports() -> Statement {
    Field::MetaL4proto.any_of([Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

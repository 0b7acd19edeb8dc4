//! Where the kernel finds what a rule reads.

use crate::Field;

/// Which header a payload offset counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Header {
    /// IPv4 or IPv6.
    Network,
    /// TCP, UDP, SCTP, ...
    Transport,
}

/// What the kernel reads a field with, under the kernel's own numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// Bytes of a header, as many as the field's type has.
    Payload {
        /// Counted from here.
        header: Header,
        /// In bytes.
        offset: u32,
    },
    /// `meta`, by its key (`NFT_META_...`).
    Meta(u32),
    /// `ct`, by its key (`NFT_CT_...`).
    Ct(u32),
    /// `fib ... type`, by the flag of the address that is asked for (`NFTA_FIB_F_...`).
    Fib(u32),
}

impl Field {
    /// Every field.
    pub const ALL: [Self; 17] = [
        Self::IpSaddr,
        Self::IpDaddr,
        Self::IpProtocol,
        Self::Ip6Saddr,
        Self::Ip6Daddr,
        Self::ThDport,
        Self::MetaMark,
        Self::MetaPriority,
        Self::MetaL4proto,
        Self::MetaNfproto,
        Self::Iifname,
        Self::Oifname,
        Self::CtState,
        Self::CtStatus,
        Self::CtMark,
        Self::FibSaddrType,
        Self::FibDaddrType,
    ];

    /// Where the kernel reads it.
    #[must_use]
    pub const fn origin(self) -> Origin {
        use Header::{Network, Transport};
        match self {
            Self::IpProtocol => Origin::Payload { header: Network, offset: 9 },
            Self::IpSaddr => Origin::Payload { header: Network, offset: 12 },
            Self::IpDaddr => Origin::Payload { header: Network, offset: 16 },
            Self::Ip6Saddr => Origin::Payload { header: Network, offset: 8 },
            Self::Ip6Daddr => Origin::Payload { header: Network, offset: 24 },
            Self::ThDport => Origin::Payload { header: Transport, offset: 2 },
            Self::MetaPriority => Origin::Meta(2),
            Self::MetaMark => Origin::Meta(3),
            Self::Iifname => Origin::Meta(6),
            Self::Oifname => Origin::Meta(7),
            Self::MetaNfproto => Origin::Meta(15),
            Self::MetaL4proto => Origin::Meta(16),
            Self::CtState => Origin::Ct(0),
            Self::CtStatus => Origin::Ct(2),
            Self::CtMark => Origin::Ct(3),
            Self::FibSaddrType => Origin::Fib(1),
            Self::FibDaddrType => Origin::Fib(2),
        }
    }

    /// The field that the kernel reads there, if it is one of ours.
    #[must_use]
    pub fn read_from(origin: Origin) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.origin() == origin)
    }
}

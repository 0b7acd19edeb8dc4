//! Numbers with a range: VNI, MTU, port, transport protocol.

use std::{fmt, num::NonZeroU16, str::FromStr};

/// A VXLAN network identifier: 24 bits (RFC 7348, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

/// A number that is no VNI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a VXLAN network identifier: it must be 0 to 16777215")]
pub struct BadVni(u64);

impl Vni {
    /// The identifier as a number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u64> for Vni {
    type Error = BadVni;

    fn try_from(number: u64) -> Result<Self, BadVni> {
        u32::try_from(number).ok().filter(|n| *n < 1 << 24).map(Self).ok_or(BadVni(number))
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Largest packet of an interface in bytes, IP header included: 68 (RFC 791) to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtu(u16);

/// A number that is no MTU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not an MTU: it must be 68 to 65535 bytes")]
pub struct BadMtu(u64);

impl Mtu {
    /// The size in bytes.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u64> for Mtu {
    type Error = BadMtu;

    fn try_from(number: u64) -> Result<Self, BadMtu> {
        u16::try_from(number).ok().filter(|n| *n >= 68).map(Self).ok_or(BadMtu(number))
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A transport port, 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(NonZeroU16);

/// A number that is no port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a port: it must be 1 to 65535")]
pub struct BadPort(i64);

impl Port {
    /// The port as a number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl TryFrom<i64> for Port {
    type Error = BadPort;

    fn try_from(number: i64) -> Result<Self, BadPort> {
        u16::try_from(number).ok().and_then(NonZeroU16::new).map(Self).ok_or(BadPort(number))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A transport protocol that has ports and that Services may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// RFC 9293, number 6.
    Tcp,
    /// RFC 768, number 17.
    Udp,
    /// RFC 9260, number 132.
    Sctp,
}

/// A text that names no supported transport protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a transport protocol: it must be TCP, UDP or SCTP")]
pub struct BadProtocol(String);

impl Protocol {
    /// The number in the IP header (IANA's protocol numbers).
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The one with that number in the IP header.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|protocol| protocol.number() == number)
    }

    /// The name in lower case, as `nft` and URLs write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl FromStr for Protocol {
    type Err = BadProtocol;

    /// In any letter case.
    fn from_str(text: &str) -> Result<Self, BadProtocol> {
        [Self::Tcp, Self::Udp, Self::Sctp]
            .into_iter()
            .find(|p| text.eq_ignore_ascii_case(p.as_str()))
            .ok_or_else(|| BadProtocol(text.to_owned()))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_range() {
        assert!(Vni::try_from(0).is_ok() && Vni::try_from((1 << 24) - 1).is_ok());
        assert_eq!(Vni::try_from(1 << 24), Err(BadVni(1 << 24)));
        assert!(Mtu::try_from(68).is_ok() && Mtu::try_from(65535).is_ok());
        assert_eq!(Mtu::try_from(67), Err(BadMtu(67)));
        assert!(Port::try_from(1).is_ok() && Port::try_from(65535).is_ok());
        for bad in [-1, 0, 65536] {
            assert_eq!(Port::try_from(bad), Err(BadPort(bad)));
        }
    }

    #[test]
    fn a_protocol_is_read_in_any_case() {
        assert_eq!("Sctp".parse(), Ok(Protocol::Sctp));
        assert_eq!("icmp".parse::<Protocol>(), Err(BadProtocol("icmp".to_owned())));
    }
}

//! Subnets of IPv4 and IPv6.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnetwork::IpNetwork;

/// A subnet of either family: an address whose host bits are zero, and a prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet(IpNetwork);

/// A text or pair that is no subnet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSubnet {
    /// Not `address/length`.
    #[error("{0:?} is not a subnet: it must be an address and a prefix length such as \"10.244.1.0/24\"")]
    Syntax(String),
    /// Address bits behind the prefix are set.
    #[error("{given} is not a subnet: the address has bits behind the prefix; the subnet would be {meant}")]
    HostBits {
        /// What was given.
        given: String,
        /// The subnet that holds that address.
        meant: Subnet,
    },
}

impl Subnet {
    /// The subnet of that address and prefix length.
    ///
    /// # Errors
    /// The length is too long for the family, or `address` has bits behind the prefix.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, BadSubnet> {
        let subnet = Self::containing(address, prefix)?;
        if subnet.address() == address {
            Ok(subnet)
        } else {
            Err(BadSubnet::HostBits { given: format!("{address}/{prefix}"), meant: subnet })
        }
    }

    /// The subnet of that prefix length that holds `address`, whose host bits may be set.
    ///
    /// # Errors
    /// The length is too long for the family.
    pub fn containing(address: IpAddr, prefix: u8) -> Result<Self, BadSubnet> {
        let network =
            IpNetwork::new(address, prefix).map_err(|_| BadSubnet::Syntax(format!("{address}/{prefix}")))?;
        IpNetwork::new(network.network(), prefix)
            .map(Self)
            .map_err(|_| BadSubnet::Syntax(format!("{address}/{prefix}")))
    }

    /// The first address of the subnet.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.0.ip()
    }

    /// The prefix length in bits.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.0.prefix()
    }

    /// The last address of the subnet (in IPv4 the broadcast address).
    #[must_use]
    pub fn last(&self) -> IpAddr {
        self.0.broadcast()
    }

    /// The address `offset` behind the first one, where the subnet has it.
    #[must_use]
    pub fn nth(&self, offset: u128) -> Option<IpAddr> {
        let host_bits = self.width() - u32::from(self.prefix());
        if host_bits < 128 && offset >> host_bits != 0 {
            return None;
        }
        Some(match self.address() {
            IpAddr::V4(first) => IpAddr::V4((u32::from(first) + u32::try_from(offset).ok()?).into()),
            IpAddr::V6(first) => IpAddr::V6((u128::from(first) + offset).into()),
        })
    }

    /// `address` lies in this subnet.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(address)
    }

    /// All of `other` lies in this subnet.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.prefix() <= other.prefix() && self.contains(other.address())
    }

    /// The two have an address in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// IPv4, not IPv6.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.0.is_ipv4()
    }

    /// Bits of an address of this family.
    fn width(&self) -> u32 {
        if self.is_ipv4() { 32 } else { 128 }
    }
}

impl FromStr for Subnet {
    type Err = BadSubnet;

    fn from_str(text: &str) -> Result<Self, BadSubnet> {
        let bad = || BadSubnet::Syntax(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        if !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let (address, prefix) = (address.parse().map_err(|_| bad())?, prefix.parse().map_err(|_| bad())?);
        Self::new(address, prefix)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn a_subnet_has_no_host_bits() {
        assert_eq!(subnet("10.244.1.0/24").to_string(), "10.244.1.0/24");
        assert_eq!(
            "10.244.1.9/24".parse::<Subnet>().unwrap_err().to_string(),
            "10.244.1.9/24 is not a subnet: the address has bits behind the prefix; the subnet would be 10.244.1.0/24"
        );
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/+8", "fd00::/129", "10.0.0/8", "10.0.0.0/8/8"] {
            assert!(matches!(bad.parse::<Subnet>(), Err(BadSubnet::Syntax(_))), "{bad}");
        }
    }

    #[test]
    fn addresses_are_counted_from_the_first() {
        assert_eq!(subnet("10.244.1.0/24").nth(1), Some("10.244.1.1".parse().unwrap()));
        assert_eq!(subnet("10.244.1.0/24").nth(256), None);
        assert_eq!(subnet("0.0.0.0/0").nth(1 << 32), None);
        assert_eq!(subnet("255.255.255.255/32").nth(0), Some("255.255.255.255".parse().unwrap()));
        assert_eq!(
            subnet("::/0").nth(u128::MAX),
            Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap())
        );
        assert_eq!(subnet("10.244.1.0/24").last(), "10.244.1.255".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn overlap_is_symmetric_and_keeps_families_apart() {
        let (wide, narrow) = (subnet("172.16.0.0/16"), subnet("172.16.1.0/24"));
        assert!(
            wide.overlaps(&narrow) && narrow.overlaps(&wide) && wide.covers(&narrow) && !narrow.covers(&wide)
        );
        assert!(!narrow.overlaps(&subnet("172.16.2.0/24")));
        assert!(!subnet("0.0.0.0/0").overlaps(&subnet("::/0")));
    }
}

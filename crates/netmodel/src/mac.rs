//! Ethernet addresses.

use std::{fmt, str::FromStr};

/// An Ethernet (MAC-48) address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// A text that is no Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an Ethernet address: it must be six pairs of hex digits such as \"c6:d2:32:6f:8f:44\"")]
pub struct BadMac(String);

impl Mac {
    /// A unicast address of the locally administered range made of 6 arbitrary bytes
    /// (IEEE 802: bit 1 of the first byte set, bit 0 clear).
    #[must_use]
    pub const fn locally_administered(mut bytes: [u8; 6]) -> Self {
        bytes[0] = (bytes[0] & 0xfe) | 0x02;
        Self(bytes)
    }

    /// All six bytes are zero.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0 == [0; 6]
    }

    /// The group bit is set: multicast or broadcast.
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl FromStr for Mac {
    type Err = BadMac;

    /// Six pairs of hex digits, separated by `:` or `-`, in any letter case.
    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(text.to_owned());
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut bytes = [0; 6];
        let mut parts = text.split(separator);
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_in_any_case_and_written_in_lower() {
        assert_eq!("C6:D2:32:6F:8F:44".parse::<Mac>().unwrap().to_string(), "c6:d2:32:6f:8f:44");
        assert_eq!("c6-d2-32-6f-8f-44".parse::<Mac>().unwrap().to_string(), "c6:d2:32:6f:8f:44");
        for bad in
            ["", "c6", "c6:d2:32:6f:8f", "c6:d2:32:6f:8f:44:55", "c6:d2:32:6f:8f:4", "+6:d2:32:6f:8f:44"]
        {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_local_address_is_unicast() {
        let mac = Mac::locally_administered([0xff; 6]);
        assert_eq!(mac, Mac([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]));
        assert!(!mac.is_multicast() && Mac([1, 0, 0, 0, 0, 0]).is_multicast() && Mac::default().is_zero());
    }
}

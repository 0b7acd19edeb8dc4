//! Addresses of interfaces.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeader, AddressMessage, AddressScope},
};
use netmodel::IfName;

use crate::{
    Cause, Error,
    attribute::{address, attributes, garbled, number},
    netlink::{Message, Request, RouteSocket},
};

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the interface.
    pub device: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of its prefix in bits.
    pub prefix: u8,
    /// How far it is known.
    pub scope: Scope,
    /// It may be used at once: no duplicate-address detection (IPv6 only).
    pub nodad: bool,
    /// The kernel adds no route to its prefix.
    pub noprefixroute: bool,
    /// IPv6: duplicate-address detection still runs; set by the kernel.
    pub tentative: bool,
    /// IPv6: somebody else has it; set by the kernel.
    pub duplicate: bool,
    /// It was configured with a lifetime (DHCP, router advertisement); set by the kernel.
    pub dynamic: bool,
    /// It is no longer to be used for new connections; set by the kernel.
    pub deprecated: bool,
}

/// How far an address or the destination of a route is known (`RT_SCOPE_...`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Everywhere.
    Global,
    /// On the link alone.
    Link,
    /// On this host alone.
    Host,
    /// Another number.
    Other(u8),
}

impl Scope {
    /// The kernel's number.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Global => 0,
            Self::Link => 253,
            Self::Host => 254,
            Self::Other(number) => number,
        }
    }
}

impl From<u8> for Scope {
    fn from(number: u8) -> Self {
        match number {
            0 => Self::Global,
            253 => Self::Link,
            254 => Self::Host,
            number => Self::Other(number),
        }
    }
}

/// What becomes of an address that the interface has already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfPresent {
    /// The request fails with EEXIST.
    Fail,
    /// Success.
    Keep,
}

impl Address {
    /// A permanent address of global scope.
    #[must_use]
    pub const fn new(device: u32, address: IpAddr, prefix: u8) -> Self {
        Self {
            device,
            address,
            prefix,
            scope: Scope::Global,
            nodad: false,
            noprefixroute: false,
            tentative: false,
            duplicate: false,
            dynamic: false,
            deprecated: false,
        }
    }

    /// The request that adds it to the interface; `name` is for the error alone. An IPv4 subnet of more than
    /// two addresses gets its broadcast address.
    #[must_use]
    pub fn add(&self, name: &IfName, present: IfPresent) -> Request {
        let mut message = self.message();
        let mut flags = AddressFlags::empty();
        flags.set(AddressFlags::Nodad, self.nodad);
        flags.set(AddressFlags::Noprefixroute, self.noprefixroute);
        if !flags.is_empty() {
            message.attributes.push(AddressAttribute::Flags(flags));
        }
        message.attributes.extend(self.broadcast().map(AddressAttribute::Broadcast));
        let flags = match present {
            IfPresent::Fail => NLM_F_CREATE | NLM_F_EXCL,
            IfPresent::Keep => NLM_F_CREATE | netlink_packet_core::NLM_F_REPLACE,
        };
        Request::route("add", self.text(name), flags, &RouteNetlinkMessage::NewAddress(message))
    }

    /// The request that takes it from the interface; `name` is for the error alone.
    #[must_use]
    pub fn delete(&self, name: &IfName) -> Request {
        Request::route("delete", self.text(name), 0, &RouteNetlinkMessage::DelAddress(self.message()))
    }

    fn text(&self, name: &IfName) -> String {
        format!("address {}/{} dev {name}", self.address, self.prefix)
    }

    fn message(&self) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header = AddressHeader {
            family: if self.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 },
            prefix_len: self.prefix,
            scope: AddressScope::from(self.scope.number()),
            index: self.device,
            ..AddressHeader::default()
        };
        message.attributes =
            vec![AddressAttribute::Local(self.address), AddressAttribute::Address(self.address)];
        message
    }

    /// The last address of an IPv4 subnet, where it has one besides two hosts (RFC 3021).
    fn broadcast(&self) -> Option<Ipv4Addr> {
        match self.address {
            IpAddr::V4(address) if self.prefix < 31 => {
                Some((u32::from(address) | u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0)).into())
            }
            _ => None,
        }
    }
}

impl RouteSocket {
    /// The addresses of interface `device`, or of all, in both families.
    ///
    /// # Errors
    /// See [`Connection::dump`](crate::netlink::Connection::dump); there is no such interface
    /// ([`Error::is_not_found`]).
    pub fn addresses(&mut self, device: Option<u32>) -> Result<Vec<Address>, Error> {
        let mut message = AddressMessage::default();
        message.header.index = device.unwrap_or(0);
        let request = Request::list("addresses".to_owned(), &RouteNetlinkMessage::GetAddress(message));
        self.dump(&request, |message| {
            let address = read(message)?;
            Ok(address.filter(|address| device.is_none_or(|device| device == address.device)))
        })
    }
}

// Attribute numbers of linux/if_addr.h.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
/// Bytes of `struct ifaddrmsg`.
const HEADER: usize = 8;

/// Reads `RTM_NEWADDR`. `None`: it is of another family than IPv4 and IPv6.
fn read(message: Message<'_>) -> Result<Option<Address>, Cause> {
    let header = AddressHeader::parse(message.payload).map_err(|error| garbled(&error))?;
    let (mut local, mut other) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(header.flags.bits().into());
    for (kind, value) in attributes(message.payload, HEADER) {
        match kind {
            IFA_LOCAL => local = address(value),
            IFA_ADDRESS => other = address(value),
            IFA_FLAGS => flags = number(value).map_or(flags, AddressFlags::from_bits_retain),
            _ => {}
        }
    }
    // On a point-to-point interface the second one is the peer's.
    Ok(local.or(other).map(|address| Address {
        device: header.index,
        address,
        prefix: header.prefix_len,
        scope: u8::from(header.scope).into(),
        nodad: flags.contains(AddressFlags::Nodad),
        noprefixroute: flags.contains(AddressFlags::Noprefixroute),
        tentative: flags.contains(AddressFlags::Tentative),
        duplicate: flags.contains(AddressFlags::Dadfailed),
        dynamic: !flags.contains(AddressFlags::Permanent),
        deprecated: flags.contains(AddressFlags::Deprecated),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broadcast_address_is_the_last_of_a_subnet_with_hosts() {
        let of = |prefix| Address::new(1, "10.244.1.1".parse().unwrap(), prefix).broadcast();
        assert_eq!(of(24), Some(Ipv4Addr::new(10, 244, 1, 255)));
        assert_eq!(of(0), Some(Ipv4Addr::BROADCAST));
        assert_eq!((of(31), of(32)), (None, None));
        assert_eq!(Address::new(1, "fd00::1".parse().unwrap(), 64).broadcast(), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(payload: Vec<u8>) {
            let _ = read(Message { kind: 0, flags: 0, sequence: 0, port: 0, payload: &payload });
        }
    }
}

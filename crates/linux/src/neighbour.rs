//! Neighbour entries: which Ethernet address an IP address on a link has.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourHeader, NeighbourMessage, NeighbourState},
};
use netmodel::{IfName, Mac};

use crate::{
    Cause, Error,
    attribute::{address, attributes, garbled},
    netlink::{Message, Request, RouteSocket},
};

/// Set by somebody, not learned (linux/neighbour.h).
const NUD_PERMANENT: u16 = 0x80;

/// One neighbour entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Index of the interface.
    pub device: u32,
    /// The neighbour's IP address.
    pub address: IpAddr,
    /// Its Ethernet address; `None` while it is being asked for, or does not answer.
    pub mac: Option<Mac>,
    /// How much the kernel trusts the entry.
    pub state: State,
}

/// How much the kernel trusts an entry (`NUD_...`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Set by somebody; never asked for, never forgotten.
    Permanent,
    /// The interface needs no Ethernet address there: loopback, multicast.
    NoArp,
    /// Learned: reachable, stale, being asked for, failed, ...
    Learned(u16),
}

impl Neighbour {
    /// A permanent entry.
    #[must_use]
    pub const fn permanent(device: u32, address: IpAddr, mac: Mac) -> Self {
        Self { device, address, mac: Some(mac), state: State::Permanent }
    }

    /// The request that adds it. EEXIST if the address has an entry, learned ones included. `name` is the
    /// device's, for the error alone.
    #[must_use]
    pub fn add(&self, name: &IfName) -> Request {
        self.request("add", NLM_F_CREATE | NLM_F_EXCL, name)
    }

    /// The request that adds it in place of what there is for the address.
    #[must_use]
    pub fn replace(&self, name: &IfName) -> Request {
        self.request("replace", NLM_F_CREATE | NLM_F_REPLACE, name)
    }

    /// The request that deletes the entry of this address, whatever its Ethernet address. ENOENT if there is
    /// none.
    #[must_use]
    pub fn delete(&self, name: &IfName) -> Request {
        let mut message = self.message();
        message.attributes.truncate(1);
        Request::route("delete", self.text(name), 0, &RouteNetlinkMessage::DelNeighbour(message))
    }

    fn request(&self, verb: &'static str, flags: u16, name: &IfName) -> Request {
        Request::route(verb, self.text(name), flags, &RouteNetlinkMessage::NewNeighbour(self.message()))
    }

    fn text(&self, name: &IfName) -> String {
        match self.mac {
            Some(mac) => format!("neighbour {} lladdr {mac} dev {name}", self.address),
            None => format!("neighbour {} dev {name}", self.address),
        }
    }

    fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header = NeighbourHeader {
            family: if self.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 },
            ifindex: self.device,
            state: NeighbourState::from(self.state.number()),
            ..NeighbourHeader::default()
        };
        message.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::from(self.address))];
        message.attributes.extend(self.mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())));
        message
    }
}

/// The number of a neighbour's or forwarding entry's state says that it is permanent, possibly among other
/// things: `bridge` sets `NUD_NOARP` beside it.
#[must_use]
pub const fn is_permanent(state: u16) -> bool {
    state & NUD_PERMANENT != 0
}

impl State {
    const fn number(self) -> u16 {
        match self {
            Self::Permanent => NUD_PERMANENT,
            Self::NoArp => 0x40,
            Self::Learned(number) => number,
        }
    }
}

impl From<u16> for State {
    fn from(number: u16) -> Self {
        match number {
            NUD_PERMANENT => Self::Permanent,
            0x40 => Self::NoArp,
            number => Self::Learned(number),
        }
    }
}

/// How often the list is read until two readings agree.
const READINGS: usize = 16;

impl RouteSocket {
    /// The neighbour entries of interface `device` in both families, by address.
    ///
    /// The kernel keeps the entries of all network namespaces in one table. Whenever that grows, a list that
    /// is being read loses entries or repeats them, without a mark (seen in 6.18). So the list is read until
    /// two readings hold the same permanent entries.
    ///
    /// # Errors
    /// See [`Connection::dump`](crate::netlink::Connection::dump); no two readings agreed
    /// ([`Retry::Now`](crate::Retry::Now)).
    pub fn neighbours(&mut self, device: u32) -> Result<Vec<Neighbour>, Error> {
        let mut message = NeighbourMessage::default();
        message.attributes.push(NeighbourAttribute::IfIndex(device));
        let request = Request::list("neighbours".to_owned(), &RouteNetlinkMessage::GetNeighbour(message));
        let mut read_once = || -> Result<Vec<Neighbour>, Error> {
            let mut entries = self.dump(&request, |message| {
                Ok(read(message)?.filter(|neighbour| neighbour.device == device))
            })?;
            entries.sort_by_key(|entry| entry.address);
            entries.dedup_by_key(|entry| entry.address);
            Ok(entries)
        };
        let mut before = read_once()?;
        for _ in 1..READINGS {
            let now = read_once()?;
            if permanent(&before).eq(permanent(&now)) {
                return Ok(now);
            }
            before = now;
        }
        Err(request.failed(Cause::KeptChanging))
    }
}

/// The entries that change only when somebody changes them.
fn permanent(entries: &[Neighbour]) -> impl Iterator<Item = &Neighbour> {
    entries.iter().filter(|entry| entry.state == State::Permanent)
}

// Attribute numbers of linux/neighbour.h.
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// Bytes of `struct ndmsg`.
const HEADER: usize = 12;

/// Reads `RTM_NEWNEIGH`. `None`: it is of another family than IPv4 and IPv6.
fn read(message: Message<'_>) -> Result<Option<Neighbour>, Cause> {
    let header = NeighbourHeader::parse(message.payload).map_err(|error| garbled(&error))?;
    if !matches!(header.family, AddressFamily::Inet | AddressFamily::Inet6) {
        return Ok(None);
    }
    let (mut destination, mut mac) = (None, None);
    for (kind, value) in attributes(message.payload, HEADER) {
        match kind {
            NDA_DST => destination = address(value),
            NDA_LLADDR => mac = value.try_into().ok().map(Mac),
            _ => {}
        }
    }
    let state = u16::from(header.state).into();
    Ok(destination.map(|address| Neighbour { device: header.ifindex, address, mac, state }))
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(payload: Vec<u8>) {
            let _ = read(Message { kind: 0, flags: 0, sequence: 0, port: 0, payload: &payload });
        }
    }
}

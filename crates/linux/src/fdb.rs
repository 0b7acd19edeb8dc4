//! Forwarding entries of a VXLAN device, which node an Ethernet address is behind; and of a bridge, which port.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourMessage,
        NeighbourState,
    },
};
use netmodel::{IfName, Mac};

use crate::{
    Cause, Error,
    attribute::{address, attributes, garbled},
    neighbour::is_permanent,
    netlink::{Message, Request, RouteSocket},
};

/// One forwarding entry. An address of zeros stands for every address without an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Index of the VXLAN device.
    pub device: u32,
    /// The Ethernet address.
    pub mac: Mac,
    /// The node that it is behind; `None` in an entry of another kind of device.
    pub destination: Option<IpAddr>,
    /// Set by somebody, not learned.
    pub permanent: bool,
    /// It has a port, a VNI or an outgoing interface of its own, other than the device's. Only read, never
    /// written.
    pub special: bool,
}

impl Entry {
    /// A permanent entry.
    #[must_use]
    pub const fn permanent(device: u32, mac: Mac, destination: IpAddr) -> Self {
        Self { device, mac, destination: Some(destination), permanent: true, special: false }
    }

    /// The request that adds it. EEXIST if the address has an entry. `name` is the device's, for the error
    /// alone.
    #[must_use]
    pub fn add(&self, name: &IfName) -> Request {
        self.request("add", NLM_F_CREATE | NLM_F_EXCL, name)
    }

    /// The request that adds it in place of what there is for the address.
    #[must_use]
    pub fn replace(&self, name: &IfName) -> Request {
        self.request("replace", NLM_F_CREATE | NLM_F_REPLACE, name)
    }

    /// The request that adds a further destination. Only an address of zeros and multicast ones may have
    /// several.
    #[must_use]
    pub fn append(&self, name: &IfName) -> Request {
        self.request("append", NLM_F_CREATE | NLM_F_APPEND, name)
    }

    /// The request that deletes it; without a destination all of the address. ENOENT if there is none.
    #[must_use]
    pub fn delete(&self, name: &IfName) -> Request {
        Request::route("delete", self.text(name), 0, &RouteNetlinkMessage::DelNeighbour(self.message()))
    }

    fn request(&self, verb: &'static str, flags: u16, name: &IfName) -> Request {
        Request::route(verb, self.text(name), flags, &RouteNetlinkMessage::NewNeighbour(self.message()))
    }

    fn text(&self, name: &IfName) -> String {
        match self.destination {
            Some(destination) => format!("forwarding entry {} dst {destination} dev {name}", self.mac),
            None => format!("forwarding entry {} dev {name}", self.mac),
        }
    }

    fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header = NeighbourHeader {
            family: AddressFamily::Bridge,
            ifindex: self.device,
            state: if self.permanent { NeighbourState::Permanent } else { NeighbourState::Reachable },
            // The device itself holds it, not a bridge that it is a port of (NTF_SELF).
            flags: NeighbourFlags::Own,
            ..NeighbourHeader::default()
        };
        message.attributes = vec![NeighbourAttribute::LinkLayerAddress(self.mac.0.to_vec())];
        message
            .attributes
            .extend(self.destination.map(|to| NeighbourAttribute::Destination(NeighbourAddress::from(to))));
        message
    }
}

/// The request that sets Ethernet address `mac` to be behind bridge port `port`; `name` is for the error alone.
#[must_use]
pub fn set_behind(port: u32, mac: Mac, name: &IfName) -> Request {
    let mut message = NeighbourMessage::default();
    message.header = NeighbourHeader {
        family: AddressFamily::Bridge,
        ifindex: port,
        // It does not grow old. A permanent one would be the bridge's own address.
        state: NeighbourState::Noarp,
        flags: NeighbourFlags::Controller,
        ..NeighbourHeader::default()
    };
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
    let text = format!("forwarding entry {mac} dev {name} master");
    Request::route("add", text, NLM_F_CREATE | NLM_F_REPLACE, &RouteNetlinkMessage::NewNeighbour(message))
}

impl RouteSocket {
    /// The forwarding entries of VXLAN device `device`.
    ///
    /// # Errors
    /// See [`Connection::dump`](crate::netlink::Connection::dump); there is no such interface
    /// ([`Error::is_not_found`]).
    pub fn fdb(&mut self, device: u32) -> Result<Vec<Entry>, Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = device;
        let request =
            Request::list("forwarding entries".to_owned(), &RouteNetlinkMessage::GetNeighbour(message));
        self.dump(&request, |message| Ok(read(message)?.filter(|entry| entry.device == device)))
    }
}

// Attribute numbers of linux/neighbour.h.
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_PORT: u16 = 6;
const NDA_VNI: u16 = 7;
const NDA_IFINDEX: u16 = 8;
/// Bytes of `struct ndmsg`.
const HEADER: usize = 12;

/// Reads `RTM_NEWNEIGH` of the bridge family. `None`: it has no Ethernet address.
fn read(message: Message<'_>) -> Result<Option<Entry>, Cause> {
    let header = NeighbourHeader::parse(message.payload).map_err(|error| garbled(&error))?;
    let (mut destination, mut mac, mut special) = (None, None, false);
    for (kind, value) in attributes(message.payload, HEADER) {
        match kind {
            NDA_DST => destination = address(value),
            NDA_LLADDR => mac = value.try_into().ok().map(Mac),
            NDA_PORT | NDA_VNI | NDA_IFINDEX => special = true,
            _ => {}
        }
    }
    let permanent = is_permanent(header.state.into());
    Ok(mac.map(|mac| Entry { device: header.ifindex, mac, destination, permanent, special }))
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

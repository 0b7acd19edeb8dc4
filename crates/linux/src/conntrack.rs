//! Connection tracking: which flows the kernel remembers, and making it forget some.
//!
//! A flow has two directions. What a client sends to a Service is the original one; the reply's source is the
//! endpoint that was chosen for it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use netmodel::Protocol;

use crate::{
    Error,
    attribute::{address, attributes, nest, put},
    netlink::{self, Connection, Message, Request},
    netns::Netns,
};

/// One flow that the kernel remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its transport protocol.
    pub protocol: Protocol,
    /// As it was sent.
    pub original: Tuple,
    /// As it is answered: source and destination reversed, and rewritten by NAT.
    pub reply: Tuple,
    /// `IPS_...` bits (linux/netfilter/nf_conntrack_common.h).
    pub status: u32,
    /// The tracking zone; 0 unless somebody set one.
    pub zone: u16,
    /// The kernel's number of it, made of its addresses and its place in memory: it mostly tells it from a
    /// later flow with the same addresses.
    pub id: Option<u32>,
}

/// The addresses of one direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Who sends.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
}

/// Which flows to list. What is `None` matches all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// IPv4 or IPv6.
    pub ipv4: bool,
    /// Their transport protocol.
    pub protocol: Protocol,
    /// Address that the client sent to.
    pub destination: Option<IpAddr>,
    /// Port that the client sent to.
    pub destination_port: Option<u16>,
    /// Address that answers: the endpoint.
    pub endpoint: Option<IpAddr>,
    /// Port that answers.
    pub endpoint_port: Option<u16>,
}

impl Filter {
    /// All flows of one protocol and family.
    #[must_use]
    pub const fn all(protocol: Protocol, ipv4: bool) -> Self {
        Self {
            ipv4,
            protocol,
            destination: None,
            destination_port: None,
            endpoint: None,
            endpoint_port: None,
        }
    }

    /// `flow` is one of those.
    #[must_use]
    pub fn wants(&self, flow: &Flow) -> bool {
        let (sent_to, answers) = (flow.original.destination, flow.reply.source);
        flow.protocol == self.protocol
            && sent_to.is_ipv4() == self.ipv4
            && self.destination.is_none_or(|address| address == sent_to.ip())
            && self.destination_port.is_none_or(|port| port == sent_to.port())
            && self.endpoint.is_none_or(|address| address == answers.ip())
            && self.endpoint_port.is_none_or(|port| port == answers.port())
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, original, reply, .. } = self;
        write!(
            f,
            "{protocol} flow {} to {}, answered by {}",
            original.source, original.destination, reply.source
        )
    }
}

/// A connection to the part of the kernel that tracks connections.
#[derive(Debug)]
pub struct Socket {
    connection: Connection,
}

impl Socket {
    /// Opens a connection in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel lacks netfilter's netlink, or no descriptor is free.
    pub fn open() -> Result<Self, Error> {
        Connection::open(netlink::Protocol::Netfilter).map(|connection| Self { connection })
    }

    /// Opens a connection in `namespace`.
    ///
    /// # Errors
    /// As [`open`](Self::open), or the namespace could not be entered.
    pub fn open_in(namespace: &Netns) -> Result<Self, Error> {
        Connection::open_in(netlink::Protocol::Netfilter, namespace).map(|connection| Self { connection })
    }

    /// The flows that `filter` asks for; the kernel picks them, but for IPv6 addresses. A flow that begins or
    /// ends meanwhile may be missing or be listed.
    ///
    /// # Errors
    /// See [`Connection::dump`]; the privilege is missing.
    pub fn flows(&mut self, filter: &Filter) -> Result<Vec<Flow>, Error> {
        let object = format!("{} flows", filter.protocol);
        let request = Request { verb: "list", object, kind: GET, flags: 0, payload: filter_bytes(filter) };
        let listed = self.connection.dump(&request, |message| Ok(read(message).filter(|f| filter.wants(f))));
        listed.map_err(|e| e.lacking(libc::EINVAL, "netlink for connection tracking (CONFIG_NF_CT_NETLINK)"))
    }

    /// Makes the kernel forget these flows, pipelined; one result for each. A flow that is gone already is a
    /// success.
    pub fn delete(&mut self, flows: &[Flow]) -> Vec<Result<(), Error>> {
        let requests: Vec<Request> = flows.iter().map(delete_request).collect();
        let settle =
            |result: Result<(), Error>| result.or_else(|e| if e.is_not_found() { Ok(()) } else { Err(e) });
        self.connection.apply(&requests).into_iter().map(settle).collect()
    }
}

// linux/netfilter/nfnetlink_conntrack.h; the upper byte of a type is the subsystem, 1.
const GET: u16 = 0x101;
const DELETE: u16 = 0x102;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const BY_IP_SRC: u32 = 1;
const BY_IP_DST: u32 = 1 << 1;
const BY_PROTO_NUM: u32 = 1 << 3;
const BY_SRC_PORT: u32 = 1 << 4;
const BY_DST_PORT: u32 = 1 << 5;
/// Bytes of `struct nfgenmsg`: family, version, resource.
const HEADER: usize = 4;

fn header(ipv4: bool) -> Vec<u8> {
    let family = if ipv4 { libc::AF_INET } else { libc::AF_INET6 };
    vec![family as u8, 0, 0, 0]
}

/// One end of a direction: address and port, each only if it is known.
type End = (Option<IpAddr>, Option<u16>);

/// Appends one direction; what is not known is left out.
fn put_tuple(bytes: &mut Vec<u8>, kind: u16, protocol: Protocol, source: End, destination: End) {
    nest(bytes, kind, |tuple| {
        nest(tuple, CTA_TUPLE_IP, |ip| {
            put_address(ip, CTA_IP_V4_SRC, CTA_IP_V6_SRC, source.0);
            put_address(ip, CTA_IP_V4_DST, CTA_IP_V6_DST, destination.0);
        });
        nest(tuple, CTA_TUPLE_PROTO, |proto| {
            put(proto, CTA_PROTO_NUM, &[protocol.number()]);
            for (kind, port) in [(CTA_PROTO_SRC_PORT, source.1), (CTA_PROTO_DST_PORT, destination.1)] {
                if let Some(port) = port {
                    put(proto, kind, &port.to_be_bytes());
                }
            }
        });
    });
}

fn put_address(bytes: &mut Vec<u8>, v4: u16, v6: u16, address: Option<IpAddr>) {
    match address {
        Some(IpAddr::V4(address)) => put(bytes, v4, &address.octets()),
        Some(IpAddr::V6(address)) => put(bytes, v6, &address.octets()),
        None => {}
    }
}

fn filter_bytes(filter: &Filter) -> Vec<u8> {
    let mut bytes = header(filter.ipv4);
    // The kernel leaves out the flows with the very IPv6 address that is asked for, and lists all others (seen
    // in 6.18: the comparison is inverted), so those are picked here.
    let filter = if filter.ipv4 { *filter } else { Filter { destination: None, endpoint: None, ..*filter } };
    let bit = |is_set: bool, bit: u32| if is_set { bit } else { 0 };
    let original = BY_PROTO_NUM
        | bit(filter.destination.is_some(), BY_IP_DST)
        | bit(filter.destination_port.is_some(), BY_DST_PORT);
    let reply = bit(filter.endpoint.is_some(), BY_IP_SRC) | bit(filter.endpoint_port.is_some(), BY_SRC_PORT);
    let (sent_to, answers) =
        ((filter.destination, filter.destination_port), (filter.endpoint, filter.endpoint_port));
    put_tuple(&mut bytes, CTA_TUPLE_ORIG, filter.protocol, (None, None), sent_to);
    if reply != 0 {
        put_tuple(&mut bytes, CTA_TUPLE_REPLY, filter.protocol, answers, (None, None));
    }
    nest(&mut bytes, CTA_FILTER, |flags| {
        put(flags, CTA_FILTER_ORIG_FLAGS, &original.to_ne_bytes());
        if reply != 0 {
            put(flags, CTA_FILTER_REPLY_FLAGS, &(reply | BY_PROTO_NUM).to_ne_bytes());
        }
    });
    bytes
}

fn delete_request(flow: &Flow) -> Request {
    let end = |address: SocketAddr| (Some(address.ip()), Some(address.port()));
    let mut payload = header(flow.original.source.is_ipv4());
    // Never without a tuple: that would mean every flow.
    let Tuple { source, destination } = flow.original;
    put_tuple(&mut payload, CTA_TUPLE_ORIG, flow.protocol, end(source), end(destination));
    if flow.zone != 0 {
        put(&mut payload, CTA_ZONE, &flow.zone.to_be_bytes());
    }
    if let Some(id) = flow.id {
        put(&mut payload, CTA_ID, &id.to_be_bytes());
    }
    Request { verb: "delete", object: flow.to_string(), kind: DELETE, flags: 0, payload }
}

/// Reads one flow. `None`: its protocol has no ports.
fn read(message: Message<'_>) -> Option<Flow> {
    let (mut original, mut reply) = (None, None);
    let (mut status, mut zone, mut id) = (0, 0, None);
    for (kind, value) in attributes(message.payload, HEADER) {
        match kind {
            CTA_TUPLE_ORIG => original = read_tuple(value),
            CTA_TUPLE_REPLY => reply = read_tuple(value),
            CTA_STATUS => status = value.try_into().map_or(0, u32::from_be_bytes),
            CTA_ZONE => zone = value.try_into().map_or(0, u16::from_be_bytes),
            CTA_ID => id = value.try_into().ok().map(u32::from_be_bytes),
            _ => {}
        }
    }
    let ((protocol, original), (_, reply)) = (original?, reply?);
    Some(Flow { protocol, original, reply, status, zone, id })
}

fn read_tuple(value: &[u8]) -> Option<(Protocol, Tuple)> {
    let (mut protocol, mut source, mut destination) = (None, (None, None), (None, None));
    for (part, value) in attributes(value, 0) {
        for (kind, value) in attributes(value, 0) {
            match (part, kind) {
                (CTA_TUPLE_IP, CTA_IP_V4_SRC | CTA_IP_V6_SRC) => source.0 = address(value),
                (CTA_TUPLE_IP, CTA_IP_V4_DST | CTA_IP_V6_DST) => destination.0 = address(value),
                (CTA_TUPLE_PROTO, CTA_PROTO_NUM) => {
                    protocol = value.first().copied().and_then(Protocol::from_number);
                }
                (CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT) => source.1 = port(value),
                (CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT) => destination.1 = port(value),
                _ => {}
            }
        }
    }
    let end = |(address, port): End| Some(SocketAddr::new(address?, port?));
    Some((protocol?, Tuple { source: end(source)?, destination: end(destination)? }))
}

fn port(value: &[u8]) -> Option<u16> {
    value.try_into().ok().map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_read_back() {
        for (client, service, endpoint) in [
            ("10.244.1.7:4711", "10.254.0.10:53", "10.244.2.5:5353"),
            ("[fd00::7]:4711", "[fd01::10]:53", "[fd00:2::5]:5353"),
        ] {
            let [client, service, endpoint] = [client, service, endpoint].map(|text| text.parse().unwrap());
            let flow = Flow {
                protocol: Protocol::Udp,
                original: Tuple { source: client, destination: service },
                reply: Tuple { source: endpoint, destination: client },
                status: 0,
                zone: 7,
                id: Some(99),
            };
            let mut payload = delete_request(&flow).payload;
            let end = |address: SocketAddr| (Some(address.ip()), Some(address.port()));
            put_tuple(&mut payload, CTA_TUPLE_REPLY, Protocol::Udp, end(endpoint), end(client));
            let read = read(Message { kind: GET, flags: 0, sequence: 0, port: 0, payload: &payload });
            assert_eq!(read, Some(flow));
        }
    }

    #[test]
    fn a_filter_packs_only_what_it_asks_for() {
        let bytes = filter_bytes(&Filter { destination_port: Some(53), ..Filter::all(Protocol::Udp, true) });
        let golden: &[&[u8]] = &[
            &[2, 0, 0, 0],
            // CTA_TUPLE_ORIG: no address; UDP, destination port 53
            &[28, 0, 1, 128, 4, 0, 1, 128, 20, 0, 2, 128, 5, 0, 1, 0, 17, 0, 0, 0, 6, 0, 3, 0, 0, 53, 0, 0],
            // CTA_FILTER: protocol and destination port
            &[12, 0, 25, 128, 8, 0, 1, 0, 0b10_1000, 0, 0, 0],
        ];
        assert_eq!(bytes, golden.concat());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(payload: Vec<u8>) {
            let _ = read(Message { kind: 0, flags: 0, sequence: 0, port: 0, payload: &payload });
        }
    }
}

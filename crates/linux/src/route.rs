//! Routes.

use std::{fmt, net::IpAddr};

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
        RouteType,
    },
};
use netmodel::{IfName, Mtu, ROUTE_PROTOCOL, Subnet};

pub use crate::address::Scope;
use crate::{
    Cause, Error,
    attribute::{address, attributes, garbled, number},
    netlink::{Message, Request, RouteSocket},
};

/// The table of ordinary routes (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;
/// The protocol of routes that the kernel made itself (`RTPROT_KERNEL`).
pub const KERNEL_PROTOCOL: u8 = 2;
/// The protocol of routes that were made by hand (`RTPROT_BOOT`, what `ip route` takes).
pub const BOOT_PROTOCOL: u8 = 3;
/// The protocol of routes from routers' advertisements (`RTPROT_RA`).
pub const ADVERTISED_PROTOCOL: u8 = 9;

/// One route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads; `0.0.0.0/0` and `::/0` are default routes.
    pub destination: Subnet,
    /// The next router.
    pub gateway: Option<IpAddr>,
    /// Index of the interface that it leaves by.
    pub device: Option<u32>,
    /// Its priority: of two routes to one destination the lower one is taken. `None` leaves it to the
    /// kernel: 0 in IPv4, 1024 in IPv6.
    pub metric: Option<u32>,
    /// Who made it (`rtm_protocol`): 2 the kernel, 3 `ip route`, 154 we.
    pub protocol: u8,
    /// How far its destination is (IPv4 only).
    pub scope: Scope,
    /// The gateway is taken to be on the device's link even if no address says so.
    pub onlink: bool,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Number of the routing table.
    pub table: u32,
    /// Largest packet on this path, in bytes.
    pub mtu: Option<Mtu>,
    /// The maximal segment size that TCP advertises on this path, in bytes.
    pub advmss: Option<u32>,
    /// What happens to a packet.
    pub kind: Kind,
    /// The ways of a route with several; empty otherwise. Only read, never written.
    pub multipath: Vec<NextHop>,
}

/// One way of a route with several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Index of the interface that it leaves by.
    pub device: u32,
    /// The next router.
    pub gateway: Option<IpAddr>,
}

/// What a route does with a packet (`RTN_...`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sends it on.
    Unicast,
    /// Delivers it to this host.
    Local,
    /// Drops it.
    Blackhole,
    /// Anything else: broadcast, unreachable, ...
    Other(u8),
}

/// Which routes to list. What is `None` matches all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// IPv4 or IPv6.
    pub ipv4: bool,
    /// Number of the routing table.
    pub table: Option<u32>,
    /// Who made it.
    pub protocol: Option<u8>,
    /// Index of the interface that it leaves by.
    pub device: Option<u32>,
}

/// The way that a packet would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Index of the interface that it would leave by.
    pub device: u32,
    /// The next router, if it is not on the link.
    pub gateway: Option<IpAddr>,
    /// The source address that it would have.
    pub source: Option<IpAddr>,
    /// Where it would go.
    pub kind: Kind,
}

impl Route {
    /// A route to `destination` in the main table with our protocol number, and nothing else.
    #[must_use]
    pub const fn to(destination: Subnet) -> Self {
        Self {
            destination,
            gateway: None,
            device: None,
            metric: None,
            protocol: ROUTE_PROTOCOL,
            scope: Scope::Global,
            onlink: false,
            source: None,
            table: MAIN_TABLE,
            mtu: None,
            advmss: None,
            kind: Kind::Unicast,
            multipath: Vec::new(),
        }
    }

    /// The request that adds it. EEXIST if there is one to the same destination with the same metric.
    /// `name` is the device's, for the error alone.
    #[must_use]
    pub fn add(&self, name: &IfName) -> Request {
        self.request("add", NLM_F_CREATE | NLM_F_EXCL, name)
    }

    /// The request that adds it behind those to the same destination with the same metric; in IPv6 they become
    /// one route with several ways. EEXIST if it is there itself.
    #[must_use]
    pub fn append(&self, name: &IfName) -> Request {
        self.request("add", NLM_F_CREATE | NLM_F_APPEND, name)
    }

    /// The request that adds it in place of one to the same destination with the same metric.
    #[must_use]
    pub fn replace(&self, name: &IfName) -> Request {
        self.request("replace", NLM_F_CREATE | NLM_F_REPLACE, name)
    }

    /// The request that deletes it: ESRCH if no route has the same destination, table, protocol, and of
    /// gateway, device, metric and source those that are set here.
    #[must_use]
    pub fn delete(&self, name: &IfName) -> Request {
        let mut message = self.message();
        // Any: IPv4 would compare it.
        message.header.scope = RouteScope::NoWhere;
        message.header.flags = RouteFlags::empty();
        Request::route("delete", self.text(name), 0, &RouteNetlinkMessage::DelRoute(message))
    }

    fn request(&self, verb: &'static str, flags: u16, name: &IfName) -> Request {
        Request::route(verb, self.text(name), flags, &RouteNetlinkMessage::NewRoute(self.message()))
    }

    fn text(&self, name: &IfName) -> String {
        format!("route {self} dev {name}")
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(self.destination.is_ipv4()),
            destination_prefix_length: self.destination.prefix(),
            // Larger numbers go into an attribute.
            table: u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
            protocol: RouteProtocol::from(self.protocol),
            scope: RouteScope::from(self.scope.number()),
            kind: RouteType::from(self.kind.number()),
            flags: if self.onlink { RouteFlags::Onlink } else { RouteFlags::empty() },
            ..RouteHeader::default()
        };
        let attributes = &mut message.attributes;
        if self.destination.prefix() != 0 {
            attributes.push(RouteAttribute::Destination(self.destination.address().into()));
        }
        if message.header.table == RouteHeader::RT_TABLE_UNSPEC {
            attributes.push(RouteAttribute::Table(self.table));
        }
        attributes.extend(self.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
        attributes.extend(self.device.map(RouteAttribute::Oif));
        attributes.extend(self.metric.map(RouteAttribute::Priority));
        attributes.extend(self.source.map(|source| RouteAttribute::PrefSource(source.into())));
        let mtu = self.mtu.map(|mtu| RouteMetric::Mtu(mtu.get().into()));
        let metrics: Vec<_> = mtu.into_iter().chain(self.advmss.map(RouteMetric::Advmss)).collect();
        attributes.extend((!metrics.is_empty()).then_some(RouteAttribute::Metrics(metrics)));
        message
    }
}

/// As `ip route` shows it, but for the device, which is only a number here.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        self.gateway.map_or(Ok(()), |gateway| write!(f, " via {gateway}"))?;
        self.metric.map_or(Ok(()), |metric| write!(f, " metric {metric}"))
    }
}

impl Kind {
    const fn number(self) -> u8 {
        match self {
            Self::Unicast => 1,
            Self::Local => 2,
            Self::Blackhole => 6,
            Self::Other(number) => number,
        }
    }
}

impl From<u8> for Kind {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::Unicast,
            2 => Self::Local,
            6 => Self::Blackhole,
            number => Self::Other(number),
        }
    }
}

impl Filter {
    /// All routes of the main table of one family.
    #[must_use]
    pub const fn main(ipv4: bool) -> Self {
        Self { ipv4, table: Some(MAIN_TABLE), protocol: None, device: None }
    }

    fn wants(&self, route: &Route) -> bool {
        let by_device =
            |device| route.device == Some(device) || route.multipath.iter().any(|hop| hop.device == device);
        self.table.is_none_or(|table| table == route.table)
            && self.protocol.is_none_or(|protocol| protocol == route.protocol)
            && self.device.is_none_or(by_device)
    }
}

impl RouteSocket {
    /// The routes that `filter` asks for.
    ///
    /// # Errors
    /// See [`Connection::dump`](crate::netlink::Connection::dump); there is no such interface
    /// ([`Error::is_not_found`]).
    pub fn routes(&mut self, filter: Filter) -> Result<Vec<Route>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(filter.ipv4);
        message.header.protocol = RouteProtocol::from(filter.protocol.unwrap_or(0));
        message.attributes.extend(filter.table.map(RouteAttribute::Table));
        message.attributes.extend(filter.device.map(RouteAttribute::Oif));
        let request = Request::list("routes".to_owned(), &RouteNetlinkMessage::GetRoute(message));
        let listed = self.dump(&request, |message| Ok(read(message)?.filter(|route| filter.wants(route))));
        match listed {
            // The table was never used.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
            listed => listed,
        }
    }

    /// The way that a packet to `address` would take now; `None` if there is no route.
    ///
    /// # Errors
    /// The kernel refused it for another reason, or did not answer.
    pub fn way_to(&mut self, address: IpAddr) -> Result<Option<Way>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(address.is_ipv4());
        message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(address.into()));
        let request = Request::route(
            "find",
            format!("a route to {address}"),
            0,
            &RouteNetlinkMessage::GetRoute(message),
        );
        let unreachable = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EINVAL, libc::EACCES];
        match self.ask(&request, read) {
            Ok(routes) => Ok(routes.into_iter().flatten().find_map(|route| {
                let Route { gateway, source, kind, .. } = route;
                Some(Way { device: route.device?, gateway, source, kind })
            })),
            Err(error) if error.raw_os_error().is_some_and(|errno| unreachable.contains(&errno)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

const fn family(ipv4: bool) -> AddressFamily {
    if ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

// Attribute numbers of linux/rtnetlink.h.
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
/// Bytes of `struct rtmsg`.
const HEADER: usize = 12;
/// Bytes of `struct rtnexthop`: length, flags, hops, index.
const NEXT_HOP: usize = 8;

/// Reads `RTM_NEWROUTE`. `None`: it is of another family than IPv4 and IPv6.
fn read(message: Message<'_>) -> Result<Option<Route>, Cause> {
    let header = RouteHeader::parse(message.payload).map_err(|error| garbled(&error))?;
    let ipv4 = match header.address_family {
        AddressFamily::Inet => true,
        AddressFamily::Inet6 => false,
        _ => return Ok(None),
    };
    let mut destination = if ipv4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let unknown = Subnet::new(destination, 0).map_err(|error| Cause::Garbled(error.to_string()))?;
    let mut route = Route {
        protocol: header.protocol.into(),
        scope: u8::from(header.scope).into(),
        onlink: header.flags.contains(RouteFlags::Onlink),
        table: header.table.into(),
        kind: u8::from(header.kind).into(),
        ..Route::to(unknown)
    };
    for (kind, value) in attributes(message.payload, HEADER) {
        match kind {
            RTA_DST => destination = address(value).unwrap_or(destination),
            RTA_OIF => route.device = number(value),
            RTA_GATEWAY => route.gateway = address(value),
            RTA_VIA => route.gateway = value.get(2..).and_then(address),
            RTA_PRIORITY => route.metric = number(value),
            RTA_PREFSRC => route.source = address(value),
            RTA_METRICS => {
                route.mtu = metric(value, RTAX_MTU).and_then(|mtu| Mtu::try_from(u64::from(mtu)).ok());
                route.advmss = metric(value, RTAX_ADVMSS);
            }
            RTA_MULTIPATH => route.multipath = next_hops(value),
            RTA_TABLE => route.table = number(value).unwrap_or(route.table),
            _ => {}
        }
    }
    route.destination = Subnet::containing(destination, header.destination_prefix_length)
        .map_err(|error| Cause::Garbled(error.to_string()))?;
    Ok(Some(route))
}

/// One of the metrics of a route.
fn metric(metrics: &[u8], wanted: u16) -> Option<u32> {
    attributes(metrics, 0).find(|(kind, _)| *kind == wanted).and_then(|(_, value)| number(value))
}

/// The ways of a route with several.
fn next_hops(mut bytes: &[u8]) -> Vec<NextHop> {
    let mut hops = Vec::new();
    while let Some((length, device)) = bytes.get(..NEXT_HOP).and_then(|header| {
        Some((u16::from_ne_bytes(*header.first_chunk()?).into(), u32::from_ne_bytes(*header.last_chunk()?)))
    }) {
        let Some(hop) = bytes.get(..length).filter(|hop| hop.len() >= NEXT_HOP) else { break };
        let gateway = attributes(hop, NEXT_HOP).find_map(|(kind, value)| match kind {
            RTA_GATEWAY => address(value),
            RTA_VIA => value.get(2..).and_then(address),
            _ => None,
        });
        hops.push(NextHop { device, gateway });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    hops
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_whole_route() {
        let route = Route {
            gateway: Some("10.244.3.0".parse().unwrap()),
            metric: Some(3),
            ..Route::to("10.244.3.0/24".parse().unwrap())
        };
        let error = route.add(&"flannel.1".parse().unwrap()).failed(Cause::KeptChanging);
        assert_eq!(
            error.to_string(),
            "failed to add route 10.244.3.0/24 via 10.244.3.0 metric 3 dev flannel.1"
        );
    }

    #[test]
    fn what_is_packed_is_read_back() {
        for text in ["10.244.3.0/24", "0.0.0.0/0", "fd00:1::/64", "::/0"] {
            let destination: Subnet = text.parse().unwrap();
            let gateway = if destination.is_ipv4() { "10.244.3.0" } else { "fd00:1::" };
            let route = Route {
                gateway: gateway.parse().ok(),
                device: Some(7),
                metric: Some(u32::MAX),
                scope: Scope::Link,
                onlink: true,
                source: gateway.parse().ok(),
                table: 100_000,
                mtu: Mtu::try_from(1400).ok(),
                advmss: Some(1360),
                ..Route::to(destination)
            };
            let request = route.add(&"x".parse().unwrap());
            let message = Message { kind: 24, flags: 0, sequence: 0, port: 0, payload: &request.payload };
            assert_eq!(read(message).unwrap(), Some(route));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(payload: Vec<u8>) {
            let _ = read(Message { kind: 0, flags: 0, sequence: 0, port: 0, payload: &payload });
        }
    }
}

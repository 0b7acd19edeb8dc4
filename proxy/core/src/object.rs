//! Objects as the proxy keeps them: checked, small, and shared between those who hold them.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use netmodel::{NodeName, Subnet};

use crate::{
    endpoints::Slice,
    services::Service,
    wire::{self, BadObject},
};

/// `namespace/name`, ordered as that text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(Arc<str>);

impl ObjectName {
    /// The name of an object in a namespace; no namespace means `default`.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        let namespace = if namespace.is_empty() { "default" } else { namespace };
        Self(format!("{namespace}/{name}").into())
    }

    /// `namespace/name`
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&wire::Meta> for ObjectName {
    fn from(meta: &wire::Meta) -> Self {
        Self::new(&meta.namespace, &meta.name)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What kind an object is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `Service`
    Service,
    /// `EndpointSlice`
    EndpointSlice,
    /// `Endpoints`
    Endpoints,
    /// `Node`
    Node,
    /// `ServiceCIDR`
    ServiceCidr,
}

impl Kind {
    /// As manifests write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Endpoints => "Endpoints",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }
}

/// What an object is known by: there is one of each key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its name; kinds without namespaces lie in `default` here.
    pub name: ObjectName,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// A checked object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Service that this proxy serves.
    Service(Service),
    /// An EndpointSlice or Endpoints.
    Slice(Slice),
    /// The addresses of a Node at which it can be reached from within the cluster (`InternalIP`).
    Node(Box<[IpAddr]>),
    /// The ranges of a ServiceCIDR.
    ServiceCidr(Box<[Subnet]>),
}

/// Checks one object. `node` is the node that we run on.
///
/// `None` stands for an object that is fine and none of ours: a headless Service, one without cluster IP or of
/// type ExternalName, one of another proxy, a slice without a Service or of host names.
///
/// # Errors
/// A field that matters can't be used; the object is named.
pub fn check(object: &wire::Object, node: &NodeName) -> Result<Option<(Key, Object)>, BadObject> {
    let (kind, meta) = match object {
        wire::Object::Service(service) => (Kind::Service, &service.metadata),
        wire::Object::EndpointSlice(slice) => (Kind::EndpointSlice, &slice.metadata),
        wire::Object::Endpoints(endpoints) => (Kind::Endpoints, &endpoints.metadata),
        wire::Object::Node(node) => (Kind::Node, &node.metadata),
        wire::Object::ServiceCidr(range) => (Kind::ServiceCidr, &range.metadata),
    };
    let key = Key { kind, name: meta.into() };
    let checked = match object {
        wire::Object::Service(service) => Service::check(service).map(|s| s.map(Object::Service)),
        wire::Object::EndpointSlice(slice) => Slice::check(slice, node).map(|s| s.map(Object::Slice)),
        wire::Object::Endpoints(endpoints) => {
            Slice::check_endpoints(endpoints, node).map(|s| Some(Object::Slice(s)))
        }
        wire::Object::Node(node) => check_node(node).map(Some),
        wire::Object::ServiceCidr(range) => check_ranges(range).map(Some),
    };
    match checked {
        Ok(object) => Ok(object.map(|object| (key, object))),
        Err(why) => Err(BadObject { kind: kind.as_str().to_owned(), name: key.name.to_string(), why }),
    }
}

/// What of an object that is fine is not served, though the rest is, in one line.
#[must_use]
pub fn remark(object: &wire::Object) -> Option<String> {
    match object {
        wire::Object::Service(service) => {
            let unserved = service.unserved().join(", ");
            (!unserved.is_empty()).then(|| format!("{unserved}: not in this version; it is served without"))
        }
        wire::Object::EndpointSlice(slice) => {
            special_among(slice.endpoints.iter().filter_map(|endpoint| endpoint.addresses.first()))
        }
        wire::Object::Endpoints(endpoints) => {
            let all = endpoints.subsets.iter().flat_map(|s| s.addresses.iter().chain(&s.not_ready_addresses));
            special_among(all.map(|address| &address.ip))
        }
        wire::Object::Node(_) | wire::Object::ServiceCidr(_) => None,
    }
}

fn special_among<'a>(addresses: impl Iterator<Item = &'a String>) -> Option<String> {
    let parsed: BTreeSet<IpAddr> = addresses.filter_map(|text| parse_ip(text).ok()).collect();
    let named = |address: &IpAddr| special(*address).map(|what| format!("{address} is {what}"));
    let named: Vec<_> = parsed.iter().filter_map(named).collect();
    (!named.is_empty())
        .then(|| format!("{}: no endpoint can be that; it is served without", named.join(", ")))
}

fn check_node(node: &wire::Node) -> Result<Object, String> {
    let internal = node.status.addresses.iter().filter(|address| address.kind == "InternalIP");
    internal.map(|address| parse_ip(&address.address)).collect::<Result<_, _>>().map(Object::Node)
}

fn check_ranges(range: &wire::ServiceCidr) -> Result<Object, String> {
    let ranges = range.spec.cidrs.iter().map(|text| text.trim().parse().map_err(|error| format!("{error}")));
    ranges.collect::<Result<_, _>>().map(Object::ServiceCidr)
}

/// Reads an address. Numbers of an IPv4 address may have leading zeros, as in `172.30.0.041`, which older
/// clusters still hold; they are decimal all the same.
///
/// # Errors
/// The text is no address; the error says so in one line.
pub fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let bad = || format!("{text:?} is not an IP address");
    let text = text.trim();
    if text.contains(':') {
        return text.parse().map_err(|_| bad());
    }
    let decimal = |part: &str| {
        let digits = part.trim_start_matches('0');
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        if digits.is_empty() { Some(0) } else { digits.parse::<u8>().ok() }
    };
    let octets: Option<Vec<u8>> = text.split('.').map(decimal).collect();
    let octets: [u8; 4] = octets.ok_or_else(bad)?.try_into().map_err(|_| bad())?;
    Ok(IpAddr::from(octets))
}

/// Why an address can be neither a Service's nor an endpoint's, as the API server says of endpoints: it has a meaning
/// of its own on each host, and rules for it would cut the host off from itself.
#[must_use]
pub(crate) fn special(address: IpAddr) -> Option<&'static str> {
    let address = address.to_canonical();
    let (broadcast, link_local) = match address {
        IpAddr::V4(v4) => (v4.is_broadcast(), v4.is_link_local()),
        IpAddr::V6(v6) => (false, v6.is_unicast_link_local()),
    };
    let classes = [
        (address.is_unspecified(), "the unspecified address"),
        (address.is_loopback(), "a loopback address"),
        (address.is_multicast(), "a multicast address"),
        (broadcast, "the broadcast address"),
        (link_local, "a link-local address"),
    ];
    classes.into_iter().find(|(is, _)| *is).map(|(_, what)| what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_told_by_name() {
        for (address, what) in [
            ("0.0.0.0", Some("the unspecified address")),
            ("127.8.0.1", Some("a loopback address")),
            ("::ffff:127.0.0.1", Some("a loopback address")),
            ("224.0.0.5", Some("a multicast address")),
            ("255.255.255.255", Some("the broadcast address")),
            ("169.254.0.1", Some("a link-local address")),
            ("::", Some("the unspecified address")),
            ("::1", Some("a loopback address")),
            ("ff02::1", Some("a multicast address")),
            ("fe80::1", Some("a link-local address")),
            ("10.96.0.1", None),
            ("fd00::1", None),
        ] {
            assert_eq!(special(address.parse().unwrap()), what, "{address}");
        }
    }

    #[test]
    fn leading_zeros_of_ipv4_are_decimal() {
        assert_eq!(parse_ip("172.30.0.041"), Ok("172.30.0.41".parse().unwrap()));
        assert_eq!(parse_ip("010.000.0.1"), Ok("10.0.0.1".parse().unwrap()));
        assert_eq!(parse_ip(" fd00::1 "), Ok("fd00::1".parse().unwrap()));
        for bad in ["", "None", "10.0.0", "10.0.0.256", "10.0.0.0.1", "10..0.1", "+1.2.3.4", "fd00::g"] {
            assert!(parse_ip(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_is_ordered_and_shown_as_one_text() {
        assert_eq!(ObjectName::new("", "web").to_string(), "default/web");
        let key = Key { kind: Kind::EndpointSlice, name: ObjectName::new("shop", "web-x") };
        assert_eq!(key.to_string(), "EndpointSlice shop/web-x");
    }
}

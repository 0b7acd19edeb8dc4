//! What an earlier run left in the kernel, so that ids, slots and class numbers stay as they are and a restart
//! writes only what differs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use netmodel::{NodeName, Port, Protocol};
use ruleset::{Data, Element, Key, Observed, Value, Verdict};

use crate::{
    catalog::{Catalog, Objects},
    endpoints::{Endpoint, Part, Slice, SlicePort, State},
    ids::{CLASS_BITS, Class},
    object::{Key as ObjectKey, Kind, Object, ObjectName, special},
    services::{Service, ServicePort},
    tables::{Front, SetName},
};

/// Ids, rows and classes of a table that was read back. What makes no sense there is left out: it then differs
/// from what is wanted, and goes.
#[derive(Clone, Debug, Default)]
pub struct Found {
    ids: BTreeMap<Front, u32>,
    rows: BTreeMap<u32, Vec<(SocketAddr, bool)>>,
    /// The ids that nobody has taken over.
    leftover: BTreeSet<u32>,
    classes: Vec<(Class, u32)>,
    /// All front ends, those without endpoints too, by what their comments say they belong to.
    labelled: BTreeMap<ObjectName, Vec<(Box<str>, Front)>>,
    /// The addresses of endpoints that may run on this node.
    here: BTreeSet<IpAddr>,
    node_addresses: BTreeSet<IpAddr>,
}

impl Found {
    /// Reads a table.
    #[must_use]
    pub fn read(table: &Observed) -> Self {
        let mut found = Self::default();
        for set in [SetName::Frontends, SetName::NodePorts] {
            for (key, element) in elements(table, set) {
                if let (Some(front), Some(value)) = (read_front(set, key), read_number(element)) {
                    found.ids.insert(front, value >> CLASS_BITS);
                }
            }
        }
        found.rows = read_rows(table);
        found.leftover = found.ids.values().chain(found.rows.keys()).copied().collect();
        found.read_names(table);
        for (key, element) in elements(table, SetName::Classes) {
            if let (Some(number), Data::Verdict(Verdict::Goto(chain))) =
                (key.first().as_number(), &element.data)
                && let Some(class) = Class::named(chain.as_str())
            {
                found.classes.push((class, number));
            }
        }
        found
    }

    /// The classes and their numbers.
    pub fn classes(&self) -> impl Iterator<Item = (Class, u32)> + use<'_> {
        self.classes.iter().copied()
    }

    /// All front ends that led somewhere.
    pub fn fronts(&self) -> impl Iterator<Item = Front> + use<'_> {
        self.ids.keys().copied()
    }

    /// All front ends, those without endpoints too, with the Services that their comments name.
    pub(crate) fn owners(&self) -> impl Iterator<Item = (&ObjectName, impl Iterator<Item = Front>)> {
        self.labelled.iter().map(|(name, fronts)| (name, fronts.iter().map(|(_, front)| *front)))
    }

    /// The ids that nobody has taken over.
    pub(crate) const fn leftover_ids(&mut self) -> &mut BTreeSet<u32> {
        &mut self.leftover
    }

    /// What is known here and not to `catalog`, as the objects that would lead to it: Services, the endpoints of
    /// Services that have none there or that `lack` some, and the addresses of `node`. Where manifests can't be read
    /// after a restart, these stand in for them.
    pub fn unknown_to(
        &self,
        catalog: &Catalog,
        node: &NodeName,
        lack: impl Fn(&ObjectName) -> bool,
    ) -> Objects {
        let mut objects = Objects::new();
        let mut add = |kind, name: ObjectName, object| {
            objects.insert(ObjectKey { kind, name }, Arc::new(object));
        };
        for (name, fronts) in &self.labelled {
            if catalog.service(name).is_none() {
                add(Kind::Service, name.clone(), Object::Service(service(fronts)));
            }
            let slice =
                |legacy| Object::Slice(Slice { service: name.clone(), legacy, parts: self.parts(fronts) });
            if lack(name) {
                // No slice of the source has such a name.
                add(Kind::EndpointSlice, ObjectName::new(name.as_str(), ""), slice(false));
            } else if catalog.slices(name).next().is_none() {
                add(Kind::Endpoints, name.clone(), slice(true));
            }
        }
        if catalog.node(node).is_none() && !self.node_addresses.is_empty() {
            let addresses = self.node_addresses.iter().copied().collect();
            add(Kind::Node, ObjectName::new("", node.as_str()), Object::Node(addresses));
        }
        objects
    }

    /// The endpoints behind front ends of one Service.
    fn parts(&self, fronts: &[(Box<str>, Front)]) -> Box<[Part]> {
        let rows = |(name, front): &(Box<str>, Front)| {
            let rows = self.ids.get(front).and_then(|id| self.rows.get(id)).map_or(&[][..], Vec::as_slice);
            let (name, protocol) = (name.clone(), front.protocol());
            rows.iter()
                .filter_map(move |(row, _)| self.part(name.clone(), protocol, *row))
                .collect::<Vec<_>>()
        };
        fronts.iter().flat_map(rows).collect()
    }

    fn part(&self, name: Box<str>, protocol: Protocol, row: SocketAddr) -> Option<Part> {
        let port = Port::try_from(i64::from(row.port())).ok()?;
        let here = self.here.contains(&row.ip());
        let state = State { ready: true, serving: true, terminating: false, here };
        Some(Part {
            ports: [SlicePort { name, protocol, port }].into(),
            endpoints: [Endpoint { address: row.ip(), state }].into(),
        })
    }

    /// Reads what comments and sets say about who is who.
    fn read_names(&mut self, table: &Observed) {
        for set in [SetName::Frontends, SetName::Rejects, SetName::NodePorts, SetName::NodePortRejects] {
            for (key, element) in elements(table, set) {
                if let (Some(front), Some(label)) = (read_front(set, key), element.comment.as_deref())
                    && let Some((service, port)) = read_label(label)
                {
                    self.labelled.entry(service).or_default().push((port.into(), front));
                }
            }
        }
        let addresses = |set| {
            elements(table, set).filter_map(|(key, _)| match key.first().as_bytes().len() {
                4 | 16 => read_address(key.first().as_bytes(), 0),
                length => read_address(key.first().as_bytes(), length / 2),
            })
        };
        self.here = addresses(SetName::Hairpins).map(|(address, _)| address).collect();
        self.node_addresses = addresses(SetName::NodePortIps).map(|(address, _)| address).collect();
    }

    /// Id and rows behind the first of these front ends whose id nobody has taken over.
    pub(crate) fn take(&mut self, fronts: &[Front]) -> Option<(u32, Vec<(SocketAddr, bool)>)> {
        let id =
            fronts.iter().filter_map(|front| self.ids.get(front)).find_map(|id| self.leftover.take(id))?;
        Some((id, self.rows.remove(&id).unwrap_or_default()))
    }
}

/// Takes out of a slice that [`Found::unknown_to`] made for a Service that lacks some the endpoints that a slice in
/// `catalog` names by now. Whether any are left that count beside those there.
pub fn narrow(slice: &mut Slice, catalog: &Catalog) -> bool {
    let known: Vec<_> = catalog.slices(&slice.service).collect();
    let endpoints = known.iter().flat_map(|slice| &slice.parts).flat_map(|part| &part.endpoints);
    let named: BTreeSet<IpAddr> = endpoints.map(|endpoint| endpoint.address).collect();
    let is_unnamed = |part: &&Part| !part.endpoints.iter().any(|endpoint| named.contains(&endpoint.address));
    slice.parts = slice.parts.iter().filter(is_unnamed).cloned().collect();
    !slice.parts.is_empty() && !known.iter().any(|slice| slice.legacy)
}

/// The Service that would have these front ends.
fn service(fronts: &[(Box<str>, Front)]) -> Service {
    let mut cluster_ips = BTreeSet::new();
    let mut ports = Vec::new();
    for (name, front) in fronts {
        let Front::Cluster(address, protocol, port) = *front else { continue };
        cluster_ips.insert(address);
        let node_port = fronts.iter().find_map(|(other, front)| match front {
            Front::Node(p, node_port) if *p == protocol && other == name => Some(*node_port),
            _ => None,
        });
        ports.push(ServicePort { name: name.clone(), protocol, port, node_port });
    }
    Service { cluster_ips: cluster_ips.into_iter().collect(), ports: ports.into() }
}

/// `namespace/name` or `namespace/name:port`, as [`crate::ports::label`] writes it.
fn read_label(label: &str) -> Option<(ObjectName, &str)> {
    let (service, port) = label.split_once(':').unwrap_or((label, ""));
    let (namespace, name) = service.split_once('/')?;
    Some((ObjectName::new(namespace, name), port))
}

fn elements(table: &Observed, set: SetName) -> impl Iterator<Item = (&Key, &Element)> {
    table.sets.get(&set.into()).into_iter().flat_map(|set| &set.elements)
}

/// The rows of each id, as far as its slots follow each other from 0 on.
fn read_rows(table: &Observed) -> BTreeMap<u32, Vec<(SocketAddr, bool)>> {
    let mut slots: BTreeMap<(u32, u32), SocketAddr> = BTreeMap::new();
    for (key, element) in elements(table, SetName::Endpoints) {
        let (id, slot) = key.first().as_bytes().split_at_checked(4).unwrap_or_default();
        let number = |bytes| Value::bytes(bytes).as_number();
        if let (Some(id), Some(slot), Data::Value(value)) = (number(id), number(slot), &element.data)
            && let Some(endpoint) = read_endpoint(value)
        {
            slots.insert((id >> CLASS_BITS, slot), endpoint);
        }
    }
    let mut rows: BTreeMap<u32, Vec<_>> = BTreeMap::new();
    for ((id, slot), endpoint) in slots {
        let rows = rows.entry(id).or_default();
        if rows.len() == slot as usize {
            rows.push((endpoint, false));
        }
    }
    rows
}

fn read_front(set: SetName, key: &Key) -> Option<Front> {
    let bytes = key.first().as_bytes();
    if matches!(set, SetName::NodePorts | SetName::NodePortRejects) {
        return Some(Front::Node(read_protocol(bytes)?, read_port(bytes.get(4..)?)?));
    }
    let (address, rest) = read_address(bytes, 8).filter(|(address, _)| special(*address).is_none())?;
    Some(Front::Cluster(address, read_protocol(rest)?, read_port(rest.get(4..)?)?))
}

fn read_endpoint(value: &Value) -> Option<SocketAddr> {
    let (address, rest) = read_address(value.as_bytes(), 4)?;
    Some(SocketAddr::new(address, read_port(rest)?.get()))
}

/// An address, and `behind` bytes behind it.
fn read_address(bytes: &[u8], behind: usize) -> Option<(IpAddr, &[u8])> {
    let (address, rest) = bytes.split_at_checked(bytes.len().checked_sub(behind)?)?;
    let v4 = || <[u8; 4]>::try_from(address).map(IpAddr::from).ok();
    let v6 = || <[u8; 16]>::try_from(address).map(IpAddr::from).ok();
    Some((v4().or_else(v6)?, rest))
}

fn read_protocol(bytes: &[u8]) -> Option<Protocol> {
    bytes.first().copied().and_then(Protocol::from_number)
}

fn read_port(bytes: &[u8]) -> Option<Port> {
    let number = u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?);
    Port::try_from(i64::from(number)).ok()
}

fn read_number(element: &Element) -> Option<u32> {
    match &element.data {
        Data::Value(value) => value.as_number(),
        _ => None,
    }
}

//! What an earlier run left in the kernel, so that ids, slots and class numbers stay as they are and a restart
//! writes only what differs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use netmodel::{Port, Protocol};
use ruleset::{Data, Element, Key, Observed, Value, Verdict};

use crate::{
    ids::{CLASS_BITS, Class},
    tables::{Front, SetName},
};

/// Ids, rows and classes of a table that was read back. What makes no sense there is left out: it then differs
/// from what is wanted, and goes.
#[derive(Clone, Debug, Default)]
pub struct Found {
    ids: BTreeMap<Front, u32>,
    fronts: BTreeSet<Front>,
    rows: BTreeMap<u32, Vec<(SocketAddr, bool)>>,
    classes: Vec<(Class, u32)>,
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
        found.fronts = found.ids.keys().copied().collect();
        found.rows = read_rows(table);
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
        self.fronts.iter().copied()
    }

    /// The ids that nobody has taken over.
    #[must_use]
    pub fn leftover_ids(&self) -> BTreeSet<u32> {
        self.ids.values().chain(self.rows.keys()).copied().collect()
    }

    /// Id and rows behind the first of these front ends that was there.
    pub(crate) fn take(&mut self, fronts: &[Front]) -> Option<(u32, Vec<(SocketAddr, bool)>)> {
        // All of them are taken out, the first one decides.
        let found: Vec<u32> = fronts.iter().filter_map(|front| self.ids.remove(front)).collect();
        let id = *found.first()?;
        Some((id, self.rows.remove(&id).unwrap_or_default()))
    }
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
    if set == SetName::NodePorts {
        return Some(Front::Node(read_protocol(bytes)?, read_port(bytes.get(4..)?)?));
    }
    let (address, rest) = read_address(bytes, 8)?;
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
    let number = *bytes.first()?;
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| protocol.number() == number)
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

//! Ports of Services: as they are in the kernel, and as they should become.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

use netmodel::Protocol;
use ruleset::LONGEST_COMMENT;

use crate::{
    endpoints::{Chosen, in_family},
    ids::{CLASS_MASK, MAX_ID},
    object::ObjectName,
    services::{Service, ServicePort},
    tables::{Config, Front},
};

/// One port of a Service as it is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programmed {
    /// The port's name.
    pub name: Box<str>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The id of its rows; 0 while it has none.
    pub id: u32,
    /// Where it can be reached.
    pub fronts: Box<[Front]>,
    /// Its endpoints by slot, and whether each may run on this node.
    pub rows: Box<[(SocketAddr, bool)]>,
    /// UDP only: the endpoints that answer, to which known flows may go on.
    pub serving: Box<[SocketAddr]>,
}

/// Why a Service is not in the kernel as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Another Service, which came first, has that front end.
    Taken {
        /// The front end.
        front: Front,
        /// Who has it.
        by: ObjectName,
    },
    /// All ids are in use or rest; the old state stays.
    NoId,
    /// All class numbers are in use or rest; the old state stays.
    NoClass,
    /// More endpoints than a random slot number can tell apart; the old state stays.
    TooManyEndpoints(usize),
}

impl Problem {
    /// It may go away by itself, when others give back what they hold.
    pub(crate) const fn is_shortage(&self) -> bool {
        matches!(self, Self::NoId | Self::NoClass)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken { front, by } => write!(f, "{front} belongs to {by}"),
            Self::NoId => write!(f, "all {MAX_ID} service ids are in use: it stays as it was"),
            Self::NoClass => {
                write!(f, "all {CLASS_MASK} classes of front ends are in use: it stays as it was")
            }
            Self::TooManyEndpoints(count) => {
                write!(f, "{count} endpoints are more than {}: it stays as it was", u16::MAX)
            }
        }
    }
}

/// Where a port asks to be reached, in the table's family.
pub(crate) fn fronts_of(addresses: &[IpAddr], port: &ServicePort, config: &Config) -> Vec<Front> {
    let here = addresses.iter().filter(|address| in_family(**address, config.family));
    let mut fronts: Vec<_> = here.map(|address| Front::Cluster(*address, port.protocol, port.port)).collect();
    if !fronts.is_empty() {
        fronts.extend(port.node_port.map(|node_port| Front::Node(port.protocol, node_port)));
    }
    fronts
}

/// Where a Service asks to be reached.
pub(crate) fn wanted_fronts(service: Option<&Service>, config: &Config) -> BTreeSet<Front> {
    let ports = service.into_iter().flat_map(|s| s.ports.iter().map(|port| (&s.cluster_ips, port)));
    ports.flat_map(|(addresses, port)| fronts_of(addresses, port, config)).collect()
}

/// What a port should become.
pub(crate) struct Wish<'a> {
    /// The port.
    pub(crate) port: &'a ServicePort,
    /// Its front ends, as far as nobody else has them.
    pub(crate) fronts: Vec<Front>,
    /// Its endpoints.
    pub(crate) chosen: Chosen,
    /// What it is.
    pub(crate) old: Option<&'a Programmed>,
}

impl Wish<'_> {
    /// A port that can't be brought up to date stays as it was, as far as it still has its front ends.
    pub(crate) fn stay(&self) -> Programmed {
        match self.old {
            Some(old) => {
                let kept = old.fronts.iter().filter(|front| self.fronts.contains(front)).copied();
                Programmed { fronts: kept.collect(), ..old.clone() }
            }
            None => Programmed {
                name: self.port.name.clone(),
                protocol: self.port.protocol,
                id: 0,
                fronts: self.fronts.as_slice().into(),
                rows: Box::default(),
                serving: Box::default(),
            },
        }
    }
}

/// Gives each wanted endpoint a slot with as few moves as possible: those that are there stay, new ones take
/// the slots of those that go, and the last one moves into a slot that stays empty.
pub(crate) fn settle(slots: &[(SocketAddr, bool)], wanted: &[(SocketAddr, bool)]) -> Vec<(SocketAddr, bool)> {
    let mut missing: BTreeMap<SocketAddr, bool> = wanted.iter().copied().collect();
    let mut kept: Vec<Option<(SocketAddr, bool)>> =
        slots.iter().map(|(address, _)| missing.remove(address).map(|here| (*address, here))).collect();
    for slot in kept.iter_mut().filter(|slot| slot.is_none()) {
        *slot = missing.pop_first();
    }
    kept.extend(missing.into_iter().map(Some));
    let mut slot = 0;
    while slot < kept.len() {
        if kept[slot].is_some() {
            slot += 1;
        } else {
            kept.swap_remove(slot);
        }
    }
    kept.into_iter().flatten().collect()
}

/// How an operator recognises an element: `namespace/name:port`, as far as a comment may be long.
pub(crate) fn label(service: &ObjectName, port: &str) -> Box<str> {
    let separator = if port.is_empty() { "" } else { ":" };
    let text = format!("{service}{separator}{port}");
    let plain = |c: char| if c.is_ascii_graphic() && c != '"' && c != '\\' { c } else { '?' };
    text.chars().map(plain).take(LONGEST_COMMENT).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_kept_filled_and_moved_as_little_as_possible() {
        let addresses = |list: &[u8]| {
            list.iter().map(|n| (SocketAddr::from(([10, 0, 0, *n], 80)), false)).collect::<Vec<_>>()
        };
        let settled = |slots: &[u8], wanted: &[u8]| settle(&addresses(slots), &addresses(wanted));
        assert_eq!(settled(&[1, 2, 3], &[2, 3]), addresses(&[3, 2]), "the last one moves into the gap");
        assert_eq!(settled(&[1, 2, 3], &[1, 3, 4]), addresses(&[1, 4, 3]), "a new one takes the gap");
        assert_eq!(settled(&[1, 2, 3], &[3, 4]), addresses(&[4, 3]));
        assert_eq!(settled(&[3, 1], &[1, 2, 3]), addresses(&[3, 1, 2]));
        assert_eq!(settled(&[1, 1, 2], &[1, 2]), addresses(&[1, 2]), "one that was there twice");
        assert_eq!(settled(&[1, 2], &[]), []);
    }
}

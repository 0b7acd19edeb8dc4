//! Which endpoints a Service's port leads to.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use netmodel::{NodeName, Port, Protocol};
use ruleset::Family;

use crate::{
    object::{ObjectName, parse_ip, special},
    services::{ServicePort, protocol},
    wire::{self, SERVICE_NAME_LABEL},
};

/// Endpoints of a Service, as one object holds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The Service.
    pub service: ObjectName,
    /// It was written as Endpoints, which count only where the Service has no EndpointSlice.
    pub legacy: bool,
    /// The endpoints: one part in an EndpointSlice, one for each subset in Endpoints.
    pub parts: Box<[Part]>,
}

/// Endpoints all of which have the same ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The ports.
    pub ports: Box<[SlicePort]>,
    /// The endpoints.
    pub endpoints: Box<[Endpoint]>,
}

/// A port that each endpoint of a part has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service's port that leads here.
    pub name: Box<str>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port on the endpoint.
    pub port: Port,
}

/// An endpoint without its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its state.
    pub state: State,
}

/// What is known about an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Takes new connections.
    pub ready: bool,
    /// Answers; it may be going.
    pub serving: bool,
    /// Is going.
    pub terminating: bool,
    /// May run on this node: it says so, or it says nothing. Only then can its own packets meet it here.
    pub here: bool,
}

/// What a port of a Service leads to, sorted by address and port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Those that take new connections: the ready ones, or, where none is, those that still answer while
    /// they go. The flag is [`State::here`].
    pub usable: Vec<(SocketAddr, bool)>,
    /// Those that answer: connections to them are left alone.
    pub serving: Vec<SocketAddr>,
}

impl Slice {
    /// Checks an EndpointSlice. `None`: it names no Service, or holds host names.
    ///
    /// # Errors
    /// A field that matters can't be used; the text says which and why.
    pub fn check(wire: &wire::EndpointSlice, node: &NodeName) -> Result<Option<Self>, String> {
        let Some(service) = wire.metadata.labels.get(SERVICE_NAME_LABEL).filter(|name| !name.is_empty())
        else {
            return Ok(None);
        };
        if wire.address_type == "FQDN" {
            return Ok(None);
        }
        let with_address = wire.endpoints.iter().filter(|endpoint| !endpoint.addresses.is_empty());
        let endpoint = |endpoint: &wire::Endpoint| {
            let ready = endpoint.conditions.ready.unwrap_or(true);
            let state = State {
                ready,
                serving: endpoint.conditions.serving.unwrap_or(ready),
                terminating: endpoint.conditions.terminating.unwrap_or(false),
                here: is_here(endpoint.node_name.as_deref(), node),
            };
            // The addresses of one endpoint lead to the same place: the first stands for all.
            parse_ip(&endpoint.addresses[0]).map(|address| Endpoint { address, state })
        };
        let service = ObjectName::new(&wire.metadata.namespace, service);
        let endpoints = with_address.map(endpoint).filter(is_usable).collect::<Result<_, _>>()?;
        let part = Part { ports: slice_ports(&wire.ports)?, endpoints };
        Ok(Some(Self { service, legacy: false, parts: Box::new([part]) }))
    }

    /// Checks Endpoints.
    ///
    /// # Errors
    /// A field that matters can't be used; the text says which and why.
    pub fn check_endpoints(wire: &wire::Endpoints, node: &NodeName) -> Result<Self, String> {
        let part = |subset: &wire::Subset| {
            let ready = subset.addresses.iter().map(|address| (address, true));
            let others = subset.not_ready_addresses.iter().map(|address| (address, false));
            let endpoint = |(address, ready): (&wire::EndpointAddress, bool)| {
                let here = is_here(address.node_name.as_deref(), node);
                let state = State { ready, serving: ready, terminating: false, here };
                parse_ip(&address.ip).map(|address| Endpoint { address, state })
            };
            let endpoints = ready.chain(others).map(endpoint).filter(is_usable).collect::<Result<_, _>>()?;
            Ok(Part { ports: slice_ports(&subset.ports)?, endpoints })
        };
        let parts = wire.subsets.iter().map(part).collect::<Result<_, String>>()?;
        Ok(Self { service: (&wire.metadata).into(), legacy: true, parts })
    }
}

/// Not at a special address. Who holds the manifest is told by [`crate::object::remark`].
fn is_usable(endpoint: &Result<Endpoint, String>) -> bool {
    endpoint.as_ref().map_or(true, |endpoint| special(endpoint.address).is_none())
}

fn is_here(node_name: Option<&str>, node: &NodeName) -> bool {
    node_name.is_none_or(|name| name.is_empty() || name == node.as_str())
}

fn slice_ports(wire: &[wire::EndpointPort]) -> Result<Box<[SlicePort]>, String> {
    let numbered = wire.iter().filter_map(|port| port.port.map(|number| (port, number)));
    let port = |(port, number): (&wire::EndpointPort, i64)| {
        Ok(SlicePort {
            name: port.name.as_str().into(),
            protocol: protocol(&port.protocol)?,
            port: Port::try_from(number).map_err(|error| error.to_string())?,
        })
    };
    numbered.map(port).collect()
}

/// `address` is of that family.
#[must_use]
pub fn in_family(address: IpAddr, family: Family) -> bool {
    match family {
        Family::Ip => address.is_ipv4(),
        Family::Ip6 => address.is_ipv6(),
        Family::Inet => true,
    }
}

/// The endpoints of one family that `port` leads to, over all slices of its Service. One that is in several
/// slices, as happens while it is moved from one to another, counts once, with what any of them says for it.
#[must_use]
pub fn choose<'a>(slices: impl IntoIterator<Item = &'a Slice>, port: &ServicePort, family: Family) -> Chosen {
    let mut all: BTreeMap<SocketAddr, State> = BTreeMap::new();
    let fitting = |p: &&SlicePort| p.name == port.name && p.protocol == port.protocol;
    for part in slices.into_iter().flat_map(|slice| &slice.parts) {
        for slice_port in part.ports.iter().filter(fitting) {
            for endpoint in part.endpoints.iter().filter(|e| in_family(e.address, family)) {
                let address = SocketAddr::new(endpoint.address, slice_port.port.get());
                let state = all.entry(address).or_insert(State { terminating: true, ..State::default() });
                state.ready |= endpoint.state.ready;
                state.serving |= endpoint.state.serving;
                state.terminating &= endpoint.state.terminating;
                state.here |= endpoint.state.here;
            }
        }
    }
    let usable = |wanted: fn(&State) -> bool| -> Vec<_> {
        all.iter().filter(|(_, state)| wanted(state)).map(|(address, state)| (*address, state.here)).collect()
    };
    let ready = usable(|state| state.ready);
    let usable = if ready.is_empty() { usable(|state| state.serving && state.terminating) } else { ready };
    let serving = all.iter().filter(|(_, state)| state.serving || state.ready).map(|(address, _)| *address);
    Chosen { usable, serving: serving.collect() }
}

#[cfg(test)]
#[path = "endpoints_tests.rs"]
mod tests;

//! The table in the kernel: its sets and maps, its chains, and what their elements look like.
//!
//! ```text
//! packet --frontends, nodeports--> value = id << 12 | class, kept in `meta priority`
//!        --classes--> chain of the class --> spreadN: endpoints[id << 12 . random slot] --> dnat
//! ```
//!
//! A change of a Service changes elements only. Sets and base chains never change; chains with a number are
//! made with their class.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use netmodel::{Port, Protocol, Subnet, TABLE_PREFIX};
use ruleset::{
    Chain, ChainType, Element, Family, Field, Hook, Key, Name, Rule, SLOT, SetSpec, Statement, Table, Value,
    Verdict,
};

use crate::{
    ids::{CLASS_BITS, Class, Masquerade},
    rules::{cluster_ip, masquerade, node_port, reject, spread},
};

/// Priority of the chains that translate destinations (kube-proxy's, and `dstnat` of `nft`).
const DSTNAT: i32 = -100;
/// Priority of the chains that filter.
const FILTER: i32 = 0;
/// Priority of the chain that translates sources (`srcnat` of `nft`).
const SRCNAT: i32 = 100;
/// Priority of the chains that put the scratch back: just behind everybody's destination NAT.
const SCRATCH: i32 = DSTNAT + 1;

/// At which addresses of this node its node ports are open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePorts {
    /// At all of them but loopback ones.
    All,
    /// At these.
    At(BTreeSet<IpAddr>),
}

/// What the whole table depends on beside Services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Where pods have their addresses. Empty: unknown, and nobody is masqueraded on the way to a cluster IP.
    pub pod_ranges: Vec<Subnet>,
    /// Where node ports are open.
    pub node_ports: NodePorts,
    /// Every connection to a cluster IP is masqueraded.
    pub masquerade_all: bool,
}

/// The sets and maps of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetName {
    /// address . protocol . port -> value
    Frontends,
    /// protocol . port -> value
    NodePorts,
    /// class -> chain
    Classes,
    /// id << 12 . slot -> address . port
    Endpoints,
    /// All cluster IPs.
    ClusterIps,
    /// The addresses at which node ports are open.
    NodePortIps,
    /// Where pods have their addresses.
    PodRanges,
    /// endpoint . the same endpoint
    Hairpins,
    /// Cluster IPs' front ends without an endpoint.
    Rejects,
    /// Node ports without an endpoint.
    NodePortRejects,
}

impl SetName {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Frontends,
        Self::NodePorts,
        Self::Classes,
        Self::Endpoints,
        Self::ClusterIps,
        Self::NodePortIps,
        Self::PodRanges,
        Self::Hairpins,
        Self::Rejects,
        Self::NodePortRejects,
    ];

    /// The name in the kernel.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Frontends => "frontends",
            Self::NodePorts => "nodeports",
            Self::Classes => "classes",
            Self::Endpoints => "endpoints",
            Self::ClusterIps => "cluster-ips",
            Self::NodePortIps => "nodeport-ips",
            Self::PodRanges => "pod-ranges",
            Self::Hairpins => "hairpins",
            Self::Rejects => "rejects",
            Self::NodePortRejects => "nodeport-rejects",
        }
    }

    /// The set of that name.
    #[must_use]
    pub fn named(name: &Name) -> Option<Self> {
        Self::ALL.into_iter().find(|set| set.as_str() == name.as_str())
    }

    /// What it is. None has a size: a full one refuses with an error that nobody understands.
    #[must_use]
    pub fn spec(self, family: Family) -> SetSpec {
        let ruleset::AddressFields { source, destination } = family.addresses();
        match self {
            Self::Frontends => SetSpec::map(front(family), Field::MetaPriority).counter(),
            Self::NodePorts => SetSpec::map(node_front(), Field::MetaPriority).counter(),
            Self::Classes => SetSpec::vmap(Field::MetaPriority),
            Self::Endpoints => {
                SetSpec::map([Field::MetaPriority.into(), SLOT], [destination, Field::ThDport]).counter()
            }
            Self::ClusterIps | Self::NodePortIps => SetSpec::set(destination),
            Self::PodRanges => SetSpec::set(source).interval(),
            Self::Hairpins => SetSpec::set([source, destination]),
            Self::Rejects => SetSpec::set(front(family)),
            Self::NodePortRejects => SetSpec::set(node_front()),
        }
    }
}

impl From<SetName> for Name {
    fn from(name: SetName) -> Self {
        name.as_str().into()
    }
}

/// What a front end at an address is found by.
#[must_use]
pub const fn front(family: Family) -> [Field; 3] {
    [family.addresses().destination, Field::MetaL4proto, Field::ThDport]
}

/// What a front end at the node is found by.
#[must_use]
pub const fn node_front() -> [Field; 2] {
    [Field::MetaL4proto, Field::ThDport]
}

/// Where a Service can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Front {
    /// At a cluster IP.
    Cluster(IpAddr, Protocol, Port),
    /// At this node's addresses.
    Node(Protocol, Port),
}

impl Front {
    /// The transport protocol.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        match self {
            Self::Cluster(_, protocol, _) | Self::Node(protocol, _) => *protocol,
        }
    }

    /// The map where it has its value, and the set where it stands while it has no endpoint.
    #[must_use]
    pub const fn sets(&self) -> (SetName, SetName) {
        match self {
            Self::Cluster(..) => (SetName::Frontends, SetName::Rejects),
            Self::Node(..) => (SetName::NodePorts, SetName::NodePortRejects),
        }
    }

    /// Its key in either.
    #[must_use]
    pub fn key(&self) -> Key {
        match *self {
            Self::Cluster(address, protocol, port) => {
                Value::concat([address.into(), protocol.into(), Value::port(port.get())]).into()
            }
            Self::Node(protocol, port) => Value::concat([protocol.into(), Value::port(port.get())]).into(),
        }
    }
}

impl std::fmt::Display for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cluster(address, protocol, port) => {
                write!(f, "{}/{protocol}", SocketAddr::new(*address, port.get()))
            }
            Self::Node(protocol, port) => write!(f, "nodePort {port}/{protocol}"),
        }
    }
}

/// The key of a Service's endpoint: the base of its id, and the slot.
#[must_use]
pub fn row_key(id: u32, slot: u32) -> Key {
    Value::concat([Value::number(id << CLASS_BITS), Value::number(slot)]).into()
}

/// What that key leads to.
#[must_use]
pub fn row(endpoint: SocketAddr) -> Element {
    Element::value(Value::concat([endpoint.ip().into(), Value::port(endpoint.port())]))
}

/// The key of an element that several Services may want: a cluster IP, or a hairpin's address twice.
#[must_use]
pub fn shared_key(set: SetName, address: IpAddr) -> Key {
    match set {
        SetName::Hairpins => Value::concat([address.into(), address.into()]).into(),
        _ => address.into(),
    }
}

/// The element of `classes` that leads to a class's chain.
#[must_use]
pub fn class_element(class: &Class) -> Element {
    Element::verdict(Verdict::Goto(class.to_string().into()))
}

/// The chains that a class needs, those that others lead to first. Classes share them.
#[must_use]
pub fn class_chains(class: &Class, family: Family) -> Vec<(Name, Chain)> {
    let endpoints = class.endpoints;
    let mut chains = vec![(Name::from(format!("spread{endpoints}")), spread::chain(endpoints))];
    match class.masquerade {
        Masquerade::Never => {}
        Masquerade::OffCluster => {
            chains.push((class.to_string().into(), cluster_ip::chain(family, endpoints)));
        }
        Masquerade::Always => chains.push((class.to_string().into(), node_port::chain(endpoints))),
    }
    chains
}

impl Config {
    /// The name of the table.
    #[must_use]
    pub fn table_name() -> Name {
        format!("{TABLE_PREFIX}proxy").into()
    }

    /// The table as it is without Services.
    #[must_use]
    pub fn skeleton(&self) -> Table {
        let mut table = Table::new(self.family, Self::table_name());
        for name in SetName::ALL {
            table.set(name, name.spec(self.family));
        }
        for range in &self.pod_ranges {
            table.element(&SetName::PodRanges.into(), *range, Element::default());
        }
        if let NodePorts::At(addresses) = &self.node_ports {
            for address in addresses {
                table.element(&SetName::NodePortIps.into(), *address, Element::default());
            }
        }
        self.base_chains(&mut table);
        table
    }

    fn base_chains(&self, table: &mut Table) {
        let (family, node_ports) = (self.family, &self.node_ports);
        let services = [cluster_ip::dispatch(family), node_port::dispatch(family, node_ports)];
        table.chain("services", Chain::regular(services));
        for hook in [Hook::Prerouting, Hook::Output] {
            let rules = [Rule::new([Statement::goto("services")])];
            table.chain(format!("nat-{hook}"), Chain::base(ChainType::Nat, hook, DSTNAT, rules));
            let rules = [spread::put_scratch_back()];
            table.chain(format!("scratch-{hook}"), Chain::base(ChainType::Filter, hook, SCRATCH, rules));
        }
        let rules = masquerade::rules(family);
        table.chain("nat-postrouting", Chain::base(ChainType::Nat, Hook::Postrouting, SRCNAT, rules));
        table.chain(reject::REFUSE, reject::refuse());
        table.chain("reject-new", reject::chain(family, node_ports));
        for hook in [Hook::Input, Hook::Forward, Hook::Output] {
            let rules = [Rule::new([Statement::jump("reject-new")])];
            table.chain(format!("filter-{hook}"), Chain::base(ChainType::Filter, hook, FILTER, rules));
        }
    }

    /// How connections to that front end are masqueraded.
    #[must_use]
    pub const fn masquerade(&self, front: &Front) -> Masquerade {
        match front {
            Front::Cluster(..) if self.masquerade_all => Masquerade::Always,
            Front::Cluster(..) if self.pod_ranges.is_empty() => Masquerade::Never,
            Front::Cluster(..) => Masquerade::OffCluster,
            Front::Node(..) => Masquerade::Always,
        }
    }
}

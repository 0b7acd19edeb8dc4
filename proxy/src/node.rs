//! What this machine is: its addresses, its default route, and what both mean for node ports and cluster IPs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use linux::{
    Error,
    address::{Address, Scope},
    link::Kind,
    netlink::RouteSocket,
    route::{self, Route},
};
use netmodel::{IfName, NodeName, Subnet};
use proxy_core::{object::Object, tables::NodePorts};

use crate::flags::{NodePortAddresses, Settings};

/// The metric of our last-resort routes: whatever else there is takes precedence.
pub const LAST_RESORT: u32 = u32::MAX;

/// The addresses and routes of this machine that matter here, IPv4 only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Addresses with the index of their device; none of loopback devices.
    pub addresses: Vec<(u32, Ipv4Addr)>,
    /// Addresses of loopback devices that others can reach, such as anycast ones: no 127.0.0.0/8.
    pub anycast: BTreeSet<Ipv4Addr>,
    /// The device and preferred source of the best default route that is not ours.
    pub default_route: Option<(u32, Option<IpAddr>)>,
    /// Our last-resort routes that are there.
    pub last_resort: BTreeSet<(Subnet, u32)>,
    /// Addresses that mean this host itself. Those of dummy devices don't count: that is where local DNS caches and
    /// other proxies keep cluster IPs.
    pub itself: BTreeSet<IpAddr>,
    /// The names of all devices that are up.
    pub devices: BTreeMap<u32, IfName>,
}

impl Machine {
    /// Reads the machine as it is now.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub fn read(socket: &mut RouteSocket) -> Result<Self, Error> {
        let links = socket.links()?;
        let loopback: BTreeSet<u32> =
            links.iter().filter(|link| link.loopback).map(|link| link.index).collect();
        let global = |address: &Address| match address.address {
            IpAddr::V4(v4) if address.scope == Scope::Global && !v4.is_loopback() => {
                Some((address.device, v4))
            }
            _ => None,
        };
        let addresses = socket.addresses(None)?;
        let (anycast, addresses): (Vec<_>, Vec<_>) =
            addresses.iter().filter_map(global).partition(|(device, _)| loopback.contains(device));
        let dummy = |device: u32| {
            links.iter().any(|link| link.index == device && link.kind == Kind::Other("dummy".to_owned()))
        };
        let itself = addresses.iter().filter(|(device, _)| !dummy(*device)).map(|(_, a)| IpAddr::V4(*a));
        let itself = itself.collect();
        let routes = socket.routes(route::Filter::main(true))?;
        let (ours, others): (Vec<Route>, Vec<Route>) = routes.into_iter().partition(is_last_resort);
        let defaults = others.iter().filter(|route| route.destination.prefix() == 0);
        let best = defaults.min_by_key(|route| route.metric.unwrap_or(0));
        let device = |route: &Route| route.device.or_else(|| route.multipath.first().map(|hop| hop.device));
        Ok(Self {
            addresses,
            anycast: anycast.into_iter().map(|(_, address)| address).collect(),
            itself,
            default_route: best.and_then(|route| Some((device(route)?, route.source))),
            last_resort: ours.iter().filter_map(|route| Some((route.destination, route.device?))).collect(),
            devices: links.into_iter().filter(|link| link.up).map(|link| (link.index, link.name)).collect(),
        })
    }

    /// The node's own addresses: the internal ones of its Node; without a Node the address of the default
    /// route's device; without that the only address there is outside the pods' ranges.
    #[must_use]
    pub fn primary(&self, node: Option<&[IpAddr]>, pods: &[Subnet]) -> BTreeSet<IpAddr> {
        let internal: BTreeSet<IpAddr> =
            node.into_iter().flatten().copied().filter(IpAddr::is_ipv4).collect();
        if !internal.is_empty() {
            return internal;
        }
        if let Some((device, source)) = self.default_route {
            let first =
                self.addresses.iter().find(|(index, _)| *index == device).map(|(_, a)| IpAddr::V4(*a));
            return source.or(first).into_iter().collect();
        }
        let outside = self.addresses.iter().map(|(_, address)| IpAddr::V4(*address));
        let outside: BTreeSet<IpAddr> =
            outside.filter(|a| !pods.iter().any(|range| range.contains(*a))).collect();
        if outside.len() == 1 { outside } else { BTreeSet::new() }
    }

    /// What an earlier run knew can't be so any more: a Service is at an address of this host, or the node's
    /// address is none of this host.
    #[must_use]
    pub fn contradicts(&self, object: &Object) -> bool {
        match object {
            Object::Node(addresses) => !addresses.iter().all(|address| self.all().contains(address)),
            object => self.taken_by(object).is_some(),
        }
    }

    /// The cluster IP of a Service that means this host itself: rules for it would refuse all else that is sent to
    /// the host.
    #[must_use]
    pub fn taken_by(&self, object: &Object) -> Option<IpAddr> {
        let Object::Service(service) = object else { return None };
        service.cluster_ips.iter().copied().find(|address| self.itself.contains(address))
    }

    /// All addresses but loopback ones.
    #[must_use]
    pub fn all(&self) -> BTreeSet<IpAddr> {
        let held = self.addresses.iter().map(|(_, address)| address).chain(&self.anycast);
        held.map(|address| IpAddr::V4(*address)).collect()
    }

    /// What we know may differ once that device does: it holds an address, or a route leads to it. (Pods' devices, which
    /// come and go, hold none.)
    #[must_use]
    pub fn depends_on(&self, device: u32) -> bool {
        let mut devices = self.addresses.iter().map(|(index, _)| *index);
        let default = self.default_route.is_some_and(|(index, _)| index == device);
        default
            || devices.any(|index| index == device)
            || self.last_resort.iter().any(|(_, to)| *to == device)
    }

    /// The device that holds one of these addresses.
    #[must_use]
    pub fn device_of(&self, addresses: &BTreeSet<IpAddr>) -> Option<u32> {
        let held = self.addresses.iter().find(|(_, address)| addresses.contains(&IpAddr::V4(*address)));
        held.map(|(device, _)| *device).filter(|device| self.devices.contains_key(device))
    }

    /// The last-resort routes that must be there: none where a default route is.
    #[must_use]
    pub fn wanted_routes(&self, to: &BTreeSet<Subnet>, own: &BTreeSet<IpAddr>) -> BTreeSet<(Subnet, u32)> {
        match self.device_of(own) {
            Some(device) if self.default_route.is_none() => to.iter().map(|range| (*range, device)).collect(),
            _ => BTreeSet::new(),
        }
    }
}

/// A route of ours for cluster IPs.
fn is_last_resort(route: &Route) -> bool {
    route.protocol == netmodel::ROUTE_PROTOCOL && route.metric == Some(LAST_RESORT)
}

/// The last-resort route to `destination` by `device`. It only has to exist: what is sent to a cluster IP is
/// led elsewhere at the output hook, after a route was found.
#[must_use]
pub const fn last_resort(destination: Subnet, device: u32) -> Route {
    let mut route = Route::to(destination);
    route.device = Some(device);
    route.metric = Some(LAST_RESORT);
    route.scope = Scope::Link;
    route
}

/// Where node ports are open, given the node's own addresses.
#[must_use]
pub fn node_ports(settings: &Settings, machine: &Machine, own: &BTreeSet<IpAddr>) -> NodePorts {
    match &settings.node_port_addresses {
        NodePortAddresses::All => NodePorts::All,
        NodePortAddresses::Some { primary, ranges } => {
            let within = machine.all().into_iter().filter(|a| ranges.iter().any(|range| range.contains(*a)));
            NodePorts::At(within.chain(own.iter().copied().filter(|_| *primary)).collect())
        }
    }
}

/// Why node ports are open at fewer addresses than was asked for.
#[must_use]
pub fn why_closed(settings: &Settings, machine: &Machine, own: &BTreeSet<IpAddr>) -> Option<&'static str> {
    match (&settings.node_port_addresses, node_ports(settings, machine, own)) {
        (NodePortAddresses::Some { primary: true, .. }, _) if own.is_empty() => Some(
            "this node's address is not known: there is no Node with an InternalIP, no default route, and not \
             exactly one address",
        ),
        (_, NodePorts::At(addresses)) if addresses.is_empty() => Some(
            "--nodeport-addresses fits no address of this node (only IPv4 ones count, and no loopback ones)",
        ),
        _ => None,
    }
}

/// The name of this node: the one that was given, or the host's. A host's name that can't be a node's is made
/// one, as nothing else depends on it than which endpoints and which Node are ours.
#[must_use]
pub fn node_name(settings: &Settings) -> Option<NodeName> {
    settings.node_name.clone().or_else(|| {
        let host = rustix::system::uname().nodename().to_string_lossy().trim().to_lowercase();
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '-' };
        let name: String = host.chars().map(plain).collect();
        name.trim_matches(['-', '.']).parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use proxy_core::services::Service;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn machine(default_route: Option<u32>) -> Machine {
        let address = |device: u32, text: &str| (device, text.parse::<Ipv4Addr>().unwrap());
        let name = |name: &str| name.parse::<IfName>().unwrap();
        Machine {
            addresses: vec![address(2, "192.0.2.10"), address(2, "192.0.2.11"), address(3, "10.244.1.1")],
            anycast: [Ipv4Addr::new(203, 0, 113, 5)].into(),
            itself: [ip("192.0.2.10"), ip("192.0.2.11")].into(),
            default_route: default_route.map(|device| (device, None)),
            last_resort: BTreeSet::new(),
            devices: [(2, name("eth0")), (3, name("cni0"))].into(),
        }
    }

    #[test]
    fn the_primary_address_is_the_nodes_then_the_default_routes_then_the_only_one() {
        let pods = ["10.244.0.0/16".parse().unwrap()];
        let internal = [ip("192.0.2.11"), ip("fd00::1")];
        assert_eq!(machine(Some(2)).primary(Some(&internal), &pods), [ip("192.0.2.11")].into());
        assert_eq!(machine(Some(2)).primary(None, &pods), [ip("192.0.2.10")].into());
        assert_eq!(machine(Some(2)).primary(Some(&[]), &pods), [ip("192.0.2.10")].into());
        assert_eq!(machine(None).primary(None, &pods), BTreeSet::new(), "two to choose from");
        let mut one = machine(None);
        one.addresses.remove(1);
        assert_eq!(one.primary(None, &pods), [ip("192.0.2.10")].into(), "a pod bridge's does not count");
        assert_eq!(one.primary(None, &[]), BTreeSet::new());
    }

    #[test]
    fn a_device_without_addresses_and_routes_may_come_and_go() {
        let mut routed = machine(Some(9));
        routed.last_resort = [("10.96.0.0/12".parse().unwrap(), 8)].into();
        let needed: Vec<_> = (1..10).filter(|device| routed.depends_on(*device)).collect();
        assert_eq!(needed, [2, 3, 8, 9]);
    }

    #[test]
    fn node_ports_that_are_open_nowhere_are_told() {
        let why = |words: &str, own: &[IpAddr]| {
            let arguments = ["--from=file:x".to_owned(), format!("--nodeport-addresses={words}")];
            let settings = crate::flags::tests::parse(&arguments.join(" ")).unwrap();
            why_closed(&settings, &machine(None), &own.iter().copied().collect()).unwrap_or_default()
        };
        for nowhere in ["::/0", "127.0.0.0/8", "198.51.100.0/24"] {
            assert!(why(nowhere, &[ip("192.0.2.10")]).contains("fits no address"), "{nowhere}");
        }
        for somewhere in ["all", "primary", "192.0.2.0/24", "203.0.113.0/24", "primary,::/0"] {
            assert_eq!(why(somewhere, &[ip("192.0.2.10")]), "", "{somewhere}");
        }
        assert!(why("primary", &[]).contains("is not known"));
    }

    #[test]
    fn a_service_at_an_address_of_the_host_is_told() {
        let at = |address: &str| {
            Object::Service(Service { cluster_ips: [ip("10.96.0.1"), ip(address)].into(), ports: [].into() })
        };
        assert_eq!(machine(None).taken_by(&at("192.0.2.11")), Some(ip("192.0.2.11")));
        assert_eq!(machine(None).taken_by(&at("192.0.2.12")), None);
    }

    #[test]
    fn what_an_earlier_run_knew_of_the_node_counts_while_the_machine_agrees() {
        let node = |addresses: &[&str]| Object::Node(addresses.iter().map(|text| ip(text)).collect());
        assert!(!machine(None).contradicts(&node(&["192.0.2.10", "203.0.113.5"])));
        assert!(machine(None).contradicts(&node(&["192.0.2.10", "192.0.2.12"])));
    }

    #[test]
    fn last_resort_routes_are_wanted_while_there_is_no_default_route() {
        let (to, own) = (["10.96.0.0/12".parse().unwrap()].into(), [ip("192.0.2.11")].into());
        assert_eq!(machine(None).wanted_routes(&to, &own), [("10.96.0.0/12".parse().unwrap(), 2)].into());
        assert_eq!(machine(Some(2)).wanted_routes(&to, &own), BTreeSet::new());
        assert_eq!(machine(None).wanted_routes(&to, &[ip("198.51.100.1")].into()), BTreeSet::new());
        let route = last_resort("10.96.0.0/12".parse().unwrap(), 2);
        assert!(is_last_resort(&route));
    }
}

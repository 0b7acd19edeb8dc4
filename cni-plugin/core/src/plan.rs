//! What an attachment consists of.

use std::{fmt, net::IpAddr};

use netmodel::{Mac, Subnet};

use crate::{
    Attachment, Bridge, Code, Dns, Error, IpConfig, Outcome, Route,
    address::{default_route, usual_gateway},
    attachment::mix,
};

/// The scope of what is on the link (`RT_SCOPE_LINK`); larger numbers are nearer.
const LINK_SCOPE: u8 = 253;

/// An address that was reserved for the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The address.
    pub address: IpAddr,
    /// The subnet's prefix length.
    pub prefix: u8,
    /// The range's gateway.
    pub gateway: Option<IpAddr>,
}

/// What address management gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leased {
    /// The addresses.
    pub addresses: Vec<Chosen>,
    /// Routes for the container.
    pub routes: Vec<Route>,
    /// Name service for the container.
    pub dns: Dns,
}

impl Leased {
    /// What another plugin gave, by its result.
    ///
    /// # Errors
    /// It gave no address.
    pub fn from_result(result: Outcome) -> Result<Self, Error> {
        if result.ips.is_empty() {
            return Err(Error::new(Code::Internal, "IPAM plugin returned missing IP config"));
        }
        let chosen = |ip: &IpConfig| Chosen { address: ip.address, prefix: ip.prefix, gateway: ip.gateway };
        let addresses = result.ips.iter().map(chosen).collect();
        Ok(Self { addresses, routes: result.routes, dns: result.dns })
    }
}

/// An address with its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAddress {
    /// The address.
    pub address: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A route as it is set in the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRoute {
    /// Where to, and the options.
    pub route: Route,
    /// Through which gateway; `None` for a neighbour on the link.
    pub via: Option<IpAddr>,
}

/// Everything that ADD makes beyond links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The container's addresses, with gateways as the result reports them.
    pub addresses: Vec<Chosen>,
    /// The container's routes.
    pub routes: Vec<PodRoute>,
    /// The routes as the result reports them, none where the container has no address of the family.
    pub reported: Vec<Route>,
    /// Addresses of the bridge, or of the interface in its VLAN.
    pub gateways: Vec<HostAddress>,
    /// The container end's Ethernet address.
    pub mac: Mac,
    /// The Ethernet address of a bridge that has to be made.
    pub bridge_mac: Mac,
    /// The Ethernet address of an interface for the gateways, where that is not the bridge.
    pub gateway_mac: Mac,
}

impl Plan {
    /// The attachment of `who` to `bridge` with the addresses and routes that address management gave.
    #[must_use]
    pub fn new(bridge: &Bridge, who: &Attachment, chosen: &[Chosen], routes: &[Route]) -> Self {
        let addresses: Vec<Chosen> = chosen
            .iter()
            .map(|c| Chosen {
                gateway: c
                    .gateway
                    .or_else(|| bridge.is_gateway.then(|| usual_gateway(c.address, c.prefix)).flatten()),
                ..*c
            })
            .collect();
        let has_family = |route: &Route| chosen.iter().any(|c| c.address.is_ipv4() == route.dst.is_ipv4());
        let mut reported: Vec<Route> = routes.iter().copied().filter(has_family).collect();
        if bridge.is_default_gateway {
            for ipv4 in [true, false] {
                let found = |r: &Route| r.dst.prefix() == 0 && r.dst.is_ipv4() == ipv4 && r.gw.is_some();
                if !reported.iter().any(found) {
                    reported.extend(gateway_of(&addresses, ipv4).and_then(|gw| default_route(ipv4, gw)));
                }
            }
        }
        let mut gateways: Vec<HostAddress> = Vec::new();
        for address in addresses.iter().filter(|_| bridge.is_gateway) {
            let gateway = address.gateway.map(|gw| HostAddress { address: gw, prefix: address.prefix });
            gateways.extend(gateway.filter(|gw| !gateways.contains(gw)));
        }
        Self {
            // Others' address management finds the interface in its place, before it has an address.
            mac: bridge
                .mac
                .unwrap_or_else(|| mac_for(addresses.first().filter(|_| bridge.foreign_ipam.is_none()), who)),
            bridge_mac: link_mac(gateways.first().filter(|_| bridge.gateway_link == bridge.bridge), who),
            gateway_mac: link_mac(gateways.first(), who),
            routes: pod_routes(&reported, &addresses),
            addresses,
            reported,
            gateways,
        }
    }
}

/// The gateway of the first address of a family.
fn gateway_of(addresses: &[Chosen], ipv4: bool) -> Option<IpAddr> {
    addresses.iter().filter(|c| c.address.is_ipv4() == ipv4).find_map(|c| c.gateway)
}

/// The routes to set: through the family's gateway where none is named, each destination once per
/// gateway and table.
fn pod_routes(reported: &[Route], addresses: &[Chosen]) -> Vec<PodRoute> {
    let mut routes: Vec<PodRoute> = Vec::with_capacity(reported.len());
    for route in reported {
        let ipv4 = route.dst.is_ipv4();
        // The kernel makes that one, as where a node has the whole pod network for its subnet.
        let own = |c: &Chosen| Subnet::containing(c.address, c.prefix) == Ok(route.dst);
        if route.gw.is_none() && route.table.is_none() && addresses.iter().any(own) {
            continue;
        }
        // The kernel takes no gateway for what is on the link itself.
        let is_beyond = route.scope.is_none_or(|scope| scope < LINK_SCOPE);
        let usual = || gateway_of(addresses, ipv4).filter(|_| is_beyond);
        let planned = PodRoute { route: *route, via: route.gw.or_else(usual) };
        let same = |r: &PodRoute| {
            let key = |r: &PodRoute| (r.route.dst, r.via, r.route.table, r.route.priority);
            key(r) == key(&planned)
        };
        if !routes.iter().any(same) {
            routes.push(planned);
        }
    }
    routes
}

/// `0a:58` and the IPv4 address, or a hash of the IPv6 one: a container that gets an address again
/// has the Ethernet address that neighbours may still remember.
fn mac_for(first: Option<&Chosen>, who: &Attachment) -> Mac {
    first.map_or_else(|| who.pod_mac(), |chosen| mac_of(chosen.address))
}

fn mac_of(address: IpAddr) -> Mac {
    let [a, b, c, d] = match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = mix(v6.octets()).to_be_bytes();
            [a, b, c, d]
        }
    };
    Mac([0x0a, 0x58, a, b, c, d])
}

/// An interface made again for the same gateway has the same address, so that containers go on. One without is not
/// missed by anybody, and other hosts, which it may be connected to, have one of the same name.
fn link_mac(gateway: Option<&HostAddress>, who: &Attachment) -> Mac {
    gateway.map_or_else(|| who.bridge_mac(), |gateway| mac_of(gateway.address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arguments, Network};

    fn plan(tail: &str, chosen: &[(&str, u8, &str)]) -> Plan {
        let text = format!(r#"{{"cniVersion":"1.0.0","name":"n","type":"bridge"{tail}}}"#);
        let network = Network::parse(text.as_bytes()).unwrap();
        let bridge = Bridge::parse(&network, &Arguments::default()).unwrap();
        let who = Attachment { network: "n".into(), container: "c".into(), ifname: "eth0".parse().unwrap() };
        let chosen: Vec<Chosen> = chosen
            .iter()
            .map(|(a, prefix, gw)| Chosen {
                address: a.parse().unwrap(),
                prefix: *prefix,
                gateway: gw.parse().ok(),
            })
            .collect();
        let routes = bridge.ipam.as_ref().map(|ipam| ipam.routes.clone()).unwrap_or_default();
        Plan::new(&bridge, &who, &chosen, &routes)
    }

    fn routes(plan: &Plan) -> Vec<String> {
        let text = |r: &PodRoute| match r.via {
            Some(via) => format!("{} via {via}", r.route.dst),
            None => r.route.dst.to_string(),
        };
        plan.routes.iter().map(text).collect()
    }

    const RANGES: &str = r#","ipam":{"type":"host-local","ranges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"fd00::/64"}]],
        "routes":[{"dst":"10.0.0.0/8"},{"dst":"10.0.0.0/8"},{"dst":"192.0.2.0/24","gw":"10.1.0.9"}]}"#;

    #[test]
    fn a_default_gateway_gives_one_default_route_per_family() {
        let both = [("10.1.0.5", 24, "10.1.0.1"), ("fd00::5", 64, "fd00::1")];
        let plan = plan(&format!(r#","isDefaultGateway":true{RANGES}"#), &both);
        assert_eq!(
            routes(&plan),
            [
                "10.0.0.0/8 via 10.1.0.1",
                "192.0.2.0/24 via 10.1.0.9",
                "0.0.0.0/0 via 10.1.0.1",
                "::/0 via fd00::1"
            ]
        );
        assert_eq!(plan.gateways.len(), 2);
        assert_eq!(plan.mac.to_string(), "0a:58:0a:01:00:05");
        assert_eq!(plan.bridge_mac.to_string(), "0a:58:0a:01:00:01");
    }

    #[test]
    fn the_gateway_of_a_vlan_is_not_the_bridge() {
        let plan = plan(r#","isGateway":true,"vlan":100"#, &[("10.1.0.5", 24, "")]);
        assert_eq!(plan.gateway_mac.to_string(), "0a:58:0a:01:00:01");
        assert_ne!(plan.bridge_mac, plan.gateway_mac);
    }

    #[test]
    fn a_route_to_the_own_subnet_is_the_kernels() {
        let ranges = RANGES.replace("10.0.0.0/8", "10.1.0.0/24");
        let plan = plan(&ranges, &[("10.1.0.5", 24, "10.1.0.1")]);
        assert_eq!(routes(&plan), ["192.0.2.0/24 via 10.1.0.9"]);
    }

    #[test]
    fn without_a_gateway_the_bridge_has_no_address() {
        let plan = plan(RANGES, &[("10.1.0.5", 24, "10.1.0.1")]);
        assert!(plan.gateways.is_empty());
        assert_eq!(routes(&plan)[0], "10.0.0.0/8 via 10.1.0.1");
    }

    #[test]
    fn a_missing_gateway_is_the_first_address() {
        let plan = plan(r#","isGateway":true"#, &[("10.1.0.5", 24, "")]);
        assert_eq!(plan.addresses[0].gateway, "10.1.0.1".parse().ok());
    }

    #[test]
    fn no_addresses_is_a_plain_cable() {
        let plan = plan("", &[]);
        assert!(plan.routes.is_empty() && plan.gateways.is_empty() && !plan.mac.is_multicast());
    }
}

//! CHECK: what ADD reported against what is there.

use std::net::IpAddr;

use netmodel::{IfName, Mac, Subnet};

use crate::{Bridge, Code, Error, HostAddress, Outcome, Route};

/// The table of routes that name none (`RT_TABLE_MAIN`).
const MAIN_TABLE: u32 = 254;

/// One interface as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenLink {
    /// It is of the kind that it must be: a bridge, a veth.
    pub right_kind: bool,
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// It is up.
    pub up: bool,
}

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The bridge.
    pub bridge: Option<SeenLink>,
    /// Addresses of the bridge, or of the gateways' interface in its VLAN.
    pub bridge_addresses: Vec<IpAddr>,
    /// The container's interface.
    pub pod: Option<SeenLink>,
    /// Addresses of the container's interface.
    pub addresses: Vec<HostAddress>,
    /// Routes in the container: where to, through which gateway, and in which table.
    pub routes: Vec<(Subnet, Option<IpAddr>, u32)>,
    /// The host's end is there, and a port of the bridge.
    pub host_joined: Option<bool>,
    /// Addresses whose reservation names this attachment.
    pub reserved: Vec<IpAddr>,
    /// What of masquerading, host ports and the guard against foreign Ethernet addresses is missing, in words.
    pub missing: Vec<String>,
}

/// Compares. Whatever else is there, by others, is fine.
///
/// # Errors
/// One error that names every difference.
pub fn check(bridge: &Bridge, ifname: &IfName, previous: &Outcome, seen: &Seen) -> Result<(), Error> {
    let mut wrong = Vec::new();
    links(bridge, ifname, previous, seen, &mut wrong);
    for ip in previous.addresses_of(ifname.as_str()) {
        let text = format!("{}/{}", ip.address, ip.prefix);
        if !seen.addresses.contains(&HostAddress { address: ip.address, prefix: ip.prefix }) {
            wrong.push(format!("address {text} is not on {ifname}"));
        }
        if bridge.ipam.is_some() && !seen.reserved.contains(&ip.address) {
            wrong.push(format!("address {text} is not reserved for this container"));
        }
        let gateway = ip.gateway.filter(|_| bridge.is_gateway);
        if let Some(gateway) = gateway.filter(|gw| !seen.bridge_addresses.contains(gw)) {
            let what = if bridge.gateway_link == bridge.bridge { "bridge" } else { "interface" };
            wrong.push(format!("gateway {gateway} is not on {what} {}", bridge.gateway_link));
        }
    }
    wrong.extend(seen.missing.iter().cloned());
    // No others are set than those of families that the container has an address of.
    let has_family = |route: &Route| {
        previous.addresses_of(ifname.as_str()).any(|ip| ip.address.is_ipv4() == route.dst.is_ipv4())
    };
    let absent = previous.routes.iter().filter(|route| has_family(route) && !is_set(route, bridge, seen));
    wrong.extend(absent.map(|route| format!("route {} is missing", route.dst)));
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Error::new(Code::Internal, format!("the attachment is not as it was made: {}", wrong.join("; "))))
}

/// A default route may have been given another gateway, as in the reference. Results before 1.1.0 don't tell of the
/// table that the configuration names.
fn is_set(route: &Route, bridge: &Bridge, seen: &Seen) -> bool {
    let configured = bridge.ipam.iter().flat_map(|ipam| &ipam.routes).filter(|other| other.dst == route.dst);
    let tables: Vec<u32> = match route.table {
        Some(table) => vec![table],
        None => configured.filter_map(|other| other.table).chain([MAIN_TABLE]).collect(),
    };
    let any_gateway = route.gw.is_none() || route.dst.prefix() == 0;
    let is_it = |(dst, gw, table): &(Subnet, Option<IpAddr>, u32)| {
        *dst == route.dst && (any_gateway || *gw == route.gw) && tables.contains(table)
    };
    seen.routes.iter().any(is_it)
}

fn links(bridge: &Bridge, ifname: &IfName, previous: &Outcome, seen: &Seen, wrong: &mut Vec<String>) {
    let reported = |name: &str, sandboxed: bool| {
        previous.interfaces.iter().find(|i| i.name == name && i.sandbox.is_empty() != sandboxed)
    };
    for (name, what, link, sandboxed) in
        [(&bridge.bridge, "bridge", &seen.bridge, false), (ifname, "veth", &seen.pod, true)]
    {
        let Some(link) = link else {
            wrong.push(format!("interface {name} does not exist"));
            continue;
        };
        if !link.right_kind {
            wrong.push(format!("interface {name} is no {what}"));
        }
        let may_be_down = sandboxed && bridge.container_down;
        if !link.up && !may_be_down {
            wrong.push(format!("interface {name} is down"));
        }
        let Some(before) = reported(name.as_str(), sandboxed) else {
            wrong.push(format!("interface {name} is not in prevResult"));
            continue;
        };
        let expected: Option<Mac> = before.mac.parse().ok();
        if let Some(expected) = expected.filter(|mac| Some(*mac) != link.mac) {
            let found = link.mac.map_or("none".to_owned(), |mac| mac.to_string());
            wrong.push(format!("interface {name} Mac {found} doesn't match {expected}"));
        }
    }
    match seen.host_joined {
        None if seen.pod.is_some() => wrong.push(format!("the host's end of {ifname} does not exist")),
        Some(false) => wrong.push(format!("the host's end of {ifname} is no port of {}", bridge.bridge)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arguments, Network};

    const CONFIG: &str = r#"{"cniVersion":"1.0.0","name":"n","type":"bridge","isGateway":true,
        "ipam":{"type":"host-local","subnet":"10.1.0.0/24"}}"#;
    const PREVIOUS: &str = r#"{"cniVersion":"0.4.0",
        "interfaces":[{"name":"cni0","mac":"0a:58:0a:01:00:01"},{"name":"veth1"},
                      {"name":"eth0","mac":"0a:58:0a:01:00:05","sandbox":"/n"}],
        "ips":[{"version":"4","interface":2,"address":"10.1.0.5/24","gateway":"10.1.0.1"}],
        "routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1"},{"dst":"10.0.0.0/8"}],"dns":{}}"#;

    fn link(mac: &str) -> Option<SeenLink> {
        Some(SeenLink { right_kind: true, mac: mac.parse().ok(), up: true })
    }

    fn intact() -> Seen {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        Seen {
            bridge: link("0a:58:0a:01:00:01"),
            bridge_addresses: vec![ip("10.1.0.1")],
            pod: link("0a:58:0a:01:00:05"),
            addresses: vec![
                HostAddress { address: ip("10.1.0.5"), prefix: 24 },
                HostAddress { address: ip("192.0.2.1"), prefix: 32 },
            ],
            routes: vec![
                ("0.0.0.0/0".parse().unwrap(), Some(ip("10.1.0.9")), MAIN_TABLE),
                ("10.0.0.0/8".parse().unwrap(), Some(ip("10.1.0.1")), MAIN_TABLE),
                ("192.0.2.0/24".parse().unwrap(), None, MAIN_TABLE),
            ],
            host_joined: Some(true),
            reserved: vec![ip("10.1.0.5")],
            missing: vec![],
        }
    }

    fn difference(change: impl FnOnce(&mut Seen)) -> String {
        let network = Network::parse(CONFIG.as_bytes()).unwrap();
        let bridge = Bridge::parse(&network, &Arguments::default()).unwrap();
        let previous = Outcome::parse(&serde_json::from_str(PREVIOUS).unwrap()).unwrap();
        let mut seen = intact();
        change(&mut seen);
        let answer = check(&bridge, &"eth0".parse().unwrap(), &previous, &seen);
        answer
            .map_or_else(|e| e.msg.replace("the attachment is not as it was made: ", ""), |()| String::new())
    }

    #[test]
    fn intact_with_strangers_is_fine() {
        assert_eq!(difference(|_| ()), "");
    }

    #[test]
    fn each_loss_is_named() {
        assert_eq!(difference(|s| s.pod = None), "interface eth0 does not exist");
        assert_eq!(difference(|s| s.pod.as_mut().unwrap().up = false), "interface eth0 is down");
        assert_eq!(
            difference(|s| s.pod.as_mut().unwrap().mac = "02:00:00:00:00:01".parse().ok()),
            "interface eth0 Mac 02:00:00:00:00:01 doesn't match 0a:58:0a:01:00:05"
        );
        assert_eq!(
            difference(|s| s.bridge.as_mut().unwrap().right_kind = false),
            "interface cni0 is no bridge"
        );
        assert_eq!(difference(|s| s.host_joined = Some(false)), "the host's end of eth0 is no port of cni0");
        assert_eq!(difference(|s| s.host_joined = None), "the host's end of eth0 does not exist");
        assert_eq!(difference(|s| s.addresses.truncate(0)), "address 10.1.0.5/24 is not on eth0");
        assert_eq!(
            difference(|s| s.reserved.clear()),
            "address 10.1.0.5/24 is not reserved for this container"
        );
        assert_eq!(difference(|s| s.routes.truncate(1)), "route 10.0.0.0/8 is missing");
        assert_eq!(difference(|s| s.routes[1].2 = 300), "route 10.0.0.0/8 is missing");
        assert_eq!(
            difference(|s| s.routes.truncate(0)),
            "route 0.0.0.0/0 is missing; route 10.0.0.0/8 is missing"
        );
        assert_eq!(
            difference(|s| s.missing = vec!["host port 80/tcp does not lead to 10.1.0.5".into()]),
            "host port 80/tcp does not lead to 10.1.0.5"
        );
        assert_eq!(difference(|s| s.bridge_addresses.clear()), "gateway 10.1.0.1 is not on bridge cni0");
    }
}

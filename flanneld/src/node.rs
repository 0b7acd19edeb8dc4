//! Which interface leads to the other nodes, and what else is to be known about this one.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use linux::{
    address::{Address, Scope},
    link::{Kind, Link},
    netlink::RouteSocket,
    route::{BOOT_PROTOCOL, Filter, Route},
};
use netmodel::{Mtu, ROUTE_PROTOCOL, Subnet, Vni};
use overlay_core::{
    host::{
        ByHand, DeviceKind, HostPrefix, NodeFacts, NodeIdentity, POD_BRIDGES, Underlay, no_nodes_address,
    },
    wire::{BadSubnetEnv, SubnetEnv},
};
use sha2::{Digest, Sha256};

use crate::{flags::Settings, linux::DEVICE_PREFIX};

/// Why nothing is known about this node yet. It may change: waiting helps.
#[derive(Debug, thiserror::Error)]
pub enum NotYet {
    /// The kernel did not answer.
    #[error(transparent)]
    Kernel(#[from] linux::Error),
    /// No interface is the one that was asked for.
    #[error("no interface fits {0}")]
    NoInterface(String),
    /// Nothing says which interface leads to the other nodes.
    #[error("there is no default route, and {0}: name the interface with -iface")]
    Undecided(String),
    /// The interface can't be used.
    #[error("interface {name} {why}")]
    Useless {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// What the kernel says about this host.
#[derive(Debug)]
pub struct Host {
    /// All interfaces.
    pub links: Vec<Link>,
    /// All addresses.
    pub addresses: Vec<Address>,
    /// The IPv4 routes of the main table.
    pub routes: Vec<Route>,
}

impl Host {
    /// Reads it all.
    ///
    /// # Errors
    /// The kernel did not answer.
    pub fn read(socket: &mut RouteSocket) -> Result<Self, linux::Error> {
        Ok(Self {
            links: socket.links()?,
            addresses: socket.addresses(None)?,
            routes: socket.routes(Filter::main(true))?,
        })
    }

    fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The interface that holds an address.
    fn holder(&self, ip: IpAddr) -> Option<&Link> {
        let address = self.addresses.iter().find(|address| address.address == ip)?;
        self.link(address.device)
    }

    /// The VXLAN device has the address of the earlier subnet: it is ours, though somebody renamed it.
    fn is_renamed(&self, link: &Link, previous: Option<Subnet>) -> bool {
        let held = |a: &Address| {
            a.device == link.index && a.prefix == 32 && Some(a.address) == previous.map(|p| p.address())
        };
        self.addresses.iter().any(held)
    }

    /// The address that tunnelled packets of an earlier run leave with.
    fn former_local(&self, previous: Option<Subnet>) -> Option<Ipv4Addr> {
        let local = |link: &Link| match &link.kind {
            Kind::Vxlan(facts) => facts.local.and_then(ipv4),
            _ => None,
        };
        self.links.iter().filter(|link| self.is_renamed(link, previous)).find_map(local)
    }

    /// IPv4 addresses of an interface, the best first: not deprecated, of global scope, in use by us already
    /// (else one that comes and goes beside it, such as keepalived's, would be told to all peers), not
    /// from a lease.
    fn ipv4(&self, device: u32, in_use: Option<Ipv4Addr>) -> Vec<Ipv4Addr> {
        let mut found: Vec<_> = self.addresses.iter().filter(|a| a.device == device).collect();
        let is_other = |a: &Address| Some(a.address) != in_use.map(IpAddr::V4);
        found.sort_by_key(|a| (a.deprecated, a.scope != Scope::Global, is_other(a), a.dynamic));
        found.iter().filter_map(|a| ipv4(a.address)).collect()
    }
}

fn ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

/// The subnet that an earlier run wrote into the subnet file; `None` where there is no file.
///
/// # Errors
/// The file names no subnet.
pub fn previous(subnet_file: &Path) -> Result<Option<Subnet>, BadSubnetEnv> {
    let Ok(text) = fs::read(subnet_file) else { return Ok(None) };
    SubnetEnv::previous(&String::from_utf8_lossy(&text)).map(Some)
}

/// Gathers the facts about this node; `in_use` is its address as far as it is known.
///
/// # Errors
/// The interface that leads to other nodes can't be told yet.
pub fn facts(
    settings: &Settings,
    in_use: Option<Ipv4Addr>,
    socket: &mut RouteSocket,
) -> Result<NodeFacts, NotYet> {
    let host = Host::read(socket)?;
    let previous = previous(&settings.subnet_file).unwrap_or_default();
    let link = choose(settings, &host, previous, socket)?;
    let in_use = in_use.or_else(|| host.former_local(previous));
    let underlay = underlay(settings, &host, link, in_use)?;
    Ok(NodeFacts {
        identity: identity(link),
        public_ip: settings.public_ip.unwrap_or(underlay.address),
        underlay,
        vteps: vteps(&host, previous),
        host: prefixes(&host, previous),
        previous,
    })
}

/// The interface that leads to the other nodes, by flannel's rules; where there is no default route, the
/// one with the only address that fits.
fn choose<'a>(
    settings: &Settings,
    host: &'a Host,
    pods: Option<Subnet>,
    socket: &mut RouteSocket,
) -> Result<&'a Link, NotYet> {
    let asked =
        !settings.iface.is_empty() || !settings.iface_regex.is_empty() || settings.iface_can_reach.is_some();
    if asked {
        return by_wish(settings, host, socket)?.ok_or_else(|| NotYet::NoInterface(wish(settings)));
    }
    if let Some(ip) = settings.public_ip {
        let none = || {
            NotYet::NoInterface(format!(
                "-public-ip {ip} (where it is not an address of this host, name the interface with -iface)"
            ))
        };
        return host.holder(ip.into()).ok_or_else(none);
    }
    by_default_route(host).map_or_else(|| only_one(host, pods), Ok)
}

/// The first interface that one of the flags means, in their order.
fn by_wish<'a>(
    settings: &Settings,
    host: &'a Host,
    socket: &mut RouteSocket,
) -> Result<Option<&'a Link>, NotYet> {
    for wish in &settings.iface {
        let by_ip = wish.parse().ok().and_then(|ip| host.holder(ip));
        let found = by_ip.or_else(|| host.links.iter().find(|link| link.name.as_str() == wish));
        if found.is_some() {
            return Ok(found);
        }
    }
    for pattern in &settings.iface_regex {
        let of_address =
            |link: &&Link| host.ipv4(link.index, None).iter().any(|ip| pattern.is_match(&ip.to_string()));
        let by_ip = host.links.iter().find(of_address);
        let found = by_ip.or_else(|| host.links.iter().find(|link| pattern.is_match(link.name.as_str())));
        if found.is_some() {
            return Ok(found);
        }
    }
    let Some(ip) = settings.iface_can_reach else { return Ok(None) };
    Ok(socket.way_to(ip)?.and_then(|way| host.link(way.device)))
}

/// The flags that were given, for a message.
fn wish(settings: &Settings) -> String {
    let mut flags: Vec<String> = settings.iface.iter().map(|wish| format!("-iface {wish}")).collect();
    flags.extend(settings.iface_regex.iter().map(|pattern| format!("-iface-regex {pattern}")));
    flags.extend(settings.iface_can_reach.map(|ip| format!("-iface-can-reach {ip}")));
    flags.join(", ")
}

/// The interface of the default route with the lowest metric.
fn by_default_route(host: &Host) -> Option<&Link> {
    let mut defaults: Vec<_> = host.routes.iter().filter(|route| route.destination.prefix() == 0).collect();
    defaults.sort_by_key(|route| route.metric.unwrap_or(0));
    let device = |route: &&Route| route.device.or(route.multipath.first().map(|hop| hop.device));
    defaults.iter().filter_map(device).find_map(|index| host.link(index))
}

/// The interface with the only address that other nodes could send to: not one of this node's own pods.
fn only_one(host: &Host, pods: Option<Subnet>) -> Result<&Link, NotYet> {
    let fits = |link: &&Link| {
        let inner = matches!(link.kind, Kind::Vxlan(_)) || POD_BRIDGES.contains(&link.name.as_str());
        let outer = |a: &Address| {
            a.device == link.index
                && a.address.is_ipv4()
                && a.scope == Scope::Global
                && !pods.is_some_and(|pods| pods.contains(a.address))
        };
        link.up && !link.loopback && !inner && host.addresses.iter().any(outer)
    };
    let candidates: Vec<_> = host.links.iter().filter(fits).collect();
    match candidates.as_slice() {
        [link] => Ok(link),
        [] => Err(NotYet::Undecided("no interface has an IPv4 address".to_owned())),
        several => {
            let names: Vec<_> = several.iter().map(|link| link.name.as_str()).collect();
            Err(NotYet::Undecided(format!("{} have addresses", names.join(", "))))
        }
    }
}

fn underlay(
    settings: &Settings,
    host: &Host,
    link: &Link,
    in_use: Option<Ipv4Addr>,
) -> Result<Underlay, NotYet> {
    let useless = |why| NotYet::Useless { name: link.name.to_string(), why };
    let addresses = host.ipv4(link.index, in_use);
    let named = |ip: &&Ipv4Addr| settings.public_ip == Some(**ip) || settings.iface.contains(&ip.to_string());
    let address = addresses.iter().find(named).or(addresses.first());
    let address = *address.ok_or_else(|| useless("has no IPv4 address"))?;
    if no_nodes_address(address).is_some() {
        return Err(useless("has no address that other nodes can send to"));
    }
    Ok(Underlay {
        name: link.name.clone(),
        index: link.index,
        address,
        mtu: Mtu::try_from(u64::from(link.mtu.min(u32::from(u16::MAX))))
            .ok()
            .filter(|mtu| mtu.get() >= overlay_core::LEAST_UNDERLAY_MTU)
            .ok_or_else(|| useless("has an MTU that is too small for VXLAN"))?,
    })
}

/// The VXLAN devices that look like flannel's.
fn vteps(host: &Host, previous: Option<Subnet>) -> Vec<(Vni, netmodel::Mac)> {
    let vtep = |link: &Link| {
        let Kind::Vxlan(facts) = &link.kind else { return None };
        let mac = link.mac.filter(|mac| !mac.is_zero() && !mac.is_multicast())?;
        let vni = facts.vni?;
        let named = link.name.as_str() == format!("{DEVICE_PREFIX}{vni}");
        (named || host.is_renamed(link, previous)).then_some((vni, mac))
    };
    host.links.iter().filter_map(vtep).collect()
}

/// What this host uses of IPv4, except through devices like ours and by routes of ours.
fn prefixes(host: &Host, previous: Option<Subnet>) -> Vec<HostPrefix> {
    let tunnel = |index: Option<u32>| {
        let link = index.and_then(|index| host.link(index));
        link.filter(|link| matches!(link.kind, Kind::Vxlan(_))).is_some_and(|link| {
            link.name.as_str().starts_with(DEVICE_PREFIX) || host.is_renamed(link, previous)
        })
    };
    let place = |index: Option<u32>| {
        let link = index.and_then(|index| host.link(index));
        let kind = match link.map(|link| &link.kind) {
            Some(Kind::Bridge) => DeviceKind::Bridge,
            Some(Kind::Veth) => DeviceKind::Veth,
            _ => DeviceKind::Other,
        };
        (link.map(|link| link.name.clone()), kind)
    };
    let address = |a: &Address| {
        let ip = ipv4(a.address)?;
        let subnet = Subnet::containing(a.address, a.prefix).ok()?;
        let (device, kind) = place(Some(a.device));
        (!tunnel(Some(a.device))).then_some(HostPrefix {
            subnet,
            address: Some(ip),
            device,
            kind,
            by_hand: None,
        })
    };
    let route = |route: &Route| {
        let index = route.device.or(route.multipath.first().map(|hop| hop.device));
        let (device, kind) = place(index);
        let counts = !tunnel(index) && route.protocol != ROUTE_PROTOCOL && route.destination.prefix() > 0;
        let by_hand = (route.protocol == BOOT_PROTOCOL)
            .then(|| ByHand { metric: route.metric.unwrap_or(0), gateway: route.gateway.and_then(ipv4) });
        let prefix = HostPrefix { subnet: route.destination, address: None, device, kind, by_hand };
        counts.then_some(prefix)
    };
    host.addresses.iter().filter_map(address).chain(host.routes.iter().filter_map(route)).collect()
}

/// A hash of what stays when this node's address changes: the machine's own number, and the Ethernet
/// address of the interface, since copies of a machine (and containers on it) share the former.
fn identity(link: &Link) -> NodeIdentity {
    let machine = ["/etc/machine-id", "/var/lib/dbus/machine-id", "/proc/sys/kernel/hostname"]
        .iter()
        .find_map(|path| first_line(Path::new(path)));
    let mut hash = Sha256::new();
    hash.update(b"weft node\0");
    hash.update(machine.unwrap_or_default());
    hash.update(b"\0");
    match link.mac.filter(|mac| !mac.is_zero()) {
        Some(mac) => hash.update(mac.0),
        None => hash.update(link.name.as_str()),
    }
    let digest = hash.finalize();
    let mut identity = [0; 16];
    identity.copy_from_slice(&digest[..16]);
    NodeIdentity(identity)
}

/// The first line of a file, if there is something in it.
fn first_line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
}

//! The real kernel behind [`overlay_core::kernel::Kernel`].

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use linux::{
    address::{Address, IfPresent},
    fdb::Entry,
    link::{self, Change, Kind, Link, VxlanFacts},
    neighbour::{Neighbour, State},
    netlink::{Request, RouteSocket},
    route::{self, Filter, Route},
    sysctl,
};
use netmodel::{IfName, Mac, Mtu, Port, ROUTE_PROTOCOL, Subnet};
use overlay_core::{
    backend::vxlan,
    host::NodeFacts,
    kernel::Kernel,
    lease::Assignment,
    op::Op,
    overlay::{Device, Hop, Overlay, Remote, RouteKey},
};

use crate::status::Earlier;

/// Operations that are packed before they are sent: those of thousands of peers need not all be in memory.
const AT_ONCE: usize = 1024;

/// What the VXLAN devices are named by, with the VNI behind it.
pub const DEVICE_PREFIX: &str = "flannel.";

/// Which part of the kernel's state is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Name of the VXLAN device.
    pub device: IfName,
    /// Inside it a route through our device is ours, whoever wrote it.
    pub network: Subnet,
    /// Index of the interface that tunnelled packets leave by: a device may be bound to it.
    pub underlay: u32,
    /// The device that is wanted.
    pub wanted: Device,
    /// Kernel settings by path below `/proc/sys/`.
    pub sysctls: Vec<String>,
}

impl Scope {
    /// What is to be looked at where `want` is wanted.
    #[must_use]
    pub fn new(assignment: &Assignment, facts: &NodeFacts, want: &Overlay) -> Self {
        let config = &assignment.config;
        Self {
            device: config.vxlan.device.clone(),
            network: config.network,
            underlay: facts.underlay.index,
            wanted: vxlan::device(config, &assignment.own, facts),
            sysctls: want.sysctls.keys().cloned().collect(),
        }
    }
}

/// Removes a VXLAN device, the routes of ours through it and, whichever way they lead, those inside `network`; each
/// whatever becomes of the others.
///
/// # Errors
/// The kernel refused something, or did not answer.
pub(crate) fn remove_device(
    device: &IfName,
    network: Option<Subnet>,
    socket: &mut RouteSocket,
) -> Result<(), linux::Error> {
    let link = socket.link(device)?.filter(|link| matches!(link.kind, Kind::Vxlan(_)));
    let of_ours = Filter { protocol: Some(ROUTE_PROTOCOL), ..Filter::main(true) };
    let index = link.as_ref().map(|link| link.index);
    let mut requests = Vec::new();
    for route in socket.routes(of_ours)? {
        // Those of other programs of Weft have the same number.
        let inside = network.is_some_and(|network| ours(&route, index, &network).is_some());
        if inside || (index.is_some() && route.device == index) {
            requests.push(route.delete(device));
        }
    }
    requests.extend(link.map(|link| link::delete(link.index, device)));
    let gone = |result: &Result<(), linux::Error>| !matches!(result, Err(error) if !error.is_not_found());
    socket.apply(&requests).into_iter().find(|result| !gone(result)).unwrap_or(Ok(()))
}

/// The kernel could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It refused, or did not answer.
    #[error(transparent)]
    Linux(#[from] linux::Error),
    /// Something else has the name of our device.
    #[error("interface {0} is there but is no VXLAN device: remove it, or choose another VNI")]
    NotVxlan(IfName),
    /// The device went away.
    #[error("interface {0} is gone")]
    Gone(IfName),
}

impl KernelError {
    /// Trying again does not help: a privilege or a kernel feature is missing.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Linux(error) if error.retry() == linux::Retry::Never)
    }
}

/// Linux, as seen from the network namespace of the thread that made it.
#[derive(Debug)]
pub struct LinuxKernel {
    socket: RouteSocket,
    scope: Scope,
    /// Index of our device when it was last looked at or made.
    index: Option<u32>,
}

impl LinuxKernel {
    /// Opens a connection.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn open(scope: Scope) -> Result<Self, linux::Error> {
        Ok(Self { socket: RouteSocket::open()?, scope, index: None })
    }

    /// Looks at another part from now on. Whether it is another one: what was observed may not hold there.
    pub fn set_scope(&mut self, scope: Scope) -> bool {
        let is_other = self.scope != scope;
        self.scope = scope;
        is_other
    }

    /// Index of our device, if it exists.
    #[must_use]
    pub const fn index(&self) -> Option<u32> {
        self.index
    }

    /// The kernel settings of the scope, as far as this kernel has them.
    #[must_use]
    pub fn settings(&self) -> BTreeMap<String, String> {
        let read = |path: &String| {
            let value = sysctl::read(&path.split('/').collect::<Vec<_>>()).ok()?;
            Some((path.clone(), value))
        };
        self.scope.sysctls.iter().filter_map(read).collect()
    }

    /// Our device, with the name that it has.
    fn find_device(&mut self) -> Result<Option<(IfName, Device)>, KernelError> {
        let last = self.index.take();
        let found = match self.socket.link(&self.scope.device)? {
            None => self.socket.links()?.into_iter().find(|link| self.is_renamed(link, last)),
            found => found,
        };
        let Some(link) = found else { return Ok(None) };
        let Kind::Vxlan(facts) = &link.kind else {
            return Err(KernelError::NotVxlan(self.scope.device.clone()));
        };
        self.index = Some(link.index);
        let device = device(&link, facts, &self.scope);
        Ok(Some((link.name, device)))
    }

    /// The device is ours under another name: it stands where ours has to be, and is the one that we had or
    /// has the Ethernet address that belongs to our lease.
    fn is_renamed(&self, link: &Link, last: Option<u32>) -> bool {
        let wanted = &self.scope.wanted;
        let Kind::Vxlan(facts) = &link.kind else { return false };
        (facts.vni, facts.port) == (Some(wanted.vni), wanted.port.get())
            && (Some(link.index) == last || link.mac == Some(wanted.mac))
    }

    /// What this node had under other VNIs: what it remembers of `earlier` runs, and devices that are named like
    /// ours and hold an address that ours has to have.
    ///
    /// # Errors
    /// The kernel did not answer.
    pub fn leftovers(&mut self, want: &Overlay, earlier: &[Earlier]) -> Result<Vec<Earlier>, linux::Error> {
        let addresses = self.socket.addresses(None)?;
        let holds_ours = |link: &Link| {
            addresses.iter().any(|a| match a.address {
                IpAddr::V4(ip) => a.device == link.index && want.addresses.contains(&(ip, a.prefix)),
                IpAddr::V6(_) => false,
            })
        };
        let is_earlier = |link: &Link| {
            matches!(&link.kind, Kind::Vxlan(facts)
                if facts.vni.is_some_and(|vni| vni != self.scope.wanted.vni
                    && link.name.as_str() == format!("{DEVICE_PREFIX}{vni}")))
        };
        let is_new = |link: &Link| !earlier.iter().any(|known| known.device == link.name.as_str());
        let links = self.socket.links()?;
        let found = links.iter().filter(|link| is_earlier(link) && holds_ours(link) && is_new(link));
        let found = found.map(|link| Earlier { device: link.name.to_string(), network: None });
        Ok(earlier.iter().cloned().chain(found).collect())
    }

    /// Removes a device, and routes inside a network that is no longer ours.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn remove(&mut self, device: &IfName, network: Option<Subnet>) -> Result<(), linux::Error> {
        remove_device(device, network, &mut self.socket)
    }

    /// Entries that hang on our device.
    fn observe_entries(&mut self, index: u32, seen: &mut Overlay) -> Result<(), KernelError> {
        for address in self.socket.addresses(Some(index))? {
            if let IpAddr::V4(ip) = address.address {
                seen.addresses.insert((ip, address.prefix));
            }
        }
        for neighbour in self.socket.neighbours(index)? {
            if let (IpAddr::V4(ip), State::Permanent, Some(mac)) =
                (neighbour.address, neighbour.state, neighbour.mac)
            {
                seen.neighbours.insert(ip, mac);
            }
        }
        let entries = self.socket.fdb(index)?;
        seen.fdb
            .extend(entries.iter().filter(|entry| entry.permanent).map(|entry| (entry.mac, remote(entry))));
        Ok(())
    }

    fn observe_routes(&mut self, seen: &mut Overlay) -> Result<(), KernelError> {
        let mut routes =
            self.socket.routes(Filter { protocol: Some(ROUTE_PROTOCOL), ..Filter::main(true) })?;
        let by_hand = Filter { protocol: Some(route::BOOT_PROTOCOL), ..Filter::main(true) };
        routes.extend(self.socket.routes(by_hand)?);
        if let Some(device) = self.index {
            routes.extend(self.socket.routes(Filter { device: Some(device), ..Filter::main(true) })?);
        }
        for route in &routes {
            seen.routes.extend(ours(route, self.index, &self.scope.network));
        }
        Ok(())
    }

    /// Carries out what can be sent in one go.
    fn send(&mut self, batch: &mut Vec<(usize, Request)>, results: &mut [Result<(), KernelError>]) {
        let (places, requests): (Vec<_>, Vec<_>) = std::mem::take(batch).into_iter().unzip();
        for (place, result) in places.into_iter().zip(self.socket.apply(&requests)) {
            results[place] = result.or_else(settle).map_err(KernelError::from);
        }
    }

    /// Carries out an operation that the later ones need the outcome of.
    fn alone(&mut self, op: &Op) -> Result<(), KernelError> {
        match op {
            Op::SetSysctl(path, value) => {
                sysctl::write(&path.split('/').collect::<Vec<_>>(), value)?;
            }
            Op::AddDevice(name, device) => {
                self.socket.request(&vxlan_device(name, device).add())?;
                self.index = self.socket.link(name)?.map(|link| link.index);
            }
            Op::DelDevice(name) => {
                if let Some(index) = self.index.take() {
                    self.socket.request(&link::delete(index, name)).or_else(settle)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The request for an operation on what hangs on the device.
    fn request(&self, op: &Op) -> Option<Request> {
        match op {
            Op::SetRoute(name, key, hop) if !hop.is_on_device() => {
                return Some(elsewhere(*key, *hop).replace(name));
            }
            Op::DelRoute(name, key, hop) if !hop.is_on_device() => {
                return Some(elsewhere(*key, *hop).delete(name));
            }
            _ => {}
        }
        let index = self.index?;
        Some(match op {
            Op::RenameDevice(name, own) => {
                link::change(index, name, &Change { rename: Some(own), ..Change::default() })
            }
            Op::ChangeDevice(name, device) => {
                link::change_vxlan(index, name, device.local.into(), device.learning)
            }
            Op::SetMac(name, mac) => {
                link::change(index, name, &Change { mac: Some(*mac), ..Change::default() })
            }
            Op::SetMtu(name, mtu) => {
                link::change(index, name, &Change { mtu: Some(*mtu), ..Change::default() })
            }
            Op::SetUp(name) => link::set_up(index, name),
            Op::AddAddress(name, ip, prefix) => {
                Address::new(index, (*ip).into(), *prefix).add(name, IfPresent::Keep)
            }
            Op::DelAddress(name, ip, prefix) => Address::new(index, (*ip).into(), *prefix).delete(name),
            Op::SetFdb(name, mac, node) => Entry::permanent(index, *mac, (*node).into()).replace(name),
            Op::DelFdb(name, mac, remote) => {
                let destination = (!remote.odd).then_some(remote.address.into());
                Entry { device: index, mac: *mac, destination, permanent: true, special: false }.delete(name)
            }
            Op::SetNeighbour(name, ip, mac) => Neighbour::permanent(index, (*ip).into(), *mac).replace(name),
            Op::DelNeighbour(name, ip) => {
                Neighbour::permanent(index, (*ip).into(), Mac::default()).delete(name)
            }
            Op::SetRoute(name, key, hop) => tunnel(index, *key, *hop).replace(name),
            Op::DelRoute(name, key, hop) => tunnel(index, *key, *hop).delete(name),
            Op::SetSysctl(..) | Op::DelDevice(_) | Op::AddDevice(..) => return None,
        })
    }
}

impl Kernel for LinuxKernel {
    type Error = KernelError;

    fn observe(&mut self) -> Result<Overlay, KernelError> {
        let mut seen = Overlay::empty(self.scope.device.clone());
        if let Some((name, device)) = self.find_device()? {
            (seen.name, seen.device) = (name, Some(device));
        }
        if let Some(index) = self.index {
            match self.observe_entries(index, &mut seen) {
                Err(KernelError::Linux(error)) if error.is_not_found() => {
                    return Err(KernelError::Gone(self.scope.device.clone()));
                }
                other => other?,
            }
        }
        self.observe_routes(&mut seen)?;
        seen.sysctls = self.settings();
        Ok(seen)
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), KernelError>> {
        let mut results: Vec<_> = ops.iter().map(|_| Ok(())).collect();
        let mut batch = Vec::new();
        for (place, op) in ops.iter().enumerate() {
            if matches!(op, Op::SetSysctl(..) | Op::DelDevice(_) | Op::AddDevice(..)) {
                self.send(&mut batch, &mut results);
                results[place] = self.alone(op);
            } else if let Some(request) = self.request(op) {
                batch.push((place, request));
                if batch.len() == AT_ONCE {
                    self.send(&mut batch, &mut results);
                }
            } else if !op.removes_entry() {
                // What hung on a device that is gone, is gone as well.
                results[place] = Err(KernelError::Gone(self.scope.device.clone()));
            }
        }
        self.send(&mut batch, &mut results);
        results
    }
}

/// An operation whose effect holds already is a success.
fn settle(error: linux::Error) -> Result<(), linux::Error> {
    if error.verb == "delete" && error.is_not_found() { Ok(()) } else { Err(error) }
}

/// What a device is, in our words. What can't be said in them makes it foreign.
fn device(link: &Link, facts: &VxlanFacts, scope: &Scope) -> Device {
    let local = match facts.local {
        Some(IpAddr::V4(ip)) => Some(ip),
        Some(IpAddr::V6(_)) => None,
        None => Some(Ipv4Addr::UNSPECIFIED),
    };
    let port = Port::try_from(i64::from(facts.port)).ok();
    let mtu = Mtu::try_from(u64::from(link.mtu)).ok();
    let sayable = facts.vni.is_some() && port.is_some() && local.is_some() && mtu.is_some();
    let bound_elsewhere = facts.underlay.is_some_and(|index| index != scope.underlay);
    let asks = facts.group.is_some() || facts.l2_miss || facts.l3_miss;
    Device {
        vni: facts.vni.unwrap_or(scope.wanted.vni),
        port: port.unwrap_or(scope.wanted.port),
        local: local.unwrap_or(Ipv4Addr::UNSPECIFIED),
        gbp: facts.gbp,
        learning: facts.learning,
        mac: link.mac.unwrap_or_default(),
        mtu: mtu.unwrap_or(scope.wanted.mtu),
        up: link.up,
        foreign: !sayable || bound_elsewhere || asks,
    }
}

fn vxlan_device(name: &IfName, device: &Device) -> link::Vxlan {
    link::Vxlan {
        name: name.clone(),
        vni: device.vni,
        port: device.port,
        local: Some(device.local.into()),
        // Not bound to the underlay: a device that is dies with it.
        underlay: None,
        learning: device.learning,
        gbp: device.gbp,
        mac: Some(device.mac),
        mtu: Some(device.mtu),
    }
}

fn remote(entry: &Entry) -> Remote {
    match entry.destination {
        Some(IpAddr::V4(address)) => Remote { address, odd: entry.special },
        _ => Remote { address: Ipv4Addr::UNSPECIFIED, odd: true },
    }
}

/// A route to a peer, as we write it.
fn tunnel(index: u32, key: RouteKey, hop: Hop) -> Route {
    let route = Route { device: Some(index), metric: Some(key.metric), ..Route::to(key.subnet) };
    match hop {
        Hop::Tunnel(gateway) => Route { gateway: Some(gateway.into()), onlink: true, ..route },
        Hop::Foreign(protocol) => Route { protocol, ..route },
        Hop::Direct(_) | Hop::Blackhole | Hop::ByHand(_) => route,
    }
}

/// A route that does not go through our device.
fn elsewhere(key: RouteKey, hop: Hop) -> Route {
    let route = Route { metric: Some(key.metric), ..Route::to(key.subnet) };
    match hop {
        Hop::Direct(gateway) => Route { gateway: Some(gateway.into()), ..route },
        Hop::ByHand(gateway) => {
            Route { gateway: Some(gateway.into()), protocol: route::BOOT_PROTOCOL, ..route }
        }
        Hop::Tunnel(_) | Hop::Blackhole | Hop::Foreign(_) => Route { kind: route::Kind::Blackhole, ..route },
    }
}

/// The route in our words, if it is ours: through our device with our number, or whoever wrote it if it
/// lies inside the network; elsewhere only with our number and inside the network. And one that may have to give
/// way to ours.
pub(crate) fn ours(route: &Route, index: Option<u32>, network: &Subnet) -> Option<(RouteKey, Hop)> {
    let key = RouteKey { subnet: route.destination, metric: route.metric.unwrap_or(0) };
    let inside = network.covers(&route.destination);
    let marked = route.protocol == ROUTE_PROTOCOL;
    if route.table != route::MAIN_TABLE {
        return None;
    }
    if route.kind == route::Kind::Blackhole {
        return (marked && inside).then_some((key, Hop::Blackhole));
    }
    let through_ours = index.is_some() && route.device == index;
    if let (Some(IpAddr::V4(gateway)), true) = (route.gateway, marked && inside && !through_ours) {
        return Some((key, Hop::Direct(gateway)));
    }
    let bare = !route.onlink && route.source.is_none() && route.mtu.is_none() && key.metric == 0;
    if let (Some(IpAddr::V4(gateway)), false, true) = (route.gateway, through_ours, inside && bare)
        && (route.protocol, route.kind) == (route::BOOT_PROTOCOL, route::Kind::Unicast)
    {
        return Some((key, Hop::ByHand(gateway)));
    }
    if !through_ours || !(marked || (inside && route.protocol != route::KERNEL_PROTOCOL)) {
        return None;
    }
    let as_ours = marked && route.onlink && route.kind == route::Kind::Unicast && route.source.is_none();
    let hop = match route.gateway {
        Some(IpAddr::V4(gateway)) if as_ours && route.mtu.is_none() => Hop::Tunnel(gateway),
        _ => Hop::Foreign(route.protocol),
    };
    Some((key, hop))
}

//! Operations on the kernel.

use std::{fmt, net::Ipv4Addr};

use netmodel::{IfName, Mac, ROUTE_PROTOCOL};

use crate::overlay::{Device, Hop, Overlay, Remote, RouteKey};

/// One operation. The order of declaration is the order of application: what is pointed at comes before
/// what points at it, and the other way round when it goes. So a packet never takes a way that leads
/// nowhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// Writes a kernel setting.
    SetSysctl(String, String),
    /// Gives the device its own name back. Everything on it stays.
    RenameDevice(IfName, IfName),
    /// Removes the device, and with it everything on it.
    DelDevice(IfName),
    /// Creates the device, down.
    AddDevice(IfName, Device),
    /// Changes local address and learning of the device in place.
    ChangeDevice(IfName, Device),
    /// Changes the Ethernet address. The kernel forgets the device's neighbours.
    SetMac(IfName, Mac),
    /// Changes the MTU.
    SetMtu(IfName, netmodel::Mtu),
    /// Takes the device up.
    SetUp(IfName),
    /// Adds an address to the device.
    AddAddress(IfName, Ipv4Addr, u8),
    /// Removes an address from the device. Before routes: Linux refuses a gateway that is its own address,
    /// such as that of a subnet which was ours and is a peer's now.
    DelAddress(IfName, Ipv4Addr, u8),
    /// Adds a forwarding entry, or replaces the node of that Ethernet address.
    SetFdb(IfName, Mac, Ipv4Addr),
    /// Adds a permanent neighbour, or replaces its Ethernet address.
    SetNeighbour(IfName, Ipv4Addr, Mac),
    /// Adds a route, or replaces the one of that destination and metric.
    SetRoute(IfName, RouteKey, Hop),
    /// Removes a route.
    DelRoute(IfName, RouteKey, Hop),
    /// Removes a neighbour.
    DelNeighbour(IfName, Ipv4Addr),
    /// Removes a forwarding entry.
    DelFdb(IfName, Mac, Remote),
}

impl Op {
    /// It removes something that hangs on the device.
    #[must_use]
    pub const fn removes_entry(&self) -> bool {
        matches!(self, Self::DelRoute(..) | Self::DelNeighbour(..) | Self::DelFdb(..) | Self::DelAddress(..))
    }
}

impl fmt::Display for Op {
    /// As the command of `sysctl`, `ip` or `bridge` that would do it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetSysctl(path, value) => write!(f, "sysctl -w {path}={value}"),
            Self::RenameDevice(dev, name) => write!(f, "ip link set {dev} name {name}"),
            Self::DelDevice(dev) => write!(f, "ip link del {dev}"),
            Self::AddDevice(dev, device) => write!(f, "ip link add {dev} {device}"),
            Self::ChangeDevice(dev, device) => {
                let learning = if device.learning { "learning" } else { "nolearning" };
                write!(f, "ip link set {dev} type vxlan local {} {learning}", device.local)
            }
            Self::SetMac(dev, mac) => write!(f, "ip link set {dev} address {mac}"),
            Self::SetMtu(dev, mtu) => write!(f, "ip link set {dev} mtu {mtu}"),
            Self::SetUp(dev) => write!(f, "ip link set {dev} up"),
            Self::AddAddress(dev, address, length) => write!(f, "ip addr add {address}/{length} dev {dev}"),
            Self::DelAddress(dev, address, length) => write!(f, "ip addr del {address}/{length} dev {dev}"),
            Self::SetFdb(dev, mac, node) => {
                write!(f, "bridge fdb replace {mac} dev {dev} dst {node} self permanent")
            }
            Self::DelFdb(dev, mac, remote) => {
                write!(f, "bridge fdb del {mac} dev {dev} dst {}", remote.address)
            }
            Self::SetNeighbour(dev, address, mac) => {
                write!(f, "ip neigh replace {address} lladdr {mac} dev {dev} nud permanent")
            }
            Self::DelNeighbour(dev, address) => write!(f, "ip neigh del {address} dev {dev}"),
            Self::SetRoute(dev, key, hop) => {
                write!(f, "ip route replace {}", route(dev, *key, *hop))?;
                write!(f, " proto {ROUTE_PROTOCOL}")
            }
            Self::DelRoute(dev, key, hop) => write!(f, "ip route del {}", route(dev, *key, *hop)),
        }
    }
}

/// A route as `ip route` writes it, without its protocol.
fn route(dev: &IfName, key: RouteKey, hop: Hop) -> String {
    let RouteKey { subnet, metric } = key;
    match hop {
        Hop::Tunnel(gateway) => format!("{subnet} via {gateway} dev {dev} metric {metric} onlink"),
        Hop::Direct(gateway) | Hop::ByHand(gateway) => format!("{subnet} via {gateway} metric {metric}"),
        Hop::Blackhole => format!("blackhole {subnet} metric {metric}"),
        Hop::Foreign(_) => format!("{subnet} dev {dev} metric {metric}"),
    }
}

impl Overlay {
    /// What holds after the kernel acknowledged that operation.
    pub fn acknowledge(&mut self, op: &Op) {
        match op {
            Op::SetSysctl(path, value) => drop(self.sysctls.insert(path.clone(), value.clone())),
            Op::RenameDevice(_, name) => self.name.clone_from(name),
            Op::AddDevice(name, device) => {
                self.name.clone_from(name);
                self.device = Some(Device { up: false, ..device.clone() });
            }
            Op::DelDevice(_) => self.lose_device(),
            Op::AddAddress(_, address, length) => drop(self.addresses.insert((*address, *length))),
            Op::DelAddress(_, address, length) => self.lose_address(*address, *length),
            Op::SetFdb(_, mac, node) => {
                self.forget_node(*mac);
                self.fdb.insert((*mac, Remote::plain(*node)));
            }
            Op::DelFdb(_, mac, remote) => drop(self.fdb.remove(&(*mac, *remote))),
            Op::SetNeighbour(_, address, mac) => drop(self.neighbours.insert(*address, *mac)),
            Op::DelNeighbour(_, address) => drop(self.neighbours.remove(address)),
            Op::SetRoute(_, key, hop) => drop(self.routes.insert(*key, *hop)),
            // Another route with that key is none of the operation's business, and Linux leaves it.
            Op::DelRoute(_, key, hop) if self.routes.get(key) == Some(hop) => drop(self.routes.remove(key)),
            Op::DelRoute(..) => {}
            Op::ChangeDevice(..) | Op::SetMac(..) | Op::SetMtu(..) | Op::SetUp(_) => {
                self.device_changed(op);
            }
        }
    }

    fn device_changed(&mut self, op: &Op) {
        let Some(device) = &mut self.device else { return };
        match op {
            Op::ChangeDevice(_, new) => (device.local, device.learning) = (new.local, new.learning),
            Op::SetMac(_, mac) => {
                device.mac = *mac;
                self.neighbours.clear();
            }
            Op::SetMtu(_, mtu) => device.mtu = *mtu,
            _ => device.up = true,
        }
    }

    /// With the last address of a device Linux flushes its routes and neighbours.
    fn lose_address(&mut self, address: Ipv4Addr, length: u8) {
        if self.addresses.remove(&(address, length)) && self.addresses.is_empty() {
            self.neighbours.clear();
            self.routes.retain(|_, hop| !hop.is_on_device());
        }
    }

    /// What goes with the device.
    pub(crate) fn lose_device(&mut self) {
        self.device = None;
        self.addresses.clear();
        self.neighbours.clear();
        self.fdb.clear();
        self.routes.retain(|_, hop| !hop.is_on_device());
    }

    /// Forgets all forwarding entries of an address.
    fn forget_node(&mut self, mac: Mac) {
        let first = (mac, Remote::plain(Ipv4Addr::UNSPECIFIED));
        let entries = self.fdb.range(first..).take_while(|(m, _)| *m == mac);
        for entry in entries.copied().collect::<Vec<_>>() {
            self.fdb.remove(&entry);
        }
    }

    /// What holds after somebody else changed an object.
    pub fn note(&mut self, change: &Change) {
        match *change {
            Change::Neighbour(address, Some(mac)) => drop(self.neighbours.insert(address, mac)),
            Change::Neighbour(address, None) => drop(self.neighbours.remove(&address)),
            Change::Fdb(mac, remote, is_there) => {
                if has_one_node(mac) {
                    self.forget_node(mac);
                } else {
                    self.fdb.remove(&(mac, remote));
                }
                if is_there {
                    self.fdb.insert((mac, remote));
                }
            }
            Change::Route(key, Some(hop)) => drop(self.routes.insert(key, hop)),
            Change::Route(key, None) => drop(self.routes.remove(&key)),
        }
    }
}

/// Linux keeps one node for such an address; addresses of groups, and that of zeros, may have several.
#[must_use]
pub fn has_one_node(mac: Mac) -> bool {
    !mac.is_multicast() && !mac.is_zero()
}

/// An object that the kernel says was changed, and what it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A permanent neighbour on our device, or none any more.
    Neighbour(Ipv4Addr, Option<Mac>),
    /// A forwarding entry of our device is there, or no more.
    Fdb(Mac, Remote, bool),
    /// A route of ours, or none any more.
    Route(RouteKey, Option<Hop>),
}

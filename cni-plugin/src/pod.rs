//! The container's namespace: found, refused, configured.

use std::path::Path;

use cni_core::{Code, Error, Plan, PodRoute};
use linux::{
    address::{Address, IfPresent, Scope},
    link::{self, Change, Link},
    netlink::{Request, RouteSocket},
    netns::Netns,
    route, sysctl,
};
use netmodel::{IfName, Mtu};

use crate::{
    failure::{self, kernel},
    networks::Call,
};

/// Opens the namespace of ADD and CHECK.
///
/// # Errors
/// It is not there, is no namespace, or is the plugin's own (code 8).
pub(crate) fn open(call: &Call) -> Result<Netns, Error> {
    let path = call.netns.as_deref().unwrap_or_default();
    let netns = Netns::open(path).map_err(|error| unusable(path, &error))?;
    if is_own(&netns)? {
        let msg = format!("plugin's netns and netns from CNI_NETNS should not be the same: {path}");
        return Err(Error::new(Code::InvalidNetns, msg));
    }
    Ok(netns)
}

/// The namespace of DEL: `None` where it is gone or none was named, or where it is the plugin's own,
/// in which nothing was ever attached.
pub(crate) fn open_if_there(call: &Call) -> Option<Netns> {
    let netns = Netns::open(Path::new(call.netns.as_deref()?)).ok()?;
    (!is_own(&netns).unwrap_or(true)).then_some(netns)
}

fn is_own(netns: &Netns) -> Result<bool, Error> {
    Netns::current().map(|own| own == *netns).map_err(|e| kernel(&e))
}

fn unusable(path: &str, error: &linux::Error) -> Error {
    let reason = match error.raw_os_error() {
        Some(errno) if errno == rustix::io::Errno::INVAL.raw_os_error() => {
            format!("unknown FS magic on {path:?}")
        }
        Some(errno) => {
            let errno = std::io::Error::from_raw_os_error(errno);
            format!("failed to Statfs {path:?}: {}", failure::reason(&errno))
        }
        None => kernel(error).msg,
    };
    Error::new(Code::Internal, format!("failed to open netns {path:?}: {reason}"))
}

/// The container's side of one attachment.
pub(crate) struct Pod<'a> {
    netns: &'a Netns,
    socket: RouteSocket,
    name: &'a IfName,
}

impl<'a> Pod<'a> {
    /// The side in `netns` whose interface is, or will be, `name`.
    pub(crate) fn enter(netns: &'a Netns, name: &'a IfName) -> Result<Self, Error> {
        let socket = RouteSocket::open_in(netns).map_err(|e| kernel(&e))?;
        Ok(Self { netns, socket, name })
    }

    /// There is an interface of that name.
    pub(crate) fn is_taken(&mut self) -> Result<bool, Error> {
        self.socket.link(self.name).map(|link| link.is_some()).map_err(|e| kernel(&e))
    }

    /// Configures interface `index`: settings, up, addresses, routes.
    pub(crate) fn configure(&mut self, index: u32, plan: &Plan) -> Result<(), Error> {
        let requests = requests(index, self.name, plan);
        let set = self.netns.enter(|| settings(self.name, plan)).and_then(|result| result);
        set.map_err(|e| kernel(&e))?;
        let done: Result<(), _> = self.socket.apply(&requests).into_iter().collect();
        done.map_err(|e| kernel(&e))
    }

    /// Makes the kernel send a gratuitous ARP per IPv4 address and an unsolicited neighbour
    /// advertisement per IPv6 one, by giving the interface its Ethernet address once more. To be called
    /// when the way to the bridge is open: when the interface started it was not. A packet socket of
    /// our own would cost 5 to 20 ms at its end.
    pub(crate) fn announce(&mut self, index: u32, plan: &Plan) -> Result<(), Error> {
        let again = Change { mac: Some(plan.mac), ..Change::default() };
        self.socket.request(&link::change(index, self.name, &again)).map_err(|e| kernel(&e))
    }

    /// The interface as it is now. Asking makes the kernel bring its operational state up to date.
    pub(crate) fn report(&mut self, index: u32) -> Result<Link, Error> {
        let found = self.socket.link_by_index(index).map_err(|e| kernel(&e))?;
        let gone = || {
            Error::new(Code::Internal, format!("interface {} vanished while it was being set up", self.name))
        };
        found.ok_or_else(gone)
    }
}

/// Routers must not configure a container, a container with an IPv6 address needs IPv6, and the
/// kernel announces the addresses to the neighbours (see [`Pod::announce`]).
fn settings(name: &IfName, plan: &Plan) -> Result<(), linux::Error> {
    let six = |setting| ["net", "ipv6", "conf", name.as_str(), setting];
    // A kernel without IPv6 has no such setting.
    let _ = sysctl::write(&six("accept_ra"), "0");
    if plan.addresses.iter().any(|c| c.address.is_ipv6()) {
        for (setting, value) in [("disable_ipv6", "0"), ("keep_addr_on_down", "1"), ("ndisc_notify", "1")] {
            sysctl::write(&six(setting), value)?;
        }
    }
    if plan.addresses.iter().any(|c| c.address.is_ipv4()) {
        sysctl::write(&["net", "ipv4", "conf", name.as_str(), "arp_notify"], "1")?;
    }
    Ok(())
}

fn requests(index: u32, name: &IfName, plan: &Plan) -> Vec<Request> {
    let mut requests = vec![link::set_up(index, name)];
    for chosen in &plan.addresses {
        let nodad = chosen.address.is_ipv6();
        let address = Address { nodad, ..Address::new(index, chosen.address, chosen.prefix) };
        requests.push(address.add(name, IfPresent::Fail));
    }
    requests.extend(plan.routes.iter().map(|planned| route(index, planned).add(name)));
    requests
}

fn route(index: u32, planned: &PodRoute) -> route::Route {
    let wish = &planned.route;
    let on_link = if planned.via.is_none() { Scope::Link } else { Scope::Global };
    route::Route {
        gateway: planned.via,
        device: Some(index),
        metric: wish.priority,
        scope: wish.scope.map_or(on_link, Scope::from),
        table: wish.table.unwrap_or(route::MAIN_TABLE),
        // Checked when it was read.
        mtu: wish.mtu.and_then(|mtu| Mtu::try_from(u64::from(mtu)).ok()),
        ..route::Route::to(wish.dst)
    }
}

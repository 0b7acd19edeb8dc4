//! The container's namespace: found, refused, configured.

use std::{
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use cni_core::{Bridge, Code, Error, Plan, PodRoute};
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

/// How long duplicate detection may take.
const DETECTION: Duration = Duration::from_secs(5);

/// Opens the namespace of ADD and CHECK.
///
/// # Errors
/// It is not there, is no namespace, or is the plugin's own (code 8), unless the runtime wants that.
pub(crate) fn open(call: &Call) -> Result<Netns, Error> {
    let path = call.netns.as_deref().unwrap_or_default();
    let netns = Netns::open(path).map_err(|error| unusable(path, &error))?;
    if !call.own_netns && is_own(&netns)? {
        let msg = format!("plugin's netns and netns from CNI_NETNS should not be the same: {path}");
        return Err(Error::new(Code::InvalidNetns, msg));
    }
    Ok(netns)
}

/// The namespace of DEL: `None` where it is gone or none was named, or where it is the plugin's own,
/// in which nothing was ever attached unless the runtime wanted that.
pub(crate) fn open_if_there(call: &Call) -> Option<Netns> {
    let netns = Netns::open(Path::new(call.netns.as_deref()?)).ok()?;
    (call.own_netns || !is_own(&netns).unwrap_or(true)).then_some(netns)
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
    pub(crate) netns: &'a Netns,
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
    pub(crate) fn configure(&mut self, index: u32, bridge: &Bridge, plan: &Plan) -> Result<(), Error> {
        let set = self.netns.enter(|| settings(self.name, bridge, plan)).and_then(|result| result);
        set.map_err(|e| kernel(&e))?;
        let up = (!bridge.container_down).then(|| link::set_up(index, self.name));
        let addresses = addresses(index, self.name, bridge, plan);
        self.apply(&up.into_iter().chain(addresses).collect::<Vec<_>>())?;
        if bridge.duplicate_detection {
            self.wait_for_detection(index)?;
        }
        let routes = plan.routes.iter().map(|planned| route(index, planned).append(self.name));
        self.apply(&routes.collect::<Vec<_>>())
    }

    fn apply(&mut self, requests: &[Request]) -> Result<(), Error> {
        let done: Result<(), _> = self.socket.apply(requests).into_iter().collect();
        done.map_err(|e| kernel(&e))
    }

    /// Waits until the kernel has found out whether somebody else has the IPv6 addresses.
    fn wait_for_detection(&mut self, index: u32) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            let all = self.socket.addresses(Some(index)).map_err(|e| kernel(&e))?;
            if let Some(taken) = all.iter().find(|address| address.duplicate) {
                let text = format!("IPv6 address {} is in use on the network already", taken.address);
                return Err(Error::new(Code::Internal, text));
            }
            if !all.iter().any(|address| address.tentative) {
                return Ok(());
            }
            if start.elapsed() > DETECTION {
                let text = format!("{} still has tentative IPv6 addresses after 5 s", self.name);
                return Err(Error::new(Code::TryAgainLater, text));
            }
            sleep(DETECTION / 250);
        }
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
fn settings(name: &IfName, bridge: &Bridge, plan: &Plan) -> Result<(), linux::Error> {
    let six = |setting| ["net", "ipv6", "conf", name.as_str(), setting];
    // A kernel without IPv6 has no such setting.
    let _ = sysctl::write(&six("accept_ra"), "0");
    if plan.addresses.iter().any(|c| c.address.is_ipv6()) {
        for (setting, value) in [("disable_ipv6", "0"), ("keep_addr_on_down", "1"), ("ndisc_notify", "1")] {
            sysctl::write(&six(setting), value)?;
        }
        if bridge.duplicate_detection {
            ["accept_dad", "enhanced_dad"]
                .iter()
                .try_for_each(|setting| sysctl::write(&six(setting), "1"))?;
        }
    }
    if plan.addresses.iter().any(|c| c.address.is_ipv4()) {
        sysctl::write(&["net", "ipv4", "conf", name.as_str(), "arp_notify"], "1")?;
    }
    Ok(())
}

fn addresses<'a>(
    index: u32,
    name: &'a IfName,
    bridge: &'a Bridge,
    plan: &'a Plan,
) -> impl Iterator<Item = Request> + 'a {
    plan.addresses.iter().map(move |chosen| {
        let nodad = chosen.address.is_ipv6() && !bridge.duplicate_detection;
        let address = Address { nodad, ..Address::new(index, chosen.address, chosen.prefix) };
        address.add(name, IfPresent::Fail)
    })
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
        advmss: wish.advmss,
        ..route::Route::to(wish.dst)
    }
}

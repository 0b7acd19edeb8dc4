//! The container's namespace: found, refused, configured.

use std::path::Path;

use cni_core::{Code, Error, Plan, PodRoute};
use linux::{
    address::{Address, IfPresent, Scope},
    link::{self, Change},
    netns::Netns,
    route, sysctl,
};
use netmodel::{IfName, Mtu};

use crate::{failure, networks::Call};

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
    Netns::current().map(|own| own == *netns).map_err(|e| failure::kernel(&e))
}

fn unusable(path: &str, error: &linux::Error) -> Error {
    let reason = match error.raw_os_error() {
        Some(libc_einval) if libc_einval == rustix::io::Errno::INVAL.raw_os_error() => {
            format!("unknown FS magic on {path:?}")
        }
        Some(errno) => {
            let errno = std::io::Error::from_raw_os_error(errno);
            format!("failed to Statfs {path:?}: {}", failure::reason(&errno))
        }
        None => failure::kernel(error).msg,
    };
    Error::new(Code::Internal, format!("failed to open netns {path:?}: {reason}"))
}

/// Configures interface `index` of the container: settings, up, addresses, routes.
pub(crate) fn configure(netns: &Netns, index: u32, name: &IfName, plan: &Plan) -> Result<(), Error> {
    let requests = requests(index, name, plan)?;
    let done = netns.enter(|| {
        settings(name, plan)?;
        let mut socket = linux::netlink::RouteSocket::open()?;
        socket.apply(&requests).into_iter().collect::<Result<(), _>>()
    });
    done.and_then(|result| result).map_err(|e| failure::kernel(&e))
}

/// Routers must not configure a container, a container with an IPv6 address needs IPv6, and the
/// kernel announces the addresses to the neighbours (see [`announce`]).
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

/// The request that makes the kernel send a gratuitous ARP per IPv4 address and an unsolicited
/// neighbour advertisement per IPv6 one: the same Ethernet address once more, when the way to the
/// bridge is open (when the interface started it was not). A packet socket of our own would cost
/// 5 to 20 ms at its end.
fn announce(index: u32, name: &IfName, plan: &Plan) -> linux::netlink::Request {
    link::change(index, name, &Change { mac: Some(plan.mac), ..Change::default() })
}

fn requests(index: u32, name: &IfName, plan: &Plan) -> Result<Vec<linux::netlink::Request>, Error> {
    let mut requests = vec![link::set_up(index, name)];
    for chosen in &plan.addresses {
        let nodad = chosen.address.is_ipv6();
        let address = Address { nodad, ..Address::new(index, chosen.address, chosen.prefix) };
        requests.push(address.add(name, IfPresent::Fail));
    }
    for planned in &plan.routes {
        requests.push(route(index, planned)?.add(name));
    }
    requests.push(announce(index, name, plan));
    Ok(requests)
}

fn route(index: u32, planned: &PodRoute) -> Result<route::Route, Error> {
    let wish = &planned.route;
    let mtu = wish.mtu.map(|mtu| Mtu::try_from(u64::from(mtu))).transpose();
    if let Some(advmss) = wish.advmss {
        return Err(Error::unsupported("routes.advmss", &advmss.to_string()));
    }
    let on_link = if planned.via.is_none() { Scope::Link } else { Scope::Global };
    Ok(route::Route {
        gateway: planned.via,
        device: Some(index),
        metric: wish.priority,
        scope: wish.scope.map_or(on_link, Scope::from),
        table: wish.table.unwrap_or(route::MAIN_TABLE),
        mtu: mtu.map_err(|e| {
            Error::new(Code::InvalidConfig, format!("invalid mtu of route {}: {e}", wish.dst))
        })?,
        ..route::Route::to(wish.dst)
    })
}

//! The loopback interface of a container's namespace. CNI_IFNAME is not looked at: it is always `lo`.

use cni_core::{Code, Error, Interface, IpConfig, Outcome};
use linux::{
    link::{self, Change, Link},
    netlink::RouteSocket,
    netns::Netns,
};

use crate::{
    failure::kernel,
    links,
    networks::Call,
    plugin::{Plugin, nothing_to_do},
    pod,
};

/// The plugin `loopback`.
pub(crate) const PLUGIN: Plugin = Plugin { add, del, check, gc: nothing_to_do, status: nothing_to_do };

fn add(call: &Call) -> Result<String, Error> {
    let (mut socket, lo) = find(&pod::open(call)?)?;
    set(&mut socket, &lo, true)?;
    if call.network.previous().is_some() {
        return call.network.pass_on();
    }
    // The kernel gave them as it came up.
    let addresses = socket.addresses(Some(lo.index)).map_err(|e| kernel(&e))?;
    let own = addresses.iter().filter(|a| a.address.is_loopback());
    let ips =
        own.map(|a| IpConfig { address: a.address, prefix: a.prefix, gateway: None, interface: Some(0) });
    let interface = Interface {
        name: lo.name.to_string(),
        mac: netmodel::Mac([0; 6]).to_string(),
        sandbox: call.netns.clone().unwrap_or_default(),
        mtu: 0,
    };
    let outcome = Outcome { interfaces: vec![interface], ips: ips.collect(), ..Outcome::default() };
    outcome.to_json(call.network.version)
}

fn del(call: &Call) -> Result<(), Error> {
    let Some(netns) = pod::open_if_there(call) else { return Ok(()) };
    let (mut socket, lo) = find(&netns)?;
    set(&mut socket, &lo, false)
}

fn check(call: &Call) -> Result<(), Error> {
    let (_, lo) = find(&pod::open(call)?)?;
    if lo.up { Ok(()) } else { Err(Error::new(Code::Internal, "loopback interface is down")) }
}

fn find(netns: &Netns) -> Result<(RouteSocket, Link), Error> {
    let mut socket = RouteSocket::open_in(netns).map_err(|e| kernel(&e))?;
    let lo = socket.link(&links::parse_name("lo")?).map_err(|e| kernel(&e))?;
    let lo = lo.ok_or_else(|| Error::new(Code::Internal, "there is no loopback interface"))?;
    Ok((socket, lo))
}

fn set(socket: &mut RouteSocket, lo: &Link, up: bool) -> Result<(), Error> {
    let change = Change { up: Some(up), ..Change::default() };
    socket.request(&link::change(lo.index, &lo.name, &change)).map_err(|e| kernel(&e))
}

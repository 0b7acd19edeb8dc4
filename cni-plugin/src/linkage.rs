//! The host's side: the bridge, the veth pair, the gateway's addresses.

use cni_core::{
    Attachment, Bridge, Code, Error, GatewayChange, HostAddress, Interface, Plan, gateway_changes,
    gateway_port,
};
use linux::{
    address::{Address, IfPresent},
    fdb,
    link::{self, BridgePort, Change, Kind, Link, Veth, VethIndexes},
    netlink::{Request, RouteSocket},
    netns::Netns,
    route::{ADVERTISED_PROTOCOL, Filter},
    sysctl,
};
use netmodel::{IfName, Mtu};

use crate::{failure::kernel, links, undo::Undo, vlans};

/// The host's side of one attachment.
pub(crate) struct Host<'a> {
    pub(crate) socket: RouteSocket,
    pub(crate) bridge: &'a Bridge,
    pub(crate) plan: &'a Plan,
    /// The bridge is the node's own, whose subnet and MTU may have changed.
    pub(crate) is_owned: bool,
    /// The veth pair, where it had to be there before the addresses.
    pub(crate) cabled: Option<VethIndexes>,
}

impl Host<'_> {
    /// The bridge, up and with an address of its own, made where it is missing. The MTU of one that is there is
    /// its owner's to set.
    pub(crate) fn ensure_bridge(&mut self) -> Result<Link, Error> {
        let name = &self.bridge.bridge;
        let device = match self.socket.link(name).map_err(|e| kernel(&e))? {
            Some(device) => device,
            None => self.make_bridge()?,
        };
        if device.kind != Kind::Bridge {
            return Err(Error::new(
                Code::Internal,
                format!("{:?} already exists but is not a bridge", name.as_str()),
            ));
        }
        // A bridge without an address of its own changes it with its ports, and one of zeros refuses them.
        let mac = device.mac.is_none_or(netmodel::Mac::is_zero).then_some(self.plan.bridge_mac);
        let up = (!device.up).then_some(true);
        let promiscuous = (self.bridge.promiscuous && !device.promiscuous).then_some(true);
        let mtu = self.bridge.mtu.filter(|mtu| self.is_owned && device.mtu != u32::from(mtu.get()));
        let change = Change { mac, up, promiscuous, mtu, ..Change::default() };
        if change != Change::default() {
            self.socket.request(&link::change(device.index, name, &change)).map_err(|e| kernel(&e))?;
        }
        if self.bridge.vlans.is_some() && !device.vlan_filtering {
            // Also pins the address of a bridge that others made: its gateway is another interface.
            let pin = Change { mac: device.mac, ..Change::default() };
            let requests = [link::filter_vlans(device.index, name), link::change(device.index, name, &pin)];
            let done: Result<(), _> = self.socket.apply(&requests).into_iter().collect();
            done.map_err(|e| kernel(&e))?;
        }
        Ok(Link { mac: mac.or(device.mac), ..device })
    }

    fn make_bridge(&mut self) -> Result<Link, Error> {
        let name = &self.bridge.bridge;
        let wanted =
            link::Bridge { name: name.clone(), mac: Some(self.plan.bridge_mac), mtu: self.bridge.mtu };
        let made = self.socket.request(&wanted.add());
        self.as_made(made, name)
    }

    /// The interface `name` that is to bear gateways' addresses, once it was `made`, by whomever.
    pub(crate) fn as_made<T>(&mut self, made: Result<T, linux::Error>, name: &IfName) -> Result<Link, Error> {
        match made {
            Err(e) if !e.is_exists() => return Err(kernel(&e)),
            // Of several first calls one makes it.
            _ => {}
        }
        // No routers are to be heard here, and an address made of the interface's own MAC needs no second's doubt, in
        // which no pod could be asked for over IPv6. A kernel without IPv6 has no such settings.
        for setting in ["accept_ra", "accept_dad"] {
            let _ = sysctl::write(&["net", "ipv6", "conf", name.as_str(), setting], "0");
        }
        let found = self.socket.link(name).map_err(|e| kernel(&e))?;
        found.ok_or_else(|| {
            Error::new(Code::Internal, format!("interface {name} vanished while it was being set up"))
        })
    }

    /// The interface that the gateways' addresses are for: bridge `device` itself, or one end of a veth pair whose
    /// other end is a port of the bridge in the VLAN. That one stays, as the bridge does, and is made whole
    /// where somebody has taken it apart.
    pub(crate) fn ensure_gateway_link(&mut self, device: &Link) -> Result<Link, Error> {
        let name = &self.bridge.gateway_link;
        let Some(vlans) = self.bridge.vlans.as_ref().filter(|_| *name != device.name) else {
            return Ok(device.clone());
        };
        let found = self.socket.link(name).map_err(|e| kernel(&e))?;
        let found = found.map_or_else(|| self.make_gateway_link(device), Ok)?;
        let port = links::peer_of(&mut self.socket, &found).map_err(|e| kernel(&e))?;
        let port =
            port.filter(|port| port.peer.is_some_and(|peer| peer.namespace.is_none())).ok_or_else(|| {
                Error::new(Code::Internal, format!("{:?} already exists but is no veth pair", name.as_str()))
            })?;
        let mtu = self.bridge.mtu.filter(|mtu| self.is_owned && found.mtu != u32::from(mtu.get()));
        let alias = vlans::gateway_alias(name);
        let joined = Change {
            up: (!port.up).then_some(true),
            mtu,
            master: (port.master != Some(device.index)).then_some(Some(device.index)),
            alias: (port.alias.as_deref() != Some(&alias)).then_some(&alias),
            ..Change::default()
        };
        let mut requests = Vec::new();
        if joined != Change::default() {
            requests.push(link::change(port.index, &port.name, &joined));
        }
        let vlans = vlans.of_gateway();
        let is_joined = joined.master.is_none();
        if !is_joined || !vlans.are_met_by(&self.socket.vlans(port.index).map_err(|e| kernel(&e))?) {
            requests.extend(vlans::join(&vlans, port.index, &port.name));
        }
        let started = Change { up: (!found.up).then_some(true), mtu, ..Change::default() };
        if started != Change::default() {
            requests.push(link::change(found.index, name, &started));
        }
        let done: Result<(), _> = self.socket.apply(&requests).into_iter().collect();
        done.map_err(|e| kernel(&e))?;
        Ok(found)
    }

    /// The gateway's interface, still down.
    fn make_gateway_link(&mut self, device: &Link) -> Result<Link, Error> {
        let name = &self.bridge.gateway_link;
        let here = Netns::current().map_err(|e| kernel(&e))?;
        let veth = Veth {
            name: &links::parse_name(&gateway_port(name))?,
            mac: None,
            mtu: self.bridge.mtu.or_else(|| Mtu::try_from(u64::from(device.mtu)).ok()),
            master: Some(device.index),
            peer_name: name,
            peer_mac: Some(self.plan.gateway_mac),
            peer_namespace: &here,
        };
        let made = self.socket.add_veth(&veth);
        self.as_made(made, name)
    }

    /// Interface `device` has the gateways' addresses; the host forwards.
    pub(crate) fn ensure_gateways(&mut self, device: &Link, undo: &mut Undo<'_>) -> Result<(), Error> {
        let name = &self.bridge.gateway_link;
        let wanted = &self.plan.gateways;
        let changes = plan_gateways(&mut self.socket, self.bridge, device, wanted, self.is_owned)?;
        if !changes.is_empty() {
            if self.plan.gateways.iter().any(|gateway| gateway.address.is_ipv6()) {
                // Switched off for new interfaces on many hosts; where it can't be set, the address fails.
                let _ = sysctl::write(&["net", "ipv6", "conf", name.as_str(), "disable_ipv6"], "0");
            }
            let mut requests: Vec<Request> =
                changes.iter().map(|change| gateway_request(change, device.index, name)).collect();
            // Pins the address of a bridge that others made, which would change with its ports.
            let pin = Change { mac: device.mac, ..Change::default() };
            requests.push(link::change(device.index, name, &pin));
            let (made, link, bridge) = (changes.clone(), device.clone(), self.bridge.bridge.clone());
            undo.push(move || put_back(&made, &link, &bridge));
            // Of several ADDs that take an address away one finds it.
            let is_gone = |number: usize| matches!(changes.get(number), Some(GatewayChange::Remove(_)));
            for (number, done) in self.socket.apply(&requests).into_iter().enumerate() {
                match done {
                    Err(e) if is_gone(number) && e.is_not_found() => {}
                    done => done.map_err(|e| kernel(&e))?,
                }
            }
        }
        self.forward()
    }

    /// The host forwards packets of the families that the container has.
    fn forward(&mut self) -> Result<(), Error> {
        let settings: [(bool, &[&str]); 2] =
            [(true, &["net", "ipv4", "ip_forward"]), (false, &["net", "ipv6", "conf", "all", "forwarding"])];
        for (ipv4, setting) in settings {
            let needed = self.plan.gateways.iter().any(|gateway| gateway.address.is_ipv4() == ipv4);
            if !needed || sysctl::read(setting).map_err(|e| kernel(&e))? == "1" {
                continue;
            }
            if !ipv4 {
                self.keep_advertised_routes()?;
            }
            sysctl::write(setting, "1").map_err(|e| kernel(&e))?;
        }
        Ok(())
    }

    /// A host that forwards IPv6 no longer takes routes from routers' advertisements, unless told so:
    /// those interfaces go on that have brought one.
    fn keep_advertised_routes(&mut self) -> Result<(), Error> {
        let filter = Filter { protocol: Some(ADVERTISED_PROTOCOL), ..Filter::main(false) };
        let routes = self.socket.routes(filter).map_err(|e| kernel(&e))?;
        for index in routes.iter().filter_map(|route| route.device) {
            let Some(uplink) = self.socket.link_by_index(index).map_err(|e| kernel(&e))? else { continue };
            let setting = ["net", "ipv6", "conf", uplink.name.as_str(), "accept_ra"];
            if sysctl::read(&setting).is_ok_and(|value| value == "1") {
                sysctl::write(&setting, "2").map_err(|e| kernel(&e))?;
            }
        }
        Ok(())
    }

    /// Makes the veth pair in place: one end a port of the bridge, the other in `netns`.
    pub(crate) fn cable(
        &mut self,
        device: &Link,
        netns: &Netns,
        who: &Attachment,
        undo: &mut Undo<'_>,
    ) -> Result<VethIndexes, Error> {
        let name = links::host_name(who)?;
        let veth = Veth {
            name: &name,
            mac: Some(who.host_mac()),
            mtu: self.bridge.mtu,
            master: Some(device.index),
            peer_name: &who.ifname,
            peer_mac: Some(self.plan.mac),
            peer_namespace: netns,
        };
        let indexes = self
            .socket
            .add_veth(&veth)
            .map_err(|e| if e.is_exists() { links::taken(&who.ifname, &name) } else { kernel(&e) })?;
        let near = (indexes.near, name.clone());
        undo.push(move || links::unlink(near.0, &near.1));
        let alias = who.alias();
        let change = Change { alias: Some(&alias), ..Change::default() };
        let mut requests = vec![link::change(indexes.near, &name, &change)];
        let &Bridge { hairpin, isolated, guarded: locked, .. } = self.bridge;
        let port = BridgePort { hairpin, isolated, locked };
        if port != BridgePort::default() {
            requests.push(link::set_port(indexes.near, &name, port));
        }
        // Before the next one, which counts for the VLANs that there are.
        requests.extend(self.bridge.vlans.iter().flat_map(|vlans| vlans::join(vlans, indexes.near, &name)));
        requests.extend(locked.then(|| fdb::set_behind(indexes.near, self.plan.mac, &name)));
        let done: Result<(), _> = self.socket.apply(&requests).into_iter().collect();
        done.map_err(|e| kernel(&e))?;
        if locked {
            self.require_lock(indexes.near)?;
        }
        Ok(indexes)
    }

    /// Kernels before Linux 5.16 take no notice of what they don't know.
    fn require_lock(&mut self, near: u32) -> Result<(), Error> {
        let link = self.socket.link_by_index(near).map_err(|e| kernel(&e))?;
        let is_locked = link.and_then(|link| link.port).is_some_and(|port| port.locked);
        if is_locked { Ok(()) } else { Err(Error::unsupported("macspoofchk", "true")) }
    }

    /// An interface of the host for the result, as it is now.
    pub(crate) fn report(&mut self, index: u32) -> Result<Interface, Error> {
        let found = self.socket.link_by_index(index).map_err(|e| kernel(&e))?;
        let gone = || Error::new(Code::Internal, format!("interface with index {index} vanished"));
        found.map(|l| links::reported(&l, "")).ok_or_else(gone)
    }
}

/// What has to change of the addresses of `device`, the gateways' interface, so that it has those of `wanted`.
///
/// # Errors
/// See [`gateway_changes`].
pub(crate) fn plan_gateways(
    socket: &mut RouteSocket,
    bridge: &Bridge,
    device: &Link,
    wanted: &[HostAddress],
    is_owned: bool,
) -> Result<Vec<GatewayChange>, Error> {
    let present = links::addresses_on(socket, device.index).map_err(|e| kernel(&e))?;
    if wanted.iter().all(|gateway| present.contains(gateway)) {
        return Ok(Vec::new());
    }
    let ports = socket.links().map_err(|e| kernel(&e))?;
    // Once more: if another ADD has readdressed the bridge meanwhile, its pod must not count as a holder.
    let present = links::addresses_on(socket, device.index).map_err(|e| kernel(&e))?;
    let named = pod_ports(&ports, &bridge.bridge).map(|port| {
        port.alias.as_deref().and_then(Attachment::named_by).unwrap_or_else(|| port.name.to_string())
    });
    gateway_changes(bridge, wanted, &present, is_owned, &named.collect::<Vec<_>>())
}

/// The ports of `bridge` that containers hang on, among all `links`.
fn pod_ports<'l>(links: &'l [Link], bridge: &IfName) -> impl Iterator<Item = &'l Link> {
    let master = links.iter().find(|link| link.name == *bridge).map(|link| link.index);
    let is_held =
        move |port: &&Link| port.master.is_some() && port.master == master && !vlans::is_of_gateway(port);
    links.iter().filter(is_held)
}

/// Takes `changes` of the addresses of interface `device` back, unless containers on `bridge` rely on them by now.
fn put_back(changes: &[GatewayChange], device: &Link, bridge: &IfName) -> Result<(), Error> {
    let mut socket = RouteSocket::open().map_err(|e| kernel(&e))?;
    let links = socket.links().map_err(|e| kernel(&e))?;
    if pod_ports(&links, bridge).next().is_some() {
        return Ok(());
    }
    let reverse = |change: &GatewayChange| match *change {
        GatewayChange::Remove(old) => GatewayChange::Add(old),
        GatewayChange::Add(new) => GatewayChange::Remove(new),
    };
    let reversed = changes.iter().rev().map(reverse);
    let requests: Vec<Request> =
        reversed.map(|change| gateway_request(&change, device.index, &device.name)).collect();
    let failed = socket.apply(&requests).into_iter().filter_map(Result::err).find(|e| !e.is_not_found());
    failed.map_or(Ok(()), |e| Err(kernel(&e)))
}

fn gateway_request(change: &GatewayChange, index: u32, name: &IfName) -> Request {
    match change {
        GatewayChange::Remove(old) => Address::new(index, old.address, old.prefix).delete(name),
        GatewayChange::Add(new) => {
            let nodad = new.address.is_ipv6();
            Address { nodad, ..Address::new(index, new.address, new.prefix) }.add(name, IfPresent::Keep)
        }
    }
}

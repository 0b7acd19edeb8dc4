//! Interfaces: bridges, veth pairs, VXLAN devices, and what they are set to.
//!
//! The kernel takes no alias in the message that creates an interface: give it with a [`Change`] by index,
//! after the creation succeeded, so that it never lands on somebody else's interface of the same name.

mod delete;
mod ifb;
mod read;
mod vlan;

use std::{
    fmt,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{
        InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, InfoVxlan, LinkAttribute,
        LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
    },
};
use netmodel::{IfName, Mac, Mtu, Port, Vni};

pub use self::{
    delete::{LinkEvents, detach_and_delete},
    ifb::Ifb,
    read::{BridgePort, Kind, Link, Peer, VxlanFacts},
    vlan::{add_vlans, delete_vlans, filter_vlans},
};
use crate::{
    Cause, Error,
    netlink::{Request, RouteSocket},
    netns::Netns,
};

/// A bridge to be created, up from the first moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: IfName,
    /// Its address. Without one the kernel takes that of its lowest port, anew at each change.
    pub mac: Option<Mac>,
    /// Its MTU. Without one the kernel takes the smallest of its ports'.
    pub mtu: Option<Mtu>,
}

impl Bridge {
    /// The request that creates it. EEXIST if the name is taken.
    #[must_use]
    pub fn add(&self) -> Request {
        let mut attributes = vec![LinkAttribute::IfName(self.name.to_string())];
        attributes.extend(self.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        attributes.extend(self.mtu.map(|mtu| LinkAttribute::Mtu(mtu.get().into())));
        attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        create(format!("bridge {}", self.name), up(attributes))
    }
}

/// A veth pair to be created: the near end here, up and joined to a bridge, the far end directly in
/// another namespace, still down (the kernel refuses to start an end before its peer exists).
#[derive(Clone, Copy, Debug)]
pub struct Veth<'a> {
    /// Name of the near end.
    pub name: &'a IfName,
    /// Address of the near end; random without one.
    pub mac: Option<Mac>,
    /// MTU of both ends.
    pub mtu: Option<Mtu>,
    /// Index of the bridge that the near end joins.
    pub master: Option<u32>,
    /// Name of the far end.
    pub peer_name: &'a IfName,
    /// Address of the far end; random without one.
    pub peer_mac: Option<Mac>,
    /// Where the far end is made.
    pub peer_namespace: &'a Netns,
}

/// The interface indexes of a new veth pair, each in its own namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VethIndexes {
    /// Of the near end.
    pub near: u32,
    /// Of the far end.
    pub far: u32,
}

impl Veth<'_> {
    /// Valid for as long as the namespace is open: the request holds its descriptor by number.
    fn add(&self) -> Request {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(self.peer_name.to_string()),
            LinkAttribute::NetNsFd(self.peer_namespace.as_fd().as_raw_fd()),
        ];
        peer.attributes.extend(self.peer_mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        peer.attributes.extend(self.mtu.map(|mtu| LinkAttribute::Mtu(mtu.get().into())));

        let mut attributes = vec![LinkAttribute::IfName(self.name.to_string())];
        attributes.extend(self.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        attributes.extend(self.mtu.map(|mtu| LinkAttribute::Mtu(mtu.get().into())));
        attributes.extend(self.master.map(LinkAttribute::Controller));
        attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let object = format!("veth pair {}, {} in {}", self.name, self.peer_name, self.peer_namespace);
        let mut request = create(object, up(attributes));
        request.flags |= NLM_F_ECHO;
        request
    }
}

/// A VXLAN device (RFC 7348) to be created, still down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// Its name.
    pub name: IfName,
    /// The network that it carries.
    pub vni: Vni,
    /// UDP port that it sends to and listens on.
    pub port: Port,
    /// Source address of what it sends; it also fixes the family.
    pub local: Option<IpAddr>,
    /// Index of the interface that it sends through; without one the routing table decides.
    pub underlay: Option<u32>,
    /// It learns addresses from what it receives.
    pub learning: bool,
    /// Group-based policy: the mark travels in the header.
    pub gbp: bool,
    /// Its address; random without one.
    pub mac: Option<Mac>,
    /// Its MTU; without one the kernel subtracts the header from the underlay's.
    pub mtu: Option<Mtu>,
}

impl Vxlan {
    /// The request that creates it. EEXIST if the name is taken, or if another device holds this VNI on
    /// this port.
    #[must_use]
    pub fn add(&self) -> Request {
        let mut data = vec![
            InfoVxlan::Id(self.vni.get()),
            InfoVxlan::Port(self.port.get()),
            InfoVxlan::Learning(self.learning),
        ];
        data.extend(self.local.map(|address| match address {
            IpAddr::V4(address) => InfoVxlan::Local(address),
            IpAddr::V6(address) => InfoVxlan::Local6(address),
        }));
        data.extend(self.underlay.map(InfoVxlan::Link));
        data.extend(self.gbp.then_some(InfoVxlan::Gbp));

        let mut attributes = vec![LinkAttribute::IfName(self.name.to_string())];
        attributes.extend(self.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        attributes.extend(self.mtu.map(|mtu| LinkAttribute::Mtu(mtu.get().into())));
        attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(data)),
        ]));
        let mut message = LinkMessage::default();
        message.attributes = attributes;
        create(format!("VXLAN device {} (VNI {}, port {})", self.name, self.vni, self.port), message)
    }
}

/// What to change of an existing interface; what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change<'a> {
    /// Up or down.
    pub up: Option<bool>,
    /// Largest packet.
    pub mtu: Option<Mtu>,
    /// Address.
    pub mac: Option<Mac>,
    /// `Some(Some(index))` joins a bridge, `Some(None)` leaves it.
    pub master: Option<Option<u32>>,
    /// Alias (where our mark goes); an empty one removes it.
    pub alias: Option<&'a str>,
    /// New name. Kernels before 6.2 want the interface down for it.
    pub rename: Option<&'a IfName>,
    /// Receives what is addressed to others.
    pub promiscuous: Option<bool>,
    /// Receives what is addressed to any multicast group.
    pub all_multicast: Option<bool>,
    /// Most packets that may wait to be sent.
    pub queue_length: Option<u32>,
}

/// The request that changes interface `index`; `name` is for the error alone.
#[must_use]
pub fn change(index: u32, name: &IfName, change: &Change<'_>) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let flags = [
        (LinkFlags::Up, change.up),
        (LinkFlags::Promisc, change.promiscuous),
        (LinkFlags::Allmulti, change.all_multicast),
    ];
    for (flag, wanted) in flags {
        let Some(wanted) = wanted else { continue };
        message.header.change_mask |= flag;
        message.header.flags.set(flag, wanted);
    }
    let attributes = &mut message.attributes;
    attributes.extend(change.mtu.map(|mtu| LinkAttribute::Mtu(mtu.get().into())));
    attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    attributes.extend(change.master.map(|master| LinkAttribute::Controller(master.unwrap_or(0))));
    attributes.extend(change.alias.map(|alias| LinkAttribute::IfAlias(alias.to_owned())));
    attributes.extend(change.rename.map(|name| LinkAttribute::IfName(name.to_string())));
    attributes.extend(change.queue_length.map(LinkAttribute::TxQueueLen));
    Request::route("set", format!("link {name} {change}"), 0, &RouteNetlinkMessage::SetLink(message))
}

/// The words that `ip link set` would take.
impl fmt::Display for Change<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        words.extend(self.mtu.map(|mtu| format!("mtu {mtu}")));
        words.extend(self.mac.map(|mac| format!("address {mac}")));
        words.extend(self.master.map(|m| m.map_or("nomaster".to_owned(), |index| format!("master {index}"))));
        words.extend(self.alias.map(|alias| format!("alias {alias:?}")));
        words.extend(self.rename.map(|name| format!("name {name}")));
        words.extend(self.queue_length.map(|length| format!("txqueuelen {length}")));
        for (flag, wanted) in [("promisc", self.promiscuous), ("allmulticast", self.all_multicast)] {
            words.extend(wanted.map(|on| format!("{flag} {}", if on { "on" } else { "off" })));
        }
        words.extend(self.up.map(|up| if up { "up" } else { "down" }.to_owned()));
        f.write_str(&words.join(" "))
    }
}

/// The request that changes of VXLAN device `index` what Linux can change while it works: the source address
/// of what it sends, and whether it learns; `name` is for the error alone.
#[must_use]
pub fn change_vxlan(index: u32, name: &IfName, local: IpAddr, learning: bool) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let local_attribute = match local {
        IpAddr::V4(address) => InfoVxlan::Local(address),
        IpAddr::V6(address) => InfoVxlan::Local6(address),
    };
    message.attributes = vec![LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vxlan),
        LinkInfo::Data(InfoData::Vxlan(vec![local_attribute, InfoVxlan::Learning(learning)])),
    ])];
    let object = format!("VXLAN device {name} to local {local} learning {learning}");
    Request::route("set", object, 0, &RouteNetlinkMessage::NewLink(message))
}

/// The request that starts interface `index`; `name` is for the error alone.
#[must_use]
pub fn set_up(index: u32, name: &IfName) -> Request {
    change(index, name, &Change { up: Some(true), ..Change::default() })
}

/// The request that sets how the bridge treats port `index`; `name` is for the error alone.
#[must_use]
pub fn set_port(index: u32, name: &IfName, port: BridgePort) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let BridgePort { hairpin, isolated, locked } = port;
    let mut settings = vec![InfoBridgePort::HairpinMode(hairpin), InfoBridgePort::Isolated(isolated)];
    if locked {
        settings.extend([InfoBridgePort::Locked(true), InfoBridgePort::Learning(false)]);
    }
    message.attributes = vec![LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(settings)),
    ])];
    let object = format!("bridge port {name} to hairpin {hairpin} isolated {isolated} locked {locked}");
    Request::route("set", object, 0, &RouteNetlinkMessage::NewLink(message))
}

/// The request that deletes interface `index`, and with it its veth peer; `name` is for the error alone.
///
/// The kernel acknowledges only after about 20 ms, long after the interface is gone: see
/// [`detach_and_delete`].
#[must_use]
pub fn delete(index: u32, name: &IfName) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    Request::route("delete", format!("link {name}"), 0, &RouteNetlinkMessage::DelLink(message))
}

impl RouteSocket {
    /// Creates a veth pair and returns both interface indexes.
    ///
    /// # Errors
    /// The kernel refused it: EEXIST if the near or the far name is taken.
    pub fn add_veth(&mut self, veth: &Veth<'_>) -> Result<VethIndexes, Error> {
        let request = veth.add();
        let near = self.make(&request, veth.name)?;
        let far = near.peer.ok_or_else(|| request.failed(Cause::Garbled("it names no peer".to_owned())))?;
        Ok(VethIndexes { near: near.index, far: far.index })
    }

    /// Carries out the request that creates interface `name`, and returns what it is.
    fn make(&mut self, request: &Request, name: &IfName) -> Result<Link, Error> {
        let echoed = self.ask(request, |message| read::link(message.payload))?.into_iter().flatten().next();
        let made = match echoed {
            Some(link) => Some(link),
            // Kernels before 6.2 only acknowledge. The name was free, so what has it now is the new one.
            None => self.link(name)?,
        };
        made.ok_or_else(|| request.failed(Cause::Garbled("it shows no interface".to_owned())))
    }

    /// All interfaces of the namespace.
    ///
    /// # Errors
    /// See [`Connection::dump`](crate::netlink::Connection::dump).
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let request = Request::list("links".to_owned(), &RouteNetlinkMessage::GetLink(message));
        self.dump(&request, |message| read::link(message.payload))
    }

    /// The interface of that name, if there is one.
    ///
    /// # Errors
    /// The kernel did not answer, or for another reason than that it is absent.
    pub fn link(&mut self, name: &IfName) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_string()));
        self.one_link(name.as_str(), message)
    }

    /// The interface of that index, if there is one.
    ///
    /// # Errors
    /// As [`link`](Self::link).
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.one_link(&format!("with index {index}"), message)
    }

    fn one_link(&mut self, which: &str, mut message: LinkMessage) -> Result<Option<Link>, Error> {
        message.header.interface_family = AddressFamily::Unspec;
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let request =
            Request::route("read", format!("link {which}"), 0, &RouteNetlinkMessage::GetLink(message));
        match self.ask(&request, |message| read::link(message.payload)) {
            Ok(links) => Ok(links.into_iter().flatten().next()),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A request that creates an interface and fails if the name is taken.
fn create(object: String, message: LinkMessage) -> Request {
    Request::route("add", object, NLM_F_CREATE | NLM_F_EXCL, &RouteNetlinkMessage::NewLink(message))
}

/// A message that also starts the interface.
fn up(attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = attributes;
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_echoes_nothing_is_asked_for_the_new_pair() {
        let namespaces = Netns::create().and_then(|near| Ok((near, Netns::create()?)));
        let namespaces = testkit::require_or_skip("network namespace", namespaces.map_err(Into::into));
        let Some((near, far)) = namespaces else { return };
        let (name, peer_name): (IfName, IfName) = ("veth0".parse().unwrap(), "eth0".parse().unwrap());
        let veth = Veth {
            name: &name,
            mac: None,
            mtu: None,
            master: None,
            peer_name: &peer_name,
            peer_mac: None,
            peer_namespace: &far,
        };
        let mut request = veth.add();
        request.flags &= !NLM_F_ECHO;
        let near = RouteSocket::open_in(&near).unwrap().make(&request, &name).unwrap();
        let far = RouteSocket::open_in(&far).unwrap().link(&peer_name).unwrap().unwrap();
        let ends = [&near, &far].map(|end| (end.index, end.peer.unwrap().index));
        assert_eq!(ends, [(near.index, far.index), (far.index, near.index)]);
    }

    #[test]
    fn a_change_reads_like_the_ip_tool() {
        let name = "cni0".parse().unwrap();
        let wanted = Change {
            up: Some(true),
            mtu: Some(Mtu::try_from(1450).unwrap()),
            master: Some(None),
            ..Change::default()
        };
        let request = change(7, &name, &wanted);
        assert_eq!(request.object, "link cni0 mtu 1450 nomaster up");
        assert_eq!(
            request.failed(Cause::KeptChanging).to_string(),
            "failed to set link cni0 mtu 1450 nomaster up"
        );
    }

    #[test]
    fn a_flag_is_set_and_cleared_through_its_mask() {
        let name: IfName = "cni0".parse().unwrap();
        let header = |wanted| change(7, &name, &wanted).payload[8..16].to_vec();
        assert_eq!(header(Change { up: Some(true), ..Change::default() }), [1, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(header(Change { up: Some(false), ..Change::default() }), [0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(header(Change::default()), [0; 8]);
        assert_eq!(header(Change { promiscuous: Some(true), ..Change::default() }), [0, 1, 0, 0, 0, 1, 0, 0]);
    }
}

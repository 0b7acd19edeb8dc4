//! Intermediate functional block devices: what comes in elsewhere is queued on them as if it went out.

use netlink_packet_core::NLM_F_ECHO;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netmodel::IfName;

use super::{Link, create};
use crate::{Error, netlink::RouteSocket};

/// An ifb device to be created, still down: it passes nothing until it is set up.
#[derive(Clone, Copy, Debug)]
pub struct Ifb<'a> {
    /// Its name.
    pub name: &'a IfName,
    /// Its MTU in bytes.
    pub mtu: u32,
}

impl RouteSocket {
    /// Creates an ifb device and returns what it is.
    ///
    /// # Errors
    /// The kernel refused it: EEXIST if the name is taken, EOPNOTSUPP if it has no such devices.
    pub fn add_ifb(&mut self, ifb: &Ifb<'_>) -> Result<Link, Error> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(ifb.name.to_string()),
            LinkAttribute::Mtu(ifb.mtu),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]),
        ];
        let mut request = create(format!("ifb device {}", ifb.name), message);
        request.flags |= NLM_F_ECHO;
        self.make(&request, ifb.name)
    }
}

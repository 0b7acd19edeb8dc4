//! The VLANs that a bridge keeps apart, and those that each port is in.

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};
use netmodel::{IfName, Mac, PortVlans};

use super::Bridge;
use crate::{
    Error,
    attribute::{attributes, nest, put},
    netlink::{Message, Request, RouteSocket},
};

const RTM_DELLINK: u16 = 17;
const RTM_SETLINK: u16 = 19;
const RTM_GETVLAN: u16 = 114;
const AF_BRIDGE: u8 = 7;
// Attribute and flag numbers of linux/if_link.h and linux/if_bridge.h.
const IFLA_AF_SPEC: u16 = 26;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const BRIDGE_VLANDB_ENTRY: u16 = 1;
const BRIDGE_VLANDB_ENTRY_INFO: u16 = 1;
const BRIDGE_VLANDB_ENTRY_RANGE: u16 = 2;
const BRIDGE_VLAN_INFO_PVID: u16 = 1 << 1;
const BRIDGE_VLAN_INFO_UNTAGGED: u16 = 1 << 2;
const BRIDGE_VLAN_INFO_RANGE_BEGIN: u16 = 1 << 3;
const BRIDGE_VLAN_INFO_RANGE_END: u16 = 1 << 4;

/// Bytes of `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
/// Bytes of `struct br_vlan_msg`.
const VLAN_HEADER: usize = 8;
/// The loopback of every namespace.
const LOOPBACK: u32 = 1;

/// The request that makes bridge `index` keep VLANs apart; `name` is for the error alone.
#[must_use]
pub fn filter_vlans(index: u32, name: &IfName) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)])),
    ])];
    let object = format!("bridge {name} to vlan_filtering 1");
    Request::route("set", object, 0, &RouteNetlinkMessage::NewLink(message))
}

/// The request that puts bridge port `port` into `vlans` too; of one that it is in already the treatment is set.
/// `name` is for the error alone.
#[must_use]
pub fn add_vlans(port: u32, name: &IfName, vlans: &[PortVlans]) -> Request {
    request("add", RTM_SETLINK, port, name, vlans)
}

/// The request that takes bridge port `port` out of `vlans`, where it is in them; `name` is for the error alone.
#[must_use]
pub fn delete_vlans(port: u32, name: &IfName, vlans: &[PortVlans]) -> Request {
    request("delete", RTM_DELLINK, port, name, vlans)
}

fn request(verb: &'static str, kind: u16, port: u32, name: &IfName, vlans: &[PortVlans]) -> Request {
    let mut payload = vec![0; LINK_HEADER];
    payload[0] = AF_BRIDGE;
    payload[4..8].copy_from_slice(&port.to_ne_bytes());
    let mut words = Vec::new();
    nest(&mut payload, IFLA_AF_SPEC, |infos| {
        let mut info = |flags: u16, vlan: u16| {
            let [a, b] = flags.to_ne_bytes();
            let [c, d] = vlan.to_ne_bytes();
            put(infos, IFLA_BRIDGE_VLAN_INFO, &[a, b, c, d]);
        };
        for range in vlans {
            let mut flags = if range.pvid { BRIDGE_VLAN_INFO_PVID } else { 0 };
            flags |= if range.untagged { BRIDGE_VLAN_INFO_UNTAGGED } else { 0 };
            if range.first == range.last {
                info(flags, range.first);
                words.push(range.first.to_string());
            } else {
                info(flags | BRIDGE_VLAN_INFO_RANGE_BEGIN, range.first);
                info(flags | BRIDGE_VLAN_INFO_RANGE_END, range.last);
                words.push(format!("{}-{}", range.first, range.last));
            }
        }
    });
    Request { verb, object: format!("vlan {} dev {name}", words.join(",")), kind, flags: 0, payload }
}

impl RouteSocket {
    /// This kernel's bridges can keep VLANs apart. Asking leaves nothing, except that the module of bridges is
    /// loaded where it is one.
    ///
    /// `unused` is a name that no interface has, unless it is a bridge.
    ///
    /// # Errors
    /// The kernel has no bridges, or did not answer.
    pub fn knows_vlans(&mut self, unused: &IfName) -> Result<bool, Error> {
        if self.tells_vlans()? {
            return Ok(true);
        }
        // Linux loads the module before it refuses the address, since no interface may have a multicast one.
        let mac = Some(Mac([0xff; 6]));
        match self.request(&Bridge { name: unused.clone(), mac, mtu: None }.add()) {
            Err(e) if !e.is_not_found() && !e.is_exists() => Err(e),
            _ => self.tells_vlans(),
        }
    }

    /// Something answers to questions for VLANs, if only that the loopback has none.
    fn tells_vlans(&mut self) -> Result<bool, Error> {
        match self.vlans(LOOPBACK) {
            Err(e) if e.is_unsupported() => Ok(false),
            Err(e) if e.raw_os_error() != Some(libc::EINVAL) => Err(e),
            _ => Ok(true),
        }
    }

    /// The VLANs that bridge port `port` is in, in their order. Since Linux 5.6.
    ///
    /// # Errors
    /// It is no bridge port (EINVAL), the kernel knows no VLANs of bridges ([`Error::is_unsupported`]), or see
    /// [`Connection::dump`](crate::netlink::Connection::dump).
    pub fn vlans(&mut self, port: u32) -> Result<Vec<PortVlans>, Error> {
        let mut payload = vec![0; VLAN_HEADER];
        payload[0] = AF_BRIDGE;
        payload[4..8].copy_from_slice(&port.to_ne_bytes());
        let object = format!("VLANs of the bridge port with index {port}");
        let request = Request { verb: "list", object, kind: RTM_GETVLAN, flags: 0, payload };
        Ok(self.dump(&request, |message| Ok(Some(read(message))))?.concat())
    }
}

/// Reads `RTM_NEWVLAN`; an entry that is none is left out.
fn read(message: Message<'_>) -> Vec<PortVlans> {
    let entries = attributes(message.payload, VLAN_HEADER).filter(|(kind, _)| *kind == BRIDGE_VLANDB_ENTRY);
    entries.filter_map(|(_, entry)| range(entry)).collect()
}

fn range(entry: &[u8]) -> Option<PortVlans> {
    let (mut info, mut last) = (None, None);
    for (kind, value) in attributes(entry, 0) {
        match (kind, value) {
            (BRIDGE_VLANDB_ENTRY_INFO, &[a, b, c, d]) => {
                info = Some((u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])));
            }
            (BRIDGE_VLANDB_ENTRY_RANGE, &[a, b]) => last = Some(u16::from_ne_bytes([a, b])),
            _ => {}
        }
    }
    let (flags, first) = info?;
    let is = |flag| flags & flag != 0;
    let (pvid, untagged) = (is(BRIDGE_VLAN_INFO_PVID), is(BRIDGE_VLAN_INFO_UNTAGGED));
    Some(PortVlans { first, last: last.unwrap_or(first), pvid, untagged })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_both_ends_and_a_single_vlan_is_one_entry() {
        let name = "veth0".parse().unwrap();
        let request = add_vlans(7, &name, &[PortVlans::native(100), PortVlans::tagged(200, 210)]);
        assert_eq!(request.object, "vlan 100,200-210 dev veth0");
        assert_eq!(request.payload[..8], [7, 0, 0, 0, 7, 0, 0, 0]);
        // IFLA_AF_SPEC, nested.
        assert_eq!(request.payload[16..20], [28, 0, 26, 128]);
        let infos: Vec<_> = attributes(&request.payload[20..], 0).map(|(_, value)| value.to_vec()).collect();
        assert_eq!(infos, [[6, 0, 100, 0], [8, 0, 200, 0], [16, 0, 210, 0]]);
    }

    #[test]
    fn what_the_kernel_tells_is_read() {
        let mut payload = vec![0; VLAN_HEADER];
        for (flags, first, last) in [(6, 1, None), (0, 200, Some(210_u16))] {
            nest(&mut payload, BRIDGE_VLANDB_ENTRY, |entry| {
                put(entry, BRIDGE_VLANDB_ENTRY_INFO, &[flags, 0, first, 0]);
                if let Some(last) = last {
                    put(entry, BRIDGE_VLANDB_ENTRY_RANGE, &last.to_ne_bytes());
                }
            });
        }
        let message = Message { kind: 112, flags: 0, sequence: 0, port: 0, payload: &payload };
        assert_eq!(read(message), [PortVlans::native(1), PortVlans::tagged(200, 210)]);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(payload: Vec<u8>) {
            let _ = read(Message { kind: 112, flags: 0, sequence: 0, port: 0, payload: &payload });
        }
    }
}

//! Which addresses the bridge is to have.

use std::net::IpAddr;

use netmodel::Subnet;

use crate::{Bridge, Code, Error, HostAddress};

/// One step towards the gateways' addresses, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayChange {
    /// Takes an address from the bridge.
    Remove(HostAddress),
    /// Gives it one.
    Add(HostAddress),
}

/// The steps that give `bridge`, which has the addresses `present`, those of `wanted`.
///
/// Another address is in the way: any other of IPv4; of IPv6 one that overlaps, and where the bridge `is_owned` any
/// but a link-local one. It goes where `forceAddress` says so, and where the bridge `is_owned` and has no `holders`:
/// then it is the gateway of an earlier subnet that nobody has an address of any more. With it goes what the
/// earlier subnets had of a family that is not `wanted` now.
///
/// # Errors
/// Another address is in the way; the holders are named.
pub fn gateway_changes(
    bridge: &Bridge,
    wanted: &[HostAddress],
    present: &[HostAddress],
    is_owned: bool,
    holders: &[String],
) -> Result<Vec<GatewayChange>, Error> {
    let is_left_over = is_owned && holders.is_empty();
    let mut changes = Vec::new();
    for gateway in wanted.iter().filter(|gateway| !present.contains(gateway)) {
        let conflicting =
            |other: &&HostAddress| conflicts(other, gateway, is_owned) && !wanted.contains(other);
        for other in present.iter().filter(conflicting) {
            if !bridge.force_address && !is_left_over {
                return Err(different(bridge, gateway, other, holders));
            }
            if !changes.contains(&GatewayChange::Remove(*other)) {
                changes.push(GatewayChange::Remove(*other));
            }
        }
        changes.push(GatewayChange::Add(*gateway));
    }
    if is_left_over && changes.iter().any(|change| matches!(change, GatewayChange::Remove(_))) {
        let is_unwanted = |other: &&HostAddress| {
            !is_link_local(other) && wanted.iter().all(|w| w.address.is_ipv4() != other.address.is_ipv4())
        };
        changes.extend(present.iter().filter(is_unwanted).copied().map(GatewayChange::Remove));
    }
    Ok(changes)
}

/// How many holders are named.
const NAMED: usize = 20;

fn different(bridge: &Bridge, gateway: &HostAddress, other: &HostAddress, holders: &[String]) -> Error {
    let mut text =
        format!("{:?} already has an IP address different from {gateway}", bridge.gateway_link.as_str());
    if !holders.is_empty() {
        let more = if holders.len() > NAMED { ", ..." } else { "" };
        let named = holders.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
        text.push_str(&format!(": {other} is held by {named}{more}"));
    }
    Error::new(Code::Internal, text).with_details(format!("{} has {other}", bridge.gateway_link))
}

/// An IPv4 address of the bridge is in the way of any other; an IPv6 one of those that overlap it, and on a bridge
/// that `is_owned` of any other, too, unless it is link-local.
fn conflicts(present: &HostAddress, wanted: &HostAddress, is_owned: bool) -> bool {
    if present.address.is_ipv4() != wanted.address.is_ipv4() {
        return false;
    }
    let subnet = |a: &HostAddress| Subnet::containing(a.address, a.prefix).ok();
    let overlap = subnet(present).zip(subnet(wanted)).is_some_and(|(a, b)| a.overlaps(&b));
    wanted.address.is_ipv4() || overlap || (is_owned && !is_link_local(present))
}

/// The kernel gives every interface one.
fn is_link_local(address: &HostAddress) -> bool {
    matches!(address.address, IpAddr::V6(address) if address.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arguments, Network};

    fn address(text: &str) -> HostAddress {
        let (address, prefix) = text.split_once('/').unwrap();
        HostAddress { address: address.parse().unwrap(), prefix: prefix.parse().unwrap() }
    }

    fn changes(
        force: bool,
        wanted: &[&str],
        present: &[&str],
        (is_owned, holders): (bool, &[&str]),
    ) -> Result<String, String> {
        let text = format!(r#"{{"name":"n","type":"bridge","forceAddress":{force}}}"#);
        let bridge = Bridge::parse(&Network::parse(text.as_bytes()).unwrap(), &Arguments::default()).unwrap();
        let all = |texts: &[&str]| texts.iter().map(|text| address(text)).collect::<Vec<_>>();
        let holders: Vec<String> = holders.iter().map(|holder| (*holder).to_owned()).collect();
        let changes = gateway_changes(&bridge, &all(wanted), &all(present), is_owned, &holders);
        let text = |change: &GatewayChange| match change {
            GatewayChange::Remove(address) => format!("-{address}"),
            GatewayChange::Add(address) => format!("+{address}"),
        };
        changes.map(|c| c.iter().map(text).collect::<Vec<_>>().join(" ")).map_err(|e| e.msg)
    }

    const NOBODY: (bool, &[&str]) = (false, &[]);

    #[test]
    fn what_is_there_is_left_alone() {
        assert_eq!(
            changes(false, &["10.9.0.1/24"], &["10.9.0.1/24", "fe80::1/64"], NOBODY),
            Ok(String::new())
        );
        let both = ["10.9.0.1/24", "10.8.0.1/24"];
        assert_eq!(changes(false, &both, &both[..1], NOBODY), Ok("+10.8.0.1/24".into()));
        assert_eq!(
            changes(false, &["fd00::1/64"], &["fd01::1/64", "10.9.0.1/8"], NOBODY),
            Ok("+fd00::1/64".into())
        );
    }

    #[test]
    fn another_address_is_refused_or_replaced() {
        let refused = changes(false, &["10.9.0.1/24"], &["10.8.0.1/24"], NOBODY).unwrap_err();
        assert_eq!(refused, "\"cni0\" already has an IP address different from 10.9.0.1/24");
        assert_eq!(
            changes(true, &["10.9.0.1/24"], &["10.8.0.1/24"], NOBODY),
            Ok("-10.8.0.1/24 +10.9.0.1/24".into())
        );
        assert!(changes(false, &["fd00::1/64"], &["fd00::2/48"], NOBODY).is_err());
    }

    #[test]
    fn the_gateway_of_an_earlier_subnet_goes_when_nobody_needs_it() {
        let change = |owner| changes(false, &["10.42.7.1/24"], &["10.42.3.1/24"], owner);
        assert_eq!(change((true, &[])), Ok("-10.42.3.1/24 +10.42.7.1/24".into()));
        let refused = change((true, &["c1/eth0", "veth7"])).unwrap_err();
        assert_eq!(
            refused,
            "\"cni0\" already has an IP address different from 10.42.7.1/24: 10.42.3.1/24 is held by c1/eth0, veth7"
        );
        assert!(change(NOBODY).is_err());
    }

    #[test]
    fn an_owned_bridge_follows_the_subnet_of_ipv6() {
        let present = ["10.42.3.1/24", "fe80::1/64", "fd42:0:0:3::1/64"];
        let change = |wanted: &[&str], owner| changes(false, wanted, &present, owner);
        let wanted = ["10.42.3.1/24", "fd42:0:0:9::1/64"];
        assert_eq!(change(&wanted, (true, &[])), Ok("-fd42:0:0:3::1/64 +fd42:0:0:9::1/64".into()));
        let refused = change(&wanted, (true, &["c1/eth0"])).unwrap_err();
        assert_eq!(
            refused,
            "\"cni0\" already has an IP address different from fd42:0:0:9::1/64: fd42:0:0:3::1/64 is held by c1/eth0"
        );
        assert_eq!(change(&wanted, NOBODY), Ok("+fd42:0:0:9::1/64".into()), "others' coexist");
        assert_eq!(changes(false, &wanted, &present[..2], (true, &["c1"])), Ok("+fd42:0:0:9::1/64".into()));
    }

    #[test]
    fn a_family_that_is_no_longer_there_goes_with_the_subnet() {
        let both = ["10.42.3.1/24", "fe80::1/64", "fd42:0:0:3::1/64", "fd42:0:0:9::1/64"];
        let change = |wanted: &[&str]| changes(false, wanted, &both, (true, &[]));
        let wanted = "-10.42.3.1/24 +10.42.8.1/24 -fd42:0:0:3::1/64 -fd42:0:0:9::1/64";
        assert_eq!(change(&["10.42.8.1/24"]), Ok(wanted.into()));
        let wanted = "-fd42:0:0:3::1/64 -fd42:0:0:9::1/64 +fd42:0:0:8::1/64 -10.42.3.1/24";
        assert_eq!(change(&["fd42:0:0:8::1/64"]), Ok(wanted.into()));
        assert_eq!(change(&["10.42.3.1/24"]), Ok(String::new()), "nothing has changed that is needed");
        let moved = changes(true, &["10.42.8.1/24"], &both, (true, &["c1"]));
        assert_eq!(moved, Ok("-10.42.3.1/24 +10.42.8.1/24".into()), "pods may need it");
    }
}

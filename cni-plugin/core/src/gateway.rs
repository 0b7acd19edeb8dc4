//! Which addresses the bridge is to have.

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
/// An address of `pod_networks` that the bridge has is the gateway of an earlier lease of this node: it
/// stays while `in_use` says that containers have addresses of its subnet, and goes otherwise.
///
/// # Errors
/// Another address is in the way: any other of IPv4, one that overlaps of IPv6; unless `forceAddress`
/// says to replace it.
pub fn gateway_changes(
    bridge: &Bridge,
    wanted: &[HostAddress],
    present: &[HostAddress],
    pod_networks: &[Subnet],
    in_use: impl Fn(Subnet) -> bool,
) -> Result<Vec<GatewayChange>, Error> {
    let mut changes = Vec::new();
    for gateway in wanted.iter().filter(|gateway| !present.contains(gateway)) {
        for other in present.iter().filter(|other| conflicts(other, gateway) && !wanted.contains(other)) {
            let subnet = Subnet::containing(other.address, other.prefix).ok();
            let is_earlier = pod_networks.iter().any(|network| network.contains(other.address));
            if !is_earlier && !bridge.force_address {
                return Err(different(bridge, gateway, other));
            }
            let is_kept = is_earlier && subnet.is_some_and(&in_use);
            if !is_kept && !changes.contains(&GatewayChange::Remove(*other)) {
                changes.push(GatewayChange::Remove(*other));
            }
        }
        changes.push(GatewayChange::Add(*gateway));
    }
    Ok(changes)
}

fn different(bridge: &Bridge, gateway: &HostAddress, other: &HostAddress) -> Error {
    let text = format!("{:?} already has an IP address different from {gateway}", bridge.bridge.as_str());
    Error::new(Code::Internal, text).with_details(format!("{} has {other}", bridge.bridge))
}

/// An IPv4 address of the bridge is in the way of any other; an IPv6 one of those that overlap it.
fn conflicts(present: &HostAddress, wanted: &HostAddress) -> bool {
    if present.address.is_ipv4() != wanted.address.is_ipv4() {
        return false;
    }
    let subnet = |a: &HostAddress| Subnet::containing(a.address, a.prefix).ok();
    let overlap = subnet(present).zip(subnet(wanted)).is_some_and(|(a, b)| a.overlaps(&b));
    wanted.address.is_ipv4() || overlap
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arguments, Network};

    fn address(text: &str) -> HostAddress {
        let (address, prefix) = text.split_once('/').unwrap();
        HostAddress { address: address.parse().unwrap(), prefix: prefix.parse().unwrap() }
    }

    /// `used` is the subnet that containers still have addresses of.
    fn changes(force: bool, wanted: &[&str], present: &[&str], used: &str) -> Result<String, String> {
        let text = format!(r#"{{"name":"n","type":"bridge","forceAddress":{force}}}"#);
        let bridge = Bridge::parse(&Network::parse(text.as_bytes()).unwrap(), &Arguments::default()).unwrap();
        let all = |texts: &[&str]| texts.iter().map(|text| address(text)).collect::<Vec<_>>();
        let networks = ["10.42.0.0/16".parse().unwrap()];
        let in_use = |subnet: Subnet| subnet.to_string() == used;
        let changes = gateway_changes(&bridge, &all(wanted), &all(present), &networks, in_use);
        let text = |change: &GatewayChange| match change {
            GatewayChange::Remove(address) => format!("-{address}"),
            GatewayChange::Add(address) => format!("+{address}"),
        };
        changes.map(|c| c.iter().map(text).collect::<Vec<_>>().join(" ")).map_err(|e| e.msg)
    }

    #[test]
    fn what_is_there_is_left_alone() {
        assert_eq!(changes(false, &["10.9.0.1/24"], &["10.9.0.1/24", "fe80::1/64"], ""), Ok(String::new()));
        let both = ["10.9.0.1/24", "10.8.0.1/24"];
        assert_eq!(changes(false, &both, &both[..1], ""), Ok("+10.8.0.1/24".into()));
        assert_eq!(
            changes(false, &["fd00::1/64"], &["fd01::1/64", "10.9.0.1/8"], ""),
            Ok("+fd00::1/64".into())
        );
    }

    #[test]
    fn another_address_is_refused_or_replaced() {
        let refused = changes(false, &["10.9.0.1/24"], &["10.8.0.1/24"], "").unwrap_err();
        assert_eq!(refused, "\"cni0\" already has an IP address different from 10.9.0.1/24");
        assert_eq!(
            changes(true, &["10.9.0.1/24"], &["10.8.0.1/24"], ""),
            Ok("-10.8.0.1/24 +10.9.0.1/24".into())
        );
        assert!(changes(false, &["fd00::1/64"], &["fd00::2/48"], "").is_err());
    }

    #[test]
    fn the_gateway_of_an_earlier_lease_stays_while_pods_need_it() {
        let change = |used| changes(false, &["10.42.7.1/24"], &["10.42.3.1/24"], used);
        assert_eq!(change("10.42.3.0/24"), Ok("+10.42.7.1/24".into()));
        assert_eq!(change(""), Ok("-10.42.3.1/24 +10.42.7.1/24".into()));
    }
}

//! The network's configuration: the JSON of `<prefix>/config`, checked.

use std::{fmt, net::Ipv4Addr};

use netmodel::{IfName, Mtu, Port, Subnet, Vni};
use serde_json::Value;

use crate::{json::Object, wire};

/// UDP port of VXLAN where the configuration names none: Linux' own default, as flannel's.
const PORT: u16 = 8472;

/// A configuration that can be worked with. IPv4 and VXLAN only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The subnet that all pods of the cluster lie in.
    pub network: Subnet,
    /// Prefix length of each node's subnet.
    pub subnet_len: u8,
    /// First address of the first subnet that may be leased.
    pub subnet_min: Ipv4Addr,
    /// First address of the last subnet that may be leased.
    pub subnet_max: Ipv4Addr,
    /// How packets reach other nodes.
    pub vxlan: Vxlan,
    /// There was no `Backend` at all: taken as vxlan, where flannel takes udp.
    pub backend_missing: bool,
    /// What a user should know of this configuration, one line each.
    pub notes: Vec<String>,
}

/// Options of the vxlan backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// `VNI`, 1 by default.
    pub vni: Vni,
    /// `Port`, UDP; 8472 by default.
    pub port: Port,
    /// `MTU` to use for the node's interface instead of its own one.
    pub underlay_mtu: Option<Mtu>,
    /// `GBP`: group policy extension.
    pub gbp: bool,
    /// `Learning`: the device learns addresses from packets.
    pub learning: bool,
    /// `DirectRouting`: nodes on the same link are reached without a tunnel.
    pub direct_routing: bool,
    /// Name of the device: `flannel.<VNI>`.
    pub device: IfName,
}

/// A configuration that is not valid, with every mistake in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct BadConfig(pub Vec<String>);

impl fmt::Display for BadConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the network configuration is not valid: {}", self.0.join("; "))
    }
}

impl Config {
    /// The configuration in a JSON text, whose keys match in any letter case.
    ///
    /// # Errors
    /// Every mistake in it, at once.
    pub fn parse(text: &str) -> Result<Self, BadConfig> {
        let object = Object::parse(text).map_err(|e| BadConfig(vec![e]))?;
        let mut fields = Fields { object, within: "", mistakes: Vec::new() };
        let mut notes = Vec::new();
        families(&mut fields);
        let network = network(&mut fields, &mut notes);
        let (backend, backend_missing) = backend(&mut fields);
        let range = match network {
            Some(network) => range(&mut fields, network),
            None => without_network(&mut fields),
        };
        match (network, range, backend) {
            (Some(network), Some((subnet_len, subnet_min, subnet_max)), Some(vxlan))
                if fields.mistakes.is_empty() =>
            {
                Ok(Self { network, subnet_len, subnet_min, subnet_max, vxlan, backend_missing, notes })
            }
            _ => Err(BadConfig(fields.mistakes)),
        }
    }

    /// All subnets that may be leased, in order.
    pub fn subnets(&self) -> impl Iterator<Item = Subnet> + use<> {
        let (length, step) = (self.subnet_len, self.step());
        let (min, max) = (u64::from(u32::from(self.subnet_min)), u64::from(u32::from(self.subnet_max)));
        (min..=max).step_by(step).filter_map(move |first| {
            Subnet::new(Ipv4Addr::from(u32::try_from(first).ok()?).into(), length).ok()
        })
    }

    /// `subnet` is one of those that may be leased.
    #[must_use]
    pub fn offers(&self, subnet: Subnet) -> bool {
        let std::net::IpAddr::V4(first) = subnet.address() else { return false };
        subnet.prefix() == self.subnet_len && (self.subnet_min..=self.subnet_max).contains(&first)
    }

    /// Addresses in one node's subnet.
    fn step(&self) -> usize {
        1 << (32 - self.subnet_len)
    }

    /// What to say of a configuration without `Backend`: where leases of flannel's udp backend are
    /// there (`udp_leases`), a warning that the two can't reach each other.
    #[must_use]
    pub fn backend_note(&self, udp_leases: usize) -> Option<String> {
        match (self.backend_missing, udp_leases) {
            (false, _) => None,
            (true, 0) => Some("the network configuration has no \"Backend\": vxlan is used".to_owned()),
            (true, n) => Some(format!(
                "the network configuration has no \"Backend\": vxlan is used here, but {n} leases are of type udp, \
                 as flannel takes it, and the two can't reach each other: write \"Backend\":{{\"Type\":\"vxlan\"}}"
            )),
        }
    }
}

/// Keys of one object, with what is wrong with their values.
struct Fields {
    object: Object,
    /// What comes before the names of the keys in a message: `Backend.` in the backend's object.
    within: &'static str,
    mistakes: Vec<String>,
}

impl Fields {
    fn wrong(&mut self, name: &str, wanted: &str, found: &Value) {
        self.mistakes.push(format!("{}{name} must be {wanted}, not {found}", self.within));
    }

    fn flag(&mut self, name: &str, default: bool) -> bool {
        match self.object.get(name).cloned() {
            None => default,
            Some(Value::Bool(flag)) => flag,
            Some(other) => {
                self.wrong(name, "true or false", &other);
                default
            }
        }
    }

    /// A number that is not negative; `default` where there is none.
    fn number(&mut self, name: &str, default: u64) -> u64 {
        match self.object.get(name).cloned() {
            None => default,
            Some(value) => value.as_u64().unwrap_or_else(|| {
                self.wrong(name, "a whole number", &value);
                default
            }),
        }
    }

    fn text(&mut self, name: &str) -> Option<String> {
        match self.object.get(name).cloned()? {
            Value::String(text) => Some(text),
            other => {
                self.wrong(name, "a text", &other);
                None
            }
        }
    }
}

/// Only IPv4 is carried.
fn families(fields: &mut Fields) {
    if fields.flag("EnableIPv6", false) {
        fields.mistakes.push("EnableIPv6 is true, but only IPv4 is supported yet".to_owned());
    }
    if !fields.flag("EnableIPv4", true) {
        fields.mistakes.push("EnableIPv4 is false, but only IPv4 is supported yet".to_owned());
    }
    // Rules are nftables' either way; the value is only checked.
    fields.flag("EnableNFTables", false);
}

/// `Network`; bits behind the prefix are dropped with a note, as Go does without one.
fn network(fields: &mut Fields, notes: &mut Vec<String>) -> Option<Subnet> {
    let before = fields.mistakes.len();
    let Some(text) = fields.text("Network") else {
        if fields.mistakes.len() == before {
            fields
                .mistakes
                .push("Network is missing: write for example \"Network\":\"10.5.0.0/16\"".to_owned());
        }
        return None;
    };
    let parsed = text.parse().or_else(|error| match error {
        netmodel::BadSubnet::HostBits { meant, .. } => {
            notes.push(format!("Network {text} has bits behind the prefix: taken as {meant}"));
            Ok(meant)
        }
        syntax @ netmodel::BadSubnet::Syntax(_) => Err(format!("Network: {syntax}")),
    });
    match parsed {
        Ok(network) if network.is_ipv4() => Some(network),
        Ok(network) => {
            fields.mistakes.push(format!("Network {network} is not IPv4"));
            None
        }
        Err(mistake) => {
            fields.mistakes.push(mistake);
            None
        }
    }
}

/// `SubnetLen`, `SubnetMin`, `SubnetMax`.
fn range(fields: &mut Fields, network: Subnet) -> Option<(u8, Ipv4Addr, Ipv4Addr)> {
    let length = length(fields, network);
    let (first, last) = (first_address(network)?, last_address(network)?);
    let step = 1_u64 << (32 - length.unwrap_or(32));
    let lowest = u32::try_from(u64::from(u32::from(first)) + step).unwrap_or(u32::MAX);
    let highest = u32::try_from(u64::from(u32::from(last)) + 1 - step).unwrap_or(0);
    let min = bound(fields, "SubnetMin", network, length).unwrap_or_else(|| lowest.into());
    let max = bound(fields, "SubnetMax", network, length).unwrap_or_else(|| highest.into());
    if min > max && length.is_some() {
        fields.mistakes.push(format!("SubnetMin {min} lies behind SubnetMax {max}"));
    }
    Some((length?, min, max))
}

/// What can be told of `SubnetLen`, `SubnetMin` and `SubnetMax` where `Network` itself is wrong.
fn without_network(fields: &mut Fields) -> Option<(u8, Ipv4Addr, Ipv4Addr)> {
    let length = fields.number("SubnetLen", 0);
    if length > 30 {
        fields.mistakes.push(format!("SubnetLen {length} is out of range: it may be at most 30"));
    }
    for name in ["SubnetMin", "SubnetMax"] {
        address(fields, name);
    }
    None
}

/// The prefix length of a node's subnet, by flannel's rules.
fn length(fields: &mut Fields, network: Subnet) -> Option<u8> {
    let prefix = network.prefix();
    match fields.number("SubnetLen", 0) {
        0 if prefix > 28 => {
            fields.mistakes.push(format!("Network {network} is too small: its prefix may be at most /28"));
            None
        }
        0 if prefix <= 22 => Some(24),
        0 => Some(prefix + 2),
        given => {
            let length = u8::try_from(given).ok().filter(|l| *l <= 30 && *l >= prefix + 2);
            if length.is_none() {
                let least = prefix + 2;
                fields.mistakes.push(format!(
                    "SubnetLen {given} does not fit Network {network}: it must be {least} to 30, so that there \
                     are at least four subnets"
                ));
            }
            length
        }
    }
}

/// `SubnetMin` or `SubnetMax`, where it is there and right.
fn bound(fields: &mut Fields, name: &str, network: Subnet, length: Option<u8>) -> Option<Ipv4Addr> {
    let address = address(fields, name)?;
    if !network.contains(address.into()) {
        fields.mistakes.push(format!("{name} {address} does not lie in Network {network}"));
        return None;
    }
    let length = length?;
    if Subnet::new(address.into(), length).is_err() {
        fields.mistakes.push(format!("{name} {address} is not the first address of a /{length} subnet"));
        return None;
    }
    Some(address)
}

/// The address at a key, if there is one.
fn address(fields: &mut Fields, name: &str) -> Option<Ipv4Addr> {
    let text = fields.text(name)?;
    let address = text.parse().ok();
    if address.is_none() {
        fields.mistakes.push(format!("{name} {text:?} is not an IPv4 address"));
    }
    address
}

fn first_address(network: Subnet) -> Option<Ipv4Addr> {
    match network.address() {
        std::net::IpAddr::V4(address) => Some(address),
        std::net::IpAddr::V6(_) => None,
    }
}

fn last_address(network: Subnet) -> Option<Ipv4Addr> {
    match network.last() {
        std::net::IpAddr::V4(address) => Some(address),
        std::net::IpAddr::V6(_) => None,
    }
}

/// `Backend`, and whether it was missing altogether.
fn backend(fields: &mut Fields) -> (Option<Vxlan>, bool) {
    let Some(value) = fields.object.get("Backend").cloned() else {
        return (
            vxlan(&mut Fields { object: Object::default(), within: "Backend.", mistakes: Vec::new() }),
            true,
        );
    };
    let object = match Object::from_value(value) {
        Ok(object) => object,
        Err(other) => {
            fields.wrong("Backend", "an object such as {\"Type\":\"vxlan\"}", &other);
            return (None, false);
        }
    };
    let mut inner = Fields { object, within: "Backend.", mistakes: Vec::new() };
    let found = match inner.text("Type") {
        Some(kind) if kind.eq_ignore_ascii_case(wire::VXLAN) => vxlan(&mut inner),
        Some(kind) => {
            inner.mistakes.push(format!(
                "Backend.Type {kind:?} is not supported yet: write \"Backend\":{{\"Type\":\"vxlan\"}}"
            ));
            None
        }
        None if inner.mistakes.is_empty() => {
            inner.mistakes.push("Backend has no \"Type\": write \"Backend\":{\"Type\":\"vxlan\"}".to_owned());
            None
        }
        None => None,
    };
    fields.mistakes.append(&mut inner.mistakes);
    (found, false)
}

/// The options of the vxlan backend; `None` with a mistake noted.
fn vxlan(fields: &mut Fields) -> Option<Vxlan> {
    let number = fields.number("VNI", 1);
    let device = format!("flannel.{number}").parse::<IfName>().ok();
    let vni = Vni::try_from(number).ok().filter(|_| device.is_some());
    if vni.is_none() {
        // Ten million and more give a device name that is longer than Linux takes.
        fields.mistakes.push(format!("Backend.VNI {number} is out of range: it must be 0 to 9999999"));
    }
    let number = match fields.number("Port", 0) {
        0 => u64::from(PORT),
        given => given,
    };
    let port = i64::try_from(number).ok().and_then(|n| Port::try_from(n).ok());
    if port.is_none() {
        fields.mistakes.push(format!("Backend.Port {number} is out of range: it must be 1 to 65535"));
    }
    let number = fields.number("MTU", 0);
    let underlay_mtu = Mtu::try_from(number).ok().filter(|mtu| mtu.get() >= crate::LEAST_UNDERLAY_MTU);
    if number != 0 && underlay_mtu.is_none() {
        let least = crate::LEAST_UNDERLAY_MTU;
        fields.mistakes.push(format!("Backend.MTU {number} is out of range: it must be {least} to 65535"));
    }
    Some(Vxlan {
        gbp: fields.flag("GBP", false),
        learning: fields.flag("Learning", false),
        direct_routing: fields.flag("DirectRouting", false),
        vni: vni?,
        port: port?,
        underlay_mtu,
        device: device?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, length: u8, min: &str, max: &str) {
        let config = Config::parse(text).unwrap();
        assert_eq!(config.subnet_len, length, "{text}");
        assert_eq!(config.subnet_min, min.parse::<Ipv4Addr>().unwrap(), "{text}");
        assert_eq!(config.subnet_max, max.parse::<Ipv4Addr>().unwrap(), "{text}");
    }

    fn check_mistakes(text: &str, mistakes: &[&str]) {
        assert_eq!(Config::parse(text).unwrap_err().0, mistakes, "{text}");
    }

    #[test]
    fn defaults_are_flannels() {
        check(r#"{"Network":"10.5.0.0/16"}"#, 24, "10.5.1.0", "10.5.255.0");
        check(r#"{"Network":"10.0.0.0/8","SubnetLen":0}"#, 24, "10.0.1.0", "10.255.255.0");
        check(r#"{"Network":"10.5.0.0/22"}"#, 24, "10.5.1.0", "10.5.3.0");
        check(r#"{"Network":"10.5.0.0/23"}"#, 25, "10.5.0.128", "10.5.1.128");
        check(r#"{"Network":"10.5.0.0/28"}"#, 30, "10.5.0.4", "10.5.0.12");
        check(r#"{"Network":"255.255.0.0/16"}"#, 24, "255.255.1.0", "255.255.255.0");
        check(r#"{"Network":"0.0.0.0/0"}"#, 24, "0.0.1.0", "255.255.255.0");
    }

    #[test]
    fn keys_match_in_any_case_and_unknown_ones_are_ignored() {
        let text = r#"{"NetWork":"10.5.0.0/16","subnetlen":28,"SUBNETMIN":"10.5.1.16","SubnetMax":"10.5.2.0",
            "backend":{"type":"VXLAN","vni":7,"port":4789,"mtu":1400,"Learning":true,"gbp":true,"x":[]},"y":1}"#;
        check(text, 28, "10.5.1.16", "10.5.2.0");
        let vxlan = Config::parse(text).unwrap().vxlan;
        assert_eq!((vxlan.vni.get(), vxlan.port.get(), vxlan.device.as_str()), (7, 4789, "flannel.7"));
        assert_eq!(vxlan.underlay_mtu.map(Mtu::get), Some(1400));
        assert!(vxlan.learning && vxlan.gbp && !vxlan.direct_routing);
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        check_mistakes(
            r#"{"Network":"10.5.0.0/16","SubnetLen":17,"SubnetMin":"10.6.0.0","SubnetMax":"x","EnableIPv6":true,
                "Backend":{"Type":"vxlan","VNI":16777216,"Port":65536,"MTU":60,"GBP":"yes"}}"#,
            &[
                "EnableIPv6 is true, but only IPv4 is supported yet",
                "Backend.VNI 16777216 is out of range: it must be 0 to 9999999",
                "Backend.Port 65536 is out of range: it must be 1 to 65535",
                "Backend.MTU 60 is out of range: it must be 118 to 65535",
                "Backend.GBP must be true or false, not \"yes\"",
                "SubnetLen 17 does not fit Network 10.5.0.0/16: it must be 18 to 30, so that there are at least four subnets",
                "SubnetMin 10.6.0.0 does not lie in Network 10.5.0.0/16",
                "SubnetMax \"x\" is not an IPv4 address",
            ],
        );
        check_mistakes(
            r#"{"Backend":{}}"#,
            &[
                "Network is missing: write for example \"Network\":\"10.5.0.0/16\"",
                "Backend has no \"Type\": write \"Backend\":{\"Type\":\"vxlan\"}",
            ],
        );
        check_mistakes(
            r#"{"Network":"10.5.0.0/29","Backend":{"Type":"host-gw"}}"#,
            &[
                "Backend.Type \"host-gw\" is not supported yet: write \"Backend\":{\"Type\":\"vxlan\"}",
                "Network 10.5.0.0/29 is too small: its prefix may be at most /28",
            ],
        );
        check_mistakes(
            r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.1","SubnetLen":"24"}"#,
            &[
                "SubnetLen must be a whole number, not \"24\"",
                "SubnetMin 10.5.1.1 is not the first address of a /24 subnet",
            ],
        );
        check_mistakes(
            r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.8.0"}"#,
            &["SubnetMin 10.5.9.0 lies behind SubnetMax 10.5.8.0"],
        );
        check_mistakes(
            r#"{"Network":"fd00::/48","SubnetLen":33,"SubnetMin":"x"}"#,
            &[
                "Network fd00::/48 is not IPv4",
                "SubnetLen 33 is out of range: it may be at most 30",
                "SubnetMin \"x\" is not an IPv4 address",
            ],
        );
        for not_json in ["", "{", "[]", "null", "7"] {
            assert_eq!(Config::parse(not_json).unwrap_err().0.len(), 1, "{not_json}");
        }
    }

    #[test]
    fn no_backend_means_vxlan_and_says_so() {
        let config = Config::parse(r#"{"Network":"172.16.0.0/16"}"#).unwrap();
        assert_eq!(config.vxlan.device.as_str(), "flannel.1");
        assert_eq!(
            config.backend_note(0).as_deref(),
            Some("the network configuration has no \"Backend\": vxlan is used")
        );
        assert!(config.backend_note(2).is_some_and(|note| note.contains("2 leases are of type udp")));
        let named = Config::parse(r#"{"Network":"172.16.0.0/16","Backend":{"Type":"vxlan"}}"#).unwrap();
        assert_eq!(named.backend_note(2), None);
    }

    #[test]
    fn offered_subnets_are_those_of_the_range() {
        let config = Config::parse(r#"{"Network":"10.5.0.0/28","SubnetLen":30}"#).unwrap();
        let all: Vec<_> = config.subnets().map(|s| s.to_string()).collect();
        assert_eq!(all, ["10.5.0.4/30", "10.5.0.8/30", "10.5.0.12/30"]);
        assert!(config.subnets().all(|s| config.offers(s)));
        assert!(!config.offers("10.5.0.0/30".parse().unwrap()));
        let last = Config::parse(r#"{"Network":"255.255.255.240/28"}"#).unwrap();
        assert_eq!(last.subnets().count(), 3);
    }
}

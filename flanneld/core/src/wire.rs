//! The outside formats of leases in etcd: flannel's keys and values, byte for byte, and the record
//! that Weft keeps of a node beside them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use netmodel::{Mac, Subnet, Vni};
use serde_json::Value;

use crate::json::Object;

mod env;

pub use env::{BadSubnetEnv, SubnetEnv};

/// Folder of the leases below the etcd prefix: `<prefix>/subnets/<key>`.
pub const SUBNETS: &str = "subnets";
/// Folder of the records of nodes below the etcd prefix: `<prefix>/weft/nodes/<identity>`.
/// Never below [`SUBNETS`]: one foreign key there, and a Go flannel drops its routes.
pub const NODES: &str = "weft/nodes";
/// Key of the network's configuration below the etcd prefix.
pub const CONFIG: &str = "config";
/// The `BackendType` of VXLAN.
pub const VXLAN: &str = "vxlan";

/// A lease's key below `<prefix>/subnets/`: `10.5.34.0-24`, dual-stack `10.5.34.0-24&fd00:10:5:22::-64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseKey {
    /// The IPv4 subnet.
    pub subnet: Subnet,
    /// The IPv6 subnet of a dual-stack lease.
    pub ipv6: Option<Subnet>,
}

/// A key that is no lease.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the key {0:?} is not a lease: it must be an IPv4 subnet such as \"10.5.34.0-24\"")]
pub struct BadKey(String);

impl FromStr for LeaseKey {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        let bad = || BadKey(text.to_owned());
        let (four, six) = match text.split_once('&') {
            Some((four, six)) => (four, Some(six)),
            None => (text, None),
        };
        let subnet = dashed::<Ipv4Addr>(four, 31).ok_or_else(bad)?;
        let ipv6 = six.map(|six| dashed::<Ipv6Addr>(six, 127).ok_or_else(bad)).transpose()?;
        Ok(Self { subnet, ipv6 })
    }
}

/// A subnet written with `-` before its length, which is at most `longest`.
fn dashed<A: FromStr + Into<IpAddr>>(text: &str, longest: u8) -> Option<Subnet> {
    let (address, length) = text.rsplit_once('-')?;
    let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    let length = length.parse().ok().filter(|l| digits && *l <= longest)?;
    Subnet::new(address.parse::<A>().ok()?.into(), length).ok()
}

impl fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.subnet.address(), self.subnet.prefix())?;
        match self.ipv6 {
            Some(six) => write!(f, "&{}-{}", six.address(), six.prefix()),
            None => Ok(()),
        }
    }
}

/// A lease's value as it was written: who holds the subnet and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseValue {
    /// Address of the node for its peers; `0.0.0.0` where the value names none.
    pub public_ip: Ipv4Addr,
    /// The `BackendType`, empty where the value names none (flannel's udp and alloc backends).
    pub backend_type: String,
    /// The VNI, where the value names one (flannel before 0.14 did not).
    pub vni: Option<u64>,
    /// The Ethernet address of the node's VXLAN device as text, where the value names one.
    pub vtep_mac: Option<String>,
}

/// A value that is no lease, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the value is not a lease: {0}")]
pub struct BadValue(String);

impl FromStr for LeaseValue {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let object = Object::parse(text).map_err(BadValue)?;
        let public_ip = match object.get("PublicIP") {
            None => Ipv4Addr::UNSPECIFIED,
            Some(Value::String(ip)) => {
                ip.parse().map_err(|_| BadValue(format!("PublicIP {ip:?} is not an IPv4 address")))?
            }
            Some(other) => return Err(BadValue(format!("PublicIP is not a text, but {other}"))),
        };
        let backend_type = match object.get("BackendType") {
            None => String::new(),
            Some(Value::String(kind)) => kind.clone(),
            Some(other) => return Err(BadValue(format!("BackendType is not a text, but {other}"))),
        };
        // Other backends keep whatever they like in BackendData.
        let data = object.get("BackendData").cloned().and_then(|data| Object::from_value(data).ok());
        let vni = match data.as_ref().and_then(|data| data.get("VNI")) {
            None => None,
            Some(vni) => {
                Some(vni.as_u64().ok_or_else(|| BadValue(format!("VNI is not a number, but {vni}")))?)
            }
        };
        let vtep_mac = data.as_ref().and_then(|data| data.get("VtepMAC")).map(plain);
        Ok(Self { public_ip, backend_type, vni, vtep_mac })
    }
}

/// A text without its quotes, anything else as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The value of a VXLAN lease, byte for byte as flannel writes it.
#[must_use]
pub fn vxlan_value(public_ip: Ipv4Addr, vni: Vni, mac: Mac) -> String {
    let data = format!(r#"{{"VNI":{vni},"VtepMAC":"{mac}"}}"#);
    format!(r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"{VXLAN}","BackendData":{data}}}"#)
}

/// What Weft remembers of a node under `<prefix>/weft/nodes/<identity>`:
/// `{"Subnet":"10.5.34.0/24","PublicIP":"192.168.64.3"}`.
///
/// It is written in the transaction that writes the lease. A lease belongs to the node of a record
/// if it has the record's subnet and its public address: so a node is known again after its address
/// changed, and never takes a lease that another node wrote meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// Subnet of the node's last lease.
    pub subnet: Subnet,
    /// Public address that the node wrote into that lease.
    pub public_ip: Ipv4Addr,
}

impl FromStr for NodeRecord {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let object = Object::parse(text).map_err(BadValue)?;
        let field = |name: &str| {
            let text = object.get(name).and_then(Value::as_str);
            text.ok_or_else(|| BadValue(format!("{name} is missing or not a text")))
        };
        let subnet = field("Subnet")?.parse::<Subnet>().map_err(|e| BadValue(e.to_string()))?;
        let public_ip =
            field("PublicIP")?.parse().map_err(|_| BadValue("PublicIP is not an IPv4 address".to_owned()))?;
        Ok(Self { subnet, public_ip })
    }
}

impl fmt::Display for NodeRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, r#"{{"Subnet":"{}","PublicIP":"{}"}}"#, self.subnet, self.public_ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_flannels() {
        for good in ["10.5.34.0-24", "0.0.0.0-0", "10.5.34.0-24&fd00:10:5:22::-64"] {
            assert_eq!(good.parse::<LeaseKey>().unwrap().to_string(), good);
        }
        for bad in
            ["", "10.5.34.0", "10.5.34.0/24", "10.5.34.7-24", "10.5.34.0-32", "10.5.34-24", "fd00::-64"]
                .into_iter()
                .chain(["10.5.34.0-24&", "10.5.34.0-24&x", "10.5.34.0-+4", "10.5.34.0-24 ", "x10.5.34.0-24"])
        {
            assert!(bad.parse::<LeaseKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_value_is_written_byte_for_byte_and_read_in_any_case() {
        let text = include_str!("../tests/golden/lease.json").trim_end();
        let mac = "c6:d2:32:6f:8f:44".parse().unwrap();
        let vni = Vni::try_from(1).unwrap();
        assert_eq!(vxlan_value("192.168.64.3".parse().unwrap(), vni, mac), text);
        let value: LeaseValue = text.parse().unwrap();
        assert_eq!(value.public_ip, Ipv4Addr::new(192, 168, 64, 3));
        assert_eq!((value.backend_type.as_str(), value.vni), ("vxlan", Some(1)));
        assert_eq!(value.vtep_mac.as_deref(), Some("c6:d2:32:6f:8f:44"));
        assert_eq!(text.to_lowercase().parse(), Ok(value));
    }

    #[test]
    fn old_and_foreign_values_are_read() {
        let old: LeaseValue = r#"{"PublicIP":"10.10.10.15"}"#.parse().unwrap();
        assert_eq!((old.backend_type.as_str(), old.vni, old.vtep_mac), ("", None, None));
        let foreign: LeaseValue =
            r#"{"PublicIP":"1.2.3.4","BackendType":"extension","BackendData":"out"}"#.parse().unwrap();
        assert_eq!(foreign.backend_type, "extension");
        assert_eq!("{}".parse::<LeaseValue>().unwrap().public_ip, Ipv4Addr::UNSPECIFIED);
        for bad in ["", "null", "[]", "{not json", r#"{"PublicIP":"1.2.3"}"#, r#"{"PublicIP":7}"#]
            .into_iter()
            .chain([r#"{"BackendType":1}"#, r#"{"BackendData":{"VNI":"one"}}"#])
        {
            assert!(bad.parse::<LeaseValue>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_record_comes_back() {
        let text = r#"{"Subnet":"10.5.34.0/24","PublicIP":"192.168.64.3"}"#;
        assert_eq!(text.parse::<NodeRecord>().unwrap().to_string(), text);
        assert!("{}".parse::<NodeRecord>().is_err());
    }
}

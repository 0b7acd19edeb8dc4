//! Configuration of type `bridge`.

use netmodel::{IfName, Mac, Mtu};
use serde_json::Value;

use crate::{Arguments, Code, Dns, Error, Ipam, Network, foreign_ipam, json::Keys};

/// A bridge network as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// The bridge device.
    pub bridge: IfName,
    /// The bridge gets the gateway's address, and the host forwards.
    pub is_gateway: bool,
    /// The container's default route goes through the bridge.
    pub is_default_gateway: bool,
    /// Another address on the bridge is replaced instead of refused.
    pub force_address: bool,
    /// What leaves the network is masqueraded.
    pub ip_masq: bool,
    /// MTU of bridge and veth; absent for the kernel's own.
    pub mtu: Option<Mtu>,
    /// A packet may leave through the bridge port it came in by.
    pub hairpin: bool,
    /// The bridge hears every packet.
    pub promiscuous: bool,
    /// The port reaches only ports that are not isolated.
    pub isolated: bool,
    /// Frames from the container with another Ethernet address than its own are dropped.
    pub guarded: bool,
    /// IPv6 addresses are used only once nobody else turned out to have them.
    pub duplicate_detection: bool,
    /// The container's interface stays down.
    pub container_down: bool,
    /// The Ethernet address asked for.
    pub mac: Option<Mac>,
    /// Name service that replaces what address management says.
    pub dns: Dns,
    /// Address management of ours; absent for none.
    pub ipam: Option<Ipam>,
    /// The plugin that manages addresses instead.
    pub foreign_ipam: Option<String>,
}

/// The bridge device, in words of its own where the name is none.
fn device(network: &Network) -> Result<IfName, Error> {
    let name = network.keys().filled("bridge")?.unwrap_or("cni0");
    name.parse().map_err(|e: netmodel::BadIfName| {
        Error::new(Code::InvalidConfig, format!("invalid bridge {name:?}: {e}"))
    })
}

impl Bridge {
    /// Reads and checks the whole configuration.
    ///
    /// # Errors
    /// Code 2 for what this plugin can't do, naming key and value; 6 and 7 for mistakes.
    pub fn parse(network: &Network, args: &Arguments) -> Result<Self, Error> {
        let keys = network.keys();
        refuse_unsupported(network)?;
        let (hairpin, promiscuous) = (keys.flag("hairpinMode")?, keys.flag("promiscMode")?);
        if hairpin && promiscuous {
            let msg = "cannot set hairpin mode and promiscuous mode at the same time";
            return Err(Error::new(Code::InvalidConfig, msg));
        }
        if keys.flag("disableContainerInterface")? && keys.child("ipam")?.filled("type")?.is_some() {
            let msg = "cannot use IPAM when DisableContainerInterface flag is set";
            return Err(Error::new(Code::InvalidConfig, msg));
        }
        let mtu = keys.number("mtu")?.filter(|mtu| *mtu != 0).map(Mtu::try_from).transpose();
        let is_default_gateway = keys.flag("isDefaultGateway")?;
        Ok(Self {
            bridge: device(network)?,
            is_gateway: keys.flag("isGateway")? || is_default_gateway,
            is_default_gateway,
            force_address: keys.flag("forceAddress")?,
            ip_masq: keys.flag("ipMasq")?,
            mtu: mtu.map_err(|e| Error::new(Code::InvalidConfig, format!("invalid mtu: {e}")))?,
            hairpin,
            promiscuous,
            isolated: keys.flag("portIsolation")?,
            guarded: keys.flag("macspoofchk")?,
            duplicate_detection: keys.flag("enabledad")?,
            container_down: keys.flag("disableContainerInterface")?,
            mac: mac(network, args)?,
            dns: Dns::parse(&keys, "dns")?,
            ipam: Ipam::parse(network, args)?,
            foreign_ipam: foreign_ipam(network)?,
        })
    }
}

/// `runtimeConfig.mac` before `args.cni.mac` before CNI_ARGS.
fn mac(network: &Network, args: &Arguments) -> Result<Option<Mac>, Error> {
    let keys = network.keys();
    let runtime: Option<Mac> = keys.child("runtimeConfig")?.parsed("mac")?;
    let argument: Option<Mac> = keys.child("args")?.child("cni")?.parsed("mac")?;
    let mac = runtime.or(argument).or(args.mac);
    if let Some(mac) = mac.filter(|mac| mac.is_zero() || mac.is_multicast()) {
        let msg = format!("invalid mac {mac}: an interface can't have a zero or multicast address");
        return Err(Error::new(Code::InvalidConfig, msg));
    }
    Ok(mac)
}

/// What the configuration asks for and this plugin can't do. VLANs are for kernels and switches that have them.
fn refuse_unsupported(network: &Network) -> Result<(), Error> {
    let keys = network.keys();
    keys.flag("preserveDefaultVlan")?;
    let vlan = keys.number("vlan")?.filter(|vlan| *vlan != 0);
    if let Some(vlan) = vlan {
        if vlan > HIGHEST_VLAN {
            let msg = format!("invalid VLAN ID {vlan} (must be between 0 and {HIGHEST_VLAN})");
            return Err(Error::new(Code::InvalidConfig, msg));
        }
        return Err(Error::unsupported("vlan", &vlan.to_string()));
    }
    let trunk = keys.list("vlanTrunk")?;
    trunk.iter().try_for_each(check_trunk)?;
    if let [first, ..] = trunk {
        return Err(Error::unsupported("vlanTrunk", &format!("[{first}, ...]")));
    }
    check_backend(&keys, "ipMasqBackend")
}

/// Rules are nftables' whichever of its two names the key gives.
///
/// # Errors
/// Code 2 for another name.
pub(crate) fn check_backend(keys: &Keys<'_>, key: &str) -> Result<(), Error> {
    match keys.filled(key)?.filter(|name| !["iptables", "nftables"].contains(name)) {
        Some(other) => Err(Error::unsupported(key, &format!("{other:?}"))),
        None => Ok(()),
    }
}

/// The highest VLAN (IEEE 802.1Q).
const HIGHEST_VLAN: u64 = 4094;

/// One entry of `vlanTrunk`: an id, or both ends of a range.
fn check_trunk(entry: &Value) -> Result<(), Error> {
    let keys = Keys::element("vlanTrunk", entry)?;
    let invalid = |msg: String| Err(Error::new(Code::InvalidConfig, msg));
    let (mut ids, names) = ([None; 3], ["id", "minID", "maxID"]);
    for (id, name) in ids.iter_mut().zip(names) {
        *id = keys.number(name)?;
        if let Some(id) = id.filter(|id| !(1..=HIGHEST_VLAN).contains(id)) {
            return invalid(format!("incorrect trunk {name} parameter {id}: it must be 1 to {HIGHEST_VLAN}"));
        }
    }
    match ids {
        [_, Some(min), Some(max)] if min > max => invalid(format!("minID {min} is greater than maxID {max}")),
        [_, Some(_), None] => invalid("missing trunk parameter maxID".to_owned()),
        [_, None, Some(_)] => invalid("missing trunk parameter minID".to_owned()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(mut document: Value, args: &str) -> Result<Bridge, (Code, String)> {
        document.as_object_mut().unwrap().insert("name".into(), "n".into());
        document.as_object_mut().unwrap().insert("type".into(), "bridge".into());
        let network = Network::parse(document.to_string().as_bytes()).unwrap();
        Bridge::parse(&network, &Arguments::parse(args).unwrap()).map_err(|e| (e.code, e.msg))
    }

    #[test]
    fn defaults_are_the_references() {
        let bridge = parse(json!({}), "").unwrap();
        assert_eq!(bridge.bridge.as_str(), "cni0");
        assert!(!bridge.is_gateway && !bridge.hairpin && bridge.mtu.is_none() && bridge.ipam.is_none());
        let both =
            parse(json!({"IsDefaultGateway": true, "mtu": 0, "vlan": 0, "vlanTrunk": []}), "").unwrap();
        assert!(both.is_gateway && both.is_default_gateway && both.mtu.is_none());
    }

    #[test]
    fn the_runtimes_mac_wins() {
        let mac = |n: u8| format!("02:00:00:00:00:0{n}");
        let all = json!({"runtimeConfig": {"mac": mac(3)}, "args": {"cni": {"mac": mac(2)}}});
        let args = format!("MAC={}", mac(1));
        assert_eq!(parse(all, &args).unwrap().mac, mac(3).parse().ok());
        assert_eq!(parse(json!({"args": {"cni": {"mac": mac(2)}}}), &args).unwrap().mac, mac(2).parse().ok());
        assert_eq!(parse(json!({}), &args).unwrap().mac, mac(1).parse().ok());
        assert!(parse(json!({"runtimeConfig": {"mac": "ff:ff:ff:ff:ff:ff"}}), "").is_err());
    }

    #[test]
    fn what_is_not_supported_is_code_2_with_key_and_value() {
        for (document, text) in [
            (json!({"vlan": 100}), "unsupported value for key \"vlan\": 100"),
            (json!({"vlanTrunk": [{"id": 7}]}), "unsupported value for key \"vlanTrunk\": [{\"id\":7}, ...]"),
            (json!({"ipMasqBackend": "x"}), "unsupported value for key \"ipMasqBackend\": \"x\""),
            (json!({"ipMasqBackend": "x"}), "unsupported value for key \"ipMasqBackend\": \"x\""),
        ] {
            assert_eq!(parse(document, "").unwrap_err(), (Code::UnsupportedField, text.into()));
        }
        for (trunk, text) in [
            (json!({"minID": 10}), "missing trunk parameter maxID"),
            (json!({"maxID": 10}), "missing trunk parameter minID"),
            (json!({"minID": 12, "maxID": 10}), "minID 12 is greater than maxID 10"),
            (json!({"id": 4095}), "incorrect trunk id parameter 4095: it must be 1 to 4094"),
            (json!({"minID": 0, "maxID": 7}), "incorrect trunk minID parameter 0: it must be 1 to 4094"),
            (
                json!({"minID": 1, "maxID": 4095}),
                "incorrect trunk maxID parameter 4095: it must be 1 to 4094",
            ),
        ] {
            let error = parse(json!({"vlanTrunk": [trunk]}), "").unwrap_err();
            assert_eq!(error, (Code::InvalidConfig, text.into()));
        }
        for trunk in [json!({"id": -1}), json!({"minID": -1, "maxID": 7}), json!({"minID": 1, "maxID": -7})] {
            assert_eq!(parse(json!({"vlanTrunk": [trunk]}), "").unwrap_err().0, Code::Decode, "{trunk}");
        }
        let range = json!([{"minID": 10, "maxID": 20, "id": 7}]);
        assert_eq!(parse(json!({"vlanTrunk": range}), "").unwrap_err().0, Code::UnsupportedField);
        assert!(
            ["iptables", "nftables"].iter().all(|name| parse(json!({"ipMasqBackend": name}), "").is_ok())
        );
        assert_eq!(parse(json!({"vlan": 4095}), "").unwrap_err().0, Code::InvalidConfig);
        let down = json!({"disableContainerInterface": true});
        assert!(parse(down, "").unwrap().container_down);
        let both = json!({"disableContainerInterface": true, "ipam": {"type": "host-local"}});
        assert!(parse(both, "").unwrap_err().1.starts_with("cannot use IPAM"));
        let both = parse(json!({"hairpinMode": true, "promiscMode": true}), "").unwrap_err();
        assert_eq!(both.1, "cannot set hairpin mode and promiscuous mode at the same time");
        assert_eq!(parse(json!({"mtu": 7}), "").unwrap_err().0, Code::InvalidConfig);
        assert_eq!(parse(json!({"mtu": "7"}), "").unwrap_err().0, Code::Decode);
    }
}

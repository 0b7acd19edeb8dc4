//! Configuration of type `bridge`.

use netmodel::{IfName, Mac, Mtu};

use crate::{Arguments, Code, Dns, Error, Ipam, Network, Vlans, foreign_ipam, json::Keys};

/// A bridge network as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// The bridge device.
    pub bridge: IfName,
    /// The host has the gateway's address, and forwards.
    pub is_gateway: bool,
    /// The interface that has it: the bridge, or one in the container's VLAN.
    pub gateway_link: IfName,
    /// The VLANs of the container's port; absent where none are asked for.
    pub vlans: Option<Vlans>,
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
        check_backend(&keys, "ipMasqBackend")?;
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
        let is_gateway = keys.flag("isGateway")? || is_default_gateway;
        let bridge = device(network)?;
        let vlans = Vlans::parse(&keys, &bridge, is_gateway)?;
        let gateway_link = vlans.as_ref().and_then(Vlans::gateway_link).unwrap_or(&bridge).clone();
        Ok(Self {
            gateway_link,
            bridge,
            vlans,
            is_gateway,
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
    fn the_gateway_of_a_vlan_has_an_interface_of_its_own() {
        let link = |document| parse(document, "").unwrap().gateway_link.to_string();
        assert_eq!(link(json!({"vlan": 100, "isDefaultGateway": true})), "cni0.100");
        assert_eq!(link(json!({"vlan": 100})), "cni0");
        assert_eq!(link(json!({"vlanTrunk": [{"id": 100}], "isGateway": true})), "cni0");
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
        let backend = parse(json!({"ipMasqBackend": "x"}), "").unwrap_err();
        let text = "unsupported value for key \"ipMasqBackend\": \"x\"";
        assert_eq!(backend, (Code::UnsupportedField, text.into()));
        assert!(
            ["iptables", "nftables"].iter().all(|name| parse(json!({"ipMasqBackend": name}), "").is_ok())
        );
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

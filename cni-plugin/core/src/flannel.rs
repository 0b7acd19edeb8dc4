//! Configuration of type `flannel`: a bridge network whose addresses `flanneld` leased.

use serde_json::{Map, Value, json};

use crate::{
    Attachment, Code, Error, Network, SubnetEnv,
    ipam::{data_dir, foreign_ipam, plugin_name},
    json::{Keys, find},
};

/// Where `flanneld` writes the node's subnet.
///
/// # Errors
/// Code 6.
pub fn subnet_file(network: &Network) -> Result<String, Error> {
    Ok(network.keys().filled("subnetFile")?.unwrap_or("/run/flannel/subnet.env").to_owned())
}

/// Where `flanneld` says how it is: beside the subnet file, `status.json` for `subnet.env`, else
/// `<file name>.status.json`.
#[must_use]
pub fn status_file(subnet_file: &str) -> String {
    let (folder, name) = subnet_file.rsplit_once('/').map_or(("", subnet_file), |(f, n)| (f, n));
    let slash = if subnet_file.contains('/') { "/" } else { "" };
    let name = if name == "subnet.env" { "status.json".to_owned() } else { format!("{name}.status.json") };
    format!("{folder}{slash}{name}")
}

/// Why the network is not ready, in `flanneld`'s own words, from the text of its status file.
#[must_use]
pub fn reason_in_status(text: &str) -> Option<String> {
    let Ok(Value::Object(map)) = serde_json::from_str(text) else { return None };
    let keys = Keys::root(&map);
    ["problem", "reason"].iter().find_map(|key| keys.filled(key).ok().flatten()).map(str::to_owned)
}

/// Where the reference keeps one file per container with the configuration that it delegated.
///
/// # Errors
/// Code 6.
pub fn scratch_dir(network: &Network) -> Result<String, Error> {
    Ok(network.keys().filled("dataDir")?.unwrap_or("/var/lib/cni/flannel").to_owned())
}

/// The key by which a scratch file says whose it is, besides the container that its name says.
const INTERFACE: &str = "weftInterface";

/// What the scratch file of `who` holds: the configuration that was delegated, as the reference writes it, and
/// the interface.
#[must_use]
pub fn scratch_content(delegated: &Network, who: &Attachment) -> String {
    let mut map = delegated.raw.clone();
    map.insert(INTERFACE.to_owned(), who.ifname.as_str().into());
    Value::Object(map).to_string()
}

/// What was delegated for `who`, by the content of a scratch file: `Err` where it can't be read, `None` where it
/// is another attachment's. The reference's files stand for any interface.
///
/// # Errors
/// Code 6 or 7.
pub fn scratch_of(content: &[u8], who: &Attachment) -> Result<Option<Network>, Error> {
    let network = Network::parse(content).map_err(|(_, error)| error)?;
    let interface = network.keys().filled(INTERFACE)?;
    let is_its = network.name == who.network && interface.is_none_or(|name| name == who.ifname.as_str());
    if !is_its {
        return Ok(None);
    }
    // What DEL goes by: which plugins, and where the reservations lie.
    plugin_name("type", &network.kind)?;
    foreign_ipam(&network)?;
    data_dir(&network)?;
    Ok(Some(network))
}

/// The configuration that is delegated for `network` on a node with `env`, usually of type `bridge`. Without
/// `env`, as DEL and GC need it, it has no ranges.
///
/// # Errors
/// Code 6 or 7, as where `delegate` sets what is not its to set.
pub fn delegate_config(network: &Network, env: Option<&SubnetEnv>) -> Result<Network, Error> {
    let delegate = network.keys().child("delegate")?;
    for key in ["name", "ipam"] {
        if delegate.value(key).is_some() {
            let msg = format!("'delegate' dictionary must not have '{key}' field, it'll be set by flannel");
            return Err(Error::new(Code::InvalidConfig, msg));
        }
    }
    let kind = plugin_name("delegate.type", delegate.filled("type")?.unwrap_or("bridge"))?;
    if kind == "flannel" {
        return Err(Error::new(Code::InvalidConfig, "'delegate' dictionary must not be of type flannel"));
    }
    let mut document = match network.keys().value("delegate") {
        Some(Value::Object(map)) => map.clone(),
        _ => Map::new(),
    };
    let mut set = |key: &str, value: Value, always: bool| {
        if always || find(&document, key).is_none() {
            document.retain(|k, _| !k.eq_ignore_ascii_case(key));
            document.insert(key.to_owned(), value);
        }
    };
    set("name", network.name.as_str().into(), true);
    set("cniVersion", network.version.as_str().into(), true);
    if kind == "bridge" {
        set("isGateway", true.into(), false);
    }
    set("type", kind.into(), true);
    if let Some(env) = env {
        set("ipMasq", (!env.ip_masq).into(), false);
        set("mtu", env.mtu.get().into(), false);
    }
    set("ipam", address_management(network, env)?, true);
    for key in [
        "runtimeConfig",
        "args",
        "prevResult",
        "stateDir",
        "cni.dev/valid-attachments",
        "cni.dev/attachments",
    ] {
        if let Some(value) = network.keys().value(key) {
            set(key, value.clone(), true);
        }
    }
    network.with_document(document)
}

/// The network's `ipam`, with the node's subnets as ranges and the pod networks as routes.
fn address_management(network: &Network, env: Option<&SubnetEnv>) -> Result<Value, Error> {
    let given = network.keys().child("ipam")?;
    let mut ipam = match network.keys().value("ipam") {
        Some(Value::Object(map)) => map.clone(),
        _ => Map::new(),
    };
    let kind = given.filled("type")?.unwrap_or("host-local").to_owned();
    ipam.retain(|k, _| !["type", "ranges", "subnet"].iter().any(|key| k.eq_ignore_ascii_case(key)));
    ipam.insert("type".into(), kind.into());
    let Some(env) = env else { return Ok(ipam.into()) };
    let mut routes = given.list("routes")?.to_vec();
    routes.extend(env.networks.iter().map(|network| json!({"dst": network.to_string()})));
    ipam.retain(|k, _| !k.eq_ignore_ascii_case("routes"));
    ipam.insert("routes".into(), routes.into());
    let ranges: Vec<Value> = env.subnets.iter().map(|s| json!([{"subnet": s.to_string()}])).collect();
    ipam.insert("ranges".into(), ranges.into());
    Ok(ipam.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arguments, Bridge};

    fn network(text: &str) -> Network {
        Network::parse(text.as_bytes()).unwrap()
    }

    fn env() -> SubnetEnv {
        let text = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        SubnetEnv::parse("x", text).unwrap()
    }

    #[test]
    fn the_delegate_is_filled_in() {
        let text = r#"{"cniVersion":"1.0.0","name":"cbr0","type":"flannel",
            "delegate":{"hairpinMode":true,"ISDEFAULTGATEWAY":true,"bridge":"br7"},"runtimeConfig":{"mac":"02:00:00:00:00:01"}}"#;
        let delegate = delegate_config(&network(text), Some(&env())).unwrap();
        let bridge = Bridge::parse(&delegate, &Arguments::default()).unwrap();
        assert_eq!((bridge.bridge.as_str(), bridge.mtu.map(netmodel::Mtu::get)), ("br7", Some(1450)));
        assert!(bridge.hairpin && bridge.is_default_gateway && bridge.is_gateway && !bridge.ip_masq);
        assert!(bridge.mac.is_some());
        let ipam = bridge.ipam.unwrap();
        assert_eq!(ipam.sets[0].0[0].gateway.to_string(), "10.42.3.1");
        assert_eq!(ipam.routes[0].dst.to_string(), "10.42.0.0/16");
    }

    #[test]
    fn what_the_user_set_is_kept() {
        let text = r#"{"cniVersion":"1.0.0","name":"cbr0","type":"flannel",
            "delegate":{"MTU":1300,"ipmasq":false,"isGateway":false},
            "ipam":{"dataDir":"/d","routes":[{"dst":"192.0.2.0/24"}]}}"#;
        let delegate = delegate_config(&network(text), Some(&env())).unwrap();
        let bridge = Bridge::parse(&delegate, &Arguments::default()).unwrap();
        assert_eq!((bridge.mtu.map(netmodel::Mtu::get), bridge.is_gateway), (Some(1300), false));
        let ipam = bridge.ipam.unwrap();
        assert_eq!((data_dir(&delegate), ipam.routes.len()), (Ok(Some("/d".to_owned())), 2));
    }

    #[test]
    fn what_is_not_the_delegates_to_say_is_refused() {
        let refused = |delegate: &str| {
            let text = format!(r#"{{"name":"n","type":"flannel","delegate":{delegate}}}"#);
            let error = delegate_config(&network(&text), Some(&env())).unwrap_err();
            (error.code, error.msg)
        };
        let (code, text) = refused(r#"{"Name":"x"}"#);
        assert_eq!(
            (code, text.as_str()),
            (
                Code::InvalidConfig,
                "'delegate' dictionary must not have 'name' field, it'll be set by flannel"
            )
        );
        assert!(refused(r#"{"ipam":{}}"#).1.contains("'ipam'"));
        for kind in ["../sh", "flannel"] {
            assert_eq!(refused(&format!(r#"{{"type":"{kind}"}}"#)).0, Code::InvalidConfig);
        }
        assert_eq!(refused("7").0, Code::Decode);
    }

    #[test]
    fn another_delegate_gets_its_own_keys() {
        let text = r#"{"cniVersion":"1.1.0","name":"n","type":"flannel","delegate":{"type":"macvlan","master":"eth0"},
            "cni.dev/valid-attachments":[]}"#;
        let delegate = delegate_config(&network(text), Some(&env())).unwrap();
        let json = delegate.to_json();
        assert_eq!(delegate.kind, "macvlan");
        assert!(!json.contains("isGateway") && json.contains("\"master\":\"eth0\""), "{json}");
        assert!(json.contains("10.42.3.0/24") && json.contains("\"cni.dev/valid-attachments\":[]"), "{json}");
    }

    #[test]
    fn a_scratch_file_says_whose_it_is() {
        let who = |ifname: &str| Attachment {
            network: "cbr0".into(),
            container: "c1".into(),
            ifname: ifname.parse().unwrap(),
        };
        let delegated = network(r#"{"cniVersion":"1.0.0","name":"cbr0","type":"bridge"}"#);
        let content = scratch_content(&delegated, &who("eth0"));
        let is_its = |content: &str, ifname| {
            scratch_of(content.as_bytes(), &who(ifname)).map(|found| found.is_some()).map_err(|e| e.code)
        };
        assert_eq!((is_its(&content, "eth0"), is_its(&content, "eth1")), (Ok(true), Ok(false)));
        assert_eq!(is_its(&delegated.to_json(), "eth1"), Ok(true));
        assert_eq!(is_its(r#"{"name":"other","type":"bridge"}"#, "eth0"), Ok(false));
        assert_eq!(is_its("", "eth0"), Err(Code::Decode));
    }

    #[test]
    fn the_status_lies_beside_the_subnet_file() {
        assert_eq!(status_file("/run/flannel/subnet.env"), "/run/flannel/status.json");
        assert_eq!(status_file("/run/f/other.env"), "/run/f/other.env.status.json");
        assert_eq!(status_file("subnet.env"), "status.json");
    }
}

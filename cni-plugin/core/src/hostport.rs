//! Host ports as a runtime asks for them: `runtimeConfig.portMappings`, and the keys of `portmap`.

use std::{fmt, net::IpAddr};

use netmodel::{IfName, Protocol};
use serde_json::Value;

use crate::{
    Code, Error, Network,
    bridge::check_backend,
    hostport_class::Class,
    json::{Keys, wrong},
};

/// The bit of the packet mark that means "replace the source", where the configuration names none.
const DEFAULT_MARK_BIT: u8 = 13;

/// One port of the host that leads to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The address of the host, unspecified for any of its family; `None` for any of both.
    pub host: Option<IpAddr>,
    /// Its transport protocol.
    pub protocol: Protocol,
    /// The port of the host.
    pub port: u16,
    /// The container's port.
    pub container_port: u16,
}

/// The ports of one attachment, and how they are to be translated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortMappings {
    /// What the runtime asks for.
    pub ports: Vec<HostPort>,
    /// Flows that would not come back otherwise get the host's address: from this host's `127.0.0.0/8`, and
    /// from where the container is.
    pub snat: bool,
    /// The bit of the packet mark in use; `None` where the configuration leaves it open.
    pub mark_bit: Option<u8>,
    /// How packets to these ports are treated: IPv4, IPv6. `None`: as usual.
    classes: [Option<Class>; 2],
}

/// A host port that leads to an address of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarding {
    /// The host's address; `None` for any of the family.
    pub host: Option<IpAddr>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port of the host.
    pub port: u16,
    /// The container's address.
    pub pod: IpAddr,
    /// The container's port.
    pub container_port: u16,
    /// The interface that the container is behind: what comes in there goes out with the host's address.
    /// `None` where every source is kept, or there is no way to the container.
    pub behind: Option<IfName>,
    /// How its packets are treated, where it is not as usual.
    pub(crate) class: Option<Class>,
}

impl PortMappings {
    /// Reads what `network` and its `runtimeConfig` say.
    ///
    /// # Errors
    /// Code 2 for what nftables has no way to do, naming key and value; 6 and 7 for mistakes.
    pub fn parse(network: &Network) -> Result<Self, Error> {
        let keys = network.keys();
        check_backend(&keys, "backend")?;
        if let Some(chain) = keys.filled("externalSetMarkChain")? {
            return Err(Error::unsupported("externalSetMarkChain", &format!("{chain:?}")));
        }
        let mark_bit = keys.number("markMasqBit")?;
        let mark_bit = mark_bit.map(|bit| match u8::try_from(bit) {
            Ok(bit @ 0..=31) => Ok(bit),
            _ => Err(invalid(format!("invalid markMasqBit {bit}: it must be from 0 to 31"))),
        });
        let mark_bit = mark_bit.transpose()?;
        let snat = keys.value("snat").is_none() || keys.flag("snat")?;
        let masquerade_all = keys.flag("masqAll")? && snat;
        let class = |key: &str, ipv4: bool| Class::parse(key, &keys.texts(key)?, ipv4, masquerade_all);
        let mappings = keys.child("runtimeConfig")?;
        let place = mappings.place("portMappings");
        let ports: Result<Vec<_>, _> =
            mappings.list("portMappings")?.iter().map(|value| HostPort::parse(&place, value)).collect();
        Ok(Self {
            ports: distinct(ports?)?,
            snat,
            mark_bit,
            classes: [class("conditionsV4", true)?, class("conditionsV6", false)?],
        })
    }

    /// The ports as they lead to the first address of each family among `pods`, each with the interface that it
    /// is behind. A port of an address of a family that the container lacks leads nowhere.
    #[must_use]
    pub fn to(&self, pods: &[(IpAddr, Option<IfName>)]) -> Vec<Forwarding> {
        let first = |ipv4: bool| pods.iter().find(|(pod, _)| pod.is_ipv4() == ipv4);
        let families = [(first(true), &self.classes[0]), (first(false), &self.classes[1])];
        let to = |port: &HostPort| {
            let port = *port;
            families.into_iter().filter_map(move |(pod, class)| {
                let (pod, behind) = pod?;
                if port.host.is_some_and(|host| host.is_ipv4() != pod.is_ipv4()) {
                    return None;
                }
                Some(Forwarding {
                    host: port.host.filter(|host| !host.is_unspecified()),
                    protocol: port.protocol,
                    port: port.port,
                    pod: *pod,
                    container_port: port.container_port,
                    behind: behind.clone().filter(|_| self.snat),
                    class: class.clone(),
                })
            })
        };
        self.ports.iter().flat_map(to).collect()
    }
}

/// The mark that goes with a bit.
pub(crate) fn mark(bit: Option<u8>) -> u32 {
    1 << bit.unwrap_or(DEFAULT_MARK_BIT)
}

fn invalid(text: String) -> Error {
    Error::new(Code::InvalidConfig, text)
}

/// The same without repetitions.
fn distinct(ports: Vec<HostPort>) -> Result<Vec<HostPort>, Error> {
    let mut all: Vec<HostPort> = Vec::with_capacity(ports.len());
    for port in ports {
        let (other, same) = (port.container_port, |p: &&HostPort| p.has_key_of(&port));
        if let Some(one) = all.iter().filter(same).map(|p| p.container_port).find(|one| *one != other) {
            return Err(invalid(format!("host port {port} can't lead to ports {one} and {other}")));
        }
        if !all.contains(&port) {
            all.push(port);
        }
    }
    Ok(all)
}

impl HostPort {
    fn parse(place: &str, value: &Value) -> Result<Self, Error> {
        let keys = Keys::element(place, value)?;
        let protocol = match keys.text("protocol")?.unwrap_or_default().to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => return Err(invalid(format!("invalid {} {other:?}", keys.place("protocol")))),
        };
        let host: Option<IpAddr> = keys.parsed("hostIP")?;
        Ok(Self {
            host: host.map(|host| host.to_canonical()),
            protocol,
            port: port(&keys, "hostPort", "host")?,
            container_port: port(&keys, "containerPort", "container")?,
        })
    }

    /// A packet can be to both, by the same address or by any of the same family.
    fn has_key_of(&self, other: &Self) -> bool {
        let hosts = [self.host, other.host];
        let any = hosts.iter().all(|host| host.is_none_or(|host| host.is_unspecified()));
        let same = self.host == other.host || (any && hosts.contains(&None));
        same && (self.protocol, self.port) == (other.protocol, other.port)
    }
}

/// The port at `key`, with the reference's words where it is none.
fn port(keys: &Keys<'_>, key: &str, whose: &str) -> Result<u16, Error> {
    let zero = Value::from(0);
    let value = keys.value(key).unwrap_or(&zero);
    let number = value.as_number().ok_or_else(|| wrong(&keys.place(key), "a port", value))?;
    let port = number.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|port| *port != 0);
    port.ok_or_else(|| invalid(format!("Invalid {whose} port number: {number}")))
}

/// `8080/tcp`, with the host's address in front where it is one of many.
impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_port(f, self.host, self.port, self.protocol)
    }
}

impl fmt::Display for Forwarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_port(f, self.host, self.port, self.protocol)
    }
}

fn write_port(
    f: &mut fmt::Formatter<'_>,
    host: Option<IpAddr>,
    port: u16,
    protocol: Protocol,
) -> fmt::Result {
    match host {
        Some(IpAddr::V6(host)) => write!(f, "[{host}]:")?,
        Some(host) => write!(f, "{host}:")?,
        None => {}
    }
    write!(f, "{port}/{}", protocol.as_str().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(document: &Value) -> Result<PortMappings, (Code, String)> {
        let mut document = document.clone();
        document.as_object_mut().unwrap().extend([("name".into(), "n".into()), ("type".into(), "p".into())]);
        let network = Network::parse(document.to_string().as_bytes()).unwrap();
        PortMappings::parse(&network).map_err(|e| (e.code, e.msg))
    }

    fn mapped(mapping: &Value) -> Result<PortMappings, (Code, String)> {
        parse(&json!({"runtimeConfig": {"portMappings": [mapping]}}))
    }

    fn texts(mappings: &PortMappings, pods: &[&str]) -> Vec<String> {
        let pods: Vec<_> = pods.iter().map(|pod| (pod.parse().unwrap(), "cni0".parse().ok())).collect();
        let all = mappings.to(&pods);
        all.iter().map(|f| format!("{f} {} {}", f.pod, f.container_port)).collect()
    }

    #[test]
    fn keys_of_real_runtimes_are_read() {
        let containerd = json!({"HostPort": 18080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""});
        let all = mapped(&containerd).unwrap();
        assert_eq!((all.snat, all.mark_bit, all.classes == [None, None]), (true, None, true));
        assert_eq!(
            texts(&all, &["10.1.0.5", "fd00::5", "10.1.0.6"]),
            ["18080/tcp 10.1.0.5 80", "18080/tcp fd00::5 80"]
        );
        for (protocol, text) in [("", "tcp"), ("UDP", "udp"), ("Sctp", "sctp")] {
            let one =
                mapped(&json!({"hostPort": 1, "containerPort": 2, "protocol": protocol, "hostIP": "::"}));
            assert_eq!(texts(&one.unwrap(), &["10.1.0.5", "fd00::5"]), [format!("1/{text} fd00::5 2")]);
        }
        let mapped =
            |host: &str| mapped(&json!({"hostPort": 1, "containerPort": 2, "hostIP": host})).unwrap();
        assert_eq!(texts(&mapped("0.0.0.0"), &["10.1.0.5", "fd00::5"]), ["1/tcp 10.1.0.5 2"]);
        assert_eq!(texts(&mapped("::ffff:192.0.2.1"), &["10.1.0.5"]), ["192.0.2.1:1/tcp 10.1.0.5 2"]);
        assert_eq!(texts(&mapped("2001:db8::1"), &["10.1.0.5"]), [""; 0]);
    }

    #[test]
    fn what_is_no_port_is_one_clear_error() {
        let error = |mapping: Value| mapped(&mapping).unwrap_err();
        for (host, text) in [
            (json!(0), "0"),
            (json!(-1), "-1"),
            (json!(65536), "65536"),
            (json!(null), "0"),
            (json!(1.5), "1.5"),
        ] {
            let found = error(json!({"hostPort": host, "containerPort": 80}));
            assert_eq!(found, (Code::InvalidConfig, format!("Invalid host port number: {text}")));
        }
        let found = error(json!({"hostPort": 80, "containerPort": 70000}));
        assert_eq!(found.1, "Invalid container port number: 70000");
        assert_eq!(error(json!({"hostPort": "80", "containerPort": 80})).0, Code::Decode);
        let found = error(json!({"hostPort": 80, "containerPort": 80, "protocol": "icmp"}));
        assert_eq!(found.1, "invalid runtimeConfig.portMappings.protocol \"icmp\"");
        assert_eq!(error(json!({"hostPort": 80, "containerPort": 80, "hostIP": "x"})).0, Code::InvalidConfig);
        assert_eq!(error(json!(7)).0, Code::Decode);
    }

    #[test]
    fn a_port_leads_to_one_place() {
        let two = |one: (&str, u16), other: (&str, u16)| {
            let mapping = |(host, to)| json!({"hostPort": 80, "containerPort": to, "hostIP": host});
            let both = json!({"runtimeConfig": {"portMappings": [mapping(one), mapping(other)]}});
            parse(&both).map(|all| all.ports.len()).map_err(|(_, text)| text)
        };
        assert_eq!(two(("", 80), ("", 80)), Ok(1));
        for (one, other, port) in [("", "", "80/tcp"), ("", "::", "[::]:80/tcp"), ("0.0.0.0", "", "80/tcp")] {
            let refused = format!("host port {port} can't lead to ports 80 and 81");
            assert_eq!(two((one, 80), (other, 81)), Err(refused));
            assert!(two((one, 80), (other, 80)).is_ok());
        }
        for (one, other) in [("", "192.0.2.1"), ("0.0.0.0", "::"), ("192.0.2.1", "192.0.2.2")] {
            assert_eq!(two((one, 80), (other, 81)), Ok(2));
        }
    }

    #[test]
    fn settings_are_read_or_refused() {
        assert_eq!(parse(&json!({})).map(|all| all.ports), Ok(vec![]));
        let all = parse(&json!({"snat": false, "markMasqBit": 5, "backend": "iptables"})).unwrap();
        assert_eq!((all.snat, all.mark_bit), (false, Some(5)));
        assert!(parse(&json!({"masqAll": true, "backend": "nftables"})).unwrap().classes[0].is_some());
        assert_eq!(parse(&json!({"markMasqBit": 32})).unwrap_err().0, Code::InvalidConfig);
        for (key, value) in [("backend", "ebpf"), ("externalSetMarkChain", "KUBE-MARK-MASQ")] {
            let (code, text) = parse(&json!({key: value})).unwrap_err();
            assert_eq!(code, Code::UnsupportedField);
            assert_eq!(text, format!("unsupported value for key {key:?}: {value:?}"));
        }
    }
}

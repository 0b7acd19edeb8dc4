//! What a Service asks for.

use std::net::IpAddr;

use netmodel::{Port, Protocol};

use crate::{
    object::{parse_ip, special},
    wire::{self, HEADLESS_LABEL, PROXY_NAME_LABEL},
};

/// A Service that is served: its addresses and ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The cluster IPs, of either family.
    pub cluster_ips: Box<[IpAddr]>,
    /// The ports, at least one; no two of them have a name and protocol, a port and protocol, or a node port
    /// and protocol in common.
    pub ports: Box<[ServicePort]>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, by which it finds the endpoints' ports; empty where there is one port only.
    pub name: Box<str>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port on the cluster IPs.
    pub port: Port,
    /// The port on the nodes.
    pub node_port: Option<Port>,
}

impl Service {
    /// Checks a Service. `None`: there is nothing to serve, because it is headless, has no cluster IP yet,
    /// is of type ExternalName, has no ports, or belongs to another proxy.
    ///
    /// # Errors
    /// A field that matters can't be used; the text says which and why.
    pub fn check(wire: &wire::Service) -> Result<Option<Self>, String> {
        let (spec, labels) = (&wire.spec, &wire.metadata.labels);
        let addresses = if spec.cluster_ips.is_empty() {
            std::slice::from_ref(&spec.cluster_ip)
        } else {
            &spec.cluster_ips
        };
        let headless = addresses.iter().any(|ip| ip.is_empty() || ip.eq_ignore_ascii_case("none"));
        let foreign = labels.contains_key(PROXY_NAME_LABEL) || labels.contains_key(HEADLESS_LABEL);
        if headless || foreign || spec.kind == "ExternalName" || spec.ports.is_empty() {
            return Ok(None);
        }
        if !["", "ClusterIP", "NodePort", "LoadBalancer"].contains(&spec.kind.as_str()) {
            return Err(format!("{:?} is no type of a Service", spec.kind));
        }
        let cluster_ips = addresses.iter().map(|text| cluster_ip(text)).collect::<Result<_, _>>()?;
        let ports =
            spec.ports.iter().map(|p| ServicePort::check(p, spec)).collect::<Result<Box<[_]>, _>>()?;
        match clash(&ports) {
            Some(why) => Err(why),
            None => Ok(Some(Self { cluster_ips, ports })),
        }
    }
}

impl ServicePort {
    fn check(wire: &wire::ServicePort, spec: &wire::ServiceSpec) -> Result<Self, String> {
        let port = Port::try_from(wire.port).map_err(|error| error.to_string())?;
        let opens_nodes = spec.kind == "NodePort" || spec.kind == "LoadBalancer";
        let node_port = (opens_nodes && wire.node_port != 0).then(|| Port::try_from(wire.node_port));
        let node_port = node_port.transpose().map_err(|error| format!("nodePort: {error}"))?;
        Ok(Self { name: wire.name.as_str().into(), protocol: protocol(&wire.protocol)?, port, node_port })
    }
}

fn cluster_ip(text: &str) -> Result<IpAddr, String> {
    let address = parse_ip(text)?;
    match special(address) {
        Some(what) => Err(format!("{address} is {what}: no cluster IP can be that")),
        None => Ok(address),
    }
}

/// Reads a protocol; an absent one is TCP.
pub(crate) fn protocol(text: &str) -> Result<Protocol, String> {
    if text.is_empty() { Ok(Protocol::Tcp) } else { text.parse().map_err(|error| format!("{error}")) }
}

/// What two of the ports have in common that they must not.
fn clash(ports: &[ServicePort]) -> Option<String> {
    for (index, b) in ports.iter().enumerate() {
        for a in ports.iter().take(index).filter(|a| a.protocol == b.protocol) {
            let proto = b.protocol;
            if a.name == b.name {
                return Some(format!("two {proto} ports have the name {:?}", b.name));
            }
            if a.port == b.port {
                return Some(format!("two {proto} ports are {}", b.port));
            }
            if let Some(port) = b.node_port.filter(|port| a.node_port == Some(*port)) {
                return Some(format!("two {proto} ports have nodePort {port}"));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: &str) -> Result<Option<Service>, String> {
        labelled("{}", spec)
    }

    fn labelled(labels: &str, spec: &str) -> Result<Option<Service>, String> {
        let text = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: s, labels: {labels}}}, spec: {spec}}}"
        );
        let manifest = wire::Manifest::read(&text).unwrap();
        let wire::Object::Service(wire) = &manifest.objects[0] else { panic!("no Service") };
        Service::check(wire)
    }

    #[test]
    fn ports_default_to_tcp_and_node_ports_count_where_the_type_opens_them() {
        let ports = "[{port: 80, nodePort: 30080}, {name: u, port: 80, protocol: udp}]";
        let node = service(&format!("{{type: NodePort, clusterIP: 172.30.0.041, ports: {ports}}}"))
            .unwrap()
            .unwrap();
        assert_eq!(*node.cluster_ips, ["172.30.0.41".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            (node.ports[0].protocol, node.ports[0].node_port.map(Port::get)),
            (Protocol::Tcp, Some(30080))
        );
        assert_eq!(node.ports[1].protocol, Protocol::Udp);
        let plain = service(&format!("{{clusterIP: 10.96.0.1, ports: {ports}}}")).unwrap().unwrap();
        assert_eq!(plain.ports[0].node_port, None);
    }

    #[test]
    fn what_a_proxy_does_not_serve_is_passed_over() {
        for spec in [
            "{clusterIP: None, ports: [{port: 80}]}",
            "{clusterIP: '', ports: [{port: 80}]}",
            "{ports: [{port: 80}]}",
            "{type: ExternalName, externalName: example.org, clusterIP: 10.96.0.9, ports: [{port: 80}]}",
            "{clusterIP: 10.96.0.9, ports: []}",
        ] {
            assert_eq!(service(spec), Ok(None), "{spec}");
        }
        let spec = "{clusterIP: 10.96.0.9, ports: [{port: 80}]}";
        for labels in
            ["{service.kubernetes.io/service-proxy-name: x}", "{service.kubernetes.io/headless: ''}"]
        {
            assert_eq!(labelled(labels, spec), Ok(None), "{labels}");
        }
    }

    #[test]
    fn a_field_that_cannot_be_used_is_named() {
        for (spec, why) in [
            ("{clusterIP: 10.96.0, ports: [{port: 80}]}", "\"10.96.0\" is not an IP address"),
            (
                "{clusterIP: 127.0.0.1, ports: [{port: 80}]}",
                "127.0.0.1 is a loopback address: no cluster IP can be that",
            ),
            (
                "{clusterIPs: [10.96.0.1, '::'], ports: [{port: 80}]}",
                ":: is the unspecified address: no cluster IP can be that",
            ),
            ("{clusterIP: 10.96.0.1, ports: [{port: 0}]}", "0 is not a port: it must be 1 to 65535"),
            (
                "{type: NodePort, clusterIP: 10.96.0.1, ports: [{port: 1, nodePort: 70000}]}",
                "nodePort: 70000 is not a port: it must be 1 to 65535",
            ),
            (
                "{clusterIP: 10.96.0.1, ports: [{port: 1, protocol: ICMP}]}",
                "\"ICMP\" is not a transport protocol: it must be TCP, UDP or SCTP",
            ),
            ("{clusterIP: 10.96.0.1, ports: [{port: 1}, {port: 2}]}", "two tcp ports have the name \"\""),
            ("{clusterIP: 10.96.0.1, ports: [{port: 1}, {port: 1, name: b}]}", "two tcp ports are 1"),
            (
                "{type: Cluster, clusterIP: 10.96.0.1, ports: [{port: 1}]}",
                "\"Cluster\" is no type of a Service",
            ),
        ] {
            assert_eq!(service(spec), Err(why.to_owned()), "{spec}");
        }
    }
}

//! Kubernetes objects as `kubectl` takes them, in YAML or JSON: the few fields that a proxy needs of
//! Service (`v1`), Endpoints (`v1`), Node (`v1`), EndpointSlice (`discovery.k8s.io`) and ServiceCIDR
//! (`networking.k8s.io`). Every other field and every other kind is passed over.

use std::collections::BTreeMap;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

/// Label on a Service that hands it to another proxy.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Label on a headless Service.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Label on an EndpointSlice that names its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// One object of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Service.
    Service(Service),
    /// A part of a Service's endpoints.
    EndpointSlice(EndpointSlice),
    /// A Service's endpoints in the older form.
    Endpoints(Endpoints),
    /// A node.
    Node(Node),
    /// A range that cluster IPs are taken from.
    ServiceCidr(ServiceCidr),
}

/// An object that says what it is but can't be used, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadObject {
    /// Its kind, such as `Service`.
    pub kind: String,
    /// `namespace/name`.
    pub name: String,
    /// What is wrong, in one line.
    pub why: String,
}

/// What a manifest holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The objects, in the manifest's order.
    pub objects: Vec<Object>,
    /// Objects of our kinds that can't be used.
    pub bad: Vec<BadObject>,
}

/// A text that is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The YAML or JSON itself is broken.
    #[error("document {document} is neither YAML nor JSON")]
    Syntax {
        /// Counted from 1.
        document: usize,
        /// Line, column and cause.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A document is no Kubernetes object.
    #[error("document {document} is no Kubernetes object: {why}")]
    NoObject {
        /// Counted from 1.
        document: usize,
        /// What it lacks.
        why: &'static str,
    },
}

/// Name, namespace and labels (`metadata`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Meta {
    /// Name within the namespace.
    #[serde(default)]
    pub name: String,
    /// Namespace; without one an object that has namespaces lies in `default`.
    #[serde(default, deserialize_with = "or_default")]
    pub namespace: String,
    /// Labels.
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Service {
    /// Name, namespace, labels.
    #[serde(default)]
    pub metadata: Meta,
    /// What is wanted.
    #[serde(default)]
    pub spec: ServiceSpec,
    /// What a load balancer gave it.
    #[serde(default, deserialize_with = "or_default")]
    pub status: ServiceStatus,
}

/// `spec` of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// ClusterIP (also when absent), NodePort, LoadBalancer or ExternalName.
    #[serde(default, rename = "type", deserialize_with = "or_default")]
    pub kind: String,
    /// The first cluster IP; `None` on a headless Service.
    #[serde(default, rename = "clusterIP", deserialize_with = "or_default")]
    pub cluster_ip: String,
    /// All cluster IPs, at most one of each family.
    #[serde(default, rename = "clusterIPs", deserialize_with = "or_default")]
    pub cluster_ips: Vec<String>,
    /// The ports.
    #[serde(default, deserialize_with = "or_default")]
    pub ports: Vec<ServicePort>,
    /// None or ClientIP.
    #[serde(default, deserialize_with = "or_default")]
    pub session_affinity: String,
    /// Cluster or Local.
    #[serde(default, deserialize_with = "or_default")]
    pub external_traffic_policy: String,
    /// Cluster or Local.
    #[serde(default, deserialize_with = "or_default")]
    pub internal_traffic_policy: String,
    /// Further addresses that lead here.
    #[serde(default, rename = "externalIPs", deserialize_with = "or_default")]
    pub external_ips: Vec<String>,
    /// Who may use the addresses of the load balancer.
    #[serde(default, deserialize_with = "or_default")]
    pub load_balancer_source_ranges: Vec<String>,
}

/// `status` of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Its load balancer.
    #[serde(default, deserialize_with = "or_default")]
    pub load_balancer: LoadBalancer,
}

/// `status.loadBalancer` of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct LoadBalancer {
    /// Where it takes connections.
    #[serde(default, deserialize_with = "or_default")]
    pub ingress: Vec<Ingress>,
}

/// One of `status.loadBalancer.ingress` of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ingress {
    /// An address; empty where it has a host name.
    #[serde(default, deserialize_with = "or_default")]
    pub ip: String,
    /// VIP (also when absent): packets come with that address. Proxy: they don't.
    #[serde(default, deserialize_with = "or_default")]
    pub ip_mode: String,
}

impl Service {
    /// What it asks for and this version doesn't do: it is served without.
    #[must_use]
    pub fn unserved(&self) -> Vec<&'static str> {
        let spec = &self.spec;
        let is_vip = |ingress: &Ingress| !ingress.ip.is_empty() && ingress.ip_mode != "Proxy";
        let asks = [
            ("sessionAffinity ClientIP", spec.session_affinity == "ClientIP"),
            ("externalTrafficPolicy Local", spec.external_traffic_policy == "Local"),
            ("internalTrafficPolicy Local", spec.internal_traffic_policy == "Local"),
            ("externalIPs", !spec.external_ips.is_empty()),
            ("loadBalancerSourceRanges", !spec.load_balancer_source_ranges.is_empty()),
            ("status.loadBalancer.ingress", self.status.load_balancer.ingress.iter().any(is_vip)),
        ];
        asks.into_iter().filter(|(_, asked)| *asked).map(|(what, _)| what).collect()
    }
}

/// One of `spec.ports` of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Name; may be absent where there is one port only.
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
    /// TCP (also when absent), UDP or SCTP.
    #[serde(default, deserialize_with = "or_default")]
    pub protocol: String,
    /// The port on the cluster IP.
    pub port: i64,
    /// The port on the nodes; 0 or absent: none.
    #[serde(default, deserialize_with = "or_default")]
    pub node_port: i64,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Name, namespace, labels; a label names the Service.
    #[serde(default)]
    pub metadata: Meta,
    /// IPv4, IPv6 or FQDN.
    #[serde(default, deserialize_with = "or_default")]
    pub address_type: String,
    /// The endpoints.
    #[serde(default, deserialize_with = "or_default")]
    pub endpoints: Vec<Endpoint>,
    /// The ports that each of them has.
    #[serde(default, deserialize_with = "or_default")]
    pub ports: Vec<EndpointPort>,
}

/// One of `endpoints` of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Addresses that lead to the same place; the first one is used.
    #[serde(default, deserialize_with = "or_default")]
    pub addresses: Vec<String>,
    /// Its state.
    #[serde(default, deserialize_with = "or_default")]
    pub conditions: Conditions,
    /// The node that it runs on.
    pub node_name: Option<String>,
}

/// `conditions` of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Conditions {
    /// Takes new connections; absent means yes.
    pub ready: Option<bool>,
    /// Answers, though it may be going; absent means as `ready`.
    pub serving: Option<bool>,
    /// Is going; absent means no.
    pub terminating: Option<bool>,
}

/// A port of an EndpointSlice or of a subset of Endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct EndpointPort {
    /// The name of the Service's port that leads here.
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
    /// TCP (also when absent), UDP or SCTP.
    #[serde(default, deserialize_with = "or_default")]
    pub protocol: String,
    /// The port; absent means all of them, which a Service can't use.
    pub port: Option<i64>,
}

/// Endpoints, the older form of EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Endpoints {
    /// Name and namespace are the Service's.
    #[serde(default)]
    pub metadata: Meta,
    /// Addresses with the same ports.
    #[serde(default, deserialize_with = "or_default")]
    pub subsets: Vec<Subset>,
}

/// One of `subsets` of Endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subset {
    /// Ready addresses.
    #[serde(default, deserialize_with = "or_default")]
    pub addresses: Vec<EndpointAddress>,
    /// Addresses that are not ready.
    #[serde(default, deserialize_with = "or_default")]
    pub not_ready_addresses: Vec<EndpointAddress>,
    /// Their ports.
    #[serde(default, deserialize_with = "or_default")]
    pub ports: Vec<EndpointPort>,
}

/// An address of Endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointAddress {
    /// The address.
    pub ip: String,
    /// The node that it runs on.
    pub node_name: Option<String>,
}

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Node {
    /// Its name.
    #[serde(default)]
    pub metadata: Meta,
    /// What the kubelet reports.
    #[serde(default, deserialize_with = "or_default")]
    pub status: NodeStatus,
}

/// `status` of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct NodeStatus {
    /// Its addresses.
    #[serde(default, deserialize_with = "or_default")]
    pub addresses: Vec<NodeAddress>,
}

/// One of `status.addresses` of a Node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct NodeAddress {
    /// InternalIP, ExternalIP, Hostname, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    pub address: String,
}

/// A ServiceCIDR.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ServiceCidr {
    /// Its name.
    #[serde(default)]
    pub metadata: Meta,
    /// What is wanted.
    #[serde(default)]
    pub spec: ServiceCidrSpec,
}

/// `spec` of a ServiceCIDR.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ServiceCidrSpec {
    /// At most one range of each family.
    #[serde(default, deserialize_with = "or_default")]
    pub cidrs: Vec<String>,
}

/// An explicit `null` counts as absent, as in Go.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(d).map(Option::unwrap_or_default)
}

impl Manifest {
    /// Reads one manifest: any number of YAML documents or JSON texts, each an object or a list of objects.
    ///
    /// # Errors
    /// A document is neither YAML nor JSON, or it is no Kubernetes object. An object of our kinds with a
    /// field of the wrong type is no error: it is in [`Manifest::bad`].
    pub fn read(text: &str) -> Result<Self, WireError> {
        let text = text.trim_start_matches('\u{feff}'); // editors put a byte order mark in front
        if !text.trim_start().starts_with('{') {
            return Self::read_yaml(text);
        }
        // What begins like JSON may still be YAML in flow style; if it is neither, JSON's error is the better one.
        Self::read_json(text).or_else(|error| {
            Self::read_yaml(text)
                .map_err(|yaml| if matches!(yaml, WireError::NoObject { .. }) { yaml } else { error })
        })
    }

    fn read_json(text: &str) -> Result<Self, WireError> {
        let mut manifest = Self::default();
        for (index, value) in serde_json::Deserializer::from_str(text).into_iter::<Value>().enumerate() {
            manifest.add_document(index + 1, value.map_err(|e| syntax(index + 1, e.into()))?)?;
        }
        Ok(manifest)
    }

    fn read_yaml(text: &str) -> Result<Self, WireError> {
        let mut manifest = Self::default();
        for (index, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
            let value = Value::deserialize(document).map_err(|e| syntax(index + 1, e.into()))?;
            manifest.add_document(index + 1, value)?;
        }
        Ok(manifest)
    }

    fn add_document(&mut self, document: usize, value: Value) -> Result<(), WireError> {
        if value.is_null() {
            return Ok(()); // nothing but comments between two `---`
        }
        self.add(value, None).map_err(|why| WireError::NoObject { document, why })
    }

    /// Adds an object or the items of a list. `parent` has apiVersion and kind for items of a `ServiceList`
    /// and the like, which do not repeat them.
    fn add(&mut self, mut value: Value, parent: Option<(&str, &str)>) -> Result<(), &'static str> {
        let fields = value.as_object_mut().ok_or("it is not a mapping")?;
        let version = text_of(fields.get("apiVersion"), parent.map(|p| p.0)).ok_or("it has no apiVersion")?;
        let kind = text_of(fields.get("kind"), parent.map(|p| p.1)).ok_or("it has no kind")?;
        let items = fields.get_mut("items").filter(|items| items.is_array()).map(Value::take);
        match (kind.strip_suffix("List"), items) {
            (Some(""), Some(Value::Array(items))) => items.into_iter().try_for_each(|i| self.add(i, None)),
            (Some(kind), Some(Value::Array(items))) => {
                items.into_iter().try_for_each(|i| self.add(i, Some((&version, kind))))
            }
            // What has a name of its own may have a kind that only sounds like a list.
            (Some(_), None)
                if value.get("items").is_some_and(|i| !i.is_null()) && name_of(&value).ends_with('/') =>
            {
                Err("its items are not a list")
            }
            _ => {
                self.add_object(&version, &kind, value);
                Ok(())
            }
        }
    }

    fn add_object(&mut self, version: &str, kind: &str, value: Value) {
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let name = name_of(&value);
        let object = match (group, kind) {
            _ if name.ends_with('/') => Err("it has no metadata.name".to_owned()),
            ("", "Service") => typed(value).map(Object::Service),
            ("", "Endpoints") => typed(value).map(Object::Endpoints),
            ("", "Node") => typed(value).map(Object::Node),
            ("discovery.k8s.io", "EndpointSlice") => typed(value).map(Object::EndpointSlice),
            ("networking.k8s.io", "ServiceCIDR") => typed(value).map(Object::ServiceCidr),
            _ => return,
        };
        match object {
            Ok(object) => self.objects.push(object),
            Err(why) => self.bad.push(BadObject { kind: kind.to_owned(), name, why }),
        }
    }
}

/// The pieces of a YAML manifest that can be read one by one: its documents. JSON, and YAML with directives, is
/// one piece.
#[must_use]
pub fn pieces(text: &str) -> Vec<&str> {
    let begins =
        |line: &str| line.strip_prefix("---").is_some_and(|rest| rest.trim_start().len() < rest.len());
    let mut pieces = Vec::new();
    let (mut start, mut end) = (0, 0);
    for line in text.split_inclusive('\n') {
        if line.starts_with('%') {
            return vec![text];
        }
        if begins(line) && end > start {
            pieces.push(&text[start..end]);
            start = end;
        }
        end += line.len();
    }
    pieces.push(&text[start..]);
    pieces
}

fn syntax(document: usize, cause: Box<dyn std::error::Error + Send + Sync>) -> WireError {
    WireError::Syntax { document, cause }
}

fn text_of(value: Option<&Value>, or: Option<&str>) -> Option<String> {
    value.and_then(Value::as_str).or(or).filter(|text| !text.is_empty()).map(str::to_owned)
}

fn name_of(value: &Value) -> String {
    let field = |name: &str| value.get("metadata").and_then(|m| m.get(name)).and_then(Value::as_str);
    let namespace = field("namespace").filter(|namespace| !namespace.is_empty()).unwrap_or("default");
    format!("{namespace}/{}", field("name").unwrap_or_default())
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    // The field's name costs time, and is asked for only where something is wrong.
    T::deserialize(&value)
        .or_else(|_| serde_path_to_error::deserialize(value))
        .map_err(|error| error.to_string())
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;

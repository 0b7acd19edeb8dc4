//! Results, as runtimes and other plugins read and write them in every version.

use std::net::IpAddr;

use netmodel::Subnet;
use serde_json::{Map, Value, json};

use crate::{
    Code, Error, SpecVersion,
    json::{Keys, wrong},
};

/// The outcome of an attachment: what ADD prints and CHECK compares with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Interfaces on the host and in the container.
    pub interfaces: Vec<Interface>,
    /// Addresses.
    pub ips: Vec<IpConfig>,
    /// Routes in the container.
    pub routes: Vec<Route>,
    /// Name servers.
    pub dns: Dns,
}

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its Ethernet address as text; may be empty.
    pub mac: String,
    /// The container's namespace as the runtime named it; empty on the host.
    pub sandbox: String,
    /// Its MTU in bytes; 0 for unknown.
    pub mtu: u32,
}

/// One address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpConfig {
    /// The address.
    pub address: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// The gateway.
    pub gateway: Option<IpAddr>,
    /// Index into the interfaces.
    pub interface: Option<usize>,
}

/// One route as configurations and results write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub dst: Subnet,
    /// Through which gateway; absent for that of the family.
    pub gw: Option<IpAddr>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Advertised maximal segment size in bytes.
    pub advmss: Option<u32>,
    /// Metric.
    pub priority: Option<u32>,
    /// Routing table.
    pub table: Option<u32>,
    /// Scope: 0 global, 253 link, 254 host.
    pub scope: Option<u8>,
}

/// Name service for the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers.
    pub nameservers: Vec<String>,
    /// The local domain.
    pub domain: String,
    /// Domains to search.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

impl Route {
    /// A route without options.
    #[must_use]
    pub const fn to(dst: Subnet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }

    /// The routes in list `key`.
    pub(crate) fn list(keys: &Keys<'_>, key: &str) -> Result<Vec<Self>, Error> {
        let place = keys.place(key);
        keys.list(key)?.iter().map(|value| Self::parse(&place, value)).collect()
    }

    fn parse(place: &str, value: &Value) -> Result<Self, Error> {
        let keys = Keys::element(place, value)?;
        let invalid =
            |text: &str| Error::new(Code::InvalidConfig, format!("invalid route in {place}: {text}"));
        let dst = keys.filled("dst")?.ok_or_else(|| invalid("dst is missing"))?;
        let (address, prefix) = address_and_prefix(dst).ok_or_else(|| invalid(dst))?;
        let dst = Subnet::containing(address, prefix).map_err(|e| invalid(&e.to_string()))?;
        let gw: Option<IpAddr> = keys.parsed("gw")?;
        if gw.is_some_and(|gw| gw.is_ipv4() != dst.is_ipv4()) {
            return Err(invalid(&format!("{dst} and its gateway are of different families")));
        }
        let scope = keys.number32("scope")?;
        Ok(Self {
            dst,
            gw,
            mtu: keys.number32("mtu")?,
            advmss: keys.number32("advmss")?,
            priority: keys.number32("priority")?,
            table: keys.number32("table")?,
            scope: scope
                .map(|s| u8::try_from(s).map_err(|_| invalid("scope is larger than 255")))
                .transpose()?,
        })
    }

    fn to_value(self, version: SpecVersion) -> Value {
        let mut map = Map::new();
        map.insert("dst".into(), self.dst.to_string().into());
        if let Some(gw) = self.gw {
            map.insert("gw".into(), gw.to_string().into());
        }
        if version >= SpecVersion::V1_1_0 {
            let options = [
                ("mtu", self.mtu),
                ("advmss", self.advmss),
                ("priority", self.priority),
                ("table", self.table),
            ];
            for (key, value) in options.into_iter().chain([("scope", self.scope.map(u32::from))]) {
                if let Some(value) = value {
                    map.insert(key.into(), value.into());
                }
            }
        }
        Value::Object(map)
    }
}

/// `address/length`; the address may have host bits.
pub(crate) fn address_and_prefix(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let prefix = Some(prefix).filter(|p| !p.starts_with('+')).and_then(|p| p.parse().ok());
    let prefix = prefix.filter(|p| *p <= if address.is_ipv4() { 32 } else { 128 })?;
    Some((address, prefix))
}

impl Dns {
    /// Reads `key`; empty where there is none.
    pub(crate) fn parse(keys: &Keys<'_>, key: &str) -> Result<Self, Error> {
        let keys = keys.child(key)?;
        let owned = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect();
        Ok(Self {
            nameservers: owned(keys.texts("nameservers")?),
            domain: keys.text("domain")?.unwrap_or_default().to_owned(),
            search: owned(keys.texts("search")?),
            options: owned(keys.texts("options")?),
        })
    }

    fn to_value(&self) -> Value {
        let mut map = Map::new();
        if !self.domain.is_empty() {
            map.insert("domain".into(), self.domain.as_str().into());
        }
        for (key, list) in
            [("nameservers", &self.nameservers), ("search", &self.search), ("options", &self.options)]
        {
            if !list.is_empty() {
                map.insert(key.into(), json!(list));
            }
        }
        Value::Object(map)
    }
}

impl Outcome {
    /// Reads a result of any version, tolerant of what old plugins leave out.
    ///
    /// # Errors
    /// Code 6 or 7: something is of another kind than it must be.
    pub fn parse(value: &Value) -> Result<Self, Error> {
        let Value::Object(map) = value else { return Err(wrong("prevResult", "an object", value)) };
        let root = Keys::root(map);
        let mut outcome =
            Self { routes: Route::list(&root, "routes")?, dns: Dns::parse(&root, "dns")?, ..Self::default() };
        for value in root.list("interfaces")? {
            let keys = Keys::element("prevResult.interfaces", value)?;
            let text = |key| keys.text(key).map(|t| t.unwrap_or_default().to_owned());
            outcome.interfaces.push(Interface {
                name: text("name")?,
                mac: text("mac")?,
                sandbox: text("sandbox")?,
                mtu: keys.number32("mtu")?.unwrap_or(0),
            });
        }
        for value in root.list("ips")? {
            outcome.ips.push(IpConfig::parse(&Keys::element("prevResult.ips", value)?, "address")?);
        }
        for family in ["ip4", "ip6"] {
            let keys = root.child(family)?;
            if keys.filled("ip")?.is_some() {
                outcome.ips.push(IpConfig::parse(&keys, "ip")?);
                outcome.routes.extend(Route::list(&keys, "routes")?);
            }
        }
        Ok(outcome)
    }

    /// Reads a result as a plugin printed it.
    ///
    /// # Errors
    /// As [`parse`](Self::parse); 6 for what is no JSON.
    pub fn of_text(text: &str) -> Result<Self, Error> {
        let garbled = |e: serde_json::Error| Error::new(Code::Decode, e.to_string());
        Self::parse(&serde_json::from_str(text).map_err(garbled)?)
    }

    /// The document of version `version`.
    ///
    /// # Errors
    /// Versions before 0.3.0 can't say that there is no address.
    pub fn to_json(&self, version: SpecVersion) -> Result<String, Error> {
        let mut document = Map::new();
        document.insert("cniVersion".into(), version.as_str().into());
        if version < SpecVersion::V0_3_0 {
            self.write_old(&mut document)?;
        } else {
            self.write_new(&mut document, version);
        }
        if version < SpecVersion::V1_0_0 || self.dns != Dns::default() {
            document.insert("dns".into(), self.dns.to_value());
        }
        Ok(Value::Object(document).to_string())
    }

    /// 0.1.0 and 0.2.0: the first address of each family.
    fn write_old(&self, document: &mut Map<String, Value>) -> Result<(), Error> {
        if self.ips.is_empty() {
            return Err(Error::new(Code::Internal, "cannot convert: no valid IP addresses"));
        }
        for (key, ipv4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.is_ipv4() == ipv4) else { continue };
            let mut family = Map::new();
            family.insert("ip".into(), format!("{}/{}", ip.address, ip.prefix).into());
            if let Some(gateway) = ip.gateway {
                family.insert("gateway".into(), gateway.to_string().into());
            }
            let routes = self.routes.iter().filter(|r| r.dst.is_ipv4() == ipv4);
            let routes: Vec<Value> = routes.map(|r| r.to_value(SpecVersion::V0_2_0)).collect();
            if !routes.is_empty() {
                family.insert("routes".into(), routes.into());
            }
            document.insert(key.into(), family.into());
        }
        Ok(())
    }

    fn write_new(&self, document: &mut Map<String, Value>, version: SpecVersion) {
        let lists = [
            ("interfaces", self.interfaces.iter().map(|i| i.to_value(version)).collect::<Vec<_>>()),
            ("ips", self.ips.iter().map(|ip| ip.to_value(version)).collect()),
            ("routes", self.routes.iter().map(|r| r.to_value(version)).collect()),
        ];
        for (key, list) in lists {
            if !list.is_empty() {
                document.insert(key.into(), list.into());
            }
        }
    }

    /// Puts what an earlier plugin of the chain reported before what this one made.
    #[must_use]
    pub fn after(self, mut earlier: Self) -> Self {
        let shift = earlier.interfaces.len();
        earlier.interfaces.extend(self.interfaces);
        let moved = |ip: IpConfig| IpConfig { interface: ip.interface.map(|i| i + shift), ..ip };
        earlier.ips.extend(self.ips.into_iter().map(moved));
        earlier.routes.extend(self.routes);
        if self.dns != Dns::default() {
            earlier.dns = self.dns;
        }
        earlier
    }

    /// The addresses on interface `name` of a container, or without an interface.
    pub fn addresses_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a IpConfig> {
        self.ips.iter().filter(move |ip| match ip.interface.map(|i| self.interfaces.get(i)) {
            Some(Some(interface)) => interface.name == name && !interface.sandbox.is_empty(),
            _ => true,
        })
    }
}

impl Interface {
    pub(crate) fn to_value(&self, version: SpecVersion) -> Value {
        let mut map = Map::new();
        map.insert("name".into(), self.name.as_str().into());
        for (key, text) in [("mac", &self.mac), ("sandbox", &self.sandbox)] {
            if !text.is_empty() {
                map.insert(key.into(), text.as_str().into());
            }
        }
        if version >= SpecVersion::V1_1_0 && self.mtu != 0 {
            map.insert("mtu".into(), self.mtu.into());
        }
        Value::Object(map)
    }
}

impl IpConfig {
    /// `address_key` holds `address/length`; `interface` may be absent or -1.
    fn parse(keys: &Keys<'_>, address_key: &str) -> Result<Self, Error> {
        let text = keys.text(address_key)?.unwrap_or_default();
        let (address, prefix) = address_and_prefix(text).ok_or_else(|| {
            let place = keys.place(address_key);
            Error::new(Code::InvalidConfig, format!("invalid {place} {text:?}: it must be address/length"))
        })?;
        let interface = keys.value("interface").and_then(Value::as_u64).and_then(|i| usize::try_from(i).ok());
        Ok(Self { address, prefix, gateway: keys.parsed("gateway")?, interface })
    }

    fn to_value(self, version: SpecVersion) -> Value {
        let mut map = Map::new();
        if version < SpecVersion::V1_0_0 {
            map.insert("version".into(), if self.address.is_ipv4() { "4" } else { "6" }.into());
        }
        if let Some(interface) = self.interface {
            map.insert("interface".into(), interface.into());
        }
        map.insert("address".into(), format!("{}/{}", self.address, self.prefix).into());
        if let Some(gateway) = self.gateway {
            map.insert("gateway".into(), gateway.to_string().into());
        }
        Value::Object(map)
    }
}

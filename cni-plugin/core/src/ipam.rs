//! `ipam` of type `host-local`: which addresses, which routes, where the reservations lie.

use std::net::IpAddr;

use netmodel::Mtu;

use crate::{
    Arguments, Code, Dns, Error, Network, Range, RangeSet, Route, SpecVersion, address::check_sets,
    json::Keys,
};

/// Where reservations lie unless the configuration says otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// The type of address management that is done here.
const OURS: &str = "host-local";

/// Address management as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipam {
    /// A container gets one address of each.
    pub sets: Vec<RangeSet>,
    /// Routes for the container.
    pub routes: Vec<Route>,
    /// A file in the manner of resolv.conf, for the result.
    pub resolv_conf: Option<String>,
    /// Addresses that were asked for; each set takes the first that lies in it.
    pub requested: Vec<IpAddr>,
}

/// The plugin that manages addresses, where it is another one than `host-local`.
///
/// # Errors
/// Code 6 or 7: the section can't be decoded, or names no plugin.
pub fn foreign_ipam(network: &Network) -> Result<Option<String>, Error> {
    let kind = network.keys().child("ipam")?.filled("type")?.filter(|kind| *kind != OURS);
    kind.map(|kind| plugin_name("ipam.type", kind)).transpose()
}

/// `kind` as the name of a file.
pub(crate) fn plugin_name(key: &str, kind: &str) -> Result<String, Error> {
    if kind.contains(['/', '\0']) || ["", ".", ".."].contains(&kind) {
        let msg = format!("invalid {key} {kind:?}: it must be the name of a plugin");
        return Err(Error::new(Code::InvalidConfig, msg));
    }
    Ok(kind.to_owned())
}

/// `ipam` of a configuration; `None` where it has none, or another plugin's.
fn section(network: &Network) -> Result<Option<Keys<'_>>, Error> {
    let ipam = network.keys().child("ipam")?;
    Ok((ipam.filled("type")? == Some(OURS)).then_some(ipam))
}

/// The folder of reservations, read so that DEL works whatever else the configuration says;
/// `None` where the network has no address management of ours.
///
/// # Errors
/// The section can't be decoded.
pub fn data_dir(network: &Network) -> Result<Option<String>, Error> {
    let folder = |ipam: Keys<'_>| Ok(ipam.filled("dataDir")?.unwrap_or(DEFAULT_DATA_DIR).to_owned());
    section(network)?.map(folder).transpose()
}

impl Ipam {
    /// Reads `ipam`, `runtimeConfig.ipRanges` and the addresses asked for; `None` without `ipam`.
    ///
    /// # Errors
    /// Code 2, 6 or 7.
    pub fn parse(network: &Network, args: &Arguments) -> Result<Option<Self>, Error> {
        let Some(ipam) = section(network)? else { return Ok(None) };
        let sets = sets(network, &ipam)?;
        check_sets(&sets)?;
        check_families(&sets, network.version)?;
        let requested = requested(network, args)?;
        let first = |set: &RangeSet| requested.iter().position(|ip| set.range_of(*ip).is_some());
        let used: Vec<usize> = sets.iter().filter_map(first).collect();
        let unused = requested.iter().enumerate().filter(|(index, _)| !used.contains(index));
        let unused: Vec<String> = unused.map(|(_, ip)| ip.to_string()).collect();
        if !unused.is_empty() {
            let msg = format!("failed to allocate all requested IPs: {}", unused.join(" "));
            return Err(Error::new(Code::InvalidConfig, msg));
        }
        Ok(Some(Self {
            sets,
            routes: routes(&ipam)?,
            resolv_conf: ipam.filled("resolvConf")?.map(str::to_owned),
            requested,
        }))
    }
}

/// The routes, of which each can be set.
fn routes(ipam: &Keys<'_>) -> Result<Vec<Route>, Error> {
    let routes = Route::list(ipam, "routes")?;
    for route in &routes {
        if let Some(mtu) = route.mtu {
            let invalid =
                |e| Error::new(Code::InvalidConfig, format!("invalid mtu of route {}: {e}", route.dst));
            Mtu::try_from(u64::from(mtu)).map_err(invalid)?;
        }
    }
    Ok(routes)
}

/// The sets in the reference's order: the runtime's, the old-style one, the configured ones.
fn sets(network: &Network, ipam: &Keys<'_>) -> Result<Vec<RangeSet>, Error> {
    let mut sets = Vec::new();
    let runtime = network.keys().child("runtimeConfig")?;
    read_sets(&runtime, "ipRanges", &mut sets)?;
    if ipam.filled("subnet")?.is_some() {
        sets.push(RangeSet(vec![Range::parse(ipam)?]));
    }
    read_sets(ipam, "ranges", &mut sets)?;
    if sets.is_empty() {
        return Err(Error::new(Code::InvalidConfig, "no IP ranges specified"));
    }
    Ok(sets)
}

fn read_sets(keys: &Keys<'_>, key: &str, sets: &mut Vec<RangeSet>) -> Result<(), Error> {
    let place = keys.place(key);
    for value in keys.list(key)? {
        let list = value.as_array().ok_or_else(|| crate::json::wrong(&place, "a list of lists", value))?;
        sets.push(RangeSet::parse(&place, list)?);
    }
    Ok(())
}

/// Results before 0.3.0 hold one address of each family.
fn check_families(sets: &[RangeSet], version: SpecVersion) -> Result<(), Error> {
    let four = sets.iter().filter(|s| s.is_ipv4()).count();
    if version >= SpecVersion::V0_3_0 || (four <= 1 && sets.len() - four <= 1) {
        return Ok(());
    }
    let msg = format!("CNI version {} does not support more than 1 address per family", version.as_str());
    Err(Error::new(Code::InvalidConfig, msg))
}

/// Addresses from CNI_ARGS, which holds one, `args.cni.ips` and `runtimeConfig.ips`, with or without a length.
fn requested(network: &Network, args: &Arguments) -> Result<Vec<IpAddr>, Error> {
    let root = network.keys();
    let mut texts: Vec<&str> = args.ip.as_deref().into_iter().collect();
    texts.extend(root.child("args")?.child("cni")?.texts("ips")?);
    texts.extend(root.child("runtimeConfig")?.texts("ips")?);
    let mut found: Vec<IpAddr> = Vec::new();
    for text in texts.into_iter().map(str::trim).filter(|t| !t.is_empty()) {
        let address = text.split_once('/').map_or(text, |(address, _)| address);
        let ip = address
            .parse()
            .map_err(|_| Error::new(Code::InvalidConfig, format!("invalid IP address: {text}")))?;
        if !found.contains(&ip) {
            found.push(ip);
        }
    }
    Ok(found)
}

/// Reads text in the manner of resolv.conf(5).
#[must_use]
pub fn parse_resolv_conf(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().filter(|l| !l.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.nameservers.extend(words.next()),
            Some("domain") => dns.domain = words.next().unwrap_or_default(),
            Some("search") => dns.search.extend(words),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(mut document: Value, args: &str) -> Result<Option<Ipam>, (Code, String)> {
        for (key, value) in [("name", "n"), ("type", "bridge"), ("cniVersion", "1.0.0")] {
            document.as_object_mut().unwrap().entry(key).or_insert(value.into());
        }
        let network = Network::parse(document.to_string().as_bytes()).unwrap();
        Ipam::parse(&network, &Arguments::parse(args).unwrap()).map_err(|e| (e.code, e.msg))
    }

    #[test]
    fn old_and_new_style_and_the_runtimes_ranges_add_up() {
        let ipam = parse(
            json!({
                "ipam": {"type": "host-local", "subnet": "10.1.0.0/24", "RANGES": [[{"Subnet": "10.2.0.0/24"}]],
                         "routes": [{"dst": "0.0.0.0/0"}]},
                "runtimeConfig": {"ipRanges": [[{"subnet": "fd00::/64"}]], "ips": ["10.2.0.9/24"]},
                "args": {"cni": {"ips": ["10.1.0.8"]}},
            }),
            "IP=fd00::7",
        )
        .unwrap()
        .unwrap();
        let sets: Vec<String> = ipam.sets.iter().map(|s| s.0[0].subnet.to_string()).collect();
        assert_eq!(sets, ["fd00::/64", "10.1.0.0/24", "10.2.0.0/24"]);
        let requested: Vec<String> = ipam.requested.iter().map(IpAddr::to_string).collect();
        assert_eq!(requested, ["fd00::7", "10.1.0.8", "10.2.0.9"]);
    }

    #[test]
    fn absent_and_foreign_are_no_addresses_of_ours() {
        assert_eq!(parse(json!({}), ""), Ok(None));
        assert_eq!(parse(json!({"ipam": {}}), ""), Ok(None));
        assert_eq!(parse(json!({"ipam": {"type": "dhcp"}}), ""), Ok(None));
        let foreign = |kind: &str| {
            let text = format!(r#"{{"name":"n","type":"bridge","ipam":{{"type":"{kind}"}}}}"#);
            foreign_ipam(&Network::parse(text.as_bytes()).unwrap()).map_err(|e| e.code)
        };
        assert_eq!((foreign("dhcp"), foreign("host-local")), (Ok(Some("dhcp".into())), Ok(None)));
        assert_eq!(foreign("../dhcp"), Err(Code::InvalidConfig));
    }

    #[test]
    fn mistakes_are_named() {
        let ipam = |ipam: Value| parse(json!({"ipam": ipam}), "").unwrap_err().1;
        assert_eq!(ipam(json!({"type": "host-local"})), "no IP ranges specified");
        let range = json!({"type": "host-local", "subnet": "10.1.0.0/24"});
        let stray = parse(json!({"ipam": range.clone()}), "IP=10.9.9.9").unwrap_err().1;
        assert_eq!(stray, "failed to allocate all requested IPs: 10.9.9.9");
        let list = parse(json!({"ipam": range}), "IP=10.1.0.8,10.1.0.9").unwrap_err().1;
        assert_eq!(list, "invalid IP address: 10.1.0.8,10.1.0.9");
        let route = |route: Value| {
            parse(json!({"ipam": {"type": "host-local", "subnet": "10.1.0.0/24", "routes": [route]}}), "")
                .unwrap_err()
        };
        assert!(
            route(json!({"dst": "10.0.0.0/8", "mtu": 7})).1.starts_with("invalid mtu of route 10.0.0.0/8")
        );
        assert!(route(json!({"dst": "10.0.0.0/8", "gw": "fd00::1"})).1.contains("different families"));
        let twice = json!({"cniVersion": "0.2.0",
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]}});
        assert!(parse(twice, "").unwrap_err().1.contains("more than 1 address per family"));
    }

    #[test]
    fn a_set_takes_one_of_those_asked_for_and_none_may_be_left() {
        let ask = |args: &[&str], runtime: &[&str], environment| {
            let document = json!({
                "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/24"}]]},
                "args": {"cni": {"ips": args}},
                "runtimeConfig": {"ips": runtime},
            });
            parse(document, environment).map(|_| ()).map_err(|(_, text)| text)
        };
        let left = |ips: &str| Err(format!("failed to allocate all requested IPs: {ips}"));
        assert_eq!(ask(&["10.1.2.77", "10.1.2.78"], &[], ""), left("10.1.2.78"));
        assert_eq!(
            ask(&[], &["10.1.2.77", "10.1.3.7", "10.1.2.78/24", "10.1.3.8"], ""),
            left("10.1.2.78 10.1.3.8")
        );
        assert_eq!(ask(&["10.1.2.91"], &[], "IP=10.1.2.90"), left("10.1.2.91"));
        assert_eq!(ask(&["10.1.2.77", "10.1.3.7"], &["10.1.2.77"], "IP=10.1.3.7"), Ok(()));
    }

    #[test]
    fn resolv_conf_is_read() {
        let dns = parse_resolv_conf("# c\nnameserver 1.1.1.1\nsearch a b\noptions ndots:5\ndomain d\n");
        assert_eq!((dns.nameservers, dns.search), (vec!["1.1.1.1".into()], vec!["a".into(), "b".into()]));
        assert_eq!((dns.options, dns.domain.as_str()), (vec!["ndots:5".into()], "d"));
    }
}

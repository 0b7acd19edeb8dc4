//! Settings of a container's interface and of its namespace: what is asked for, what was before.

use std::collections::BTreeMap;

use netmodel::{IfName, Mac, Mtu};
use regex_lite::Regex;
use serde::{Deserialize, Serialize};

use crate::{
    Arguments, Code, Error, Network,
    json::{Keys, wrong},
};

/// What the plugin `tuning` is asked to set; what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    /// Kernel settings of the namespace.
    pub sysctls: Vec<Sysctl>,
    /// The interface's Ethernet address.
    pub mac: Option<Mac>,
    /// Its largest packet.
    pub mtu: Option<Mtu>,
    /// It receives what is addressed to others.
    pub promiscuous: Option<bool>,
    /// It receives what is addressed to any multicast group.
    pub all_multicast: Option<bool>,
    /// Most packets that may wait to be sent.
    pub queue_length: Option<u32>,
}

/// A kernel setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// The key as the configuration writes it.
    pub key: String,
    /// The parts of its path below `/proc/sys`.
    pub path: Vec<String>,
    /// The value.
    pub value: String,
}

/// The interface's settings before ADD, as the reference's plugin writes them down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Backup {
    /// The Ethernet address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// See [`Tuning::promiscuous`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promisc: Option<bool>,
    /// The MTU in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u64>,
    /// See [`Tuning::all_multicast`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allmulti: Option<bool>,
    /// See [`Tuning::queue_length`].
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    pub queue_length: Option<u32>,
    /// The network whose attachment it belongs to, for GC. The reference writes none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

impl Backup {
    /// What an earlier call found, and of what it left alone what this one found.
    #[must_use]
    pub fn behind(self, earlier: Self) -> Self {
        Self {
            mac: earlier.mac.or(self.mac),
            promisc: earlier.promisc.or(self.promisc),
            mtu: earlier.mtu.or(self.mtu),
            allmulti: earlier.allmulti.or(self.allmulti),
            queue_length: earlier.queue_length.or(self.queue_length),
            network: earlier.network.or(self.network),
        }
    }
}

impl Tuning {
    /// What `network` asks for interface `ifname`. Later ones win: the configuration, CNI_ARGS, `args.cni`,
    /// `runtimeConfig`.
    ///
    /// # Errors
    /// A value is of a wrong kind; a kernel setting is none of the network's, or named twice.
    pub fn parse(network: &Network, args: &Arguments, ifname: &IfName) -> Result<Self, Error> {
        let fixed = network.keys();
        let of_args = fixed.child("args")?.child("cni")?;
        let mut tuning = Self::default();
        for keys in [&fixed, &of_args] {
            tuning.promiscuous = yes_or_no(keys, "promisc")?.or(tuning.promiscuous);
            tuning.all_multicast = yes_or_no(keys, "allmulti")?.or(tuning.all_multicast);
            tuning.queue_length = keys.number32("txQLen")?.or(tuning.queue_length);
            tuning.mtu = mtu(keys)?.or(tuning.mtu);
        }
        let of_runtime = mac(&fixed.child("runtimeConfig")?)?;
        tuning.mac = of_runtime.or(mac(&of_args)?).or(args.mac).or(mac(&fixed)?);
        tuning.sysctls = sysctls([&fixed, &of_args], ifname)?;
        Ok(tuning)
    }

    /// Something of the interface itself is to be set.
    #[must_use]
    pub fn is_about_the_link(&self) -> bool {
        let flags = self.promiscuous.or(self.all_multicast).is_some();
        self.mac.is_some() || self.mtu.is_some() || self.queue_length.is_some() || flags
    }

    /// Each kernel setting is matched by a line of `list`: regular expressions that may match anywhere in
    /// the key as it is written.
    ///
    /// # Errors
    /// A setting is not, or a line is no regular expression.
    pub fn allowed_by(&self, list: &str) -> Result<(), Error> {
        let lines: Vec<&str> = list.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let pattern = |line: &&str| {
            Regex::new(line).map_err(|e| {
                Error::new(
                    Code::InvalidConfig,
                    format!("invalid regular expression {line:?} in the allow list: {e}"),
                )
            })
        };
        let patterns = lines.iter().map(pattern).collect::<Result<Vec<_>, _>>()?;
        match self.sysctls.iter().find(|sysctl| !patterns.iter().any(|p| p.is_match(&sysctl.key))) {
            None => Ok(()),
            Some(Sysctl { key, .. }) => Err(Error::new(
                Code::Internal,
                format!("Sysctl {key} is not allowed. Only the following sysctls are allowed: {lines:?}"),
            )),
        }
    }
}

impl Backup {
    /// Reads the content of a file; `None` where it is garbled.
    #[must_use]
    pub fn parse(content: &[u8]) -> Option<Self> {
        serde_json::from_slice(content).ok()
    }

    /// The content of the file.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

/// The folder that earlier settings are kept in.
///
/// # Errors
/// It is no text.
pub fn backup_dir(network: &Network) -> Result<&str, Error> {
    Ok(network.keys().filled("dataDir")?.unwrap_or("/run/cni/tuning"))
}

/// A flag that may be absent.
fn yes_or_no(keys: &Keys<'_>, key: &str) -> Result<Option<bool>, Error> {
    keys.value(key).map(|_| keys.flag(key)).transpose()
}

/// An MTU that may be absent; 0 is as good as absent.
fn mtu(keys: &Keys<'_>) -> Result<Option<Mtu>, Error> {
    let number = keys.number("mtu")?.filter(|number| *number != 0);
    let invalid = |e| Error::new(Code::InvalidConfig, format!("invalid {}: {e}", keys.place("mtu")));
    number.map(|number| Mtu::try_from(number).map_err(invalid)).transpose()
}

fn mac(keys: &Keys<'_>) -> Result<Option<Mac>, Error> {
    let Some(text) = keys.filled("mac")? else { return Ok(None) };
    let invalid = |e| Error::new(Code::InvalidConfig, format!("invalid args {text} for MAC addr: {e}"));
    text.parse().map(Some).map_err(invalid)
}

/// The kernel settings of both places; the same key in the later one wins.
fn sysctls(places: [&Keys<'_>; 2], ifname: &IfName) -> Result<Vec<Sysctl>, Error> {
    let mut all = BTreeMap::new();
    for keys in places {
        for (key, value) in keys.entries("sysctl")? {
            let place = || format!("{}.{key}", keys.place("sysctl"));
            all.insert(key, value.as_str().ok_or_else(|| wrong(&place(), "a string", value))?);
        }
    }
    let mut sysctls: Vec<Sysctl> = Vec::with_capacity(all.len());
    for (key, value) in all {
        let path = path_of(key, ifname);
        let is_plain = |part: &String| !part.is_empty() && part != "." && part != "..";
        if path.len() < 2 || path[0] != "net" || !path.iter().all(is_plain) {
            return Err(Error::new(Code::Internal, format!("invalid net sysctl key: {key:?}")));
        }
        if let Some(same) = sysctls.iter().find(|sysctl| sysctl.path == path) {
            let text =
                format!("duplicate sysctl keys {:?} and {key:?}: both are {}", same.key, path.join("/"));
            return Err(Error::new(Code::InvalidConfig, text));
        }
        sysctls.push(Sysctl { key: key.to_owned(), path, value: value.to_owned() });
    }
    Ok(sysctls)
}

/// The parts of a key. Whichever of `.` and `/` comes first separates them (sysctl(8)); behind dots a `/`
/// stands for a dot within a part. `IFNAME` is the container's interface.
fn path_of(key: &str, ifname: &IfName) -> Vec<String> {
    let separator = key.chars().find(|c| ['.', '/'].contains(c)).unwrap_or('.');
    let part = |part: &str| {
        let part = if separator == '.' { part.replace('/', ".") } else { part.to_owned() };
        part.replace("IFNAME", ifname.as_str())
    };
    key.split(separator).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(tail: &str, args: &str, ifname: &str) -> Result<Tuning, String> {
        let text = format!(r#"{{"cniVersion":"1.0.0","name":"n","type":"tuning"{tail}}}"#);
        let network = Network::parse(text.as_bytes()).unwrap();
        Tuning::parse(&network, &Arguments::parse(args).unwrap(), &ifname.parse().unwrap()).map_err(|e| e.msg)
    }

    fn paths(sysctl: &str, ifname: &str) -> Result<String, String> {
        let tuning = parse(&format!(r#","sysctl":{{{sysctl}}}"#), "", ifname)?;
        let line = |s: &Sysctl| format!("{}={}", s.path.join("/"), s.value);
        Ok(tuning.sysctls.iter().map(line).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn every_way_of_asking_has_its_rank() {
        let mac = |tail: &str, args: &str| parse(tail, args, "eth0").unwrap().mac.map(|mac| mac.to_string());
        let of = |n: u8| Some(format!("02:00:00:00:00:0{n}"));
        let (fixed, args) =
            (r#","mac":"02:00:00:00:00:01""#, r#","args":{"cni":{"mac":"02:00:00:00:00:03"}}"#);
        let runtime = r#","runtimeConfig":{"MAC":"02:00:00:00:00:04"}"#;
        assert_eq!(mac("", ""), None);
        assert_eq!(mac(fixed, ""), of(1));
        assert_eq!(mac(fixed, "MAC=02:00:00:00:00:02"), of(2));
        assert_eq!(mac(&format!("{fixed}{args}"), "MAC=02:00:00:00:00:02"), of(3));
        assert_eq!(mac(&format!("{fixed}{args}{runtime}"), "MAC=02:00:00:00:00:02"), of(4));
        let all = r#","mtu":1400,"promisc":true,"txqlen":5,"args":{"cni":{"MTU":1300,"allmulti":false,"txQLen":0}}"#;
        let tuning = parse(all, "", "eth0").unwrap();
        assert_eq!((tuning.mtu, tuning.promiscuous), (Mtu::try_from(1300).ok(), Some(true)));
        assert_eq!((tuning.all_multicast, tuning.queue_length), (Some(false), Some(0)));
        assert!(tuning.is_about_the_link() && !parse(r#","mtu":0"#, "", "eth0").unwrap().is_about_the_link());
    }

    #[test]
    fn bad_values_are_named() {
        let message = |tail| parse(tail, "", "eth0").unwrap_err();
        assert!(message(r#","mac":"zz""#).starts_with("invalid args zz for MAC addr: "));
        assert!(message(r#","args":{"cni":{"mtu":7}}"#).starts_with("invalid args.cni.mtu: 7 is not an MTU"));
        assert!(message(r#","promisc":1"#).ends_with("promisc must be true or false, not 1"));
        assert!(message(r#","sysctl":{"net.x":1}"#).ends_with("sysctl.net.x must be a string, not 1"));
    }

    #[test]
    fn a_key_is_separated_by_what_comes_first() {
        let wanted = Ok("net/ipv4/conf/eth0.7/arp_filter=1".to_owned());
        for key in [
            "net.ipv4.conf.IFNAME.arp_filter",
            "net/ipv4/conf/IFNAME/arp_filter",
            "net/ipv4/conf/eth0.7/arp_filter",
            "net.ipv4.conf.eth0/7.arp_filter",
        ] {
            assert_eq!(paths(&format!(r#""{key}":"1""#), "eth0.7"), wanted, "{key}");
        }
    }

    #[test]
    fn only_the_network_is_set_and_only_once() {
        for key in
            ["kernel.pid_max", "net", "", "/net/core/x", "net/../kernel/x", "net..x", "net/./x", "netx.y"]
        {
            let refused = format!("invalid net sysctl key: {key:?}");
            assert_eq!(paths(&format!(r#""{key}":"1""#), "eth0"), Err(refused));
        }
        let twice = paths(r#""net.ipv4.conf.IFNAME.x":"1","net/ipv4/conf/eth0/x":"1""#, "eth0").unwrap_err();
        assert!(twice.starts_with("duplicate sysctl keys"), "{twice}");
        let later =
            parse(r#","sysctl":{"net.a":"1","net.b":"2"},"args":{"cni":{"sysctl":{"net.a":"3"}}}"#, "", "e");
        let values: Vec<_> = later.unwrap().sysctls.into_iter().map(|s| s.value).collect();
        assert_eq!(values, ["3", "2"]);
    }

    #[test]
    fn the_list_allows_keys_as_they_are_written() {
        let list = " ^net.ipv4.conf.IFNAME.[a-z_]*$ \n\nsomaxconn\n";
        let check = |key: &str| {
            let tuning = parse(&format!(r#","sysctl":{{"{key}":"1"}}"#), "", "eth0").unwrap();
            tuning.allowed_by(list).map_err(|e| e.msg)
        };
        assert_eq!(check("net.ipv4.conf.IFNAME.arp_filter"), Ok(()));
        assert_eq!(check("net.core.somaxconn"), Ok(()));
        let refused = check("net.ipv4.conf.eth0.arp_filter").unwrap_err();
        assert!(
            refused.starts_with("Sysctl net.ipv4.conf.eth0.arp_filter is not allowed. Only the following")
        );
        let bad = parse(r#","sysctl":{"net.a":"1"}"#, "", "eth0").unwrap().allowed_by("(").unwrap_err();
        assert!(bad.msg.starts_with("invalid regular expression \"(\" in the allow list"), "{bad}");
    }

    #[test]
    fn a_backup_is_read_and_written_as_the_reference_does() {
        let theirs = "{\n \"mac\": \"4a:42:b6:44:08:ee\",\n \"promisc\": false,\n \"mtu\": 1500,\n \"allmulti\": false\n}";
        let ours = Backup::parse(theirs.as_bytes()).unwrap().to_json();
        assert_eq!(ours, r#"{"allmulti":false,"mac":"4a:42:b6:44:08:ee","mtu":1500,"promisc":false}"#);
        assert_eq!(Backup { queue_length: Some(7), ..Backup::default() }.to_json(), r#"{"txQLen":7}"#);
        assert_eq!(Backup::parse(b""), None);
    }
}

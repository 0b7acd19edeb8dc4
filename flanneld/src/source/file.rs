//! Leases in a file: for tests, for bug reports, and for a look at what would be done.
//!
//! ```json
//! {
//!   "config": {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}},
//!   "own": "10.5.34.0-24",
//!   "leases": {
//!     "10.5.34.0-24": {"PublicIP": "192.168.64.3", "BackendType": "vxlan",
//!                      "BackendData": {"VNI": 1, "VtepMAC": "c6:d2:32:6f:8f:44"}},
//!     "10.5.35.0-24": {"PublicIP": "192.168.64.4", "BackendType": "vxlan",
//!                      "BackendData": {"VNI": 1, "VtepMAC": "06:5f:64:b0:a2:e1"}}
//!   }
//! }
//! ```
//!
//! `config` is what etcd has at `<prefix>/config`, each lease what it has at `<prefix>/subnets/<key>`.
//! `own` names this node's lease; without it, the subnet is chosen as in etcd: the lease with this node's
//! device or public address, else the subnet of `subnet.env`, else the first free one. Nothing is ever
//! written to the file. When it changes its leases are read again; while it can't be read or is not valid,
//! what was read before stays.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use daemon::OnChange;
use overlay_core::{
    config::{BadConfig, Config},
    host::NodeFacts,
    lease::{Assignment, Known, Lease, NoSubnet, RawLease, SourceState, View, choose},
    wire::{LeaseKey, LeaseValue},
};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Fatal, Ports};

/// How often the file is looked at.
const INTERVAL: Duration = Duration::from_millis(500);

/// Leases in a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It is not the JSON that was expected.
    #[error("failed to parse {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        cause: serde_json::Error,
    },
    /// Its configuration is not valid.
    #[error("{} is not valid", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// All mistakes.
        #[source]
        cause: BadConfig,
    },
    /// `own` names nothing that can be this node's lease.
    #[error("{}: own {own:?} is not one of the subnets that may be leased", path.display())]
    Own {
        /// The file.
        path: PathBuf,
        /// What it says.
        own: String,
    },
    /// There is no subnet for this node.
    #[error("failed to choose a subnet from {}", path.display())]
    NoSubnet {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: NoSubnet,
    },
}

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    config: Value,
    #[serde(default)]
    own: Option<String>,
    #[serde(default)]
    leases: Map<String, Value>,
}

/// What the file says to a node with those facts.
///
/// # Errors
/// The file cannot be read or is not valid, or there is no subnet for this node.
pub fn read(path: &Path, facts: &NodeFacts) -> Result<Assignment, FileError> {
    read_under(path, facts, None).map(|(assignment, _)| assignment)
}

/// The same under the configuration `used`, if there is one already; and whether the file has another one.
fn read_under(
    path: &Path,
    facts: &NodeFacts,
    used: Option<&Config>,
) -> Result<(Assignment, bool), FileError> {
    let at = || path.to_owned();
    let text = fs::read_to_string(path).map_err(|cause| FileError::Read { path: at(), cause })?;
    let document: Document =
        serde_json::from_str(&text).map_err(|cause| FileError::Parse { path: at(), cause })?;
    let written = Config::parse(&document.config.to_string())
        .map_err(|cause| FileError::Config { path: at(), cause })?;
    let is_other = used.is_some_and(|used| *used != written);
    let config = used.cloned().unwrap_or(written);
    let leases: Vec<RawLease> = document.leases.into_iter().zip(1..).map(raw_lease).collect();
    let own = match &document.own {
        Some(own) => named(own, &leases, &config, facts)
            .ok_or_else(|| FileError::Own { path: at(), own: own.clone() })?,
        None => {
            let known = Known { leases: &leases, records: &[], rivals: &BTreeSet::new() };
            // The same file gives the same plan: the first free subnet is taken.
            let choice = choose(known, &config, facts, &mut |_| 0);
            choice.map_err(|cause| FileError::NoSubnet { path: at(), cause })?.lease
        }
    };
    Ok((Assignment { config, own, note: None, leases: leases.into() }, is_other))
}

/// This node's lease, where the file names it.
fn named(own: &str, leases: &[RawLease], config: &Config, facts: &NodeFacts) -> Option<Lease> {
    let subnet = own.parse::<LeaseKey>().ok()?.subnet;
    let vni = config.vxlan.vni;
    let device = facts.vteps.iter().find(|(number, _)| *number == vni).map(|(_, mac)| *mac);
    let written = leases.iter().find(|lease| lease.key == own);
    let written = written.and_then(|lease| lease.value.parse::<LeaseValue>().ok()?.vtep_mac?.parse().ok());
    let vtep_mac = device.or(written).unwrap_or_else(|| facts.identity.vtep_mac(vni));
    let lease = Lease { subnet, public_ip: facts.public_ip, vtep_mac, vni, expires: None };
    config.offers(subnet).then_some(lease)
}

/// Follows the file, for ever; returns if no subnet is free of overlap with this host at the start, or if
/// another flanneld holds the device.
pub(super) async fn follow(path: &Path, mut ports: Ports) -> Fatal {
    let mut said = OnChange::default();
    let mut before = None;
    loop {
        let facts = super::facts(&mut ports).await;
        // Looked at first: a change while the file is read is seen the next time.
        let now = fingerprint(path);
        if before.as_ref() != Some(&(now, facts.clone())) {
            // As with etcd: device and rules hang on the configuration that was read at the start.
            let used = ports.view.borrow().assignment.as_ref().map(|assignment| assignment.config.clone());
            match read_under(path, &facts, used.as_ref()) {
                Ok((assignment, is_other)) => {
                    if let Err(held) = ports.hold(&assignment.config) {
                        return held;
                    }
                    let problem = is_other.then(|| config_changed(path));
                    publish(&ports, assignment, problem, &mut said);
                }
                Err(FileError::NoSubnet { cause, .. })
                    if matches!(cause, NoSubnet::AllOverlap { .. })
                        && ports.view.borrow().assignment.is_none() =>
                {
                    return Fatal::NoSubnet(cause);
                }
                Err(error) => {
                    let problem = daemon::one_line(&error);
                    if said.is_new(&problem) {
                        tracing::warn!("{problem}; trying again when it changes");
                    }
                    let state = SourceState { connected: false, problem: Some(problem) };
                    ports.view.send_modify(|view| view.state = state);
                }
            }
            before = Some((now, facts));
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = super::changed(&mut ports) => {}
        }
    }
}

fn config_changed(path: &Path) -> String {
    format!(
        "the configuration in {} has changed; the one that was read at the start stays in use until flanneld is \
         restarted",
        path.display()
    )
}

fn publish(ports: &Ports, assignment: Assignment, problem: Option<String>, said: &mut OnChange) {
    match &problem {
        Some(problem) if said.is_new(problem) => tracing::warn!("{problem}"),
        None if said.clear() => tracing::info!("the file can be used again"),
        _ => {}
    }
    let state = SourceState { connected: true, problem };
    ports.view.send_replace(View { assignment: Some(Arc::new(assignment)), state });
}

/// What changes when a file is written or replaced; `None` while there is none.
fn fingerprint(path: &Path) -> Option<(u64, u64, i64, i64)> {
    let data = fs::metadata(path).ok()?;
    Some((data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}

fn raw_lease(((key, value), line): ((String, Value), i64)) -> RawLease {
    RawLease { key, value: value.to_string(), created: line, modified: line, ttl_lease: 0 }
}

#[cfg(test)]
mod tests {
    use overlay_core::host::{NodeIdentity, Underlay};
    use tokio::sync::watch;

    use super::*;

    const TWO: &str = r#"{
        "config": {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}},
        "leases": {
            "10.5.34.0-24": {"PublicIP": "192.0.2.3", "BackendType": "vxlan",
                             "BackendData": {"VNI": 1, "VtepMAC": "c6:d2:32:6f:8f:44"}},
            "10.5.35.0-24": {"PublicIP": "192.0.2.4", "BackendType": "vxlan",
                             "BackendData": {"VNI": 1, "VtepMAC": "06:5f:64:b0:a2:e1"}}
        }
    }"#;

    fn facts(ip: &str) -> NodeFacts {
        let address = ip.parse().unwrap();
        NodeFacts {
            identity: NodeIdentity([1; 16]),
            public_ip: address,
            underlay: Underlay {
                name: "eth0".parse().unwrap(),
                index: 2,
                address,
                mtu: 1500.try_into().unwrap(),
            },
            vteps: Vec::new(),
            host: Vec::new(),
            previous: None,
        }
    }

    /// A file that goes with its guard.
    struct Written(PathBuf);

    impl Written {
        fn new(name: &str, text: &str) -> Self {
            let path = std::env::temp_dir().join(format!("weft-leases-{name}-{}.json", std::process::id()));
            fs::write(&path, text).unwrap();
            Self(path)
        }

        /// Replaces the file in one step, as an editor does.
        fn replace(&self, text: &str) {
            daemon::file::replace(&self.0, text.as_bytes(), 0o644).unwrap();
        }

        fn read(&self, ip: &str) -> Result<Assignment, String> {
            read(&self.0, &facts(ip)).map_err(|error| daemon::one_line(&error))
        }
    }

    impl Drop for Written {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn the_own_lease_is_the_one_named_or_the_one_that_fits() {
        let file = Written::new("own", TWO);
        let by_ip = file.read("192.0.2.4").unwrap();
        assert_eq!((by_ip.own.subnet.to_string().as_str(), by_ip.leases.len()), ("10.5.35.0/24", 2));
        assert_eq!(by_ip.own.vtep_mac.to_string(), "06:5f:64:b0:a2:e1");
        let free = file.read("192.0.2.5").unwrap();
        assert_eq!(free.own.subnet.to_string(), "10.5.1.0/24");
        file.replace(&TWO.replacen('{', r#"{"own": "10.5.34.0-24","#, 1));
        let named = file.read("192.0.2.5").unwrap().own;
        assert_eq!((named.subnet.to_string().as_str(), named.expires), ("10.5.34.0/24", None));
        assert_eq!(
            (named.vtep_mac.to_string().as_str(), named.public_ip.octets()[3]),
            ("c6:d2:32:6f:8f:44", 5)
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_the_file() {
        let file = Written::new("wrong", "{");
        let name = file.0.display().to_string();
        let says = |text: &str| {
            file.replace(text);
            file.read("192.0.2.4").unwrap_err().replace(&name, "FILE")
        };
        assert!(says("{").starts_with("failed to parse FILE: EOF while parsing"));
        assert!(says("{}").starts_with("failed to parse FILE: missing field `config`"));
        assert!(says(r#"{"config":{},"lease":{}}"#).contains("unknown field `lease`"));
        assert!(
            says(r#"{"config":{}}"#)
                .starts_with("FILE is not valid: the network configuration is not valid: Network is missing")
        );
        let named = TWO.replacen('{', r#"{"own": "10.6.34.0-24","#, 1);
        assert_eq!(says(&named), "FILE: own \"10.6.34.0-24\" is not one of the subnets that may be leased");
        let missing = read(Path::new("/nonexistent/leases.json"), &facts("192.0.2.4")).unwrap_err();
        assert_eq!(missing.to_string(), "failed to read /nonexistent/leases.json");
    }

    #[tokio::test]
    async fn a_change_is_followed_and_a_bad_one_changes_nothing() {
        let file = Written::new("follow", TWO);
        let (_facts, heard) = watch::channel(Some(facts("192.0.2.4")));
        let (said, mut view) = watch::channel(View::default());
        let path = file.0.clone();
        let task =
            tokio::spawn(
                async move { follow(&path, Ports { facts: heard, view: said, device: None }).await },
            );
        let leases = |view: &View| view.assignment.as_ref().map_or(0, |a| a.leases.len());
        view.wait_for(|view| leases(view) == 2).await.unwrap();
        file.replace("{");
        let bad = view.wait_for(|view| !view.state.connected).await.unwrap().clone();
        assert!(leases(&bad) == 2 && bad.state.problem.unwrap().starts_with("failed to parse"));
        file.replace(&TWO.replace("10.5.34.0-24", "10.5.36.0-24"));
        let good = view.wait_for(|view| view.state.connected).await.unwrap().clone();
        assert!(good.assignment.unwrap().leases.iter().any(|lease| lease.key == "10.5.36.0-24"));
        file.replace(&TWO.replace("10.5.0.0/16", "10.4.0.0/15"));
        let other = view.wait_for(|view| view.state.problem.is_some()).await.unwrap().clone();
        let (assignment, problem) = (other.assignment.unwrap(), other.state.problem.unwrap());
        assert_eq!(assignment.config.network.to_string(), "10.5.0.0/16");
        assert!(
            problem.contains("has changed; the one that was read at the start stays in use"),
            "{problem}"
        );
        assert!(assignment.leases.iter().any(|lease| lease.key == "10.5.34.0-24"));
        task.abort();
    }
}

//! `status.json`: what this flanneld holds and why, for people and for the CNI plugin.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use netmodel::{IfName, Subnet};
use serde::{Deserialize, Serialize};

/// The content of the file. A field that is not there has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Version of flanneld.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Pods can be made: the subnet file is written and the device is there.
    pub ready: bool,
    /// What is wrong, in one sentence; the CNI plugin shows it.
    pub problem: Option<String>,
    /// What a user should know, though the overlay works.
    pub warnings: Vec<String>,
    /// This node and what it holds.
    pub node: Node,
    /// Where leases come from.
    pub source: Source,
    /// Other nodes that packets can be sent to.
    pub peers: usize,
    /// Leases that are not used.
    pub skipped: Vec<Skipped>,
}

/// This node and what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Node {
    /// A hash by which the node is known again.
    pub identity: Option<String>,
    /// The interface that tunnelled packets leave by.
    pub interface: Option<String>,
    /// The address that other nodes send to.
    pub public_ip: Option<String>,
    /// The subnet of all pods.
    pub network: Option<String>,
    /// The subnet of this node's pods.
    pub subnet: Option<String>,
    /// When the lease of it ends, in seconds since 1970, unless it is renewed.
    pub lease_ends: Option<u64>,
    /// What happened to the lease.
    pub note: Option<String>,
    /// The VXLAN device.
    pub device: Option<String>,
    /// Its Ethernet address.
    pub vtep_mac: Option<String>,
    /// Largest packet of a pod in bytes.
    pub mtu: Option<u16>,
    /// Devices that earlier runs held, until they are removed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Earlier>,
}

/// A device that an earlier run held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Earlier {
    /// Its name.
    pub device: String,
    /// The subnet of all pods at that time.
    pub network: Option<String>,
}

impl Earlier {
    /// What it says, if it names a device.
    #[must_use]
    pub fn parse(&self) -> Option<(IfName, Option<Subnet>)> {
        let network = self.network.as_deref().and_then(|network| network.parse().ok());
        Some((self.device.parse().ok()?, network))
    }
}

impl Node {
    /// What a new run has to remember until it holds something itself.
    #[must_use]
    pub fn remembered(self) -> Self {
        let Self { network, subnet, device, earlier, .. } = self;
        Self { network, subnet, device, earlier, ..Self::default() }
    }

    /// Every device that is held, except `own`.
    #[must_use]
    pub fn devices_except(&self, own: &IfName) -> Vec<Earlier> {
        let last = self.device.clone().map(|device| Earlier { device, network: self.network.clone() });
        last.iter().chain(&self.earlier).filter(|held| held.device != own.as_str()).cloned().collect()
    }
}

/// Where leases come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    /// Its kind and place, without secrets.
    pub name: String,
    /// It answers.
    pub connected: bool,
}

/// A lease that is not used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Skipped {
    /// Its key.
    pub lease: String,
    /// Why.
    pub reason: String,
}

/// The status could not be read.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The file is not there, or may not be read.
    #[error("failed to read {}: has flanneld been started?", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It holds something else.
    #[error("failed to parse {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        cause: serde_json::Error,
    },
}

/// Where the status of a flanneld with that subnet file lies: `status.json` for `subnet.env`, else
/// `<file name>.status.json`, in the same folder.
#[must_use]
pub fn path(subnet_file: &Path) -> PathBuf {
    match subnet_file.file_name() {
        Some(name) if name == "subnet.env" => subnet_file.with_file_name("status.json"),
        name => {
            let mut name = name.unwrap_or_default().to_owned();
            name.push(".status.json");
            subnet_file.with_file_name(name)
        }
    }
}

impl Status {
    /// Reads a file as it is.
    ///
    /// # Errors
    /// It is not there, or no status.
    pub fn read(path: &Path) -> Result<Self, StatusError> {
        let text =
            fs::read_to_string(path).map_err(|cause| StatusError::Read { path: path.to_owned(), cause })?;
        serde_json::from_str(&text).map_err(|cause| StatusError::Parse { path: path.to_owned(), cause })
    }

    /// The file's content.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}

/// A time in seconds since 1970 as RFC 3339 writes it, which ends with the year 9999.
fn utc(seconds: u64) -> Option<String> {
    let time = UNIX_EPOCH + Duration::from_secs(Some(seconds).filter(|at| *at < 253_402_300_800)?);
    Some(humantime::format_rfc3339_seconds(time).to_string())
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match (self.ready, &self.problem) {
            (_, Some(problem)) => problem.as_str(),
            (true, None) => "ready",
            (false, None) => "starting",
        };
        writeln!(f, "state      {state}")?;
        let node = &self.node;
        let mtu = node.mtu.map(|mtu| mtu.to_string());
        let ends = node.lease_ends.and_then(utc);
        for (name, value) in [
            ("subnet", &node.subnet),
            ("network", &node.network),
            ("lease ends", &ends),
            ("note", &node.note),
            ("device", &node.device),
            ("VTEP MAC", &node.vtep_mac),
            ("pod MTU", &mtu),
            ("interface", &node.interface),
            ("public IP", &node.public_ip),
        ] {
            if let Some(value) = value {
                writeln!(f, "{name:<10} {value}")?;
            }
        }
        let connected = if self.source.connected { "" } else { " (not connected)" };
        writeln!(f, "source     {}{connected}", self.source.name)?;
        writeln!(f, "peers      {}", self.peers)?;
        for Skipped { lease, reason } in &self.skipped {
            writeln!(f, "skipped    {lease}: {reason}")?;
        }
        self.warnings.iter().try_for_each(|warning| writeln!(f, "warning    {warning}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_lies_beside_the_subnet_file() {
        for (subnet, status) in [
            ("/run/flannel/subnet.env", "/run/flannel/status.json"),
            ("/run/f/other.env", "/run/f/other.env.status.json"),
            ("subnet.env", "status.json"),
        ] {
            assert_eq!(path(Path::new(subnet)), Path::new(status));
        }
    }

    #[test]
    fn a_status_comes_back_and_an_older_one_is_read() {
        let status = Status { problem: Some("etcd is away".to_owned()), peers: 2, ..Status::default() };
        assert_eq!(serde_json::from_str::<Status>(&status.to_json()).unwrap(), status);
        assert_eq!(serde_json::from_str::<Status>(r#"{"ready":true,"new":1}"#).unwrap().pid, 0);
        assert!(status.to_string().starts_with("state      etcd is away\n"));
    }

    #[test]
    fn a_time_is_readable_and_an_impossible_one_is_left_out() {
        assert_eq!(utc(1_795_348_047).as_deref(), Some("2026-11-22T11:47:27Z"));
        assert_eq!(utc(u64::MAX), None);
    }
}

//! `status.json`: what this proxy holds and why, for operators and their tools.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use daemon::OnChange;
use netmodel::NodeName;
use proxy_core::{ports::Programmed, state::State, tables::NodePorts};
use serde::{Deserialize, Serialize};

use crate::source::file::FileSource;

/// What changed in the last moment is written together.
const DELAY: Duration = Duration::from_millis(500);
/// After this long it is looked whether the file is still there, and one that could not be written is tried again.
const PAUSE: Duration = Duration::from_secs(5);

/// The status file of a running proxy.
#[derive(Debug)]
pub struct StatusFile {
    path: PathBuf,
    written: OnChange,
    failed: OnChange,
    /// The file may have to say something else.
    changed: bool,
    /// When to look at it again.
    due: Instant,
}

impl StatusFile {
    /// One that was not written yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        let (written, failed) = (OnChange::default(), OnChange::default());
        Self { path, written, failed, changed: true, due: Instant::now() }
    }

    /// When to look at it again.
    #[must_use]
    pub const fn due(&self) -> Instant {
        self.due
    }

    /// What it tells may have changed.
    pub fn touch(&mut self) {
        self.changed = true;
        self.due = self.due.min(Instant::now() + DELAY);
    }

    /// Whether it is to be written now: it may have to say something else, or somebody removed it.
    pub fn is_due(&mut self) -> bool {
        let now = Instant::now();
        if now < self.due {
            return false;
        }
        self.due = now + PAUSE;
        if !self.path.exists() {
            self.written.clear();
        }
        self.changed || self.written.last().is_none()
    }

    /// Writes it where it would say something else. What keeps it from being written is said once.
    pub fn write(&mut self, status: &Status) {
        self.changed = false;
        let text = status.to_json();
        if !self.written.is_new(&text) {
            return;
        }
        match daemon::file::replace(&self.path, text.as_bytes(), 0o644) {
            Ok(()) => drop(self.failed.clear()),
            Err(error) => {
                self.written.clear();
                let why = daemon::one_line(&error);
                if self.failed.is_new(&why) {
                    tracing::warn!("{why}; trying again");
                }
            }
        }
    }
}

/// The content of the status file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// The process.
    pub pid: u32,
    /// This node's name.
    pub node: String,
    /// Services that are served.
    pub services: usize,
    /// Their ports.
    pub ports: usize,
    /// Ports without an endpoint: connections to them are refused.
    pub rejecting: usize,
    /// Endpoints of all ports.
    pub endpoints: usize,
    /// The addresses at which node ports are open; "all" for all of them.
    pub node_port_addresses: Vec<String>,
    /// Ranges that a route of ours leads to, because there is no default route.
    pub last_resort_routes: Vec<String>,
    /// The kernel holds what is wanted.
    pub in_sync: bool,
    /// What is wrong, one line each.
    pub troubles: Vec<String>,
}

impl Status {
    /// The status of that state.
    #[must_use]
    pub fn new(node: &NodeName, state: &State, source: &FileSource) -> Self {
        let mut status = Self { pid: std::process::id(), node: node.to_string(), ..Self::default() };
        for (_, ports) in state.programmed() {
            status.services += 1;
            status.ports += ports.len();
            let rejects = |port: &&Programmed| port.rows.is_empty() && !port.fronts.is_empty();
            status.rejecting += ports.iter().filter(rejects).count();
            status.endpoints += ports.iter().map(|port| port.rows.len()).sum::<usize>();
        }
        status.node_port_addresses = match &state.config().node_ports {
            NodePorts::All => vec!["all".to_owned()],
            NodePorts::At(addresses) => addresses.iter().map(ToString::to_string).collect(),
        };
        status.troubles = source.troubles().collect();
        for (service, problems) in state.problems() {
            status.troubles.extend(problems.iter().map(|problem| format!("Service {service}: {problem}")));
        }
        status
    }

    /// Reads the file that a running proxy wrote.
    ///
    /// # Errors
    /// There is no such file, or it is none of ours.
    pub fn read(path: &Path) -> io::Result<(String, Self)> {
        let text = fs::read_to_string(path)?;
        let status = serde_json::from_str(&text)?;
        Ok((text, status))
    }

    /// The file's text.
    #[must_use]
    pub fn to_json(&self) -> String {
        // A struct of texts and numbers always has a JSON form.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |items: &[String]| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
        writeln!(f, "weft-proxy on node {}, process {}", self.node, self.pid)?;
        let rejecting = if self.rejecting == 0 {
            String::new()
        } else {
            format!(" ({} without an endpoint)", self.rejecting)
        };
        writeln!(
            f,
            "{} Services with {} ports{rejecting} and {} endpoints",
            self.services, self.ports, self.endpoints
        )?;
        writeln!(f, "node ports are open at: {}", list(&self.node_port_addresses))?;
        if !self.last_resort_routes.is_empty() {
            writeln!(f, "no default route; routes of last resort to: {}", list(&self.last_resort_routes))?;
        }
        writeln!(f, "the kernel {} what is wanted", if self.in_sync { "holds" } else { "does not hold" })?;
        self.troubles.iter().try_for_each(|trouble| writeln!(f, "trouble: {trouble}"))
    }
}

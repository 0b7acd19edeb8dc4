//! What others hear from this flanneld: the subnet file, the status file, health checks, systemd.

use std::{fs, path::PathBuf};

use daemon::{OnChange, file, health::Health, notify};
use overlay_core::{
    backend::vxlan,
    desired,
    host::{NodeFacts, Overlap},
    lease::Assignment,
    overlay::{Hop, Overlay},
    wire::SubnetEnv,
};

use crate::{
    flags::{Origin, Settings},
    status::{self, Skipped, Status},
};

/// Writes files when their content changes, and tells health checks and systemd.
#[derive(Debug)]
pub struct Reporter {
    subnet_file: PathBuf,
    status_file: PathBuf,
    ip_masq: bool,
    written_env: Option<SubnetEnv>,
    written: Option<Status>,
    blank: Status,
    health: Health,
    said: OnChange,
}

impl Reporter {
    /// Nothing is written yet. What the file names of an earlier run stays in it until something else takes its
    /// place.
    #[must_use]
    pub fn new(settings: &Settings, health: Health) -> Self {
        let name = match &settings.origin {
            Origin::Etcd(etcd) => format!("etcd at {}, prefix {}", etcd.endpoints.join(", "), etcd.prefix),
            Origin::File(path) => format!("file {}", path.display()),
        };
        let status_file = status::path(&settings.subnet_file);
        let blank = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            source: status::Source { name, connected: false },
            node: Status::read(&status_file).unwrap_or_default().node.remembered(),
            ..Status::default()
        };
        Self {
            subnet_file: settings.subnet_file.clone(),
            status_file,
            ip_masq: settings.ip_masq,
            written_env: None,
            written: None,
            blank,
            health,
            said: OnChange::default(),
        }
    }

    /// What earlier runs held.
    #[must_use]
    pub const fn before(&self) -> &status::Node {
        &self.blank.node
    }

    /// Writes the subnet file, if it says something else or was not written by this process.
    pub fn write_subnet_file(&mut self, assignment: &Assignment, facts: &NodeFacts) {
        let env = SubnetEnv {
            network: assignment.config.network,
            subnet: assignment.own.subnet,
            mtu: vxlan::pod_mtu(&assignment.config, facts),
            ip_masq: self.ip_masq,
        };
        let text = env.to_string();
        if self.written_env == Some(env)
            && fs::read(&self.subnet_file).is_ok_and(|had| had == text.as_bytes())
        {
            return;
        }
        match file::replace(&self.subnet_file, text.as_bytes(), 0o644) {
            Ok(()) => {
                tracing::info!(subnet = %env.subnet, mtu = %env.mtu, "wrote {}", self.subnet_file.display());
                if self.written_env.is_none() {
                    notify::ready();
                }
                self.written_env = Some(env);
                self.said.clear();
            }
            Err(error) => {
                let text = daemon::one_line(&error);
                if self.said.is_new(&text) {
                    tracing::error!("{text}; trying again");
                }
            }
        }
    }

    /// Writes the status that `fill` completes, if it differs from the last one.
    pub fn status(&mut self, fill: impl FnOnce(&mut Status)) {
        let mut status = self.blank.clone();
        fill(&mut status);
        status.ready = self.written_env.is_some();
        if status.problem.is_none() {
            status.problem = self.said.last().map(str::to_owned);
        }
        if self.written.as_ref() == Some(&status) && self.status_file.exists() {
            return;
        }
        self.health.set(status.ready, status.problem.as_deref());
        notify::status(status.problem.as_deref().unwrap_or(if status.ready { "ready" } else { "starting" }));
        match file::replace(&self.status_file, status.to_json().as_bytes(), 0o644) {
            Ok(()) => self.written = Some(status),
            Err(error) => tracing::debug!("{}", daemon::one_line(&error)),
        }
    }
}

/// Leaves in the status file why this flanneld ends, for the CNI plugin and for people. What it held
/// stays in the file.
pub fn last_words(settings: &Settings, problem: &str) {
    let path = status::path(&settings.subnet_file);
    let mut status = Status::read(&path).unwrap_or_default();
    status.version = env!("CARGO_PKG_VERSION").to_owned();
    status.pid = std::process::id();
    status.problem = Some(problem.to_owned());
    if let Err(error) = file::replace(&path, status.to_json().as_bytes(), 0o644) {
        tracing::debug!("{}", daemon::one_line(&error));
    }
}

impl Status {
    /// Fills in what this node is.
    pub fn set_facts(&mut self, facts: Option<&NodeFacts>) {
        let Some(facts) = facts else { return };
        self.node.identity = Some(facts.identity.to_string());
        self.node.interface = Some(facts.underlay.name.to_string());
        self.node.public_ip = Some(facts.public_ip.to_string());
    }

    /// Fills in what this node has leased.
    pub fn set_assignment(&mut self, assignment: &Assignment, facts: &NodeFacts) {
        let (config, own, node) = (&assignment.config, &assignment.own, &mut self.node);
        node.network = Some(config.network.to_string());
        node.subnet = Some(own.subnet.to_string());
        node.lease_ends = own.expires;
        node.note.clone_from(&assignment.note);
        node.device = Some(config.vxlan.device.to_string());
        node.vtep_mac = Some(own.vtep_mac.to_string());
        node.mtu = Some(vxlan::pod_mtu(config, facts).get());
        self.warnings.extend(config.notes.iter().cloned());
    }

    /// Fills in whom this node can reach, and whom not.
    pub fn set_overlay(&mut self, want: &Overlay, skipped: &[desired::Skipped], overlaps: &[Overlap]) {
        let leads_to_peer = |hop: &&Hop| matches!(hop, Hop::Tunnel(_) | Hop::Direct(_));
        self.peers = want.routes.values().filter(leads_to_peer).count();
        let line = |s: &desired::Skipped| Skipped { lease: s.key.clone(), reason: s.reason.to_string() };
        self.skipped = skipped.iter().map(line).collect();
        self.warnings.extend(overlaps.iter().map(ToString::to_string));
    }
}

//! From the configuration that came to the bridge network that is meant.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use cni_core::{
    Arguments, Attachment, Code, Error, Network, SubnetEnv, delegate_config, delegate_type, foreign_delegate,
    reason_in_status, scratch_dir, status_file, subnet_file,
};

use netmodel::Subnet;

use crate::{failure, records::Records, reservations::Reservations};

/// A request about one container.
pub(crate) struct Call {
    /// Whose interface.
    pub(crate) who: Attachment,
    /// The container's namespace as the runtime named it.
    pub(crate) netns: Option<String>,
    /// CNI_ARGS.
    pub(crate) args: Arguments,
    /// The configuration as it came.
    pub(crate) network: Network,
}

impl Call {
    /// The error with what it is about, for whoever reads the runtime's log.
    pub(crate) fn describe(&self, error: Error) -> Error {
        let who = &self.who;
        let mut about =
            format!("network {}, container {}, interface {}", who.network, who.container, who.ifname);
        if let Some(pod) = &self.args.pod {
            about.push_str(&format!(", pod {pod}"));
        }
        let details = if error.details.is_empty() { about } else { format!("{}; {about}", error.details) };
        error.with_details(details)
    }
}

fn is_flannel(network: &Network) -> bool {
    network.kind == "flannel"
}

/// The bridge network that `network` stands for on this node, and the networks that `flanneld` leases
/// its subnets from.
pub(crate) fn complete(network: &Network) -> Result<(Network, Vec<Subnet>), Error> {
    if !is_flannel(network) {
        return Ok((network.clone(), Vec::new()));
    }
    let env = subnet_env(network)?;
    Ok((delegate_config(network, Some(&env))?, env.networks))
}

/// The same for DEL and GC, which have to work without `subnet.env`: then there are no ranges.
pub(crate) fn lenient(network: &Network) -> Result<Network, Error> {
    if !is_flannel(network) {
        return Ok(network.clone());
    }
    delegate_config(network, subnet_env(network).ok().as_ref())
}

/// The folder of reservations of `network`; `None` without address management.
pub(crate) fn reservations(network: &Network) -> Result<Option<Reservations>, Error> {
    reservations_beside(network, &Records::of(network)?)
}

/// The same for a network whose records are elsewhere than its own configuration says.
pub(crate) fn reservations_beside(
    network: &Network,
    records: &Records,
) -> Result<Option<Reservations>, Error> {
    let data_dir = cni_core::data_dir(network)?;
    Ok(data_dir.map(|data_dir| Reservations::of(Path::new(&data_dir).join(&network.name), records)))
}

/// Reads what flanneld wrote.
pub(crate) fn subnet_env(network: &Network) -> Result<SubnetEnv, Error> {
    let path = subnet_file(network)?;
    let text = fs::read_to_string(&path).map_err(|error| not_loaded(&path, &error))?;
    SubnetEnv::parse(&path, &text)
}

/// The reference's words, and flanneld's own where it left some.
fn not_loaded(path: &str, error: &io::Error) -> Error {
    let mut text = format!(
        "failed to load flannel 'subnet.env' file: open {path}: {}. Check the flannel pod log for this node.",
        failure::reason(error)
    );
    let status = fs::read_to_string(status_file(path)).ok();
    if let Some(reason) = status.and_then(|status| reason_in_status(&status)) {
        text.push_str(&format!(" flanneld says: {reason}"));
    }
    Error::new(Code::TryAgainLater, text)
}

/// The delegated configuration that the reference's flannel plugin left for a container.
pub(crate) struct Scratch {
    path: PathBuf,
    network: Option<Network>,
}

impl Scratch {
    /// That of the container of `call`; `None` where there is none, as for every container of ours.
    pub(crate) fn of(call: &Call) -> Result<Option<Self>, Error> {
        if !is_flannel(&call.network) {
            return Ok(None);
        }
        let path = Path::new(&scratch_dir(&call.network)?).join(&call.who.container);
        match fs::read(&path) {
            Ok(content) => {
                let network = Network::parse(&content).ok().filter(|n| n.name == call.network.name);
                Ok(Some(Self { path, network }))
            }
            Err(_) => Ok(None),
        }
    }

    /// What it says, unless it is garbled.
    pub(crate) fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    pub(crate) fn remove(&self) -> Result<(), Error> {
        remove(&self.path)
    }
}

/// Removes what the reference's flannel plugin left of `network` for containers that are not valid.
pub(crate) fn sweep_scratch(network: &Network, is_valid: impl Fn(&str) -> bool) -> Result<(), Error> {
    if !is_flannel(network) {
        return Ok(());
    }
    let folder = scratch_dir(network)?;
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        let delegated = fs::read(entry.path()).ok().and_then(|content| Network::parse(&content).ok());
        let is_its = delegated.is_some_and(|delegated| delegated.name == network.name);
        if is_its && !is_valid(&entry.file_name().to_string_lossy()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), Error> {
    failure::absent_is_done(path, fs::remove_file(path))
}

/// The network to detach from: what the reference delegated, else what the configuration says now.
pub(crate) fn to_detach(call: &Call, scratch: Option<&Scratch>) -> Result<Network, Error> {
    match scratch.and_then(Scratch::network) {
        Some(network) if network.kind == "bridge" => Ok(network.clone()),
        Some(network) => Err(foreign_delegate(&network.kind)),
        None => {
            let kind =
                if is_flannel(&call.network) { delegate_type(&call.network)? } else { "bridge".into() };
            if kind == "bridge" { lenient(&call.network) } else { Err(foreign_delegate(&kind)) }
        }
    }
}

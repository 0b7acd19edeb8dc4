//! From the configuration that came to the bridge network that is meant.

use std::{
    fs, io,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use cni_core::{
    Arguments, Attachment, Code, Error, Network, Outcome, SubnetEnv, delegate_config, reason_in_status,
    status_file, subnet_file,
};
use netmodel::Subnet;

use crate::{failure, records::Records, reservations::Reservations};

/// How long ADD waits for `subnet.env`.
const START_TIME: Duration = Duration::from_secs(3);

/// A request about one container.
pub(crate) struct Call {
    /// Whose interface.
    pub(crate) who: Attachment,
    /// The container's namespace as the runtime named it.
    pub(crate) netns: Option<String>,
    /// It may be the plugin's own.
    pub(crate) own_netns: bool,
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

/// The network is described by flanneld.
pub(crate) fn is_flannel(network: &Network) -> bool {
    network.kind == "flannel"
}

/// The bridge network that `network` stands for on this node, and the networks that `flanneld` leases
/// its subnets from.
pub(crate) fn complete(network: &Network) -> Result<(Network, Vec<Subnet>), Error> {
    if !is_flannel(network) {
        return Ok((network.clone(), Vec::new()));
    }
    let env = subnet_env(&subnet_file(network)?)?;
    Ok((delegate_config(network, Some(&env))?, env.networks))
}

/// The same for ADD, which gives flanneld a few seconds to start.
pub(crate) fn complete_soon(network: &Network) -> Result<(Network, Vec<Subnet>), Error> {
    let start = Instant::now();
    loop {
        match complete(network) {
            Err(e) if e.code == Code::TryAgainLater && start.elapsed() < START_TIME => sleep(START_TIME / 60),
            other => return other,
        }
    }
}

/// The same for CHECK, which has to work without `subnet.env`: what was delegated shows in what is left of it.
pub(crate) fn as_made(call: &Call) -> Result<Network, Error> {
    let network = &call.network;
    if !is_flannel(network) {
        return Ok(network.clone());
    }
    let env = subnet_env(&subnet_file(network)?).or_else(|error| {
        let Some(previous) = network.previous().map(Outcome::parse).transpose()? else { return Err(error) };
        let record = Records::of(network)?.find(&call.who)?;
        let is_masqueraded = record.is_some_and(|record| record.before.masqueraded);
        SubnetEnv::of_result(&previous, call.who.ifname.as_str(), is_masqueraded).ok_or(error)
    })?;
    delegate_config(network, Some(&env))
}

/// The same for DEL and GC, which have to work without `subnet.env`: then there are no ranges.
pub(crate) fn lenient(network: &Network) -> Result<Network, Error> {
    if !is_flannel(network) {
        return Ok(network.clone());
    }
    delegate_config(network, subnet_env(&subnet_file(network)?).ok().as_ref())
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
pub(crate) fn subnet_env(path: &str) -> Result<SubnetEnv, Error> {
    let is_file = |about: fs::Metadata| about.is_file();
    // Reading from a pipe might never end.
    let text = match fs::metadata(path).map(is_file) {
        Ok(false) => Err(io::Error::other("it is no regular file")),
        _ => fs::read_to_string(path),
    };
    SubnetEnv::parse(path, &text.map_err(|error| not_loaded(path, &error))?)
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

//! `flanneld cleanup`: what flanneld made on this node goes, except its lease.

use std::fs;

use anyhow::Context;
use linux::{netlink::RouteSocket, route::Filter};
use netmodel::{IfName, ROUTE_PROTOCOL, Subnet};
use overlay_core::masquerade::Wishes;

use crate::{
    commands::{need_privilege, print},
    firewall::Firewall,
    flags::Settings,
    linux::remove_device,
    lock,
    status::{self, Earlier, Status},
};

/// What is wanted of rules.
const NO_RULES: Wishes = Wishes { masquerade: false, at_random: false, forward: false };

/// Removes what flanneld made on this node, except its lease: device, routes, rules, and then the files that
/// tell of them.
///
/// # Errors
/// flanneld still runs, or the kernel refused something: the rest was removed, and the files stay for the
/// next attempt.
pub fn run(settings: &Settings) -> anyhow::Result<()> {
    need_privilege()?;
    let _lock = lock::subnet_file(&settings.subnet_file)?;
    let status_file = status::path(&settings.subnet_file);
    let status = Status::read(&status_file).unwrap_or_default();
    let device = device_of(settings, &status)?;
    let _device_lock = lock::device(&device)?;
    let mut socket = RouteSocket::open()?;
    if status.node.device.is_none() && !is_ours(&device, &mut socket)? {
        let file = status_file.display();
        return print(&format!(
            "nothing is removed: {file} names no device, and no rule or route shows that {device} is flanneld's\n"
        ));
    }
    let network = status.node.network.as_deref().and_then(|network| network.parse().ok());
    let mut outcome = remove(&device, network, &mut socket);
    for (earlier, network) in status.node.earlier.iter().filter_map(Earlier::parse) {
        // Another flanneld may hold it.
        if let Ok(_lock) = lock::device(&earlier) {
            outcome = outcome.and(remove(&earlier, network, &mut socket));
        }
    }
    outcome?;
    for path in [&settings.subnet_file, &status_file] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("failed to remove {}", path.display()));
            }
            _ => {}
        }
    }
    let mut said = format!("removed what belongs to {device}\n");
    if let Some(subnet) = &status.node.subnet {
        said += &format!(
            "the lease of {subnet} stays until it ends: delete its key in etcd to free it at once\n"
        );
    }
    print(&said)
}

/// The device that flanneld said it holds, or flannel's default.
fn device_of(settings: &Settings, status: &Status) -> anyhow::Result<IfName> {
    let name = status.node.device.as_deref().unwrap_or("flannel.1");
    name.parse()
        .with_context(|| format!("failed to read the status beside {}", settings.subnet_file.display()))
}

/// Rules for the device, or routes through it, show that it is not flannel's.
fn is_ours(device: &IfName, socket: &mut RouteSocket) -> anyhow::Result<bool> {
    match Firewall::open(NO_RULES).and_then(|mut firewall| firewall.is_there(device)) {
        Err(error) if !error.is_unsupported() => return Err(error.into()),
        Ok(true) => return Ok(true),
        _ => {}
    }
    let Some(link) = socket.link(device)? else { return Ok(false) };
    let ours = Filter { protocol: Some(ROUTE_PROTOCOL), device: Some(link.index), ..Filter::main(true) };
    Ok(!socket.routes(ours)?.is_empty())
}

/// Removes rules, routes and the device, each whatever becomes of the others.
fn remove(device: &IfName, network: Option<Subnet>, socket: &mut RouteSocket) -> Result<(), linux::Error> {
    let rules = Firewall::open(NO_RULES).and_then(|mut firewall| firewall.cleanup(device));
    let rest = remove_device(device, network, socket);
    match rules {
        Err(error) if !error.is_unsupported() => Err(error),
        _ => rest,
    }
}

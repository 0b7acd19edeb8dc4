//! Settings of a container's interface and of its namespace, behind an interface plugin.
//!
//! What the interface was before is written down first, in the reference's file, and restored by DEL. Kernel
//! settings are not, as with the reference: they go with the namespace or with the interface.

use std::{
    fs, io,
    path::{Path, PathBuf},
    rc::Rc,
};

use cni_core::{Attachment, Backup, Code, Error, Interface, Network, Sysctl, Tuning, backup_dir};
use linux::{
    link::{self, Change, Link},
    netlink::RouteSocket,
    netns::Netns,
    sysctl,
};
use netmodel::Mtu;

use crate::{
    failure::{self, kernel},
    files, links,
    networks::Call,
    plugin::{Plugin, nothing_to_do},
    pod,
    undo::Undo,
};

/// The plugin `tuning`.
pub(crate) const PLUGIN: Plugin = Plugin { add, del, check, gc, status: nothing_to_do };

/// Where an administrator says which kernel settings may be set.
const ALLOW_LIST: &str = "/etc/cni/tuning/allowlist.conf";

fn add(call: &Call) -> Result<String, Error> {
    let mut interfaces = call.network.chained()?.interfaces;
    let wanted = Tuning::parse(&call.network, &call.args, &call.who.ifname)?;
    allowed(&wanted)?;
    let netns = Rc::new(pod::open(call)?);
    let mut undo = Undo::new(None);
    set_sysctls(&netns, &wanted.sysctls, &mut undo)?;
    if wanted.is_about_the_link() {
        set_link(call, &netns, &wanted, &mut undo)?;
    }
    let is_it = |i: &&mut Interface| i.name == call.who.ifname.as_str() && !i.sandbox.is_empty();
    for interface in interfaces.iter_mut().filter(is_it) {
        interface.mac = wanted.mac.map_or(interface.mac.clone(), |mac| mac.to_string());
        interface.mtu = wanted.mtu.map_or(interface.mtu, |mtu| mtu.get().into());
    }
    let text = call.network.pass_on_with(&interfaces)?;
    undo.keep();
    Ok(text)
}

fn allowed(wanted: &Tuning) -> Result<(), Error> {
    match fs::read_to_string(ALLOW_LIST) {
        Ok(list) => wanted.allowed_by(&list),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failure::file("read", Path::new(ALLOW_LIST), &e)),
    }
}

/// Sets them in order until one is refused.
fn set_sysctls(netns: &Rc<Netns>, wanted: &[Sysctl], undo: &mut Undo<'_>) -> Result<(), Error> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut before = Vec::new();
    let done = netns.enter(|| {
        wanted.iter().try_for_each(|one| {
            let path = parts(&one.path);
            // One that can't be read, such as a trigger, has no state to go back to.
            before.extend(sysctl::read(&path).map(|value| (one.path.clone(), value)));
            sysctl::write(&path, &one.value)
        })
    });
    let netns = Rc::clone(netns);
    undo.push(move || {
        let back = || before.iter().rev().try_for_each(|(path, value)| sysctl::write(&parts(path), value));
        netns.enter(back).and_then(|done| done).map_err(|e| kernel(&e))
    });
    done.and_then(|done| done).map_err(|e| kernel(&e))
}

fn parts(path: &[String]) -> Vec<&str> {
    path.iter().map(String::as_str).collect()
}

fn set_link(call: &Call, netns: &Rc<Netns>, wanted: &Tuning, undo: &mut Undo<'_>) -> Result<(), Error> {
    let (mut socket, link) = find(call, netns)?;
    let link = link.ok_or_else(|| Error::new(Code::Internal, no_interface(call)))?;
    let before = Backup {
        mac: wanted.mac.and(link.mac).map(|mac| mac.to_string()),
        promisc: wanted.promiscuous.map(|_| link.promiscuous),
        mtu: wanted.mtu.map(|_| link.mtu.into()),
        allmulti: wanted.all_multicast.map(|_| link.all_multicast),
        queue_length: wanted.queue_length.map(|_| link.queue_length),
        network: Some(call.who.network.clone()),
    };
    let path = backup_path(call)?;
    // What an earlier ADD found is older than what this one finds.
    let earlier = fs::read(&path).ok().and_then(|content| Backup::parse(&content));
    let kept = before.clone().behind(earlier.clone().unwrap_or_default());
    if earlier.as_ref() != Some(&kept) {
        keep(&path, &kept)?;
        undo.push(move || match earlier {
            Some(earlier) => keep(&path, &earlier),
            None => failure::absent_is_done(&path, fs::remove_file(&path)),
        });
    }
    // The request may be carried out in part.
    let (netns, name, index) = (Rc::clone(netns), link.name.clone(), link.index);
    undo.push(move || {
        let again =
            |mut socket: RouteSocket| socket.request(&link::change(index, &name, &as_before(&before)));
        RouteSocket::open_in(&netns).and_then(again).map_err(|e| kernel(&e))
    });
    let change = Change {
        mac: wanted.mac,
        mtu: wanted.mtu,
        promiscuous: wanted.promiscuous,
        all_multicast: wanted.all_multicast,
        queue_length: wanted.queue_length,
        ..Change::default()
    };
    socket.request(&link::change(link.index, &link.name, &change)).map_err(|e| kernel(&e))
}

fn find(call: &Call, netns: &Netns) -> Result<(RouteSocket, Option<Link>), Error> {
    let mut socket = RouteSocket::open_in(netns).map_err(|e| kernel(&e))?;
    let link = socket.link(&call.who.ifname).map_err(|e| kernel(&e))?;
    Ok((socket, link))
}

fn no_interface(call: &Call) -> String {
    format!("interface {} does not exist in {}", call.who.ifname, call.netns.as_deref().unwrap_or_default())
}

fn as_before(backup: &Backup) -> Change<'_> {
    Change {
        mac: backup.mac.as_ref().and_then(|mac| mac.parse().ok()),
        mtu: backup.mtu.and_then(|mtu| Mtu::try_from(mtu).ok()),
        promiscuous: backup.promisc,
        all_multicast: backup.allmulti,
        queue_length: backup.queue_length,
        ..Change::default()
    }
}

fn backup_path(call: &Call) -> Result<PathBuf, Error> {
    Ok(Path::new(backup_dir(&call.network)?).join(backup_name(&call.who)))
}

fn backup_name(who: &Attachment) -> String {
    format!("{}_{}.json", who.container, who.ifname)
}

/// Writes the file, whole or not at all.
fn keep(path: &Path, backup: &Backup) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder)
        .and_then(|()| files::replace_whole(folder, path, &backup.to_json()))
        .map_err(|e| failure::file("write", path, &e))
}

/// Restores the interface, where there is one. A file that is garbled, as old plugins leave it, says nothing.
fn del(call: &Call) -> Result<(), Error> {
    let path = backup_path(call)?;
    let content = match fs::read(&path) {
        // Of a container with a name that is too long ADD could keep nothing.
        Err(e) if [io::ErrorKind::NotFound, io::ErrorKind::InvalidFilename].contains(&e.kind()) => {
            return Ok(());
        }
        content => content.map_err(|e| failure::file("read", &path, &e))?,
    };
    let restored = match (Backup::parse(&content), pod::open_if_there(call)) {
        (Some(backup), Some(netns)) => restore(call, &netns, &backup),
        _ => Ok(()),
    };
    // Also after a failure, so that a second DEL succeeds.
    failure::absent_is_done(&path, fs::remove_file(&path)).and(restored)
}

fn restore(call: &Call, netns: &Netns, backup: &Backup) -> Result<(), Error> {
    let (mut socket, link) = find(call, netns)?;
    let Some(link) = link else { return Ok(()) };
    let mut host = RouteSocket::open().map_err(|e| kernel(&e))?;
    if links::is_anothers(&mut host, &link, &call.who) {
        return Ok(());
    }
    let restored = socket.request(&link::change(link.index, &link.name, &as_before(backup)));
    restored.map_err(|e| kernel(&e))
}

fn check(call: &Call) -> Result<(), Error> {
    call.network.chained()?;
    let wanted = Tuning::parse(&call.network, &call.args, &call.who.ifname)?;
    let netns = pod::open(call)?;
    let mut settings = Vec::new();
    if wanted.is_about_the_link() {
        let link = find(call, &netns)?.1.ok_or_else(|| Error::new(Code::Internal, no_interface(call)))?;
        settings = of_link(&wanted, &link);
    }
    let read = |one: &Sysctl| sysctl::read(&parts(&one.path)).unwrap_or_else(|e| kernel(&e).msg);
    let found: Result<Vec<String>, _> = netns.enter(|| wanted.sysctls.iter().map(read).collect());
    for (one, found) in wanted.sysctls.iter().zip(found.map_err(|e| kernel(&e))?) {
        settings.push((format!("value of {}", one.path.join("/")), one.value.clone(), found));
    }
    // The kernel separates numbers by tabs.
    let differs = |(_, wanted, found): &(String, String, String)| {
        !wanted.split_whitespace().eq(found.split_whitespace())
    };
    let text =
        |(what, wanted, found)| format!("Tuning configured {what} is {wanted}, current value is {found}");
    let wrong: Vec<String> = settings.into_iter().filter(differs).map(text).collect();
    if wrong.is_empty() { Ok(()) } else { Err(Error::new(Code::Internal, wrong.join("; "))) }
}

/// What is set of the interface: its name, how it should be, how it is.
fn of_link(wanted: &Tuning, link: &Link) -> Vec<(String, String, String)> {
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    let all = [
        ("Ethernet", wanted.mac.map(|mac| mac.to_string()), mac),
        ("MTU", wanted.mtu.map(|mtu| mtu.to_string()), link.mtu.to_string()),
        ("promisc", wanted.promiscuous.map(|on| on.to_string()), link.promiscuous.to_string()),
        ("allmulti", wanted.all_multicast.map(|on| on.to_string()), link.all_multicast.to_string()),
        ("txQLen", wanted.queue_length.map(|length| length.to_string()), link.queue_length.to_string()),
    ];
    let set = all.into_iter().filter_map(|(what, wanted, found)| {
        wanted.map(|wanted| (format!("{what} of {}", link.name), wanted, found))
    });
    set.collect()
}

/// Removes what was written down for attachments of this network that are not valid.
fn gc(network: &Network) -> Result<(), Error> {
    let Some(valid) = network.valid_attachments()? else { return Ok(()) };
    let keep: Vec<String> = valid.iter().map(backup_name).collect();
    let is_its = |path: &Path| {
        let backup = fs::read(path).ok().and_then(|content| Backup::parse(&content));
        backup.is_some_and(|backup| backup.network.as_ref() == Some(&network.name))
    };
    let mut outcome = Ok(());
    for entry in fs::read_dir(backup_dir(network)?).into_iter().flatten().flatten() {
        let is_valid = keep.iter().any(|name| *name == entry.file_name().to_string_lossy());
        if !is_valid && is_its(&entry.path()) {
            let removed = failure::absent_is_done(&entry.path(), fs::remove_file(entry.path()));
            outcome = outcome.and(removed);
        }
    }
    outcome
}

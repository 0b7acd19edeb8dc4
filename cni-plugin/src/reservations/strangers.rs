//! What other plugins reserved in the same folder, such as the reference's `host-local`: a container has one address
//! of a set, whoever gave it.
//!
//! Of ours there are records, by the container's name. Theirs say only inside whose they are, and nobody wants to look
//! into every file each time. They are listed once, and again when another plugin has reserved something since: then
//! it has written the file that names the last address, to which we give a time of our own.

use std::{
    fs::{self, File},
    io,
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cni_core::{Error, RangeSet, owner_of};

use super::{Wish, addresses, is_held};
use crate::records::make_folder;

/// Among more reservations nobody is looked for: the time would grow with their number.
const MOST: usize = 1000;

/// The nanoseconds of our time, which another plugin's write has once in 10^9 times.
const SIGNATURE: u32 = 154_154_154;

/// The address of `set` in `folder` that another plugin reserved for whom an address is wished now; `marker` names
/// the last one that was reserved. To be called while the reservations are locked.
pub(super) fn find(
    folder: &Path,
    marker: &Path,
    set: &RangeSet,
    wish: Wish<'_>,
) -> Result<Option<IpAddr>, Error> {
    let path = wish.records.beside("strangers");
    let known = fs::read_to_string(&path).ok().filter(|_| is_signed(marker));
    let listed = match known {
        Some(listed) => listed,
        None => list(folder, &path, wish)?,
    };
    let pairs = listed.lines().filter_map(|line| line.split_once(' '));
    let mut its = pairs.filter(|(_, container)| *container == wish.who.container);
    let own = wish.record.before.pods();
    let is_it = |ip: &IpAddr| {
        let is_anothers = set.range_of(*ip).is_some() && !own.iter().any(|pod| pod.address == *ip);
        is_anothers && is_held(folder, *ip, wish.who)
    };
    Ok(its.find_map(|(ip, _)| ip.parse().ok().filter(is_it)))
}

/// Gives the file that names the last address our time: that address is one of ours.
pub(super) fn sign(marker: &File) -> io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    marker.set_modified(UNIX_EPOCH + Duration::new(now.as_secs(), SIGNATURE))
}

fn is_signed(marker: &Path) -> bool {
    let changed = fs::metadata(marker).and_then(|about| about.modified());
    let since = changed.ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    since.is_some_and(|since| since.subsec_nanos() == SIGNATURE)
}

/// Lists what has no record, and what is of whom an address is wished, as lines `<address> <container>`, and keeps
/// that at `path` where it can be kept.
fn list(folder: &Path, path: &Path, wish: Wish<'_>) -> Result<String, Error> {
    let all = addresses(folder)?;
    let is_few = all.len() <= MOST;
    let mut text = String::new();
    for ip in all.into_iter().filter(|_| is_few) {
        let content = fs::read(folder.join(ip.to_string())).unwrap_or_default();
        let is_ours = wish.records.know(&content) && !wish.who.owns(&content);
        if let Some(owner) = owner_of(&content).filter(|_| !is_ours) {
            text.push_str(&format!("{ip} {}\n", owner.container));
        }
    }
    let kept = path.parent().map_or(Ok(()), make_folder).is_ok_and(|()| fs::write(path, &text).is_ok());
    if !kept {
        // Half of it would be taken for all. Without it the next one lists again.
        let _ = fs::remove_file(path);
    }
    Ok(text)
}

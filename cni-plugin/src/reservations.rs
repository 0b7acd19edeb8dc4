//! Reserved addresses, in the reference's own format: one file per address that names its owner.
//!
//! A file comes into being complete, so that a crash leaves either nothing or a whole reservation.
//! No call but DEL of something that the index does not know, GC and STATUS looks at more files than
//! its own.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    net::IpAddr,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use cni_core::{Attachment, Chosen, Code, Error, HostAddress, Range, RangeSet, owner_of};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};

use crate::{
    failure,
    index::{Entry, Index},
    lock,
};

/// The reservations of one network.
pub(crate) struct Reservations {
    folder: PathBuf,
}

/// The reservations while nobody else changes them.
pub(crate) struct Locked<'a> {
    folder: &'a Path,
    index: Index,
    _lock: File,
}

/// For whom an address is reserved, and how.
#[derive(Clone, Copy)]
pub(crate) struct Wish<'a> {
    /// Whose it will be.
    pub(crate) who: &'a Attachment,
    /// Addresses that were asked for.
    pub(crate) requested: &'a [IpAddr],
    /// It will be masqueraded.
    pub(crate) masquerade: bool,
}

/// A reservation that was made, or that an ADD which was cut short had made.
pub(crate) struct Reserved {
    /// The address.
    pub(crate) chosen: Chosen,
    /// It was made now.
    pub(crate) is_new: bool,
}

impl Reservations {
    /// Those of `network` below `data_dir`; the folder need not exist.
    pub(crate) fn of(data_dir: &str, network: &str) -> Self {
        Self { folder: Path::new(data_dir).join(network) }
    }

    /// Whether anything was ever reserved.
    pub(crate) fn exist(&self) -> bool {
        self.folder.is_dir()
    }

    /// Locks them, making the folder where it is missing.
    pub(crate) fn lock(&self, patience: Duration) -> Result<Locked<'_>, Error> {
        if !self.exist() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&self.folder)
                .map_err(|e| failure::file("create", &self.folder, &e))?;
        }
        let lock = lock::take(&self.folder.join("lock"), patience)?;
        Ok(Locked { folder: &self.folder, index: Index::beside(&self.folder), _lock: lock })
    }

    /// `who` holds `address`.
    pub(crate) fn is_held(&self, address: IpAddr, who: &Attachment) -> bool {
        is_held(&self.folder, address, who)
    }

    /// Every address with the content of its file.
    pub(crate) fn all(&self) -> Result<Vec<(IpAddr, Vec<u8>)>, Error> {
        let addresses = self.addresses()?;
        let read = |ip: IpAddr| fs::read(self.folder.join(ip.to_string())).ok().map(|content| (ip, content));
        Ok(addresses.into_iter().filter_map(read).collect())
    }

    /// Every address that somebody holds.
    pub(crate) fn taken(&self) -> Result<Vec<IpAddr>, Error> {
        let named = |(ip, content): (IpAddr, Vec<u8>)| owner_of(&content).is_some().then_some(ip);
        Ok(self.all()?.into_iter().filter_map(named).collect())
    }

    /// Every address that has a file.
    fn addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let failed = |e: io::Error| failure::file("list", &self.folder, &e);
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            found.extend(name.to_str().and_then(|n| n.parse::<IpAddr>().ok()));
        }
        Ok(found)
    }

    /// What the index says that `who` was given.
    pub(crate) fn noted(&self, who: &Attachment) -> Vec<Entry> {
        Index::beside(&self.folder).all(who)
    }

    /// The addresses that `who` holds. All files are read where the index knows nothing: for what other
    /// plugins reserved.
    pub(crate) fn held(&self, who: &Attachment) -> Result<Vec<IpAddr>, Error> {
        let noted = self.noted(who);
        if noted.is_empty() {
            let all = self.all()?.into_iter();
            return Ok(all.filter(|(_, content)| who.owns(content)).map(|(ip, _)| ip).collect());
        }
        let noted = noted.iter().map(|entry| entry.pod.address);
        Ok(noted.filter(|ip| self.is_held(*ip, who)).collect())
    }

    /// Releases what `who` holds. `candidates` are addresses that it may have besides those of the
    /// index. All files are read where the index knows nothing: for what other plugins reserved.
    pub(crate) fn release(&self, who: &Attachment, candidates: &[IpAddr]) -> Result<(), Error> {
        if !self.exist() {
            return Ok(());
        }
        let mut addresses: Vec<IpAddr> = self.noted(who).iter().map(|entry| entry.pod.address).collect();
        if addresses.is_empty() {
            let all = self.all()?.into_iter();
            addresses.extend(all.filter(|(_, content)| who.owns(content)).map(|(ip, _)| ip));
        }
        addresses.extend(candidates);
        self.release_these(who, &addresses, lock::PATIENCE)
    }

    /// Releases those of `addresses` that `who` holds, or that nobody holds.
    pub(crate) fn release_these(
        &self,
        who: &Attachment,
        addresses: &[IpAddr],
        patience: Duration,
    ) -> Result<(), Error> {
        if addresses.is_empty() {
            return Ok(());
        }
        let locked = self.lock(patience)?;
        let is_free = |content: &[u8]| who.owns(content) || owner_of(content).is_none();
        addresses.iter().try_for_each(|ip| locked.release_if(*ip, is_free))?;
        // DEL has to know of what is left.
        let is_left = self.noted(who).iter().any(|entry| self.is_held(entry.pod.address, who));
        if is_left { Ok(()) } else { locked.index.forget(who) }
    }
}

impl Locked<'_> {
    /// Reserves one address of set number `number`: the one that there is already for whom it is, the
    /// first of those asked for that lies in the set, or else the next free one.
    pub(crate) fn reserve(&self, number: usize, set: &RangeSet, wish: Wish<'_>) -> Result<Reserved, Error> {
        let asked = wish.requested.iter().find_map(|ip| set.range_of(*ip).map(|range| (*ip, range)));
        if let Some(entry) = self.index.get(wish.who, number)
            && self.is_held(entry.pod.address, wish.who)
        {
            let before = entry.pod.address;
            // What was begun has to be ended, even if it is no longer wanted.
            let wish = Wish { masquerade: wish.masquerade || entry.masqueraded, ..wish };
            let fits = asked.is_none_or(|(asked, _)| asked == before);
            if let Some(range) = set.range_of(before).filter(|_| fits) {
                self.note(before, range, number, wish)?;
                return Ok(Reserved { chosen: choose(before, range), is_new: false });
            }
            self.release_if(before, |content| wish.who.owns(content))?;
        }
        let (ip, range) = match asked {
            Some((ip, range)) => {
                self.reserve_requested(ip, range, number, wish)?;
                (ip, range)
            }
            None => self.reserve_next(number, set, wish)?,
        };
        Ok(Reserved { chosen: choose(ip, range), is_new: true })
    }

    fn reserve_requested(
        &self,
        ip: IpAddr,
        range: &Range,
        number: usize,
        wish: Wish<'_>,
    ) -> Result<(), Error> {
        let refused = |text: String| Err(Error::new(Code::Internal, text));
        if ip == range.gateway {
            return refused(format!("requested ip {ip} is subnet's gateway"));
        }
        if self.try_reserve(ip, range, number, wish)? {
            return Ok(());
        }
        refused(format!("requested IP address {ip} is not available in range set {range}"))
    }

    fn reserve_next<'s>(
        &self,
        number: usize,
        set: &'s RangeSet,
        wish: Wish<'_>,
    ) -> Result<(IpAddr, &'s Range), Error> {
        let marker = self.folder.join(format!("last_reserved_ip.{number}"));
        let last = fs::read_to_string(&marker).ok().and_then(|text| text.trim().parse().ok());
        for (ip, range) in set.candidates(last) {
            if self.try_reserve(ip, range, number, wish)? {
                self.remember(&marker, ip)?;
                return Ok((ip, range));
            }
        }
        Err(Error::new(Code::Internal, format!("no IP addresses available in range set: {set}")))
    }

    /// Reserves `ip` if it is free; a file that names nobody counts as free.
    fn try_reserve(&self, ip: IpAddr, range: &Range, number: usize, wish: Wish<'_>) -> Result<bool, Error> {
        let path = self.folder.join(ip.to_string());
        match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Ok(content) if owner_of(&content).is_none() => remove(&path)?,
            _ => return Ok(false),
        }
        self.note(ip, range, number, wish)?;
        create_whole(self.folder, &path, &wish.who.reservation())
    }

    fn note(&self, address: IpAddr, range: &Range, number: usize, wish: Wish<'_>) -> Result<(), Error> {
        let pod = HostAddress { address, prefix: range.subnet.prefix() };
        self.index.put(wish.who, number, Entry { pod, masqueraded: wish.masquerade })
    }

    fn is_held(&self, ip: IpAddr, who: &Attachment) -> bool {
        is_held(self.folder, ip, who)
    }

    fn remember(&self, marker: &Path, ip: IpAddr) -> Result<(), Error> {
        let write = || {
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(false).mode(0o600).open(marker)?;
            let text = ip.to_string();
            file.write_all(text.as_bytes())?;
            file.set_len(text.len() as u64)
        };
        write().map_err(|e| failure::file("write", marker, &e))
    }

    /// Forgets where the addresses of all but `valid` are.
    pub(crate) fn keep(&self, valid: &[Attachment]) -> Result<(), Error> {
        self.index.keep(valid)
    }

    /// Removes the reservation of `ip` if `doomed` says so of its content.
    pub(crate) fn release_if(&self, ip: IpAddr, doomed: impl Fn(&[u8]) -> bool) -> Result<(), Error> {
        let path = self.folder.join(ip.to_string());
        match fs::read(&path) {
            Ok(content) if doomed(&content) => remove(&path),
            _ => Ok(()),
        }
    }
}

fn is_held(folder: &Path, address: IpAddr, who: &Attachment) -> bool {
    fs::read(folder.join(address.to_string())).is_ok_and(|content| who.owns(&content))
}

fn choose(address: IpAddr, range: &Range) -> Chosen {
    Chosen { address, prefix: range.subnet.prefix(), gateway: Some(range.gateway) }
}

fn remove(path: &Path) -> Result<(), Error> {
    failure::absent_is_done(path, fs::remove_file(path))
}

/// Makes `path` with `content` in one step; false if it exists.
fn create_whole(folder: &Path, path: &Path, content: &str) -> Result<bool, Error> {
    let made = match nameless(folder, content) {
        Ok(file) => link(&file, path),
        // A file system without nameless files (old overlayfs): the reference's way.
        Err(_) => create_new(path, content),
    };
    match made {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(failure::file("create", path, &e)),
    }
}

/// A file without a name, which vanishes with this process unless it gets one.
fn nameless(folder: &Path, content: &str) -> io::Result<File> {
    let fd = open(folder, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from_raw_mode(0o600))?;
    let mut file = File::from(fd);
    file.write_all(content.as_bytes())?;
    Ok(file)
}

fn link(file: &File, path: &Path) -> io::Result<()> {
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, from, CWD, path, AtFlags::SYMLINK_FOLLOW).map_err(io::Error::from)
}

fn create_new(path: &Path, content: &str) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(content.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, thread};

    use testkit::TempDir;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn who(id: usize) -> Attachment {
        let (container, ifname) = (format!("c{id}"), "eth0".parse().expect("a name"));
        Attachment { network: "n".into(), container, ifname }
    }

    fn set(subnet: &str) -> RangeSet {
        let document = format!(
            r#"{{"cniVersion":"1.0.0","name":"n","type":"bridge","ipam":{{"type":"host-local","subnet":"{subnet}"}}}}"#
        );
        let network = cni_core::Network::parse(document.as_bytes()).expect("a network");
        let ipam = cni_core::Ipam::parse(&network, &cni_core::Arguments::default()).expect("valid");
        ipam.expect("addresses").sets.remove(0)
    }

    fn of(dir: &TempDir) -> Reservations {
        Reservations::of(&dir.path().display().to_string(), "n")
    }

    fn reserve(all: &Reservations, set: &RangeSet, id: usize) -> Result<IpAddr, Error> {
        let wish = Wish { who: &who(id), requested: &[], masquerade: false };
        all.lock(PATIENCE)?.reserve(0, set, wish).map(|reserved| reserved.chosen.address)
    }

    fn files(dir: &TempDir) -> BTreeSet<String> {
        let names = fs::read_dir(dir.path().join("n")).expect("a folder").flatten();
        names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn many_at_once_never_share_an_address() {
        let (dir, set) = (TempDir::new("reserve").expect("a folder"), set("10.1.0.0/24"));
        let given = thread::scope(|scope| {
            let lane = |lane: usize| {
                let (dir, set) = (&dir, &set);
                scope.spawn(move || {
                    let all = of(dir);
                    (0..20).map(|i| reserve(&all, set, lane * 20 + i).expect("free")).collect::<Vec<_>>()
                })
            };
            let lanes: Vec<_> = (0..8).map(lane).collect();
            lanes.into_iter().flat_map(|lane| lane.join().expect("no panic")).collect::<BTreeSet<_>>()
        });
        assert_eq!(given.len(), 160);
        let all = of(&dir);
        (0..160).for_each(|id| all.release(&who(id), &[]).expect("released"));
        let left = ["last_reserved_ip.0", "lock"].map(str::to_owned);
        assert_eq!(files(&dir), left.into(), "the index goes with its last entry");
    }

    #[test]
    fn an_address_comes_back_last() {
        let (dir, set) = (TempDir::new("round").expect("a folder"), set("10.1.0.0/29"));
        let all = of(&dir);
        let first = reserve(&all, &set, 1).expect("free");
        all.release(&who(1), &[]).expect("released");
        let others: Vec<IpAddr> = (2..6).map(|id| reserve(&all, &set, id).expect("free")).collect();
        assert!(!others.contains(&first), "{first} in {others:?}");
        assert_eq!(reserve(&all, &set, 6), Ok(first));
        let text = reserve(&all, &set, 7).expect_err("full").msg;
        assert_eq!(text, "no IP addresses available in range set: 10.1.0.1-10.1.0.6");
        assert_eq!(all.taken().expect("a list").len(), 5);
    }

    #[test]
    fn what_names_nobody_is_free_and_a_stale_index_harms_nobody() {
        let (dir, set) = (TempDir::new("stale").expect("a folder"), set("10.1.0.0/30"));
        dir.write("n/10.1.0.2", "\0\0").expect("written");
        let (all, ip) = (of(&dir), "10.1.0.2".parse().expect("an address"));
        assert_eq!(reserve(&all, &set, 1), Ok(ip));
        // Somebody else's plugin gave the address away and knows no index.
        dir.write("n/10.1.0.2", who(2).reservation()).expect("written");
        all.release(&who(1), &[ip]).expect("released");
        assert!(all.is_held(ip, &who(2)) && !files(&dir).contains(".weft"));
        all.release(&who(2), &[]).expect("released");
        assert!(all.taken().expect("a list").is_empty());
    }

    #[test]
    fn what_is_noted_stays_while_one_of_the_addresses_is_held() {
        let dir = TempDir::new("noted").expect("a folder");
        let (all, who) = (of(&dir), who(1));
        let reserve = |number: usize, subnet: &str| {
            let wish = Wish { who: &who, requested: &[], masquerade: true };
            all.lock(PATIENCE)?.reserve(number, &set(subnet), wish).map(|reserved| reserved.chosen.address)
        };
        let first = reserve(0, "10.1.0.0/24").expect("free");
        let second = reserve(1, "10.2.0.0/24").expect("free");
        all.release_these(&who, &[second], PATIENCE).expect("released");
        assert!(all.noted(&who).iter().any(|entry| entry.pod.address == first && entry.masqueraded));
        all.release_these(&who, &[first], PATIENCE).expect("released");
        assert!(all.noted(&who).is_empty() && !files(&dir).contains(".weft"));
    }

    #[test]
    fn without_nameless_files_a_reservation_is_made_in_two_steps() {
        let dir = TempDir::new("steps").expect("a folder");
        let path = dir.path().join("10.1.0.2");
        assert!(create_new(&path, "c1\r\neth0").is_ok());
        assert_eq!(fs::read(&path).expect("a file"), b"c1\r\neth0");
        assert!(create_new(&path, "c2").is_err_and(|e| e.kind() == io::ErrorKind::AlreadyExists));
    }
}

//! Reserved addresses, in the reference's own format: one file per address that names its owner.
//!
//! A file comes into being complete, so that a crash leaves either nothing or a whole reservation.
//! No call but DEL of something that has no record, GC and STATUS looks at more files than its own.

mod strangers;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    failure, files, lock,
    records::{Held, Records, make_folder},
    released::Released,
};
use cni_core::{Attachment, Chosen, Code, Error, HostAddress, Range, RangeSet, Record, Trace, owner_of};

/// How many taken addresses are looked at one by one before all are listed.
const MANY: usize = 64;

/// Which boot this is (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Its length: that of a UUID.
const BOOT_ID_LENGTH: usize = 36;

/// The file beside the reservations that says which boot they are of.
const OWN_BOOT: &str = ".boot_id";

/// The reservations of one network.
pub(crate) struct Reservations {
    folder: PathBuf,
    released: Released,
}

/// The reservations while nobody else changes them.
pub(crate) struct Locked<'a> {
    folder: &'a Path,
    released: &'a Released,
    _lock: File,
}

/// For whom an address is reserved, and how.
#[derive(Clone, Copy)]
pub(crate) struct Wish<'a> {
    /// Whose it will be.
    pub(crate) who: &'a Attachment,
    /// Addresses that were asked for.
    pub(crate) requested: &'a [IpAddr],
    /// Where it is noted, with the addresses that an ADD which was cut short had.
    pub(crate) record: &'a Held,
    /// All records of the network.
    pub(crate) records: &'a Records,
}

impl Reservations {
    /// Those in `folder`, which need not exist, of the network that has these records. A relative one begins where the
    /// runtime runs; DEL may be called from elsewhere.
    pub(crate) fn of(folder: PathBuf, records: &Records) -> Self {
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        Self { folder, released: Released::in_file(records.beside("released")) }
    }

    /// Where they are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether anything was ever reserved.
    pub(crate) fn exist(&self) -> bool {
        self.folder.is_dir()
    }

    /// Locks them, making the folder where it is missing.
    pub(crate) fn lock(&self, patience: Duration) -> Result<Locked<'_>, Error> {
        if !self.exist() {
            make_folder(&self.folder)?;
        }
        let lock = lock::take(&self.folder.join("lock"), patience)?;
        Ok(Locked { folder: &self.folder, released: &self.released, _lock: lock })
    }

    /// They are an earlier boot's: the next ADD frees what has no record.
    pub(crate) fn are_of_earlier_boot(&self) -> bool {
        let [known, now] = boots(&self.folder);
        !known.is_empty() && !now.is_empty() && known != now
    }

    /// `who` holds `address`.
    pub(crate) fn is_held(&self, address: IpAddr, who: &Attachment) -> bool {
        is_held(&self.folder, address, who)
    }

    /// Every address with the content of its file.
    pub(crate) fn all(&self) -> Result<Vec<(IpAddr, Vec<u8>)>, Error> {
        let addresses = addresses(&self.folder)?;
        let read = |ip: IpAddr| fs::read(self.folder.join(ip.to_string())).ok().map(|content| (ip, content));
        Ok(addresses.into_iter().filter_map(read).collect())
    }

    /// Every address that somebody holds.
    pub(crate) fn taken(&self) -> Result<Vec<IpAddr>, Error> {
        let named = |(ip, content): (IpAddr, Vec<u8>)| owner_of(&content).is_some().then_some(ip);
        Ok(self.all()?.into_iter().filter_map(named).collect())
    }

    /// The addresses that `who` holds, found by reading all files.
    pub(crate) fn held(&self, who: &Attachment) -> Result<Vec<IpAddr>, Error> {
        Ok(self.all()?.into_iter().filter(|(_, content)| who.owns(content)).map(|(ip, _)| ip).collect())
    }

    /// Releases those of `addresses` that `who` holds, or that nobody holds.
    pub(crate) fn release(
        &self,
        who: &Attachment,
        addresses: &[IpAddr],
        patience: Duration,
    ) -> Result<(), Error> {
        if addresses.is_empty() || !self.exist() {
            return Ok(());
        }
        let locked = self.lock(patience)?;
        let is_free = |content: &[u8]| who.owns(content) || owner_of(content).is_none();
        addresses.iter().try_for_each(|ip| locked.release_if(*ip, is_free))
    }

    /// Releases what a record tells.
    pub(crate) fn release_noted(&self, who: &Attachment, record: &Record) -> Result<(), Error> {
        let addresses: Vec<IpAddr> = record.pods().iter().map(|pod| pod.address).collect();
        self.release(who, &addresses, lock::patience())
    }
}

/// The boot that the reservations in `folder` are of, and the present one; empty where it is not known, also where
/// the file holds no identity.
fn boots(folder: &Path) -> [String; 2] {
    let is_identity = |text: &String| {
        text.len() == BOOT_ID_LENGTH && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
    };
    [folder.join(OWN_BOOT), BOOT_ID.into()].map(|path| {
        let text = fs::read_to_string(path).map(|text| text.trim_end().to_owned());
        text.ok().filter(is_identity).unwrap_or_default()
    })
}

impl Locked<'_> {
    /// Frees what an earlier boot left, where it is known that there was another one: every reservation that
    /// has no record.
    pub(crate) fn begin_boot(&self, records: &Records) -> Result<(), Error> {
        let [known, now] = boots(self.folder);
        if now.is_empty() || known == now {
            return Ok(());
        }
        if !known.is_empty() {
            for ip in addresses(self.folder)? {
                self.release_if(ip, |content| !records.know(content))?;
            }
        }
        let new = self.folder.join(".boot_id.new");
        let path = self.folder.join(OWN_BOOT);
        let stored = fs::write(&new, format!("{now}\n")).and_then(|()| fs::rename(&new, &path));
        stored.map_err(|e| {
            let _ = fs::remove_file(&new);
            failure::file("write", &path, &e)
        })
    }

    /// Reserves one address of set number `number`: the one that there is already for whom it is, the
    /// first of those asked for that lies in the set, or else the next free one.
    pub(crate) fn reserve(&self, number: usize, set: &RangeSet, wish: Wish<'_>) -> Result<Chosen, Error> {
        let asked = wish.requested.iter().find_map(|ip| set.range_of(*ip).map(|range| (*ip, range)));
        let before = wish.record.before.addresses.iter().filter(|(before, _)| *before == number);
        for ip in before.map(|(_, pod)| pod.address).filter(|ip| is_held(self.folder, *ip, wish.who)) {
            let fits = asked.is_none_or(|(asked, _)| asked == ip);
            if let Some(range) = set.range_of(ip).filter(|_| fits) {
                return Ok(choose(ip, range));
            }
        }
        if let Some(ip) = strangers::find(self.folder, &self.marker(number), set, wish)? {
            return Err(duplicate(ip, wish.who));
        }
        let (ip, range) = match asked {
            Some((ip, range)) => self.reserve_requested(ip, range, number, wish)?,
            None => self.reserve_next(number, set, wish)?,
        };
        Ok(choose(ip, range))
    }

    fn reserve_requested<'s>(
        &self,
        ip: IpAddr,
        range: &'s Range,
        number: usize,
        wish: Wish<'_>,
    ) -> Result<(IpAddr, &'s Range), Error> {
        let refused = |text: String| Err(Error::new(Code::Internal, text));
        if ip == range.gateway {
            return refused(format!("requested ip {ip} is subnet's gateway"));
        }
        if let Some(taken) = self.take(ip, range, number, wish)? {
            return Ok(taken);
        }
        refused(format!("requested IP address {ip} is not available in range set {range}"))
    }

    fn reserve_next<'s>(
        &self,
        number: usize,
        set: &'s RangeSet,
        wish: Wish<'_>,
    ) -> Result<(IpAddr, &'s Range), Error> {
        let last = fs::read_to_string(self.marker(number)).ok().and_then(|text| text.trim().parse().ok());
        let resting = self.released.resting();
        let (mut rested, mut named) = (Vec::new(), BTreeSet::new());
        for (tried, (ip, range)) in set.candidates(last).enumerate() {
            if tried == MANY {
                named = addresses(self.folder)?.into_iter().collect();
            }
            if let Some(since) = resting.get(&ip) {
                rested.push((*since, ip, range));
            } else if !named.contains(&ip)
                && let Some(taken) = self.take(ip, range, number, wish)?
            {
                return Ok(taken);
            }
        }
        // Nothing fresh: what has rested longest, and what has a file that names nobody.
        rested.sort_by_key(|(since, ..)| *since);
        let rested = rested.into_iter().map(|(_, ip, range)| (ip, range));
        let garbled = set.candidates(last).filter(|(ip, _)| named.contains(ip));
        for (ip, range) in rested.chain(garbled) {
            if let Some(taken) = self.take(ip, range, number, wish)? {
                return Ok(taken);
            }
        }
        Err(Error::new(Code::Internal, format!("no IP addresses available in range set: {set}")))
    }

    /// Reserves `ip` if it is free, as the last one of its set.
    fn take<'s>(
        &self,
        ip: IpAddr,
        range: &'s Range,
        number: usize,
        wish: Wish<'_>,
    ) -> Result<Option<(IpAddr, &'s Range)>, Error> {
        if !self.try_reserve(ip, range, number, wish)? {
            return Ok(None);
        }
        // Nobody would release what is not told.
        self.remember(&self.marker(number), ip)
            .inspect_err(|_| drop(self.release_if(ip, |content| wish.who.owns(content))))?;
        Ok(Some((ip, range)))
    }

    /// Reserves `ip` if it is free; so it is with a file that names nobody, unless a record does.
    fn try_reserve(&self, ip: IpAddr, range: &Range, number: usize, wish: Wish<'_>) -> Result<bool, Error> {
        let path = self.folder.join(ip.to_string());
        match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Ok(content) if owner_of(&content).is_none() && !wish.records.claim(ip, wish.who) => {
                remove(&path)?;
            }
            _ => return Ok(false),
        }
        let pod = HostAddress { address: ip, prefix: range.subnet.prefix() };
        wish.record.note(&[Trace::Address(number, pod)])?;
        files::create_whole(self.folder, &path, &wish.who.reservation())
            .map_err(|e| failure::file("create", &path, &e))
    }

    /// The file that names the address of set number `number` that was reserved last, by whichever plugin.
    fn marker(&self, number: usize) -> PathBuf {
        self.folder.join(format!("last_reserved_ip.{number}"))
    }

    fn remember(&self, marker: &Path, ip: IpAddr) -> Result<(), Error> {
        let write = || {
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(false).mode(0o600).open(marker)?;
            let text = ip.to_string();
            file.write_all(text.as_bytes())?;
            file.set_len(text.len() as u64)?;
            strangers::sign(&file)
        };
        write().map_err(|e| failure::file("write", marker, &e))
    }

    /// Removes the reservation of `ip` if `doomed` says so of its content.
    pub(crate) fn release_if(&self, ip: IpAddr, doomed: impl Fn(&[u8]) -> bool) -> Result<(), Error> {
        let path = self.folder.join(ip.to_string());
        match fs::read(&path) {
            Ok(content) if doomed(&content) => {
                self.released.add(ip);
                remove(&path)
            }
            _ => Ok(()),
        }
    }
}

/// The reference's words for who holds an address already.
pub(crate) fn duplicate(ip: IpAddr, who: &Attachment) -> Error {
    let text = format!("{ip} has been allocated to {}, duplicate allocation is not allowed", who.container);
    Error::new(Code::Internal, text)
}

/// Every address that has a file.
fn addresses(folder: &Path) -> Result<Vec<IpAddr>, Error> {
    let failed = |e: io::Error| failure::file("list", folder, &e);
    let entries = match fs::read_dir(folder) {
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

/// The file of `address` in `folder` names `who`.
fn is_held(folder: &Path, address: IpAddr, who: &Attachment) -> bool {
    fs::read(folder.join(address.to_string())).is_ok_and(|content| who.owns(&content))
}

fn choose(address: IpAddr, range: &Range) -> Chosen {
    Chosen { address, prefix: range.subnet.prefix(), gateway: Some(range.gateway) }
}

fn remove(path: &Path) -> Result<(), Error> {
    failure::absent_is_done(path, fs::remove_file(path))
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

    fn records(dir: &TempDir) -> Records {
        let state = dir.path().join("state");
        let text = format!(r#"{{"name":"n","type":"bridge","stateDir":"{}"}}"#, state.display());
        Records::of(&cni_core::Network::parse(text.as_bytes()).expect("a network")).expect("records")
    }

    fn of(dir: &TempDir) -> Reservations {
        Reservations::of(dir.path().join("n"), &records(dir))
    }

    fn reserve_for(dir: &TempDir, who: &Attachment, set: &RangeSet, ips: &[IpAddr]) -> Result<IpAddr, Error> {
        let (all, records) = (of(dir), records(dir));
        let record = records.take(who)?;
        let wish = Wish { who, requested: ips, record: &record, records: &records };
        let locked = all.lock(PATIENCE)?;
        locked.begin_boot(&records)?;
        locked.reserve(0, set, wish).map(|chosen| chosen.address)
    }

    fn reserve(dir: &TempDir, set: &RangeSet, id: usize) -> Result<IpAddr, Error> {
        reserve_for(dir, &who(id), set, &[])
    }

    fn release(dir: &TempDir, id: usize) {
        let (all, who) = (of(dir), who(id));
        let held = all.held(&who).expect("a list");
        all.release(&who, &held, PATIENCE).expect("released");
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
                    (0..20).map(|i| reserve(dir, set, lane * 20 + i).expect("free")).collect::<Vec<_>>()
                })
            };
            let lanes: Vec<_> = (0..8).map(lane).collect();
            lanes.into_iter().flat_map(|lane| lane.join().expect("no panic")).collect::<BTreeSet<_>>()
        });
        assert_eq!(given.len(), 160);
        (0..160).for_each(|id| release(&dir, id));
        let left = [".boot_id", "last_reserved_ip.0", "lock"].map(str::to_owned);
        assert_eq!(files(&dir), left.into());
    }

    #[test]
    fn an_address_comes_back_last() {
        let (dir, set) = (TempDir::new("round").expect("a folder"), set("10.1.0.0/29"));
        let first = reserve(&dir, &set, 1).expect("free");
        release(&dir, 1);
        let others: Vec<IpAddr> = (2..6).map(|id| reserve(&dir, &set, id).expect("free")).collect();
        assert!(!others.contains(&first), "{first} in {others:?}");
        assert_eq!(reserve(&dir, &set, 6), Ok(first));
        let text = reserve(&dir, &set, 7).expect_err("full").msg;
        assert_eq!(text, "no IP addresses available in range set: 10.1.0.1-10.1.0.6");
        assert_eq!(of(&dir).taken().expect("a list").len(), 5);
    }

    #[test]
    fn an_address_rests_unless_it_is_asked_for() {
        let (dir, set) = (TempDir::new("rest").expect("a folder"), set("10.1.0.0/29"));
        let all: Vec<IpAddr> = (0..4).map(|id| reserve(&dir, &set, id).expect("free")).collect();
        release(&dir, 0);
        // The last free one, behind which the first one would be next.
        reserve(&dir, &set, 4).expect("free");
        release(&dir, 2);
        dir.write("state/networks/n.released", format!("0 {}\n", all[2])).expect("written");
        of(&dir).released.add(all[0]);
        assert_eq!(reserve(&dir, &set, 5), Ok(all[2]), "the first one rests");
        assert_eq!(reserve_for(&dir, &who(6), &set, &all[..1]), Ok(all[0]));
        let last = fs::read_to_string(dir.path().join("n/last_reserved_ip.0")).expect("a file");
        assert_eq!(last, all[0].to_string());
    }

    #[test]
    fn what_names_nobody_is_free_unless_a_record_names_it() {
        let (dir, set) = (TempDir::new("stale").expect("a folder"), set("10.1.0.0/30"));
        dir.write("n/10.1.0.2", "\0\0").expect("written");
        let ip: IpAddr = "10.1.0.2".parse().expect("an address");
        assert_eq!(reserve(&dir, &set, 1), Ok(ip));
        dir.write("n/10.1.0.2", "").expect("written");
        assert!(reserve(&dir, &set, 2).is_err(), "it is the first one's");
        // Somebody else's plugin gave the address away and knows no records.
        dir.write("n/10.1.0.2", who(2).reservation()).expect("written");
        of(&dir).release(&who(1), &[ip], PATIENCE).expect("released");
        assert!(of(&dir).is_held(ip, &who(2)));
    }

    #[test]
    fn a_crowded_range_is_searched_by_its_list() {
        let (dir, set) = (TempDir::new("crowd").expect("a folder"), set("10.1.0.0/24"));
        for last in 2..=253 {
            dir.write(&format!("n/10.1.0.{last}"), "other").expect("written");
        }
        assert_eq!(reserve(&dir, &set, 1), Ok([10, 1, 0, 254].into()));
        dir.write("n/10.1.0.200", "").expect("written");
        assert_eq!(reserve(&dir, &set, 2), Ok([10, 1, 0, 200].into()));
    }

    #[test]
    fn what_can_not_be_kept_leaves_nothing_or_does_not_matter() {
        let (dir, set) = (TempDir::new("unkept").expect("a folder"), set("10.1.0.0/24"));
        // No file can be where a folder is.
        dir.write("state/networks/n.strangers/x", "").expect("written");
        assert!(reserve(&dir, &set, 1).is_ok());
        fs::remove_file(dir.path().join("n/.boot_id")).expect("removed");
        dir.write("n/.boot_id/x", "").expect("written");
        assert_eq!(reserve(&dir, &set, 2).map_err(|error| error.code), Err(Code::Io));
        assert!(!files(&dir).contains(".boot_id.new"), "{:?}", files(&dir));
    }

    #[test]
    fn another_boot_frees_what_has_no_record() {
        let (dir, set) = (TempDir::new("boot").expect("a folder"), set("10.1.0.0/24"));
        dir.write("n/10.1.0.77", "old\r\neth0").expect("written");
        let mine = reserve(&dir, &set, 1).expect("free");
        assert!(files(&dir).contains("10.1.0.77"), "nothing was known of the boot");
        let now = fs::read_to_string(dir.path().join("n/.boot_id")).expect("it is known now");
        for garbled in ["", "\0\0\0", "another\n", "00000000-0000-0000-0000"] {
            dir.write("n/.boot_id", garbled).expect("written");
            reserve(&dir, &set, 3).expect("free");
            assert!(files(&dir).contains("10.1.0.77"), "{garbled:?} is no boot");
            assert_eq!(fs::read_to_string(dir.path().join("n/.boot_id")).expect("a file"), now);
        }
        dir.write("n/.boot_id", "00000000-0000-0000-0000-000000000000\n").expect("written");
        reserve(&dir, &set, 2).expect("free");
        assert!(!files(&dir).contains("10.1.0.77") && files(&dir).contains(&mine.to_string()));
    }
}

//! Addresses that were released of late, which others should not get at once: packets to who had them may
//! still be on their way.
//!
//! A file of lines `<seconds since the boot> <address>`, changed only while the network's reservations are
//! locked. It is a courtesy: nothing fails because of it.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write,
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

use crate::records::make_folder;

/// How long an address rests.
const REST: Duration = Duration::from_secs(30);

/// How many lines that count no more the file may have.
const MANY: usize = 64;

/// The addresses of one network that rest.
pub(crate) struct Released {
    path: PathBuf,
}

impl Released {
    /// Those in that file.
    pub(crate) fn in_file(path: PathBuf) -> Self {
        Self { path }
    }

    /// From now on `address` rests.
    pub(crate) fn add(&self, address: IpAddr) {
        let line = format!("{} {address}\n", now());
        let append = || OpenOptions::new().append(true).create(true).open(&self.path);
        let file = append().or_else(|error| {
            let folder = self.path.parent().unwrap_or(&self.path);
            make_folder(folder).map_err(|_| error).and_then(|()| append())
        });
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }

    /// Which addresses rest, and since when.
    pub(crate) fn resting(&self) -> BTreeMap<IpAddr, u64> {
        let Ok(text) = fs::read_to_string(&self.path) else { return BTreeMap::new() };
        let (resting, old) = read(&text, now());
        if old > MANY {
            let line = |(address, since): (&IpAddr, &u64)| format!("{since} {address}\n");
            let _ = fs::write(&self.path, resting.iter().map(line).collect::<String>());
        }
        resting
    }
}

/// What `text` says at `now`, and how many of its lines count no more.
fn read(text: &str, now: u64) -> (BTreeMap<IpAddr, u64>, usize) {
    let mut resting = BTreeMap::new();
    for line in text.lines() {
        let Some((since, address)) = line.split_once(' ') else { continue };
        let Ok(since) = since.parse::<u64>() else { continue };
        if since <= now && now - since < REST.as_secs() {
            resting.extend(address.parse().ok().map(|address: IpAddr| (address, since)));
        }
    }
    let old = text.lines().count() - resting.len();
    (resting, old)
}

/// Seconds since the boot.
fn now() -> u64 {
    u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use testkit::TempDir;

    use super::*;

    #[test]
    fn an_address_rests_for_half_a_minute() {
        let text = "70 10.1.0.2\n99 10.1.0.3\n71 10.1.0.4\n200 10.1.0.5\ngarbage\n80 fd00::2\n";
        let (resting, old) = read(text, 100);
        let resting: Vec<String> = resting.keys().map(IpAddr::to_string).collect();
        assert_eq!((resting, old), (vec!["10.1.0.3".into(), "10.1.0.4".into(), "fd00::2".into()], 3));
    }

    #[test]
    fn the_file_does_not_grow() {
        let dir = TempDir::new("released").expect("a folder");
        let released = Released::in_file(dir.path().join("networks/n.released"));
        released.add([10, 1, 0, 2].into());
        let old = "0 10.1.0.9\n".repeat(MANY + 1);
        let path = dir.write("networks/m.released", old).expect("written");
        let many = Released::in_file(path.clone());
        assert!(released.resting().len() == 1 && many.resting().is_empty());
        assert_eq!(fs::metadata(path).expect("a file").len(), 0);
    }
}

//! Which addresses an attachment was given, so that nobody has to read everybody's reservations.
//!
//! One symbolic link per address in a hidden folder beside the reservations, named by a hash of the
//! attachment and the number of the range set; its target is the address. It is made before the
//! reservation and removed after it, and it is never believed: the reservation itself says whose it
//! is. Other plugins neither see nor need it.

use std::{
    fs, io,
    net::IpAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use cni_core::{Attachment, Error};

use crate::failure;

/// The index of one network; changed only while the network's lock is held.
pub(crate) struct Index {
    folder: PathBuf,
}

impl Index {
    /// That of the network whose reservations lie in `folder`.
    pub(crate) fn beside(folder: &Path) -> Self {
        Self { folder: folder.join(".weft") }
    }

    fn entry(&self, who: &Attachment, set: usize) -> PathBuf {
        self.folder.join(format!("{}.{set}", who.host_link()))
    }

    /// The address of `who` in set number `set`.
    pub(crate) fn get(&self, who: &Attachment, set: usize) -> Option<IpAddr> {
        fs::read_link(self.entry(who, set)).ok()?.to_str()?.parse().ok()
    }

    /// The addresses of `who` in all sets.
    pub(crate) fn all(&self, who: &Attachment) -> Vec<IpAddr> {
        (0..).map_while(|set| self.get(who, set)).collect()
    }

    /// Notes that `who` is about to get `address` of set number `set`.
    pub(crate) fn put(&self, who: &Attachment, set: usize, address: IpAddr) -> Result<(), Error> {
        let (entry, target) = (self.entry(who, set), address.to_string());
        let made = symlink(&target, &entry).or_else(|error| {
            match error.kind() {
                io::ErrorKind::NotFound => fs::create_dir(&self.folder)?,
                io::ErrorKind::AlreadyExists => fs::remove_file(&entry)?,
                _ => return Err(error),
            }
            symlink(&target, &entry)
        });
        made.map_err(|e| failure::file("create", &entry, &e))
    }

    /// Forgets `who`, and the folder with the last entry.
    pub(crate) fn forget(&self, who: &Attachment) -> Result<(), Error> {
        for set in 0.. {
            let entry = self.entry(who, set);
            match fs::remove_file(&entry) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                Err(e) => return Err(failure::file("remove", &entry, &e)),
            }
        }
        // Not empty, or not there.
        let _ = fs::remove_dir(&self.folder);
        Ok(())
    }
}

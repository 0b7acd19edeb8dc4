//! Which addresses an attachment was given and what goes with them, so that nobody has to read
//! everybody's reservations, nor look for what was never made.
//!
//! One symbolic link per address in a hidden folder beside the reservations, named by a hash of the
//! attachment and the number of the range set; its target is `10.42.3.2/24` or
//! `10.42.3.2/24+masquerade`. It is made before the reservation and removed after it and all that
//! goes with it. It is not believed about the owner: the reservation itself says whose it is. Other
//! plugins neither see nor need it.

use std::{
    fmt, fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use cni_core::{Attachment, Error, HostAddress};

use crate::failure;

/// An address that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The address and the length of its subnet.
    pub(crate) pod: HostAddress,
    /// It is masqueraded.
    pub(crate) masqueraded: bool,
}

/// What the target says behind an address that is masqueraded.
const MASQUERADED: &str = "+masquerade";

impl Entry {
    fn parse(target: &str) -> Option<Self> {
        let plain = target.strip_suffix(MASQUERADED);
        let (address, prefix) = plain.unwrap_or(target).split_once('/')?;
        let pod = HostAddress { address: address.parse().ok()?, prefix: prefix.parse().ok()? };
        Some(Self { pod, masqueraded: plain.is_some() })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.pod, if self.masqueraded { MASQUERADED } else { "" })
    }
}

/// The index of one network; changed only while the network's lock is held.
pub(crate) struct Index {
    folder: PathBuf,
}

impl Index {
    /// That of the network whose reservations lie in `folder`.
    pub(crate) fn beside(folder: &Path) -> Self {
        Self { folder: folder.join(".weft") }
    }

    fn path(&self, who: &Attachment, set: usize) -> PathBuf {
        self.folder.join(format!("{}.{set}", who.host_link()))
    }

    /// What `who` was given of set number `set`.
    pub(crate) fn get(&self, who: &Attachment, set: usize) -> Option<Entry> {
        Entry::parse(fs::read_link(self.path(who, set)).ok()?.to_str()?)
    }

    /// What `who` was given of all sets.
    pub(crate) fn all(&self, who: &Attachment) -> Vec<Entry> {
        (0..).map_while(|set| self.get(who, set)).collect()
    }

    /// Notes that `who` is about to get `entry` of set number `set`.
    pub(crate) fn put(&self, who: &Attachment, set: usize, entry: Entry) -> Result<(), Error> {
        let (path, target) = (self.path(who, set), entry.to_string());
        let made = symlink(&target, &path).or_else(|error| {
            match error.kind() {
                io::ErrorKind::NotFound => fs::create_dir(&self.folder)?,
                io::ErrorKind::AlreadyExists => fs::remove_file(&path)?,
                _ => return Err(error),
            }
            symlink(&target, &path)
        });
        made.map_err(|e| failure::file("create", &path, &e))
    }

    /// Forgets `who`, and the folder with the last entry.
    pub(crate) fn forget(&self, who: &Attachment) -> Result<(), Error> {
        let paths = (0..).map(|set| self.path(who, set)).take_while(|path| path.symlink_metadata().is_ok());
        // The first one last: `all` finds what is left where this is cut short.
        for path in paths.collect::<Vec<_>>().iter().rev() {
            failure::absent_is_done(path, fs::remove_file(path))?;
        }
        self.remove_if_empty();
        Ok(())
    }

    /// Forgets everybody but `valid`.
    pub(crate) fn keep(&self, valid: &[Attachment]) -> Result<(), Error> {
        let kept: Vec<String> = valid.iter().map(Attachment::host_link).collect();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let whose = name.to_str().and_then(|name| name.split_once('.')).map(|(whose, _)| whose);
            if !whose.is_some_and(|whose| kept.iter().any(|kept| kept == whose)) {
                failure::absent_is_done(&entry.path(), fs::remove_file(entry.path()))?;
            }
        }
        self.remove_if_empty();
        Ok(())
    }

    fn remove_if_empty(&self) {
        // Not empty, or not there.
        let _ = fs::remove_dir(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_as_it_is_written() {
        for text in ["10.42.3.2/24", "10.42.3.2/24+masquerade", "fd00::2/64+masquerade"] {
            assert_eq!(Entry::parse(text).map(|entry| entry.to_string()).as_deref(), Some(text));
        }
        for garbage in ["", "10.42.3.2", "10.42.3.2/x", "10.42.3.2/24+", "/24", "../lock"] {
            assert_eq!(Entry::parse(garbage), None, "{garbage}");
        }
    }
}

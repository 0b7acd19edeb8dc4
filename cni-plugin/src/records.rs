//! Records of attachments: `<stateDir>/attachments/<network>/<container>-<interface>`, see
//! [`Record`]. Whoever works on an attachment holds its record's lock, so that nobody takes an ADD that is
//! in progress for one that was killed.

use std::{
    cell::Cell,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use cni_core::{Attachment, Code, Error, Network, Record, Trace, owner_of, state_dir};

use crate::{failure, lock};

/// How often a record is taken again because its last owner removed it meanwhile.
const ATTEMPTS: usize = 100;

/// The longest record that is read: hundreds of times a usual one.
const LONGEST: u64 = 1 << 18;

/// The records of one network.
pub(crate) struct Records {
    network: String,
    folder: PathBuf,
    state: PathBuf,
}

/// The record of one attachment, nobody else's for as long as this lives.
pub(crate) struct Held {
    path: PathBuf,
    file: File,
    /// What it told when it was taken.
    pub(crate) before: Record,
    /// Whose it is; `None` where neither its name nor its content says so.
    pub(crate) who: Option<Attachment>,
    /// Nothing was ever in it.
    pub(crate) is_new: bool,
    /// How much of it stays where the rest is garbled or cut short, until something is noted.
    kept: Cell<Option<usize>>,
}

impl Records {
    /// Those of `network`.
    pub(crate) fn of(network: &Network) -> Result<Self, Error> {
        Ok(Self::in_state(state_dir(network)?.into(), &network.name))
    }

    /// Those of the network of that name in the same place.
    pub(crate) fn of_network(&self, name: &str) -> Self {
        Self::in_state(self.state.clone(), name)
    }

    fn in_state(state: PathBuf, network: &str) -> Self {
        let folder = state.join("attachments").join(network);
        Self { network: network.to_owned(), folder, state }
    }

    /// Whose they are.
    pub(crate) fn network(&self) -> &str {
        &self.network
    }

    /// A file of ours about the network that is no record.
    pub(crate) fn beside(&self, what: &str) -> PathBuf {
        self.state.join("networks").join(format!("{}.{what}", self.network))
    }

    /// The pod of `who`, an attachment to any network, where its record says so.
    pub(crate) fn pod_of(&self, who: &Attachment) -> Option<String> {
        let path = self.state.join("attachments").join(&who.network).join(who.record_name());
        Record::parse(&fs::read(path).ok()?).pod
    }

    /// Takes the record of `who`, which it makes where there is none.
    pub(crate) fn take(&self, who: &Attachment) -> Result<Held, Error> {
        let path = self.folder.join(who.record_name());
        let failed = |e: io::Error| failure::file("create", &path, &e);
        for _ in 0..ATTEMPTS {
            let mut options = OpenOptions::new();
            options.read(true).append(true).create(true).mode(0o600);
            let file = match options.open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    make_folder(&self.folder)?;
                    continue;
                }
                other => other.map_err(failed)?,
            };
            let file = lock::wait(file, &path, lock::patience())?;
            // Whoever held it may have removed it.
            if is_at(&file, &path) {
                return Held::read(path, file, Some(who.clone()));
            }
        }
        let text = format!("{} kept vanishing while it was being taken", path.display());
        Err(Error::new(Code::TryAgainLater, text))
    }

    /// Takes the record of `who` if there is one.
    pub(crate) fn find(&self, who: &Attachment) -> Result<Option<Held>, Error> {
        let path = self.folder.join(who.record_name());
        let Some(file) = open(&path)? else { return Ok(None) };
        let file = lock::wait(file, &path, lock::patience())?;
        if !is_at(&file, &path) {
            return Ok(None);
        }
        Held::read(path, file, Some(who.clone())).map(Some)
    }

    /// The same for DEL, which goes as well as it can without a record that can't be used.
    pub(crate) fn find_if_usable(&self, who: &Attachment) -> Result<Option<Held>, Error> {
        match self.find(who) {
            Err(e) if e.code == Code::Io => Ok(None),
            found => found,
        }
    }

    /// Takes the record of that name unless somebody works on it.
    pub(crate) fn find_idle(&self, name: &str) -> Result<Option<Held>, Error> {
        let path = self.folder.join(name);
        let Some(file) = open(&path)? else { return Ok(None) };
        if !lock::try_now(&file, &path)? || !is_at(&file, &path) {
            return Ok(None);
        }
        let who = Attachment::of_record(&self.network, name);
        let held = Held::read(path, file, who)?;
        Ok(Some(held))
    }

    /// The names of all records.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Whether an attachment other than `who` may have `address`.
    pub(crate) fn claim(&self, address: IpAddr, who: &Attachment) -> bool {
        let others = self.names().into_iter().filter(|name| *name != who.record_name());
        let contents = others.filter_map(|name| fs::read(self.folder.join(name)).ok());
        contents.map(|content| Record::parse(&content)).any(|r| r.pods().iter().any(|p| p.address == address))
    }

    /// Whether somebody whom the reservation `content` may mean has a record.
    pub(crate) fn know(&self, content: &[u8]) -> bool {
        let Some(owner) = owner_of(content) else { return false };
        let Some(ifname) = owner.ifname else {
            let start = format!("{}-", owner.container);
            return self.names().iter().any(|name| name.starts_with(&start));
        };
        let Ok(ifname) = ifname.parse() else { return false };
        let (network, container) = (self.network.clone(), owner.container.to_owned());
        self.folder.join(Attachment { network, container, ifname }.record_name()).exists()
    }
}

impl Held {
    fn read(path: PathBuf, file: File, who: Option<Attachment>) -> Result<Self, Error> {
        let mut content = Vec::new();
        let read = (&file).take(LONGEST).read_to_end(&mut content);
        read.map_err(|e| failure::file("read", &path, &e))?;
        let network = path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy());
        let who = who.or_else(|| Attachment::in_record(&network.unwrap_or_default(), &content));
        let before = Record::parse(&content);
        let lines = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let kept = if before.whole { Some(lines).filter(|lines| *lines < content.len()) } else { Some(0) };
        Ok(Self { path, file, before, who, is_new: content.is_empty(), kept: Cell::new(kept) })
    }

    /// Notes what is about to be made.
    pub(crate) fn note(&self, traces: &[Trace]) -> Result<(), Error> {
        let failed = |e: io::Error| failure::file("write", &self.path, &e);
        let mut text = String::new();
        if let Some(kept) = self.kept.take() {
            self.file.set_len(kept as u64).map_err(failed)?;
            text.extend(self.who.as_ref().filter(|_| kept == 0).map(Record::begin));
        }
        text.extend(traces.iter().map(Trace::line));
        (&self.file).write_all(text.as_bytes()).map_err(failed)
    }

    /// ADD has come to its end, and DEL needs nothing but the record; unless what an earlier ADD left in it was not
    /// closed and may be cut short. Where it can't be written, DEL looks for everything.
    pub(crate) fn close(&self) {
        let length = self.file.metadata().ok().and_then(|file| usize::try_from(file.len()).ok());
        if let Some(length) = length.filter(|_| self.is_new || self.before.closed) {
            let _ = (&self.file).write_all(Record::end(length).as_bytes());
        }
    }

    /// Forgets the attachment: nothing of it is left.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        failure::absent_is_done(&self.path, fs::remove_file(&self.path))?;
        // Not empty, or not there.
        let _ = self.path.parent().map(fs::remove_dir);
        Ok(())
    }
}

/// The network namespace of this thread, as records name it.
pub(crate) fn own_namespace() -> String {
    let link = fs::read_link("/proc/thread-self/ns/net").unwrap_or_default();
    link.display().to_string()
}

fn open(path: &Path) -> Result<Option<File>, Error> {
    match OpenOptions::new().read(true).append(true).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failure::file("open", path, &e)),
        Ok(file) => Ok(Some(file)),
    }
}

/// `file` is what `path` leads to.
fn is_at(file: &File, path: &Path) -> bool {
    let there = fs::metadata(path).map(|there| (there.dev(), there.ino()));
    let ours = file.metadata().map(|ours| (ours.dev(), ours.ino()));
    there.is_ok_and(|there| ours.is_ok_and(|ours| ours == there))
}

/// Makes a folder of state and those above it.
pub(crate) fn make_folder(folder: &Path) -> Result<(), Error> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(folder);
    made.map_err(|e| failure::file("create", folder, &e))
}

#[cfg(test)]
mod tests {
    use testkit::TempDir;

    use super::*;

    fn records(dir: &TempDir) -> Records {
        let text = format!(r#"{{"name":"n","type":"bridge","stateDir":"{}"}}"#, dir.path().display());
        Records::of(&Network::parse(text.as_bytes()).expect("a network")).expect("records")
    }

    fn who(ifname: &str) -> Attachment {
        let (network, container) = ("n".to_owned(), "c1".to_owned());
        Attachment { network, container, ifname: ifname.parse().expect("a name") }
    }

    #[test]
    fn what_is_noted_is_found_and_goes_with_the_record() {
        let dir = TempDir::new("records").expect("a folder");
        let all = records(&dir);
        assert!(all.find(&who("eth0")).expect("readable").is_none());
        let held = all.take(&who("eth0")).expect("a record");
        assert!(held.is_new && all.find_idle("c1-eth0").expect("readable").is_none(), "somebody works on it");
        held.note(&[Trace::Masquerade]).expect("written");
        held.note(&[Trace::Limits]).expect("written");
        drop(held);
        assert!(all.know(b"c1\r\neth0") && all.know(b"c1") && !all.know(b"c1\r\neth1") && !all.know(b"c"));
        let again = all.find_idle("c1-eth0").expect("readable").expect("a record");
        assert!(again.before.whole && again.before.masqueraded && again.before.limits && !again.is_new);
        again.remove().expect("removed");
        assert!(all.names().is_empty() && !dir.path().join("attachments/n").exists());
    }

    #[test]
    fn a_record_is_closed_unless_something_may_be_missing() {
        let dir = TempDir::new("closed").expect("a folder");
        let all = records(&dir);
        let add = |trace: Trace| {
            let held = all.take(&who("eth0")).expect("a record");
            held.note(&[trace]).expect("written");
            held.close();
            drop(held);
            all.find(&who("eth0")).expect("readable").expect("a record").before
        };
        assert!(add(Trace::Masquerade).closed);
        let second = add(Trace::Pod("default/web".into()));
        assert!(second.closed && second.masqueraded, "a later ADD appends");
        let path = dir.path().join("attachments/n/c1-eth0");
        let text = fs::read_to_string(&path).expect("readable");
        let (before, _) = text.split_once("/web").expect("a pod");
        fs::write(&path, before).expect("written");
        let third = add(Trace::Limits);
        assert!(third.limits && third.masqueraded && third.pod.is_none() && !third.closed, "{third:?}");
    }

    #[test]
    fn a_garbled_record_is_begun_anew() {
        let dir = TempDir::new("garbled").expect("a folder");
        let all = records(&dir);
        dir.write("attachments/n/c1-eth0", "\0\0garbage").expect("written");
        let held = all.take(&who("eth0")).expect("a record");
        assert!(!held.before.whole && !held.is_new);
        held.note(&[Trace::Masquerade]).expect("written");
        drop(held);
        assert!(all.find(&who("eth0")).expect("readable").is_some_and(|held| held.before.masqueraded));
    }
}

//! Tells when manifests change, by inotify.
//!
//! A file is looked at when a writer has closed it or another one took its name, never while it is being
//! written. Folders are watched, not files: editors and mounted volumes put new files in place of old ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Touched, manifests_in};

/// Changes that follow each other this closely are told together.
const QUIET: Duration = Duration::from_millis(5);
/// However many there are, they are told after this long.
const PATIENCE: Duration = Duration::from_millis(50);
/// A name that went may come back with other content, when an editor replaces a file in two steps.
const ABSENCE: Duration = Duration::from_millis(250);
/// All is looked at each time this long has passed: not every file system tells.
const SWEEP: Duration = Duration::from_secs(30);
/// Symbolic links that are followed from one name.
const HOPS: usize = 16;

/// Watches a manifest or a folder of them for ever, on a thread of its own, and hands what changed to `tell`.
///
/// # Errors
/// The kernel has no inotify to give, or no thread could be started.
pub fn watch(path: PathBuf, tell: impl Fn(Touched) + Send + 'static) -> io::Result<()> {
    sweeping(path, SWEEP, tell)
}

/// The same, with another pause between sweeps.
pub(super) fn sweeping(
    path: PathBuf,
    pause: Duration,
    tell: impl Fn(Touched) + Send + 'static,
) -> io::Result<()> {
    let mut watcher = Watcher {
        path,
        inotify: Inotify::init()?,
        folders: BTreeMap::new(),
        links: BTreeSet::new(),
        ends: BTreeMap::new(),
    };
    watcher.follow();
    let run = move || {
        let mut sweep_at = Instant::now() + pause;
        loop {
            let touched = watcher.wait(sweep_at);
            if touched == Touched::Sweep {
                sweep_at = Instant::now() + pause;
            }
            tell(touched);
            watcher.follow();
        }
    };
    thread::Builder::new().name("manifests".to_owned()).spawn(run).map(drop)
}

struct Watcher {
    path: PathBuf,
    inotify: Inotify,
    folders: BTreeMap<Descriptor, PathBuf>,
    /// Names that lead to a manifest by symbolic links.
    links: BTreeSet<PathBuf>,
    /// Where they end, and the manifest's own name.
    ends: BTreeMap<PathBuf, PathBuf>,
}

/// A watch descriptor, which has no order of its own.
type Descriptor = i32;

impl Watcher {
    /// Watches every folder that has a part in what the manifests are. What is watched already stays watched.
    fn follow(&mut self) {
        self.links.clear();
        self.ends.clear();
        let mut folders = BTreeSet::new();
        let is_folder = fs::metadata(&self.path).is_ok_and(|meta| meta.is_dir());
        let mut names: BTreeSet<PathBuf> = [self.path.clone()].into();
        if is_folder {
            folders.insert(self.path.clone());
            names.extend(manifests_in(&self.path).unwrap_or_default());
        }
        for name in names {
            self.follow_links(name, &mut folders);
        }
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        for folder in folders {
            // A folder that is not there is looked for at the next sweep, or when its parent tells.
            if let Ok(descriptor) = self.inotify.watches().add(&folder, mask) {
                self.folders.insert(number(&descriptor), folder);
            }
        }
    }

    /// The folder of `name`, and, where it is a link, of all that it leads to.
    fn follow_links(&mut self, manifest: PathBuf, folders: &mut BTreeSet<PathBuf>) {
        let mut name = manifest.clone();
        for _ in 0..HOPS {
            let parent = name.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new(".")).to_owned();
            let Ok(target) = fs::read_link(&name) else {
                folders.insert(parent);
                if name != manifest {
                    self.ends.insert(name, manifest);
                }
                return;
            };
            let next = parent.join(target);
            folders.insert(parent);
            self.links.insert(std::mem::replace(&mut name, next));
        }
    }

    /// Waits until something changed, or it is time for a sweep.
    fn wait(&mut self, sweep_at: Instant) -> Touched {
        if Instant::now() >= sweep_at {
            return Touched::Sweep; // also where something changes all the time
        }
        let mut touched = BTreeSet::new();
        let mut gone: BTreeSet<PathBuf> = BTreeSet::new();
        let mut all = false;
        let mut until = None;
        loop {
            let timeout = until.unwrap_or(sweep_at).saturating_duration_since(Instant::now());
            let quiet = if until.is_some() && gone.is_empty() { timeout.min(QUIET) } else { timeout };
            if !self.is_readable(quiet) {
                break;
            }
            for (folder, name, mask) in self.read() {
                match self.judge(&folder, name.as_deref(), mask) {
                    Judged::Nothing => continue,
                    Judged::All => all = true,
                    Judged::Written(path) => {
                        gone.remove(&path);
                        touched.insert(path);
                    }
                    Judged::Gone(path) => drop(gone.insert(path)),
                }
                let wait = if gone.is_empty() { PATIENCE } else { ABSENCE };
                until = until.or_else(|| Some(Instant::now() + wait));
            }
            if Instant::now() >= until.unwrap_or(sweep_at) {
                break;
            }
        }
        // What came back is told when its writer closes it.
        touched.extend(gone.into_iter().filter(|path| fs::symlink_metadata(path).is_err()));
        match (all, until) {
            (true, _) => Touched::All,
            (false, Some(_)) => Touched::Files(touched),
            (false, None) => Touched::Sweep,
        }
    }

    fn is_readable(&self, timeout: Duration) -> bool {
        let mut fds = [PollFd::new(&self.inotify, PollFlags::IN)];
        let timeout = Timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
    }

    /// The events that are there: folder, name in it, and what happened.
    fn read(&mut self) -> Vec<(PathBuf, Option<std::ffi::OsString>, EventMask)> {
        let mut buffer = [0; 16 * 1024];
        let Ok(events) = self.inotify.read_events(&mut buffer) else { return Vec::new() };
        let mut seen = Vec::new();
        for event in events {
            let folder = self.folders.get(&number(&event.wd)).cloned().unwrap_or_default();
            if event.mask.contains(EventMask::IGNORED) {
                self.folders.remove(&number(&event.wd));
            }
            seen.push((folder, event.name.map(OsStr::to_owned), event.mask));
        }
        seen
    }

    fn judge(&self, folder: &Path, name: Option<&OsStr>, mask: EventMask) -> Judged {
        if mask.intersects(EventMask::Q_OVERFLOW | EventMask::DELETE_SELF | EventMask::MOVE_SELF) {
            return Judged::All;
        }
        let Some(name) = name else { return Judged::Nothing };
        let path = folder.join(name);
        if let Some(manifest) = self.ends.get(&path) {
            return judge_file(manifest.clone(), &path, mask);
        }
        if self.links.contains(&path)
            || name.as_encoded_bytes().starts_with(b"..")
            || mask.contains(EventMask::ISDIR)
        {
            // A link leads elsewhere now, or a mounted volume was swapped.
            let ours = path == self.path || folder.starts_with(&self.path) || !self.links.is_empty();
            return if ours { Judged::All } else { Judged::Nothing };
        }
        if path != self.path && folder != self.path && !self.path.is_dir() {
            return if self.links.is_empty() { Judged::Nothing } else { Judged::All };
        }
        judge_file(path.clone(), &path, mask)
    }
}

/// What happened to the file of a manifest.
fn judge_file(manifest: PathBuf, file: &Path, mask: EventMask) -> Judged {
    if mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) {
        return Judged::Gone(manifest);
    }
    if mask.contains(EventMask::CREATE) {
        // A new file is told when its writer closes it; a link is complete at once.
        let complete = fs::symlink_metadata(file).is_ok_and(|meta| !meta.is_file() || meta.nlink() > 1);
        return if complete { Judged::Written(manifest) } else { Judged::Nothing };
    }
    Judged::Written(manifest)
}

/// What an event means to us.
enum Judged {
    Nothing,
    All,
    Written(PathBuf),
    Gone(PathBuf),
}

fn number(descriptor: &WatchDescriptor) -> Descriptor {
    descriptor.get_watch_descriptor_id()
}

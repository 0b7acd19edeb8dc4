//! Manifests in a file, or in the files of a folder that end in `.yaml`, `.yml` or `.json`.
//!
//! Only regular files of a bounded size are read. A file that can't be read or parsed is named once, and what it held
//! before stays in force; so does an object that turns bad. Of two objects with one name in two files, that of the later file name counts.

mod text;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsStr,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use netmodel::NodeName;
use proxy_core::{
    catalog::Objects,
    object::{Key, Object, ObjectName, check, remark},
    wire::{self, BadObject, Manifest, WireError},
};

pub use watch::watch;

/// What a file changed about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// These files were written, renamed or removed.
    Files(BTreeSet<PathBuf>),
    /// Any may have been, and is complete.
    All,
    /// Nothing that we know of: a look at all that nobody is writing just now.
    Sweep,
}

impl Touched {
    fn includes(&self, path: &Path) -> bool {
        match self {
            Self::Files(files) => files.contains(path),
            Self::All | Self::Sweep => true,
        }
    }
}

/// How long after its last change a file counts as complete, where no writer told.
const REST: Duration = Duration::from_secs(2);

/// The objects of a file or folder, as last read.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    node: NodeName,
    files: BTreeMap<PathBuf, Content>,
    /// The files that are known to be there, with or without content that could be read.
    there: BTreeSet<PathBuf>,
    /// When each file had last been written to, at the last sweep.
    modified: BTreeMap<PathBuf, SystemTime>,
    /// The file or folder has been there.
    seen: bool,
    /// What is wrong with each file or object, by what it is about.
    troubles: BTreeMap<String, String>,
    /// Those of them of which nothing could ever be read.
    unread: BTreeSet<String>,
}

/// What one file held when it could last be read.
#[derive(Debug, Default)]
struct Content {
    /// Tells one text from another.
    digest: u64,
    objects: Objects,
    /// The objects of each document with nothing wrong in it, by the digest of its text: a change of one among many
    /// costs its own size to parse.
    documents: HashMap<u64, Document>,
}

/// The objects of one document.
type Document = Vec<(Key, Arc<Object>)>;

impl FileSource {
    /// A source that has read nothing yet. `node` is the node that we run on.
    #[must_use]
    pub const fn new(path: PathBuf, node: NodeName) -> Self {
        Self {
            path,
            node,
            files: BTreeMap::new(),
            there: BTreeSet::new(),
            modified: BTreeMap::new(),
            seen: false,
            troubles: BTreeMap::new(),
            unread: BTreeSet::new(),
        }
    }

    /// Reads what was touched, and logs each trouble that is new or over.
    pub fn read(&mut self, touched: &Touched) {
        let before = self.troubles.clone();
        if let Some(listed) = self.list() {
            self.seen = true;
            let gone = |path: &PathBuf| !listed.contains(path) && touched.includes(path);
            for path in self.there.iter().filter(|path| gone(path)).cloned().collect::<Vec<_>>() {
                self.there.remove(&path);
                self.files.remove(&path);
                self.forget_troubles(&path.display().to_string());
            }
            if !listed.contains(&self.path) {
                self.forget_trouble(&self.path.display().to_string()); // a file's own trouble ends as it is read
            }
            let at_rest = if *touched == Touched::Sweep { self.at_rest(&listed) } else { listed };
            for path in at_rest.iter().filter(|path| touched.includes(path)) {
                self.read_file(path);
            }
        }
        for (about, trouble) in self.troubles.iter().filter(|(about, text)| before.get(*about) != Some(*text))
        {
            tracing::error!("{about}: {trouble}");
        }
        for about in before.keys().filter(|about| !self.troubles.contains_key(*about)) {
            if let Some(end) = self.end_of(about) {
                tracing::info!("{about}: {end}");
            }
        }
    }

    /// How a trouble with a file or object ended; nothing where only the objects of the file are what is wrong now.
    fn end_of(&self, about: &str) -> Option<&'static str> {
        let of_object = format!("{about}: ");
        if self.troubles.keys().any(|other| other.starts_with(&of_object)) {
            return None;
        }
        let is_file = |path: &PathBuf| path.to_str() == Some(about);
        let has_object = |(path, content): (&PathBuf, &Content)| {
            let name = about.strip_prefix(&format!("{}: ", path.display()));
            let name = name.and_then(|name| name.split_once(' '));
            let is = |key: &Key| name == Some((key.kind.as_str(), key.name.as_str()));
            name.is_some() && content.objects.keys().any(is)
        };
        let there =
            is_file(&self.path) || self.there.iter().any(is_file) || self.files.iter().any(has_object);
        Some(if there { "fine now" } else { "gone" })
    }

    /// The file or folder has been there. Until then nothing is known about what Services there should be.
    #[must_use]
    pub const fn was_seen(&self) -> bool {
        self.seen
    }

    /// The objects of all files together.
    #[must_use]
    pub fn objects(&self) -> Objects {
        let all = self.files.values().flat_map(|content| &content.objects);
        all.map(|(key, object)| (key.clone(), Arc::clone(object))).collect()
    }

    /// All that the manifests hold was read, now or earlier.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.unread.is_empty()
    }

    /// All that the manifests hold about that Service was read: what was not is about Services of other names.
    #[must_use]
    pub fn is_complete_about(&self, service: &ObjectName) -> bool {
        let is_another = |name: &str| !name.ends_with('/') && name != service.as_str();
        self.unread.iter().all(|about| {
            about.rsplit_once(": Service ").is_some_and(|(_, name)| is_another(name)) // and not a whole file
        })
    }

    /// An EndpointSlice that is named as that Service's are was not read.
    #[must_use]
    pub fn lacks_endpoints_of(&self, service: &ObjectName) -> bool {
        self.unread.iter().filter_map(|about| about.rsplit_once(": EndpointSlice ")).any(|(_, name)| {
            let rest = name.strip_prefix(service.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        })
    }

    /// What is wrong, one line each.
    pub fn troubles(&self) -> impl Iterator<Item = String> {
        self.troubles.iter().map(|(about, trouble)| format!("{about}: {trouble}"))
    }

    /// The files there are; `None`: that can't be told, and what was there stays.
    fn list(&mut self) -> Option<BTreeSet<PathBuf>> {
        let listed = match fs::metadata(&self.path) {
            Ok(meta) if meta.is_dir() => manifests_in(&self.path),
            Ok(_) => Ok([self.path.clone()].into()),
            Err(error) => Err(error),
        };
        let about = self.path.display().to_string();
        match listed {
            Ok(files) => Some(files),
            Err(error) => {
                let known = !self.files.is_empty();
                self.trouble(about, format!("failed to read it: {error}{}", kept(known)), known);
                None
            }
        }
    }

    /// Those that nobody has written to for a while, or since the last sweep: a time may lie in the future.
    fn at_rest(&mut self, files: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
        let modified = |path: &PathBuf| Some((path.clone(), fs::metadata(path).ok()?.modified().ok()?));
        let modified: BTreeMap<_, _> = files.iter().filter_map(modified).collect();
        let before = std::mem::replace(&mut self.modified, modified);
        let is_at_rest = |(path, time): &(&PathBuf, &SystemTime)| {
            before.get(*path) == Some(time) || time.elapsed().is_ok_and(|age| age >= REST)
        };
        self.modified.iter().filter(is_at_rest).map(|(path, _)| path.clone()).collect()
    }

    fn read_file(&mut self, path: &Path) {
        self.there.insert(path.to_owned());
        let about = path.display().to_string();
        let known = self.files.contains_key(path);
        let text = match text::read(path) {
            Ok(text) => text,
            Err(error) => {
                self.trouble(about, format!("failed to read it: {error}{}", kept(known)), known);
                return;
            }
        };
        let digest = digest(&text);
        if self.files.get(path).is_some_and(|content| content.digest == digest) {
            self.forget_trouble(&about); // the file is fine again; its objects are as they were
            return;
        }
        match parse(&text, self.files.get(path)) {
            Ok(documents) => {
                self.forget_troubles(&about);
                let old = self.files.remove(path).unwrap_or_default();
                let content = self.content(&about, documents, &old);
                self.files.insert(path.to_owned(), Content { digest, ..content });
            }
            Err(error) => {
                self.trouble(about, format!("{}{}", daemon::one_line(&error), kept(known)), known);
            }
        }
    }

    fn content(&mut self, about: &str, documents: Vec<(u64, Option<Manifest>)>, old: &Content) -> Content {
        let mut content = Content::default();
        for (digest, manifest) in documents {
            let (document, is_fine) = match manifest {
                Some(manifest) => self.checked(about, manifest, &old.objects),
                None => (old.documents.get(&digest).cloned().unwrap_or_default(), true),
            };
            content.objects.extend(document.iter().cloned());
            if is_fine {
                content.documents.insert(digest, document);
            }
        }
        content
    }

    /// Forgets what was wrong with a file and its objects.
    fn forget_troubles(&mut self, file: &str) {
        let of_object = format!("{file}: ");
        self.troubles.retain(|about, _| about != file && !about.starts_with(&of_object));
        self.unread.retain(|about| about != file && !about.starts_with(&of_object));
    }

    fn forget_trouble(&mut self, about: &str) {
        self.troubles.remove(about);
        self.unread.remove(about);
    }

    /// Notes what is wrong. `known`: what was there before stays in force.
    fn trouble(&mut self, about: String, text: String, known: bool) {
        if !known {
            self.unread.insert(about.clone());
        }
        self.troubles.insert(about, text);
    }

    /// The objects of a document, and whether nothing is wrong with it. An object that is as before stays the same
    /// allocation; one that is bad stays as it was before.
    fn checked(&mut self, about: &str, manifest: Manifest, old: &Objects) -> (Document, bool) {
        let (mut objects, mut is_fine) = (Document::new(), true);
        let mut bad = manifest.bad;
        for wire in &manifest.objects {
            match check(wire, &self.node) {
                Ok(Some((key, object))) => {
                    if let Some(text) = remark(wire) {
                        self.troubles.insert(format!("{about}: {key}"), text);
                        is_fine = false;
                    }
                    let same = old.get(&key).filter(|old| ***old == object).cloned();
                    objects.push((key, same.unwrap_or_else(|| Arc::new(object))));
                }
                Ok(None) => {}
                Err(refused) => bad.push(refused),
            }
        }
        is_fine &= bad.is_empty();
        for BadObject { kind, name, why } in bad {
            let before = old.iter().find(|(key, _)| key.kind.as_str() == kind && key.name.as_str() == name);
            let kept = if before.is_some() { "; it stays as it was" } else { "; it is passed over" };
            self.trouble(format!("{about}: {kind} {name}"), format!("{why}{kept}"), before.is_some());
            objects.extend(before.map(|(key, object)| (key.clone(), Arc::clone(object))));
        }
        (objects, is_fine)
    }
}

/// The documents of a file by the digests of their texts, parsed where `old` does not know them.
fn parse(text: &str, old: Option<&Content>) -> Result<Vec<(u64, Option<Manifest>)>, WireError> {
    let document = |text: &str| {
        let digest = digest(text);
        let known = old.is_some_and(|old| old.documents.contains_key(&digest));
        Ok((digest, if known { None } else { Some(Manifest::read(text)?) }))
    };
    let parsed: Result<_, WireError> = wire::pieces(text).into_iter().map(document).collect();
    // Read as a whole, the error says which document it is, and which line of the file.
    parsed.or_else(|_| Ok(vec![(digest(text), Some(Manifest::read(text)?))]))
}

const fn kept(known: bool) -> &'static str {
    if known { "; its last content stays in force" } else { "" }
}

fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// The manifests of a folder, by name. Hidden files are drafts of editors, and folders with the data of mounted
/// volumes.
fn manifests_in(folder: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
        if !hidden && ["yaml", "yml", "json"].contains(&extension) {
            files.insert(path);
        }
    }
    Ok(files)
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;

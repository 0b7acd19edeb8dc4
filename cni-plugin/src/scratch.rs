//! The configuration that `flannel` delegated, one file per attachment below `dataDir`, where the reference's
//! plugin finds it at DEL, and we find its.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use cni_core::{Attachment, Error, Network, scratch_content, scratch_dir, scratch_of};

use crate::{failure, files, networks::Call, records::make_folder};

/// What was delegated for an attachment.
pub(crate) struct Scratch {
    path: PathBuf,
    /// `None` for a garbled file.
    pub(crate) network: Option<Network>,
}

impl Scratch {
    /// Where that of the container of `call` goes: the reference's name, the container's id, unless the file
    /// of that name is of another attachment of the same container.
    pub(crate) fn place(call: &Call) -> Result<PathBuf, Error> {
        let [usual, own] = places(&call.network, &call.who)?;
        let is_anothers = fs::read(&usual).is_ok_and(|text| matches!(scratch_of(&text, &call.who), Ok(None)));
        Ok(if is_anothers { own } else { usual })
    }

    /// Writes it to its place.
    pub(crate) fn write(path: &Path, delegated: &Network, who: &Attachment) -> Result<(), Error> {
        let content = scratch_content(delegated, who);
        let folder = path.parent().unwrap_or(path);
        make_folder(folder)?;
        let replaced = || match files::create_whole(folder, path, &content)? {
            true => Ok(()),
            false => fs::remove_file(path)
                .and_then(|()| files::create_whole(folder, path, &content))
                .and_then(|made| if made { Ok(()) } else { Err(io::ErrorKind::AlreadyExists.into()) }),
        };
        replaced().map_err(|e| failure::file("write", path, &e))
    }

    /// That of the container of `call`, where there is one.
    pub(crate) fn find(call: &Call) -> Result<Option<Self>, Error> {
        let is_read = |path: PathBuf| -> Option<Self> {
            match scratch_of(&fs::read(&path).ok()?, &call.who) {
                Ok(None) => None,
                Ok(network) => Some(Self { path, network }),
                Err(_) => Some(Self { path, network: None }),
            }
        };
        let [usual, own] = places(&call.network, &call.who)?;
        Ok(is_read(own).or_else(|| is_read(usual)))
    }

    /// Removes the file.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        remove(&self.path)
    }
}

/// Removes the files of this network's attachments that are not valid; goes on after a failure and reports the first.
pub(crate) fn sweep(network: &Network, valid: &[Attachment]) -> Result<(), Error> {
    let folder = scratch_dir(network)?;
    let own: BTreeSet<String> = valid.iter().map(own_name).collect();
    let mut by_container: BTreeMap<&str, Vec<&Attachment>> = BTreeMap::new();
    valid.iter().for_each(|who| by_container.entry(&who.container).or_default().push(who));
    let mut swept = Ok(());
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        let (name, content) = (entry.file_name(), fs::read(entry.path()).unwrap_or_default());
        let is_its = Network::parse(&content).is_ok_and(|delegated| delegated.name == network.name);
        let is_valid = name.to_str().is_some_and(|name| {
            let is_of = |who: &&Attachment| matches!(scratch_of(&content, who), Ok(Some(_)));
            own.contains(name) || by_container.get(name).is_some_and(|owners| owners.iter().any(is_of))
        });
        if is_its && !is_valid {
            swept = swept.and(remove(&entry.path()));
        }
    }
    swept
}

/// Removes such a file; absent is done.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    failure::absent_is_done(path, fs::remove_file(path))
}

fn places(network: &Network, who: &Attachment) -> Result<[PathBuf; 2], Error> {
    let folder = PathBuf::from(scratch_dir(network)?);
    Ok([folder.join(&who.container), folder.join(own_name(who))])
}

/// A name that is no container's.
fn own_name(who: &Attachment) -> String {
    format!("#{}", who.host_link())
}

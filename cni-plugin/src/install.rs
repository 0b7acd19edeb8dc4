//! `flannel install`: puts this program, its other names and the conflist where a container runtime looks for
//! them. Each file appears complete, also under a runtime that is executing the old one just now.

use std::{
    env,
    ffi::OsString,
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use cni_core::{Code, Error, Role};
use rustix::fs::{FlockOperation, flock};

use crate::{failure, records::make_folder};

/// What a cluster gets.
const CONFLIST: &str = include_str!("../../manifests/10-flannel.conflist");

/// Its name: runtimes take the first one of their folder.
const CONFLIST_NAME: &str = "10-flannel.conflist";

/// The program's file that the links of the other names lead to. No other package has it: what copies its own
/// `flannel` over ours must not become all the others.
const PROGRAM: &str = "weft-cni";

/// How it is called.
const USAGE: &str = "usage: flannel install [--bin-dir DIR] [--conf-dir DIR] [--replace]

  --bin-dir DIR   where the plugins go (/opt/cni/bin)
  --conf-dir DIR  where the conflist goes (/etc/cni/net.d)
  --replace       take the place of other packages' plugins of the same names";

/// What the command line says.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    bin_dir: PathBuf,
    conf_dir: PathBuf,
    replace: bool,
}

/// Installs, as the arguments behind `install` say, and returns what there is to tell.
pub(crate) fn install(arguments: impl Iterator<Item = OsString>) -> Result<String, Error> {
    let Some(options) = Options::parse(arguments)? else { return Ok(USAGE.to_owned()) };
    let programs = [PROGRAM, Role::Flannel.name()].map(|name| options.bin_dir.join(name));
    let conflist = options.conf_dir.join(CONFLIST_NAME);
    let links = Role::ALL.into_iter().filter(|role| *role != Role::Flannel);
    let links: Vec<PathBuf> = links.map(|role| options.bin_dir.join(role.name())).collect();
    // Nothing takes the place of a folder: better to know before anything is done.
    let taken = links.iter().filter(|_| options.replace).chain(&programs).chain([&conflist]);
    taken.into_iter().try_for_each(|path| not_a_folder(path))?;
    make_folder(&options.bin_dir)?;
    make_folder(&options.conf_dir)?;
    let _alone = [&options.bin_dir, &options.conf_dir].map(|folder| alone_in(folder));
    let mut told = String::new();
    for program in &programs {
        replace_with(program, 0o755, |file| {
            let mut own = File::open("/proc/self/exe")?;
            io::copy(&mut own, file).map(drop)
        })?;
        told.push_str(&format!("installed {}\n", program.display()));
    }
    for link in links {
        if options.replace || is_free(&link) {
            replace_link(&link)?;
            told.push_str(&format!("installed {}\n", link.display()));
        } else {
            told.push_str(&format!("left alone {}: it is another package's\n", link.display()));
        }
    }
    // Last: from now on the runtime starts pods.
    replace_with(&conflist, 0o644, |file| file.write_all(CONFLIST.as_bytes()))?;
    told.push_str(&format!("installed {}", conflist.display()));
    Ok(told)
}

impl Options {
    /// Reads them; `None` for who asks how it is called.
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Option<Self>, Error> {
        let wrong = |what: String| Error::new(Code::InvalidConfig, format!("{what}\n\n{USAGE}"));
        let mut options =
            Self { bin_dir: "/opt/cni/bin".into(), conf_dir: "/etc/cni/net.d".into(), replace: false };
        while let Some(argument) = arguments.next() {
            let text = argument.to_string_lossy().into_owned();
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(PathBuf::from(value))),
                None => (text, None),
            };
            let mut folder = |to: &mut PathBuf| -> Result<(), Error> {
                let value = value.clone().or_else(|| arguments.next().map(PathBuf::from));
                let value = value.filter(|value| !value.as_os_str().is_empty());
                *to = value.ok_or_else(|| wrong(format!("{name} needs a folder")))?;
                Ok(())
            };
            match name.as_str() {
                "--bin-dir" => folder(&mut options.bin_dir)?,
                "--conf-dir" => folder(&mut options.conf_dir)?,
                "--help" | "-h" => return Ok(None),
                "--replace" if value.is_none() => options.replace = true,
                _ => return Err(wrong(format!("unknown argument {name:?}"))),
            }
        }
        Ok(Some(options))
    }
}

/// No other install works in `folder` for as long as the result lives, so that what is half done there is nobody's. A
/// file system without locks has to do without.
fn alone_in(folder: &Path) -> Option<File> {
    let opened = File::open(folder).ok()?;
    flock(&opened, FlockOperation::LockExclusive).ok().map(|()| opened)
}

fn not_a_folder(path: &Path) -> Result<(), Error> {
    if fs::symlink_metadata(path).is_ok_and(|there| there.is_dir()) {
        return Err(failure::file("install", path, &io::ErrorKind::IsADirectory.into()));
    }
    Ok(())
}

/// There is nothing at `link`, or a link of ours, such as led to `flannel` once.
fn is_free(link: &Path) -> bool {
    let ours = [PROGRAM, Role::Flannel.name()].map(Path::new);
    match fs::symlink_metadata(link) {
        Ok(_) => fs::read_link(link).is_ok_and(|target| ours.contains(&&*target)),
        Err(e) => e.kind() == io::ErrorKind::NotFound,
    }
}

fn replace_link(link: &Path) -> Result<(), Error> {
    let new = beside(link);
    let made = symlink(PROGRAM, &new).and_then(|()| fs::rename(&new, link));
    made.map_err(|e| undone(&new, link, &e))
}

/// Puts a file with what `fill` writes in the place of `path`.
fn replace_with(path: &Path, mode: u32, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), Error> {
    let new = beside(path);
    let made = File::create_new(&new).and_then(|mut file| {
        fill(&mut file)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        // A program that is open for writing can't be executed.
        drop(file);
        fs::rename(&new, path)
    });
    made.map_err(|e| undone(&new, path, &e))
}

/// A name that no runtime takes for a plugin or a configuration, free of what a killed install left there.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}.new"));
    let _ = fs::remove_file(&new);
    new
}

fn undone(new: &Path, path: &Path, error: &io::Error) -> Error {
    let _ = fs::remove_file(new);
    failure::file("install", path, error)
}

/// The arguments behind `install`, if this program is called so.
pub(crate) fn asked() -> Option<impl Iterator<Item = OsString>> {
    let mut arguments = env::args_os().skip(1);
    (arguments.next()? == "install").then_some(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<Options>, String> {
        Options::parse(text.split_whitespace().map(OsString::from)).map_err(|e| e.msg)
    }

    #[test]
    fn folders_are_given_either_way() {
        let wanted = Options { bin_dir: "/b".into(), conf_dir: "/c".into(), replace: true };
        assert_eq!(parse("--bin-dir /b --conf-dir=/c --replace"), Ok(Some(wanted)));
        let usual = parse("").map(|options| options.map(|options| options.conf_dir));
        assert_eq!(usual, Ok(Some("/etc/cni/net.d".into())));
        assert_eq!((parse("--help"), parse("--replace -h")), (Ok(None), Ok(None)));
        for wrong in ["--bin-dir", "--bin-dir=", "--replace=yes", "--force", "/b"] {
            assert!(parse(wrong).is_err_and(|text| text.contains("usage: flannel install")), "{wrong}");
        }
    }

    #[test]
    fn the_conflist_is_one_entry_that_does_it_all() {
        let list: serde_json::Value = serde_json::from_str(CONFLIST).expect("JSON");
        let plugins = list["plugins"].as_array().expect("a list");
        assert_eq!((plugins.len(), &plugins[0]["type"]), (1, &"flannel".into()));
        assert_eq!(plugins[0]["capabilities"]["portMappings"], true);
        assert_eq!(plugins[0]["capabilities"]["bandwidth"], true);
        assert_eq!(list["cniVersion"], "1.0.0");
    }
}

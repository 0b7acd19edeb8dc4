//! Files that come into being complete.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::Path,
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};

/// Makes `path` in `folder` with `content` in one step; false if it exists.
pub(crate) fn create_whole(folder: &Path, path: &Path, content: &str) -> io::Result<bool> {
    let made = match nameless(folder, content) {
        Ok(file) => link(&file, path),
        // A file system without nameless files (old overlayfs): the reference's way.
        Err(_) => create_new(path, content),
    };
    match made {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    }
}

/// Puts `path` in `folder` with `content` in the place of what may be there.
pub(crate) fn replace_whole(folder: &Path, path: &Path, content: &str) -> io::Result<()> {
    if create_whole(folder, path, content)? {
        return Ok(());
    }
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    create_whole(folder, &new, content)?;
    fs::rename(&new, path)
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

/// The file goes again where it does not get its content, as on a full disk.
fn create_new(path: &Path, content: &str) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    let written =
        file.set_permissions(Permissions::from_mode(0o600)).and_then(|()| file.write_all(content.as_bytes()));
    written.inspect_err(|_| drop(fs::remove_file(path)))
}

#[cfg(test)]
mod tests {
    use testkit::TempDir;

    use super::*;

    #[test]
    fn without_nameless_files_a_reservation_is_made_in_two_steps() {
        let dir = TempDir::new("steps").expect("a folder");
        let path = dir.path().join("10.1.0.2");
        assert!(create_new(&path, "c1\r\neth0").is_ok());
        assert_eq!(fs::read(&path).expect("a file"), b"c1\r\neth0");
        assert!(create_new(&path, "c2").is_err_and(|e| e.kind() == io::ErrorKind::AlreadyExists));
    }
}

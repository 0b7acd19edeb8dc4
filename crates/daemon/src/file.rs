//! Files that other programs read while we write them.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// A file could not be replaced.
#[derive(Debug, thiserror::Error)]
#[error("failed to {verb} {}", path.display())]
pub struct FileError {
    verb: &'static str,
    path: PathBuf,
    #[source]
    cause: io::Error,
}

/// Replaces the file at `path` in one step: a reader sees the old content or the new one, and after
/// a loss of power one of the two is there.
///
/// Missing folders are made with mode 0755, less the umask; the file gets `mode`, whatever the umask. What a killed
/// predecessor left half written (`.<name>.new`) is overwritten, so nothing piles up. Only one
/// process at a time may write a given path.
///
/// # Errors
/// The first system call that fails, with the path it was about.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let failed = |verb, path: &Path| {
        let path = path.to_owned();
        move |cause| FileError { verb, path, cause }
    };
    let name = path.file_name().ok_or_else(|| {
        failed("write", path)(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))
    })?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(failed("create folder", folder))?;
    let mut draft_name = std::ffi::OsString::from(".");
    draft_name.push(name);
    draft_name.push(".new");
    let draft = folder.join(draft_name);
    write_anew(&draft, content, mode).map_err(failed("write", &draft))?;
    fs::rename(&draft, path).map_err(failed("replace", path))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync folder", folder))
}

/// Writes a file that was not there a moment ago, so that a planted link is not followed.
fn write_anew(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("weft-file-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn a_file_is_replaced_with_its_folders_and_mode() {
        let folder = folder("replace");
        let path = folder.join("run/flannel/subnet.env");
        for content in ["A=1\n", "A=2\n"] {
            replace(&path, content.as_bytes(), 0o644).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_a_killed_writer_left_is_overwritten() {
        let folder = folder("leftover");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("victim"), "keep").unwrap();
        std::os::unix::fs::symlink(folder.join("victim"), folder.join(".status.json.new")).unwrap();
        replace(&folder.join("status.json"), b"{}", 0o600).unwrap();
        assert_eq!(fs::read_to_string(folder.join("status.json")).unwrap(), "{}");
        assert_eq!(fs::read_to_string(folder.join("victim")).unwrap(), "keep");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn an_error_names_what_was_tried_on_which_path() {
        let error = replace(Path::new("/proc/no/such/file"), b"", 0o644).unwrap_err();
        assert_eq!(error.to_string(), "failed to create folder /proc/no/such");
        assert!(replace(Path::new("/"), b"", 0o644).is_err());
    }
}

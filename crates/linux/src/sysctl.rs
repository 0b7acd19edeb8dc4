//! Kernel settings under `/proc/sys`.
//!
//! Most of `net` belongs to a network namespace: what is read and written is that of the calling thread, so
//! use [`Netns::enter`](crate::netns::Netns::enter) for another one.

use std::{fs, io, path::PathBuf};

use crate::{Cause, Error};

/// Reads a setting, without the line's end. `path` names it by its parts, so that a dot in the name of an
/// interface is no separator: `["net", "ipv4", "conf", "eth0.7", "forwarding"]`.
///
/// # Errors
/// There is no such setting ([`Error::is_not_found`]).
pub fn read(path: &[&str]) -> Result<String, Error> {
    file(path)
        .and_then(fs::read_to_string)
        .map(|text| text.trim_end().to_owned())
        .map_err(|error| Error::new("read", text(path), Cause::Errno(error)))
}

/// Writes a setting. `path` as in [`read`].
///
/// # Errors
/// There is no such setting ([`Error::is_not_found`]), it may not be written here (`/proc/sys` is read-only
/// in many containers), or the kernel refuses the value.
pub fn write(path: &[&str], value: &str) -> Result<(), Error> {
    file(path)
        .and_then(|file| fs::OpenOptions::new().write(true).open(file))
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|error| Error::new("set", format!("{} to {value:?}", text(path)), Cause::Errno(error)))
}

/// The file of a setting. A part that would lead elsewhere is refused.
fn file(path: &[&str]) -> io::Result<PathBuf> {
    if path.iter().any(|part| part.is_empty() || *part == "." || *part == ".." || part.contains('/')) {
        return Err(io::Error::from_raw_os_error(libc::ENOENT));
    }
    Ok(["/proc/sys"].iter().chain(path).collect())
}

/// The setting as people write it.
fn text(path: &[&str]) -> String {
    format!("sysctl {}", path.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_found_by_its_parts_alone() {
        assert_eq!(
            file(&["net", "ipv4", "conf", "a.b", "forwarding"]).unwrap(),
            PathBuf::from("/proc/sys/net/ipv4/conf/a.b/forwarding")
        );
        for bad in [["net", "..", "x"], ["net", "a/b", "x"], ["net", "", "x"]] {
            assert!(read(&bad).unwrap_err().is_not_found(), "{bad:?}");
        }
        assert_eq!(read(&["net", "nothing"]).unwrap_err().to_string(), "failed to read sysctl net/nothing");
    }
}

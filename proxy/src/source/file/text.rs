//! The text of a manifest, and nothing that could hold up the program or fill its memory.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::OFlags;

/// The largest manifest that is read, in bytes.
const LARGEST: u64 = 256 << 20;

/// The text of a regular file, or of one that a link leads to.
///
/// # Errors
/// It can't be read, is larger than [`LARGEST`], is not UTF-8, or is no regular file: a pipe or a device may never
/// come to an end.
pub(super) fn read(path: &Path) -> io::Result<String> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY; // opening a pipe waits for a writer, without NONBLOCK
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = String::new();
    let is_too_large = meta.len() > LARGEST || {
        // It may grow meanwhile, and some files do not tell their size.
        file.take(LARGEST + 1).read_to_string(&mut text)?;
        text.len() as u64 > LARGEST
    };
    if is_too_large {
        return Err(io::Error::other(format!("it is larger than {} MiB", LARGEST >> 20)));
    }
    Ok(text)
}

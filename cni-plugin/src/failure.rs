//! Failures of files and of the kernel in the runtime's words.

use std::{error::Error as _, io, path::Path};

use cni_core::{Code, Error};

/// The reason of an I/O error as Go programs write it: in lower case, without the number.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split_once(" (os error").map_or(text.as_str(), |(text, _)| text);
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// A file could not be used.
pub(crate) fn file(verb: &str, path: &Path, error: &io::Error) -> Error {
    Error::new(Code::Io, format!("failed to {verb} {}: {}", path.display(), reason(error)))
}

/// The outcome of removing `path`, where what is absent already counts as removed.
pub(crate) fn absent_is_done(path: &Path, removed: io::Result<()>) -> Result<(), Error> {
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(file("remove", path, &e)),
        _ => Ok(()),
    }
}

/// The kernel refused; the whole chain of causes in one line.
pub(crate) fn kernel(error: &linux::Error) -> Error {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    if error.is_permission() {
        text.push_str(": run as root, the plugin needs CAP_NET_ADMIN and CAP_SYS_ADMIN");
    }
    Error::new(Code::Internal, text)
}

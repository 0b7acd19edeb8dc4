//! Temporary directories with the owner's process id in their name.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

/// All names begin so, followed by the process id of the owner.
const PREFIX: &str = "weft-test-";

/// A directory that is removed when this value goes.
///
/// What a killed process left behind is removed by the next process that makes one.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
    keep: bool,
}

impl TempDir {
    /// Makes an empty directory; `what` is part of its name.
    ///
    /// # Errors
    /// When the directory for temporary files can't be written.
    pub fn new(what: &str) -> Result<Self> {
        static SWEEP: Once = Once::new();
        let base = std::env::temp_dir();
        SWEEP.call_once(|| sweep(&base));
        Self::below(&base, what)
    }

    /// The same on a file system in memory, as `/run` is one.
    ///
    /// # Errors
    /// There is no `/dev/shm`.
    pub fn in_memory(what: &str) -> Result<Self> {
        Self::below(Path::new("/dev/shm"), what)
    }

    fn below(base: &Path, what: &str) -> Result<Self> {
        let path = base.join(format!("{PREFIX}{}", unique(what)));
        fs::create_dir(&path).with_context(|| format!("failed to make directory {}", path.display()))?;
        Ok(Self { path, keep: false })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the directory in place when this value goes.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Writes a file below the directory, made together with the folders above it, and returns its path.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.path.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if !self.keep {
            drop(fs::remove_dir_all(&self.path));
        }
    }
}

/// `<process id>-<number>-<what>`: a name that no other test uses.
pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}-{what}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Removes directories whose owner is gone, except those kept on purpose (they hold a file `keep`).
fn sweep(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|n| n.strip_prefix(PREFIX)).and_then(|n| n.split('-').next());
        let Some(owner) = owner.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !Path::new(&format!("/proc/{owner}")).exists() && !entry.path().join("keep").exists() {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_with_its_owner() -> Result<()> {
        let dir = TempDir::new("goes")?;
        let file = dir.write("a/b.txt", "x")?;
        assert!(file.exists());
        let path = dir.path().to_owned();
        drop(dir);
        assert!(!path.exists());
        Ok(())
    }

    #[test]
    fn what_a_killed_process_left_is_swept_but_not_what_was_kept() -> Result<()> {
        let base = TempDir::new("sweep")?;
        // No process has this number: the kernel's largest is 4194304.
        let (gone, kept) = ("weft-test-99999999-0-x", "weft-test-99999999-1-y");
        let alive = format!("weft-test-{}-0-z", std::process::id());
        for name in [gone, kept, &alive] {
            fs::create_dir(base.path().join(name))?;
        }
        base.write(&format!("{kept}/keep"), "")?;
        sweep(base.path());
        let left: Vec<_> = [gone, kept, &alive].iter().map(|n| base.path().join(n).exists()).collect();
        assert_eq!(left, [false, true, true]);
        Ok(())
    }
}

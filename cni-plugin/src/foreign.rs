//! Plugins of other packages, executed as the specification says.

use std::{
    env, fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use cni_core::{Code, Error, Network};

use crate::failure;

/// How often a plugin that is just being written is tried again, and after how long.
const BUSY: (usize, Duration) = (10, Duration::from_millis(100));

/// Executes the plugin `kind` for `verb`, with our own environment and `network` as its input, and returns what
/// it printed.
///
/// # Errors
/// It is not in `CNI_PATH`, can't be executed, or failed: then its error, as it told it.
pub(crate) fn run(kind: &str, verb: &str, network: &Network) -> Result<String, Error> {
    let program = find(kind)?;
    let output = execute(&program, verb, network.to_json().as_bytes())
        .map_err(|e| failure::file("execute", &program, &e))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() {
        return Ok(text);
    }
    let failed = || {
        let said = if text.is_empty() { "it said nothing".to_owned() } else { format!("{text:?}") };
        Error::new(Code::Internal, format!("plugin {kind} failed with {}: {said}", output.status))
    };
    Err(Error::passed_on(&text).map_or_else(failed, |error| error.about_plugin(kind)))
}

/// The file of that name in the first folder of `CNI_PATH` that has it.
///
/// # Errors
/// None has it.
pub(crate) fn find(kind: &str) -> Result<PathBuf, Error> {
    let path = env::var_os("CNI_PATH").unwrap_or_default();
    let is_program = |file: &PathBuf| {
        fs::metadata(file).is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
    };
    let folders = env::split_paths(&path).filter(|folder| folder.is_absolute());
    folders.map(|folder| folder.join(kind)).find(is_program).ok_or_else(|| {
        let text = format!("failed to find plugin {kind:?} in path [{}]", path.display());
        Error::new(Code::Internal, text)
    })
}

fn execute(program: &Path, verb: &str, input: &[u8]) -> io::Result<Output> {
    let mut child = start(program, verb)?;
    let stdin = child.stdin.take();
    thread::scope(|scope| {
        // It may answer before it has read everything, or without reading.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
        child.wait_with_output()
    })
}

fn start(program: &Path, verb: &str) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.env("CNI_COMMAND", verb).stdin(Stdio::piped()).stdout(Stdio::piped());
    for _ in 0..BUSY.0 {
        match command.spawn() {
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy => thread::sleep(BUSY.1),
            other => return other,
        }
    }
    command.spawn()
}

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

use cni_core::{Code, Error, Network, Outcome};

use crate::failure;

/// How often a plugin that is just being written is tried again, and after how long.
const BUSY: (usize, Duration) = (10, Duration::from_millis(100));

/// How many characters of what a plugin printed a message holds.
const LONGEST_QUOTE: usize = 200;

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
        let msg = format!("plugin {kind} failed with {}: {}", output.status, quoted(&text));
        Error::new(Code::Internal, msg)
    };
    Err(Error::passed_on(&text).map_or_else(failed, |error| error.about_plugin(kind)))
}

/// Executes the plugin `kind` for ADD, and returns its result as it printed it and as it is understood.
///
/// # Errors
/// As [`run`], or it printed no result.
pub(crate) fn add(kind: &str, network: &Network) -> Result<(String, Outcome), Error> {
    let text = run(kind, "ADD", network)?;
    let garbled = |error: Error| {
        let msg = format!("plugin {kind} succeeded but printed no result: {}", quoted(&text));
        Error::new(Code::Decode, msg).with_details(error.msg)
    };
    let outcome = Outcome::of_text(&text).map_err(garbled)?;
    Ok((text, outcome))
}

/// What a plugin printed, shortened to what fits a message.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(LONGEST_QUOTE) {
        _ if text.is_empty() => "it said nothing".to_owned(),
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
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
    // A runtime that loses patience kills us alone, and goes on to DEL.
    linux::end_with_starter(&mut command);
    for _ in 0..BUSY.0 {
        match command.spawn() {
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy => thread::sleep(BUSY.1),
            other => return other,
        }
    }
    command.spawn()
}

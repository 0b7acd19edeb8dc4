//! `weft-proxy`: leads connections to Services to their endpoints, by nftables.
#![forbid(unsafe_code)]

use std::{fs, io::Write, path::Path, process::ExitCode};

use anyhow::Context;
use weft_proxy::{
    flags::{self, Command, Outcome, Settings},
    kernel::Kernel,
    node,
    run::{self, Runner},
    status::Status,
};

fn main() -> ExitCode {
    let settings = match flags::parse_own() {
        Outcome::Text(text) => {
            // A reader that went away has read enough.
            let _ = show(&format!("{}\n", text.trim_end()));
            return ExitCode::SUCCESS;
        }
        Outcome::Wrong(mistakes) => {
            for mistake in mistakes.iter() {
                eprintln!("{mistake}");
            }
            return ExitCode::from(mistakes.exit_code());
        }
        Outcome::Work(settings) => *settings,
    };
    daemon::log::init(settings.verbosity);
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    match work(&settings) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weft-proxy: {}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

fn work(settings: &Settings) -> anyhow::Result<ExitCode> {
    let name = || node::node_name(settings).context("this host has no name: give --hostname-override");
    match settings.command {
        Command::Run => run::run(settings.clone(), name()?)?,
        Command::Plan => show(&Runner::new(settings.clone(), name()?)?.plan()?)?,
        Command::Cleanup => cleanup(settings)?,
        Command::Status { json } => return status(settings, json),
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes the table, the routes and the status file.
fn cleanup(settings: &Settings) -> anyhow::Result<()> {
    let mut kernel = Kernel::open()?;
    kernel.delete_table()?;
    let machine = kernel.machine()?;
    kernel.set_routes(&machine, &std::collections::BTreeSet::new())?;
    let _ = fs::remove_file(&settings.status_file); // it is there only if a proxy ran
    Ok(())
}

fn status(settings: &Settings, json: bool) -> anyhow::Result<ExitCode> {
    let path = &settings.status_file;
    let (text, status) = Status::read(path)
        .with_context(|| format!("no weft-proxy seems to run here: failed to read {}", path.display()))?;
    if !Path::new(&format!("/proc/{}", status.pid)).exists() {
        eprintln!("process {} runs no more; what it left in the kernel stays", status.pid);
    }
    show(&if json { text } else { status.to_string() })?;
    Ok(ExitCode::SUCCESS)
}

fn show(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("failed to write to standard output")
}

/// The error on one line, with what to do about it where we know.
fn explain(error: &anyhow::Error) -> String {
    let line = daemon::one_line(error.as_ref());
    let denied =
        error.chain().filter_map(|e| e.downcast_ref::<linux::Error>()).any(linux::Error::is_permission);
    if denied { format!("it must run as root, with CAP_NET_ADMIN: {line}") } else { line }
}

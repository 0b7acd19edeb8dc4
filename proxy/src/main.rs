//! `weft-proxy`: leads connections to Services to their endpoints, by nftables.
#![forbid(unsafe_code)]

use std::{
    fs,
    io::{ErrorKind, Write},
    process::ExitCode,
};

use anyhow::{Context, bail, ensure};
use daemon::flags::Outcome;
use weft_proxy::{
    alone,
    flags::{self, Command, Settings},
    kernel::Kernel,
    node,
    run::{self, Runner},
    status::Status,
};

fn main() -> ExitCode {
    let settings = match flags::parse_own() {
        Outcome::Help(text) | Outcome::Version(text) => {
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
        Outcome::Work(settings) => settings,
    };
    daemon::log::init(settings.verbosity);
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    match work(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-proxy: {}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

fn work(settings: &Settings) -> anyhow::Result<()> {
    let name = || node::node_name(settings).context("this host has no name: give --hostname-override");
    match settings.command {
        Command::Run => run::run(settings.clone(), name()?),
        Command::Plan => show(&Runner::new(settings.clone(), name()?)?.plan()?),
        Command::Cleanup => cleanup(settings),
        Command::Status { json } => status(settings, json),
    }
}

/// Removes the table, the routes and the status file.
fn cleanup(settings: &Settings) -> anyhow::Result<()> {
    // A proxy that runs would put everything back at once.
    let alone = alone::become_alone().context("failed to look for another weft-proxy")?;
    let _alone = alone.context("a weft-proxy runs here; end it first")?;
    let mut kernel = Kernel::open()?;
    kernel.delete_table()?;
    let machine = kernel.machine()?;
    kernel.set_routes(&machine, &std::collections::BTreeSet::new())?;
    let _ = fs::remove_file(&settings.status_file); // it is there only if a proxy ran
    Ok(())
}

/// Shows what a running proxy holds; an error if none runs.
fn status(settings: &Settings, json: bool) -> anyhow::Result<()> {
    let path = &settings.status_file;
    let running = alone::is_other_running().context("failed to look for a weft-proxy")?;
    let (text, status) = match Status::read(path) {
        Err(error) if !running && error.kind() == ErrorKind::NotFound => bail!("no weft-proxy runs here"),
        read => read.with_context(|| format!("failed to read {}", path.display()))?,
    };
    show(&if json { text } else { status.to_string() })?;
    ensure!(running, "no weft-proxy runs here: this is what the last one wrote");
    Ok(())
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

//! The process of flanneld: flags in, exit code out.
#![forbid(unsafe_code)]

use std::{io::Write, process::ExitCode};

use daemon::flags::Outcome;
use flanneld::{
    cleanup, commands,
    flags::{self, Command, Settings},
};
use rustix::fs::Mode;

fn main() -> ExitCode {
    // Docker and pods' plugins, whoever they run as, read what is written here, in folders that are made for it.
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    match flags::parse_own() {
        Outcome::Help(text) => {
            // A reader that went away has read enough.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Outcome::Version(text) => {
            eprintln!("{text}");
            ExitCode::SUCCESS
        }
        Outcome::Wrong(mistakes) => {
            eprintln!("{mistakes}");
            ExitCode::from(mistakes.exit_code())
        }
        Outcome::Work(settings) => work(settings),
    }
}

fn work(settings: Settings) -> ExitCode {
    let outcome = match settings.command {
        Command::Run => {
            daemon::log::init(settings.verbosity);
            commands::run(settings)
        }
        Command::Plan => commands::plan(&settings),
        Command::Cleanup => cleanup::run(&settings),
        Command::Status { json } => commands::status(&settings, json),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flanneld: {}", daemon::one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

//! `make demo`: a cluster of three nodes on this machine, judged from outside.
//!
//! `KEEP=1` leaves it up. `--quick` leaves out repairs, kills and outages; `--break <fault>` breaks the
//! cluster first (see `Fault`), to show that the checks which should notice it do.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use netns_tests::demo::{Options, run, serve};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let answer = match words.first().map(String::as_str) {
        // A server in a pod is this program again.
        Some("serve") => serve(&words[1..]).map(|()| true),
        _ => Options::parse(
            &words,
            std::env::var_os("KEEP").is_some_and(|keep| keep != "0" && !keep.is_empty()),
        )
        .and_then(|options| run(&options)),
    };
    match answer {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

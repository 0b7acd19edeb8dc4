//! Benchmarks: our programs beside their peers and beside floors, measured in the same run on the same
//! machine.
//!
//! ```text
//! bench             everything
//! bench overlay     one area
//! ```
//! Each row is one line, `bench <name> <ours> <peer> <ratio>`, of medians; the raw samples go to
//! `target/bench/<area>.json`. A name is `<what>:<peer>`. Benchmarks assert nothing.
#![forbid(unsafe_code)]

mod floor;
mod overlay;
mod pods;
mod report;
mod services;

use std::env;

use anyhow::{Context, Result, bail};
use report::Report;

/// Measures one area.
type Area = fn(&mut Report) -> Result<()>;

/// The areas by name, in the order in which they run.
const AREAS: [(&str, Area); 3] =
    [("overlay", overlay::run), ("pods", pods::run), ("services", services::run)];

fn main() -> Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == floor::COMMAND) {
        return floor::run(&words[1..]);
    }
    if let Some(unknown) = words.iter().find(|word| AREAS.iter().all(|(name, _)| name != word)) {
        let known: Vec<&str> = AREAS.iter().map(|(name, _)| *name).collect();
        bail!("there is no area {unknown:?}; there are {}", known.join(", "));
    }
    for (name, area) in AREAS {
        if words.is_empty() || words.iter().any(|word| word == name) {
            let mut report = Report::new(name);
            area(&mut report).with_context(|| format!("failed to measure {name}"))?;
            report.write()?;
        }
    }
    Ok(())
}

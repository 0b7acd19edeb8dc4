//! The demo's checks notice when something is broken: each fault makes its check say FAIL.

use std::time::Duration;

use anyhow::Result;
use testkit::{Cmd, Ran, netns_or_skip};

fn demo(words: &[&str]) -> Result<Ran> {
    Cmd::new(env!("CARGO_BIN_EXE_demo")).args(words.iter().copied()).limit(Duration::from_secs(240)).run()
}

/// Lines of the table that begin with the verdict and name the check.
fn verdict(output: &str, check: &str) -> Option<String> {
    let lines = output.lines().filter(|line| line.contains(check));
    lines.filter_map(|line| line.split_whitespace().next()).next_back().map(str::to_owned)
}

fn notices(fault: &str, checks: &[&str]) -> Result<()> {
    if netns_or_skip().is_none() {
        return Ok(());
    }
    let ran = demo(&["--break", fault])?;
    assert_eq!(ran.code, Some(1), "{ran}");
    for check in checks {
        assert_eq!(verdict(&ran.stdout, check).as_deref(), Some("FAIL"), "{check}: {ran}");
    }
    Ok(())
}

#[test]
fn a_whole_cluster_passes() -> Result<()> {
    if netns_or_skip().is_none() {
        return Ok(());
    }
    let ran = demo(&["--quick"])?;
    assert_eq!(ran.code, Some(0), "{ran}");
    Ok(())
}

#[test]
fn no_masquerade() -> Result<()> {
    notices("masquerade", &["pod to outside is masqueraded"])
}

#[test]
fn another_vni() -> Result<()> {
    notices("vni", &["every pod to every pod", "packets between nodes are VXLAN"])
}

#[test]
fn a_stale_fdb_entry() -> Result<()> {
    notices("fdb", &["every pod to every pod"])
}

#[test]
fn no_hairpin() -> Result<()> {
    notices("hairpin", &["a pod reaches itself through its Service"])
}

#[test]
fn an_endpoint_that_is_gone() -> Result<()> {
    notices("endpoint", &["spread over three endpoints"])
}

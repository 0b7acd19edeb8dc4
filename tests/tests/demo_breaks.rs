//! The demo's checks notice when something is broken: each fault makes its check say FAIL.

use std::time::Duration;

use anyhow::Result;
use netns_tests::demo::{Fault, UNMEASURED};
use testkit::{Cmd, Ran, netns_or_skip};

fn demo(words: &[&str]) -> Result<Ran> {
    Cmd::new(env!("CARGO_BIN_EXE_demo")).args(words.iter().copied()).limit(Duration::from_secs(240)).run()
}

fn notices(fault: Fault) -> Result<()> {
    if netns_or_skip().is_none() {
        return Ok(());
    }
    let ran = demo(&["--break", fault.name()])?;
    assert_eq!(ran.code, Some(1), "{ran}");
    assert!(!ran.stdout.contains(UNMEASURED), "a check that can't be carried out notices nothing: {ran}");
    for check in fault.noticed_by() {
        let verdict = ran.stdout.lines().rfind(|line| line.contains(check)).map(str::to_owned);
        assert!(verdict.is_some_and(|line| line.starts_with("FAIL")), "{check}: {ran}");
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
    notices(Fault::Masquerade)
}

#[test]
fn another_vni() -> Result<()> {
    notices(Fault::Vni)
}

#[test]
fn a_stale_fdb_entry() -> Result<()> {
    notices(Fault::Fdb)
}

#[test]
fn no_hairpin() -> Result<()> {
    notices(Fault::Hairpin)
}

#[test]
fn an_endpoint_that_is_gone() -> Result<()> {
    notices(Fault::Endpoint)
}

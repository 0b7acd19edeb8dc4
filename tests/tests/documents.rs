//! What the documents name is there.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

/// The file that holds the tests of `place`, as `docs/cni.md` writes it.
fn file_of(place: &str) -> String {
    match place.split_once('/') {
        Some(("core", module)) => format!("cni-plugin/core/src/{module}.rs"),
        Some(("rules", module)) => format!("tests/tests/cni_rules/{module}.rs"),
        Some(("shell", module)) => format!("cni-plugin/src/{module}.rs"),
        _ => format!("tests/tests/cni_plugin/{place}.rs"),
    }
}

#[test]
fn every_test_that_the_page_on_the_plugins_names_exists() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("docs/cni.md"))?;
    let tables = page.split_once("## The reference's tests").context("the tables")?.1;
    let named = tables.split('`').skip(1).step_by(2).filter_map(|code| code.split_once("::"));
    let named: Vec<_> = named.filter(|(_, test)| *test != "x").collect();
    ensure!(named.len() > 50, "{named:?}");
    for (place, test) in named {
        let path = root.join(file_of(place));
        let text = fs::read_to_string(&path).with_context(|| format!("{place}::{test}"))?;
        ensure!(text.contains(&format!("fn {test}(")), "{test} is not in {}", path.display());
    }
    Ok(())
}

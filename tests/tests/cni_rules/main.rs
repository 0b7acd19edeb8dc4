//! The rules that a CNI plugin is held to, each by its number: the programs are driven as a runtime does,
//! with environment and standard input, and judged by what the kernel, the files and the wire say.
//!
//! Rules 34 and 35 are in `tests/cni_plugin/crowd.rs`, those of the runtimes themselves (65, 66, 67) in
//! `tests/runtimes`.

mod add;
#[path = "../cni_plugin/bed.rs"]
mod bed;
mod check;
mod config;
mod del;
mod environment;
mod failure;
mod gc;
mod kills;
mod lost;
mod network;
mod result;
mod status;

use std::{collections::BTreeSet, fs, path::Path};

/// The numbers in the names of the tests in a folder: `fn rule_07_08_...`.
fn numbers(folder: &Path, found: &mut BTreeSet<u8>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            numbers(&path, found)?;
        } else {
            let text = fs::read_to_string(path)?;
            let names = text.split("\n#[test]\nfn rule_").skip(1);
            let words = names.flat_map(|rest| rest.split('_').map_while(|word| word.parse::<u8>().ok()));
            found.extend(words);
        }
    }
    Ok(())
}

#[test]
fn each_rule_has_a_test_of_its_number() -> std::io::Result<()> {
    let mut found = BTreeSet::new();
    numbers(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"), &mut found)?;
    let missing: Vec<u8> = (1..=69).filter(|number| !found.contains(number)).collect();
    assert!(missing.is_empty(), "no test for {missing:?}");
    Ok(())
}

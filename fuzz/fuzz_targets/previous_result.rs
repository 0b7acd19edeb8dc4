//! Results of earlier plugins, in any version's form: what we write of them reads as the same again.
#![no_main]

use cni_core::{Outcome, SpecVersion};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|document: &[u8]| {
    let Ok(value) = serde_json::from_slice(document) else { return };
    let Ok(outcome) = Outcome::parse(&value) else { return };
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let version = SpecVersion::of_config(Some(version)).expect("a supported version");
        let Ok(text) = outcome.to_json(version) else { continue };
        let again = serde_json::from_str(&text).expect("JSON");
        let again = Outcome::parse(&again).expect("a result");
        assert_eq!(again.to_json(version).expect("a result"), text);
    }
});

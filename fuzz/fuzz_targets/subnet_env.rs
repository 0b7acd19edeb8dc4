//! `subnet.env` and `status.json`, which the CNI plugin reads on its own.
#![no_main]

use cni_core::{SubnetEnv, reason_in_status};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    drop(SubnetEnv::parse("/run/flannel/subnet.env", text));
    drop(reason_in_status(text));
});

//! The environment of the CNI plugin, `CNI_ARGS` above all.
#![no_main]

use cni_core::{Arguments, Environment, Invocation};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    drop(Arguments::parse(text));
    let mut lines = text.split('\n').map(Into::into);
    let environment = Environment {
        command: lines.next(),
        container: lines.next(),
        netns: lines.next(),
        netns_override: lines.next(),
        ifname: lines.next(),
        args: lines.next(),
        path: lines.next(),
    };
    drop(Invocation::parse(&environment));
});

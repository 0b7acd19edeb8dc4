//! Standard input of the CNI plugin: any bytes are a network, or one error.
#![no_main]

use cni_core::{Arguments, Bridge, Ipam, Network, data_dir, delegate_config, scratch_dir, subnet_file};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|stdin: &[u8]| {
    let Ok(network) = Network::parse(stdin) else { return };
    let args = Arguments::default();
    drop((Bridge::parse(&network, &args), Ipam::parse(&network, &args)));
    drop((data_dir(&network), scratch_dir(&network), subnet_file(&network)));
    drop(network.valid_attachments());
    if let Ok(delegated) = delegate_config(&network, None) {
        // What is passed on is a network of the same name, whatever came in.
        assert_eq!(delegated.name, network.name);
        drop(Bridge::parse(&delegated, &args));
    }
});

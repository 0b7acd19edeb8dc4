//! Standard input of the CNI plugin: any bytes are a network, or one error.
#![no_main]

use cni_core::{
    Arguments, Bridge, Ipam, Limits, Network, Tuning, data_dir, delegate_config, scratch_dir, subnet_file,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|stdin: &[u8]| {
    let Ok(network) = Network::parse(stdin) else { return };
    let args = Arguments::default();
    drop((Bridge::parse(&network, &args), Ipam::parse(&network, &args)));
    drop((data_dir(&network), scratch_dir(&network), subnet_file(&network)));
    drop(network.valid_attachments());
    if let Ok(passed) = network.pass_on() {
        // A chained plugin that changes nothing prints a document.
        drop(serde_json::from_str::<serde_json::Value>(&passed).expect("JSON"));
    }
    if let Ok(Limits { ingress: Some(limit), .. }) = Limits::parse(&network) {
        let bucket = limit.bucket(1500);
        // A full packet passes, and no more than 50 ms or three packets go at once.
        assert!(bucket.rate > 0 && bucket.burst >= 1514 && bucket.limit >= bucket.burst);
        assert!(u64::from(bucket.burst) <= (bucket.rate / 20).max(3 * 1514));
    }
    if let Ok(tuning) = Tuning::parse(&network, &args, &"eth0".parse().expect("a name")) {
        assert!(
            tuning.sysctls.iter().all(|one| one.path[0] == "net" && !one.path.contains(&"..".to_owned()))
        );
    }
    if let Ok(delegated) = delegate_config(&network, None) {
        // What is passed on is a network of the same name, whatever came in.
        assert_eq!(delegated.name, network.name);
        drop(Bridge::parse(&delegated, &args));
    }
});

//! Files of reserved addresses: whoever wrote them, an owner that is found can be written and found again.
#![no_main]

use cni_core::{Attachment, owner_of};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let Some(owner) = owner_of(content) else { return };
    let ifname = owner.ifname.unwrap_or("eth0").parse().expect("a checked interface name");
    let who = Attachment { network: "n".into(), container: owner.container.into(), ifname };
    assert!(who.owns(content) && who.owns(who.reservation().as_bytes()));
});

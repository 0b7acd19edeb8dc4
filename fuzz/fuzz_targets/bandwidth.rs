//! Limits of bandwidth, from what is asked for to the message that the kernel gets.
#![no_main]

use cni_core::{Limit, Limits};
use libfuzzer_sys::{
    arbitrary::{Result, Unstructured},
    fuzz_target,
};
use linux::traffic::TokenBucket;
use netmodel::IfName;
use serde_json::{Value, json};
use weft_fuzz::{Make, find, network, number, object};

const KEYS: &[(&str, Make)] =
    &[("ingressRate", bits), ("ingressBurst", bits), ("egressRate", bits), ("egressBurst", bits)];

fn bits(u: &mut Unstructured<'_>) -> Result<Value> {
    const EDGES: [u64; 9] =
        [0, 1, 8, 100_000, 1_000_000_000, 4_294_967_295, 34_359_738_352, 34_359_738_360, u64::MAX];
    number(u, &EDGES)
}

fn try_one(u: &mut Unstructured<'_>) -> Result<()> {
    let fixed = if u.arbitrary()? { object(u, KEYS)? } else { json!({}) };
    let of_runtime = object(u, KEYS)?;
    let mtu = if u.arbitrary()? { 1500 } else { u.int_in_range(68..=65_536)? };
    let mut document = fixed.clone();
    document["runtimeConfig"] = json!({ "bandwidth": of_runtime });
    let Some(limits) = network(document).and_then(|network| Limits::parse(&network).ok()) else {
        return Ok(());
    };
    let is_fixed = fixed.as_object().is_some_and(|fixed| fixed.values().any(|value| !value.is_null()));
    let source = if is_fixed { &fixed } else { &of_runtime };
    check(limits.ingress, source, ["ingressRate", "ingressBurst"], mtu);
    check(limits.egress, source, ["egressRate", "egressBurst"], mtu);
    Ok(())
}

/// The limit is the one that `source` asks for, and is one: a full packet passes, and no more than 50 ms or
/// three packets go at once.
fn check(limit: Option<Limit>, source: &Value, keys: [&str; 2], mtu: u32) {
    let [rate, burst] = keys.map(|key| find(source, key).and_then(Value::as_u64).unwrap_or_default());
    assert_eq!(limit.is_some(), rate != 0 && burst != 0, "{source}");
    let Some(limit) = limit else { return };
    let bucket = limit.bucket(mtu);
    let packet = mtu + 14;
    assert_eq!(bucket.rate, (rate / 8).max(1));
    assert!(bucket.burst >= packet && bucket.limit >= bucket.burst, "{bucket:?}");
    assert!(u64::from(bucket.burst) <= (bucket.rate / 20).max(u64::from(packet) * 3), "{bucket:?}");
    assert!(u64::from(bucket.burst) <= (burst / 8).max(u64::from(packet)), "{bucket:?}");
    let name: IfName = "veth0".parse().expect("a name");
    drop(TokenBucket { rate: bucket.rate, burst: bucket.burst, limit: bucket.limit }.add(1, &name));
}

fuzz_target!(|data: &[u8]| {
    // An input that is used up ends the attempt.
    let _ = try_one(&mut Unstructured::new(data));
});

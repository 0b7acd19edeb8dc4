//! What `tuning` is asked for: only settings of the network, each once, the later source before the earlier.
#![no_main]

use std::collections::BTreeSet;

use cni_core::{Arguments, Backup, Tuning};
use libfuzzer_sys::{
    arbitrary::{Result, Unstructured},
    fuzz_target,
};
use netmodel::IfName;
use serde_json::{Map, Value, json};
use weft_fuzz::{Make, find, flag, network, number, object, text};

const KEYS: &[(&str, Make)] = &[
    ("mac", mac),
    ("mtu", |u| number(u, &[0, 67, 68, 1280, 1500, 65535, 65536])),
    ("promisc", flag),
    ("allmulti", flag),
    ("txQLen", |u| number(u, &[0, 1000, 4_294_967_295, 4_294_967_296])),
    ("sysctl", sysctls),
];

fn mac(u: &mut Unstructured<'_>) -> Result<Value> {
    text(u, &["02:00:00:00:00:01", "02-00-00-00-00-02", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", ""])
        .map(Value::from)
}

fn key(u: &mut Unstructured<'_>) -> Result<String> {
    const PARTS: &[&str] =
        &["net", "ipv4", "conf", "IFNAME", "eth0.7", "eth0/7", "x", "..", ".", "", "kernel", "ä"];
    let separator = *u.choose(&[".", "/"])?;
    let mut key = (if u.ratio(7, 8)? { "net" } else { "" }).to_owned();
    for _ in 0..u.int_in_range(0..=4)? {
        key = key + separator + &text(u, PARTS)?;
    }
    Ok(key)
}

fn sysctls(u: &mut Unstructured<'_>) -> Result<Value> {
    let mut all = Map::new();
    for _ in 0..u.int_in_range(0..=4)? {
        all.insert(key(u)?, text(u, &["0", "1", ""])?.into());
    }
    Ok(all.into())
}

fn try_one(u: &mut Unstructured<'_>) -> Result<()> {
    let mut document = object(u, KEYS)?;
    let of_args = object(u, KEYS)?;
    document["args"] = json!({ "cni": of_args });
    document["runtimeConfig"] = object(u, &[("mac", mac)])?;
    let ifname: IfName = u.choose(&["eth0", "eth0.7", "IFNAME", "..a", "ä"])?.parse().expect("a name");
    let args = text(u, &["", "MAC=02:00:00:00:00:09"])?;
    let (Some(network), Ok(args)) = (network(document.clone()), Arguments::parse(&args)) else {
        return Ok(());
    };
    let Ok(tuning) = Tuning::parse(&network, &args, &ifname) else { return Ok(()) };

    let mut paths = BTreeSet::new();
    for sysctl in &tuning.sysctls {
        let bad = |part: &String| part.is_empty() || part.contains('/') || part == "." || part == "..";
        assert!(
            sysctl.path.len() > 1 && sysctl.path[0] == "net" && !sysctl.path.iter().any(bad),
            "{sysctl:?}"
        );
        assert!(paths.insert(&sysctl.path), "twice: {sysctl:?}");
        let values = [&of_args, &document].map(|keys| find(keys, "sysctl")?.get(&sysctl.key));
        assert_eq!(values.into_iter().flatten().next(), Some(&Value::from(&*sysctl.value)), "{document}");
    }
    if let (Some(wanted), Some(queue)) =
        (find(&of_args, "txQLen").and_then(Value::as_u64), tuning.queue_length)
    {
        assert_eq!(u64::from(queue), wanted);
    }
    let quiet = Tuning { sysctls: tuning.sysctls.clone(), ..Tuning::default() };
    assert_eq!(tuning.is_about_the_link(), tuning != quiet);
    list_and_backup(u, &tuning)
}

/// A list allows what it names, and what was before comes back from its file.
fn list_and_backup(u: &mut Unstructured<'_>, tuning: &Tuning) -> Result<()> {
    assert!(tuning.sysctls.is_empty() || tuning.allowed_by("").is_err());
    assert!(tuning.allowed_by(".*").is_ok() || tuning.sysctls.iter().any(|s| s.key.contains('\n')));
    let _ = tuning.allowed_by(&text(u, &["^net.ipv4.conf.IFNAME.[a-z_]*$", "net\n\n x ", "("])?);
    let backup = Backup {
        mac: tuning.mac.map(|mac| mac.to_string()),
        promisc: tuning.promiscuous,
        mtu: u.arbitrary()?,
        allmulti: tuning.all_multicast,
        queue_length: tuning.queue_length,
        network: u.arbitrary()?,
    };
    assert_eq!(Backup::parse(backup.to_json().as_bytes()), Some(backup));
    if let Some(any) = Backup::parse(u.bytes(u.len())?) {
        assert_eq!(Backup::parse(any.to_json().as_bytes()), Some(any));
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    // An input that is used up ends the attempt.
    let _ = try_one(&mut Unstructured::new(data));
});

//! Results and errors byte for byte, and every parser against arbitrary input.

use std::{fs, net::IpAddr, path::PathBuf};

use cni_core::{
    Arguments, Bridge, Code, Dns, Error, Interface, IpConfig, Limits, Network, Outcome, Route, SpecVersion,
    SubnetEnv, Tuning, delegate_config, owner_of, parse_resolv_conf, version_reply,
};
use proptest::prelude::*;
use serde_json::Value;

/// Compares with `tests/golden/<name>`; with GOLDEN=write it writes the file instead.
fn golden(name: &str, found: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("GOLDEN").is_some_and(|v| v == "write") {
        fs::write(&path, format!("{found}\n")).unwrap();
    }
    assert_eq!(format!("{found}\n"), fs::read_to_string(&path).unwrap(), "{}", path.display());
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn dual_stack() -> Outcome {
    let interface = |name: &str, mac: &str, sandbox: &str| Interface {
        name: name.into(),
        mac: mac.into(),
        sandbox: sandbox.into(),
        mtu: 1450,
    };
    let address = |address: &str, prefix, gateway: &str| IpConfig {
        address: ip(address),
        prefix,
        gateway: Some(ip(gateway)),
        interface: Some(2),
    };
    let route = Route::to("10.42.0.0/16".parse().unwrap(), None);
    Outcome {
        interfaces: vec![
            interface("cni0", "0a:58:0a:2a:03:01", ""),
            interface("veth1c2b6599487", "02:00:00:00:00:01", ""),
            interface("eth0", "0a:58:0a:2a:03:02", "/run/netns/blue"),
        ],
        ips: vec![
            address("10.42.3.2", 24, "10.42.3.1"),
            address("fd00:0:0:3::2", 64, "fd00:0:0:3::1"),
            address("10.43.3.2", 24, "10.43.3.1"),
        ],
        routes: vec![
            Route { mtu: Some(1400), advmss: Some(1360), priority: Some(7), ..route },
            Route { table: Some(100), scope: Some(253), ..route },
            Route::to("0.0.0.0/0".parse().unwrap(), Some(ip("10.42.3.1"))),
            Route::to("::/0".parse().unwrap(), Some(ip("fd00:0:0:3::1"))),
        ],
        dns: Dns { nameservers: vec!["10.254.0.10".into()], search: vec!["x.y".into()], ..Dns::default() },
    }
}

#[test]
fn results_of_every_version() {
    for version in SpecVersion::ALL {
        let text = dual_stack().to_json(version).unwrap();
        golden(&format!("result-{}.json", version.as_str()), &text);
        let plain = Outcome { dns: Dns::default(), routes: vec![], ..dual_stack() };
        golden(&format!("result-plain-{}.json", version.as_str()), &plain.to_json(version).unwrap());
    }
}

#[test]
fn no_address_is_no_old_result() {
    let empty = Outcome::default();
    assert_eq!(empty.to_json(SpecVersion::V0_2_0).unwrap_err().msg, "cannot convert: no valid IP addresses");
    assert_eq!(empty.to_json(SpecVersion::V1_1_0).unwrap(), r#"{"cniVersion":"1.1.0"}"#);
}

#[test]
fn a_result_is_read_back_from_every_version() {
    for version in SpecVersion::ALL {
        let text = dual_stack().to_json(version).unwrap();
        let back = Outcome::parse(&serde_json::from_str(&text).unwrap()).unwrap();
        let expected = if version < SpecVersion::V0_3_0 { 2 } else { 3 };
        assert_eq!(back.ips.len(), expected, "{text}");
        assert_eq!(back.ips[0].address, ip("10.42.3.2"));
        assert!(back.routes.iter().any(|r| r.dst.prefix() == 0 && r.gw == Some(ip("10.42.3.1"))));
    }
    let full = dual_stack().to_json(SpecVersion::V1_1_0).unwrap();
    assert_eq!(Outcome::parse(&serde_json::from_str(&full).unwrap()), Ok(dual_stack()));
}

#[test]
fn what_old_plugins_leave_behind_is_read() {
    for text in [
        r#"{"dns":{}}"#,
        r#"{"ips":[{"version":"","interface":-1,"address":"127.0.0.1/8"}],"interfaces":null}"#,
        r#"{"cniVersion":"","interfaces":[{"name":"lo","mac":"00:00:00:00:00:00","Sandbox":"/n"}],"routes":null}"#,
    ] {
        let value: Value = serde_json::from_str(text).unwrap();
        assert!(Outcome::parse(&value).is_ok(), "{text}");
    }
}

#[test]
fn a_later_plugin_keeps_what_came_before() {
    let merged = dual_stack().after(dual_stack());
    assert_eq!((merged.interfaces.len(), merged.ips[3].interface), (6, Some(5)));
    assert_eq!(merged.addresses_of("eth0").count(), 6);
    assert_eq!(merged.addresses_of("lo").count(), 0);
}

#[test]
fn errors_of_every_code() {
    let texts: Vec<String> = [
        Code::IncompatibleVersion,
        Code::UnsupportedField,
        Code::BadEnvironment,
        Code::Io,
        Code::Decode,
        Code::InvalidConfig,
        Code::InvalidNetns,
        Code::TryAgainLater,
        Code::NotAvailable,
        Code::Internal,
    ]
    .map(|code| Error::new(code, format!("{code:?}")).with_details("d").to_json(Some(SpecVersion::V0_4_0)))
    .into();
    golden("errors.json", &texts.join("\n"));
    golden("version.json", &version_reply());
}

#[test]
fn readings_of_subnet_files() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/subnet-env");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let reading = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        match SubnetEnv::parse(name, &String::from_utf8_lossy(&fs::read(path).unwrap())) {
            Ok(env) => {
                let list = |subnets: &[netmodel::Subnet]| {
                    subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
                };
                let (networks, subnets) = (list(&env.networks), list(&env.subnets));
                format!(
                    "{name}: networks {networks}; subnets {subnets}; mtu {}; masquerades {}",
                    env.mtu, env.ip_masq
                )
            }
            Err(error) => format!("{name}: code {}: {error}", error.code as u16),
        }
    };
    golden("subnet-env.txt", &paths.iter().map(reading).collect::<Vec<_>>().join("\n"));
}

/// JSON that looks like a configuration: our keys in odd letter cases, values of every kind.
fn odd_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z0-9./:%-]{0,12}".prop_map(Value::from),
        Just("host-local".into()),
        Just("10.1.0.0/24".into()),
        Just("fd00::/64".into()),
        Just("10.1.0.7/24".into()),
    ];
    leaf.prop_recursive(5, 64, 6, |inner| {
        let key = prop_oneof![
            Just("ipam"),
            Just("IPAM"),
            Just("ranges"),
            Just("subnet"),
            Just("rangeStart"),
            Just("rangeEnd"),
            Just("gateway"),
            Just("routes"),
            Just("dst"),
            Just("gw"),
            Just("delegate"),
            Just("type"),
            Just("mtu"),
            Just("dns"),
            Just("runtimeConfig"),
            Just("ipRanges"),
            Just("ips"),
            Just("args"),
            Just("cni"),
            Just("interfaces"),
            Just("address"),
            Just("interface"),
            Just("ip4"),
            Just("prevResult"),
            Just("cni.dev/valid-attachments"),
            Just("vlanTrunk"),
            Just("bridge"),
            Just("name"),
            Just("bandwidth"),
            Just("ingressRate"),
            Just("ingressBurst"),
            Just("sysctl"),
            Just("net.a"),
            Just("mac"),
            Just("txQLen"),
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.prop_map(str::to_owned), inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

fn read_everything(document: &Value, env: Option<&SubnetEnv>) {
    let Ok(network) = Network::parse(document.to_string().as_bytes()) else { return };
    let _ = Bridge::parse(&network, &Arguments::default());
    let _ = network.valid_attachments();
    let _ = network.previous().map(Outcome::parse);
    let _ = cni_core::data_dir(&network);
    let _ = (network.pass_on(), network.pass_on_with(&[]));
    let limits = Limits::parse(&network).unwrap_or_default();
    let _ = limits.ingress.map(|limit| limit.bucket(u32::MAX));
    let _ = Tuning::parse(&network, &Arguments::default(), &"eth0".parse().unwrap());
    if let Ok(delegate) = delegate_config(&network, env) {
        let _ = Bridge::parse(&delegate, &Arguments::default());
    }
}

proptest! {
    #[test]
    fn no_configuration_panics(mut document in odd_json(), version in prop::sample::select(&SpecVersion::ALL[..])) {
        if let Some(map) = document.as_object_mut() {
            map.insert("cniVersion".into(), version.as_str().into());
            map.insert("name".into(), "n".into());
            map.insert("type".into(), "flannel".into());
        }
        let text = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        read_everything(&document, SubnetEnv::parse("x", text).ok().as_ref());
        read_everything(&document, None);
        let _ = Outcome::parse(&document);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Network::parse(&bytes);
        let _ = owner_of(&bytes);
        let text = String::from_utf8_lossy(&bytes);
        let _ = SubnetEnv::parse("x", &text);
        let _ = Arguments::parse(&text);
        let _ = parse_resolv_conf(&text);
    }

    #[test]
    fn no_subnet_file_panics(lines in prop::collection::vec("(export )?FLANNEL_(NETWORK|SUBNET|MTU|IPMASQ|IPV6_SUBNET)=[0-9a-f.:/,]{0,20}", 0..6)) {
        let _ = SubnetEnv::parse("x", &lines.join("\n"));
    }
}

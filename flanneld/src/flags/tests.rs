use super::*;

fn ask(line: &[&str], environment: &[(&str, &str)]) -> Outcome<Settings> {
    let variable = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
    PROGRAM.outcome(PROGRAM.parse(line.iter().map(Into::into), variable), check)
}

fn good(line: &[&str], environment: &[(&str, &str)]) -> Settings {
    match ask(line, environment) {
        Outcome::Work(settings) => settings,
        other => panic!("{line:?}: {other:?}"),
    }
}

fn wrong(line: &[&str]) -> (String, u8) {
    match ask(line, &[]) {
        Outcome::Wrong(mistakes) => (mistakes.to_string(), mistakes.exit_code()),
        other => panic!("{line:?}: {other:?}"),
    }
}

fn etcd_of(settings: &Settings) -> &EtcdSettings {
    match &settings.origin {
        Origin::Etcd(etcd) => etcd,
        Origin::File(path) => panic!("a file: {}", path.display()),
    }
}

#[test]
fn defaults_are_flannels() {
    let settings = good(&[], &[]);
    let etcd = etcd_of(&settings);
    assert_eq!(etcd.endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
    assert_eq!(etcd.prefix, "/coreos.com/network");
    assert_eq!(etcd.renew_margin, Duration::from_secs(3600));
    assert!(etcd.ca_file.is_none() && etcd.identity.is_none() && etcd.user.is_none());
    assert_eq!(settings.command, Command::Run);
    assert_eq!(settings.subnet_file.to_str(), Some("/run/flannel/subnet.env"));
    assert_eq!(settings.health.to_string(), "0.0.0.0:0");
    assert!(!settings.ip_masq && settings.masquerade_at_random && settings.forward_rules);
    assert!(!settings.blackhole_route && settings.public_ip.is_none() && settings.warnings.is_empty());
}

#[test]
fn the_packages_own_environment_file_works_as_it_is() {
    let file = [
        ("FLANNEL_ETCD_ENDPOINTS", "http://10.0.0.1:2379,http://10.0.0.2:2379/"),
        ("FLANNEL_ETCD_PREFIX", "/atomic.io/network/"),
        ("FLANNEL_OPTIONS", "-iface=eth1 --ip-masq"),
    ];
    let settings = good(&[], &file);
    assert_eq!(etcd_of(&settings).endpoints, ["http://10.0.0.1:2379", "http://10.0.0.2:2379"]);
    assert_eq!(etcd_of(&settings).prefix, "/atomic.io/network");
    assert!(settings.ip_masq && settings.iface == ["eth1"]);
    let old =
        good(&[], &[("FLANNEL_ETCD", "http://10.0.0.9:4001"), ("FLANNEL_ETCD_KEY", "/kube-centos/network")]);
    assert_eq!(etcd_of(&old).endpoints, ["http://10.0.0.9:4001"]);
    assert_eq!(etcd_of(&old).prefix, "/kube-centos/network");
    let own = good(&["-etcd-prefix", "/x"], &file);
    assert_eq!(etcd_of(&own).prefix, "/x");
    let own = good(&[], &[("FLANNELD_ETCD_PREFIX", "/own"), ("FLANNEL_ETCD_PREFIX", "/package")]);
    assert_eq!(etcd_of(&own).prefix, "/own");
}

#[test]
fn every_mistake_is_reported_at_once() {
    let (text, code) = wrong(&[
        "-etcd-endpoints=ftp://x,http://user:hunter2@y",
        "-subnet-lease-renew-margin=1440",
        "-public-ip=x",
        "-iface-regex=(",
        "-kube-subnet-mgr",
        "-etcd-certfile=/c",
        "-from=git:x",
        "-nope",
    ]);
    for part in [
        "-nope: there is no such flag",
        "-kube-subnet-mgr: the Kubernetes source is not in this version",
        "\"ftp://x\" is not an endpoint",
        "\"y\" is not an endpoint",
        "-subnet-lease-renew-margin \"1440\": it must be 1 to 1439",
        "-public-ip \"x\": invalid IPv4 address syntax",
        "-iface-regex \"(\":",
        "-etcd-certfile is of no use without -etcd-keyfile",
        "-from \"git:x\": it must be etcd or file:PATH",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
    assert_eq!(code, 2);
}

#[test]
fn a_margin_out_of_range_ends_with_code_1_and_an_unknown_flag_with_2() {
    for margin in ["0", "1440"] {
        assert_eq!(wrong(&["-subnet-lease-renew-margin", margin]).1, 1);
    }
    assert_eq!(wrong(&["-subnet-lease-renew-margin", "x"]).1, 2);
    assert_eq!(wrong(&["-unknown"]).1, 2);
    assert_eq!(etcd_of(&good(&["-subnet-lease-renew-margin=1439"], &[])).renew_margin.as_secs(), 1439 * 60);
}

#[test]
fn a_public_address_that_peers_cannot_send_to_is_refused() {
    for (ip, kind) in
        [("0.0.0.0", "zero"), ("127.0.0.1", "a loopback address"), ("224.0.0.1", "a multicast address")]
    {
        let expected = format!("-public-ip {ip:?}: it is {kind}, which peers can't send to");
        assert_eq!(wrong(&["-public-ip", ip]), (expected, 1));
    }
}

#[test]
fn the_password_is_in_no_text() {
    let settings = good(&["-etcd-username=u", "-etcd-password=hunter2"], &[]);
    assert!(!format!("{settings:?}").contains("hunter2"));
    assert_eq!(etcd_of(&settings).user.as_ref().unwrap().1.expose(), "hunter2");
    assert!(!wrong(&["-etcd-password=hunter2"]).0.contains("hunter2"));
}

#[test]
fn files_for_tls_make_bare_endpoints_https_and_warn_about_http() {
    let settings = good(&["-etcd-endpoints=a:2379", "-etcd-cafile=/ca"], &[]);
    assert_eq!(etcd_of(&settings).endpoints, ["https://a:2379"]);
    assert!(settings.warnings.is_empty());
    let settings = good(&["-etcd-endpoints=http://a:2379", "-etcd-cafile=/ca"], &[]);
    assert_eq!(settings.warnings.len(), 1);
    assert_eq!(etcd_of(&good(&["-etcd-endpoints=a:2379"], &[])).endpoints, ["http://a:2379"]);
}

#[test]
fn commands_sources_and_the_version() {
    assert_eq!(good(&["status", "--json"], &[]).command, Command::Status { json: true });
    assert_eq!(good(&["cleanup"], &[]).command, Command::Cleanup);
    let settings = good(&["plan", "--from", "file:leases.json"], &[]);
    assert!(matches!(settings.origin, Origin::File(path) if path.ends_with("leases.json")));
    assert!(matches!(ask(&["-version"], &[]), Outcome::Version(line) if line.starts_with("flanneld 0.")));
    assert!(matches!(ask(&["-help"], &[]), Outcome::Help(_)));
}

#[test]
fn flags_without_a_meaning_warn_once_each() {
    let settings = good(&["-iptables-resync=5", "-logtostderr", "-v=10", "-kubeconfig-file", "/x"], &[]);
    assert_eq!((settings.warnings.len(), settings.verbosity), (3, 10));
}

#[test]
fn a_prefix_is_cleaned_as_go_joins_paths() {
    for (given, clean_one) in [("/a//b/", "/a/b"), ("a/./b/../c", "a/c"), ("/", "/"), ("/../x", "/x")] {
        assert_eq!(clean(given), clean_one);
    }
}

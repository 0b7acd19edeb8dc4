use super::*;

const PROGRAM: Program = Program {
    name: "flanneld",
    about: "a test",
    commands: &[("run", "works"), ("plan", "prints"), ("status", "tells")],
    flags: &[&[
        Flag::text("etcd-prefix", "/coreos.com/network", "key prefix")
            .or_variables(&["FLANNEL_ETCD_PREFIX", "FLANNEL_ETCD_KEY"]),
        Flag::number("healthz-port", "0", "port"),
        Flag::secret("etcd-password", "password"),
        Flag::switch("ip-masq", false, "masquerade"),
        Flag::switch("iptables-forward-rules", true, "forward"),
        Flag::repeated("iface", "interface"),
        Flag::switch("json", false, "as JSON"),
        Flag::ignored("iptables-resync", Takes::Value, "rules are watched, not polled"),
        Flag::ignored("logtostderr", Takes::Switch, "logs always go to standard error"),
        Flag::refused("kube-subnet-mgr", Takes::Switch, "the Kubernetes source is not in this version"),
    ]],
    prefix: "FLANNELD_",
    options_variable: Some("FLANNEL_OPTIONS"),
};

fn parse(line: &str, environment: &[(&str, &str)]) -> (Given, Mistakes) {
    let words = line.split(' ').filter(|word| !word.is_empty()).map(Into::into);
    let variable = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
    match PROGRAM.parse(words, variable) {
        Asked::Work(given, mistakes) => (given, mistakes),
        Asked::Help(text) => panic!("{text}"),
    }
}

/// The values of `line` without a mistake.
fn good(line: &str, environment: &[(&str, &str)]) -> Given {
    let (given, mistakes) = parse(line, environment);
    assert!(mistakes.is_empty(), "{line}: {mistakes}");
    given
}

#[test]
fn one_dash_or_two_with_equals_or_a_space() {
    for line in ["-etcd-prefix /x", "--etcd-prefix /x", "-etcd-prefix=/x", "--etcd-prefix=/x"] {
        assert_eq!(good(line, &[]).text("etcd-prefix"), "/x", "{line}");
    }
    assert_eq!(good("-etcd-prefix=a=b", &[]).text("etcd-prefix"), "a=b");
    assert_eq!(good("-etcd-prefix=", &[]).text("etcd-prefix"), "");
    assert_eq!(good("-etcd-prefix --x", &[]).text("etcd-prefix"), "--x");
    assert_eq!(good("", &[]).text("etcd-prefix"), "/coreos.com/network");
}

#[test]
fn a_bare_switch_is_true_and_takes_no_word() {
    assert!(good("-ip-masq", &[]).is_on("ip-masq"));
    assert!(good("--ip-masq=T", &[]).is_on("ip-masq"));
    assert!(!good("-ip-masq -ip-masq=false", &[]).is_on("ip-masq"));
    assert!(good("", &[]).is_on("iptables-forward-rules"));
    assert!(!good("-iptables-forward-rules=0", &[]).is_on("iptables-forward-rules"));
    let (_, mistakes) = parse("-ip-masq false", &[]);
    assert_eq!(mistakes.to_string(), "\"false\" is not a command: there are run, plan, status");
}

#[test]
fn the_last_one_wins_but_a_repeatable_one_collects() {
    let given =
        good("-healthz-port 1 -iface eth0 -healthz-port=2 --iface=eth1", &[("FLANNELD_IFACE", "eth9")]);
    assert_eq!((given.text("healthz-port"), given.list("iface")), ("2", vec!["eth0", "eth1"]));
    assert_eq!(good("", &[("FLANNELD_IFACE", "eth0,eth1")]).list("iface"), vec!["eth0,eth1"]);
}

#[test]
fn a_word_names_the_command_wherever_it_stands() {
    assert_eq!(good("", &[]).command(), "run");
    for line in ["status -json", "-json status", "-json -- status"] {
        let given = good(line, &[]);
        assert_eq!((given.command(), given.is_on("json")), ("status", true), "{line}");
    }
    let (_, mistakes) = parse("plan it", &[]);
    assert_eq!(mistakes.to_string(), "\"it\": no further word may follow the command \"plan\"");
    let Asked::Work(given, mistakes) = PROGRAM.parse([String::new().into()], |_| None) else { panic!() };
    assert!(mistakes.is_empty() && given.command() == "run");
}

#[test]
fn the_environment_stands_below_the_command_line_in_layers() {
    let all = [
        ("FLANNELD_ETCD_PREFIX", "/own"),
        ("FLANNEL_OPTIONS", "-etcd-prefix=/options"),
        ("FLANNEL_ETCD_PREFIX", "/package"),
        ("FLANNEL_ETCD_KEY", "/old"),
    ];
    assert_eq!(good("-etcd-prefix /line", &all).text("etcd-prefix"), "/line");
    for (skip, value) in ["/own", "/options", "/package", "/old"].into_iter().enumerate() {
        assert_eq!(good("", &all[skip..]).text("etcd-prefix"), value);
    }
    assert_eq!(good("", &[("FLANNELD_ETCD_PREFIX", "")]).text("etcd-prefix"), "/coreos.com/network");
}

#[test]
fn the_options_variable_is_split_like_a_unit_file_does() {
    let given = good("", &[("FLANNEL_OPTIONS", " -iface=eth0  --iface 'a b' -ip-masq \"\" ")]);
    assert_eq!((given.list("iface"), given.is_on("ip-masq")), (vec!["eth0", "a b"], true));
    let (_, mistakes) = parse("", &[("FLANNEL_OPTIONS", "-nope \"x")]);
    assert_eq!(mistakes.to_string(), "FLANNEL_OPTIONS: a quotation mark is not closed");
    let (_, mistakes) = parse("", &[("FLANNEL_OPTIONS", "-nope plan")]);
    assert_eq!(
        mistakes.to_string(),
        "FLANNEL_OPTIONS: -nope: there is no such flag; -help lists all of them\nFLANNEL_OPTIONS: \"plan\" is not a flag"
    );
}

#[test]
fn every_mistake_is_reported_and_names_where_it_was_made() {
    let (given, mut mistakes) =
        parse("-nope=1 -healthz-port x -ip-masq=yes -json=1 -etcd-prefix", &[("FLANNELD_NOPE", "1")]);
    assert_eq!(given.parsed::<u16>("json", &mut mistakes), Some(1));
    assert_eq!(given.parsed::<bool>("json", &mut mistakes), None);
    let expected = "-nope: there is no such flag; -help lists all of them
-etcd-prefix: a value is missing
-healthz-port \"x\": invalid digit found in string
-ip-masq \"yes\": it must be true or false
-json \"1\": provided string was not `true` or `false`";
    assert_eq!((mistakes.to_string().as_str(), mistakes.exit_code()), (expected, 2));
    let mut mistakes = Mistakes::default();
    mistakes.value("-healthz-port \"0\": out of range".to_owned());
    assert_eq!(mistakes.exit_code(), 1);
    let (_, mistakes) = parse("---x -=y", &[]);
    assert_eq!(mistakes.iter().count(), 2);
}

#[test]
fn a_variable_without_the_number_or_truth_value_that_it_should_hold_is_passed_over() {
    let bad = [("FLANNELD_HEALTHZ_PORT", "abc"), ("FLANNELD_IPTABLES_FORWARD_RULES", "yes")];
    let given = good("", &bad);
    assert_eq!((given.text("healthz-port"), given.is_on("iptables-forward-rules")), ("0", true));
    assert_eq!(
        given.warnings(),
        [
            "FLANNELD_HEALTHZ_PORT \"abc\": invalid digit found in string; the default is used",
            "FLANNELD_IPTABLES_FORWARD_RULES \"yes\": it must be true or false; the default is used"
        ]
    );
    assert!(good("-healthz-port 1", &bad[..1]).warnings().is_empty());
    let (_, mistakes) =
        parse("", &[("FLANNEL_OPTIONS", "-healthz-port=abc"), ("FLANNELD_KUBE_SUBNET_MGR", "true")]);
    assert_eq!(mistakes.iter().count(), 2);
}

#[test]
fn a_flag_without_a_meaning_here_is_warned_about_once() {
    let given =
        good("-iptables-resync 5 -logtostderr --iptables-resync=7", &[("FLANNELD_IPTABLES_RESYNC", "3")]);
    assert_eq!(
        given.warnings(),
        [
            "-iptables-resync has no effect: rules are watched, not polled",
            "-logtostderr has no effect: logs always go to standard error"
        ]
    );
    let given = good("", &[("FLANNELD_IPTABLES_RESYNC", "3")]);
    assert_eq!(given.warnings(), ["FLANNELD_IPTABLES_RESYNC has no effect: rules are watched, not polled"]);
}

#[test]
fn a_flag_of_a_later_version_is_refused_unless_it_is_off() {
    let (_, mistakes) = parse("-kube-subnet-mgr", &[]);
    assert_eq!(mistakes.to_string(), "-kube-subnet-mgr: the Kubernetes source is not in this version");
    good("-kube-subnet-mgr=false", &[]);
}

#[test]
fn a_secret_is_in_no_text_that_we_make() {
    let given = good("-etcd-password hunter2", &[]);
    assert_eq!(given.secret("etcd-password").unwrap().expose(), "hunter2");
    let mut mistakes = Mistakes::default();
    assert_eq!(given.parsed::<u16>("etcd-password", &mut mistakes), None);
    assert!(!format!("{given:?}{mistakes}").contains("hunter2"), "{given:?}{mistakes}");
}

#[test]
fn help_is_given_whatever_else_is_wrong_and_names_every_flag() {
    for line in ["-h", "-help", "--help", "-nope --help"] {
        match PROGRAM.parse(line.split(' ').map(Into::into), |_| None) {
            Asked::Help(text) => {
                for flag in PROGRAM.flags() {
                    assert!(text.contains(&format!("-{}", flag.name)), "{text}");
                }
                assert!(
                    text.contains("[FLANNELD_ETCD_PREFIX]") && text.contains("(default /coreos.com/network)")
                );
            }
            Asked::Work(..) => panic!("{line} is not taken for help"),
        }
    }
}

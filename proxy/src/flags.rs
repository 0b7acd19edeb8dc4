//! The command line: what was written is checked into [`Settings`]. What a setting means on this machine, such
//! as the node's address, is found out later.

mod table;

use std::path::PathBuf;

use daemon::flags::{Given, Mistakes, Outcome};
use netmodel::{NodeName, Subnet};

pub use table::PROGRAM;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Work until a signal comes.
    Run,
    /// Print the ruleset.
    Plan,
    /// Remove everything that weft-proxy made.
    Cleanup,
    /// Tell what a running weft-proxy holds.
    Status {
        /// As JSON, for programs.
        json: bool,
    },
}

/// At which addresses of this node its node ports are open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// At all of them but loopback ones.
    All,
    /// At some.
    Some {
        /// At the node's own address.
        primary: bool,
        /// At those within these ranges.
        ranges: Vec<Subnet>,
    },
}

/// What was asked for, checked; nothing here depends on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What to do.
    pub command: Command,
    /// A manifest or a folder of manifests; always there for the commands that need it.
    pub from: Option<PathBuf>,
    /// Where pods have their addresses; no two overlap.
    pub pod_ranges: Vec<Subnet>,
    /// The name of this node, where it was given.
    pub node_name: Option<NodeName>,
    /// Where node ports are open.
    pub node_port_addresses: NodePortAddresses,
    /// Every connection to a cluster IP is masqueraded.
    pub masquerade_all: bool,
    /// The file that tells what this proxy holds.
    pub status_file: PathBuf,
    /// klog's scale.
    pub verbosity: u8,
    /// What the user should know, one line each.
    pub warnings: Vec<String>,
}

/// Reads this process's command line and environment.
#[must_use]
pub fn parse_own() -> Outcome<Settings> {
    PROGRAM.outcome(PROGRAM.parse_own(), check)
}

/// The settings; `None` only where `mistakes` says why.
fn check(given: &Given, mistakes: &mut Mistakes) -> Option<Settings> {
    let command = match given.command() {
        _ if given.is_on("cleanup") => Command::Cleanup,
        "plan" => Command::Plan,
        "cleanup" => Command::Cleanup,
        "status" => Command::Status { json: given.is_on("json") },
        _ => Command::Run,
    };
    let from = match given.text("from").strip_prefix("file:") {
        // What inotify tells of a file is told by its whole path.
        Some(path) if !path.is_empty() => Some(std::path::absolute(path).unwrap_or_else(|_| path.into())),
        _ if given.text("from").is_empty() => None,
        _ => {
            mistakes.usage(format!("{}: it must be file:PATH", given.describe("from")));
            None
        }
    };
    if from.is_none() && given.text("from").is_empty() && matches!(command, Command::Run | Command::Plan) {
        mistakes
            .usage("--from is missing: it must be file:PATH, a manifest or a folder of manifests".to_owned());
    }
    let status_file = PathBuf::from(given.text("status-file"));
    if status_file.file_name().is_none() {
        mistakes.value(format!("{}: it must name a file", given.describe("status-file")));
    }
    let mut warnings = given.warnings().to_vec();
    Some(Settings {
        command,
        from,
        pod_ranges: pod_ranges(given, mistakes, &mut warnings),
        node_name: node_name(given, mistakes),
        node_port_addresses: node_port_addresses(given, mistakes, &mut warnings),
        masquerade_all: given.is_on("masquerade-all"),
        status_file,
        verbosity: given.verbosity(mistakes),
        warnings,
    })
}

/// A node's name is in lower case, whatever the user writes, as with kube-proxy.
fn node_name(given: &Given, mistakes: &mut Mistakes) -> Option<NodeName> {
    let name = given.text("hostname-override").trim().to_lowercase();
    if name.is_empty() {
        return None;
    }
    let parsed = name.parse::<NodeName>();
    parsed.map_err(|error| mistakes.value(format!("{}: {error}", given.describe("hostname-override")))).ok()
}

fn pod_ranges(given: &Given, mistakes: &mut Mistakes, warnings: &mut Vec<String>) -> Vec<Subnet> {
    let mut ranges: Vec<Subnet> = Vec::new();
    for range in subnets(given, "cluster-cidr", words(given.text("cluster-cidr")), mistakes) {
        if !range.is_ipv4() {
            warnings.push(format!("--cluster-cidr {range}: IPv6 is not in this version"));
        } else if let Some(other) = ranges.iter().find(|other| other.overlaps(&range)) {
            mistakes.value(format!("{}: {range} overlaps {other}", given.describe("cluster-cidr")));
        } else {
            ranges.push(range);
        }
    }
    ranges
}

fn node_port_addresses(
    given: &Given,
    mistakes: &mut Mistakes,
    warnings: &mut Vec<String>,
) -> NodePortAddresses {
    let (mut all, mut primary, mut ranges) = (false, false, Vec::new());
    for word in words(given.text("nodeport-addresses")) {
        match word {
            "all" | "0.0.0.0/0" => all = true,
            "primary" => primary = true,
            "localhost" => {
                warnings.push(
                    "--nodeport-addresses localhost: node ports are never open at loopback addresses"
                        .to_owned(),
                );
            }
            _ => ranges.extend(subnets(given, "nodeport-addresses", [word], mistakes)),
        }
    }
    if words(given.text("nodeport-addresses")).next().is_none() {
        primary = true; // as kube-proxy takes an empty list
    }
    if all { NodePortAddresses::All } else { NodePortAddresses::Some { primary, ranges } }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty())
}

/// The subnets that these words are. Bits behind the prefix are passed over, as with kube-proxy.
fn subnets<'a>(
    given: &Given,
    flag: &str,
    words: impl IntoIterator<Item = &'a str>,
    mistakes: &mut Mistakes,
) -> Vec<Subnet> {
    let mut subnets = Vec::new();
    for word in words {
        let parsed = word.split_once('/').and_then(|(address, prefix)| {
            Subnet::containing(address.parse().ok()?, prefix.parse().ok()?).ok()
        });
        match parsed {
            Some(subnet) => subnets.push(subnet),
            None => mistakes.value(format!(
                "{}: {word:?} is no range: it must be an address and a prefix length such as \"10.244.0.0/16\"",
                given.describe(flag)
            )),
        }
    }
    subnets
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn parse(line: &str) -> Result<Settings, Vec<String>> {
        let arguments = line.split_whitespace().map(Into::into);
        let asked = PROGRAM.parse(arguments, |name| (name == "NODE_NAME").then(|| "from-env".to_owned()));
        match PROGRAM.outcome(asked, check) {
            Outcome::Work(settings) => Ok(settings),
            Outcome::Wrong(mistakes) => Err(mistakes.iter().map(str::to_owned).collect()),
            Outcome::Help(text) | Outcome::Version(text) => panic!("{text}"),
        }
    }

    #[test]
    fn flags_are_checked_into_settings() {
        let settings =
            parse("--from=file:/etc/s.yaml --cluster-cidr 10.244.3.0/16 -hostname-override Node-1").unwrap();
        assert_eq!(settings.command, Command::Run);
        assert_eq!(settings.from, Some("/etc/s.yaml".into()));
        assert_eq!(settings.pod_ranges, ["10.244.0.0/16".parse().unwrap()]);
        assert_eq!(settings.node_name, Some("node-1".parse().unwrap()));
        let primary = NodePortAddresses::Some { primary: true, ranges: Vec::new() };
        assert_eq!(settings.node_port_addresses, primary);
        let relative = parse("plan --from file:x").unwrap();
        assert_eq!(relative.node_name, Some("from-env".parse().unwrap()));
        assert_eq!(relative.from, Some(std::env::current_dir().unwrap().join("x")));
    }

    #[test]
    fn node_ports_are_open_at_what_the_words_say() {
        let of = |words: &str| {
            parse(&format!("--from file:x --nodeport-addresses {words}")).unwrap().node_port_addresses
        };
        assert_eq!(of("all"), NodePortAddresses::All);
        assert_eq!(of(","), NodePortAddresses::Some { primary: true, ranges: Vec::new() });
        assert_eq!(of("10.0.0.0/8,0.0.0.0/0"), NodePortAddresses::All);
        let ranges = vec!["10.0.0.0/8".parse().unwrap(), "192.0.2.0/24".parse().unwrap()];
        assert_eq!(
            of("10.1.2.3/8,192.0.2.0/24"),
            NodePortAddresses::Some { primary: false, ranges: ranges.clone() }
        );
        assert_eq!(of("primary,10.0.0.0/8,192.0.2.0/24"), NodePortAddresses::Some { primary: true, ranges });
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let mistakes =
            parse("--cluster-cidr 10.244.0.0 --nodeport-addresses some --hostname-override a_b --nonsense");
        let mistakes = mistakes.unwrap_err().join("\n");
        for part in
            ["--from is missing", "\"10.244.0.0\" is no range", "\"some\" is no range", "a_b", "nonsense"]
        {
            assert!(mistakes.contains(part), "{part} is not in:\n{mistakes}");
        }
        let overlap = parse("--from file:x --cluster-cidr 10.0.0.0/8,10.244.0.0/16").unwrap_err().join("\n");
        assert!(overlap.contains("10.244.0.0/16 overlaps 10.0.0.0/8"), "{overlap}");
        assert!(parse("--from etcd").is_err() && parse("cleanup").is_ok());
    }

    #[test]
    fn flags_of_kube_proxy_without_a_meaning_are_one_warning_each() {
        let settings = parse("--from file:x --proxy-mode=nftables --conntrack-min 0 --logtostderr").unwrap();
        assert_eq!(settings.warnings.len(), 3, "{:?}", settings.warnings);
        assert!(parse("--from file:x --kubeconfig /x").is_err());
        assert_eq!(parse("--cleanup").unwrap().command, Command::Cleanup);
    }
}

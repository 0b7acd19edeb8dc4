//! The command line: what was written ([`daemon::flags::Given`]) is checked into [`Settings`]. What a
//! setting means on this machine, such as the interface of a name, is found out later.

mod table;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use daemon::{
    Secret,
    flags::{Given, Mistakes, Outcome},
};
use overlay_core::host::no_nodes_address;
use regex_lite::Regex;

pub use table::PROGRAM;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Work until a signal comes.
    Run,
    /// Print what would be done.
    Plan,
    /// Remove everything that flanneld made.
    Cleanup,
    /// Tell what a running flanneld holds.
    Status {
        /// As JSON, for programs.
        json: bool,
    },
}

/// Where leases come from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// An etcd cluster.
    Etcd(EtcdSettings),
    /// A file in the format of [`crate::source::file`].
    File(PathBuf),
}

/// How to reach etcd.
#[derive(Clone, Debug)]
pub struct EtcdSettings {
    /// URLs, at least one; the scheme is `http` or `https`, and there is no `/` at the end.
    pub endpoints: Vec<String>,
    /// What every key begins with, without a `/` at the end.
    pub prefix: String,
    /// File with the certificates of the authorities that the servers' certificates are checked by.
    pub ca_file: Option<PathBuf>,
    /// Files with the certificate and the key of this client.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Name and password of an etcd user.
    pub user: Option<(String, Secret)>,
    /// How long before its end a lease is renewed: 1 to 1439 minutes.
    pub renew_margin: Duration,
}

/// What was asked for, checked; nothing here depends on this machine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What to do.
    pub command: Command,
    /// Where leases come from.
    pub origin: Origin,
    /// Names or addresses of interfaces, in order of preference.
    pub iface: Vec<String>,
    /// Patterns for addresses, then names, of interfaces; tried after `iface`.
    pub iface_regex: Vec<Regex>,
    /// The interface that a route to this address leaves by; tried last.
    pub iface_can_reach: Option<IpAddr>,
    /// The address that peers are told.
    pub public_ip: Option<Ipv4Addr>,
    /// The file that the CNI plugin reads.
    pub subnet_file: PathBuf,
    /// Packets that leave the pod network are masqueraded.
    pub ip_masq: bool,
    /// Source ports of masqueraded connections are drawn at random.
    pub masquerade_at_random: bool,
    /// Packets from and to pods are accepted where a firewall forwards.
    pub forward_rules: bool,
    /// A route of type blackhole stands for this node's own subnet.
    pub blackhole_route: bool,
    /// Where health checks are answered; port 0 means nowhere.
    pub health: SocketAddr,
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
    let mut warnings = given.warnings().to_vec();
    let origin = origin(given, mistakes, &mut warnings);
    let iface_regex = given.list("iface-regex").into_iter().filter_map(|text| {
        let pattern = Regex::new(text);
        pattern.map_err(|error| mistakes.usage(format!("-iface-regex {text:?}: {error}"))).ok()
    });
    let iface_regex = iface_regex.collect();
    let health_ip = given.parsed::<IpAddr>("healthz-ip", mistakes).unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let health_port = given.parsed("healthz-port", mistakes).unwrap_or(0);
    let subnet_file = PathBuf::from(given.text("subnet-file"));
    if subnet_file.file_name().is_none() {
        mistakes.value(format!("{}: it must name a file", given.describe("subnet-file")));
    }
    let public_ip = given.parsed("public-ip", mistakes);
    if let Some(kind) = public_ip.and_then(no_nodes_address) {
        mistakes.value(format!("{}: it is {kind}, which peers can't send to", given.describe("public-ip")));
    }
    let command = match given.command() {
        "plan" => Command::Plan,
        "cleanup" => Command::Cleanup,
        "status" => Command::Status { json: given.is_on("json") },
        _ => Command::Run,
    };
    Some(Settings {
        command,
        iface: given.list("iface").into_iter().map(str::to_owned).collect(),
        iface_regex,
        iface_can_reach: given.parsed("iface-can-reach", mistakes),
        public_ip,
        subnet_file,
        ip_masq: given.is_on("ip-masq"),
        masquerade_at_random: !given.is_on("ip-masq-fully-random-disable"),
        forward_rules: given.is_on("iptables-forward-rules"),
        blackhole_route: given.is_on("ip-blackhole-route"),
        health: SocketAddr::new(health_ip, health_port),
        verbosity: given.verbosity(mistakes),
        warnings,
        origin: origin?,
    })
}

fn origin(given: &Given, mistakes: &mut Mistakes, warnings: &mut Vec<String>) -> Option<Origin> {
    // The flags of etcd are checked even where a file is the source: a mistake is a mistake.
    let etcd = etcd(given, mistakes, warnings);
    match given.text("from") {
        "" | "etcd" => etcd.map(Origin::Etcd),
        from => match from.strip_prefix("file:") {
            Some(path) if !path.is_empty() => Some(Origin::File(path.into())),
            _ => {
                mistakes.usage(format!("{}: it must be etcd or file:PATH", given.describe("from")));
                None
            }
        },
    }
}

fn etcd(given: &Given, mistakes: &mut Mistakes, warnings: &mut Vec<String>) -> Option<EtcdSettings> {
    let before = mistakes.iter().count();
    let file = |name: &str| Some(given.text(name)).filter(|path| !path.is_empty()).map(PathBuf::from);
    let margin = given.parsed::<u64>("subnet-lease-renew-margin", mistakes).unwrap_or(60);
    if !(1..=1439).contains(&margin) {
        let given = given.describe("subnet-lease-renew-margin");
        mistakes.value(format!("{given}: it must be 1 to 1439 minutes, since a lease lasts 1440"));
    }
    let endpoints = endpoints(given, mistakes);
    let ca_file = file("etcd-cafile");
    let identity = match (file("etcd-certfile"), file("etcd-keyfile")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => {
            mistakes.value("-etcd-certfile is of no use without -etcd-keyfile".to_owned());
            None
        }
        (None, Some(_)) => {
            mistakes.value("-etcd-keyfile is of no use without -etcd-certfile".to_owned());
            None
        }
    };
    let password = given.secret("etcd-password");
    let user = Some(given.text("etcd-username")).filter(|name| !name.is_empty());
    if user.is_none() && password.is_some() {
        mistakes.value("-etcd-password is of no use without -etcd-username".to_owned());
    }
    let user = user.map(|name| (name.to_owned(), password.unwrap_or_else(|| Secret::new(String::new()))));
    let plain = endpoints.iter().find(|url| url.starts_with("http://"));
    if let (Some(url), true) = (plain, ca_file.is_some() || identity.is_some()) {
        warnings.push(format!(
            "{url} is not https: what is sent there is not encrypted, and the files for TLS are not used"
        ));
    }
    let settings = EtcdSettings {
        endpoints,
        prefix: clean(given.text("etcd-prefix")),
        ca_file,
        identity,
        user,
        renew_margin: Duration::from_secs(margin.saturating_mul(60)),
    };
    (mistakes.iter().count() == before).then_some(settings)
}

/// The list of URLs; `host:port` alone means `http`, or `https` where files for TLS are given.
fn endpoints(given: &Given, mistakes: &mut Mistakes) -> Vec<String> {
    let tls = ["etcd-cafile", "etcd-certfile"].iter().any(|name| !given.text(name).is_empty());
    let mut urls = Vec::new();
    for text in given.text("etcd-endpoints").split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let (scheme, rest) = text.split_once("://").unwrap_or((if tls { "https" } else { "http" }, text));
        let host = rest.trim_end_matches('/');
        let fits = !host.is_empty() && !host.contains(|c: char| c == '/' || c == '@' || c.is_whitespace());
        if !matches!(scheme, "http" | "https") || !fits {
            // A URL may hold a password before an @.
            let shown = text.rsplit_once('@').map_or(text, |(_, host)| host);
            mistakes.usage(format!(
                "-etcd-endpoints: {shown:?} is not an endpoint: it must be http://HOST:PORT or https://HOST:PORT"
            ));
            continue;
        }
        let url = format!("{scheme}://{host}");
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    if urls.is_empty() && given.text("etcd-endpoints").trim_matches([',', ' ']).is_empty() {
        mistakes.value("-etcd-endpoints names no endpoint".to_owned());
    }
    urls
}

/// A path without empty, `.` and `..` parts and without a `/` at its end, as Go's `path.Join` makes it.
fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let root = if path.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

#[cfg(test)]
mod tests;

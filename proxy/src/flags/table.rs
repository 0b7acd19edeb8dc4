//! The table of flags: kube-proxy's names and meanings where it has them.

use daemon::flags::{Flag, KLOG, Program, Takes, klog};

const KUBERNETES: &str = "the Kubernetes source is not in this version: give --from file:PATH";
const DETECT: &str = "pods are told from others by --cluster-cidr";
const NFTABLES: &str = "the rules are nftables, changed as Services change";
const CONNTRACK: &str = "settings of connection tracking are left as they are";
const SERVERS: &str = "this version serves no health checks and no metrics";

/// The command line of weft-proxy.
pub const PROGRAM: Program = Program {
    name: "weft-proxy",
    about: "leads connections to Services to their endpoints, by nftables",
    commands: &[
        ("run", "work until SIGTERM or SIGINT; the rules stay"),
        ("plan", "print the ruleset as nft text, and do nothing"),
        ("cleanup", "remove the ruleset and the routes of weft-proxy"),
        ("status", "tell what a running weft-proxy holds, and why"),
    ],
    flags: &[FLAGS, KLOG],
    prefix: "WEFT_PROXY_",
    options_variable: None,
};

const FLAGS: &[Flag] = &[
    Flag::text(
        "from",
        "",
        "where Services and endpoints come from: file:PATH, a manifest or a folder of them",
    ),
    Flag::text(
        "cluster-cidr",
        "",
        "ranges of the pods' addresses, separated by commas; connections from elsewhere to a cluster IP are masqueraded",
    ),
    Flag::text("hostname-override", "", "name of this node; else the host's name")
        .or_variables(&["NODE_NAME"]),
    Flag::text(
        "nodeport-addresses",
        "primary",
        "addresses of this node at which node ports are open: primary, all, or ranges, separated by commas",
    ),
    Flag::switch("masquerade-all", false, "masquerade every connection to a cluster IP"),
    Flag::switch("cleanup", false, "the same as the command cleanup"),
    Flag::text("status-file", "/run/weft-proxy/status.json", "file that tells what this proxy holds"),
    Flag::switch("json", false, "print `status` as JSON"),
    Flag::switch("version", false, "print the version"),
    Flag::refused("config", Takes::Value, "configuration files are not read by this version: give flags"),
    Flag::refused("kubeconfig", Takes::Value, KUBERNETES),
    Flag::refused("master", Takes::Value, KUBERNETES),
    Flag::refused("init-only", Takes::Switch, "there is nothing to initialise"),
    Flag::refused("write-config-to", Takes::Value, "configuration files are not written by this version"),
    Flag::ignored("kube-api-content-type", Takes::Value, KUBERNETES),
    Flag::ignored("kube-api-burst", Takes::Value, KUBERNETES),
    Flag::ignored("kube-api-qps", Takes::Value, KUBERNETES),
    Flag::ignored("config-sync-period", Takes::Value, KUBERNETES),
    Flag::ignored("feature-gates", Takes::Value, "there are no feature gates"),
    Flag::ignored("bind-address", Takes::Value, SERVERS),
    Flag::ignored("healthz-bind-address", Takes::Value, SERVERS),
    Flag::ignored("healthz-port", Takes::Value, SERVERS),
    Flag::ignored("metrics-bind-address", Takes::Value, SERVERS),
    Flag::ignored("metrics-port", Takes::Value, SERVERS),
    Flag::ignored("bind-address-hard-fail", Takes::Switch, SERVERS),
    Flag::ignored("profiling", Takes::Switch, SERVERS),
    Flag::ignored("show-hidden-metrics-for-version", Takes::Value, SERVERS),
    Flag::ignored("proxy-mode", Takes::Value, NFTABLES),
    Flag::ignored("proxy-port-range", Takes::Value, NFTABLES),
    Flag::ignored("iptables-masquerade-bit", Takes::Value, "bit 14 of the mark asks for masquerade"),
    Flag::ignored("iptables-localhost-nodeports", Takes::Switch, NFTABLES),
    Flag::ignored("iptables-sync-period", Takes::Value, NFTABLES),
    Flag::ignored("iptables-min-sync-period", Takes::Value, NFTABLES),
    Flag::ignored("ipvs-sync-period", Takes::Value, NFTABLES),
    Flag::ignored("ipvs-min-sync-period", Takes::Value, NFTABLES),
    Flag::ignored("ipvs-scheduler", Takes::Value, NFTABLES),
    Flag::ignored("ipvs-exclude-cidrs", Takes::Value, NFTABLES),
    Flag::ignored("ipvs-strict-arp", Takes::Switch, NFTABLES),
    Flag::ignored("ipvs-tcp-timeout", Takes::Value, NFTABLES),
    Flag::ignored("ipvs-tcpfin-timeout", Takes::Value, NFTABLES),
    Flag::ignored("ipvs-udp-timeout", Takes::Value, NFTABLES),
    Flag::ignored("detect-local-mode", Takes::Value, DETECT),
    Flag::ignored("pod-bridge-interface", Takes::Value, DETECT),
    Flag::ignored("pod-interface-name-prefix", Takes::Value, DETECT),
    Flag::ignored("oom-score-adj", Takes::Value, "set it in the unit or the pod"),
    Flag::ignored("conntrack-max-per-core", Takes::Value, CONNTRACK),
    Flag::ignored("conntrack-min", Takes::Value, CONNTRACK),
    Flag::ignored("conntrack-tcp-timeout-established", Takes::Value, CONNTRACK),
    Flag::ignored("conntrack-tcp-timeout-close-wait", Takes::Value, CONNTRACK),
    Flag::ignored("conntrack-tcp-be-liberal", Takes::Switch, CONNTRACK),
    Flag::ignored("conntrack-udp-timeout", Takes::Value, CONNTRACK),
    Flag::ignored("conntrack-udp-timeout-stream", Takes::Value, CONNTRACK),
    klog("logging-format", Takes::Value),
    klog("log-flush-frequency", Takes::Value),
];

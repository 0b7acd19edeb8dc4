//! The table of flags: flannel's names, defaults and meanings.

use daemon::flags::{Flag, KLOG, Program, Takes};

const KUBERNETES: &str = "only the Kubernetes source uses it, which is not in this version";

/// The command line of flanneld.
pub const PROGRAM: Program = Program {
    name: "flanneld",
    about: "leases a pod subnet for this node and connects it to the pods of all other nodes",
    commands: &[
        ("run", "work until SIGTERM or SIGINT"),
        ("plan", "print what would be done, and do nothing"),
        ("cleanup", "remove everything that flanneld made on this node"),
        ("status", "tell what a running flanneld holds, and why"),
    ],
    flags: &[FLAGS, KLOG],
    prefix: "FLANNELD_",
    options_variable: Some("FLANNEL_OPTIONS"),
};

const FLAGS: &[Flag] = &[
    Flag::text("from", "etcd", "where leases come from: etcd, or file:PATH"),
    Flag::text(
        "etcd-endpoints",
        "http://127.0.0.1:4001,http://127.0.0.1:2379",
        "URLs of the etcd servers, separated by commas",
    )
    .or_variables(&["FLANNEL_ETCD_ENDPOINTS", "FLANNEL_ETCD"]),
    Flag::text("etcd-prefix", "/coreos.com/network", "what all keys in etcd begin with")
        .or_variables(&["FLANNEL_ETCD_PREFIX", "FLANNEL_ETCD_KEY"]),
    Flag::text("etcd-keyfile", "", "file with the key of the client certificate"),
    Flag::text("etcd-certfile", "", "file with the client certificate"),
    Flag::text("etcd-cafile", "", "file with the authorities that sign the servers' certificates"),
    Flag::text("etcd-username", "", "name of an etcd user"),
    Flag::secret("etcd-password", "password of the etcd user"),
    Flag::repeated("iface", "interface to other nodes, by name or address; the first that exists is taken"),
    Flag::repeated(
        "iface-regex",
        "pattern for the address, then the name of the interface; tried after -iface",
    ),
    Flag::text("iface-can-reach", "", "address whose route decides on the interface; tried last"),
    Flag::text("subnet-file", "/run/flannel/subnet.env", "file that the CNI plugin reads"),
    Flag::text("public-ip", "", "address that other nodes send to"),
    Flag::refused("public-ipv6", Takes::Value, "IPv6 is not in this version"),
    Flag::number(
        "subnet-lease-renew-margin",
        "60",
        "minutes before its end that a lease is renewed, 1 to 1439",
    ),
    Flag::switch("ip-masq", false, "masquerade packets that leave the pod network"),
    Flag::switch("ip-masq-fully-random-disable", false, "do not draw masqueraded source ports at random"),
    Flag::switch("iptables-forward-rules", true, "accept forwarded packets from and to pods"),
    Flag::switch("ip-blackhole-route", false, "add a blackhole route for this node's own subnet"),
    Flag::text("healthz-ip", "0.0.0.0", "address for /healthz and /readyz"),
    Flag::number("healthz-port", "0", "port for /healthz and /readyz; 0 is off"),
    Flag::switch("version", false, "print the version to standard error"),
    Flag::switch("json", false, "print `status` as JSON"),
    Flag::refused("kube-subnet-mgr", Takes::Switch, "the Kubernetes source is not in this version"),
    Flag::ignored("kube-api-url", Takes::Value, KUBERNETES),
    Flag::ignored("kube-annotation-prefix", Takes::Value, KUBERNETES),
    Flag::ignored("kubeconfig-file", Takes::Value, KUBERNETES),
    Flag::ignored("net-config-path", Takes::Value, KUBERNETES),
    Flag::ignored("set-node-network-unavailable", Takes::Switch, KUBERNETES),
    Flag::ignored("iptables-resync", Takes::Value, "rules are watched, not polled"),
];

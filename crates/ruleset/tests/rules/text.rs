//! The text form. That `nft` reads it is shown beside the kernel; here is how it looks.

use ruleset::*;

use crate::c6;

fn lines_of(table: &Table, chain: &str) -> Vec<String> {
    table.chains[&Name::from(chain)].rules.iter().map(|rule| rule.display(table).to_string()).collect()
}

#[test]
fn rules_read_like_those_of_nft() {
    let table = c6::services();
    assert_eq!(
        lines_of(&table, "services"),
        [
            "meta priority set ip daddr . meta l4proto . th dport map @frontends meta priority & 0:fff vmap @classes",
            "ip daddr @nodeport-ips meta priority set meta l4proto . th dport map @nodeports meta priority & 0:fff vmap @classes",
        ]
    );
    assert_eq!(
        lines_of(&table, "spread2"),
        [
            "meta l4proto { tcp, udp, sctp } dnat ip to meta priority & ffff:f000 . numgen random mod 2 map @endpoints",
            "meta l4proto { tcp, udp, sctp } dnat ip to meta priority & ffff:f000 . numgen random mod 1 map @endpoints",
            "drop",
        ]
    );
    assert_eq!(
        lines_of(&table, "nat-postrouting"),
        [
            "ct status & (confirmed | dnat) == dnat meta priority set 0:0",
            "ct status dnat ip saddr . ip daddr @hairpins masquerade fully-random comment \"weft: hairpin\"",
            "meta mark & 0x00004000 == 0x00000000 return",
            "meta mark set meta mark ^ 0x00004000",
            "masquerade fully-random",
        ]
    );
    assert_eq!(
        lines_of(&table, "sticky-hit2")[0],
        "update @affinity { meta priority & ffff:f000 . ip saddr timeout 3h : meta priority }"
    );
    assert_eq!(lines_of(&table, "reject-new")[0], "ct state != new return");
}

#[test]
fn addresses_prefixes_and_names_read_like_those_of_nft() {
    let (table, both) = (c6::oddments(), c6::both());
    assert_eq!(
        lines_of(&table, "forward")[..3],
        [
            "ct state invalid,new iifname \"eth0\" ip saddr 172.16.0.0/12 counter drop",
            "meta l4proto tcp th dport { 443, 8443 } reject with tcp reset",
            "ip daddr { 10.0.0.0/8, 192.168.0.0/16 } return",
        ]
    );
    assert_eq!(
        lines_of(&table, "forward")[4],
        "ip daddr . meta l4proto . th dport . ip saddr != @allowed update @seen { ip saddr timeout 1d1h1m1s }"
    );
    assert_eq!(
        lines_of(&both, "nat-prerouting"),
        [
            "meta l4proto udp dnat ip to meta mark map @targets",
            "meta l4proto tcp dnat ip6 to meta mark map @targets6",
        ]
    );
}

#[test]
fn sets_and_elements_read_like_those_of_nft() {
    let mut table = Table::new(Family::Ip, "t");
    let [allowed, ranges] = ["allowed", "ranges"].map(Name::from);
    for name in [&allowed, &ranges] {
        table.set(name, c6::oddments().sets[name].clone());
    }
    table.set("seen", c6::oddments().sets[&Name::from("seen")].clone());
    assert_eq!(
        table.to_string(),
        "table ip t {
\tset allowed {
\t\ttypeof ip daddr . meta l4proto . th dport . ip saddr
\t\tflags interval
\t\telements = { 10.0.0.1 . tcp . 80 . 10.0.0.0/8,
\t\t\t     10.0.0.1 . tcp . 81 . 10.0.0.1 }
\t}

\tset ranges {
\t\ttypeof ip daddr
\t\tflags interval
\t\telements = { 10.0.0.0/8,
\t\t\t     11.0.0.0/8,
\t\t\t     12.0.0.1-12.0.0.9,
\t\t\t     255.255.255.0/24 comment \"the end\" }
\t}

\tset seen {
\t\ttypeof ip saddr
\t\tsize 100
\t\tflags dynamic,timeout
\t}
}"
    );
}

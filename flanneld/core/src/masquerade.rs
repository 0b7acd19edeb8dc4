//! Our nftables table: what leaves the pod network gets the node's address, and what is forwarded from
//! or to pods is accepted.

use netmodel::{IfName, Subnet, TABLE_PREFIX};
use ruleset::{
    Chain, ChainType, Expr, FIB_LOCAL, Family, Field, Hook, PortChoice, Rule, Statement, Table, Value,
};

/// The mark with which Kubernetes' service proxies ask for masquerading; they do it themselves.
const PROXY_MARK: u32 = 0x4000;
/// Priority of source NAT (`srcnat`).
const SRCNAT: i32 = 100;
/// Priority of filters (`filter`).
const FILTER: i32 = 0;

/// What of the table a user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// Masquerade (`-ip-masq`).
    pub masquerade: bool,
    /// Draw source ports at random.
    pub at_random: bool,
    /// Accept what is forwarded (`-iptables-forward-rules`).
    pub forward: bool,
}

/// Name of the table that belongs to a device: `weft-flannel.1`.
#[must_use]
pub fn table_name(device: &IfName) -> String {
    format!("{TABLE_PREFIX}{device}")
}

/// The table of a device: `own` is this node's subnet, `network` that of all nodes. `None` where no rule
/// is wanted.
#[must_use]
pub fn table(device: &IfName, own: Subnet, network: Subnet, wishes: Wishes) -> Option<Table> {
    let mut table = Table::new(Family::Ip, table_name(device));
    if wishes.masquerade {
        let ports = if wishes.at_random { PortChoice::FullyRandom } else { PortChoice::Keep };
        let rules = postrouting(device, own, network, ports);
        table.chain("postrouting", Chain::base(ChainType::Nat, Hook::Postrouting, SRCNAT, rules));
    }
    if wishes.forward {
        let rules = forward(network);
        table.chain("forward", Chain::base(ChainType::Filter, Hook::Forward, FILTER, rules));
    }
    (!table.chains.is_empty()).then_some(table)
}

/// Which packets get the node's address, as flannel decides with iptables. But what a host sends from an
/// address of its own inside the network, other than to pods, stays as it is: the ports of connections that
/// are older than these rules would change under them, those of the tunnel and of etcd among them.
fn postrouting(device: &IfName, own: Subnet, network: Subnet, ports: PortChoice) -> Vec<Rule> {
    let (from, to) = (Field::IpSaddr, Field::IpDaddr);
    let marked = |mark: u32| Expr::is(Field::MetaMark.and(mark), Value::number(mark));
    vec![
        Rule::new([marked(PROXY_MARK), Statement::RETURN]).comment("weft: the service proxy masquerades it"),
        Rule::new([from.within(own), to.within(network), Statement::RETURN]).comment("weft: pod to pod"),
        Rule::new([from.within(network), to.within(own), Statement::RETURN]).comment("weft: pod to pod"),
        Rule::new([from.not_within(network), to.within(own), Statement::RETURN])
            .comment("weft: local pods see the client's address"),
        Rule::new([
            from.within(network),
            from.not_within(own),
            Field::FibSaddrType.is(Value::number(FIB_LOCAL)),
            Field::Oifname.is_not(Value::interface(device)),
            Statement::RETURN,
        ])
        .comment("weft: a host inside the network is no pod"),
        Rule::new(
            [from.within(network)].into_iter().chain(not_multicast()).chain([Statement::Masquerade(ports)]),
        )
        .comment("weft: pod to the outside"),
        Rule::new([from.not_within(network), to.within(network), Statement::Masquerade(ports)])
            .comment("weft: the outside to pods of other nodes"),
    ]
}

fn forward(network: Subnet) -> Vec<Rule> {
    [Field::IpSaddr, Field::IpDaddr]
        .map(|field| Rule::new([field.within(network), Statement::ACCEPT]).comment("weft: forward"))
        .into()
}

/// `ip daddr != 224.0.0.0/4` (RFC 5771).
fn not_multicast() -> Option<Statement> {
    Subnet::containing([224, 0, 0, 0].into(), 4).ok().map(|multicast| Field::IpDaddr.not_within(multicast))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(wishes: Wishes) -> Option<String> {
        let subnet = |text: &str| text.parse().unwrap();
        let table =
            table(&"flannel.1".parse().unwrap(), subnet("10.5.1.0/24"), subnet("10.5.0.0/16"), wishes);
        table.map(|table| table.to_string())
    }

    #[test]
    fn the_rules_are_flannels() {
        let all = Wishes { masquerade: true, at_random: true, forward: true };
        assert_eq!(text(all).unwrap(), include_str!("../tests/golden/weft-flannel.1.nft").trim_end());
    }

    #[test]
    fn connections_of_a_host_inside_the_network_keep_their_ports() {
        use netmodel::Protocol;
        use ruleset::trace::{Masqueraded, Outcome, Packet, Tracer};

        let all = Wishes { masquerade: true, at_random: true, forward: true };
        let subnet = |text: &str| text.parse().unwrap();
        let device: IfName = "flannel.1".parse().unwrap();
        let table = table(&device, subnet("10.5.1.0/24"), subnet("10.5.0.0/16"), all).unwrap();
        let host = "10.5.200.11:40000";
        let cases = [
            (host, "192.0.2.9:2379", "eth0", false),
            (host, "10.5.200.12:8472", "eth0", false),
            (host, "10.5.2.7:80", "flannel.1", true),
            ("10.5.1.7:40000", "192.0.2.9:80", "eth0", true),
            ("10.5.1.7:40000", "10.5.200.12:80", "eth0", false),
        ];
        for (from, to, through, masqueraded) in cases {
            let local = ["10.5.200.11".parse().unwrap(), "10.5.1.1".parse().unwrap()];
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            let leaves_on = Some(through.parse().unwrap());
            let packet = Packet { leaves_on, ..Packet::sent(from, to, Protocol::Tcp) };
            let outcome = Tracer::new(&table, &local, |_| 0).trace(&packet);
            assert_eq!(outcome, Outcome::Reaches(to, Masqueraded(masqueraded)), "{from} to {to}");
        }
    }

    #[test]
    fn each_part_can_be_left_out() {
        let none = Wishes { masquerade: false, at_random: true, forward: false };
        assert_eq!(text(none), None);
        let masquerade = text(Wishes { masquerade: true, at_random: false, ..none }).unwrap();
        assert!(!masquerade.contains("forward") && !masquerade.contains("random"), "{masquerade}");
        let forward = text(Wishes { forward: true, ..none }).unwrap();
        assert!(!forward.contains("masquerade"), "{forward}");
    }
}

//! Connections to a node port.

use netmodel::Subnet;
use ruleset::{Chain, FIB_LOCAL, Family, Field, Rule, Selector, Statement, Value, Writable};

use super::MASQUERADE_MARK;
use crate::{
    ids::CLASS_MASK,
    tables::{NodePorts, SetName, node_front},
};

/// The rule that leads a packet to a node port's class.
#[must_use]
pub fn dispatch(family: Family, node_ports: &NodePorts) -> Rule {
    let value = Selector::from(node_front()).map(SetName::NodePorts);
    let class = Selector::from(Field::MetaPriority.and(CLASS_MASK));
    let to_node = to_node(family, node_ports);
    Rule::new(to_node.into_iter().chain([Writable::MetaPriority.set(value), class.vmap(SetName::Classes)]))
}

/// Matches packets to the addresses at which node ports are open. Never loopback ones: their answer could not
/// leave this host.
#[must_use]
pub fn to_node(family: Family, node_ports: &NodePorts) -> Vec<Statement> {
    let destination = family.addresses().destination;
    match node_ports {
        NodePorts::At(_) => vec![destination.in_set(SetName::NodePortIps)],
        NodePorts::All => {
            let not_loopback = loopback(family).map(|subnet| destination.not_within(subnet));
            [Some(Field::FibDaddrType.is(Value::number(FIB_LOCAL))), not_loopback]
                .into_iter()
                .flatten()
                .collect()
        }
    }
}

fn loopback(family: Family) -> Option<Subnet> {
    let text = if family == Family::Ip6 { "::1/128" } else { "127.0.0.0/8" };
    text.parse().ok()
}

/// The chain for node ports with `endpoints` endpoints: everybody is masqueraded, because the answer has to
/// come back through this node.
#[must_use]
pub fn chain(endpoints: u16) -> Chain {
    Chain::regular([
        Rule::new([Writable::MetaMark.set(Field::MetaMark.or(MASQUERADE_MARK))]),
        Rule::new([Statement::goto(format!("spread{endpoints}"))]),
    ])
}

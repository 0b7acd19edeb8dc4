//! Connections that nobody can take are refused at once.

use netmodel::Protocol;
use ruleset::{Chain, Family, Field, RejectWith, Rule, Selector, Statement, Value, ct_state};

use super::node_port::to_node;
use crate::tables::{NodePorts, SetName, front, node_front};

/// The name of the chain that tells the sender.
pub const REFUSE: &str = "refuse";

/// The chain that new connections pass at input, forward and output, behind translation: what still goes to a
/// front end here has no endpoint, and what goes to a cluster IP is for a port that its Service does not have.
#[must_use]
pub fn chain(family: Family, node_ports: &NodePorts) -> Chain {
    let no_endpoint = Selector::from(front(family)).in_set(SetName::Rejects);
    let no_node_endpoint = Selector::from(node_front()).in_set(SetName::NodePortRejects);
    let no_port = family.addresses().destination.in_set(SetName::ClusterIps);
    let refuse = || Statement::goto(REFUSE);
    Chain::regular([
        Rule::new([Field::CtState.is_not(Value::number(ct_state::NEW)), Statement::RETURN]),
        Rule::new([no_endpoint, refuse()]),
        Rule::new(to_node(family, node_ports).into_iter().chain([no_node_endpoint, refuse()])),
        Rule::new([no_port, refuse()]),
    ])
}

/// The chain that tells the sender. TCP gets a reset: the kernel sends only so many ICMP errors to one address,
/// about one a second, and whoever connects more often would wait for its own timeout.
#[must_use]
pub fn refuse() -> Chain {
    let reset = Statement::Reject(RejectWith::TcpReset);
    Chain::regular([Rule::new([Field::MetaL4proto.is(Protocol::Tcp), reset]), Rule::new([Statement::REJECT])])
}

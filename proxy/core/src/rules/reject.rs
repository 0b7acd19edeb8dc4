//! Connections that nobody can take are refused at once.

use ruleset::{Chain, Family, Field, Rule, Selector, Statement, Value, ct_state};

use super::node_port::to_node;
use crate::tables::{NodePorts, SetName, front, node_front};

/// The chain that new connections pass at input, forward and output, behind translation: what still goes to a
/// front end here has no endpoint, and what goes to a cluster IP is for a port that its Service does not have.
#[must_use]
pub fn chain(family: Family, node_ports: &NodePorts) -> Chain {
    let no_endpoint = Selector::from(front(family)).in_set(SetName::Rejects);
    let no_node_endpoint = Selector::from(node_front()).in_set(SetName::NodePortRejects);
    let no_port = family.addresses().destination.in_set(SetName::ClusterIps);
    Chain::regular([
        Rule::new([Field::CtState.is_not(Value::number(ct_state::NEW)), Statement::RETURN]),
        Rule::new([no_endpoint, Statement::REJECT]),
        Rule::new(to_node(family, node_ports).into_iter().chain([no_node_endpoint, Statement::REJECT])),
        Rule::new([no_port, Statement::REJECT]),
    ])
}

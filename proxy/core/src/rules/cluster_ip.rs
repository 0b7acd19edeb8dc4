//! Connections to a cluster IP.

use ruleset::{Chain, Family, Field, Rule, Selector, Statement, Writable};

use super::MASQUERADE_MARK;
use crate::{
    ids::CLASS_MASK,
    tables::{SetName, front},
};

/// The rule that leads a packet to a cluster IP's class.
#[must_use]
pub fn dispatch(family: Family) -> Rule {
    let value = Selector::from(front(family)).map(SetName::Frontends);
    let class = Selector::from(Field::MetaPriority.and(CLASS_MASK));
    Rule::new([Writable::MetaPriority.set(value), class.vmap(SetName::Classes)])
}

/// The chain for cluster IPs with `endpoints` endpoints: whoever is no pod is masqueraded, because its answer
/// would not come back this way otherwise.
#[must_use]
pub fn chain(family: Family, endpoints: u16) -> Chain {
    let from_elsewhere = family.addresses().source.not_in_set(SetName::PodRanges);
    let mark = Writable::MetaMark.set(Field::MetaMark.or(MASQUERADE_MARK));
    Chain::regular([
        Rule::new([from_elsewhere, mark]),
        Rule::new([Statement::goto(format!("spread{endpoints}"))]),
    ])
}

//! What happens to translated connections when they leave.

use ruleset::{Family, Field, PortChoice, Rule, Statement, Value, Writable, ct_state, ct_status};

use super::MASQUERADE_MARK;
use crate::tables::SetName;

/// The rule that puts the scratch back: a queueing discipline or a VLAN would read it as a priority.
///
/// It stands in a chain that filters, in front of all source NAT: the first NAT chain that decides ends that
/// hook's NAT, and another program's may come first. Only the first packet of a connection carries scratch; those
/// behind it are new, too, while nobody answers.
#[must_use]
pub fn put_scratch_back() -> Rule {
    let new = Field::CtState.is(Value::number(ct_state::NEW));
    let first = Field::CtStatus.and(ct_status::DNAT | ct_status::CONFIRMED);
    let translated = first.is(Value::number(ct_status::DNAT));
    Rule::new([new, translated, Writable::MetaPriority.set(Value::number(0))])
}

/// The rules of the NAT chain at postrouting.
///
/// The mark is cleared before the packet is masqueraded, because a tunnel uses the same buffer and mark for the
/// outer packet, and before hairpins are looked at, because they end the chain. A pod that reaches itself through
/// its Service is masqueraded, or it would answer itself past us.
#[must_use]
pub fn rules(family: Family) -> Vec<Rule> {
    let masquerade = Statement::Masquerade(PortChoice::FullyRandom);
    let translated = Field::CtStatus.has_any(ct_status::DNAT);
    let addresses = family.addresses();
    let hairpin =
        ruleset::Selector::from([addresses.source, addresses.destination]).in_set(SetName::Hairpins);
    let marked = Field::MetaMark.and(MASQUERADE_MARK).is_not(Value::number(0));
    let unmarked = Field::MetaMark.xor(MASQUERADE_MARK);
    vec![
        Rule::new([marked, Writable::MetaMark.set(unmarked), masquerade.clone()]),
        Rule::new([translated, hairpin, masquerade]),
    ]
}

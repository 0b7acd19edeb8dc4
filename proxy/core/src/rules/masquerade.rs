//! What happens to translated connections when they leave.

use ruleset::{Family, Field, PortChoice, Rule, Statement, Value, Writable, ct_status};

use super::MASQUERADE_MARK;
use crate::tables::SetName;

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

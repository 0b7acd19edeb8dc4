//! A front end's packet goes to one of its endpoints at random.

use ruleset::{Chain, Expr, Field, Rule, Statement, Value, Writable, ct_state, ct_status, has_ports};

use crate::{ids::CLASS_MASK, tables::SetName};

/// The chain for front ends with `endpoints` endpoints. `meta priority` holds the front end's value.
///
/// The second rule is for a packet that crossed a commit: it read the old number of endpoints and met a row
/// that is gone by now. Slot 0 is the last to go. Where that is gone too, the packet is dropped: without
/// translation it must not pass, because the connection would then stay without.
#[must_use]
pub fn chain(endpoints: u16) -> Chain {
    let row = |modulus| {
        let key = [Field::MetaPriority.and(!CLASS_MASK), Expr::Random { modulus }];
        Rule::new([has_ports(), Statement::dnat_by(SetName::Endpoints, key)])
    };
    Chain::regular([row(u32::from(endpoints)), row(1), Rule::new([Statement::DROP])])
}

/// The rule that puts the scratch back: a queueing discipline or a VLAN would read it as a priority.
///
/// It stands in chains that filter, since a packet that is translated sees no other chain of that hook's NAT, and just
/// behind that NAT: what forwarding or others make of the priority later stays. Only the first packet of a connection
/// carries scratch; those behind it are new, too, while nobody answers.
#[must_use]
pub fn put_scratch_back() -> Rule {
    let new = Field::CtState.is(Value::number(ct_state::NEW));
    let first = Field::CtStatus.and(ct_status::DNAT | ct_status::CONFIRMED);
    let translated = first.is(Value::number(ct_status::DNAT));
    Rule::new([new, translated, Writable::MetaPriority.set(Value::number(0))])
}

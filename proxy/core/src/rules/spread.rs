//! A front end's packet goes to one of its endpoints at random.

use ruleset::{Chain, Expr, Field, Rule, Statement, has_ports};

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

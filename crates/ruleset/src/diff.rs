//! The way from what is there to what is wanted.

use std::collections::BTreeMap;

use crate::{
    Chain, Change, Element, Key, Name, Observed, ObservedSet, Place, Set, Table, Transaction, code::Code,
    observed::same_hook,
};

/// `NFT_TABLE_F_DORMANT` (linux/netfilter/nf_tables.h).
const DORMANT: u32 = 1;

/// The transaction that makes `want` out of what is there (`None`: no such table). Empty if nothing is to be
/// done.
///
/// - Elements are compared by key; one that differs is deleted and added. Those of dynamic sets belong to the
///   packets and stay.
/// - A chain whose rules differ is emptied and filled again.
/// - A table that somebody made dormant, so that it sees no packets, is woken.
/// - Where the table's comment or another flag differs, or a set or a base chain is of another kind, the table is made
///   new.
///
/// It is one transaction, so that no packet sees anything between. What goes is taken out before anything
/// comes in: at no moment does a chain lead to itself by an old and a new way, which kernels that check each
/// change by itself would refuse.
#[must_use]
pub fn diff(want: &Table, have: Option<&Observed>) -> Transaction {
    let Some(have) = have else { return Transaction::create(want) };
    let mut transaction = Transaction::new(want.family, &want.name);
    if is_other_kind(want, have) {
        transaction.push(Change::DeleteTable).push_whole(want);
        return transaction;
    }
    if have.flags != 0 {
        transaction.push(Change::AddTable { comment: want.comment.clone() });
    }
    let changed = changed_chains(want, have);
    let stale = |name: &&Name| !want.chains.contains_key(*name);
    for (name, chain) in &have.chains {
        if !chain.rules.is_empty() && (changed.contains_key(name) || stale(&name)) {
            transaction.push(Change::FlushChain { name: name.clone() });
        }
    }
    let differ = |set: &Set, old: &ObservedSet| !set.spec.dynamic && set.elements != old.elements;
    let both = want.sets.iter().filter_map(|(name, set)| Some((name, set, have.sets.get(name)?)));
    let refilled: Vec<_> = both.filter(|(_, set, old)| differ(set, old)).collect();
    for (name, set, old) in &refilled {
        let gone = differing(&old.elements, &set.elements);
        transaction.delete_elements(name, &set.spec, gone.map(|(key, _)| key.clone()));
    }
    add_new(&mut transaction, want, have);
    for (name, set, old) in refilled {
        let new = differing(&set.elements, &old.elements);
        transaction.add_elements(name, &set.spec, new.map(|(key, element)| (key.clone(), element.clone())));
    }
    for (name, codes) in changed {
        for code in codes {
            transaction.push(Change::AddRule { chain: name.clone(), place: Place::End, code });
        }
    }
    for name in have.sets.keys().filter(|name| !want.sets.contains_key(*name)) {
        transaction.push(Change::DeleteSet { name: name.clone() });
    }
    for name in have.chains.keys().filter(stale) {
        transaction.push(Change::DeleteChain { name: name.clone() });
    }
    transaction
}

/// Something is there that can't be changed in place.
fn is_other_kind(want: &Table, have: &Observed) -> bool {
    let chain_differs = |(name, chain): (&Name, &Chain)| {
        have.chains.get(name).is_some_and(|old| !same_hook(old.base, chain.base))
    };
    let set_differs =
        |(name, set): (&Name, &Set)| have.sets.get(name).is_some_and(|old| old.header != set.spec.lower());
    // The kernel makes no base chain in the transaction that wakes a table.
    let is_there = |(name, chain): (&Name, &Chain)| {
        chain.base.is_none() || have.chains.get(name).is_some_and(|old| old.base == chain.base)
    };
    let can_wake = have.flags == DORMANT && want.chains.iter().all(is_there);
    (have.flags != 0 && !can_wake)
        || want.comment != have.comment
        || want.chains.iter().any(chain_differs)
        || want.sets.iter().any(set_differs)
}

/// The wanted rules of each chain that is new or holds others.
fn changed_chains<'a>(want: &'a Table, have: &Observed) -> BTreeMap<&'a Name, Vec<Code>> {
    let lowered = want
        .chains
        .iter()
        .map(|(name, chain)| (name, chain.rules.iter().map(|rule| rule.lower(want)).collect::<Vec<_>>()));
    let differs = |(name, codes): &(&Name, Vec<Code>)| {
        let old = have.chains.get(*name).map_or(&[][..], |chain| &chain.rules);
        !codes.iter().eq(old.iter().map(|rule| &rule.code))
    };
    lowered.filter(differs).collect()
}

/// Chains and sets that are missing, and policies that differ.
fn add_new(transaction: &mut Transaction, want: &Table, have: &Observed) {
    for (name, chain) in &want.chains {
        if have.chains.get(name).is_none_or(|old| old.base != chain.base) {
            transaction.add_chain(name, chain.base);
        }
    }
    for (name, set) in want.sets.iter().filter(|(name, _)| !have.sets.contains_key(*name)) {
        transaction.add_set(name, set);
    }
}

/// The elements of `a` that are not the same in `b`.
fn differing<'a>(
    a: &'a BTreeMap<Key, Element>,
    b: &'a BTreeMap<Key, Element>,
) -> impl Iterator<Item = (&'a Key, &'a Element)> {
    a.iter().filter(|(key, element)| b.get(key) != Some(*element))
}

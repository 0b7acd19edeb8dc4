//! What a table holds in the kernel, and what a transaction makes of it.

use std::collections::BTreeMap;

use crate::{
    Base, Change, Element, Family, Key, Name, Place, Transaction, Verdict,
    code::{Code, DataHeader, KeyForm, SetHeader},
};

/// A rule that is in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedRule {
    /// What the kernel names it by; 0 where that was not read back yet.
    pub handle: u64,
    /// What it does.
    pub code: Code,
}

/// A chain that is in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedChain {
    /// `None` for a regular chain.
    pub base: Option<Base>,
    /// From first to last.
    pub rules: Vec<ObservedRule>,
}

/// A set or map that is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedSet {
    /// What it is.
    pub header: SetHeader,
    /// What is in it. The empty key stands for what no other matches: nobody but others makes such an element.
    pub elements: BTreeMap<Key, Element>,
}

impl ObservedSet {
    /// A range that is there has a value in common with `key`.
    fn has_overlap(&self, key: &Key) -> bool {
        let widths = [self.header.key_width as usize];
        self.header.form == KeyForm::Interval && self.elements.keys().any(|held| held.overlaps(key, &widths))
    }
}

/// A table as the kernel holds it: read back from there, or kept up to date with what the kernel
/// acknowledged by [`apply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Which packets it sees.
    pub family: Family,
    /// Its name.
    pub name: Name,
    /// `NFT_TABLE_F_...` (linux/netfilter/nf_tables.h); 0 as we make it.
    pub flags: u32,
    /// Its comment.
    pub comment: Option<Box<str>>,
    /// Its chains.
    pub chains: BTreeMap<Name, ObservedChain>,
    /// Its sets and maps, without anonymous ones: those are in their rules.
    pub sets: BTreeMap<Name, ObservedSet>,
}

impl Observed {
    /// The same without the handles of its rules, to be compared with another state.
    #[must_use]
    pub fn without_handles(mut self) -> Self {
        self.chains.values_mut().flat_map(|chain| &mut chain.rules).for_each(|rule| rule.handle = 0);
        self
    }

    /// A rule or an element leads to that chain.
    fn leads_to(&self, chain: &Name) -> bool {
        let by_rule = self.codes().any(|code| code.chains().any(|to| to == chain));
        let verdict_maps = self.sets.values().filter(|set| set.header.data == Some(DataHeader::Verdict));
        by_rule || verdict_maps.flat_map(|set| set.elements.values()).any(|e| e.leads_to(chain))
    }

    fn codes(&self) -> impl Iterator<Item = &Code> {
        self.chains.values().flat_map(|chain| &chain.rules).map(|rule| &rule.code)
    }
}

impl Element {
    fn leads_to(&self, chain: &Name) -> bool {
        self.verdict_data().and_then(Verdict::chain) == Some(chain)
    }
}

/// Why a change can't be made; the kernel would refuse it too.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// What the change needs is not there.
    #[error("there is no {kind} {name}")]
    Absent {
        /// "table", "chain", "set", "rule" or "element".
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Something else of that name is there already.
    #[error("{kind} {name} is there already and differs")]
    Exists {
        /// "chain", "set" or "element".
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Something still refers to what is to be deleted.
    #[error("{kind} {name} is still in use")]
    Busy {
        /// "chain" or "set".
        kind: &'static str,
        /// Its name.
        name: String,
    },
}

fn absent(kind: &'static str, name: &impl ToString) -> Refusal {
    Refusal::Absent { kind, name: name.to_string() }
}

/// Makes the changes of `transaction` to `have` (`None`: there is no such table), as the kernel does once it
/// has acknowledged them. New rules have handle 0 until they are read back.
///
/// # Errors
/// A change that the kernel would refuse. The changes in front of it have been made then, so `have` is
/// neither the old nor the new state: read it again.
pub fn apply(have: &mut Option<Observed>, transaction: &Transaction) -> Result<(), Refusal> {
    for change in &transaction.changes {
        match (change, &mut *have) {
            (Change::AddTable { .. }, Some(table)) => table.flags = 0,
            (Change::AddTable { comment }, table @ None) => {
                *table = Some(Observed {
                    family: transaction.family,
                    name: transaction.table.clone(),
                    flags: 0,
                    comment: comment.clone(),
                    chains: BTreeMap::new(),
                    sets: BTreeMap::new(),
                });
            }
            (_, None) => return Err(absent("table", &transaction.table)),
            (Change::DeleteTable, table) => *table = None,
            (change, Some(table)) => table.make(change)?,
        }
    }
    Ok(())
}

impl Observed {
    fn make(&mut self, change: &Change) -> Result<(), Refusal> {
        match change {
            Change::AddTable { .. } | Change::DeleteTable => {}
            Change::AddChain { name, base } => self.add_chain(name, *base)?,
            Change::DeleteChain { name } => self.delete_chain(name)?,
            Change::FlushChain { name } => self.chain_mut(name)?.rules.clear(),
            Change::AddSet { name, header } => self.add_set(name, header)?,
            Change::DeleteSet { name } => self.delete_set(name)?,
            Change::AddRule { chain, place, code } => self.add_rule(chain, *place, code)?,
            Change::DeleteRule { chain, handle } => {
                let at = self.position(chain, *handle)?;
                self.chain_mut(chain)?.rules.remove(at);
            }
            Change::AddElements { set, elements, .. } => self.add_elements(set, elements)?,
            Change::DeleteElements { set, keys, .. } => {
                let elements = &mut self.set_mut(set)?.elements;
                for key in keys {
                    elements.remove(key).ok_or_else(|| absent("element", &format!("{key:?} of {set}")))?;
                }
            }
        }
        Ok(())
    }

    fn chain_mut(&mut self, name: &Name) -> Result<&mut ObservedChain, Refusal> {
        self.chains.get_mut(name).ok_or_else(|| absent("chain", name))
    }

    fn set_mut(&mut self, name: &Name) -> Result<&mut ObservedSet, Refusal> {
        self.sets.get_mut(name).ok_or_else(|| absent("set", name))
    }

    fn add_chain(&mut self, name: &Name, base: Option<Base>) -> Result<(), Refusal> {
        let Some(chain) = self.chains.get_mut(name) else {
            self.chains.insert(name.clone(), ObservedChain { base, rules: Vec::new() });
            return Ok(());
        };
        if !same_hook(chain.base, base) {
            return Err(Refusal::Exists { kind: "chain", name: name.to_string() });
        }
        chain.base = base;
        Ok(())
    }

    fn delete_chain(&mut self, name: &Name) -> Result<(), Refusal> {
        self.chain_mut(name)?;
        if self.leads_to(name) {
            return Err(Refusal::Busy { kind: "chain", name: name.to_string() });
        }
        self.chains.remove(name);
        Ok(())
    }

    fn add_set(&mut self, name: &Name, header: &SetHeader) -> Result<(), Refusal> {
        match self.sets.get(name) {
            Some(set) if set.header == *header => Ok(()),
            Some(_) => Err(Refusal::Exists { kind: "set", name: name.to_string() }),
            None => {
                let set = ObservedSet { header: header.clone(), elements: BTreeMap::new() };
                self.sets.insert(name.clone(), set);
                Ok(())
            }
        }
    }

    fn delete_set(&mut self, name: &Name) -> Result<(), Refusal> {
        self.set_mut(name)?;
        if self.codes().any(|code| code.sets().any(|used| used == name)) {
            return Err(Refusal::Busy { kind: "set", name: name.to_string() });
        }
        self.sets.remove(name);
        Ok(())
    }

    fn add_rule(&mut self, chain: &Name, place: Place, code: &Code) -> Result<(), Refusal> {
        if let Some(set) = code.sets().find(|set| !self.sets.contains_key(*set)) {
            return Err(absent("set", set));
        }
        if let Some(to) = code.chains().find(|to| !self.chains.contains_key(*to)) {
            return Err(absent("chain", to));
        }
        let at = match place {
            Place::End => self.chain_mut(chain)?.rules.len(),
            Place::Before(handle) => self.position(chain, handle)?,
        };
        self.chain_mut(chain)?.rules.insert(at, ObservedRule { handle: 0, code: code.clone() });
        Ok(())
    }

    /// Where the rule with that handle stands.
    fn position(&mut self, chain: &Name, handle: u64) -> Result<usize, Refusal> {
        let rules = &self.chain_mut(chain)?.rules;
        rules.iter().position(|rule| rule.handle == handle).ok_or_else(|| absent("rule", &handle))
    }

    fn add_elements(&mut self, set: &Name, elements: &[(Key, Element)]) -> Result<(), Refusal> {
        let unknown = elements.iter().filter_map(|(_, e)| e.verdict_data()?.chain());
        if let Some(chain) = unknown.into_iter().find(|chain| !self.chains.contains_key(*chain)) {
            return Err(absent("chain", chain));
        }
        let held = self.set_mut(set)?;
        for (key, element) in elements {
            match held.elements.get(key) {
                Some(old) if old.data == element.data => {}
                None if !held.has_overlap(key) => drop(held.elements.insert(key.clone(), element.clone())),
                _ => return Err(Refusal::Exists { kind: "element", name: format!("{key:?} of {set}") }),
            }
        }
        Ok(())
    }
}

/// One can be made from the other by changing the policy.
pub(crate) fn same_hook(a: Option<Base>, b: Option<Base>) -> bool {
    let place = |base: Base| (base.kind, base.hook, base.priority);
    a.map(place) == b.map(place)
}

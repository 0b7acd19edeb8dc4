//! What changes in the table, and in which order.
//!
//! Two lookups of one packet are not atomic: a commit may fall between them. So rows grow before a front end
//! leads to them and shrink after none does. Each step is one transaction; a change that would need three of them
//! gets by with two.

use std::collections::{BTreeMap, BTreeSet};

use ruleset::{Chain, Element, Family, Key, Name, Observed, Table, Transaction, code::KeyForm};

use crate::tables::{Config, SetName};

/// The step in which a change is made; steps are made in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// What will be pointed at: chains, classes, rows. Chains must not come with what points at them: a packet
    /// whose way through the rules began before a commit finds the chains that it makes empty, and would pass
    /// without translation.
    Grow,
    /// What points: front ends, with what stands for them while they have no endpoint; rows whose endpoint
    /// is another one now; hairpins, which count once something leads to their row.
    Switch,
    /// What nothing points at any more: rows, classes, front ends' refusals.
    Shrink,
    /// Chains that no class leads to. Kernels before 6.2 don't see within one transaction that the class
    /// has gone.
    Sweep,
}

/// The difference between two states of the table's elements and numbered chains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    on: bool,
    elements: BTreeMap<(SetName, Key), Change>,
    chains: BTreeMap<Name, Chain>,
    dropped: BTreeSet<Name>,
}

/// One element before and after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Change {
    before: Option<Element>,
    after: Option<Element>,
}

impl Change {
    fn step(&self, set: SetName) -> Option<Step> {
        match (&self.before, &self.after) {
            (None, None) => None,
            (Some(before), Some(after)) if before == after => None,
            (Some(_), Some(_)) => Some(Step::Switch),
            (None, Some(_)) => Some(added(set)),
            (Some(_), None) => Some(removed(set)),
        }
    }
}

/// When an element that was not there is added.
const fn added(set: SetName) -> Step {
    match set {
        SetName::Classes | SetName::Endpoints => Step::Grow,
        _ => Step::Switch,
    }
}

/// When an element goes for good: a refusal no sooner than its front end leads on.
const fn removed(set: SetName) -> Step {
    match set {
        SetName::Frontends | SetName::NodePorts | SetName::NodePortIps | SetName::PodRanges => Step::Switch,
        _ => Step::Shrink,
    }
}

impl Delta {
    /// One that takes note of what it is told; the default one doesn't.
    pub(crate) fn recording() -> Self {
        Self { on: true, ..Self::default() }
    }

    /// Nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let silent = self.elements.iter().all(|((set, _), change)| change.step(*set).is_none());
        silent && self.chains.is_empty() && self.dropped.is_empty()
    }

    /// Services are as they were: chains that nobody uses go.
    #[must_use]
    pub fn is_tidying(&self) -> bool {
        !self.dropped.is_empty() // which waits for a pass without a change
    }

    /// An element that was there goes, or is about to be put again.
    pub(crate) fn take(&mut self, set: SetName, key: Key, element: Element) {
        if !self.on {
            return;
        }
        let change = self.elements.entry((set, key)).or_default();
        if change.after.take().is_none() {
            change.before = Some(element);
        }
    }

    /// An element comes.
    pub(crate) fn put(&mut self, set: SetName, key: Key, element: Element) {
        if self.on {
            self.elements.entry((set, key)).or_default().after = Some(element);
        }
    }

    /// A chain is needed that was not there.
    pub(crate) fn add_chain(&mut self, name: Name, chain: Chain) {
        if self.on {
            self.chains.insert(name, chain);
        }
    }

    /// Nothing leads to a chain any more.
    pub(crate) fn drop_chain(&mut self, name: Name) {
        if self.on {
            self.dropped.insert(name);
        }
    }

    /// The transactions that make the change, in order; none of them is empty.
    #[must_use]
    pub fn into_transactions(self, config: &Config) -> Vec<Transaction> {
        let mut steps = Steps::new(config.family);
        if !self.chains.is_empty() {
            let mut table = config.skeleton();
            table.chains.extend(self.chains.clone());
            let grow = steps.at(Step::Grow);
            for name in self.chains.keys() {
                grow.add_chain(name, None);
            }
            for (name, chain) in &self.chains {
                for rule in &chain.rules {
                    grow.add_rule(&table, name, rule);
                }
            }
        }
        let mut by_set: BTreeMap<(SetName, Step), (Vec<Key>, Elements)> = BTreeMap::new();
        for ((set, key), change) in self.elements {
            if let Some(step) = change.step(set) {
                let (gone, new) = by_set.entry((set, step)).or_default();
                gone.extend(change.before.map(|_| key.clone()));
                new.extend(change.after.map(|element| (key, element)));
            }
        }
        for ((set, step), (gone, new)) in by_set {
            let (name, spec) = (set.into(), set.spec(config.family));
            steps.at(step).delete_elements(&name, &spec, gone).add_elements(&name, &spec, new);
        }
        for name in self.dropped {
            steps.at(Step::Sweep).push(ruleset::Change::FlushChain { name: name.clone() });
            steps.at(Step::Sweep).push(ruleset::Change::DeleteChain { name });
        }
        steps.join_the_last();
        steps.finish()
    }
}

/// The transactions that make `want` out of what was read back (`None`: no table), in order.
///
/// Where sets or base chains are of another kind, and where there is no table, it is one transaction.
#[must_use]
pub fn transactions(want: &Table, have: Option<&Observed>) -> Vec<Transaction> {
    let whole = ruleset::diff(want, have);
    let makes_table = |change: &ruleset::Change| {
        matches!(change, ruleset::Change::AddTable { .. } | ruleset::Change::DeleteTable)
    };
    if whole.changes.iter().any(makes_table) {
        return vec![whole];
    }
    let mut steps = Steps::new(want.family);
    let mut gone: BTreeMap<Name, BTreeSet<Key>> = BTreeMap::new();
    for change in whole.changes {
        match change {
            // No range may come before one goes that it overlaps: they change in the order of the difference.
            ruleset::Change::DeleteElements { form: KeyForm::Interval, .. }
            | ruleset::Change::AddElements { form: KeyForm::Interval, .. } => {
                steps.at(Step::Switch).push(change);
            }
            ruleset::Change::DeleteElements { set, keys, .. } => {
                gone.entry(set).or_default().extend(keys);
            }
            ruleset::Change::AddElements { set, elements, .. } => {
                let gone = gone.entry(set.clone()).or_default();
                let (changed, new) = elements.into_iter().partition(|(key, _)| gone.remove(key));
                steps.elements(want, &set, changed, new);
            }
            ruleset::Change::DeleteChain { .. } | ruleset::Change::DeleteSet { .. } => {
                steps.at(Step::Sweep).push(change);
            }
            ruleset::Change::FlushChain { ref name } if !want.chains.contains_key(name) => {
                steps.at(Step::Sweep).push(change);
            }
            change => drop(steps.at(Step::Grow).push(change)),
        }
    }
    for (name, keys) in gone {
        if let (Some(set), Some(spec)) = (SetName::named(&name), want.sets.get(&name).map(|set| &set.spec)) {
            steps.at(removed(set)).delete_elements(&name, spec, keys);
        }
    }
    steps.finish()
}

/// The transactions of the steps.
struct Steps([Transaction; 4]);

impl Steps {
    fn new(family: Family) -> Self {
        Self([(); 4].map(|()| Transaction::new(family, Config::table_name())))
    }

    fn at(&mut self, step: Step) -> &mut Transaction {
        &mut self.0[step as usize]
    }

    fn elements(&mut self, want: &Table, name: &Name, changed: Elements, new: Elements) {
        let (Some(set), Some(held)) = (SetName::named(name), want.sets.get(name)) else { return };
        let keys: Vec<_> = changed.iter().map(|(key, _)| key.clone()).collect();
        self.at(Step::Switch).delete_elements(name, &held.spec, keys).add_elements(name, &held.spec, changed);
        self.at(added(set)).add_elements(name, &held.spec, new);
    }

    /// Where all three steps of a change would be needed, the last two become one. A packet that crosses it takes
    /// slot 0; one that found neither a front end nor, later, its refusal is refused as for an undefined port.
    fn join_the_last(&mut self) {
        let [grow, switch, shrink, _] = &mut self.0;
        if !grow.is_empty() && !switch.is_empty() {
            switch.changes.append(&mut shrink.changes);
        }
    }

    fn finish(self) -> Vec<Transaction> {
        self.0.into_iter().filter(|transaction| !transaction.is_empty()).collect()
    }
}

/// Elements with their keys.
type Elements = Vec<(Key, Element)>;

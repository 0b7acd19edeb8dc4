//! The table of address translation for containers, and the changes that an attachment makes to it.
//!
//! Its rules are the same whatever the number of containers; each container has elements in its sets and maps,
//! whose comment says whose they are. Nobody keeps it but ADD, CHECK and GC: ADD sees to it that the rules are
//! whole, which costs one listing of them.

use std::{collections::BTreeMap, net::IpAddr};

use netmodel::TABLE_PREFIX;
use ruleset::{
    Chain, ChainType, Change, Data, Element, Family, Hook, Key, Name, Observed, ObservedRule, Rule, SetSpec,
    Table, Transaction, Value, Verdict,
};

use crate::{
    Attachment, Code, Error, Forwarding, HostAddress,
    attachment::is_identifier,
    entry::Entry,
    hostport::mark,
    hostport_class::Class,
    hostport_rules::{self, Translated},
    masquerade,
};

/// Priority of source NAT (`srcnat`).
const SRCNAT: i32 = 100;

/// The chain that replaces sources.
const POSTROUTING: &str = "postrouting";

/// What one attachment wants to have in the table.
#[derive(Clone, Debug)]
pub struct Nat<'a> {
    /// The comment of its elements.
    pub whose: &'a str,
    /// Its addresses that are masqueraded.
    pub masqueraded: &'a [HostAddress],
    /// Its host ports.
    pub ports: &'a [Forwarding],
    /// The bit of the packet mark that means "replace the source"; `None`: any will do.
    pub mark_bit: Option<u8>,
}

impl Entry {
    /// An element with that key has to go for this one.
    fn replaces(&self, key: &Key) -> bool {
        *key == self.key || masquerade::are_homes_of_one(self.set, key, &self.key)
    }
}

/// Rules by their chains.
pub type Rules = BTreeMap<Name, Vec<ObservedRule>>;

/// Elements by their sets.
pub type Elements = BTreeMap<Name, BTreeMap<Key, Element>>;

/// What has to be known before an attachment's elements are added.
#[derive(Debug, Default)]
pub struct Questions {
    /// Single elements of sets without ranges.
    pub keys: Vec<(Name, Value)>,
    /// Whole sets, all of them small.
    pub sets: BTreeMap<Name, SetSpec>,
}

/// A host port has another owner already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The port that is wanted.
    pub port: String,
    /// The owner's mark; empty where it has none.
    pub owner: String,
}

/// Family and name of the table.
#[must_use]
pub fn nat_table() -> (Family, Name) {
    (Family::Inet, Name::from(format!("{TABLE_PREFIX}cni")))
}

/// The sets and maps of host ports.
pub fn port_sets() -> impl Iterator<Item = (Name, SetSpec)> {
    hostport_rules::sets().map(|(name, spec)| (name.into(), spec))
}

/// The sets of masquerading.
pub fn masquerade_sets() -> impl Iterator<Item = (Name, SetSpec)> {
    masquerade::sets().map(|(name, spec)| (name.into(), spec))
}

/// The set of masqueraded addresses that has `address`, and its key there.
#[must_use]
pub fn masquerade_key(address: IpAddr) -> (Name, Value) {
    (masquerade::pods_of(address).into(), address.into())
}

/// The table without elements.
fn table(mark: u32) -> Table {
    let (family, name) = nat_table();
    let mut table = Table::new(family, name);
    masquerade::add_sets_to(&mut table);
    hostport_rules::add_to(&mut table, mark);
    let rules = hostport_rules::source_rules(mark).into_iter().chain(masquerade::rules());
    table.chain(POSTROUTING, Chain::base(ChainType::Nat, Hook::Postrouting, SRCNAT, rules));
    table
}

/// The rules of `chain` are those that are there.
fn is_same(table: &Table, chain: &[Rule], rules: Option<&Vec<ObservedRule>>) -> bool {
    let there = rules.map(Vec::as_slice).unwrap_or_default();
    chain.len() == there.len() && chain.iter().zip(there).all(|(rule, there)| rule.lower(table) == there.code)
}

impl Nat<'_> {
    /// It wants nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.masqueraded.is_empty() && self.ports.is_empty()
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        let ports = hostport_rules::entries(self.ports, self.whose);
        masquerade::entries(self.masqueraded, self.whose).chain(ports)
    }

    /// The marks that this attachment could do with, the likeliest first.
    fn marks(&self) -> impl Iterator<Item = u32> {
        let others = (0..32).filter(|_| self.mark_bit.is_none()).map(Some);
        [self.mark_bit].into_iter().chain(others).map(mark)
    }

    /// What has to be known.
    #[must_use]
    pub fn questions(&self) -> Questions {
        let mut questions = Questions::default();
        for entry in self.entries() {
            // An address that nobody left behind has no home either.
            if let Key::One(key) = entry.key {
                questions.keys.push((entry.set.into(), key));
            }
        }
        for port in self.ports {
            match hostport_rules::rivals(port) {
                (map, _, Some(key)) => questions.keys.push((map.into(), key)),
                (map, spec, None) => drop(questions.sets.insert(map.into(), spec)),
            }
        }
        questions
    }

    /// The change that gives this attachment its elements, where the rules are whole and the answers to the
    /// [questions](Self::questions) are `seen`; `None` where the rules are not whole, or somebody left an address of
    /// this one's behind.
    ///
    /// # Errors
    /// A host port has another owner.
    pub fn claim(&self, rules: &Rules, seen: &Elements) -> Result<Option<Transaction>, Taken> {
        let whole = |mark: &u32| {
            let table = table(*mark);
            table.chains.iter().all(|(name, chain)| is_same(&table, &chain.rules, rules.get(name)))
        };
        let Some(mark) = self.marks().find(whole) else { return Ok(None) };
        let is_there =
            |entry: Entry| seen.get(&Name::from(entry.set)).is_some_and(|set| set.contains_key(&entry.key));
        if masquerade::entries(self.masqueraded, self.whose).any(is_there) {
            return Ok(None);
        }
        let mut change = self.change(seen)?;
        let table = table(mark);
        let mut chains = Transaction::new(table.family, &table.name);
        for (name, chain) in hostport_rules::class_chains(self.ports) {
            if is_same(&table, &chain.rules, rules.get(name)) {
                continue;
            }
            if rules.contains_key(name) {
                return Ok(None);
            }
            chains.add_chain(name, None);
            for rule in &chain.rules {
                chains.add_rule(&table, name, rule);
            }
        }
        change.changes.splice(0..0, chains.changes);
        Ok(Some(change))
    }

    /// The change of elements alone.
    fn change(&self, seen: &Elements) -> Result<Transaction, Taken> {
        for port in self.ports {
            if let Some(owner) = rival_of(port, seen, self.whose) {
                return Err(Taken { port: port.to_string(), owner: owner.to_owned() });
            }
        }
        let (family, name) = nat_table();
        let mut change = Transaction::new(family, name);
        let elements = |map: &Name| seen.get(map);
        let ports = self.ports.iter().filter(|port| !self.is_left_to_sibling(port, elements)).cloned();
        let ports: Vec<Forwarding> = ports.collect();
        for entry in (Nat { ports: &ports, ..self.clone() }).entries() {
            let set = Name::from(entry.set);
            let there = || seen.get(&set).into_iter().flatten();
            if there().any(|(key, element)| (key, element) == (&entry.key, &entry.element)) {
                continue;
            }
            let replaced = there().map(|(key, _)| key).filter(|key| entry.replaces(key));
            change.delete_elements(&set, &entry.spec, replaced.cloned());
            change.add_elements(&set, &entry.spec, [(entry.key, entry.element)]);
        }
        Ok(change)
    }

    /// Another interface of the same container has the host port `port`, and keeps it; `elements` are those of a set.
    fn is_left_to_sibling<'e>(
        &self,
        port: &Forwarding,
        elements: impl Fn(&Name) -> Option<&'e BTreeMap<Key, Element>>,
    ) -> bool {
        let map = hostport_rules::map_of(port);
        let is_siblings = |(key, element): (&Key, &Element)| {
            let owner = element.comment.as_deref().unwrap_or_default();
            hostport_rules::is_in_the_way(map, key, port)
                && owner != self.whose
                && is_same_container(owner, self.whose)
        };
        elements(&map.into()).into_iter().flatten().any(is_siblings)
    }

    /// The change after which the table is whole, has this attachment's elements too, and keeps those that
    /// there are. Empty where nothing is missing.
    ///
    /// # Errors
    /// A host port has another owner.
    pub fn repair(&self, have: Option<&Observed>) -> Result<Transaction, Taken> {
        let mut want = self.wanted(have);
        let seen = want.sets.iter().map(|(name, set)| (name.clone(), set.elements.clone())).collect();
        for change in self.change(&seen)?.changes {
            match change {
                Change::DeleteElements { set, keys, .. } => {
                    want.sets.entry(set).and_modify(|set| set.elements.retain(|key, _| !keys.contains(key)));
                }
                Change::AddElements { set, elements, .. } => {
                    want.sets.entry(set).and_modify(|set| set.elements.extend(elements));
                }
                _ => {}
            }
        }
        Ok(difference(want, have))
    }

    /// The whole table, with the elements that are in `have`.
    fn wanted(&self, have: Option<&Observed>) -> Table {
        let marks = self.marks().map(table);
        let fits = |table: &Table| {
            let chain = |chains: &BTreeMap<Name, ruleset::ObservedChain>| {
                chains.get(&Name::from(POSTROUTING)).map(|chain| chain.rules.clone())
            };
            let rules = have.and_then(|have| chain(&have.chains));
            is_same(table, &table.chains[&Name::from(POSTROUTING)].rules, rules.as_ref())
        };
        let mut want = marks.into_iter().find(fits).unwrap_or_else(|| table(mark(self.mark_bit)));
        for (name, set) in &mut want.sets {
            let same =
                have.and_then(|have| have.sets.get(name)).filter(|seen| seen.header == set.spec.lower());
            set.elements.extend(same.into_iter().flat_map(|seen| seen.elements.clone()));
        }
        for (name, chain) in hostport_rules::class_chains(self.ports) {
            want.chain(name, chain);
        }
        want
    }

    /// What is not there of this attachment and of the rules, in words.
    #[must_use]
    pub fn missing(&self, have: Option<&Observed>) -> Vec<String> {
        let nothing = Nat { masqueraded: &[], ports: &[], ..self.clone() };
        let mut missing = Vec::new();
        if !difference(nothing.wanted(have), have).is_empty() {
            missing.push("the rules of address translation are not whole".to_owned());
        }
        let holds = |entry: &Entry| {
            let set = have.and_then(|have| have.sets.get(&Name::from(entry.set)));
            set.is_some_and(|set| set.elements.get(&entry.key) == Some(&entry.element))
        };
        for pod in self.masqueraded {
            if !masquerade::entries(&[*pod], self.whose).all(|entry| holds(&entry)) {
                missing.push(format!("address {} is not masqueraded", pod.address));
            }
        }
        let elements = |map: &Name| Some(&have?.sets.get(map)?.elements);
        for port in self.ports.iter().filter(|port| !self.is_left_to_sibling(port, elements)) {
            let mut entries = hostport_rules::entries(std::slice::from_ref(port), self.whose);
            if !entries.all(|entry| holds(&entry)) {
                missing.push(format!("host port {port} does not lead to {}", port.pod));
            }
        }
        let chains = hostport_rules::class_chains(self.ports);
        let table = table(mark(self.mark_bit));
        for (name, chain) in chains {
            let there = have.and_then(|have| have.chains.get(name)).map(|there| &there.rules);
            if !is_same(&table, &chain.rules, there) {
                missing.push(format!("chain {name} is not whole"));
            }
        }
        missing
    }
}

/// The class that an element leads to.
fn class_of(element: &Element) -> Option<&Name> {
    match &element.data {
        Data::Verdict(Verdict::Goto(class)) => Some(class),
        _ => None,
    }
}

/// The change that makes `want` of what is there; chains of classes stay that `want` does not know.
fn difference(mut want: Table, have: Option<&Observed>) -> Transaction {
    let mut change = ruleset::diff(&want, have);
    if change.changes.contains(&Change::DeleteTable) {
        // Those chains go with it, so that no element can lead there.
        let Table { sets, chains, .. } = &mut want;
        for set in sets.values_mut() {
            set.elements
                .retain(|_, element| class_of(element).is_none_or(|class| chains.contains_key(class)));
        }
        return ruleset::diff(&want, have);
    }
    change.changes.retain(|change| match change {
        Change::FlushChain { name } | Change::DeleteChain { name } => {
            want.chains.contains_key(name) || !Class::is_name(name)
        }
        _ => true,
    });
    change
}

/// The change after which the rules that are there are whole.
#[must_use]
pub fn mend(have: &Observed) -> Transaction {
    let nobody = Nat { whose: "", masqueraded: &[], ports: &[], mark_bit: None };
    difference(nobody.wanted(Some(have)), Some(have))
}

/// The owner of what `port` would take away, or be hidden by.
fn rival_of<'a>(port: &Forwarding, seen: &'a Elements, whose: &str) -> Option<&'a str> {
    let (rivals, ..) = hostport_rules::rivals(port);
    let to = Value::from(port.pod);
    [hostport_rules::map_of(port), rivals].into_iter().find_map(|map| {
        let same = seen.get(&Name::from(map)).into_iter().flatten().filter(|(key, element)| {
            // Whoever has the container's address now has outlived the element's owner.
            let stale =
                matches!(&element.data, Data::Value(old) if old.as_bytes().starts_with(to.as_bytes()));
            !stale && hostport_rules::is_in_the_way(map, key, port)
        });
        same.map(|(_, element)| element.comment.as_deref().unwrap_or_default())
            .find(|owner| *owner != whose && !is_same_container(owner, whose))
    })
}

/// Both marks are of attachments of one container: runtimes ask for its host ports on each of its networks.
fn is_same_container(one: &str, other: &str) -> bool {
    let container =
        |mark: &str| Taken { port: String::new(), owner: mark.to_owned() }.owner().map(|who| who.container);
    container(one).is_some_and(|one| container(other) == Some(one))
}

/// The change that takes out every element of `seen` whose comment is `doomed`, and the host ports that end
/// with it.
pub fn nat_sweep(seen: &Elements, doomed: impl Fn(&str) -> bool) -> (Transaction, Vec<Translated>) {
    let (family, name) = nat_table();
    let mut change = Transaction::new(family, name);
    let mut ended = Vec::new();
    for (name, spec) in port_sets().chain(masquerade_sets()) {
        let elements = seen.get(&name).into_iter().flatten();
        let is_doomed = |element: &Element| element.comment.as_deref().is_some_and(&doomed);
        let gone: Vec<_> = elements.filter(|(_, element)| is_doomed(element)).collect();
        ended.extend(gone.iter().filter_map(|(key, element)| Translated::read(name.as_str(), key, element)));
        change.delete_elements(&name, &spec, gone.into_iter().map(|(key, _)| key.clone()));
    }
    (change, ended)
}

/// The change that takes out the chains of `have` that only elements whose comment is `doomed` lead to, or none.
/// To be made behind the elements' own.
#[must_use]
pub fn unused_classes(have: &Observed, doomed: impl Fn(&str) -> bool) -> Transaction {
    let stays = |element: &&Element| !element.comment.as_deref().is_some_and(&doomed);
    let elements = have.sets.values().flat_map(|set| set.elements.values());
    let used: Vec<&Name> = elements.filter(stays).filter_map(class_of).collect();
    let mut change = Transaction::new(have.family, &have.name);
    for name in have.chains.keys().filter(|name| Class::is_name(name) && !used.contains(name)) {
        change.push(Change::FlushChain { name: name.clone() });
        change.push(Change::DeleteChain { name: name.clone() });
    }
    change
}

/// The change that ends masquerading of `pods`.
#[must_use]
pub fn unmasquerade(pods: &[HostAddress]) -> Transaction {
    let (family, name) = nat_table();
    let mut change = Transaction::new(family, name);
    for entry in masquerade::entries(pods, "") {
        change.delete_elements(&entry.set.into(), &entry.spec, [entry.key]);
    }
    change
}

impl Taken {
    /// Who has the port; `None` where the mark does not say it in full.
    #[must_use]
    pub fn owner(&self) -> Option<Attachment> {
        let mut parts = self.owner.strip_prefix(netmodel::MARK)?.splitn(3, '/').map(str::to_owned);
        let (network, container, ifname) = (parts.next()?, parts.next()?, parts.next()?);
        // A long one is there as a hash.
        is_identifier(&container).then_some(())?;
        Some(Attachment { network, container, ifname: ifname.parse().ok()? })
    }

    /// The error of whoever wanted it; `pod` is the owner's.
    #[must_use]
    pub fn into_error(self, pod: Option<&str>) -> Error {
        let whose = match self.owner() {
            Some(Attachment { network, container, ifname }) => {
                let pod = pod.map(|pod| format!("pod {pod}, ")).unwrap_or_default();
                format!("{pod}container {container} (interface {ifname}, network {network})")
            }
            None if self.owner.is_empty() => "an unknown owner".to_owned(),
            None => self.owner,
        };
        Error::new(Code::Taken, format!("host port {} is taken by {whose}", self.port))
    }
}

#[cfg(test)]
mod tests;

//! Masquerading for networks that ask for it (`ipMasq`): one table for all of them, two elements per
//! address, so that an attachment costs the same however many there are.

use std::net::IpAddr;

use netmodel::{Subnet, TABLE_PREFIX};
use ruleset::{
    Chain, ChainType, Element, Family, Field, Hook, Key, Name, Observed, PortChoice, Rule, Selector, SetSpec,
    Statement, Table, Transaction, Value,
};

use crate::HostAddress;

/// Priority of source NAT (`srcnat`).
const SRCNAT: i32 = 100;

/// What differs between the families.
struct Words {
    /// Addresses of containers.
    pods: &'static str,
    /// Address of a container and where it is not masqueraded to: its own subnet.
    own: &'static str,
    from: Field,
    to: Field,
    multicast: (IpAddr, u8),
}

const FOUR: Words = Words {
    pods: "pods4",
    own: "own4",
    from: Field::IpSaddr,
    to: Field::IpDaddr,
    multicast: (IpAddr::V4(std::net::Ipv4Addr::new(224, 0, 0, 0)), 4),
};

const SIX: Words = Words {
    pods: "pods6",
    own: "own6",
    from: Field::Ip6Saddr,
    to: Field::Ip6Daddr,
    multicast: (IpAddr::V6(std::net::Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
};

impl Words {
    const fn of(address: IpAddr) -> &'static Self {
        if address.is_ipv4() { &FOUR } else { &SIX }
    }

    fn pods_spec(&self) -> SetSpec {
        SetSpec::set(self.from)
    }

    fn own_key(&self) -> Selector {
        Selector::concat([self.from, self.to])
    }

    fn own_spec(&self) -> SetSpec {
        SetSpec::set(self.own_key()).interval()
    }

    fn rules(&self) -> Vec<Rule> {
        let (address, prefix) = self.multicast;
        let elsewhere = Subnet::new(address, prefix).ok().map(|multicast| self.to.not_within(multicast));
        let outside = [self.from.in_set(self.pods)].into_iter().chain(elsewhere);
        vec![
            Rule::new([self.own_key().in_set(self.own), Statement::RETURN])
                .comment("weft: pod to its subnet"),
            Rule::new(outside.chain([Statement::Masquerade(PortChoice::FullyRandom)]))
                .comment("weft: pod to the outside"),
        ]
    }

    /// The keys of one address: in `pods`, in `own`.
    fn keys(&self, pod: HostAddress) -> Option<(Key, Key)> {
        let subnet = Subnet::containing(pod.address, pod.prefix).ok()?;
        let pair = |to: IpAddr| Value::concat([Value::from(pod.address), Value::from(to)]);
        Some((Key::from(Value::from(pod.address)), Key::range(pair(subnet.address()), pair(subnet.last()))))
    }
}

/// Family and name of the table.
#[must_use]
pub fn masquerade_table() -> (Family, Name) {
    (Family::Inet, Name::from(format!("{TABLE_PREFIX}cni")))
}

/// The table without elements.
fn table() -> Table {
    let (family, name) = masquerade_table();
    let mut table = Table::new(family, name);
    for words in [&FOUR, &SIX] {
        table.set(words.pods, words.pods_spec());
        table.set(words.own, words.own_spec());
    }
    let rules = [&FOUR, &SIX].into_iter().flat_map(Words::rules);
    table.chain("postrouting", Chain::base(ChainType::Nat, Hook::Postrouting, SRCNAT, rules));
    table
}

/// The elements of `pods`, by the set that they belong to.
fn elements(pods: &[HostAddress], whose: &str) -> Vec<(Name, SetSpec, Key, Element)> {
    let both = |pod: &HostAddress| {
        let words = Words::of(pod.address);
        let element = || Element::default().comment(whose);
        words.keys(*pod).map(|(address, own)| {
            [
                (words.pods.into(), words.pods_spec(), address, element()),
                (words.own.into(), words.own_spec(), own, element()),
            ]
        })
    };
    pods.iter().filter_map(both).flatten().collect()
}

/// The change that masquerades `pods` where the table is there; their elements say whose they are.
#[must_use]
pub fn masquerade(pods: &[HostAddress], whose: &str) -> Transaction {
    let (family, name) = masquerade_table();
    let mut change = Transaction::new(family, name);
    for (set, spec, key, element) in elements(pods, whose) {
        change.add_elements(&set, &spec, [(key, element)]);
    }
    change
}

/// The change after which the table is whole, masquerades `pods` too, and keeps the elements that it
/// has. Empty where nothing is missing.
#[must_use]
pub fn repair_masquerade(have: Option<&Observed>, pods: &[HostAddress], whose: &str) -> Transaction {
    let mut want = table();
    for (name, set) in &mut want.sets {
        let same = have.and_then(|have| have.sets.get(name)).filter(|seen| seen.header == set.spec.lower());
        set.elements.extend(same.into_iter().flat_map(|seen| seen.elements.clone()));
    }
    for (set, _, key, element) in elements(pods, whose) {
        want.element(&set, key, element);
    }
    ruleset::diff(&want, have)
}

/// The change that ends it for `pods`.
#[must_use]
pub fn unmasquerade(pods: &[HostAddress]) -> Transaction {
    let (family, name) = masquerade_table();
    let mut change = Transaction::new(family, name);
    for pod in pods {
        let words = Words::of(pod.address);
        let Some((address, own)) = words.keys(*pod) else { continue };
        change.delete_elements(&words.pods.into(), &words.pods_spec(), [address]);
        change.delete_elements(&words.own.into(), &words.own_spec(), [own]);
    }
    change
}

/// The change that takes out every element whose comment is `doomed`.
#[must_use]
pub fn sweep_masquerade(table: &Observed, doomed: impl Fn(&str) -> bool) -> Transaction {
    let mut change = Transaction::new(table.family, &table.name);
    for words in [&FOUR, &SIX] {
        for (name, spec) in [(words.pods, words.pods_spec()), (words.own, words.own_spec())] {
            let name = Name::from(name);
            let elements = table.sets.get(&name).into_iter().flat_map(|set| &set.elements);
            let doomed = elements.filter(|(_, e)| e.comment.as_deref().is_some_and(&doomed));
            change.delete_elements(&name, &spec, doomed.map(|(key, _)| key.clone()));
        }
    }
    change
}

/// Those of `pods` that `table` does not masquerade for `whose`.
#[must_use]
pub fn unmasqueraded(table: Option<&Observed>, pods: &[HostAddress], whose: &str) -> Vec<IpAddr> {
    let holds = |set: &str, key: &Key| {
        let element = table.and_then(|t| t.sets.get(&Name::from(set))).and_then(|s| s.elements.get(key));
        element.is_some_and(|element| element.comment.as_deref() == Some(whose))
    };
    let is_there = |pod: &HostAddress| {
        let words = Words::of(pod.address);
        words.keys(*pod).is_some_and(|(address, own)| holds(words.pods, &address) && holds(words.own, &own))
    };
    pods.iter().filter(|pod| !is_there(pod)).map(|pod| pod.address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods() -> Vec<HostAddress> {
        [("10.1.0.5", 24), ("fd00::5", 64)]
            .map(|(address, prefix)| HostAddress { address: address.parse().unwrap(), prefix })
            .into()
    }

    #[test]
    fn the_table_is_a_few_rules_for_any_number_of_pods() {
        assert_eq!(table().check(), Ok(()));
        let text = table().to_string();
        for wanted in [
            "ip saddr . ip daddr @own4 return",
            "ip saddr @pods4 ip daddr != 224.0.0.0/4 masquerade",
            "ip6 saddr @pods6 ip6 daddr != ff00::/8 masquerade",
        ] {
            assert!(text.contains(wanted), "{wanted} in:\n{text}");
        }
    }

    #[test]
    fn elements_come_go_and_are_found_by_their_owner() {
        let mut have = None;
        let apply = |have: &mut Option<Observed>, change| ruleset::apply(have, &change).unwrap();
        apply(&mut have, repair_masquerade(None, &pods()[..1], "weft:n/a/eth0"));
        apply(&mut have, masquerade(&pods()[1..], "weft:n/a/eth0"));
        assert!(unmasqueraded(have.as_ref(), &pods(), "weft:n/a/eth0").is_empty());
        assert_eq!(unmasqueraded(have.as_ref(), &pods(), "weft:n/b/eth0").len(), 2);
        assert_eq!(unmasqueraded(None, &pods(), "weft:n/a/eth0").len(), 2);
        let sweep = |have: &Option<Observed>, whose: &str| {
            sweep_masquerade(have.as_ref().unwrap(), |comment| comment == whose)
        };
        assert!(sweep(&have, "weft:n/b/eth0").is_empty());
        let by_owner = sweep(&have, "weft:n/a/eth0");
        assert_eq!(by_owner.changes.len(), 4);
        let mut other = have.clone();
        apply(&mut other, by_owner);
        apply(&mut have, unmasquerade(&pods()));
        assert_eq!(have, other);
        assert!(have.unwrap().sets.values().all(|set| set.elements.is_empty()));
    }

    #[test]
    fn a_table_that_others_broke_is_made_whole_with_its_elements() {
        let mut have = None;
        let apply = |have: &mut Option<Observed>, change| ruleset::apply(have, &change).unwrap();
        apply(&mut have, repair_masquerade(None, &pods(), "weft:n/a/eth0"));
        let whole = have.clone().map(Observed::without_handles);
        assert!(repair_masquerade(have.as_ref(), &[], "").is_empty());
        let broken = have.as_mut().unwrap();
        broken.chains.clear();
        broken.sets.remove(&Name::from("own4"));
        let change = repair_masquerade(have.as_ref(), &pods(), "weft:n/a/eth0");
        apply(&mut have, change);
        assert_eq!(have.map(Observed::without_handles), whole);
    }
}

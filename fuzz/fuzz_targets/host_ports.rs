//! Host ports, from the runtime's document to the kernel's table: containers come and go in any order, others
//! break the rules, and each port leads where its one owner wants it.
#![no_main]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use cni_core::{
    Elements, Forwarding, HostAddress, Nat, PortMappings, Questions, mend, nat_sweep, port_sets,
    unused_classes,
};
use libfuzzer_sys::{
    arbitrary::{Result, Unstructured},
    fuzz_target,
};
use ruleset::{Key, Observed, ObservedChain, Transaction, apply};
use serde_json::Value;
use weft_fuzz::{Make, flag, list, network, number, object, text};

const MAPPING: &[(&str, Make)] = &[
    ("hostPort", |u| number(u, &[80, 80, 81, 30001, 65535])),
    ("containerPort", |u| number(u, &[80, 8080])),
    ("protocol", |u| text(u, &["tcp", "TCP", "udp", "sctp", ""]).map(Value::from)),
    ("hostIP", |u| {
        const HOSTS: &[&str] =
            &["", "0.0.0.0", "::", "192.0.2.1", "192.0.2.2", "2001:db8::1", "::ffff:192.0.2.1", "127.0.0.1"];
        text(u, HOSTS).map(Value::from)
    }),
];

const KEYS: &[(&str, Make)] = &[
    ("snat", flag),
    ("masqAll", flag),
    ("backend", |u| Ok((*u.choose(&["nftables", "iptables"])?).into())),
    ("conditionsV4", conditions),
    ("conditionsV6", conditions),
];

/// What one container asks for.
struct Pod {
    whose: String,
    addresses: Vec<HostAddress>,
    ports: Vec<Forwarding>,
    mark_bit: Option<u8>,
}

/// The ports that have an owner, and where they lead.
type Owned = BTreeMap<(bool, Option<IpAddr>, u8, u16), (String, IpAddr, u16)>;

/// The kernel's table, and what should be in it.
#[derive(Default)]
struct World {
    table: Option<Observed>,
    owned: Owned,
}

fn conditions(u: &mut Unstructured<'_>) -> Result<Value> {
    const WHOLE: &[&str] = &[
        "ip saddr 10.0.0.0/8",
        "ip6 saddr fd00::/8",
        "ip daddr != { 192.0.2.1, 192.0.2.2 }",
        "meta iifname { a, \"b\" }",
        "iifname != eth1",
        "ip6 daddr { fd00::1 }",
        "ip",
        "saddr",
        "==",
        "{",
        "}",
        "ne",
    ];
    list(u, 5, |u| text(u, WHOLE).map(Value::from))
}

fn pod(u: &mut Unstructured<'_>) -> Result<Option<Pod>> {
    let who: u8 = u.int_in_range(0..=3)?;
    let mut document = object(u, KEYS)?;
    // Where none is named, all are tried on a table that is not whole, which takes long.
    if !u.ratio(1, 8)? {
        document["markMasqBit"] = (*u.choose(&[13, 13, 13, 5, 32])?).into();
    }
    let ports = list(u, 4, |u| {
        let mut mapping = object(u, MAPPING)?;
        for (key, make) in &MAPPING[..2] {
            if mapping.get(key).is_none() {
                mapping[*key] = make(u)?;
            }
        }
        Ok(mapping)
    })?;
    document["runtimeConfig"] = Value::from_iter([("portMappings", ports)]);
    let Some(mappings) = network(document).and_then(|network| PortMappings::parse(&network).ok()) else {
        return Ok(None);
    };
    // The fourth has the address of the first, whose DEL got lost.
    let number = 5 + who % 3;
    let mut addresses = Vec::new();
    for (address, prefixes) in
        [(format!("10.1.0.{number}"), [8, 24, 32]), (format!("fd00::{number}"), [8, 64, 128])]
    {
        if u.ratio(3, 4)? {
            let address = address.parse().expect("an address");
            addresses.push(HostAddress { address, prefix: *u.choose(&prefixes)? });
        }
    }
    let behind = if u.arbitrary()? { "cni0".parse().ok() } else { None };
    let located: Vec<_> = addresses.iter().map(|pod| (pod.address, behind.clone())).collect();
    let (ports, mark_bit) = (mappings.to(&located), mappings.mark_bit);
    if u.arbitrary()? {
        addresses.clear();
    }
    Ok(Some(Pod { whose: format!("weft:n/{who}/eth0"), addresses, ports, mark_bit }))
}

fn key(port: &Forwarding) -> (bool, Option<IpAddr>, u8, u16) {
    (port.pod.is_ipv4(), port.host, port.protocol.number(), port.port)
}

impl World {
    fn elements(&self) -> Elements {
        let sets = self.table.iter().flat_map(|have| &have.sets);
        sets.map(|(name, set)| (name.clone(), set.elements.clone())).collect()
    }

    /// What the kernel answers to these questions, and no more.
    fn answers(&self, questions: &Questions) -> Elements {
        let mut seen = self.elements();
        for (set, elements) in &mut seen {
            let is_asked = |key: &Key| {
                questions.keys.iter().any(|(name, asked)| name == set && *key == Key::One(asked.clone()))
            };
            elements.retain(|key, _| questions.sets.contains_key(set) || is_asked(key));
        }
        seen
    }

    fn change(&mut self, change: &Transaction) {
        apply(&mut self.table, change).expect("the kernel takes it");
    }

    /// The ADD of `pod`.
    fn add(&mut self, pod: &Pod) {
        let nat =
            Nat { whose: &pod.whose, masqueraded: &pod.addresses, ports: &pod.ports, mark_bit: pod.mark_bit };
        if nat.is_empty() {
            return;
        }
        let by_asking = self.table.as_ref().and_then(|have| {
            let rules = have.chains.iter().map(|(name, chain)| (name.clone(), chain.rules.clone()));
            let rules = rules.filter(|(_, rules)| !rules.is_empty()).collect();
            nat.claim(&rules, &self.answers(&nat.questions())).transpose()
        });
        let change = by_asking.unwrap_or_else(|| nat.repair(self.table.as_ref()));
        assert_eq!(
            change.is_err(),
            pod.ports.iter().any(|port| self.has_rival(port, &pod.whose)),
            "{change:?}"
        );
        let change: Transaction = match change {
            Ok(change) => change,
            Err(taken) => {
                assert_ne!(taken.owner().map(|owner| owner.alias()), Some(pod.whose.clone()));
                return assert_eq!(nat.repair(self.table.as_ref()), Err(taken));
            }
        };
        self.change(&change);
        assert_eq!(nat.missing(self.table.as_ref()), [""; 0]);
        for port in &pod.ports {
            self.owned.insert(key(port), (pod.whose.clone(), port.pod, port.container_port));
        }
    }

    /// Another container's port would hide `port`, or be hidden by it.
    fn has_rival(&self, port: &Forwarding, whose: &str) -> bool {
        let (ipv4, host, protocol, number) = key(port);
        self.owned.iter().any(|(other, (owner, pod, _))| {
            let same = (other.0, other.2, other.3) == (ipv4, protocol, number);
            let meets = other.1.is_none() || host.is_none() || other.1 == host;
            same && meets && owner != whose && *pod != port.pod
        })
    }

    /// What GC does once `whose` has gone.
    fn sweep(&mut self, whose: &str) {
        let Some(have) = &self.table else { return };
        let change = mend(have);
        self.change(&change);
        let seen = self.elements();
        let (doomed, ended) = nat_sweep(&seen, |owner| owner == whose);
        let mut change = doomed;
        change.extend(unused_classes(self.table.as_ref().expect("a table"), |owner| owner == whose));
        self.change(&change);
        let mut ended: Vec<_> =
            ended.iter().map(|e| (e.protocol.number(), e.port, e.pod, e.container_port)).collect();
        let gone = self.owned.extract_if(.., |_, (owner, ..)| owner == whose);
        let mut gone: Vec<_> = gone.map(|(key, (_, pod, to))| (key.2, key.3, pod, to)).collect();
        ended.sort_unstable();
        gone.sort_unstable();
        assert_eq!(ended, gone);
    }

    /// Somebody else shortens a chain, empties it, or makes one of another kind in its place.
    fn damage(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let Some(have) = &mut self.table else { return Ok(()) };
        let at = u.choose_index(have.chains.len())?;
        let Some(chain) = have.chains.values_mut().nth(at) else { return Ok(()) };
        match u.int_in_range(0..=2)? {
            0 => drop(chain.rules.pop()),
            1 => chain.rules.clear(),
            _ => *chain = ObservedChain::default(),
        }
        Ok(())
    }

    /// The maps of ports hold what they should, and an address has one home.
    fn check(&self) {
        let elements = self.elements();
        let maps = port_sets().filter(|(name, _)| name.as_str().contains("ports"));
        let all: Vec<_> = maps.filter_map(|(name, _)| elements.get(&name)).flatten().collect();
        assert_eq!(all.len(), self.owned.len());
        for (whose, ..) in self.owned.values() {
            let comment = |element: &ruleset::Element| element.comment.as_deref() == Some(whose);
            assert!(all.iter().any(|(_, element)| comment(element)), "{whose}");
        }
        for (name, homes) in elements.iter().filter(|(name, _)| name.as_str().starts_with("homes")) {
            let address = |key: &Key| key.first().as_bytes()[..key.first().as_bytes().len() / 2].to_vec();
            let addresses: BTreeSet<_> = homes.keys().map(address).collect();
            assert_eq!(addresses.len(), homes.len(), "{name:?} {homes:?}");
        }
    }
}

fn try_one(u: &mut Unstructured<'_>) -> Result<()> {
    let mut world = World::default();
    for _ in 0..u.int_in_range(1..=8)? {
        match u.int_in_range(0..=5)? {
            0 => world.sweep(&format!("weft:n/{}/eth0", u.int_in_range(0..=3)?)),
            1 => world.damage(u)?,
            _ => pod(u)?.iter().for_each(|pod| world.add(pod)),
        }
        world.check();
    }
    for who in 0..=3 {
        world.sweep(&format!("weft:n/{who}/eth0"));
    }
    world.check();
    assert_eq!(world.elements().values().flatten().count(), 0);
    let Some(have) = &world.table else { return Ok(()) };
    assert!(!have.chains.keys().any(|name| name.as_str().starts_with("class-")), "{:?}", have.chains.keys());
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    // An input that is used up ends the attempt.
    let _ = try_one(&mut Unstructured::new(data));
});

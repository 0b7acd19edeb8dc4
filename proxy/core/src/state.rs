//! What this proxy wants in the kernel, kept up to date Service by Service.
//!
//! ```text
//! catalog --update(one Service)--> programmed ports --elements--> Delta (before, after) --> transactions
//! ```
//!
//! A port of a Service keeps its id, and its endpoints keep their slots, from one change to the next, so that a
//! change costs its own size. Everything can be made anew from the catalog and from what is read back of the
//! kernel ([`crate::adopt`]).

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
    time::Duration,
};

use netmodel::Protocol;
use ruleset::{Chain, Element, Key, Name, Table, Value};

use crate::{
    adopt::Found,
    catalog::Catalog,
    delta::Delta,
    endpoints::{Chosen, choose},
    ids::{CLASS_BITS, Class, Classes, MAX_ID, Pool, View},
    object::ObjectName,
    ports::{Problem, Programmed, Wish, fronts_of, label, settle, wanted_fronts},
    services::{Service, ServicePort},
    tables::{self, Config, Front, NodePorts, SetName},
};

/// The proxy's state: a pure machine that is fed with a [`Catalog`].
#[derive(Clone, Debug)]
pub struct State {
    config: Config,
    ids: Pool,
    classes: Classes,
    programmed: BTreeMap<ObjectName, Box<[Programmed]>>,
    /// Who has a front end.
    owners: BTreeMap<Front, ObjectName>,
    /// Who would like to have it too.
    waiting: BTreeMap<Front, BTreeSet<ObjectName>>,
    /// How many front ends or endpoints want an element that they share.
    shared: BTreeMap<(SetName, IpAddr), u32>,
    problems: BTreeMap<ObjectName, Vec<Problem>>,
    /// UDP front ends whose flows may have become stale since the last [`Self::take_touched`].
    touched: BTreeSet<Front>,
}

impl State {
    /// Without Services.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            ids: Pool::new(MAX_ID),
            classes: Classes::default(),
            programmed: BTreeMap::new(),
            owners: BTreeMap::new(),
            waiting: BTreeMap::new(),
            shared: BTreeMap::new(),
            problems: BTreeMap::new(),
            touched: BTreeSet::new(),
        }
    }

    /// What the table depends on beside Services.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The Services that are not in the kernel as they should be, and why.
    #[must_use]
    pub const fn problems(&self) -> &BTreeMap<ObjectName, Vec<Problem>> {
        &self.problems
    }

    /// All Services in the kernel with their ports.
    pub fn programmed(&self) -> impl Iterator<Item = (&ObjectName, &[Programmed])> {
        self.programmed.iter().map(|(name, ports)| (name, &**ports))
    }

    /// All cluster IPs.
    pub fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.shared.keys().filter(|(set, _)| *set == SetName::ClusterIps).map(|(_, address)| *address)
    }

    /// Who has that front end, as it is in the kernel.
    #[must_use]
    pub fn behind(&self, front: &Front) -> Option<&Programmed> {
        let ports = self.programmed.get(self.owners.get(front)?)?;
        ports.iter().find(|port| port.fronts.contains(front))
    }

    /// The UDP front ends that changed since the last call: some of their flows may be stale.
    pub fn take_touched(&mut self) -> BTreeSet<Front> {
        std::mem::take(&mut self.touched)
    }

    /// Marks all UDP front ends: while the table was not as it should be, flows may have passed it by, and a flow
    /// without translation stays without.
    pub fn touch_all(&mut self) {
        self.touch_owned(|_| true);
    }

    /// Marks all UDP node ports: flows to an address that has just become the node's have no translation.
    pub fn touch_node_ports(&mut self) {
        self.touch_owned(|front| matches!(front, Front::Node(..)));
    }

    fn touch_owned(&mut self, which: impl Fn(&Front) -> bool) {
        let udp = self.owners.keys().filter(|front| front.protocol() == Protocol::Udp && which(front));
        self.touched.extend(udp.copied());
    }

    /// Marks a front end that the kernel still had and nobody wants.
    pub(crate) fn touch(&mut self, front: Front) {
        if front.protocol() == Protocol::Udp {
            self.touched.insert(front);
        }
    }

    /// When [`Self::sync`] has something to do though nothing changed.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.classes.next_expiry()
    }

    /// Brings the state up to date with the Services that changed in `catalog`, and returns what has to change
    /// in the kernel. `now` counts from any fixed moment.
    pub fn sync(&mut self, catalog: &mut Catalog, now: Duration) -> Delta {
        let mut delta = Delta::recording();
        self.update_changed(catalog, &mut Found::default(), now, &mut delta);
        delta
    }

    /// The same with ids and slots that were found in the kernel, and without a [`Delta`]: what has to change
    /// is the difference between [`Self::table`] and what was found.
    pub fn sync_with(&mut self, catalog: &mut Catalog, found: &mut Found, now: Duration) {
        found.classes().for_each(|(class, number)| self.classes.adopt(class, number, now));
        found.leftover_ids().retain(|id| self.ids.claim(*id)); // no packet's id comes to mean something else
        for (name, fronts) in found.owners() {
            let wanted = wanted_fronts(catalog.service(name), &self.config);
            let kept = fronts.filter(|front| wanted.contains(front));
            self.owners.extend(kept.map(|front| (front, name.clone())));
        }
        self.update_changed(catalog, found, now, &mut Delta::default());
        for front in found.fronts() {
            if !self.owners.contains_key(&front) {
                self.touch(front);
            }
        }
        for id in std::mem::take(found.leftover_ids()) {
            self.ids.give_back(id, now);
        }
    }

    /// Makes these the addresses at which node ports are open, unless they are open at all.
    pub fn set_node_addresses(&mut self, addresses: BTreeSet<IpAddr>, delta: &mut Delta) {
        let NodePorts::At(before) = &mut self.config.node_ports else { return };
        for gone in before.difference(&addresses) {
            delta.take(SetName::NodePortIps, (*gone).into(), Element::default());
        }
        for new in addresses.difference(before) {
            delta.put(SetName::NodePortIps, (*new).into(), Element::default());
        }
        if *before != addresses {
            *before = addresses;
            self.touch_node_ports();
        }
    }

    /// The whole table that is wanted.
    #[must_use]
    pub fn table(&self) -> Table {
        let mut table = self.config.skeleton();
        for (class, number) in self.classes.iter() {
            table.element(&SetName::Classes.into(), Value::number(number), tables::class_element(class));
            for (name, chain) in tables::class_chains(class, self.config.family) {
                table.chain(name, chain);
            }
        }
        for (set, address) in self.shared.keys() {
            table.element(&(*set).into(), tables::shared_key(*set, *address), Element::default());
        }
        let names: BTreeMap<SetName, Name> = SetName::ALL.map(|set| (set, set.into())).into();
        for (service, ports) in &self.programmed {
            for port in ports {
                self.elements(service, port, &mut |set, key, element| {
                    table.element(&names[&set], key, element);
                });
            }
        }
        table
    }

    fn update_changed(&mut self, catalog: &mut Catalog, found: &mut Found, now: Duration, delta: &mut Delta) {
        let mut queue = catalog.take_changed();
        queue.extend(
            self.problems
                .iter()
                .filter(|(_, p)| p.iter().any(Problem::is_shortage))
                .map(|(name, _)| name.clone()),
        );
        while let Some(name) = queue.pop_first() {
            self.update(&name, catalog, Pass { found, now, delta, queue: &mut queue });
        }
        if !delta.is_empty() {
            return; // classes go in a pass of their own, so that a change stays small
        }
        for (class, number) in self.classes.expire(now) {
            delta.take(SetName::Classes, Value::number(number).into(), tables::class_element(&class));
            for (name, _) in self.chains_of_only(&class) {
                delta.drop_chain(name);
            }
        }
    }

    /// Brings one Service up to date.
    fn update(&mut self, name: &ObjectName, catalog: &Catalog, mut pass: Pass<'_>) {
        let before = self.programmed.remove(name).unwrap_or_default();
        for problem in self.problems.remove(name).unwrap_or_default() {
            self.wait_no_longer(name, &problem);
        }
        let service = catalog.service(name);
        self.release_unwanted(name, service, &before, pass.queue);
        let mut after = Vec::new();
        for port in service.iter().flat_map(|service| &service.ports) {
            let fronts = self.claim(name, service.map_or(&[], |s| &s.cluster_ips), port);
            let chosen = if fronts.is_empty() {
                Chosen::default() // rows that nothing leads to
            } else {
                choose(catalog.slices(name), port, self.config.family)
            };
            let old = before.iter().find(|old| old.name == port.name && old.protocol == port.protocol);
            let wish = Wish { port, fronts, chosen, old };
            after.push(self.program(&wish, &mut pass).unwrap_or_else(|problem| {
                self.problems.entry(name.clone()).or_default().push(problem);
                let stays = wish.stay();
                for front in wish.fronts.iter().filter(|front| !stays.fronts.contains(front)) {
                    self.owners.remove(front);
                }
                stays
            }));
        }
        self.switch(name, &before, &after, &mut pass);
        if !after.is_empty() {
            self.programmed.insert(name.clone(), after.into());
        }
    }

    /// Gives up the front ends that the Service does not ask for any more, so that another may have them.
    fn release_unwanted(
        &mut self,
        name: &ObjectName,
        service: Option<&Service>,
        before: &[Programmed],
        queue: &mut BTreeSet<ObjectName>,
    ) {
        let wanted = wanted_fronts(service, &self.config);
        for front in before.iter().flat_map(|port| &port.fronts).filter(|front| !wanted.contains(front)) {
            self.owners.remove(front);
            if let Some(heirs) = self.waiting.remove(front) {
                queue.extend(heirs.into_iter().filter(|heir| heir != name));
            }
        }
    }

    /// Takes a Service off the list of those that want a front end of another.
    fn wait_no_longer(&mut self, name: &ObjectName, problem: &Problem) {
        if let Problem::Taken { front, .. } = problem
            && let Entry::Occupied(mut waiting) = self.waiting.entry(*front)
        {
            waiting.get_mut().remove(name);
            if waiting.get().is_empty() {
                waiting.remove();
            }
        }
    }

    /// The front ends of a port, as far as nobody else has them.
    fn claim(&mut self, name: &ObjectName, addresses: &[IpAddr], port: &ServicePort) -> Vec<Front> {
        let mut fronts = fronts_of(addresses, port, &self.config);
        fronts.retain(|front| {
            let owner = self.owners.entry(*front).or_insert_with(|| name.clone());
            if owner == name {
                return true;
            }
            let taken = Problem::Taken { front: *front, by: owner.clone() };
            self.problems.entry(name.clone()).or_default().push(taken);
            self.waiting.entry(*front).or_default().insert(name.clone());
            false
        });
        fronts
    }

    /// A port as it should be, with an id and the classes that it needs.
    fn program(&mut self, wish: &Wish<'_>, pass: &mut Pass<'_>) -> Result<Programmed, Problem> {
        let Wish { port, fronts, chosen, old } = wish;
        let endpoints = u16::try_from(chosen.usable.len());
        let endpoints = endpoints.map_err(|_| Problem::TooManyEndpoints(chosen.usable.len()))?;
        for front in fronts.iter().filter(|_| endpoints > 0) {
            self.hold(self.class(front, endpoints), pass)?;
        }
        let (mut id, mut slots) = old.map_or((0, Vec::new()), |old| (old.id, old.rows.to_vec()));
        if id == 0
            && endpoints > 0
            && let Some(found) = pass.found.take(fronts)
        {
            (id, slots) = found;
        }
        if endpoints > 0 && id == 0 {
            id = self.ids.take(pass.now).ok_or(Problem::NoId)?;
        } else if endpoints == 0 {
            id = 0; // the old one is given back once its rows go
        }
        let udp = port.protocol == Protocol::Udp;
        Ok(Programmed {
            name: port.name.clone(),
            protocol: port.protocol,
            id,
            fronts: fronts.as_slice().into(),
            rows: settle(&slots, &chosen.usable).into(),
            serving: if udp { chosen.serving.as_slice().into() } else { Box::default() },
        })
    }

    fn class(&self, front: &Front, endpoints: u16) -> Class {
        Class { endpoints, masquerade: self.config.masquerade(front), affinity: None, view: View::Cluster }
    }

    /// Makes sure that a class is there before a front end leads to it.
    fn hold(&mut self, class: Class, pass: &mut Pass<'_>) -> Result<(), Problem> {
        if self.classes.number(&class).is_none() {
            let number = self.classes.hold(class, pass.now).ok_or(Problem::NoClass)?;
            pass.delta.put(SetName::Classes, Value::number(number).into(), tables::class_element(&class));
            for (name, chain) in self.chains_of_only(&class) {
                pass.delta.add_chain(name, chain);
            }
        }
        Ok(())
    }

    /// The chains of a class that no other class needs.
    fn chains_of_only(&self, class: &Class) -> Vec<(Name, Chain)> {
        let mut chains = tables::class_chains(class, self.config.family);
        for (other, _) in self.classes.iter().filter(|(other, _)| *other != class) {
            let needed = tables::class_chains(other, self.config.family);
            chains.retain(|(name, _)| !needed.iter().any(|(other, _)| other == name));
        }
        chains
    }

    /// Books the step from one set of ports of a Service to the next.
    fn switch(
        &mut self,
        name: &ObjectName,
        before: &[Programmed],
        after: &[Programmed],
        pass: &mut Pass<'_>,
    ) {
        if before == after {
            return;
        }
        for port in before {
            self.elements(name, port, &mut |set, key, element| pass.delta.take(set, key, element));
        }
        for port in after {
            self.elements(name, port, &mut |set, key, element| pass.delta.put(set, key, element));
        }
        for port in after {
            self.count(port, true, pass);
        }
        for port in before {
            self.count(port, false, pass);
            if port.id != 0 && !after.iter().any(|after| after.id == port.id) {
                self.ids.give_back(port.id, pass.now);
            }
            port.fronts.iter().for_each(|front| self.touch(*front));
        }
        after.iter().flat_map(|port| &port.fronts).for_each(|front| self.touch(*front));
    }

    /// Counts what a port shares with others, up or down.
    fn count(&mut self, port: &Programmed, up: bool, pass: &mut Pass<'_>) {
        let mut wants = Vec::new();
        for front in &port.fronts {
            if let Front::Cluster(address, ..) = front {
                wants.push((SetName::ClusterIps, *address));
            }
            if let Some(endpoints) = u16::try_from(port.rows.len()).ok().filter(|n| *n > 0) {
                let class = self.class(front, endpoints);
                if up { self.classes.enter(&class) } else { self.classes.leave(&class, pass.now) }
            }
        }
        wants
            .extend(port.rows.iter().filter(|(_, here)| *here).map(|(row, _)| (SetName::Hairpins, row.ip())));
        for want in wants {
            let count = self.shared.entry(want).or_insert(0);
            let key = || tables::shared_key(want.0, want.1);
            if up {
                *count += 1;
                if *count == 1 {
                    pass.delta.put(want.0, key(), Element::default());
                }
            } else {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.shared.remove(&want);
                    pass.delta.take(want.0, key(), Element::default());
                }
            }
        }
    }

    /// All elements that a port has to itself.
    fn elements(&self, service: &ObjectName, port: &Programmed, each: &mut dyn FnMut(SetName, Key, Element)) {
        let label = label(service, &port.name);
        let endpoints = u16::try_from(port.rows.len()).unwrap_or(u16::MAX);
        for front in &port.fronts {
            let (map, rejects) = front.sets();
            let class = self.class(front, endpoints);
            match self.classes.number(&class).filter(|_| endpoints > 0) {
                Some(number) => {
                    let value = Value::number(port.id << CLASS_BITS | number);
                    each(map, front.key(), Element::value(value).comment(label.clone()));
                }
                None => each(rejects, front.key(), Element::default().comment(label.clone())),
            }
        }
        for (slot, (endpoint, _)) in (0..).zip(&port.rows) {
            each(
                SetName::Endpoints,
                tables::row_key(port.id, slot),
                tables::row(*endpoint).comment(label.clone()),
            );
        }
    }
}

/// What one pass carries along.
struct Pass<'a> {
    found: &'a mut Found,
    now: Duration,
    delta: &'a mut Delta,
    queue: &'a mut BTreeSet<ObjectName>,
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;

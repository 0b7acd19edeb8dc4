//! For tests: Services by a few words, and a kernel that carries out what is wanted of it.

use std::{sync::Arc, time::Duration};

use netmodel::{Port, Protocol};
use ruleset::{Family, Observed, Transaction, Value, apply};

use crate::{
    adopt::Found,
    catalog::Catalog,
    delta,
    endpoints::{Endpoint, Part, Slice, SlicePort, State as EndpointState},
    ids::{CLASS_BITS, Class},
    object::{Key as ObjectKey, Kind, Object, ObjectName},
    services::{Service, ServicePort},
    state::State,
    tables::{self, Config, NodePorts, SetName},
};

pub(crate) fn config() -> Config {
    Config {
        family: Family::Ip,
        pod_ranges: vec!["10.244.0.0/16".parse().unwrap()],
        node_ports: NodePorts::At(["192.0.2.1".parse().unwrap()].into()),
        masquerade_all: false,
    }
}

pub(crate) fn port(number: u16) -> Port {
    Port::try_from(i64::from(number)).unwrap()
}

/// The objects of one Service `name` at that cluster IP: TCP 80 (and node port) and UDP 53.
pub(crate) fn service(
    name: &str,
    ip: &str,
    node_port: Option<u16>,
    endpoints: &[u8],
) -> Vec<(ObjectKey, Arc<Object>)> {
    let named = |name: &str, protocol, number, node_port: Option<u16>| ServicePort {
        name: name.into(),
        protocol,
        port: port(number),
        node_port: node_port.map(port),
    };
    let service = Service {
        cluster_ips: [ip.parse().unwrap()].into(),
        ports: [named("http", Protocol::Tcp, 80, node_port), named("dns", Protocol::Udp, 53, None)].into(),
    };
    let slice_port =
        |name: &str, protocol, number| SlicePort { name: name.into(), protocol, port: port(number) };
    let endpoint = |n: &u8| Endpoint {
        address: [10, 244, n % 3, *n].into(),
        state: EndpointState { ready: true, serving: true, terminating: false, here: n.is_multiple_of(3) },
    };
    let part = Part {
        ports: [slice_port("http", Protocol::Tcp, 8080), slice_port("dns", Protocol::Udp, 5353)].into(),
        endpoints: endpoints.iter().map(endpoint).collect(),
    };
    let name = ObjectName::new("", name);
    let slice = Slice { service: name.clone(), legacy: false, parts: [part].into() };
    let key = |kind| ObjectKey { kind, name: name.clone() };
    vec![
        (key(Kind::Service), Arc::new(Object::Service(service))),
        (key(Kind::EndpointSlice), Arc::new(Object::Slice(slice))),
    ]
}

pub(crate) fn catalog(services: &[Vec<(ObjectKey, Arc<Object>)>]) -> Catalog {
    let mut catalog = Catalog::default();
    catalog.replace(&services.iter().flatten().cloned().collect());
    catalog
}

/// A kernel that carries out transactions, and refuses what the real one would.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) table: Option<Observed>,
    /// Refuses each n-th transaction without a reason.
    pub(crate) fail_every: usize,
    calls: usize,
}

impl Fake {
    pub(crate) fn commit(&mut self, transactions: &[Transaction]) -> Result<(), String> {
        for transaction in transactions {
            self.calls += 1;
            if self.fail_every > 0 && self.calls.is_multiple_of(self.fail_every) {
                return Err("EBUSY".to_owned());
            }
            apply(&mut self.table, transaction).map_err(|refusal| refusal.to_string())?;
            self.check_that_front_ends_lead_somewhere();
        }
        Ok(())
    }

    /// After each transaction each front end leads to a class that is there, and to as many rows as its chain
    /// draws from.
    fn check_that_front_ends_lead_somewhere(&self) {
        let Some(table) = &self.table else { return };
        let elements = |set: SetName| &table.sets[&set.into()].elements;
        for set in [SetName::Frontends, SetName::NodePorts] {
            for (key, element) in elements(set) {
                let ruleset::Data::Value(value) = &element.data else { panic!("no value at {key:?}") };
                let value = value.as_number().unwrap();
                let class = &elements(SetName::Classes)[&Value::number(value & 0xfff).into()];
                let ruleset::Data::Verdict(ruleset::Verdict::Goto(chain)) = &class.data else {
                    panic!("{class:?}")
                };
                let class = Class::named(chain.as_str()).unwrap();
                for slot in 0..u32::from(class.endpoints) {
                    let row = tables::row_key(value >> CLASS_BITS, slot);
                    assert!(elements(SetName::Endpoints).contains_key(&row), "{key:?} has no slot {slot}");
                }
            }
        }
    }
}

pub(crate) fn created(state: &State) -> Option<Observed> {
    let mut table = None;
    apply(&mut table, &Transaction::create(&state.table())).unwrap();
    table
}

pub(crate) fn start(catalog: &mut Catalog, fake: &mut Fake, now: Duration) -> State {
    let mut state = State::new(config());
    let mut found = fake.table.as_ref().map(Found::read).unwrap_or_default();
    state.sync_with(catalog, &mut found, now);
    fake.commit(&delta::transactions(&state.table(), fake.table.as_ref())).unwrap();
    state
}

/// The changes of each transaction, in short; rules come and go with their chains.
pub(crate) fn steps(transactions: &[Transaction]) -> Vec<String> {
    let text = |change: &ruleset::Change| match change {
        ruleset::Change::AddElements { set, elements, .. } => Some(format!("+{} {set}", elements.len())),
        ruleset::Change::DeleteElements { set, keys, .. } => Some(format!("-{} {set}", keys.len())),
        ruleset::Change::AddChain { name, .. } => Some(format!("+{name}")),
        ruleset::Change::DeleteChain { name } => Some(format!("-{name}")),
        _ => None,
    };
    let text = |t: &Transaction| t.changes.iter().filter_map(text).collect::<Vec<_>>().join(" ");
    transactions.iter().map(text).collect()
}

/// A proxy and its kernel.
pub(crate) struct World {
    pub(crate) catalog: Catalog,
    pub(crate) state: State,
    pub(crate) fake: Fake,
}

impl World {
    pub(crate) fn new(services: &[Vec<(ObjectKey, Arc<Object>)>]) -> Self {
        let (mut catalog, mut fake) = (catalog(services), Fake::default());
        let state = start(&mut catalog, &mut fake, Duration::ZERO);
        Self { catalog, state, fake }
    }

    /// Makes these all Services that there are, and returns the steps that this takes.
    pub(crate) fn change(
        &mut self,
        services: &[Vec<(ObjectKey, Arc<Object>)>],
        now: Duration,
    ) -> Vec<String> {
        self.catalog.replace(&services.iter().flatten().cloned().collect());
        let transactions = self.state.sync(&mut self.catalog, now).into_transactions(&config());
        self.fake.commit(&transactions).unwrap();
        assert_eq!(self.fake.table, created(&self.state));
        steps(&transactions)
    }
}

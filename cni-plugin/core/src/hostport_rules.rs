//! The rules of host ports: whatever is sent to a port of the host that is in a map goes to a container.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use netmodel::Subnet;
use ruleset::{
    Chain, ChainType, Element, Expr, FIB_LOCAL, Field, Hook, Key, Name, PortChoice, Rule, Selector, SetSpec,
    Statement, Table, Value, Verdict, Writable, ct_state, ct_status,
};

use crate::{Forwarding, entry::Entry};

/// Just behind the Services of kube-proxy and of our own proxy (`dstnat`, -100).
const BEHIND_SERVICES: i32 = -99;

/// Packets to addresses of this host.
const LOCAL: &str = "hostports";
/// Packets that no class of a port has claimed.
const USUAL: &str = "usual";
/// Packets whose source is to be replaced.
const MASQUERADE: &str = "from-host";
/// Packets whose source is settled.
const TRANSLATE: &str = "translate";

/// Host ports of a family: of any address, or of a certain one.
struct Kind {
    /// Map from the port to the container's address and port.
    ports: &'static str,
    /// Set of interfaces with a port: what comes from there to that port gets the host's address.
    hairpins: &'static str,
    /// Verdict map of ports whose packets are not treated as usual.
    classes: &'static str,
    ipv4: bool,
    any_address: bool,
}

/// A certain address before any.
const KINDS: [Kind; 4] = [
    Kind {
        ports: "hostip-ports4",
        hairpins: "hostip-hairpins4",
        classes: "hostip-classes4",
        ipv4: true,
        any_address: false,
    },
    Kind { ports: "hostports4", hairpins: "hairpins4", classes: "classes4", ipv4: true, any_address: true },
    Kind {
        ports: "hostip-ports6",
        hairpins: "hostip-hairpins6",
        classes: "hostip-classes6",
        ipv4: false,
        any_address: false,
    },
    Kind { ports: "hostports6", hairpins: "hairpins6", classes: "classes6", ipv4: false, any_address: true },
];

impl Kind {
    fn of(forwarding: &Forwarding) -> &'static Self {
        Self::at(forwarding.pod.is_ipv4(), forwarding.host.is_none())
    }

    fn at(ipv4: bool, any_address: bool) -> &'static Self {
        let wanted = |kind: &&Self| (kind.ipv4, kind.any_address) == (ipv4, any_address);
        KINDS.iter().find(wanted).unwrap_or(&KINDS[0])
    }

    const fn destination(&self) -> Field {
        if self.ipv4 { Field::IpDaddr } else { Field::Ip6Daddr }
    }

    /// What a packet's port is looked up by, with `before` in front.
    fn key(&self, before: Option<Field>) -> Selector {
        let address = (!self.any_address).then_some(self.destination());
        let port = [Field::MetaL4proto, Field::ThDport];
        Selector::concat(before.into_iter().chain(address).chain(port).map(Expr::from))
    }

    fn ports_spec(&self) -> SetSpec {
        SetSpec::map(self.key(None), [self.destination(), Field::ThDport])
    }

    fn hairpins_spec(&self) -> SetSpec {
        SetSpec::set(self.key(Some(Field::Iifname)))
    }

    fn classes_spec(&self) -> SetSpec {
        SetSpec::vmap(self.key(None))
    }

    /// A rule for packets of the family.
    fn rule(&self, statements: impl IntoIterator<Item = Statement>) -> Rule {
        let family = Field::MetaNfproto.is(Value::bytes(&[if self.ipv4 { 2 } else { 10 }]));
        Rule::new(self.any_address.then_some(family).into_iter().chain(statements))
    }
}

/// The key of a port, whatever the address.
fn port_key(forwarding: &Forwarding) -> Value {
    Value::concat([Value::proto(forwarding.protocol), Value::port(forwarding.port)])
}

/// The key of a port, with `before` in front.
fn key(forwarding: &Forwarding, before: Option<Value>) -> Value {
    let host = forwarding.host.map(Value::from);
    Value::concat(before.into_iter().chain(host).chain([port_key(forwarding)]))
}

/// Adds sets and chains; `mark` is the bit that means "replace the source".
pub(crate) fn add_to(table: &mut Table, mark: u32) {
    for kind in &KINDS {
        table.set(kind.ports, kind.ports_spec());
        table.set(kind.hairpins, kind.hairpins_spec());
        table.set(kind.classes, kind.classes_spec());
    }
    let local = || [Rule::new([Field::FibDaddrType.is(Value::number(FIB_LOCAL)), Statement::jump(LOCAL)])];
    for (name, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        table.chain(name, Chain::base(ChainType::Nat, hook, BEHIND_SERVICES, local()));
    }
    // What has that source can't leave the host.
    let loopback = Rule::new([Field::Ip6Daddr.is(Value::from(Ipv6Addr::LOCALHOST)), Statement::RETURN]);
    let classes = KINDS.iter().map(|kind| kind.rule([kind.key(None).vmap(kind.classes)]));
    let usual = Rule::new([Statement::goto(USUAL)]);
    table.chain(LOCAL, Chain::regular([loopback].into_iter().chain(classes).chain([usual])));
    let hairpins = KINDS.iter().map(|kind| {
        let here = kind.key(Some(Field::Iifname)).in_set(kind.hairpins);
        kind.rule([here, Statement::goto(MASQUERADE)])
    });
    let translate = Statement::goto(TRANSLATE);
    table.chain(USUAL, Chain::regular(hairpins.chain([Rule::new([translate.clone()])])));
    let marked = Rule::new([Writable::MetaMark.set(Field::MetaMark.or(mark)), translate]);
    table.chain(MASQUERADE, Chain::regular([marked]));
    let dnat = |kind: &Kind| kind.rule([Statement::dnat_by(kind.ports, kind.key(None))]);
    table.chain(TRANSLATE, Chain::regular(KINDS.iter().map(dnat)));
    table.chain("input", Chain::base(ChainType::Filter, Hook::Input, 0, guard()));
}

fn loopback() -> Option<Subnet> {
    "127.0.0.0/8".parse().ok()
}

fn lo() -> Value {
    "lo".parse().map_or_else(|_| Value::bytes(&[]), |name| Value::interface(&name))
}

/// An interface that passes `127.0.0.0/8` on (`route_localnet`) would also take it in from the containers. What
/// the host itself has translated to there may pass.
fn guard() -> Vec<Rule> {
    let inside = loopback().map(|loopback| Field::IpDaddr.within(loopback));
    let begun = Field::CtState.has_any(ct_state::NEW | ct_state::INVALID | ct_state::UNTRACKED);
    let redirected = [Field::CtStatus.has_any(ct_status::DNAT), Statement::RETURN];
    let others = [Field::Iifname.is_not(lo()), begun, Statement::DROP];
    vec![
        Rule::new(inside.clone().into_iter().chain(redirected)),
        Rule::new(inside.into_iter().chain(others)).comment("weft: loopback addresses stay inside"),
    ]
}

/// The rules that replace sources, for the postrouting hook.
pub(crate) fn source_rules(mark: u32) -> Vec<Rule> {
    let masquerade = Statement::Masquerade(PortChoice::FullyRandom);
    let marked = [
        Field::MetaMark.and(mark).is_not(Value::number(0)),
        Writable::MetaMark.set(Field::MetaMark.xor(mark)),
        masquerade.clone(),
    ];
    let from_localhost = loopback().map(|loopback| {
        let leaves = Field::Oifname.is_not(lo());
        let redirected = Field::CtStatus.has_any(ct_status::DNAT);
        let statements = [Field::IpSaddr.within(loopback), leaves, redirected, masquerade];
        Rule::new(statements).comment("weft: localhost to a host port")
    });
    let marked = Rule::new(marked).comment("weft: host port from beside the pod");
    [marked].into_iter().chain(from_localhost).collect()
}

/// The elements of `forwardings`.
pub(crate) fn entries(forwardings: &[Forwarding], whose: &str) -> impl Iterator<Item = Entry> {
    forwardings.iter().flat_map(move |forwarding| {
        let kind = Kind::of(forwarding);
        let to = Value::concat([Value::from(forwarding.pod), Value::port(forwarding.container_port)]);
        let entry = |set: &'static str, spec: SetSpec, before: Option<Value>, element: Element| {
            let key = Key::One(key(forwarding, before));
            Entry { set, spec, key, element: element.comment(whose) }
        };
        let hairpin = forwarding.behind.as_ref().map(|behind| {
            let from = Some(Value::interface(behind));
            entry(kind.hairpins, kind.hairpins_spec(), from, Element::default())
        });
        let class = forwarding.class.as_ref().map(|class| {
            let treat = Element::verdict(Verdict::Goto(class.name().clone()));
            entry(kind.classes, kind.classes_spec(), None, treat)
        });
        [entry(kind.ports, kind.ports_spec(), None, Element::value(to))]
            .into_iter()
            .chain(hairpin)
            .chain(class)
    })
}

/// The chains of the classes of `forwardings`, each once.
pub(crate) fn class_chains(forwardings: &[Forwarding]) -> BTreeMap<&Name, Chain> {
    let classes = forwardings.iter().filter_map(|forwarding| forwarding.class.as_ref());
    classes.map(|class| (class.name(), class.chain(USUAL, MASQUERADE))).collect()
}

/// The sets of host ports, and what is in them.
pub(crate) fn sets() -> impl Iterator<Item = (&'static str, SetSpec)> {
    KINDS.iter().flat_map(|kind| {
        [
            (kind.ports, kind.ports_spec()),
            (kind.hairpins, kind.hairpins_spec()),
            (kind.classes, kind.classes_spec()),
        ]
    })
}

/// Where the ports of certain addresses are that `forwarding` would take with it, or the port of any address
/// that would hide it: the map, and its key if that is the only one to look at.
pub(crate) fn rivals(forwarding: &Forwarding) -> (&'static str, SetSpec, Option<Value>) {
    let other = Kind::at(forwarding.pod.is_ipv4(), forwarding.host.is_some());
    let key = forwarding.host.map(|_| port_key(forwarding));
    (other.ports, other.ports_spec(), key)
}

/// An element of `map` with that key is in the way of `forwarding`.
pub(crate) fn is_in_the_way(map: &str, found: &Key, forwarding: &Forwarding) -> bool {
    if map == Kind::of(forwarding).ports {
        return *found.first() == key(forwarding, None);
    }
    // What differs is the address.
    found.first().as_bytes().ends_with(port_key(forwarding).as_bytes())
}

/// The map that `forwarding` is an element of.
pub(crate) fn map_of(forwarding: &Forwarding) -> &'static str {
    Kind::of(forwarding).ports
}

/// A port that an element of one of our maps stood for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated {
    /// The transport protocol.
    pub protocol: netmodel::Protocol,
    /// The port of the host.
    pub port: u16,
    /// Where it led.
    pub pod: IpAddr,
    /// The port there.
    pub container_port: u16,
}

impl Translated {
    /// Reads an element of map `set`; `None` if that is no map of ports.
    pub(crate) fn read(set: &str, key: &Key, element: &Element) -> Option<Self> {
        KINDS.iter().find(|kind| kind.ports == set)?;
        let ruleset::Data::Value(to) = &element.data else { return None };
        let (to, from) = (to.as_bytes(), key.first().as_bytes());
        let (address, container_port) = to.split_last_chunk::<4>()?;
        let pod = match address.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
            _ => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
        };
        let [protocol, _, _, _, high, low, _, _] = *from.last_chunk::<8>()?;
        Some(Self {
            protocol: netmodel::Protocol::from_number(protocol)?,
            port: u16::from_be_bytes([high, low]),
            pod,
            container_port: u16::from_be_bytes([container_port[0], container_port[1]]),
        })
    }
}

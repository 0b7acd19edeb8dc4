//! A virtual packet walks a table: what the kernel would do with the first packet of a connection.
//!
//! The walk runs the lowered rules, operation by operation on registers, so that a test with it covers the
//! lowering too. It knows one table only and no routing beyond "is the destination this host".

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use netmodel::{IfName, Protocol};

use crate::{
    Base, ChainType, Data, DynamicOp, Element, FIB_LOCAL, Field, Hook, Key, MapData, Name, Policy, Relation,
    Table, Value, Verdict, Writable,
    code::{AnonymousSet, Found, Header, Op, Reg, SetRef},
    ct_state, ct_status,
};

/// `fib ... type unicast`: the address is another host's (RTN_UNICAST).
const FIB_UNICAST: u32 = 1;
/// `fib ... type multicast` (RTN_MULTICAST).
const FIB_MULTICAST: u32 = 5;
/// Most rules that a packet may pass: more is a loop, which [`Table::check`] would have named.
const LONGEST_WALK: usize = 100_000;

/// The first packet of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from.
    pub source: SocketAddr,
    /// Where it is sent to.
    pub destination: SocketAddr,
    /// How.
    pub protocol: Protocol,
    /// The interface that it came in by; `None`: a process on this host sent it.
    pub arrived_on: Option<IfName>,
    /// The interface that it leaves by, where a rule asks.
    pub leaves_on: Option<IfName>,
    /// `meta mark`
    pub mark: u32,
    /// `meta priority`
    pub priority: u32,
    /// `ct state`
    pub state: u32,
}

impl Packet {
    /// A new packet that came in by `device`.
    #[must_use]
    pub fn arriving(
        device: &IfName,
        source: SocketAddr,
        destination: SocketAddr,
        protocol: Protocol,
    ) -> Self {
        let arrived_on = Some(device.clone());
        Self { arrived_on, ..Self::sent(source, destination, protocol) }
    }

    /// A new packet of a process on this host.
    #[must_use]
    pub const fn sent(source: SocketAddr, destination: SocketAddr, protocol: Protocol) -> Self {
        Self {
            source,
            destination,
            protocol,
            arrived_on: None,
            leaves_on: None,
            mark: 0,
            priority: 0,
            state: ct_state::NEW,
        }
    }
}

/// Where a packet ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It arrives there; true: with the source address of this host.
    Reaches(SocketAddr, Masqueraded),
    /// It is refused, and the sender is told.
    Rejected,
    /// It is gone, and nobody is told.
    Dropped,
}

/// The packet's source became this host's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masqueraded(pub bool);

/// A table with what its surroundings add to it.
pub struct Tracer<'a> {
    table: &'a Table,
    /// This host's addresses.
    pub local: Vec<IpAddr>,
    /// The random numbers, each below the given modulus.
    pub random: Box<dyn FnMut(u32) -> u32 + 'a>,
    /// What rules have put into dynamic sets and maps so far; it stays for the next packet.
    pub learned: BTreeMap<Name, BTreeMap<Value, Data>>,
    /// The packet's priority when it was last seen, so that a test can ask whether scratch was put back.
    pub last_priority: u32,
}

impl<'a> Tracer<'a> {
    /// For `table` on a host with the addresses `local`; `random` gives the numbers of `numgen random`, each
    /// below its argument.
    pub fn new(table: &'a Table, local: &[IpAddr], random: impl FnMut(u32) -> u32 + 'a) -> Self {
        let random = Box::new(random);
        Self { table, local: local.to_vec(), random, learned: BTreeMap::new(), last_priority: 0 }
    }

    /// Walks `packet` through the hooks and says where it ends.
    pub fn trace(&mut self, packet: &Packet) -> Outcome {
        let mut walk = Walk {
            packet: packet.clone(),
            tracer: self,
            registers: [0; 64],
            ct_mark: 0,
            status: 0,
            masqueraded: false,
            bound: [false; 2],
            steps: 0,
        };
        let first = if packet.arrived_on.is_some() { Hook::Prerouting } else { Hook::Output };
        let outcome = walk.hook(first).or_else(|| {
            let destination = walk.packet.destination.ip();
            let here = walk.tracer.is_local(destination);
            match (packet.arrived_on.is_some(), here) {
                (true, true) => walk.hook(Hook::Input),
                (true, false) => walk.hook(Hook::Forward).or_else(|| walk.hook(Hook::Postrouting)),
                (false, true) => walk.hook(Hook::Postrouting).or_else(|| walk.loop_back()),
                (false, false) => walk.hook(Hook::Postrouting),
            }
        });
        let (to, masqueraded) = (walk.packet.destination, walk.masqueraded);
        let priority = walk.packet.priority;
        self.last_priority = priority;
        outcome.unwrap_or(Outcome::Reaches(to, Masqueraded(masqueraded)))
    }

    fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.local.contains(&address)
    }
}

/// What a rule or chain did with the packet.
enum Step {
    /// Nothing final.
    On,
    /// The rule led to a verdict.
    Verdict(Verdict),
    /// NAT was done, which ends the hook.
    Translated,
    /// The sender is told.
    Reject,
}

struct Walk<'t, 'a> {
    tracer: &'t mut Tracer<'a>,
    packet: Packet,
    registers: [u8; 64],
    ct_mark: u32,
    status: u32,
    masqueraded: bool,
    /// NAT has decided about the destination, about the source: it does so once for each connection.
    bound: [bool; 2],
    steps: usize,
}

impl Walk<'_, '_> {
    /// In again by the loopback device.
    fn loop_back(&mut self) -> Option<Outcome> {
        self.packet.arrived_on = "lo".parse().ok();
        self.packet.leaves_on = None;
        self.hook(Hook::Prerouting).or_else(|| self.hook(Hook::Input))
    }

    /// All base chains at a hook; an outcome if the packet ends there.
    fn hook(&mut self, hook: Hook) -> Option<Outcome> {
        let table = self.tracer.table;
        let at_hook = table.chains.iter().filter_map(|(name, chain)| Some((name, chain.base?)));
        let mut chains: Vec<(&Name, Base)> = at_hook.filter(|(_, base)| base.hook == hook).collect();
        chains.sort_by_key(|(_, base)| base.priority);
        let side = usize::from(matches!(hook, Hook::Input | Hook::Postrouting));
        let mut bound = self.bound[side] || self.packet.state & ct_state::NEW == 0;
        self.bound[side] |= hook != Hook::Forward;
        for (name, base) in chains {
            if bound && base.kind == ChainType::Nat {
                continue;
            }
            match self.chain(name) {
                Step::Verdict(Verdict::Drop) => return Some(Outcome::Dropped),
                Step::Reject => return Some(Outcome::Rejected),
                Step::Translated => bound = true,
                Step::Verdict(Verdict::Accept) => {}
                Step::On | Step::Verdict(_) if base.policy == Policy::Drop => return Some(Outcome::Dropped),
                Step::On | Step::Verdict(_) => {}
            }
        }
        None
    }

    /// A chain and all that it leads to. [`Step::On`]: it ended, or returned.
    fn chain(&mut self, name: &Name) -> Step {
        let Some(chain) = self.tracer.table.chains.get(name) else { return Step::On };
        for rule in &chain.rules {
            self.steps += 1;
            if self.steps > LONGEST_WALK {
                return Step::Verdict(Verdict::Drop);
            }
            match self.rule(&rule.lower(self.tracer.table).ops) {
                Step::On | Step::Verdict(Verdict::Continue) => {}
                Step::Verdict(Verdict::Return) => return Step::On,
                Step::Verdict(Verdict::Goto(to)) => return self.chain(&to),
                Step::Verdict(Verdict::Jump(to)) => match self.chain(&to) {
                    Step::On => {}
                    end => return end,
                },
                end => return end,
            }
        }
        Step::On
    }

    fn rule(&mut self, ops: &[Op]) -> Step {
        for op in ops {
            match op {
                Op::Compare { register, relation, value } => {
                    let equal = self.get(*register, value.as_bytes().len()) == value.as_bytes();
                    if equal != (*relation == Relation::Eq) {
                        return Step::On;
                    }
                }
                Op::Lookup { key, set, relation, found } => {
                    match self.look_up(*key, set, *relation, *found) {
                        Some(Step::On) => {}
                        Some(verdict) => return verdict,
                        None => return Step::On,
                    }
                }
                Op::Verdict(verdict) => return Step::Verdict(verdict.clone()),
                Op::Dnat { ipv6, address, port } => {
                    self.dnat(*ipv6, *address, *port);
                    return Step::Translated;
                }
                Op::Masquerade(_) => {
                    self.masqueraded = true;
                    self.status |= ct_status::SNAT;
                    return Step::Translated;
                }
                Op::Reject(_) => return Step::Reject,
                Op::Counter | Op::Other { .. } => {}
                Op::Dynamic { .. } => self.dynamic(op),
                _ => self.compute(op),
            }
        }
        Step::On
    }

    fn get(&self, register: Reg, length: usize) -> &[u8] {
        let begin = usize::from(register.0) * 4;
        self.registers.get(begin..begin + length).unwrap_or_default()
    }

    fn put(&mut self, register: Reg, bytes: &[u8]) {
        let begin = usize::from(register.0) * 4;
        // The kernel clears the rest of the last unit.
        let padded = bytes.len().next_multiple_of(4);
        if let Some(to) = self.registers.get_mut(begin..begin + padded) {
            to.fill(0);
            to[..bytes.len()].copy_from_slice(bytes);
        }
    }

    fn number(&self, register: Reg) -> u32 {
        Value::bytes(self.get(register, 4)).as_number().unwrap_or_default()
    }

    /// Operations that only fill registers or write fields.
    fn compute(&mut self, op: &Op) {
        match op {
            Op::Payload { header, offset, length, to } => {
                let bytes = self.header(*header);
                let (begin, length) = (*offset as usize, *length as usize);
                self.put(*to, bytes.get(begin..begin + length).unwrap_or_default());
            }
            Op::Load { field, to } => {
                let value = self.load(*field);
                self.put(*to, value.as_bytes());
            }
            Op::Store { field, from } => {
                let number = self.number(*from);
                match field {
                    Writable::MetaMark => self.packet.mark = number,
                    Writable::MetaPriority => self.packet.priority = number,
                    Writable::CtMark => self.ct_mark = number,
                }
            }
            Op::Random { modulus, to } => {
                let number = (self.tracer.random)(*modulus);
                self.put(*to, Value::number(number).as_bytes());
            }
            Op::Bitwise { register, mask, xor } => {
                let old = self.get(*register, mask.as_bytes().len());
                let bits = old.iter().zip(mask.as_bytes()).zip(xor.as_bytes());
                let new: Vec<u8> = bits.map(|((old, mask), xor)| old & mask ^ xor).collect();
                self.put(*register, &new);
            }
            Op::Immediate { to, value } => self.put(*to, value.as_bytes()),
            _ => {}
        }
    }

    /// The bytes of a header, as far as rules can read them.
    fn header(&self, header: Header) -> Vec<u8> {
        let Packet { source, destination, protocol, .. } = &self.packet;
        match (header, source.ip(), destination.ip()) {
            (Header::Transport, ..) => {
                [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat()
            }
            (Header::Network, IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut bytes = [&[0; 12][..], &from.octets(), &to.octets()].concat();
                bytes[9] = protocol.number();
                bytes
            }
            (Header::Network, IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut bytes = [&[0; 8][..], &from.octets(), &to.octets()].concat();
                bytes[6] = protocol.number();
                bytes
            }
            (Header::Network, ..) => Vec::new(),
        }
    }

    fn load(&self, field: Field) -> Value {
        let device = |name: &Option<IfName>| name.as_ref().map_or(Value::bytes(&[0; 16]), Value::interface);
        let fib = |address: IpAddr| {
            Value::number(match address {
                _ if self.tracer.is_local(address) => FIB_LOCAL,
                _ if address.is_multicast() => FIB_MULTICAST,
                _ => FIB_UNICAST,
            })
        };
        let packet = &self.packet;
        match field {
            Field::MetaMark => Value::number(packet.mark),
            Field::MetaPriority => Value::number(packet.priority),
            Field::MetaL4proto => packet.protocol.into(),
            Field::MetaNfproto => Value::bytes(&[if packet.source.is_ipv4() { 2 } else { 10 }]),
            Field::Iifname => device(&packet.arrived_on),
            Field::Oifname => device(&packet.leaves_on),
            Field::CtState => Value::number(packet.state),
            Field::CtStatus => Value::number(self.status),
            Field::CtMark => Value::number(self.ct_mark),
            Field::FibSaddrType => fib(packet.source.ip()),
            Field::FibDaddrType => fib(packet.destination.ip()),
            // The others are payload.
            _ => Value::bytes(&[]),
        }
    }

    /// `None`: the rule ends here. [`Step::On`]: it goes on.
    fn look_up(&mut self, key: Reg, set: &SetRef, relation: Relation, found: Option<Found>) -> Option<Step> {
        let data = match set {
            SetRef::Anonymous(set) => self.find_anonymous(key, set),
            SetRef::Named(name) => self.find(key, name),
        };
        match (data, found) {
            (None, _) => (relation == Relation::Ne).then_some(Step::On),
            (Some(_), None) => (relation == Relation::Eq).then_some(Step::On),
            (Some(Data::Verdict(verdict)), Some(Found::Verdict)) => Some(Step::Verdict(verdict)),
            (Some(Data::Value(value)), Some(Found::Data(to))) => {
                self.put(to, value.as_bytes());
                Some(Step::On)
            }
            (Some(_), Some(_)) => None,
        }
    }

    fn find_anonymous(&self, key: Reg, set: &AnonymousSet) -> Option<Data> {
        let value = self.get(key, set.kind.width());
        let within = |range: &Key| range.first().as_bytes() <= value && value <= range.last().as_bytes();
        set.elements.iter().any(within).then_some(Data::None)
    }

    fn find(&self, key: Reg, name: &Name) -> Option<Data> {
        let set = self.tracer.table.sets.get(name)?;
        let value = Value::bytes(self.get(key, set.spec.key.width()));
        let learned = self.tracer.learned.get(name).and_then(|learned| learned.get(&value));
        if let Some(data) = learned {
            return Some(data.clone());
        }
        let widths: Vec<usize> = set.spec.key.types().iter().map(|kind| kind.width()).collect();
        let key = Key::One(value);
        let element: Option<&Element> = match set.spec.interval {
            false => set.elements.get(&key),
            true => set.elements.iter().find(|(range, _)| range.overlaps(&key, &widths)).map(|(_, e)| e),
        };
        element.map(|element| element.data.clone())
    }

    fn dynamic(&mut self, op: &Op) {
        let Op::Dynamic { op, set: name, key, data, .. } = op else { return };
        let Some(set) = self.tracer.table.sets.get(name) else { return };
        let key = Value::bytes(self.get(*key, set.spec.key.width()));
        let data = match (data, &set.spec.data) {
            (Some(at), Some(MapData::Value(kind))) => Data::Value(Value::bytes(self.get(*at, kind.width()))),
            _ => Data::None,
        };
        let learned = self.tracer.learned.entry(name.clone()).or_default();
        match op {
            DynamicOp::Delete => drop(learned.remove(&key)),
            // The value of an element that is there stays.
            DynamicOp::Update => drop(learned.entry(key).or_insert(data)),
        }
    }

    fn dnat(&mut self, ipv6: bool, address: Reg, port: Option<Reg>) {
        let to: Option<IpAddr> = if ipv6 {
            <[u8; 16]>::try_from(self.get(address, 16)).ok().map(IpAddr::from)
        } else {
            <[u8; 4]>::try_from(self.get(address, 4)).ok().map(IpAddr::from)
        };
        if let Some(to) = to {
            self.packet.destination.set_ip(to);
        }
        if let Some(port) = port.and_then(|at| <[u8; 2]>::try_from(self.get(at, 2)).ok()) {
            self.packet.destination.set_port(u16::from_be_bytes(port));
        }
        self.status |= ct_status::DNAT;
    }
}

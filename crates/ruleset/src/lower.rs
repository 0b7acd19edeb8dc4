//! From rules and sets as people write them to what the kernel runs, in the way of `nft`: the same
//! operations, registers and notes, so that `nft` lists and reloads it.

use netmodel::Subnet;

use crate::{
    BitOp, Expr, Family, Field, Key, MapData, Name, Relation, Rule, Selector, SetSpec, Source, Statement,
    Table, Type, Value,
    code::{AnonymousSet, Code, DataHeader, Found, KeyForm, Op, Origin, Reg, SetHeader, SetRef, Userdata},
    userdata,
};

/// `nft`'s numbers of concatenated types have this many bits for each part.
const BITS_PER_TYPE: u32 = 6;

impl Rule {
    /// The rule as the kernel would hold it in `table`, whose family and maps decide about some operations.
    #[must_use]
    pub fn lower(&self, table: &Table) -> Code {
        let mut lowering = Lowering { table, ops: Vec::new(), statement_start: 0, family_checked: None };
        for statement in &self.statements {
            lowering.statement(statement);
        }
        Code { ops: lowering.ops, comment: self.comment.clone() }
    }
}

impl SetSpec {
    /// How the elements of such a set are found.
    #[must_use]
    pub fn form(&self) -> KeyForm {
        match (self.interval, self.is_concat()) {
            (false, _) => KeyForm::Exact,
            (true, false) => KeyForm::Interval,
            (true, true) => KeyForm::ConcatInterval,
        }
    }

    /// The set's header as the kernel would hold it.
    #[must_use]
    pub fn lower(&self) -> SetHeader {
        let form = self.form();
        let key_parts = match form {
            KeyForm::ConcatInterval => self.key.types().iter().map(|kind| kind.width() as u32).collect(),
            KeyForm::Exact | KeyForm::Interval => Vec::new(),
        };
        SetHeader {
            form,
            key_type: self.key.type_number(),
            key_width: self.key.width() as u32,
            key_parts,
            data: self.data.as_ref().map(|data| match data {
                MapData::Verdict => DataHeader::Verdict,
                MapData::Value(data) => {
                    DataHeader::Value { kind: data.type_number(), width: data.width() as u32 }
                }
            }),
            dynamic: self.dynamic,
            timeout: self.timeout,
            size: self.size,
            counter: self.counter,
            userdata: userdata::of_set(self),
        }
    }
}

impl Selector {
    /// The number that `nft` knows this type by.
    fn type_number(&self) -> u32 {
        self.0.iter().fold(0, |all, part| all << BITS_PER_TYPE | part.data_type().number())
    }
}

impl Table {
    /// The types of a map's data; none where there is no such map.
    fn data_types(&self, map: &Name) -> Vec<Type> {
        match self.sets.get(map).and_then(|set| set.spec.data.as_ref()) {
            Some(MapData::Value(data)) => data.types(),
            _ => Vec::new(),
        }
    }

    /// The map's data begins with an IPv6 address; where there is no such map, the table's family decides.
    pub(crate) fn maps_to_ipv6(&self, map: &Name) -> bool {
        match self.data_types(map).first() {
            Some(kind) => *kind == Type::Ipv6Addr,
            None => self.family == Family::Ip6,
        }
    }
}

/// The network protocol (`meta nfproto`) that a packet must have for a field to be in it.
const fn needed_protocol(field: Field) -> Option<u8> {
    match field {
        Field::IpProtocol | Field::IpSaddr | Field::IpDaddr => Some(2),
        Field::Ip6Saddr | Field::Ip6Daddr => Some(10),
        _ => None,
    }
}

struct Lowering<'a> {
    table: &'a Table,
    ops: Vec<Op>,
    /// Where the operations of the current statement begin.
    statement_start: usize,
    /// In a table of family inet: the protocol that an earlier operation has made sure of.
    family_checked: Option<u8>,
}

impl Lowering<'_> {
    fn statement(&mut self, statement: &Statement) {
        self.statement_start = self.ops.len();
        match statement {
            Statement::Compare { left, relation, right } => self.compare(*left, *relation, right),
            Statement::Within { field, relation, subnet } => self.within(*field, *relation, *subnet),
            Statement::HasAny { field, bits } => {
                self.load(field.and(*bits), Reg::FIRST);
                let zero = Value::number(0);
                self.push(Op::Compare { register: Reg::FIRST, relation: Relation::Ne, value: zero });
            }
            Statement::AnyOf { field, elements } => {
                self.load((*field).into(), Reg::FIRST);
                let set = SetRef::Anonymous(anonymous(*field, elements));
                self.push(Op::Lookup { key: Reg::FIRST, set, relation: Relation::Eq, found: None });
            }
            Statement::Lookup { key, relation, set } => self.look_up(key, *relation, set, None),
            Statement::Vmap { key, map } => self.look_up(key, Relation::Eq, map, Some(Found::Verdict)),
            Statement::Set { field, to } => {
                self.source(to);
                self.push(Op::Store { field: *field, from: Reg::FIRST });
            }
            Statement::Dnat { key, map } => self.dnat(key, map),
            Statement::Masquerade(choice) => self.push(Op::Masquerade(*choice)),
            Statement::Reject(with) => self.push(Op::Reject(*with)),
            Statement::Counter => self.push(Op::Counter),
            Statement::Dynamic { op, set, key, timeout, data } => {
                let behind = self.key(key);
                let data = data.map(|data| {
                    self.load(data, behind.aligned());
                    behind.aligned()
                });
                let (set, timeout) = (set.clone(), *timeout);
                self.push(Op::Dynamic { op: *op, set, key: Reg::FIRST, data, timeout });
            }
            Statement::Verdict(verdict) => self.push(Op::Verdict(verdict.clone())),
        }
    }

    fn push(&mut self, op: Op) {
        self.ops.push(op);
    }

    fn compare(&mut self, left: Expr, relation: Relation, right: &Value) {
        self.load(left, Reg::FIRST);
        self.push(Op::Compare { register: Reg::FIRST, relation, value: right.clone() });
        if left == Expr::Field(Field::MetaNfproto) && relation == Relation::Eq {
            self.family_checked = right.as_bytes().first().copied();
        }
    }

    /// A prefix of whole bytes is compared by loading no more than those; another one by masking.
    fn within(&mut self, field: Field, relation: Relation, subnet: Subnet) {
        let (bits, address) = (u32::from(subnet.prefix()), Value::from(subnet.address()));
        let bytes = address.as_bytes();
        let whole = (bits / 8) as usize;
        match field.origin() {
            Origin::Payload { header, offset } if bits > 0 && bits.is_multiple_of(8) => {
                self.need_protocol(field);
                self.push(Op::Payload { header, offset, length: whole as u32, to: Reg::FIRST });
                let value = Value::bytes(&bytes[..whole]);
                self.push(Op::Compare { register: Reg::FIRST, relation, value });
            }
            _ => {
                self.load(field.into(), Reg::FIRST);
                let mask: Vec<u8> = (0..bytes.len() as u32)
                    .map(|i| !(0xff_u32 >> bits.saturating_sub(8 * i).min(8)) as u8)
                    .collect();
                let (mask, xor) = (Value::bytes(&mask), Value::bytes(&vec![0; bytes.len()]));
                self.push(Op::Bitwise { register: Reg::FIRST, mask, xor });
                self.push(Op::Compare { register: Reg::FIRST, relation, value: address });
            }
        }
    }

    fn look_up(&mut self, key: &Selector, relation: Relation, set: &Name, found: Option<Found>) {
        self.key(key);
        self.push(Op::Lookup { key: Reg::FIRST, set: SetRef::Named(set.clone()), relation, found });
    }

    fn source(&mut self, source: &Source) {
        match source {
            Source::Value(value) => self.push(Op::Immediate { to: Reg::FIRST, value: value.clone() }),
            Source::Expr(expr) => self.load(*expr, Reg::FIRST),
            Source::Map { key, map } => self.look_up(key, Relation::Eq, map, Some(Found::Data(Reg::FIRST))),
        }
    }

    fn dnat(&mut self, key: &Selector, map: &Name) {
        let address = Reg::FIRST;
        self.look_up(key, Relation::Eq, map, Some(Found::Data(address)));
        let ipv6 = self.table.maps_to_ipv6(map);
        let port = (self.table.data_types(map).len() != 1).then(|| address.behind(if ipv6 { 16 } else { 4 }));
        self.push(Op::Dnat { ipv6, address, port });
    }

    /// Loads all parts of a key one behind the other, and returns the register behind them.
    fn key(&mut self, key: &Selector) -> Reg {
        key.0.iter().fold(Reg::FIRST, |to, part| {
            self.load(*part, to);
            to.behind(part.data_type().width())
        })
    }

    fn load(&mut self, expr: Expr, to: Reg) {
        match expr {
            Expr::Random { modulus } => self.push(Op::Random { modulus, to }),
            Expr::Field(field) => self.load_field(field, to),
            Expr::Bits { field, op, operand } => {
                self.load_field(field, to);
                let (mask, xor) = match op {
                    BitOp::And => (operand, 0),
                    BitOp::Or => (!operand, operand),
                    BitOp::Xor => (u32::MAX, operand),
                };
                let (mask, xor) = (Value::number(mask), Value::number(xor));
                self.push(Op::Bitwise { register: to, mask, xor });
            }
        }
    }

    fn load_field(&mut self, field: Field, to: Reg) {
        self.need_protocol(field);
        self.push(match field.origin() {
            Origin::Payload { header, offset } => {
                Op::Payload { header, offset, length: field.data_type().width() as u32, to }
            }
            Origin::Meta(_) | Origin::Ct(_) | Origin::Fib(_) => Op::Load { field, to },
        });
    }

    /// In a table of family inet a packet's protocol is checked before its addresses are read.
    fn need_protocol(&mut self, field: Field) {
        let Some(protocol) = needed_protocol(field) else { return };
        if self.table.family != Family::Inet || self.family_checked == Some(protocol) {
            return;
        }
        self.family_checked = Some(protocol);
        let check = [
            Op::Load { field: Field::MetaNfproto, to: Reg::FIRST },
            Op::Compare { register: Reg::FIRST, relation: Relation::Eq, value: Value::bytes(&[protocol]) },
        ];
        self.ops.splice(self.statement_start..self.statement_start, check);
    }
}

fn anonymous(field: Field, elements: &[Key]) -> AnonymousSet {
    let interval = elements.iter().any(|key| matches!(key, Key::Range(_)));
    let mut elements = elements.to_vec();
    elements.sort();
    AnonymousSet {
        kind: field.data_type(),
        interval,
        elements,
        userdata: Userdata(userdata::of_anonymous(field, interval)),
    }
}

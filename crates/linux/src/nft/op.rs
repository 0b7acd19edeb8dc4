//! The operations of a rule as the kernel's expressions: a name and attributes, in the order of libnftnl.

use std::{collections::BTreeMap, time::Duration};

use ruleset::{
    Family, Field, Name, RejectWith, Relation, Value, Verdict,
    code::{Found, Header, Op, Origin, Reg, SetRef},
};

use super::{
    attr::{Attributes, Writer},
    numbers as n,
};

/// What the kernel calls every anonymous set when it is made: it puts a number in place of `%d`.
pub(super) const ANONYMOUS: &str = "__set%d";

/// What the expressions of a rule need to know of the batch that they are in.
pub(super) struct Context<'a> {
    pub(super) family: Family,
    /// The numbers of the sets that this batch makes.
    pub(super) set_ids: &'a BTreeMap<Name, u32>,
    /// The numbers of the rule's anonymous sets, in order.
    pub(super) anonymous_ids: std::vec::IntoIter<u32>,
}

/// The kernel's number of a register: one of 16 bytes where it begins such a one.
const fn register(reg: Reg) -> u32 {
    let unit = reg.0 as u32;
    if unit.is_multiple_of(4) { n::REG_1 + unit / 4 } else { n::REG32_00 + unit }
}

fn read_register(number: u32) -> Option<Reg> {
    let unit = match number {
        n::REG_VERDICT => return None,
        n::REG_1..=4 => (number - n::REG_1) * 4,
        _ => number.checked_sub(n::REG32_00)?,
    };
    u8::try_from(unit).ok().map(Reg)
}

/// `NFT_REJECT_...` and the code: bare `reject`, and `reject with tcp reset`.
const fn reject(family: Family, with: RejectWith) -> (u32, u8) {
    match (with, family) {
        (RejectWith::PortUnreachable, Family::Ip) => (0, 3),
        (RejectWith::PortUnreachable, Family::Ip6) => (0, 4),
        (RejectWith::PortUnreachable, Family::Inet) => (2, 1),
        (RejectWith::TcpReset, _) => (1, 0),
    }
}

/// Writes the list of all operations.
pub(super) fn write_all(writer: &mut Writer, ops: &[Op], context: &mut Context<'_>) {
    for (at, op) in ops.iter().enumerate() {
        writer.nest(n::LIST_ELEM, |writer| {
            writer.text(n::EXPR_NAME, name(op));
            writer.nest(n::EXPR_DATA, |data| match op {
                Op::Bitwise { .. } => write_bitwise(data, ops, at),
                Op::Lookup { .. } | Op::Dynamic { .. } => write_set_use(data, op, context),
                Op::Payload { .. } | Op::Load { .. } | Op::Random { .. } => write_load(data, op),
                _ => write(data, op, context.family),
            });
        });
    }
}

/// The kernel's name of an expression.
fn name(op: &Op) -> &str {
    match op {
        Op::Payload { .. } => "payload",
        Op::Load { field, .. } => source(field.origin()),
        Op::Store { field, .. } => source(field.field().origin()),
        Op::Random { .. } => "numgen",
        Op::Bitwise { .. } => "bitwise",
        Op::Compare { .. } => "cmp",
        Op::Lookup { .. } => "lookup",
        Op::Immediate { .. } | Op::Verdict(_) => "immediate",
        Op::Dnat { .. } => "nat",
        Op::Masquerade(_) => "masq",
        Op::Reject(_) => "reject",
        Op::Counter => "counter",
        Op::Dynamic { .. } => "dynset",
        // `xt match conntrack` is the kernel's "match".
        Op::Other { name, .. } => {
            name.strip_prefix("xt ").and_then(|kind| kind.split(' ').next()).unwrap_or(name)
        }
    }
}

/// The kernel's name of what a field is read with.
const fn source(origin: Origin) -> &'static str {
    match origin {
        Origin::Payload { .. } => "payload",
        Origin::Meta(_) => "meta",
        Origin::Ct(_) => "ct",
        Origin::Fib(_) => "fib",
    }
}

fn write(data: &mut Writer, op: &Op, family: Family) {
    match op {
        Op::Store { field, from } => {
            let (key, source) = match field.field().origin() {
                Origin::Ct(key) => (key, n::CT_SREG),
                // Nothing but `meta` and `ct` can be written.
                Origin::Meta(key) | Origin::Fib(key) | Origin::Payload { offset: key, .. } => {
                    (key, n::META_SREG)
                }
            };
            data.be32(n::META_KEY, key);
            data.be32(source, register(*from));
        }
        Op::Compare { register: at, relation, value } => {
            data.be32(n::CMP_SREG, register(*at));
            data.be32(n::CMP_OP, if *relation == Relation::Eq { n::CMP_EQ } else { n::CMP_NEQ });
            data.value(n::CMP_DATA, value.as_bytes());
        }
        Op::Immediate { to, value } => {
            data.be32(n::IMMEDIATE_DREG, register(*to));
            data.value(n::IMMEDIATE_DATA, value.as_bytes());
        }
        Op::Verdict(verdict) => {
            data.be32(n::IMMEDIATE_DREG, n::REG_VERDICT);
            data.nest(n::IMMEDIATE_DATA, |data| write_verdict(data, verdict));
        }
        Op::Dnat { ipv6, address, port } => {
            data.be32(n::NAT_TYPE, n::NAT_DNAT);
            data.be32(n::NAT_FAMILY, u32::from(n::family(if *ipv6 { Family::Ip6 } else { Family::Ip })));
            data.be32(n::NAT_REG_ADDR_MIN, register(*address));
            if let Some(port) = port {
                data.be32(n::NAT_REG_PROTO_MIN, register(*port));
            }
        }
        Op::Masquerade(choice) => {
            let flags = n::port_choice(*choice);
            if flags != 0 {
                data.be32(n::MASQ_FLAGS, flags);
            }
        }
        Op::Reject(with) => {
            let (kind, code) = reject(family, *with);
            data.be32(n::REJECT_TYPE, kind);
            data.byte(n::REJECT_CODE, code);
        }
        Op::Other { attributes, .. } => data.bytes.extend_from_slice(attributes),
        // A counter begins at zero; all others are written elsewhere.
        _ => {}
    }
}

/// Writes the operation at `at`.
fn write_bitwise(data: &mut Writer, ops: &[Op], at: usize) {
    let Some(Op::Bitwise { register: with, mask, xor }) = ops.get(at) else { return };
    data.be32(n::BITWISE_SREG, register(*with));
    data.be32(n::BITWISE_DREG, register(*with));
    // `nft` leaves the kind of operation out where it makes a mask for a prefix, or to ask for any of some flags.
    let asks_for_any = matches!(ops.get(at + 1), Some(Op::Compare { relation: Relation::Ne, .. }));
    let implied = match at.checked_sub(1).and_then(|before| ops.get(before)) {
        Some(Op::Payload { .. }) => true,
        Some(Op::Load { field: Field::CtState | Field::CtStatus, .. }) => asks_for_any,
        _ => false,
    };
    if !implied {
        data.be32(n::BITWISE_OP, 0);
    }
    data.be32(n::BITWISE_LEN, mask.as_bytes().len() as u32);
    data.value(n::BITWISE_MASK, mask.as_bytes());
    data.value(n::BITWISE_XOR, xor.as_bytes());
}

fn write_load(data: &mut Writer, op: &Op) {
    match op {
        Op::Payload { header, offset, length, to } => {
            data.be32(n::PAYLOAD_DREG, register(*to));
            let base = if *header == Header::Network { n::NETWORK_HEADER } else { n::TRANSPORT_HEADER };
            data.be32(n::PAYLOAD_BASE, base);
            data.be32(n::PAYLOAD_OFFSET, *offset);
            data.be32(n::PAYLOAD_LEN, *length);
        }
        Op::Load { field, to } => match field.origin() {
            Origin::Payload { header, offset } => {
                let length = field.data_type().width() as u32;
                write_load(data, &Op::Payload { header, offset, length, to: *to });
            }
            // `meta` and `ct` number their attributes alike.
            Origin::Meta(key) | Origin::Ct(key) => {
                data.be32(n::META_KEY, key);
                data.be32(n::META_DREG, register(*to));
            }
            Origin::Fib(flag) => {
                data.be32(n::FIB_FLAGS, flag);
                data.be32(n::FIB_RESULT, n::FIB_RESULT_ADDRTYPE);
                data.be32(n::FIB_DREG, register(*to));
            }
        },
        Op::Random { modulus, to } => {
            data.be32(n::NG_DREG, register(*to));
            data.be32(n::NG_MODULUS, *modulus);
            data.be32(n::NG_TYPE, n::NG_RANDOM);
            data.be32(n::NG_OFFSET, 0);
        }
        _ => {}
    }
}

fn write_set_use(data: &mut Writer, op: &Op, context: &mut Context<'_>) {
    match op {
        Op::Lookup { key, set, relation, found } => {
            data.be32(n::LOOKUP_SREG, register(*key));
            match found {
                Some(Found::Data(to)) => data.be32(n::LOOKUP_DREG, register(*to)),
                Some(Found::Verdict) => data.be32(n::LOOKUP_DREG, n::REG_VERDICT),
                None => {}
            }
            let (name, id) = match set {
                SetRef::Named(name) => (name.as_str(), context.set_ids.get(name).copied()),
                SetRef::Anonymous(_) => (ANONYMOUS, context.anonymous_ids.next()),
            };
            data.text(n::LOOKUP_SET, name);
            if let Some(id) = id {
                data.be32(n::LOOKUP_SET_ID, id);
            }
            if *relation == Relation::Ne {
                data.be32(n::LOOKUP_FLAGS, n::LOOKUP_INVERTED);
            }
        }
        Op::Dynamic { op, set, key, data: value, timeout } => {
            data.be32(n::DYNSET_SREG_KEY, register(*key));
            if let Some(value) = value {
                data.be32(n::DYNSET_SREG_DATA, register(*value));
            }
            data.be32(n::DYNSET_OP, n::dynamic_op(*op));
            if let Some(timeout) = timeout {
                data.be64(n::DYNSET_TIMEOUT, u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
            }
            data.text(n::DYNSET_NAME, set.as_str());
            if let Some(id) = context.set_ids.get(set) {
                data.be32(n::DYNSET_ID, *id);
            }
        }
        _ => {}
    }
}

/// `NFTA_DATA_VERDICT`
pub(super) fn write_verdict(data: &mut Writer, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Accept => (n::ACCEPT, None),
        Verdict::Drop => (n::DROP, None),
        Verdict::Continue => (n::CONTINUE, None),
        Verdict::Return => (n::RETURN, None),
        Verdict::Jump(chain) => (n::JUMP, Some(chain)),
        Verdict::Goto(chain) => (n::GOTO, Some(chain)),
    };
    data.nest(n::DATA_VERDICT, |data| {
        data.be32(n::VERDICT_CODE, code.cast_unsigned());
        if let Some(chain) = chain {
            data.text(n::VERDICT_CHAIN, chain.as_str());
        }
    });
}

/// The verdict in a nest of `NFTA_DATA_VERDICT`.
pub(super) fn read_verdict(data: Attributes<'_>) -> Option<Verdict> {
    let verdict = data.nest(n::DATA_VERDICT);
    let chain = || verdict.text(n::VERDICT_CHAIN).map(Name::from);
    Some(match verdict.be32(n::VERDICT_CODE)?.cast_signed() {
        n::ACCEPT => Verdict::Accept,
        n::DROP => Verdict::Drop,
        n::CONTINUE => Verdict::Continue,
        n::RETURN => Verdict::Return,
        n::JUMP => Verdict::Jump(chain()?),
        n::GOTO => Verdict::Goto(chain()?),
        _ => return None,
    })
}

/// One entry of a rule's list of expressions. What we have no word for stays as it came.
pub(super) fn read(family: Option<Family>, entry: Attributes<'_>) -> Op {
    let name = entry.text(n::EXPR_NAME).unwrap_or_default();
    let data = entry.nest(n::EXPR_DATA);
    let op = match name {
        "payload" => read_payload(data),
        "meta" => read_meta(data),
        "ct" => read_ct(data),
        "fib" => read_fib(data),
        "numgen" => read_numgen(data),
        "bitwise" => read_bitwise(data),
        "cmp" => read_cmp(data),
        "lookup" => read_lookup(data),
        "immediate" => read_immediate(data),
        "nat" => read_nat(data),
        "masq" => n::read_port_choice(data.be32(n::MASQ_FLAGS).unwrap_or_default()).map(Op::Masquerade),
        "reject" => read_reject(family, data),
        "counter" => Some(Op::Counter),
        "dynset" => read_dynset(data),
        _ => None,
    };
    op.unwrap_or_else(|| Op::Other { name: name.into(), attributes: data.0.to_vec() })
}

fn reg(data: Attributes<'_>, kind: u16) -> Option<Reg> {
    read_register(data.be32(kind)?)
}

fn read_payload(data: Attributes<'_>) -> Option<Op> {
    let header = match data.be32(n::PAYLOAD_BASE)? {
        n::NETWORK_HEADER => Header::Network,
        n::TRANSPORT_HEADER => Header::Transport,
        _ => return None,
    };
    let to = reg(data, n::PAYLOAD_DREG)?;
    let (offset, length) = (data.be32(n::PAYLOAD_OFFSET)?, data.be32(n::PAYLOAD_LEN)?);
    Some(Op::Payload { header, offset, length, to })
}

fn read_meta(data: Attributes<'_>) -> Option<Op> {
    let field = Field::read_from(Origin::Meta(data.be32(n::META_KEY)?))?;
    match reg(data, n::META_DREG) {
        Some(to) => Some(Op::Load { field, to }),
        None => Some(Op::Store { field: n::read_writable(field)?, from: reg(data, n::META_SREG)? }),
    }
}

fn read_ct(data: Attributes<'_>) -> Option<Op> {
    if data.find(n::CT_DIRECTION).is_some() {
        return None;
    }
    let field = Field::read_from(Origin::Ct(data.be32(n::CT_KEY)?))?;
    match reg(data, n::CT_DREG) {
        Some(to) => Some(Op::Load { field, to }),
        None => Some(Op::Store { field: n::read_writable(field)?, from: reg(data, n::CT_SREG)? }),
    }
}

fn read_fib(data: Attributes<'_>) -> Option<Op> {
    let flag =
        data.be32(n::FIB_FLAGS).filter(|_| data.be32(n::FIB_RESULT) == Some(n::FIB_RESULT_ADDRTYPE))?;
    Some(Op::Load { field: Field::read_from(Origin::Fib(flag))?, to: reg(data, n::FIB_DREG)? })
}

fn read_numgen(data: Attributes<'_>) -> Option<Op> {
    let ours = data.be32(n::NG_TYPE)? == n::NG_RANDOM && data.be32(n::NG_OFFSET).unwrap_or_default() == 0;
    let modulus = data.be32(n::NG_MODULUS).filter(|_| ours)?;
    Some(Op::Random { modulus, to: reg(data, n::NG_DREG)? })
}

fn read_bitwise(data: Attributes<'_>) -> Option<Op> {
    let register = reg(data, n::BITWISE_SREG)?;
    if reg(data, n::BITWISE_DREG)? != register || data.be32(n::BITWISE_OP).unwrap_or_default() != 0 {
        return None;
    }
    let (mask, xor) = (data.value(n::BITWISE_MASK)?, data.value(n::BITWISE_XOR)?);
    Some(Op::Bitwise { register, mask: Value::bytes(mask), xor: Value::bytes(xor) })
}

fn read_cmp(data: Attributes<'_>) -> Option<Op> {
    let relation = match data.be32(n::CMP_OP)? {
        n::CMP_EQ => Relation::Eq,
        n::CMP_NEQ => Relation::Ne,
        _ => return None,
    };
    let value = Value::bytes(data.value(n::CMP_DATA)?);
    Some(Op::Compare { register: reg(data, n::CMP_SREG)?, relation, value })
}

fn read_lookup(data: Attributes<'_>) -> Option<Op> {
    let relation = match data.be32(n::LOOKUP_FLAGS).unwrap_or_default() {
        0 => Relation::Eq,
        n::LOOKUP_INVERTED => Relation::Ne,
        _ => return None,
    };
    let found = match data.be32(n::LOOKUP_DREG) {
        None => None,
        Some(n::REG_VERDICT) => Some(Found::Verdict),
        Some(number) => Some(Found::Data(read_register(number)?)),
    };
    let set = SetRef::Named(data.text(n::LOOKUP_SET)?.into());
    Some(Op::Lookup { key: reg(data, n::LOOKUP_SREG)?, set, relation, found })
}

fn read_immediate(data: Attributes<'_>) -> Option<Op> {
    let value = data.nest(n::IMMEDIATE_DATA);
    match data.be32(n::IMMEDIATE_DREG)? {
        n::REG_VERDICT => read_verdict(value).map(Op::Verdict),
        number => {
            let value = Value::bytes(value.find(n::DATA_VALUE)?);
            Some(Op::Immediate { to: read_register(number)?, value })
        }
    }
}

fn read_nat(data: Attributes<'_>) -> Option<Op> {
    let (address, port) = (reg(data, n::NAT_REG_ADDR_MIN)?, reg(data, n::NAT_REG_PROTO_MIN));
    // The kernel repeats the lower end of a range as the upper one.
    let is_range = reg(data, n::NAT_REG_ADDR_MAX).is_some_and(|max| max != address)
        || reg(data, n::NAT_REG_PROTO_MAX).is_some_and(|max| Some(max) != port);
    let known = n::NAT_ADDRESS | n::NAT_PORT;
    if is_range
        || data.be32(n::NAT_TYPE)? != n::NAT_DNAT
        || data.be32(n::NAT_FLAGS).unwrap_or_default() & !known != 0
    {
        return None;
    }
    let ipv6 = match u8::try_from(data.be32(n::NAT_FAMILY)?).ok().and_then(n::read_family)? {
        Family::Ip6 => true,
        Family::Ip => false,
        Family::Inet => return None,
    };
    Some(Op::Dnat { ipv6, address, port })
}

fn read_reject(family: Option<Family>, data: Attributes<'_>) -> Option<Op> {
    let found = (data.be32(n::REJECT_TYPE)?, data.byte(n::REJECT_CODE).unwrap_or_default());
    let family = family?;
    [RejectWith::PortUnreachable, RejectWith::TcpReset]
        .into_iter()
        .find(|with| reject(family, *with) == found)
        .map(Op::Reject)
}

fn read_dynset(data: Attributes<'_>) -> Option<Op> {
    Some(Op::Dynamic {
        op: n::read_dynamic_op(data.be32(n::DYNSET_OP)?)?,
        set: data.text(n::DYNSET_NAME)?.into(),
        key: reg(data, n::DYNSET_SREG_KEY)?,
        data: reg(data, n::DYNSET_SREG_DATA),
        timeout: data.be64(n::DYNSET_TIMEOUT).filter(|time| *time != 0).map(Duration::from_millis),
    })
}

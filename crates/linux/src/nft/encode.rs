//! A transaction as one batch of messages.

use std::{borrow::Cow, collections::BTreeMap};

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST};
use ruleset::{
    Base, ChainType, Change, Data, Element, Field, Key, Name, Place, Policy, Transaction, Value,
    code::{AnonymousSet, Code, DataHeader, KeyForm, Op, SetHeader},
    userdata,
};
use rustix::io::Errno;

use super::{
    attr::{Mark, Writer},
    numbers as n, op, table_object,
};
use crate::{Cause, Error};

/// Most bytes of elements in one message: a nest's length has 16 bits.
const ELEMENT_BYTES: usize = 60_000;

/// A packed transaction.
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    first: u32,
    /// For each message between begin and end: the change that it belongs to.
    change_of: Vec<usize>,
}

impl Batch {
    /// How many messages there are, begin and end included.
    pub(super) fn messages(&self) -> u32 {
        self.change_of.len() as u32 + 2
    }

    /// The sequence number of the last real message, which asks for the answer.
    pub(super) fn last(&self) -> u32 {
        self.first.wrapping_add(self.change_of.len() as u32)
    }

    /// The error for what the kernel answered to the message with that number.
    pub(super) fn failed(&self, transaction: &Transaction, sequence: u32, cause: Cause) -> Error {
        let message = sequence.wrapping_sub(self.first).checked_sub(1);
        let change = message.and_then(|at| self.change_of.get(at as usize));
        let change = change.and_then(|at| transaction.changes.get(*at));
        let error = failed(transaction, change, cause);
        // Where the table is made from nothing, only a part of nftables itself can be absent.
        let from_nothing = matches!(transaction.changes.first(), Some(Change::AddTable { .. }));
        match change.filter(|_| from_nothing).and_then(needed) {
            Some(feature) => error.lacking(libc::ENOENT, feature),
            None => error,
        }
    }
}

/// The part of nftables that `change` takes and that a kernel may lack, as far as we name it.
fn needed(change: &Change) -> Option<&'static str> {
    match change {
        Change::AddChain { base: Some(Base { kind: ChainType::Nat, .. }), .. } => {
            Some("nft nat chains (CONFIG_NFT_NAT)")
        }
        Change::AddRule { code, .. } => code.ops.iter().find_map(|op| match op {
            Op::Load { field: Field::FibSaddrType | Field::FibDaddrType, .. } => {
                Some("nft fib (CONFIG_NFT_FIB_IPV4)")
            }
            Op::Masquerade(_) => Some("nft masquerade (CONFIG_NFT_MASQ)"),
            _ => None,
        }),
        _ => None,
    }
}

/// The error that `change` of `transaction`, or all of it, failed for `cause`.
fn failed(transaction: &Transaction, change: Option<&Change>, cause: Cause) -> Error {
    let table = table_object(transaction.family, &transaction.table);
    match change {
        Some(change @ (Change::AddTable { .. } | Change::DeleteTable)) => {
            Error::new(change.verb(), table, cause)
        }
        Some(change) => Error::new(change.verb(), format!("{} in {table}", change.object()), cause),
        None => Error::new("change", table, cause),
    }
}

/// Packs `transaction`; the message that begins the batch gets the number `first`.
///
/// # Errors
/// A change does not fit into a message (EMSGSIZE): a rule of more than 64 KiB.
pub(super) fn batch(transaction: &Transaction, first: u32, generation: Option<u32>) -> Result<Batch, Error> {
    let mut encoder = Encoder {
        writer: Writer::default(),
        transaction,
        first,
        change_of: Vec::with_capacity(transaction.changes.len()),
        change: 0,
        last: None,
        next_set_id: 1,
        set_ids: BTreeMap::new(),
    };
    let begin = encoder.writer.message(n::BATCH_BEGIN, NLM_F_REQUEST, first);
    encoder.writer.family_header(n::UNSPEC, n::SUBSYSTEM);
    if let Some(generation) = generation {
        encoder.writer.be32(n::BATCH_GENID, generation);
    }
    encoder.writer.end_message(begin);
    for (number, change) in transaction.changes.iter().enumerate() {
        encoder.change = number;
        encoder.change(change);
        if encoder.writer.is_too_long {
            return Err(failed(transaction, Some(change), Errno::MSGSIZE.into()));
        }
    }
    if let Some(last) = encoder.last {
        encoder.writer.add_flags(last, NLM_F_ACK);
    }
    let end = encoder.next_sequence();
    let end = encoder.writer.message(n::BATCH_END, NLM_F_REQUEST, end);
    encoder.writer.family_header(n::UNSPEC, n::SUBSYSTEM);
    encoder.writer.end_message(end);
    Ok(Batch { bytes: encoder.writer.bytes, first, change_of: encoder.change_of })
}

/// One element as it is sent.
struct Entry<'a> {
    key: Cow<'a, Value>,
    /// The last value of a concatenated range.
    key_end: Option<&'a Value>,
    /// The key is the first behind a range.
    is_end: bool,
    /// The range has no end: it goes up to the last value of all.
    is_open: bool,
    element: &'a Element,
}

/// An element with neither data nor comment.
const NOTHING: Element = Element { data: Data::None, comment: None };

/// What is sent for one element of a set: itself, and the end of its range where that is one of its own.
fn entries<'a>(form: KeyForm, key: &'a Key, element: &'a Element) -> impl Iterator<Item = Entry<'a>> {
    let key_end = Some(key.last()).filter(|_| form == KeyForm::ConcatInterval);
    let behind = if form == KeyForm::Interval { key.last().successor() } else { None };
    let is_open = form == KeyForm::Interval && behind.is_none();
    let begin = Entry { key: Cow::Borrowed(key.first()), key_end, is_end: false, is_open, element };
    std::iter::once(begin).chain(behind.map(end_of_range))
}

fn end_of_range<'a>(behind: Value) -> Entry<'a> {
    Entry { key: Cow::Owned(behind), key_end: None, is_end: true, is_open: false, element: &NOTHING }
}

/// What `nft` puts in front of the first range of a set: that nothing before it is in the set.
fn before_all<'a>(first: &Value) -> Option<Entry<'a>> {
    let zero = Value::bytes(&vec![0; first.as_bytes().len()]);
    (*first != zero).then(|| end_of_range(zero))
}

fn write_entry(nest: &mut Writer, entry: &Entry<'_>) {
    if entry.key.as_bytes().is_empty() {
        nest.be32(n::ELEM_FLAGS, n::ELEM_CATCHALL);
    } else {
        if entry.is_end {
            nest.be32(n::ELEM_FLAGS, n::ELEM_INTERVAL_END);
        }
        nest.value(n::ELEM_KEY, entry.key.as_bytes());
        if let Some(end) = entry.key_end {
            nest.value(n::ELEM_KEY_END, end.as_bytes());
        }
    }
    match &entry.element.data {
        Data::None => {}
        Data::Value(value) => nest.value(n::ELEM_DATA, value.as_bytes()),
        Data::Verdict(verdict) => nest.nest(n::ELEM_DATA, |data| op::write_verdict(data, verdict)),
    }
    let mut notes = Vec::new();
    if let Some(text) = &entry.element.comment {
        notes.extend(userdata::comment(text));
    }
    if entry.is_open {
        notes.extend(userdata::open_range());
    }
    if !notes.is_empty() {
        nest.raw(n::ELEM_USERDATA, &notes);
    }
}

/// What is done with elements, and of which set.
#[derive(Clone, Copy)]
struct Elements<'a> {
    /// `NEWSETELEM` or `DELSETELEM`.
    kind: u16,
    set: &'a str,
    /// The set's number, where this batch makes it.
    id: Option<u32>,
}

impl<'a> Elements<'a> {
    fn of(kind: u16, set: &'a Name, set_ids: &BTreeMap<Name, u32>) -> Self {
        Self { kind, set: set.as_str(), id: set_ids.get(set).copied() }
    }
}

struct Encoder<'a> {
    writer: Writer,
    transaction: &'a Transaction,
    first: u32,
    change_of: Vec<usize>,
    /// The change that is being packed.
    change: usize,
    /// The last real message so far.
    last: Option<Mark>,
    next_set_id: u32,
    /// The numbers of the sets that this batch makes, by which later messages may refer to them.
    set_ids: BTreeMap<Name, u32>,
}

impl Encoder<'_> {
    fn next_sequence(&self) -> u32 {
        self.first.wrapping_add(self.change_of.len() as u32).wrapping_add(1)
    }

    /// Begins a message with its headers and the table's name.
    fn begin(&mut self, kind: u16, flags: u16) -> Mark {
        let mark = self.writer.message(kind, flags | NLM_F_REQUEST, self.next_sequence());
        self.change_of.push(self.change);
        self.last = Some(mark);
        self.writer.family_header(n::family(self.transaction.family), 0);
        self.writer.text(n::TABLE, self.transaction.table.as_str());
        mark
    }

    /// A whole message.
    fn message(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Writer)) {
        let mark = self.begin(kind, flags);
        fill(&mut self.writer);
        self.writer.end_message(mark);
    }

    fn change(&mut self, change: &Change) {
        match change {
            Change::AddTable { comment } => self.message(n::NEWTABLE, 0, |message| {
                message.be32(n::TABLE_FLAGS, 0);
                if let Some(text) = comment {
                    message.raw(n::TABLE_USERDATA, &userdata::comment(text));
                }
            }),
            Change::DeleteTable => self.message(n::DELTABLE, 0, |_| {}),
            Change::AddChain { name, base } => self.message(n::NEWCHAIN, NLM_F_CREATE, |message| {
                message.text(n::CHAIN_NAME, name.as_str());
                if let Some(base) = base {
                    write_base(message, base);
                }
            }),
            Change::DeleteChain { name } => {
                self.message(n::DELCHAIN, 0, |message| message.text(n::CHAIN_NAME, name.as_str()));
            }
            Change::FlushChain { name } => {
                self.message(n::DELRULE, 0, |message| message.text(n::RULE_CHAIN, name.as_str()));
            }
            Change::AddSet { name, header } => {
                let id = self.take_set_id();
                self.set_ids.insert(name.clone(), id);
                self.message(n::NEWSET, NLM_F_CREATE, |message| write_set(message, name, header, id));
            }
            Change::DeleteSet { name } => {
                self.set_ids.remove(name);
                self.message(n::DELSET, 0, |message| message.text(n::SET_NAME, name.as_str()));
            }
            Change::AddRule { chain, place, code } => self.rule(chain, *place, code),
            Change::DeleteRule { chain, handle } => self.message(n::DELRULE, 0, |message| {
                message.text(n::RULE_CHAIN, chain.as_str());
                message.be64(n::RULE_HANDLE, *handle);
            }),
            Change::AddElements { set, form, elements } => self.add_elements(set, *form, elements),
            Change::DeleteElements { set, form, keys } => {
                let entries = keys.iter().flat_map(|key| entries(*form, key, &NOTHING));
                self.elements(Elements::of(n::DELSETELEM, set, &self.set_ids), entries);
            }
        }
    }

    fn take_set_id(&mut self) -> u32 {
        let id = self.next_set_id;
        self.next_set_id += 1;
        id
    }

    fn add_elements(&mut self, set: &Name, form: KeyForm, elements: &[(Key, Element)]) {
        let target = Elements::of(n::NEWSETELEM, set, &self.set_ids);
        let first = elements.iter().map(|(key, _)| key.first()).min();
        // As `nft` does where it fills a new set.
        let before = first.filter(|_| form == KeyForm::Interval && target.id.is_some()).and_then(before_all);
        let all = elements.iter().flat_map(|(key, element)| entries(form, key, element));
        let all = before.into_iter().chain(all);
        self.elements(target, all);
    }

    /// Elements in as many messages as it takes.
    fn elements<'e>(&mut self, target: Elements<'_>, entries: impl Iterator<Item = Entry<'e>>) {
        let flags = if target.kind == n::NEWSETELEM { NLM_F_CREATE } else { 0 };
        let mut entries = entries.peekable();
        while entries.peek().is_some() {
            let message = self.begin(target.kind, flags);
            let writer = &mut self.writer;
            writer.text(n::ELEM_LIST_SET, target.set);
            if let Some(id) = target.id {
                writer.be32(n::ELEM_LIST_SET_ID, id);
            }
            let list = writer.begin_nest(n::ELEM_LIST_ELEMENTS);
            let mut number = 0;
            while writer.length_since(list) < ELEMENT_BYTES {
                let Some(entry) = entries.next() else { break };
                number += 1;
                writer.nest(number, |nest| write_entry(nest, &entry));
            }
            writer.end_nest(list);
            self.writer.end_message(message);
        }
    }

    fn rule(&mut self, chain: &Name, place: Place, code: &Code) {
        let ids: Vec<u32> = code.anonymous_sets().map(|set| self.anonymous_set(set)).collect();
        let (flags, position) = match place {
            Place::End => (NLM_F_APPEND, None),
            Place::Before(handle) => (0, Some(handle)),
        };
        let message = self.begin(n::NEWRULE, flags | NLM_F_CREATE);
        let writer = &mut self.writer;
        writer.text(n::RULE_CHAIN, chain.as_str());
        if let Some(position) = position {
            writer.be64(n::RULE_POSITION, position);
        }
        let mut context = op::Context {
            family: self.transaction.family,
            set_ids: &self.set_ids,
            anonymous_ids: ids.into_iter(),
        };
        writer.nest(n::RULE_EXPRESSIONS, |list| op::write_all(list, &code.ops, &mut context));
        if let Some(text) = &code.comment {
            writer.raw(n::RULE_USERDATA, &userdata::comment(text));
        }
        writer.end_message(message);
    }

    /// Makes a set for the rule that follows, and returns its number.
    fn anonymous_set(&mut self, set: &AnonymousSet) -> u32 {
        let id = self.take_set_id();
        let form = if set.interval { KeyForm::Interval } else { KeyForm::Exact };
        let before = set.elements.first().filter(|_| set.interval).and_then(|key| before_all(key.first()));
        let all = set.elements.iter().flat_map(|key| entries(form, key, &NOTHING));
        let all: Vec<_> = before.into_iter().chain(all).collect();
        let flags = n::SET_ANONYMOUS | n::SET_CONSTANT | if set.interval { n::SET_INTERVAL } else { 0 };
        self.message(n::NEWSET, NLM_F_CREATE, |message| {
            message.text(n::SET_NAME, op::ANONYMOUS);
            message.be32(n::SET_FLAGS, flags);
            message.be32(n::SET_KEY_TYPE, set.kind.number());
            message.be32(n::SET_KEY_LEN, set.kind.width() as u32);
            message.be32(n::SET_ID, id);
            message.nest(n::SET_DESC, |desc| desc.be32(n::SET_DESC_SIZE, all.len() as u32));
            message.raw(n::SET_USERDATA, &set.userdata.0);
        });
        self.elements(Elements { kind: n::NEWSETELEM, set: op::ANONYMOUS, id: Some(id) }, all.into_iter());
        id
    }
}

fn write_base(message: &mut Writer, base: &Base) {
    message.text(n::CHAIN_TYPE, base.kind.as_str());
    let policy = if base.policy == Policy::Accept { n::ACCEPT } else { n::DROP };
    message.be32(n::CHAIN_POLICY, policy.cast_unsigned());
    message.nest(n::CHAIN_HOOK, |hook| {
        hook.be32(n::HOOK_NUMBER, n::hook(base.hook));
        hook.be32(n::HOOK_PRIORITY, base.priority.cast_unsigned());
    });
}

fn write_set(message: &mut Writer, name: &Name, header: &SetHeader, id: u32) {
    let interval = match header.form {
        KeyForm::Exact => 0,
        KeyForm::Interval => n::SET_INTERVAL,
        KeyForm::ConcatInterval => n::SET_INTERVAL | n::SET_CONCAT,
    };
    let with = |on: bool, flag: u32| if on { flag } else { 0 };
    let flags = interval
        | with(header.data.is_some(), n::SET_MAP)
        | with(header.timeout, n::SET_HAS_TIMEOUT)
        | with(header.dynamic, n::SET_EVAL);
    message.text(n::SET_NAME, name.as_str());
    message.be32(n::SET_FLAGS, flags);
    message.be32(n::SET_KEY_TYPE, header.key_type);
    message.be32(n::SET_KEY_LEN, header.key_width);
    if let Some(data) = header.data {
        let (kind, width) = match data {
            DataHeader::Verdict => (n::DATA_VERDICT_TYPE, 0),
            DataHeader::Value { kind, width } => (kind, width),
        };
        message.be32(n::SET_DATA_TYPE, kind);
        message.be32(n::SET_DATA_LEN, width);
    }
    message.be32(n::SET_ID, id);
    if header.size.is_some() || !header.key_parts.is_empty() {
        message.nest(n::SET_DESC, |desc| {
            if let Some(size) = header.size {
                desc.be32(n::SET_DESC_SIZE, size);
            }
            if !header.key_parts.is_empty() {
                desc.nest(n::SET_DESC_CONCAT, |parts| {
                    for width in &header.key_parts {
                        parts.nest(n::LIST_ELEM, |part| part.be32(n::SET_FIELD_LEN, *width));
                    }
                });
            }
        });
    }
    message.raw(n::SET_USERDATA, &header.userdata);
    if header.counter {
        message.nest(n::SET_EXPR, |expr| {
            expr.text(n::EXPR_NAME, "counter");
            expr.nest(n::EXPR_DATA, |_| {});
        });
    }
}

#[cfg(test)]
mod tests {
    use ruleset::{Family, Rule, Statement, Table};

    use super::*;

    #[test]
    fn a_rule_that_no_message_can_hold_is_named() {
        let long = Rule::new(vec![Statement::Counter; 5000]);
        let mut transaction = Transaction::new(Family::Ip, "t");
        transaction.add_rule(&Table::new(Family::Ip, "t"), &"c".into(), &long);
        let error = batch(&transaction, 0, None).map(|batch| batch.bytes).unwrap_err();
        assert_eq!(error.to_string(), "failed to add rule of chain c in nftables table ip t");
        assert_eq!(error.raw_os_error(), Some(Errno::MSGSIZE.raw_os_error()));
    }
}

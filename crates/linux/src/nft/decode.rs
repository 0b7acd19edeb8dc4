//! What the kernel says of tables, chains, rules, sets and elements.

use std::collections::BTreeMap;

use ruleset::{
    Base, ChainType, Data, Element, Key, Name, ObservedRule, Policy, Type, Value,
    code::{AnonymousSet, Code, DataHeader, KeyForm, Op, SetHeader, SetRef, Userdata},
    userdata,
};

use super::{AnonymousSets, attr::Attributes, numbers as n, op};
use crate::netlink::Message;

/// Bytes of the header that every message of netfilter has.
const FAMILY_HEADER: usize = 4;

/// The attributes of a message.
pub(super) fn attributes(message: Message<'_>) -> Attributes<'_> {
    Attributes(message.payload.get(FAMILY_HEADER..).unwrap_or_default())
}

/// The family of a message's object, as a number.
pub(super) fn family(message: Message<'_>) -> u8 {
    message.payload.first().copied().unwrap_or_default()
}

/// What makes a chain a base chain; `None` also where its type or hook is none of ours.
pub(super) fn base(chain: Attributes<'_>) -> Option<Base> {
    let hook = chain.nest(n::CHAIN_HOOK);
    let kind = chain.text(n::CHAIN_TYPE)?;
    let kind = [ChainType::Filter, ChainType::Nat].into_iter().find(|k| k.as_str() == kind)?;
    let dropped = chain.be32(n::CHAIN_POLICY) == Some(n::DROP.cast_unsigned());
    Some(Base {
        kind,
        hook: n::read_hook(hook.be32(n::HOOK_NUMBER)?)?,
        priority: hook.be32(n::HOOK_PRIORITY)?.cast_signed(),
        policy: if dropped { Policy::Drop } else { Policy::Accept },
    })
}

/// A rule of a chain.
pub(super) fn rule(family: u8, rule: Attributes<'_>, anonymous: &AnonymousSets) -> ObservedRule {
    let family = n::read_family(family);
    let entries = rule.nest(n::RULE_EXPRESSIONS).iter();
    let mut xt_comment = None;
    let ops = entries.map(|(_, entry)| match op::read(family, Attributes(entry)) {
        Op::Other { name, attributes } if matches!(&*name, "match" | "target") => {
            let (op, comment) = xt(&name, attributes);
            xt_comment = xt_comment.take().or(comment);
            op
        }
        Op::Lookup { key, set: SetRef::Named(name), relation, found } => {
            let set = anonymous.get(&name).cloned().map_or(SetRef::Named(name), SetRef::Anonymous);
            Op::Lookup { key, set, relation, found }
        }
        other => other,
    });
    let ops = ops.collect();
    let noted = rule.find(n::RULE_USERDATA).and_then(userdata::read_comment);
    let comment = noted.or(xt_comment);
    ObservedRule { handle: rule.be64(n::RULE_HANDLE).unwrap_or_default(), code: Code { ops, comment } }
}

/// A match or target of iptables inside nftables, under the name `xt match conntrack`, and the comment that
/// it holds.
fn xt(kind: &str, attributes: Vec<u8>) -> (Op, Option<Box<str>>) {
    let parts = Attributes(&attributes);
    let name = parts.text(n::XT_NAME).unwrap_or_default();
    let comment = parts.text(n::XT_INFO).filter(|_| kind == "match" && name == "comment").map(Box::from);
    let name = format!("xt {kind} {name}").into();
    (Op::Other { name, attributes }, comment)
}

/// The header of a set, as far as it is one of ours.
pub(super) fn set(set: Attributes<'_>) -> Option<SetHeader> {
    let flags = set.be32(n::SET_FLAGS).unwrap_or_default();
    let desc = set.nest(n::SET_DESC);
    let parts = desc.nest(n::SET_DESC_CONCAT).iter();
    let key_parts = parts.filter_map(|(_, part)| Attributes(part).be32(n::SET_FIELD_LEN)).collect();
    let form = match (flags & n::SET_INTERVAL != 0, flags & n::SET_CONCAT != 0) {
        (false, _) => KeyForm::Exact,
        (true, false) => KeyForm::Interval,
        (true, true) => KeyForm::ConcatInterval,
    };
    let data = match set.be32(n::SET_DATA_TYPE) {
        _ if flags & n::SET_MAP == 0 => None,
        Some(n::DATA_VERDICT_TYPE) => Some(DataHeader::Verdict),
        Some(kind) => Some(DataHeader::Value { kind, width: set.be32(n::SET_DATA_LEN)? }),
        None => None,
    };
    Some(SetHeader {
        form,
        key_type: set.be32(n::SET_KEY_TYPE)?,
        key_width: set.be32(n::SET_KEY_LEN)?,
        key_parts,
        data,
        dynamic: flags & n::SET_EVAL != 0,
        timeout: flags & n::SET_HAS_TIMEOUT != 0,
        size: desc.be32(n::SET_DESC_SIZE),
        counter: set.nest(n::SET_EXPR).text(n::EXPR_NAME) == Some("counter"),
        userdata: set.find(n::SET_USERDATA).unwrap_or_default().to_vec(),
    })
}

/// The set is one that belongs to a rule.
pub(super) fn is_anonymous(set: Attributes<'_>) -> bool {
    set.be32(n::SET_FLAGS).is_some_and(|flags| flags & n::SET_ANONYMOUS != 0)
}

/// An anonymous set of values of a type of ours.
pub(super) fn anonymous(header: SetHeader, elements: BTreeMap<Key, Element>) -> Option<AnonymousSet> {
    Some(AnonymousSet {
        kind: Type::from_number(header.key_type).filter(|_| header.data.is_none())?,
        interval: header.form == KeyForm::Interval,
        elements: elements.into_keys().collect(),
        userdata: Userdata(header.userdata),
    })
}

/// One element as it was sent.
pub(super) struct Entry {
    /// Empty for the element that matches what no other does.
    key: Value,
    key_end: Option<Value>,
    is_end: bool,
    element: Element,
}

/// The elements in one message of a dump.
pub(super) fn entries(message: Attributes<'_>) -> impl Iterator<Item = Entry> {
    message.nest(n::ELEM_LIST_ELEMENTS).iter().map(|(_, entry)| {
        let entry = Attributes(entry);
        let data = entry.nest(n::ELEM_DATA);
        let data = match (data.find(n::DATA_VALUE), op::read_verdict(data)) {
            (Some(value), _) => Data::Value(Value::bytes(value)),
            (None, Some(verdict)) => Data::Verdict(verdict),
            (None, None) => Data::None,
        };
        let comment = entry.find(n::ELEM_USERDATA).and_then(userdata::read_comment);
        Entry {
            key: Value::bytes(entry.value(n::ELEM_KEY).unwrap_or_default()),
            key_end: entry.value(n::ELEM_KEY_END).map(Value::bytes),
            is_end: entry.be32(n::ELEM_FLAGS).unwrap_or_default() & n::ELEM_INTERVAL_END != 0,
            element: Element { data, comment },
        }
    })
}

/// The elements of a set from what was sent of them.
pub(super) fn elements(form: KeyForm, mut entries: Vec<Entry>) -> BTreeMap<Key, Element> {
    if form != KeyForm::Interval {
        let keyed = entries.into_iter().map(|entry| match entry.key_end {
            Some(end) => (Key::range(entry.key, end), entry.element),
            None => (Key::One(entry.key), entry.element),
        });
        return keyed.collect();
    }
    // Where one range ends as the next begins, the end comes first.
    entries.sort_by(|a, b| a.key.cmp(&b.key).then(b.is_end.cmp(&a.is_end)));
    let mut ranges = BTreeMap::new();
    let mut open: Option<Entry> = None;
    for entry in entries {
        if entry.key.as_bytes().is_empty() {
            ranges.insert(Key::One(entry.key), entry.element);
            continue;
        }
        if let Some(begin) = open.take() {
            // A range without an end of its own ends where the next begins.
            if let Some(last) = entry.key.predecessor() {
                ranges.insert(Key::range(begin.key, last), begin.element);
            }
        }
        open = Some(entry).filter(|entry| !entry.is_end);
    }
    if let Some(begin) = open {
        let last = Value::bytes(&vec![u8::MAX; begin.key.as_bytes().len()]);
        ranges.insert(Key::range(begin.key, last), begin.element);
    }
    ranges
}

/// The flags and the comment of a table.
pub(super) fn table(table: Attributes<'_>) -> (u32, Option<Box<str>>) {
    let comment = table.find(n::TABLE_USERDATA).and_then(userdata::read_comment);
    (table.be32(n::TABLE_FLAGS).unwrap_or_default(), comment)
}

/// The name of an object.
pub(super) fn name(object: Attributes<'_>, kind: u16) -> Option<Name> {
    object.text(kind).map(Name::from)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::nft::attr::Writer;

    fn entry(key: &[u8], is_end: bool) -> Entry {
        Entry { key: Value::bytes(key), key_end: None, is_end, element: Element::default() }
    }

    #[test]
    fn ranges_are_put_together_whatever_the_order() {
        let entries = vec![
            entry(&[11, 0], true),
            entry(&[12, 0], false),
            entry(&[0, 0], true),
            entry(&[11, 0], false),
            entry(&[10, 0], false),
            entry(&[13, 0], true),
            entry(&[12, 0], true),
            entry(&[255, 0], false),
        ];
        let keys: Vec<Key> = elements(KeyForm::Interval, entries).into_keys().collect();
        let range = |from: [u8; 2], to: [u8; 2]| Key::range(Value::bytes(&from), Value::bytes(&to));
        assert_eq!(
            keys,
            [
                range([10, 0], [10, 255]),
                range([11, 0], [11, 255]),
                range([12, 0], [12, 255]),
                range([255, 0], [255, 255]),
            ]
        );
    }

    proptest! {
        /// Whatever arrives is read without a panic, also where it is cut or its lengths lie.
        #[test]
        fn any_bytes_do_no_harm(mut bytes in vec(any::<u8>(), 0..200), kinds in vec((0_u16..20, 0_u16..40), 0..12)) {
            // Bytes that often look like attributes.
            for (at, (kind, length)) in kinds.into_iter().enumerate() {
                if let Some(place) = bytes.get_mut(at * 12..at * 12 + 4) {
                    place.copy_from_slice(&[length.to_ne_bytes(), kind.to_ne_bytes()].concat());
                }
            }
            let attributes = Attributes(&bytes);
            let _ = (base(attributes), set(attributes), table(attributes), is_anonymous(attributes));
            let _ = rule(2, attributes, &AnonymousSets::new());
            let _ = elements(KeyForm::Interval, entries(attributes).collect());
            for name in ["payload", "meta", "ct", "fib", "numgen", "bitwise", "cmp", "lookup", "immediate", "nat",
                         "masq", "reject", "dynset", "match"] {
                let mut entry = Writer::default();
                entry.text(n::EXPR_NAME, name);
                entry.raw(n::EXPR_DATA, &bytes);
                let _ = op::read(Some(ruleset::Family::Ip), Attributes(&entry.bytes));
            }
        }
    }
}

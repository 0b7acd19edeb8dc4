//! The notes that `nft` leaves beside objects, which the kernel keeps and nobody but `nft` reads: a list of
//! type (one byte), length (one byte), value.
//!
//! Without those of a set, `nft` would print its elements in the wrong byte order.

use crate::{Expr, Field, MapData, Selector, SetSpec, code::Origin};

/// The comment of a table, rule or element.
const COMMENT: u8 = 0;

const KEY_BYTE_ORDER: u8 = 0;
const DATA_BYTE_ORDER: u8 = 1;
const MERGE_ELEMENTS: u8 = 2;
const KEY_TYPEOF: u8 = 3;
const DATA_TYPEOF: u8 = 4;
const DATA_INTERVAL: u8 = 6;

/// `nft`'s numbers for byte orders: none of its own (a concatenation or verdict), the machine's, the
/// network's.
const MIXED: u32 = 0;
const HOST: u32 = 1;
const NETWORK: u32 = 2;

/// `nft`'s numbers for kinds of expressions.
const PAYLOAD: u32 = 7;
const META: u32 = 9;
const CT: u32 = 12;
const CONCAT: u32 = 13;
const NUMGEN: u32 = 23;
const FIB: u32 = 26;

/// One note: type, length, value. A value that doesn't fit into a length of one byte is cut, and then all
/// notes together are more than the kernel keeps.
fn note(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
    let mut bytes = vec![kind, length];
    bytes.extend_from_slice(&value[..usize::from(length)]);
    bytes
}

fn number(kind: u8, value: u32) -> Vec<u8> {
    note(kind, &value.to_ne_bytes())
}

/// A comment, as text that ends in a zero.
#[must_use]
pub fn comment(text: &str) -> Vec<u8> {
    let mut value = text.as_bytes().to_vec();
    value.push(0);
    note(COMMENT, &value)
}

/// The note of an element whose range goes up to the last value of all.
#[must_use]
pub fn open_range() -> Vec<u8> {
    const FLAGS: u8 = 1;
    const OPEN: u32 = 1;
    number(FLAGS, OPEN)
}

/// The comment among the notes of a table, rule or element.
#[must_use]
pub fn read_comment(mut notes: &[u8]) -> Option<Box<str>> {
    while let [found, length, rest @ ..] = notes {
        let (value, behind) = rest.split_at_checked(usize::from(*length))?;
        if *found == COMMENT {
            let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
            return Some(String::from_utf8_lossy(text).into());
        }
        notes = behind;
    }
    None
}

/// The notes of a named set or map.
#[must_use]
pub(crate) fn of_set(spec: &SetSpec) -> Vec<u8> {
    let mut notes = number(KEY_BYTE_ORDER, byte_order(&spec.key));
    match &spec.data {
        None => {}
        Some(MapData::Verdict) => notes.extend(number(DATA_BYTE_ORDER, MIXED)),
        Some(MapData::Value(data)) => notes.extend(number(DATA_BYTE_ORDER, byte_order(data))),
    }
    notes.extend(note(KEY_TYPEOF, &type_of(&spec.key)));
    match &spec.data {
        None => {}
        Some(MapData::Verdict) => notes.extend(note(DATA_TYPEOF, &verdict_type())),
        Some(MapData::Value(data)) => notes.extend(note(DATA_TYPEOF, &type_of(data))),
    }
    if spec.data.is_some() {
        notes.extend(number(DATA_INTERVAL, 0));
    }
    notes
}

/// The notes of an anonymous set.
#[must_use]
pub(crate) fn of_anonymous(field: Field, interval: bool) -> Vec<u8> {
    let mut notes = number(KEY_BYTE_ORDER, byte_order_of(Expr::Field(field)));
    if interval {
        notes.extend(number(MERGE_ELEMENTS, 1));
    }
    notes.extend(note(KEY_TYPEOF, &type_of_one(field.into())));
    notes
}

fn byte_order(selector: &Selector) -> u32 {
    match selector.0.as_slice() {
        [one] => byte_order_of(*one),
        _ => MIXED,
    }
}

fn byte_order_of(expr: Expr) -> u32 {
    match expr {
        Expr::Field(field) | Expr::Bits { field, .. } if matches!(field.origin(), Origin::Payload { .. }) => {
            NETWORK
        }
        _ => HOST,
    }
}

/// `typeof`: kind of expression, then its own notes.
fn type_of(selector: &Selector) -> Vec<u8> {
    match selector.0.as_slice() {
        [one] => type_of_one(*one),
        many => {
            let parts = many.iter().zip(0_u8..).flat_map(|(part, i)| note(i, &type_of_one(*part)));
            kind_with(CONCAT, &parts.collect::<Vec<_>>())
        }
    }
}

/// `typeof ... : verdict`
fn verdict_type() -> Vec<u8> {
    const VERDICT: u32 = 1;
    kind_with(VERDICT, &[])
}

fn kind_with(kind: u32, notes: &[u8]) -> Vec<u8> {
    [number(0, kind), note(1, notes)].concat()
}

fn type_of_one(expr: Expr) -> Vec<u8> {
    const RANDOM: u32 = 1;
    match expr {
        Expr::Random { modulus } => {
            let notes = [number(0, RANDOM), number(1, modulus), number(2, 0)];
            kind_with(NUMGEN, &notes.concat())
        }
        Expr::Field(field) | Expr::Bits { field, .. } => type_of_field(field),
    }
}

/// `nft` uses the kernel's numbers here, but for headers.
fn type_of_field(field: Field) -> Vec<u8> {
    const ADDRESS_TYPE: u32 = 3;
    match field.origin() {
        Origin::Payload { .. } => {
            let (protocol, part) = header_numbers(field);
            kind_with(PAYLOAD, &[number(0, protocol), number(1, part)].concat())
        }
        Origin::Meta(key) => kind_with(META, &number(0, key)),
        // The second note is the direction: none.
        Origin::Ct(key) => kind_with(CT, &[number(0, key), number(1, u32::MAX)].concat()),
        Origin::Fib(flag) => kind_with(FIB, &[number(0, ADDRESS_TYPE), number(1, flag)].concat()),
    }
}

/// `nft`'s numbers for a protocol header and its part.
const fn header_numbers(field: Field) -> (u32, u32) {
    match field {
        Field::IpProtocol => (12, 9),
        Field::IpSaddr => (12, 11),
        Field::IpDaddr => (12, 12),
        Field::Ip6Saddr => (13, 8),
        Field::Ip6Daddr => (13, 9),
        // `th dport`; nothing else is in a header.
        _ => (11, 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SLOT;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Each expected text is what nft 1.0.6 sends for such a declaration.
    #[test]
    #[cfg(target_endian = "little")]
    fn sets_are_described_as_nft_does() {
        let endpoints = SetSpec::map([Field::MetaPriority.into(), SLOT], [Field::IpDaddr, Field::ThDport]);
        assert_eq!(
            hex(&of_set(&endpoints)),
            "000400000000010400000000033400040d000000012c000e0004090000000106000402000000011a0004170000000112\
             000401000000010400000100020400000000043400040d000000012c0014000407000000010c00040c00000001040c00\
             00000114000407000000010c00040b000000010402000000060400000000"
        );
        assert_eq!(
            hex(&of_set(&SetSpec::set(Field::IpSaddr).interval())),
            "0004020000000314000407000000010c00040c00000001040b000000"
        );
        assert_eq!(
            hex(&of_anonymous(Field::MetaL4proto, false)),
            "000401000000030e0004090000000106000410000000"
        );
        assert_eq!(
            hex(&of_anonymous(Field::CtState, false)),
            "000401000000031400040c000000010c0004000000000104ffffffff"
        );
    }

    #[test]
    fn a_comment_is_found_behind_other_notes() {
        let notes = [number(7, 7), comment("weft: x")].concat();
        assert_eq!(read_comment(&notes).as_deref(), Some("weft: x"));
        assert_eq!(read_comment(&notes[..notes.len() - 1]), None, "cut off");
        assert_eq!(read_comment(&number(7, 7)), None);
    }
}

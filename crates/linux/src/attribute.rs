//! Netlink attributes as bytes: reading what the kernel sends, and packing what has no message type.
//!
//! Objects are read this way, not with the message types that requests are built of: those decode everything
//! that a kernel may say of an object, and one attribute they don't know the shape of would hide the whole.

use std::net::IpAddr;

use netlink_packet_core::{DecodeError, NLA_F_NESTED, NLA_HEADER_SIZE, NlasIterator};

use crate::Cause;

/// Kind and value of each attribute behind a header of `header` bytes; a cut-off rest ends it.
pub(crate) fn attributes(payload: &[u8], header: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut at = header.min(payload.len());
    NlasIterator::new(&payload[at..]).map_while(Result::ok).map(move |attribute| {
        let begin = at + NLA_HEADER_SIZE;
        at += usize::from(attribute.length()).next_multiple_of(4);
        (attribute.kind(), &payload[begin..begin + attribute.value_length()])
    })
}

/// A number in the machine's byte order.
pub(crate) fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

/// A byte that says yes or no.
pub(crate) fn flag(value: &[u8]) -> bool {
    value.first().is_some_and(|byte| *byte != 0)
}

/// A text that ends with a zero byte.
pub(crate) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

/// An address of either family by its length.
pub(crate) fn address(value: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(value)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from))
        .ok()
}

/// Appends one attribute, padded to 4 bytes. The value must be shorter than 64 KiB.
pub(crate) fn put(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend_from_slice(&((NLA_HEADER_SIZE + value.len()) as u16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Appends one attribute that holds the attributes that `fill` appends.
pub(crate) fn nest(bytes: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    put(bytes, kind | NLA_F_NESTED, &inner);
}

/// The cause that a header could not be read.
pub(crate) fn garbled(error: &DecodeError) -> Cause {
    Cause::Garbled(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_walked_in_steps_of_four_until_one_lies() {
        let bytes = [9, 9, 5, 0, 1, 0, 7, 0, 0, 0, 8, 0, 2, 128, 1, 0, 0, 0, 200, 0, 3, 0];
        let seen: Vec<_> = attributes(&bytes, 2).collect();
        assert_eq!(seen, [(1, &[7][..]), (2, &[1, 0, 0, 0][..])]);
        assert_eq!(attributes(&bytes, 99).count(), 0);
    }

    #[test]
    fn what_is_packed_is_walked() {
        let mut bytes = Vec::new();
        nest(&mut bytes, 3, |inner| put(inner, 1, &[7]));
        put(&mut bytes, 4, &[]);
        assert_eq!(bytes, [12, 0, 3, 128, 5, 0, 1, 0, 7, 0, 0, 0, 4, 0, 4, 0]);
        let seen: Vec<_> = attributes(&bytes, 0).map(|(kind, value)| (kind, value.len())).collect();
        assert_eq!(seen, [(3, 8), (4, 0)]);
    }

    #[test]
    fn an_address_is_known_by_its_length() {
        assert_eq!(address(&[10, 0, 0, 1]), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(address(&[0; 16]), Some("::".parse().unwrap()));
        assert_eq!(address(&[1, 2, 3]), None);
    }
}

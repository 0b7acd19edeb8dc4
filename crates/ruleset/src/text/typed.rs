//! Constants in the way that their types are written.

use std::{
    fmt::{self, Display, Formatter},
    net::{Ipv4Addr, Ipv6Addr},
};

use crate::{Key, Type, Value};

/// A value with the type that says how to write it.
pub(super) struct Typed<'a>(pub(super) Type, pub(super) &'a [u8]);

impl Display for Typed<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(kind, bytes) = *self;
        let number = || bytes.try_into().ok().map(u32::from_ne_bytes);
        let written = match kind {
            Type::Ipv4Addr => <[u8; 4]>::try_from(bytes).ok().map(|b| Ipv4Addr::from(b).to_string()),
            Type::Ipv6Addr => <[u8; 16]>::try_from(bytes).ok().map(|b| Ipv6Addr::from(b).to_string()),
            Type::InetProto => bytes.first().map(|n| protocol_name(*n)),
            Type::InetService => bytes.try_into().ok().map(|b| u16::from_be_bytes(b).to_string()),
            Type::Mark => number().map(|n| format!("{n:#010x}")),
            Type::ClassId => number().map(|n| format!("{:x}:{:x}", n >> 16, n & 0xffff)),
            Type::Integer => number().map(|n| n.to_string()),
            Type::NfProto => bytes.first().map(|n| nfproto_name(*n)),
            Type::CtState => number().map(|n| bit_names(n, &CT_STATES)),
            Type::CtStatus => number().map(|n| bit_names(n, &CT_STATUSES)),
            Type::FibAddrType => number().map(fib_type_name),
            Type::IfName => {
                let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
                std::str::from_utf8(&bytes[..end]).ok().map(|name| format!("\"{name}\""))
            }
        };
        match written {
            Some(text) => f.write_str(&text),
            None => write!(f, "{:?}", Value::bytes(bytes)),
        }
    }
}

fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "ipv6-icmp".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

fn nfproto_name(number: u8) -> String {
    match number {
        2 => "ipv4".to_owned(),
        10 => "ipv6".to_owned(),
        other => other.to_string(),
    }
}

const CT_STATES: [(u32, &str); 5] =
    [(1, "invalid"), (2, "established"), (4, "related"), (8, "new"), (64, "untracked")];

const CT_STATUSES: [(u32, &str); 7] = [
    (1, "expected"),
    (2, "seen-reply"),
    (4, "assured"),
    (8, "confirmed"),
    (0x10, "snat"),
    (0x20, "dnat"),
    (0x200, "dying"),
];

fn bit_names(bits: u32, names: &[(u32, &str)]) -> String {
    let known = names.iter().fold(0, |all, (bit, _)| all | bit);
    if bits == 0 || bits & !known != 0 {
        return format!("{bits:#x}");
    }
    let set: Vec<_> = names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect();
    set.join(",")
}

fn fib_type_name(number: u32) -> String {
    const NAMES: [&str; 9] = [
        "unspec",
        "unicast",
        "local",
        "broadcast",
        "anycast",
        "multicast",
        "blackhole",
        "unreachable",
        "prohibit",
    ];
    usize::try_from(number)
        .ok()
        .and_then(|n| NAMES.get(n))
        .map_or_else(|| number.to_string(), |n| (*n).to_owned())
}

/// The parts of a concatenated value, or the value itself, each cut to its type's length.
fn parts<'a>(types: &'a [Type], bytes: &'a [u8]) -> impl Iterator<Item = (Type, &'a [u8])> {
    let mut rest = bytes;
    types.iter().map(move |kind| {
        let (padded, behind) = rest.split_at(kind.width().next_multiple_of(4).min(rest.len()));
        rest = behind;
        (*kind, &padded[..kind.width().min(padded.len())])
    })
}

/// A value of these types.
pub(super) struct Joined<'a>(pub(super) &'a [Type], pub(super) &'a Value);

impl Display for Joined<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (i, (kind, bytes)) in parts(self.0, self.1.as_bytes()).enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { " . " }, Typed(kind, bytes))?;
        }
        Ok(())
    }
}

/// A key of these types.
pub(super) struct TypedKey<'a>(pub(super) &'a [Type], pub(super) &'a Key);

impl Display for TypedKey<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Key::Range(range) = self.1 else { return Joined(self.0, self.1.first()).fmt(f) };
        let last = parts(self.0, range.1.as_bytes());
        for (i, ((kind, from), (_, to))) in parts(self.0, range.0.as_bytes()).zip(last).enumerate() {
            f.write_str(if i == 0 { "" } else { " . " })?;
            match prefix_length(kind, from, to) {
                _ if from == to => Typed(kind, from).fmt(f)?,
                Some(length) => write!(f, "{}/{length}", Typed(kind, from))?,
                None => write!(f, "{}-{}", Typed(kind, from), Typed(kind, to))?,
            }
        }
        Ok(())
    }
}

/// The length of the prefix that covers exactly `from` to `to`, where there is one.
fn prefix_length(kind: Type, from: &[u8], to: &[u8]) -> Option<u32> {
    if !matches!(kind, Type::Ipv4Addr | Type::Ipv6Addr) {
        return None;
    }
    let number = |bytes: &[u8]| bytes.iter().fold(0_u128, |n, b| n << 8 | u128::from(*b));
    let (from, differ) = (number(from), number(from) ^ number(to));
    let is_prefix = differ & differ.wrapping_add(1) == 0 && from & differ == 0;
    is_prefix.then(|| 8 * kind.width() as u32 - differ.count_ones())
}

//! Constants as the kernel holds them: short byte strings.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netmodel::{IfName, Protocol, Subnet};

/// Bytes that fit into a [`Value`] without an allocation.
const SHORT: usize = 22;

/// Length of an interface name in the kernel (IFNAMSIZ), in bytes.
const IFNAMSIZ: usize = 16;

/// One constant in the form and byte order in which the kernel compares it: an address or a port in
/// network order; a mark, a class id or an integer in the machine's own.
///
/// A value of up to 22 bytes needs no allocation, so that hundreds of thousands of elements stay small.
/// What the bytes mean is the matter of the set or expression that they belong to.
#[derive(Clone)]
pub struct Value(Repr);

#[derive(Clone)]
enum Repr {
    Short { len: u8, bytes: [u8; SHORT] },
    Long(Box<[u8]>),
}

impl Value {
    /// Raw bytes, already in the kernel's order.
    #[must_use]
    pub fn bytes(raw: &[u8]) -> Self {
        let mut bytes = [0; SHORT];
        match (u8::try_from(raw.len()), bytes.get_mut(..raw.len())) {
            (Ok(len), Some(short)) => {
                short.copy_from_slice(raw);
                Self(Repr::Short { len, bytes })
            }
            _ => Self(Repr::Long(raw.into())),
        }
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::Short { len, bytes } => &bytes[..usize::from(*len).min(SHORT)],
            Repr::Long(bytes) => bytes,
        }
    }

    /// A protocol number of the IP header (`inet_proto`).
    #[must_use]
    pub fn proto(protocol: Protocol) -> Self {
        Self::bytes(&[protocol.number()])
    }

    /// A transport port (`inet_service`).
    #[must_use]
    pub fn port(port: u16) -> Self {
        Self::bytes(&port.to_be_bytes())
    }

    /// A 32-bit number in the machine's byte order: `mark`, `classid` (`meta priority`), `integer`
    /// (`numgen`), bits of `ct state` and `ct status`.
    #[must_use]
    pub fn number(number: u32) -> Self {
        Self::bytes(&number.to_ne_bytes())
    }

    /// The name of an interface, padded with zeros as the kernel compares it.
    #[must_use]
    pub fn interface(name: &IfName) -> Self {
        let mut bytes = [0; IFNAMSIZ];
        for (to, from) in bytes.iter_mut().zip(name.as_str().bytes()) {
            *to = from;
        }
        Self::bytes(&bytes)
    }

    /// The concatenation of `parts`: each is padded with zeros to a multiple of four bytes.
    #[must_use]
    pub fn concat(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Vec::with_capacity(2 * SHORT);
        for part in parts {
            all.extend_from_slice(part.as_bytes());
            all.resize(all.len().next_multiple_of(4), 0);
        }
        Self::bytes(&all)
    }

    /// The 32-bit number, where the value is one.
    #[must_use]
    pub fn as_number(&self) -> Option<u32> {
        self.as_bytes().try_into().ok().map(u32::from_ne_bytes)
    }

    /// The next value of the same length in numeric (big-endian) order, or `None` behind the last one.
    #[must_use]
    pub fn successor(&self) -> Option<Self> {
        let mut bytes = self.as_bytes().to_vec();
        for byte in bytes.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                return Some(Self::bytes(&bytes));
            }
        }
        None
    }

    /// The value before this one of the same length in numeric (big-endian) order, or `None` before zero.
    #[must_use]
    pub fn predecessor(&self) -> Option<Self> {
        let mut bytes = self.as_bytes().to_vec();
        for byte in bytes.iter_mut().rev() {
            *byte = byte.wrapping_sub(1);
            if *byte != u8::MAX {
                return Some(Self::bytes(&bytes));
            }
        }
        None
    }
}

impl From<[u8; 4]> for Value {
    /// An IPv4 address.
    fn from(address: [u8; 4]) -> Self {
        Self::bytes(&address)
    }
}

impl From<Ipv4Addr> for Value {
    fn from(address: Ipv4Addr) -> Self {
        Self::bytes(&address.octets())
    }
}

impl From<Ipv6Addr> for Value {
    fn from(address: Ipv6Addr) -> Self {
        Self::bytes(&address.octets())
    }
}

impl From<IpAddr> for Value {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Protocol> for Value {
    fn from(protocol: Protocol) -> Self {
        Self::proto(protocol)
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Value {}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Value {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for Value {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What an element of a set is found by: one value, or in a set with `flags interval` a range.
///
/// Keys are ordered by their first value, then by their last.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// Exactly this value.
    One(Value),
    /// From the first to the last value, both included; in a concatenation in each part by itself.
    Range(Box<(Value, Value)>),
}

impl Key {
    /// The range from `first` to `last`, both included. A range of one value is that value.
    #[must_use]
    pub fn range(first: Value, last: Value) -> Self {
        if first == last { Self::One(first) } else { Self::Range(Box::new((first, last))) }
    }

    /// The first value.
    #[must_use]
    pub fn first(&self) -> &Value {
        match self {
            Self::One(value) => value,
            Self::Range(range) => &range.0,
        }
    }

    /// The last value, which still belongs to the key.
    #[must_use]
    pub fn last(&self) -> &Value {
        match self {
            Self::One(value) => value,
            Self::Range(range) => &range.1,
        }
    }

    /// Both have a value in common: in each of the parts, of those widths in bytes, that they consist of.
    pub(crate) fn overlaps(&self, other: &Self, widths: &[usize]) -> bool {
        let mut behind = 0;
        widths.iter().all(|width| {
            let part = behind..behind + width;
            behind += width.next_multiple_of(4);
            let [first, last, other_first, other_last] =
                [self.first(), self.last(), other.first(), other.last()]
                    .map(|value| value.as_bytes().get(part.clone()));
            first <= other_last && other_first <= last
        })
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.first(), self.last()).cmp(&(other.first(), other.last()))
    }
}

impl<V: Into<Value>> From<V> for Key {
    fn from(value: V) -> Self {
        Self::One(value.into())
    }
}

impl From<Subnet> for Key {
    /// All addresses of the subnet.
    fn from(subnet: Subnet) -> Self {
        Self::range(subnet.address().into(), subnet.last().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_concatenation_pads_each_part_to_four_bytes() {
        let address: Ipv4Addr = "10.254.0.10".parse().unwrap();
        let value = Value::concat([address.into(), Value::proto(Protocol::Udp), Value::port(53)]);
        assert_eq!(value.as_bytes(), [10, 254, 0, 10, 17, 0, 0, 0, 0, 53, 0, 0]);
    }

    #[test]
    fn short_and_long_values_compare_by_their_bytes() {
        let long = Value::bytes(&[7; 40]);
        assert_eq!(long.as_bytes(), [7; 40]);
        assert!(long > Value::bytes(&[7; 22]) && Value::bytes(&[8]) > long);
        assert!(size_of::<Key>() <= 24 && size_of::<Value>() <= 24);
    }

    #[test]
    fn neighbours_carry_over_bytes_and_end_at_the_edges() {
        assert_eq!(Value::bytes(&[10, 0, 255]).successor(), Some(Value::bytes(&[10, 1, 0])));
        assert_eq!(Value::bytes(&[10, 1, 0]).predecessor(), Some(Value::bytes(&[10, 0, 255])));
        assert_eq!(Value::bytes(&[255, 255]).successor(), None);
        assert_eq!(Value::bytes(&[0, 0]).predecessor(), None);
    }

    #[test]
    fn a_subnet_is_a_range_and_a_host_route_one_value() {
        let subnet = |text: &str| Key::from(text.parse::<Subnet>().unwrap());
        assert_eq!(subnet("10.0.0.0/8").last().as_bytes(), [10, 255, 255, 255]);
        assert_eq!(subnet("10.1.1.1/32"), Key::One(Value::bytes(&[10, 1, 1, 1])));
    }
}

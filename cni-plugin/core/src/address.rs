//! Ranges of addresses, and the order in which they are offered.

use std::{fmt, net::IpAddr, ops::RangeInclusive};

use netmodel::Subnet;

use crate::{
    Code, Error,
    json::Keys,
    result::{Route, address_and_prefix},
};

/// Consecutive addresses of one subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The subnet, whose length the addresses get.
    pub subnet: Subnet,
    /// The first address.
    pub start: IpAddr,
    /// The last address.
    pub end: IpAddr,
    /// The gateway, which is never offered.
    pub gateway: IpAddr,
}

/// Ranges of one family, of which a container gets one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(pub Vec<Range>);

fn invalid(msg: String) -> Error {
    Error::new(Code::InvalidConfig, msg)
}

/// An address as a number within its family.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

/// The address of that number in the family of `like`.
fn address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(u32::try_from(number).unwrap_or(u32::MAX).into()),
        IpAddr::V6(_) => IpAddr::V6(number.into()),
    }
}

impl Range {
    /// Reads `subnet`, `rangeStart`, `rangeEnd` and `gateway`.
    ///
    /// Absent, the gateway is the first address behind the subnet's own, the start the same, the
    /// end the last one (in IPv4 before the broadcast address).
    pub(crate) fn parse(keys: &Keys<'_>) -> Result<Self, Error> {
        let place = keys.place("subnet");
        let text = keys.filled("subnet")?.ok_or_else(|| invalid(format!("{place} is missing")))?;
        let (first, length) =
            address_and_prefix(text).ok_or_else(|| invalid(format!("invalid {place} {text:?}")))?;
        let subnet = Subnet::containing(first, length).map_err(|e| invalid(e.to_string()))?;
        if subnet.address() != first {
            return Err(invalid(format!(
                "Network has host bits set. For a subnet mask of length {length} the network address is {}",
                subnet.address()
            )));
        }
        if length > if first.is_ipv4() { 30 } else { 126 } {
            return Err(invalid(format!("Network {subnet} too small to allocate from")));
        }
        let behind = address(number(first) + 1, first);
        let last = address(number(subnet.last()) - u128::from(first.is_ipv4()), first);
        let inside = |key: &str, label: &str, default: IpAddr| -> Result<IpAddr, Error> {
            let given: IpAddr = keys.parsed(key)?.unwrap_or(default);
            let fits = subnet.contains(given);
            if fits { Ok(given) } else { Err(invalid(format!("{label} {given} not in network {subnet}"))) }
        };
        let start = inside("rangeStart", "RangeStart", behind)?;
        let end = inside("rangeEnd", "RangeEnd", last)?;
        if start > end {
            return Err(invalid(format!("RangeStart {start} is behind RangeEnd {end}")));
        }
        let gateway: IpAddr = keys.parsed("gateway")?.unwrap_or(behind);
        if gateway.is_ipv4() != first.is_ipv4() {
            return Err(invalid(format!("gateway {gateway} is of another family than network {subnet}")));
        }
        Ok(Self { subnet, start, end, gateway })
    }

    /// `candidate` lies between start and end.
    #[must_use]
    pub fn contains(&self, candidate: IpAddr) -> bool {
        candidate.is_ipv4() == self.start.is_ipv4() && self.start <= candidate && candidate <= self.end
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.start) || other.contains(self.start)
    }

    fn numbers(&self) -> RangeInclusive<u128> {
        number(self.start)..=number(self.end)
    }
}

impl RangeSet {
    /// Reads a list of ranges.
    pub(crate) fn parse(place: &str, list: &[serde_json::Value]) -> Result<Self, Error> {
        let ranges: Result<Vec<_>, Error> =
            list.iter().map(|value| Range::parse(&Keys::element(place, value)?)).collect();
        let set = Self(ranges?);
        let Some(first) = set.0.first() else {
            return Err(invalid(format!("invalid range set in {place}: empty range set")));
        };
        if set.0.iter().any(|r| r.start.is_ipv4() != first.start.is_ipv4()) {
            return Err(invalid(format!("invalid range set {set}: mixed address families")));
        }
        for (i, range) in set.0.iter().enumerate() {
            if let Some(other) = set.0.iter().skip(i + 1).find(|o| o.overlaps(range)) {
                return Err(invalid(format!("subnets {range} and {other} overlap")));
            }
        }
        Ok(set)
    }

    /// The range that `candidate` lies in.
    #[must_use]
    pub fn range_of(&self, candidate: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(candidate))
    }

    /// The set is of IPv4.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.0.first().is_some_and(|range| range.start.is_ipv4())
    }

    /// How many addresses the set can give.
    #[must_use]
    pub fn capacity(&self) -> u128 {
        let size = |r: &Range| {
            let count = (r.numbers().end() - r.numbers().start()).saturating_add(1);
            count.saturating_sub(u128::from(r.contains(r.gateway)))
        };
        self.0.iter().map(size).fold(0, u128::saturating_add)
    }

    /// Every address that may be given, each once: round robin, beginning behind `last`, the one
    /// given most recently.
    pub fn candidates(&self, last: Option<IpAddr>) -> impl Iterator<Item = (IpAddr, &Range)> {
        let found = last.and_then(|l| Some((self.0.iter().position(|r| r.contains(l))?, number(l))));
        let (index, pivot) = found.unwrap_or((0, 0));
        let whole = |r: &'_ Range| r.numbers();
        let mut pieces: Vec<(&Range, RangeInclusive<u128>)> = Vec::with_capacity(self.0.len() + 1);
        match (found, self.0.get(index)) {
            (Some(_), Some(range)) => {
                // An empty piece where `last` is the end of its range.
                pieces.push((range, pivot.saturating_add(1)..=number(range.end)));
                pieces.extend(self.0.iter().skip(index + 1).map(|r| (r, whole(r))));
                pieces.extend(self.0.iter().take(index).map(|r| (r, whole(r))));
                pieces.push((range, number(range.start)..=pivot));
            }
            _ => pieces.extend(self.0.iter().map(|r| (r, whole(r)))),
        }
        pieces
            .into_iter()
            .flat_map(|(range, numbers)| numbers.map(move |n| (address(n, range.start), range)))
            .filter(|(candidate, range)| *candidate != range.gateway)
    }
}

/// No two sets overlap.
///
/// # Errors
/// Code 7, naming both.
pub fn check_sets(sets: &[RangeSet]) -> Result<(), Error> {
    for (i, set) in sets.iter().enumerate() {
        for (j, other) in sets.iter().enumerate().skip(i + 1) {
            if set.0.iter().any(|a| other.0.iter().any(|b| a.overlaps(b))) {
                return Err(invalid(format!("range set {i} overlaps with {j}")));
            }
        }
    }
    Ok(())
}

/// The default route of a family.
pub(crate) fn default_route(ipv4: bool, gateway: IpAddr) -> Option<Route> {
    let any: IpAddr =
        if ipv4 { IpAddr::from([0, 0, 0, 0]) } else { IpAddr::from([0_u16, 0, 0, 0, 0, 0, 0, 0]) };
    Subnet::new(any, 0).ok().map(|dst| Route::to(dst, Some(gateway)))
}

/// The address behind the first one of the subnet that holds `address`.
pub(crate) fn usual_gateway(holder: IpAddr, prefix: u8) -> Option<IpAddr> {
    Subnet::containing(holder, prefix).ok()?.nth(1)
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(Range::to_string).collect();
        f.write_str(&texts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn set(value: &Value) -> Result<RangeSet, String> {
        RangeSet::parse("ipam.ranges", value.as_array().unwrap()).map_err(|e| e.msg)
    }

    fn offered(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        set.candidates(last.map(|l| l.parse().unwrap())).map(|(a, _)| a.to_string()).collect()
    }

    #[test]
    fn defaults_leave_out_gateway_and_broadcast() {
        let small = set(&json!([{"subnet": "10.1.2.0/29"}])).unwrap();
        assert_eq!(offered(&small, None), ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]);
        assert_eq!(small.to_string(), "10.1.2.1-10.1.2.6");
        assert_eq!(small.capacity(), 5);
        let six = set(&json!([{"subnet": "fd00::/126"}])).unwrap();
        assert_eq!(offered(&six, None), ["fd00::2", "fd00::3"]);
    }

    #[test]
    fn offers_go_round_from_the_last_one() {
        let small = set(&json!([{"subnet": "10.1.2.0/29"}])).unwrap();
        assert_eq!(
            offered(&small, Some("10.1.2.4")),
            ["10.1.2.5", "10.1.2.6", "10.1.2.2", "10.1.2.3", "10.1.2.4"]
        );
        assert_eq!(offered(&small, Some("10.1.2.6"))[0], "10.1.2.2");
        assert_eq!(offered(&small, Some("10.9.9.9"))[0], "10.1.2.2");
        let two = set(&json!([
            {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.8", "rangeEnd": "10.1.0.9"},
            {"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.8", "rangeEnd": "10.2.0.8", "gateway": "10.2.0.1"},
        ]))
        .unwrap();
        assert_eq!(offered(&two, Some("10.1.0.8")), ["10.1.0.9", "10.2.0.8", "10.1.0.8"]);
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused() {
        for (range, why) in [
            (
                json!({"subnet": "10.1.2.3/24"}),
                "Network has host bits set. For a subnet mask of length 24 the network address is 10.1.2.0",
            ),
            (json!({"subnet": "10.1.2.0/31"}), "Network 10.1.2.0/31 too small to allocate from"),
            (json!({"subnet": "fd00::/127"}), "Network fd00::/127 too small to allocate from"),
            (json!({}), "ipam.ranges.subnet is missing"),
            (json!({"subnet": "10.1.2.0"}), "invalid ipam.ranges.subnet \"10.1.2.0\""),
            (
                json!({"subnet": "10.1.2.0/24", "rangeStart": "10.1.3.1"}),
                "RangeStart 10.1.3.1 not in network 10.1.2.0/24",
            ),
            (
                json!({"subnet": "10.1.2.0/24", "rangeEnd": "fd00::1"}),
                "RangeEnd fd00::1 not in network 10.1.2.0/24",
            ),
            (
                json!({"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.8"}),
                "RangeStart 10.1.2.9 is behind RangeEnd 10.1.2.8",
            ),
        ] {
            assert_eq!(set(&json!([range])).unwrap_err(), why);
        }
        assert!(set(&json!([])).unwrap_err().ends_with("empty range set"));
        assert!(
            set(&json!([{"subnet": "10.1.2.0/24"}, {"subnet": "fd00::/64"}])).unwrap_err().contains("mixed")
        );
        assert!(
            set(&json!([{"subnet": "10.1.2.0/24"}, {"subnet": "10.1.2.0/25"}]))
                .unwrap_err()
                .contains("overlap")
        );
        let one = set(&json!([{"subnet": "10.1.2.0/24"}])).unwrap();
        assert_eq!(check_sets(&[one.clone(), one]).unwrap_err().msg, "range set 0 overlaps with 1");
    }

    #[test]
    fn ranges_overlap_where_they_share_an_address() {
        let range = |start: &str, end: &str| {
            let text = json!([{"subnet": "10.1.2.0/24", "rangeStart": start, "rangeEnd": end}]);
            set(&text).unwrap()
        };
        let middle = range("10.1.2.20", "10.1.2.30");
        for (start, end, overlaps) in [
            ("10.1.2.20", "10.1.2.30", true),
            ("10.1.2.10", "10.1.2.20", true),
            ("10.1.2.30", "10.1.2.40", true),
            ("10.1.2.22", "10.1.2.24", true),
            ("10.1.2.10", "10.1.2.40", true),
            ("10.1.2.10", "10.1.2.19", false),
            ("10.1.2.31", "10.1.2.40", false),
        ] {
            let other = range(start, end);
            for sets in [[middle.clone(), other.clone()], [other, middle.clone()]] {
                assert_eq!(check_sets(&sets).is_err(), overlaps, "{start} {end}");
            }
        }
        let six = set(&json!([{"subnet": "fd00::/64"}])).unwrap();
        assert!(check_sets(&[middle, six]).is_ok());
    }

    proptest! {
        #[test]
        fn every_address_is_offered_once(start in 1_u32..200, length in 0_u32..50, last in 0_u32..256) {
            let ip = |n: u32| IpAddr::V4((0x0a01_0200 + n).into());
            let set = RangeSet(vec![Range {
                subnet: "10.1.2.0/24".parse().unwrap(),
                start: ip(start),
                end: ip(start + length),
                gateway: ip(20),
            }]);
            let mut offered: Vec<IpAddr> = set.candidates(Some(ip(last))).map(|(a, _)| a).collect();
            prop_assert_eq!(offered.len() as u128, set.capacity());
            offered.sort();
            offered.dedup();
            prop_assert_eq!(offered.len() as u128, set.capacity());
            prop_assert!(offered.iter().all(|a| set.range_of(*a).is_some() && *a != ip(20)));
        }
    }
}

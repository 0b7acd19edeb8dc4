//! Subnets that have no address in common, for a quick look at who is in the way.

use std::{collections::BTreeMap, net::IpAddr};

use netmodel::Subnet;

/// Such subnets, by their first address.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disjoint(BTreeMap<IpAddr, Subnet>);

impl Disjoint {
    /// The widest of `subnets`: of two that overlap one lies in the other.
    pub(crate) fn covering(subnets: impl IntoIterator<Item = Subnet>) -> Self {
        let mut widest_first: Vec<_> = subnets.into_iter().collect();
        widest_first.sort_by_key(Subnet::prefix);
        let mut found = Self::default();
        for subnet in widest_first {
            if found.overlapping(subnet).is_none() {
                found.insert(subnet);
            }
        }
        found
    }

    /// The last one that has addresses in common with `subnet`.
    pub(crate) fn overlapping(&self, subnet: Subnet) -> Option<Subnet> {
        // They don't overlap each other: only the last one that begins before the end can matter.
        let (_, last) = self.0.range(..=subnet.last()).next_back()?;
        last.overlaps(&subnet).then_some(*last)
    }

    /// Adds one that overlaps none of them.
    pub(crate) fn insert(&mut self, subnet: Subnet) {
        self.0.insert(subnet.address(), subnet);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_in_the_way_is_found_however_wide() {
        let subnets = ["10.5.3.0/24", "10.5.16.0/20", "10.5.17.0/24", "10.5.3.64/26"];
        let taken = Disjoint::covering(subnets.map(|text| text.parse().unwrap()));
        for (asked, found) in [
            ("10.5.3.0/24", Some("10.5.3.0/24")),
            ("10.5.3.128/25", Some("10.5.3.0/24")),
            ("10.5.18.0/24", Some("10.5.16.0/20")),
            ("10.5.0.0/16", Some("10.5.16.0/20")),
            ("10.5.4.0/24", None),
            ("10.5.2.0/24", None),
            ("10.5.32.0/24", None),
        ] {
            let overlapping = taken.overlapping(asked.parse().unwrap());
            assert_eq!(overlapping.map(|subnet| subnet.to_string()).as_deref(), found, "{asked}");
        }
    }
}

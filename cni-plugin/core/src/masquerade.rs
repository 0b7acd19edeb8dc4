//! Masquerading for networks that ask for it (`ipMasq`): two elements per address, so that an attachment costs the same
//! however many there are, and nobody's subnet is in the way of another's.

use std::net::IpAddr;

use netmodel::Subnet;
use ruleset::{Element, Field, Key, PortChoice, Rule, Selector, SetSpec, Statement, Table, Value};

use crate::{HostAddress, entry::Entry};

/// What differs between the families.
struct Words {
    /// Addresses of containers.
    pods: &'static str,
    /// Each of them with its own subnet, to which it is not masqueraded.
    homes: &'static str,
    from: Field,
    to: Field,
    multicast: (IpAddr, u8),
}

const FOUR: Words = Words {
    pods: "pods4",
    homes: "homes4",
    from: Field::IpSaddr,
    to: Field::IpDaddr,
    multicast: (IpAddr::V4(std::net::Ipv4Addr::new(224, 0, 0, 0)), 4),
};

const SIX: Words = Words {
    pods: "pods6",
    homes: "homes6",
    from: Field::Ip6Saddr,
    to: Field::Ip6Daddr,
    multicast: (IpAddr::V6(std::net::Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
};

const BOTH: [&Words; 2] = [&FOUR, &SIX];

impl Words {
    const fn of(address: IpAddr) -> &'static Self {
        if address.is_ipv4() { &FOUR } else { &SIX }
    }

    fn pods_spec(&self) -> SetSpec {
        SetSpec::set(self.from)
    }

    fn homes_key(&self) -> Selector {
        Selector::concat([self.from, self.to])
    }

    fn homes_spec(&self) -> SetSpec {
        SetSpec::set(self.homes_key()).interval()
    }

    fn rules(&self) -> [Rule; 2] {
        let (address, prefix) = self.multicast;
        let elsewhere = Subnet::new(address, prefix).ok().map(|multicast| self.to.not_within(multicast));
        let outside = [self.from.in_set(self.pods)].into_iter().chain(elsewhere);
        [
            Rule::new([self.homes_key().in_set(self.homes), Statement::RETURN])
                .comment("weft: pod to its subnet"),
            Rule::new(outside.chain([Statement::Masquerade(PortChoice::FullyRandom)]))
                .comment("weft: pod to the outside"),
        ]
    }
}

/// Adds the sets to `table`.
pub(crate) fn add_sets_to(table: &mut Table) {
    for (name, spec) in sets() {
        table.set(name, spec);
    }
}

/// The sets, and what is in them.
pub(crate) fn sets() -> impl Iterator<Item = (&'static str, SetSpec)> {
    BOTH.into_iter().flat_map(|words| [(words.pods, words.pods_spec()), (words.homes, words.homes_spec())])
}

/// The rules for the postrouting hook.
pub(crate) fn rules() -> impl Iterator<Item = Rule> {
    BOTH.into_iter().flat_map(Words::rules)
}

/// The subnet of an address; an address that is all of its subnet has no neighbour.
fn subnet_of(pod: &HostAddress) -> Option<Subnet> {
    Subnet::containing(pod.address, pod.prefix).ok().filter(|subnet| subnet.address() != subnet.last())
}

/// The elements of `pods`.
pub(crate) fn entries(pods: &[HostAddress], whose: &str) -> impl Iterator<Item = Entry> {
    // One address of two lengths has the home of the first.
    let is_first = move |(number, pod): &(usize, &HostAddress)| {
        !pods.iter().take(*number).any(|earlier| earlier.address == pod.address)
    };
    pods.iter().enumerate().filter(is_first).flat_map(move |(_, pod)| {
        let words = Words::of(pod.address);
        let element = || Element::default().comment(whose);
        let address = Key::One(pod.address.into());
        let one = Entry { set: words.pods, spec: words.pods_spec(), key: address, element: element() };
        let home = subnet_of(pod).map(|subnet| {
            let to = |address: IpAddr| Value::concat([Value::from(pod.address), Value::from(address)]);
            let key = Key::range(to(subnet.address()), to(subnet.last()));
            Entry { set: words.homes, spec: words.homes_spec(), key, element: element() }
        });
        [one].into_iter().chain(home)
    })
}

/// The set of masqueraded addresses of the family of `address`.
pub(crate) fn pods_of(address: IpAddr) -> &'static str {
    Words::of(address).pods
}

/// Both are elements of `set`, and of one address: an address has one home.
pub(crate) fn are_homes_of_one(set: &str, one: &Key, other: &Key) -> bool {
    let address =
        |key: &Key| key.first().as_bytes().get(..key.first().as_bytes().len() / 2).map(<[u8]>::to_vec);
    BOTH.iter().any(|words| words.homes == set) && address(one) == address(other)
}

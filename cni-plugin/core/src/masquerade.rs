//! Masquerading for networks that ask for it (`ipMasq`): one element per address, and one per subnet, so that
//! an attachment costs the same however many there are.

use std::net::IpAddr;

use netmodel::Subnet;
use ruleset::{Element, Field, Key, PortChoice, Rule, Selector, SetSpec, Statement, Table, Value};

use crate::{HostAddress, entry::Entry};

/// What differs between the families.
struct Words {
    /// Addresses of containers.
    pods: &'static str,
    /// Subnets of containers, each twice: between its addresses nothing is masqueraded.
    own: &'static str,
    from: Field,
    to: Field,
    multicast: (IpAddr, u8),
}

const FOUR: Words = Words {
    pods: "pods4",
    own: "own4",
    from: Field::IpSaddr,
    to: Field::IpDaddr,
    multicast: (IpAddr::V4(std::net::Ipv4Addr::new(224, 0, 0, 0)), 4),
};

const SIX: Words = Words {
    pods: "pods6",
    own: "own6",
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

    fn own_key(&self) -> Selector {
        Selector::concat([self.from, self.to])
    }

    fn own_spec(&self) -> SetSpec {
        SetSpec::set(self.own_key()).interval()
    }

    fn rules(&self) -> [Rule; 2] {
        let (address, prefix) = self.multicast;
        let elsewhere = Subnet::new(address, prefix).ok().map(|multicast| self.to.not_within(multicast));
        let outside = [self.from.in_set(self.pods)].into_iter().chain(elsewhere);
        [
            Rule::new([self.own_key().in_set(self.own), Statement::RETURN])
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
    BOTH.into_iter().flat_map(|words| [(words.pods, words.pods_spec()), (words.own, words.own_spec())])
}

/// The rules for the postrouting hook.
pub(crate) fn rules() -> impl Iterator<Item = Rule> {
    BOTH.into_iter().flat_map(Words::rules)
}

/// The subnet of an address; an address that is all of its subnet has no neighbour.
fn subnet_of(pod: &HostAddress) -> Option<Subnet> {
    Subnet::containing(pod.address, pod.prefix).ok().filter(|subnet| subnet.address() != subnet.last())
}

/// The elements of `pods`: the subnets' belong to nobody.
pub(crate) fn entries(pods: &[HostAddress], whose: &str) -> impl Iterator<Item = Entry> {
    pods.iter().enumerate().flat_map(move |(number, pod)| {
        let words = Words::of(pod.address);
        let address = Key::One(pod.address.into());
        let masqueraded = Element::default().comment(whose);
        let one = Entry { set: words.pods, spec: words.pods_spec(), key: address, element: masqueraded };
        let earlier = |subnet: &Subnet| pods.iter().take(number).any(|pod| subnet_of(pod) == Some(*subnet));
        let own = subnet_of(pod).filter(|subnet| !earlier(subnet)).map(|subnet| {
            let twice = |address: IpAddr| Value::concat([Value::from(address), Value::from(address)]);
            let key = Key::range(twice(subnet.address()), twice(subnet.last()));
            Entry { set: words.own, spec: words.own_spec(), key, element: Element::default() }
        });
        [one].into_iter().chain(own)
    })
}

/// The set holds subnets.
pub(crate) fn is_of_subnets(set: &str) -> bool {
    BOTH.iter().any(|words| words.own == set)
}

/// The set that says whether a subnet of `own` is still in use, by its addresses.
pub(crate) fn pods_of(own: &str) -> &'static str {
    if own == FOUR.own { FOUR.pods } else { SIX.pods }
}

/// All of `inner`, an address or the key of a subnet, lies in the subnet that `own` is the key of.
pub(crate) fn holds(own: &Key, inner: &Key) -> bool {
    // Both halves of a subnet's key are the same.
    let length = own.first().as_bytes().len() / 2;
    let half = |value: &Value| value.as_bytes().get(..length).map(<[u8]>::to_vec);
    half(own.first()) <= half(inner.first()) && half(inner.last()) <= half(own.last())
}

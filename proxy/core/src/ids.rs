//! Numbers that the kernel's maps hold: which is free, and when one may be given out again.
//!
//! A packet looks up its front end and then its endpoint; a commit may fall between the two. So a number that
//! is given back rests for a while: no packet can still carry it when it comes to mean something else.
//!
//! A front end's value has 32 bits: the id of a Service's port in one [`View`] in the high 20, the number of a
//! [`Class`] in the low 12.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::Duration,
};

/// How long a number that was given back rests.
pub const REST: Duration = Duration::from_secs(10);

/// How long a class stays after its last front end left it: Services come back to numbers of endpoints that they
/// had.
pub const LINGER: Duration = Duration::from_secs(60);

/// How long a class without a front end stays that an earlier run left. A packet that meets a class that is gone
/// would pass without translation.
pub const CROSSING: Duration = Duration::from_secs(1);

/// Bits of the class in a front end's value.
pub const CLASS_BITS: u32 = 12;

/// `value & CLASS_MASK` is the class, `value & !CLASS_MASK` the base of the endpoint rows' keys.
pub const CLASS_MASK: u32 = (1 << CLASS_BITS) - 1;

/// The largest id of a Service's port.
pub const MAX_ID: u32 = (1 << (32 - CLASS_BITS)) - 1;

/// Numbers from 1 to a limit, given out round robin.
#[derive(Clone, Debug)]
pub struct Pool {
    limit: u32,
    last: u32,
    taken: Vec<u64>,
    resting: VecDeque<(Duration, u32)>,
}

impl Pool {
    /// The numbers 1 to `limit`, all free.
    #[must_use]
    pub const fn new(limit: u32) -> Self {
        Self { limit, last: 0, taken: Vec::new(), resting: VecDeque::new() }
    }

    /// Gives out the next free number; `None` where all are in use or at rest. `now` counts from any fixed
    /// moment.
    pub fn take(&mut self, now: Duration) -> Option<u32> {
        while let Some((since, number)) = self.resting.front().copied()
            && now.saturating_sub(since) >= REST
        {
            self.mark(number, false);
            self.resting.pop_front();
        }
        let (before, behind) = (1..=self.last, self.last + 1..=self.limit);
        let number = behind.chain(before).find(|number| !self.is_taken(*number))?;
        self.mark(number, true);
        self.last = number;
        Some(number)
    }

    /// Takes this very number. `false`: it is not free, or none of ours.
    pub fn claim(&mut self, number: u32) -> bool {
        let free = (1..=self.limit).contains(&number) && !self.is_taken(number);
        if free {
            self.mark(number, true);
            self.last = self.last.max(number);
        }
        free
    }

    /// Takes back a number that was given out or claimed; it rests for [`REST`].
    pub fn give_back(&mut self, number: u32, now: Duration) {
        self.resting.push_back((now, number));
    }

    fn is_taken(&self, number: u32) -> bool {
        self.taken.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    fn mark(&mut self, number: u32, taken: bool) {
        let word = number as usize / 64;
        if self.taken.len() <= word {
            self.taken.resize(word + 1, 0);
        }
        let bit = 1 << (number % 64);
        if taken { self.taken[word] |= bit } else { self.taken[word] &= !bit }
    }
}

/// Whose endpoints: each view of a Service's port has an id and rows of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum View {
    /// All of the cluster.
    #[default]
    Cluster,
    /// Those on this node.
    Local,
}

/// Whose connections get this node's address as their source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Masquerade {
    /// Nobody's.
    Never,
    /// Those that don't come from a pod.
    OffCluster,
    /// Everybody's.
    Always,
}

/// What is done with a connection to a front end, beside whose endpoints it goes to: front ends that want the
/// same share one class, and so one chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    /// Number of endpoints, at least one.
    pub endpoints: u16,
    /// Whether the source is rewritten.
    pub masquerade: Masquerade,
    /// Seconds for which a client stays with its endpoint.
    pub affinity: Option<u32>,
    /// Whose endpoints.
    pub view: View,
}

impl Class {
    /// The class whose chain has that name.
    #[must_use]
    pub fn named(chain: &str) -> Option<Self> {
        let masquerades = [
            ("spread", Masquerade::Never),
            ("cluster", Masquerade::OffCluster),
            ("external", Masquerade::Always),
        ];
        let (masquerade, count) =
            masquerades.into_iter().find_map(|(name, m)| Some((m, chain.strip_prefix(name)?)))?;
        let endpoints = count.parse().ok().filter(|n| *n > 0)?;
        let class = Self { endpoints, masquerade, affinity: None, view: View::Cluster };
        (class.to_string() == chain).then_some(class)
    }
}

impl fmt::Display for Class {
    /// The name of the chain where the class begins.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.masquerade {
            Masquerade::Never => "spread",
            Masquerade::OffCluster => "cluster",
            Masquerade::Always => "external",
        })?;
        if self.view == View::Local {
            f.write_str("-local")?;
        }
        write!(f, "{}", self.endpoints)?;
        self.affinity.map_or(Ok(()), |seconds| write!(f, "-{seconds}s"))
    }
}

/// A class in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    number: u32,
    users: u32,
    /// While nobody uses it.
    stays_until: Duration,
}

/// The classes in the kernel and their numbers.
#[derive(Clone, Debug)]
pub struct Classes {
    pool: Pool,
    held: BTreeMap<Class, Held>,
}

impl Default for Classes {
    fn default() -> Self {
        Self { pool: Pool::new(CLASS_MASK), held: BTreeMap::new() }
    }
}

impl Classes {
    /// The number of a class that is held.
    #[must_use]
    pub fn number(&self, class: &Class) -> Option<u32> {
        self.held.get(class).map(|held| held.number)
    }

    /// All classes that are held, and their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (&Class, u32)> {
        self.held.iter().map(|(class, held)| (class, held.number))
    }

    /// Makes sure that the class is held; `None` where there is no number for it.
    pub fn hold(&mut self, class: Class, now: Duration) -> Option<u32> {
        if let Some(held) = self.held.get(&class) {
            return Some(held.number);
        }
        let number = self.pool.take(now)?;
        self.held.insert(class, Held { number, users: 0, stays_until: now + LINGER });
        Some(number)
    }

    /// Holds a class that an earlier run left under that number, if both are free.
    pub fn adopt(&mut self, class: Class, number: u32, now: Duration) {
        if !self.held.contains_key(&class) && self.pool.claim(number) {
            self.held.insert(class, Held { number, users: 0, stays_until: now + CROSSING });
        }
    }

    /// Counts one more front end of a class that is held.
    pub fn enter(&mut self, class: &Class) {
        if let Some(held) = self.held.get_mut(class) {
            held.users += 1;
        }
    }

    /// Counts one front end less.
    pub fn leave(&mut self, class: &Class, now: Duration) {
        if let Some(held) = self.held.get_mut(class) {
            held.users = held.users.saturating_sub(1);
            held.stays_until = now + LINGER;
        }
    }

    /// Lets go of the classes whose time without a front end is over, and names them with their numbers.
    pub fn expire(&mut self, now: Duration) -> Vec<(Class, u32)> {
        let is_over = |held: &Held| held.users == 0 && now >= held.stays_until;
        let over: Vec<_> = self
            .held
            .iter()
            .filter(|(_, held)| is_over(held))
            .map(|(class, held)| (*class, held.number))
            .collect();
        for (class, number) in &over {
            self.held.remove(class);
            self.pool.give_back(*number, now);
        }
        over
    }

    /// When [`Self::expire`] next has something to do.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Duration> {
        self.held.values().filter(|held| held.users == 0).map(|held| held.stays_until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn numbers_go_round_and_rest() {
        let mut pool = Pool::new(3);
        assert_eq!([pool.take(at(0)), pool.take(at(0))], [Some(1), Some(2)]);
        pool.give_back(1, at(0));
        assert_eq!(pool.take(at(1)), Some(3), "the next one, not the one just given back");
        assert_eq!(pool.take(at(9)), None, "1 still rests");
        assert_eq!(pool.take(at(10)), Some(1));
        assert_eq!(pool.take(at(100)), None);
    }

    #[test]
    fn a_number_found_in_the_kernel_can_be_claimed_once() {
        let mut pool = Pool::new(1000);
        assert!(pool.claim(500) && !pool.claim(500) && !pool.claim(0) && !pool.claim(1001));
        assert_eq!(pool.take(at(0)), Some(501), "numbers that a packet may still carry come last");
    }

    fn class(endpoints: u16) -> Class {
        Class { endpoints, masquerade: Masquerade::OffCluster, affinity: None, view: View::Cluster }
    }

    #[test]
    fn a_class_lingers_for_a_minute_after_its_last_front_end() {
        let mut classes = Classes::default();
        assert_eq!((classes.hold(class(2), at(0)), classes.hold(class(3), at(0))), (Some(1), Some(2)));
        assert_eq!(classes.hold(class(2), at(0)), Some(1));
        classes.enter(&class(2));
        classes.enter(&class(3));
        classes.leave(&class(2), at(5));
        assert_eq!(classes.next_expiry(), Some(at(65)));
        assert_eq!(classes.expire(at(64)), []);
        assert_eq!(classes.expire(at(65)), [(class(2), 1)]);
        assert_eq!(classes.next_expiry(), None);
        assert_eq!(classes.hold(class(2), at(66)), Some(3), "number 1 rests");
        classes.adopt(class(4), 9, at(100));
        assert_eq!(classes.expire(at(101)), [(class(4), 9)], "one that nobody took over");
    }

    #[test]
    fn there_are_as_many_classes_as_12_bits_have_numbers() {
        let mut classes = Classes::default();
        assert!((1..=4095).all(|n| classes.hold(class(n), at(0)) == Some(u32::from(n))));
        assert_eq!(classes.hold(class(4096), at(0)), None);
        assert_eq!(classes.hold(class(7), at(0)), Some(7), "one that is held needs no number");
    }

    #[test]
    fn a_class_is_called_as_its_chain() {
        assert_eq!(Class::named("cluster2"), Some(class(2)));
        for other in
            ["services", "cluster", "cluster0", "cluster02", "cluster+2", "cluster70000", "spread2-1s"]
        {
            assert_eq!(Class::named(other), None, "{other}");
        }
        let local =
            Class { view: View::Local, masquerade: Masquerade::Always, affinity: Some(10800), ..class(2) };
        assert_eq!([class(2).to_string(), local.to_string()], ["cluster2", "external-local2-10800s"]);
    }
}

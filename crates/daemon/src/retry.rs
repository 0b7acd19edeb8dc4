//! When to try again, and when to say so.

use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};

/// A small generator of random numbers (splitmix64) for jitter and choices: never for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    #[must_use]
    pub const fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// Seeded by the kernel.
    #[must_use]
    pub fn from_system() -> Self {
        let mut seed = [0; 8];
        // Up to 256 bytes are never cut short; before the pool is ready at boot the clock must do.
        if getrandom(&mut seed, GetRandomFlags::NONBLOCK).is_ok() {
            return Self(u64::from_le_bytes(seed));
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(now.as_secs().rotate_left(32) ^ u64::from(now.subsec_nanos()) ^ u64::from(std::process::id()))
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A duration between half of `whole` and `whole`.
    pub fn jitter(&mut self, whole: Duration) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "53 random bits are plenty")]
        let share = (self.bits() >> 11) as f64 / (1_u64 << 53) as f64;
        whole.mul_f64(0.5 + share / 2.0)
    }
}

/// Waits between tries that double up to a limit, each shortened at random by up to a half so that
/// many nodes do not come back in step.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    next: Duration,
    random: Random,
}

impl Backoff {
    /// Begins with 100 ms and doubles up to `limit`.
    #[must_use]
    pub const fn up_to(limit: Duration, random: Random) -> Self {
        let first = Duration::from_millis(100);
        Self { first, limit, next: first, random }
    }

    /// How long to wait before the next try.
    pub fn wait(&mut self) -> Duration {
        let whole = self.next.min(self.limit);
        self.next = whole.saturating_mul(2);
        self.random.jitter(whole)
    }

    /// A try succeeded: the next wait is the first one again.
    pub const fn reset(&mut self) {
        self.next = self.first;
    }
}

/// Remembers what was said last, so that a state which lasts is logged once.
#[derive(Clone, Debug, Default)]
pub struct OnChange(Option<String>);

impl OnChange {
    /// `text` differs from what was said last: say it now.
    pub fn is_new(&mut self, text: &str) -> bool {
        let new = self.0.as_deref() != Some(text);
        if new {
            self.0 = Some(text.to_owned());
        }
        new
    }

    /// The state is over. Whether anything had been said about it.
    pub fn clear(&mut self) -> bool {
        self.0.take().is_some()
    }

    /// What was said last, while the state lasts.
    #[must_use]
    pub fn last(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_never_fall_below_half() {
        let mut backoff = Backoff::up_to(Duration::from_millis(500), Random::seeded(7));
        for whole in [100, 200, 400, 500, 500, 500] {
            let wait = backoff.wait();
            assert!(
                wait >= Duration::from_millis(whole) / 2 && wait <= Duration::from_millis(whole),
                "{wait:?}"
            );
        }
        backoff.reset();
        assert!(backoff.wait() <= Duration::from_millis(100));
    }

    #[test]
    fn the_same_seed_gives_the_same_waits_and_another_gives_others() {
        let waits = |seed| {
            let mut backoff = Backoff::up_to(Duration::from_secs(5), Random::seeded(seed));
            (0..8).map(|_| backoff.wait()).collect::<Vec<_>>()
        };
        assert_eq!(waits(1), waits(1));
        assert_ne!(waits(1), waits(2));
        assert_ne!(Random::from_system().bits(), Random::from_system().bits());
    }

    #[test]
    fn a_lasting_state_is_said_once() {
        let mut said = OnChange::default();
        assert!(said.is_new("etcd is away"));
        assert!(!said.is_new("etcd is away"));
        assert!(said.is_new("its certificate does not match"));
        assert_eq!(said.last(), Some("its certificate does not match"));
        assert!(said.clear());
        assert!(!said.clear());
        assert!(said.is_new("its certificate does not match"));
    }
}

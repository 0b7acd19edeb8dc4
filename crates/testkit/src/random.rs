//! Random numbers that a failed test can be repeated with.

use std::env;
use std::time::{Duration, SystemTime};

/// A small generator (SplitMix64). Its seed is printed, and taken from `WEFT_SEED` where that is set.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Seeds it from `WEFT_SEED`, else from the clock, and prints the seed.
    #[must_use]
    pub fn printed() -> Self {
        let now = || SystemTime::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_micros() as u64);
        let seed = env::var("WEFT_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(now);
        println!("WEFT_SEED={seed} repeats this run");
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A time below `limit`, in steps of a microsecond.
    pub fn below(&mut self, limit: Duration) -> Duration {
        let micros = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX).max(1);
        Duration::from_micros(self.number() % micros)
    }
}

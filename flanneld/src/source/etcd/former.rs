//! Leases of a store that was emptied: their nodes are still there, and about to write them again.

use std::{collections::BTreeMap, time::Duration};

use overlay_core::lease::RawLease;
use tokio::time::Instant;

/// How long a node has to write its lease again before its peers take it for gone.
const PATIENCE: Duration = Duration::from_secs(600);

/// What the store held before it was emptied, as far as it has not come back.
#[derive(Debug, Default)]
pub(super) struct Former {
    leases: BTreeMap<String, RawLease>,
    until: Option<Instant>,
}

impl Former {
    /// The store that held `leases` is no more; `own` is ours to write again.
    pub(super) fn remember(&mut self, leases: &BTreeMap<String, RawLease>, own: &str) {
        let others = leases.values().filter(|lease| lease.key != own).cloned();
        // Whoever holds such a subnet in the new store is the older one.
        self.leases.extend(others.map(|lease| (lease.key.clone(), RawLease { created: i64::MAX, ..lease })));
        self.until = Some(Instant::now() + PATIENCE);
    }

    /// Those that have neither come back among `present` nor outstayed their time.
    pub(super) fn missing(
        &mut self,
        present: &BTreeMap<String, RawLease>,
    ) -> impl Iterator<Item = &RawLease> {
        if self.until.is_some_and(|until| until <= Instant::now()) {
            self.leases.clear();
        }
        self.leases.retain(|key, _| !present.contains_key(key));
        if self.leases.is_empty() {
            self.until = None;
        }
        self.leases.values()
    }

    /// When those that have not come back are gone.
    pub(super) const fn until(&self) -> Option<Instant> {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leases(keys: &[&str]) -> BTreeMap<String, RawLease> {
        let lease = |key: &&str| {
            let value = String::new();
            let lease = RawLease { key: (*key).to_owned(), value, created: 5, modified: 5, ttl_lease: 7 };
            ((*key).to_owned(), lease)
        };
        keys.iter().map(lease).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_of_an_emptied_store_stays_until_it_is_back_or_out_of_time() {
        let mut former = Former::default();
        former.remember(&leases(&["10.5.1.0-24", "10.5.2.0-24", "10.5.3.0-24"]), "10.5.1.0-24");
        let mut missing = |present: &[&str]| -> Vec<String> {
            former.missing(&leases(present)).map(|lease| lease.key.clone()).collect()
        };
        assert_eq!(missing(&["10.5.1.0-24"]), ["10.5.2.0-24", "10.5.3.0-24"]);
        assert_eq!(missing(&["10.5.2.0-24"]), ["10.5.3.0-24"]);
        assert_eq!(missing(&[]), ["10.5.3.0-24"], "a lease that came back and ended is gone");
        tokio::time::advance(PATIENCE).await;
        assert_eq!(missing(&[]), [""; 0]);
        assert_eq!(former.until(), None);
    }
}

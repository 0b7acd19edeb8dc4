//! Getting a lease and keeping it.

use std::{net::Ipv4Addr, time::Duration};

use netmodel::Subnet;
use overlay_core::{
    host::{NodeFacts, NodeIdentity},
    lease::{Choice, Claim, Known, NoSubnet, RawLease, choose},
    wire::{LeaseKey, LeaseValue, NodeRecord},
};
use tokio::time::{Instant, sleep};

use super::{
    AWAY, End, Fatal, GATHER, MISSING, Session,
    held::{Held, Standing, Term, older_overlap},
    pick,
    store::{Condition, Snapshot, Write},
};
use crate::source::facts;

/// A race for a subnet that is lost this often is worth a line.
const MANY_RACES: u32 = 10;

/// A subnet that we held and lost.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    subnet: Subnet,
    /// What happened, as the end of "the lease of 10.5.3.0/24 ...".
    how: String,
}

impl Session {
    /// Makes sure that this node holds a lease which says what it should.
    pub(super) async fn hold(&mut self) -> Result<(), End> {
        let facts = facts(&mut self.ports).await;
        if let Some(held) = &mut self.held {
            let subnet = held.lease.subnet;
            let how = match held.standing(&self.snapshot) {
                Standing::Ours => None,
                Standing::Rewritten { modified, ttl_lease } => {
                    held.rewritten(modified, ttl_lease);
                    None
                }
                Standing::Gone => Some("was deleted or ended".to_owned()),
                Standing::Taken { by } => Some(self.taken(by, &facts).await),
            };
            if let Some(how) = how {
                tracing::info!(%subnet, "the lease {how}");
                self.lost = Some(Lost { subnet, how });
                self.held = None;
            }
        }
        match self.held.clone() {
            Some(held) => self.keep(held, &facts).await,
            None => self.acquire(&facts).await,
        }
    }

    /// Another node took our lease: it stays theirs. What happened, as the end of "the lease ...".
    async fn taken(&mut self, by: Option<Ipv4Addr>, facts: &NodeFacts) -> String {
        // Whoever has our public address as well can't be told from us; then this is no race without end.
        if self.taken_at.replace(Instant::now()).is_some_and(|before| before.elapsed() < MISSING) {
            sleep(self.random.jitter(MISSING)).await;
        }
        let Some(by) = by else { return "was taken by an unknown node".to_owned() };
        self.rivals.insert(by);
        let (us, me) = (facts.identity, facts.public_ip);
        let is_twin = |(id, record): &(_, NodeRecord)| *id == us && record.public_ip == by && by != me;
        if self.snapshot.records.iter().any(is_twin) {
            let same = "have one identity (/etc/machine-id and Ethernet address); give each its own";
            return format!("was taken by {by}: that machine and this one, {me}, {same}");
        }
        format!("was taken by {by}")
    }

    /// Writes the lease again where it is due, or where it says something that is no longer so.
    async fn keep(&mut self, mut held: Held, facts: &NodeFacts) -> Result<(), End> {
        let address = held.lease.public_ip;
        held.update(facts);
        let changed = held.differs(&self.snapshot);
        if !changed && !held.is_due() {
            return Ok(());
        }
        let condition = Condition::Unchanged(held.modified);
        let reservation = held.ttl_lease == 0;
        let granted = held.granted;
        let subnet = held.lease.subnet;
        if !self.write(held, condition, reservation, facts.identity).await? {
            return Err(End::Again);
        }
        if changed && address == facts.public_ip {
            tracing::info!(%subnet, "wrote the lease again over an older one of this node");
        } else if changed {
            tracing::info!(%subnet, from = %address, to = %facts.public_ip, "told the others this node's new address");
        } else {
            tracing::debug!(%subnet, "renewed the lease");
        }
        if granted != 0 {
            self.store.revoke(granted).await;
        }
        Ok(())
    }

    /// Takes a subnet, whichever is left for us.
    async fn acquire(&mut self, facts: &NodeFacts) -> Result<(), End> {
        for race in 1.. {
            if self.must_settle().await? {
                continue;
            }
            let choice = self.choose(facts)?;
            if choice.claim == Claim::Create && self.lost.is_none() && self.snapshot.settling {
                self.wait_for_holders().await?;
                continue;
            }
            if self.claim(&choice, facts).await? {
                return Ok(());
            }
            if race % MANY_RACES == 0 {
                tracing::warn!(race, "lost race after race for a subnet; trying on");
            }
            // Many nodes that start together race for a moment; whatever lasts longer is no race.
            sleep(self.random.jitter(if race < MANY_RACES { GATHER } else { AWAY })).await;
        }
        Err(End::Again)
    }

    /// Sees to it that the store has Weft's mark. Whether something has changed.
    ///
    /// Holders mark an emptied store before they write their leases again. So leases in a store without
    /// the mark are flannel's, which never writes one again: nobody is to be waited for.
    async fn must_settle(&mut self) -> Result<bool, End> {
        if self.snapshot.mark.is_some() {
            return Ok(false);
        }
        let settle = self.snapshot.leases.is_empty().then(|| seconds(self.times.settle));
        let snapshot = self.store.mark(self.random.bits(), settle).await?;
        self.learn(snapshot);
        Ok(true)
    }

    /// Waits while those who held leases in an emptied store may write them again.
    async fn wait_for_holders(&mut self) -> Result<(), End> {
        tracing::info!("etcd is new to Weft: waiting a moment for nodes that may hold leases");
        // A change of etcd's leader prolongs what is to end: not for ever.
        let deadline = Instant::now() + self.times.settle.saturating_mul(3);
        while self.snapshot.settling && Instant::now() < deadline {
            sleep(self.random.jitter(self.times.settle / 6)).await;
            let snapshot = self.store.list().await?;
            self.learn(snapshot);
        }
        self.snapshot.settling = false;
        Ok(())
    }

    fn choose(&mut self, facts: &NodeFacts) -> Result<Choice, End> {
        let Some((_, config)) = &self.config else { return Err(End::Again) };
        let present = &self.snapshot.leases;
        let mut leases: Vec<RawLease> = present.values().cloned().collect();
        // What peers held before the store was emptied is theirs to take again, and never ours to write.
        let former = self.former.missing(present);
        leases.extend(former.map(|lease| RawLease { value: String::new(), ..lease.clone() }));
        let mut facts = facts.clone();
        if let Some(lost) = &self.lost {
            facts.previous = Some(lost.subnet);
        }
        let known = Known { leases: &leases, records: &self.snapshot.records, rivals: &self.rivals };
        choose(known, config, &facts, &mut |below| pick(&mut self.random, below)).map_err(|none| match none {
            NoSubnet::AllOverlap { .. } if self.lost.is_none() => End::Fatal(Fatal::NoSubnet(none)),
            none => End::Missing(none.to_string()),
        })
    }

    /// Carries out a choice. Whether the subnet is ours now.
    async fn claim(&mut self, choice: &Choice, facts: &NodeFacts) -> Result<bool, End> {
        let held = Held::new(choice.lease);
        let (condition, reservation) = match choice.claim {
            Claim::Create => (Condition::Absent, false),
            Claim::Replace { modified, reservation } => {
                (condition(&self.snapshot, &held.key, modified), reservation)
            }
        };
        let key = held.key.clone();
        if !self.write(held, condition, reservation, facts.identity).await? {
            return Ok(false);
        }
        let Some((_, config)) = &self.config else { return Err(End::Again) };
        let older = older_overlap(&self.snapshot, &key, config.network);
        if let (Claim::Create, Some(older)) = (choice.claim, older) {
            tracing::warn!(subnet = %choice.lease.subnet, older = older.key, "another lease overlaps ours and is older; giving ours back");
            if let Some(ours) = self.snapshot.leases.get(&key).cloned() {
                self.held = None;
                let snapshot = self.store.remove(&ours).await?;
                self.learn(snapshot);
            }
            return Ok(false);
        }
        self.announce(choice, facts);
        // A reservation is the operator's, not ours to remove.
        for stale in choice.stale.iter().filter(|lease| lease.ttl_lease != 0 && lease.key != key) {
            tracing::info!(lease = stale.key, "removing an earlier lease of this node");
            let snapshot = self.store.remove(stale).await?;
            self.learn(snapshot);
        }
        Ok(true)
    }

    /// Logs, and notes, which lease we have now and why.
    fn announce(&mut self, choice: &Choice, facts: &NodeFacts) {
        let subnet = choice.lease.subnet;
        let Some(lost) = self.lost.take().or_else(|| lost_while_down(&self.snapshot, subnet, facts)) else {
            tracing::info!(%subnet, why = %choice.reason, "leased a subnet");
            return;
        };
        let Lost { subnet: before, how } = lost;
        let note = if before == subnet {
            format!("the lease of {before} {how}; took it again")
        } else {
            format!("the lease of {before} {how}; leased {subnet} instead: running pods keep their addresses")
        };
        tracing::warn!("{note}");
        self.note = Some(note);
    }

    /// An etcd lease to write with, and the seconds that it lasts: the one that is left of a write that failed,
    /// unless half of it is gone. So what fails again and again leaves one in etcd, and none is given back
    /// that our key may hang on because an answer got lost.
    async fn term(&mut self) -> Result<(i64, u64), End> {
        let lasts = seconds(self.times.lease);
        if let Some(spare) = self.spare {
            let left = self.store.left(spare).await?;
            if left > lasts / 2 {
                return Ok((spare, left.unsigned_abs()));
            }
        }
        let (ttl_lease, lasts) = self.store.grant(lasts).await?;
        self.spare = Some(ttl_lease);
        Ok((ttl_lease, lasts))
    }

    /// Writes a lease. Whether it was written; if so, it is the one that we hold.
    async fn write(
        &mut self,
        mut held: Held,
        condition: Condition,
        reservation: bool,
        identity: NodeIdentity,
    ) -> Result<bool, End> {
        let (ttl_lease, lasts) = if reservation { (0, 0) } else { self.term().await? };
        let term = Term { ttl_lease, lasts: Duration::from_secs(lasts), margin: self.margin };
        held.writing();
        let write = Write {
            key: held.key.clone(),
            value: held.lease.value(),
            ttl_lease,
            condition,
            record: (identity, held.lease.record()),
            outdated: self.snapshot.others_of(held.lease.subnet, identity),
        };
        let holds_already = held.modified != 0;
        if holds_already {
            // Should the answer get lost, both the old value and the new one are ours.
            self.held = Some(held.clone());
        }
        let outcome = self.store.write(&write).await?;
        self.learn(outcome.snapshot);
        let there = self.snapshot.leases.get(&held.key);
        // Where an answer got lost and another member was asked again, the first time may have done it.
        let is_it =
            |lease: &RawLease| ttl_lease != 0 && lease.ttl_lease == ttl_lease && lease.value == write.value;
        if !outcome.written && !there.is_some_and(is_it) {
            return Ok(false);
        }
        held.wrote(there.map_or(0, |lease| lease.modified), term);
        if !reservation {
            self.spare = None;
        }
        self.held = Some(held);
        Ok(true)
    }
}

/// The subnet of `subnet.env`, if another node holds it now.
fn lost_while_down(snapshot: &Snapshot, own: Subnet, facts: &NodeFacts) -> Option<Lost> {
    let subnet = facts.previous.filter(|previous| *previous != own)?;
    let is_it = |lease: &&RawLease| lease.key.parse::<LeaseKey>().is_ok_and(|key| key.subnet == subnet);
    let by = snapshot.leases.values().find(is_it)?.value.parse::<LeaseValue>().map(|value| value.public_ip);
    if by.as_ref() == Ok(&facts.public_ip) {
        // It is ours, and can't be used any more.
        return None;
    }
    let by = by.map_or_else(|_| "an unknown node".to_owned(), |by| by.to_string());
    Some(Lost { subnet, how: format!("was taken by {by} while flanneld was not running") })
}

/// What must hold so that the lease which was last written at `modified` is replaced by one at `key`.
fn condition(snapshot: &Snapshot, key: &str, modified: i64) -> Condition {
    let subnet = |key: &str| key.parse::<LeaseKey>().map(|key| key.subnet).ok();
    let from = snapshot
        .leases
        .values()
        .find(|lease| lease.modified == modified && subnet(&lease.key) == subnet(key));
    match from {
        Some(lease) if lease.key != key => Condition::Renamed { from: lease.key.clone(), modified },
        _ => Condition::Unchanged(modified),
    }
}

/// etcd counts in whole seconds.
fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

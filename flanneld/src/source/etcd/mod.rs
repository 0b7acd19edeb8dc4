//! Leases in etcd, in flannel's format.
//!
//! ```text
//! pass:  read everything --> configuration --> hold a lease --> publish --> follow the watch
//!          ^ anything that does not fit ends the pass, and the next one begins |
//!          +-------------------------------------------------------------------+
//! ```
//!
//! A pass looks at the whole state, whatever ended the one before. Only the watch is resumed where it
//! broke off, if etcd's history is still the one that we know.
//!
//! **A store that was emptied.** A node that holds a lease writes it again as soon as it sees the empty
//! store, so that no subnet changes hands. A node without one waits: whoever comes first to a store
//! without Weft's mark leaves one that lasts for a few seconds ([`Times::settle`]), and as long as it is
//! there, only holders write leases that were not there before. Meanwhile the peers that the store knew
//! before stay peers (module `former`), so that no packet is lost.

mod advice;
mod connection;
mod failure;
mod former;
mod held;
mod holding;
mod store;
mod version2;

use std::{collections::BTreeSet, convert::Infallible, net::Ipv4Addr, sync::Arc, time::Duration};

use daemon::{Backoff, OnChange, Random};
use overlay_core::{
    config::Config,
    host::NodeFacts,
    lease::{Assignment, Known, RawLease, SourceState, View, choose},
    wire::LeaseValue,
};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use self::{
    connection::Connection,
    failure::Failure,
    former::Former,
    held::{Held, Standing},
    holding::Lost,
    store::{Broken, Change, Events, Snapshot, Store},
};
use super::{Fatal, Ports, changed};
use crate::flags::EtcdSettings;

/// Durations that only tests change.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// How long a lease lasts: 24 h, flannel's number.
    pub lease: Duration,
    /// How long a node without a lease waits in a store that it finds without Weft's mark. Holders come
    /// back within a second or so after etcd does.
    pub settle: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self { lease: Duration::from_secs(86400), settle: Duration::from_secs(3) }
    }
}

/// Longest wait before etcd is asked again while it is away.
const AWAY: Duration = Duration::from_secs(1);
/// Longest wait before the configuration or a free subnet is looked for again.
const MISSING: Duration = Duration::from_secs(2);
/// A watch that breaks off as soon as it is open, this often in a row, is worth a line and a wait.
const SHORT_WATCHES: u32 = 2;
/// Changes that come within this time are published together.
const GATHER: Duration = Duration::from_millis(10);
/// One node's dealings with etcd.
#[derive(Debug)]
pub struct Session {
    store: Store,
    times: Times,
    margin: Duration,
    ports: Ports,
    random: Random,
    backoff: Backoff,
    /// What etcd holds, as far as it was read.
    snapshot: Snapshot,
    /// `snapshot` was read by this process and has only been added to since.
    is_current: bool,
    /// Last revision that a watch has delivered, or that a read included.
    seen: i64,
    config: Option<(String, Config)>,
    held: Option<Held>,
    /// An etcd lease of ours that a write may or may not have used.
    spare: Option<i64>,
    /// A lease that we held and lost.
    lost: Option<Lost>,
    /// Addresses that took a lease from us, and when one did so last.
    rivals: BTreeSet<Ipv4Addr>,
    taken_at: Option<Instant>,
    /// What the store held before it was emptied.
    former: Former,
    note: Option<String>,
    said: OnChange,
    /// This node's address when it was last looked at.
    address: Option<Ipv4Addr>,
    /// Watches in a row that broke off as soon as they were open.
    short_watches: u32,
}

/// Why a pass ended.
#[derive(Debug)]
enum End {
    /// Look again at once.
    Again,
    /// etcd failed us.
    Failed(Failure),
    /// Something is missing; the text says what, and what to do.
    Missing(String),
    /// No waiting helps.
    Fatal(Fatal),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Session {
    /// Nothing is connected until [`run`](Self::run).
    #[must_use]
    pub fn new(settings: &EtcdSettings, times: Times, ports: Ports) -> Self {
        let random = Random::from_system();
        Self {
            margin: settings.renew_margin,
            store: Store::new(Connection::new(settings.clone()), &settings.prefix),
            times,
            ports,
            backoff: Backoff::up_to(AWAY, random.clone()),
            random,
            snapshot: Snapshot::default(),
            is_current: false,
            seen: 0,
            config: None,
            held: None,
            spare: None,
            lost: None,
            rivals: BTreeSet::new(),
            taken_at: None,
            former: Former::default(),
            note: None,
            said: OnChange::default(),
            address: None,
            short_watches: 0,
        }
    }

    /// Leases a subnet, keeps it, and tells what all others hold, for ever.
    pub async fn run(mut self) -> Fatal {
        loop {
            let wait = match self.pass().await {
                Err(End::Fatal(fatal)) => return fatal,
                Err(End::Again) => Duration::ZERO,
                Err(End::Failed(failure)) => {
                    self.trouble(&failure.to_string(), false);
                    self.backoff.wait()
                }
                Err(End::Missing(what)) => {
                    self.trouble(&what, true);
                    self.random.jitter(MISSING)
                }
            };
            // A change of this node, such as an address that comes up, ends the wait.
            tokio::select! {
                () = sleep(wait) => {}
                () = changed(&mut self.ports) => {}
            }
        }
    }

    /// One pass; it ends when something does not fit.
    async fn pass(&mut self) -> Result<Infallible, End> {
        self.moved();
        self.refresh().await?;
        self.configure().await?;
        self.hold().await?;
        self.publish();
        let events = self.store.watch(self.seen).await?;
        self.follow(events).await
    }

    /// Makes `snapshot` and `seen` fit for a watch: a look at our own key tells whether this is the history
    /// that we know; if not, all is read anew.
    async fn refresh(&mut self) -> Result<(), End> {
        let mut same = true;
        let held =
            self.held.as_ref().filter(|_| self.is_current).map(|held| (held.key.clone(), held.modified));
        if let Some((key, modified)) = &held {
            let (revision, cluster, lease) = self.store.look(key).await?;
            // A key that is older than our own write tells of a store that went back and has caught up since.
            let written = lease.map(|lease| lease.modified);
            same = cluster == self.snapshot.cluster
                && revision >= self.seen
                && written.is_none_or(|written| written >= *modified);
            if same && written == Some(*modified) {
                return Ok(());
            }
        }
        let snapshot = self.store.list().await?;
        // A new store whose revisions have overtaken the old one's has another mark, or none.
        same &= self.snapshot.mark.is_none() || self.snapshot.mark == snapshot.mark;
        if let (false, Some((key, _))) = (same, &held) {
            let (revision, before) = (snapshot.revision, self.seen);
            tracing::warn!(revision, before, "etcd is not the store that it was; reading it anew");
            self.former.remember(&self.snapshot.leases, key);
            let identity = self.ports.facts.borrow().as_ref().map(|facts| facts.identity);
            if let (Some(held), Some(identity)) = (&mut self.held, identity) {
                held.recognize(&snapshot, identity, &self.rivals);
            }
        }
        self.learn(snapshot);
        Ok(())
    }

    /// Takes in everything as it is at one revision.
    fn learn(&mut self, snapshot: Snapshot) {
        self.seen = snapshot.revision;
        self.snapshot = snapshot;
        self.is_current = true;
    }

    /// The configuration that we work with: the first valid one.
    async fn configure(&mut self) -> Result<(), End> {
        if self.config.is_some() {
            return Ok(());
        }
        let key = self.store.keys.config();
        let Some(text) = self.snapshot.config.clone() else {
            return Err(End::Missing(self.store.no_config().await));
        };
        let config =
            Config::parse(&text).map_err(|error| End::Missing(format!("{error} (at {key} in etcd)")))?;
        let udp = |lease: &RawLease| {
            lease.value.parse::<LeaseValue>().is_ok_and(|value| value.backend_type.is_empty())
        };
        let udp_leases = self.snapshot.leases.values().filter(|lease| udp(lease)).count();
        self.ports.hold(&config).map_err(End::Fatal)?;
        for note in &config.notes {
            tracing::warn!("{note}");
        }
        match config.backend_note(udp_leases) {
            Some(note) if udp_leases > 0 => tracing::warn!("{note}"),
            Some(note) => tracing::info!("{note}"),
            None => {}
        }
        self.config = Some((text, config));
        Ok(())
    }

    /// Follows changes until something does not fit.
    async fn follow(&mut self, mut events: Events) -> Result<Infallible, End> {
        let opened = Instant::now();
        loop {
            let renew = at(self.held.as_ref().and_then(Held::look_at));
            let forget = at(self.former.until());
            tokio::select! {
                changes = events.next() => self.gather(&mut events, changes, opened).await?,
                () = renew => self.hold().await?,
                () = forget => {}
                () = changed(&mut self.ports) => {
                    if self.moved() {
                        // The watch hangs on the old address as well.
                        return Err(End::Again);
                    }
                    self.hold().await?;
                }
            }
            self.publish();
        }
    }

    /// This node has another address than it had when this was last asked: what is connected from the old
    /// one is dead, and nobody will say so.
    fn moved(&mut self) -> bool {
        let Some(address) = self.ports.facts.borrow().as_ref().map(|facts| facts.underlay.address) else {
            return false;
        };
        let before = self.address.replace(address);
        let moved = before.is_some_and(|before| before != address);
        if moved {
            self.store.disconnect();
        }
        moved
    }

    /// Takes in changes, and those that come right after them.
    async fn gather(
        &mut self,
        events: &mut Events,
        mut changes: Result<Vec<Change>, Broken>,
        opened: Instant,
    ) -> Result<(), End> {
        let deadline = Instant::now() + GATHER;
        loop {
            match changes {
                Ok(changes) => self.apply(changes)?,
                Err(broken) => return Err(self.broke(broken, opened)),
            }
            match timeout_at(deadline, events.next()).await {
                Ok(more) => changes = more,
                Err(_) => return Ok(()),
            }
        }
    }

    /// What to do about a watch that broke off.
    fn broke(&mut self, broken: Broken, opened: Instant) -> End {
        let endpoint = self.store.endpoint().to_owned();
        let cause = match broken {
            Broken::Compacted => {
                tracing::info!(endpoint, "etcd has compacted what came meanwhile; reading everything anew");
                self.is_current = false;
                return End::Again;
            }
            Broken::Away(cause) => cause,
        };
        self.store.broke();
        tracing::debug!(endpoint, cause, "the watch broke off; opening it anew");
        if opened.elapsed() >= AWAY {
            self.short_watches = 0;
            self.backoff.reset();
        }
        self.short_watches += 1;
        if self.short_watches > SHORT_WATCHES {
            return End::Failed(Failure::Refused { endpoint, cause });
        }
        // Any other member will do; if there is none, the next call says so.
        End::Again
    }

    /// Takes in changes. A change of our own lease that is not ours ends the pass.
    fn apply(&mut self, changes: Vec<Change>) -> Result<(), End> {
        let known = self.snapshot.revision;
        for change in changes.into_iter().filter(|change| change.revision() > known) {
            self.seen = self.seen.max(change.revision());
            self.snapshot.apply(change);
        }
        let Some(held) = &self.held else { return Err(End::Again) };
        if held.standing(&self.snapshot) == Standing::Ours {
            return Ok(());
        }
        self.is_current = false;
        Err(End::Again)
    }

    /// Tells the node's side what is known.
    fn publish(&mut self) {
        let (Some((text, config)), Some(held)) = (&self.config, &self.held) else { return };
        let present = &self.snapshot.leases;
        let leases = present.values().chain(self.former.missing(present)).cloned().collect();
        let problem = config_changed(&self.store.keys.config(), text, self.snapshot.config.as_deref());
        match &problem {
            Some(problem) if self.said.is_new(problem) => tracing::warn!("{problem}"),
            None if self.said.clear() => {
                tracing::info!(
                    endpoint = self.store.endpoint(),
                    "etcd answers, and what it says can be used"
                );
            }
            _ => {}
        }
        let assignment =
            Assignment { config: config.clone(), own: held.lease, note: self.note.clone(), leases };
        let view =
            View { assignment: Some(Arc::new(assignment)), state: SourceState { connected: true, problem } };
        self.ports.view.send_if_modified(|old| {
            let new = *old != view;
            *old = view;
            new
        });
    }

    /// Says what is wrong, once, and whether etcd answers.
    fn trouble(&mut self, what: &str, connected: bool) {
        if self.said.is_new(what) {
            tracing::warn!("{what}; trying again");
        }
        let state = SourceState { connected, problem: Some(what.to_owned()) };
        self.ports.view.send_if_modified(|view| {
            let new = view.state != state;
            view.state = state;
            new
        });
    }
}

/// What a first pass would choose, read only.
///
/// # Errors
/// One sentence with what is wrong.
pub(super) async fn look(settings: EtcdSettings, facts: &NodeFacts) -> Result<Assignment, String> {
    let mut store = Store::new(Connection::new(settings.clone()), &settings.prefix);
    let snapshot = store.list().await.map_err(|failure| failure.to_string())?;
    let key = store.keys.config();
    let Some(text) = &snapshot.config else { return Err(store.no_config().await) };
    let config = Config::parse(text).map_err(|error| format!("{error} (at {key} in etcd)"))?;
    let leases: Vec<RawLease> = snapshot.leases.values().cloned().collect();
    let known = Known { leases: &leases, records: &snapshot.records, rivals: &BTreeSet::new() };
    let mut random = Random::from_system();
    let choice =
        choose(known, &config, facts, &mut |below| pick(&mut random, below)).map_err(|e| e.to_string())?;
    Ok(Assignment { config, own: choice.lease, note: None, leases: leases.into() })
}

/// What to say of a configuration that is not the one from the start any more.
fn config_changed(key: &str, used: &str, now: Option<&str>) -> Option<String> {
    let stays = "the one that was read at the start stays in use";
    match now {
        Some(now) if now == used => None,
        None => Some(format!("the configuration at {key} is gone; {stays}")),
        Some(now) => Some(match Config::parse(now) {
            Ok(_) => format!("the configuration at {key} has changed; {stays} until flanneld is restarted"),
            Err(error) => format!("{error} (at {key} in etcd); {stays}"),
        }),
    }
}

/// Waits for a moment that may never come.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// A number below `below`.
fn pick(random: &mut Random, below: usize) -> usize {
    let below = u64::try_from(below.max(1)).unwrap_or(u64::MAX);
    usize::try_from(random.bits() % below).unwrap_or(0)
}

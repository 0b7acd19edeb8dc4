//! The loop: one plain thread that owns the kernel's sockets. Whatever woke it, it brings the whole
//! overlay to where it should be.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use daemon::{Backoff, OnChange, Random, health::Health};
use linux::netlink::RouteSocket;
use overlay_core::{
    desired::{Skipped, desired},
    host::{NodeFacts, Overlap},
    lease::{Assignment, View},
    overlay::Overlay,
};
use tokio::sync::watch;

use crate::{
    firewall,
    flags::Settings,
    hold::{Fatal, Hold},
    linux::Scope,
    node,
    report::Reporter,
    wake::{Inbox, Interest, Pending},
};

/// How often everything is read again, though no event told of a change.
const SLOW: Duration = Duration::from_secs(60);
/// How often settings are looked at, which send no events.
const SETTINGS: Duration = Duration::from_secs(5);
/// Passes within a second that change something, before each further one waits a moment: somebody undoes
/// what we do as soon as it is done.
const MANY_PASSES: u32 = 20;
/// That moment.
const MOMENT: Duration = Duration::from_millis(50);
/// Events about this host's addresses and routes come in bursts.
const BURST: Duration = Duration::from_millis(100);

/// What connects the loop to the others.
#[derive(Debug)]
pub struct Links {
    /// What wakes it.
    pub inbox: Arc<Inbox>,
    /// Where it says what it knows of this node.
    pub facts: watch::Sender<Option<NodeFacts>>,
    /// What the source knows.
    pub views: watch::Receiver<View>,
    /// What the kernel calls the changes that we make in the firewall.
    pub nft_port: Arc<AtomicU32>,
    /// What health checks hear.
    pub health: Health,
}

/// Where we want to get, and what it was made of.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) assignment: Arc<Assignment>,
    facts: NodeFacts,
    pub(crate) want: Overlay,
    pub(crate) skipped: Vec<Skipped>,
    overlaps: Vec<Overlap>,
}

impl Target {
    /// What follows from that assignment on this node.
    pub(crate) fn new(assignment: Arc<Assignment>, facts: NodeFacts, settings: &Settings) -> Self {
        let Assignment { config, own, leases, .. } = &*assignment;
        let (mut want, skipped) = desired(leases, config, own, &facts);
        if settings.blackhole_route {
            want.add_blackhole(own.subnet);
        }
        let overlaps = facts.overlaps(config, Some(own.subnet), &want);
        Self { assignment, facts, want, skipped, overlaps }
    }

    /// Which part of the kernel's state it is about.
    pub(crate) fn scope(&self) -> Scope {
        Scope::new(&self.assignment, &self.facts, &self.want)
    }
}

/// The loop.
#[derive(Debug)]
pub struct Loop {
    settings: Arc<Settings>,
    links: Links,
    socket: RouteSocket,
    facts: Option<NodeFacts>,
    target: Option<Target>,
    hold: Option<Hold>,
    reporter: Reporter,
    /// What is wrong with what this node holds in the kernel.
    overlay_trouble: Trouble,
    /// What is wrong with its way to other nodes.
    host_trouble: Trouble,
    warned: BTreeSet<String>,
    backoff: Backoff,
}

/// What is to be looked at.
#[derive(Clone, Copy, Debug)]
struct Clock {
    everything: Instant,
    settings: Instant,
    retry: Option<Instant>,
    host: Option<Instant>,
}

impl Clock {
    fn next(&self) -> Instant {
        let times = [Some(self.everything), Some(self.settings), self.retry, self.host];
        times.into_iter().flatten().min().unwrap_or(self.settings)
    }
}

impl Loop {
    /// To be made on the thread that will run it.
    ///
    /// # Errors
    /// Netlink is missing.
    pub fn new(settings: Arc<Settings>, links: Links) -> Result<Self, Fatal> {
        if let Err(error) = node::previous(&settings.subnet_file) {
            tracing::warn!("{}: {error}; going on without it", settings.subnet_file.display());
        }
        Ok(Self {
            reporter: Reporter::new(&settings, links.health.clone()),
            settings,
            links,
            socket: RouteSocket::open().map_err(Fatal::Netlink)?,
            facts: None,
            target: None,
            hold: None,
            overlay_trouble: Trouble::default(),
            host_trouble: Trouble::default(),
            warned: BTreeSet::new(),
            backoff: Backoff::up_to(Duration::from_secs(5), Random::from_system()),
        })
    }

    /// Works until the inbox says stop. What is in the kernel stays.
    ///
    /// # Errors
    /// See [`Fatal`].
    pub fn run(mut self) -> Result<(), Fatal> {
        let start = Instant::now();
        let mut pace = Pace { since: start, passes: 0 };
        let mut clock = Clock { everything: start, settings: start, retry: None, host: Some(start) };
        loop {
            let mut pending = self.links.inbox.take(clock.next());
            if pending.stop {
                return Ok(());
            }
            let now = Instant::now();
            if pending.host && clock.host.is_none() {
                clock.host = Some(now + BURST);
            }
            if clock.everything <= now {
                clock.everything = now + SLOW;
                (pending.everything, pending.firewall) = (true, true);
                clock.host = Some(now);
            }
            if clock.settings <= now {
                clock.settings = now + SETTINGS;
                self.look_at_settings();
            }
            if clock.host.is_some_and(|at| at <= now) {
                clock.host = None;
                self.look_at_host();
            }
            let done = self.pass(&pending)?;
            if self.hold.as_ref().is_some_and(Hold::has_changed) && pace.is_too_fast(now) {
                thread::sleep(MOMENT);
            }
            let failed = !done || self.facts.is_none();
            clock.retry = failed.then(|| now + self.backoff.wait());
            if self.facts.is_none() {
                clock.host = clock.retry;
            }
            if !failed {
                self.backoff.reset();
            }
        }
    }

    /// Brings the kernel to where the source wants it. Whether all of it was done.
    fn pass(&mut self, pending: &Pending) -> Result<bool, Fatal> {
        let view = self.links.views.borrow_and_update().clone();
        let had_device = self.hold.is_some();
        self.aim(&view)?;
        if !had_device && self.hold.is_some() {
            // The status names the device before it is made: so no end of this process leaves one that nobody knows.
            self.report(&view);
        }
        let done = match (&self.target, &mut self.hold) {
            (Some(target), Some(hold)) => {
                hold.take_note(pending);
                let failures = hold.bring_about(&target.want)?;
                self.overlay_trouble.judge(&failures)
            }
            _ => true,
        };
        self.report(&view);
        Ok(done)
    }

    /// Works out where to get, if that has changed.
    fn aim(&mut self, view: &View) -> Result<(), Fatal> {
        let (Some(assignment), Some(facts)) = (&view.assignment, &self.facts) else { return Ok(()) };
        let same = |target: &Target| Arc::ptr_eq(&target.assignment, assignment) && target.facts == *facts;
        if self.target.as_ref().is_some_and(same) {
            return Ok(());
        }
        let target = Target::new(Arc::clone(assignment), facts.clone(), &self.settings);
        let scope = target.scope();
        let hold = match &mut self.hold {
            Some(hold) => {
                hold.set_scope(scope);
                hold
            }
            None => {
                let earlier = self.reporter.before().devices_except(&scope.device);
                let hold = Hold::open(scope, firewall::wishes(&self.settings), earlier)?;
                self.links.nft_port.store(hold.nft_port(), Ordering::Relaxed);
                self.hold.insert(hold)
            }
        };
        hold.aim_firewall(assignment.own.subnet);
        self.target = Some(target);
        self.warn();
        Ok(())
    }

    /// Says once what is in the way of leases and subnets.
    fn warn(&mut self) {
        let Some(Target { skipped, overlaps, .. }) = &self.target else { return };
        let lines = skipped.iter().map(ToString::to_string).chain(overlaps.iter().map(ToString::to_string));
        let now: BTreeSet<String> = lines.collect();
        for line in now.difference(&self.warned) {
            tracing::warn!("{line}");
        }
        self.warned = now;
    }

    /// Reads what this host is, and tells the source if that has changed.
    fn look_at_host(&mut self) {
        let in_use = self.facts.as_ref().map(|facts| facts.underlay.address);
        match node::facts(&self.settings, in_use, &mut self.socket) {
            Ok(facts) => {
                self.host_trouble.judge(&[]);
                if self.facts.is_none() {
                    let node = &facts.underlay;
                    tracing::info!(interface = %node.name, address = %node.address, public_ip = %facts.public_ip, "found the way to other nodes");
                }
                self.facts = Some(facts.clone());
                self.links.facts.send_if_modified(|old| {
                    let new = old.as_ref() != Some(&facts);
                    *old = Some(facts);
                    new
                });
            }
            // What was known stays: the interface may come back.
            Err(error) => {
                self.host_trouble.judge(&[daemon::one_line(&error)]);
            }
        }
        self.watch();
    }

    /// Tells the monitors what to look at.
    fn watch(&self) {
        self.links.inbox.set_interest(Interest {
            device: self.hold.as_ref().and_then(Hold::index),
            underlay: self.facts.as_ref().map(|facts| facts.underlay.index),
            network: self.target.as_ref().map(|target| target.assignment.config.network),
        });
    }

    fn look_at_settings(&mut self) {
        if let Some(hold) = &mut self.hold {
            hold.look_at_settings();
        }
    }

    /// Tells everybody how it is.
    fn report(&mut self, view: &View) {
        self.watch();
        let Self { target, hold, facts, reporter, overlay_trouble, host_trouble, .. } = self;
        let problem = overlay_trouble.0.last().or(host_trouble.0.last()).map(str::to_owned);
        let up = hold.as_ref().zip(target.as_ref()).is_some_and(|(hold, target)| hold.is_up(&target.want));
        if let (Some(target), true) = (&*target, up) {
            reporter.write_subnet_file(&target.assignment, &target.facts);
        }
        reporter.status(|status| {
            status.problem = problem.or_else(|| view.state.problem.clone());
            status.source.connected = view.state.connected;
            status.set_facts(facts.as_ref());
            if let Some(target) = target {
                status.set_assignment(&target.assignment, &target.facts);
                status.set_overlay(&target.want, &target.skipped, &target.overlaps);
            }
            if let Some(hold) = hold {
                status.warnings.extend(hold.warnings());
                status.node.earlier = hold.earlier().to_vec();
            }
        });
    }
}

/// How often something is changed.
#[derive(Clone, Copy, Debug)]
struct Pace {
    since: Instant,
    passes: u32,
}

impl Pace {
    /// Counts a pass. Whether there were too many within the last second.
    fn is_too_fast(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) > Duration::from_secs(1) {
            *self = Self { since: now, passes: 0 };
        }
        self.passes += 1;
        self.passes > MANY_PASSES
    }
}

/// What is wrong, said once when it changes.
#[derive(Debug, Default)]
struct Trouble(OnChange);

impl Trouble {
    /// Takes in what failed. Whether nothing did.
    fn judge(&mut self, failures: &[String]) -> bool {
        let Some(first) = failures.first() else {
            if self.0.clear() {
                tracing::info!("what was wrong is right again");
            }
            return true;
        };
        let text = match failures.len() {
            1 => first.clone(),
            n => format!("{first} (and {} more)", n - 1),
        };
        if self.0.is_new(&text) {
            tracing::warn!("{text}; trying again");
        }
        false
    }
}

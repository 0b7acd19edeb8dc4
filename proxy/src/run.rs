//! The loop: whatever woke it, the kernel is brought to what the source wants.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::Context;
use daemon::{Backoff, OnChange, Random};
use netmodel::{NodeName, Subnet};
use proxy_core::{
    adopt::Found,
    delta,
    flows::Scope,
    state::State,
    tables::{Config, Front, NodePorts},
};
use ruleset::{Family, Observed, Transaction};

use crate::{
    alone,
    flags::Settings,
    kernel::Kernel,
    node::{self, Machine},
    source::file::watch,
    status::{Status, StatusFile},
    wake::{self, Wake},
    wanted::Wanted,
};

/// Without any event, the kernel's generation number is compared after this long.
const SLOW_TIMER: Duration = Duration::from_secs(60);
/// A failed pass is repeated after a growing pause up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Works until a signal comes. The ruleset stays.
///
/// # Errors
/// The privilege or a kernel feature is missing. Everything else is logged and tried again.
pub fn run(settings: Settings, node: NodeName) -> anyhow::Result<()> {
    let _alone = alone::wait().context("failed to look for another weft-proxy")?;
    let (sender, wakes) = mpsc::channel();
    wake::signals(sender.clone())?;
    let path = settings.from.clone().unwrap_or_default();
    let tell = sender.clone();
    watch(path, move |touched| drop(tell.send(Wake::Source(touched))))
        .context("failed to watch the manifests")?;
    wake::machine_events(sender.clone())?;
    let mut runner = Runner::new(settings, node)?;
    if !runner.wait_for_source(&wakes) {
        return Ok(());
    }
    runner.start()?;
    // Our own first load would only overrun the subscription; what others did meanwhile is seen by the second look.
    wake::table_events(runner.kernel.port(), sender).context("failed to watch nftables")?;
    runner.unknown = true;
    runner.pass(&[]);
    runner.tell();
    daemon::notify::ready();
    runner.work(&wakes);
    daemon::notify::stopping();
    Ok(())
}

/// Everything about the running program.
pub struct Runner {
    settings: Settings,
    node: NodeName,
    wanted: Wanted,
    state: State,
    machine: Machine,
    kernel: Kernel,
    /// What the clock showed at start: all times count from there.
    started: Instant,
    /// What an earlier run left has been taken over, if there was something.
    adopted: bool,
    restarted: bool,
    /// The kernel's table may differ from what we know: it has to be read back.
    unknown: bool,
    /// Addresses or routes may differ from what we know.
    machine_moved: bool,
    /// UDP front ends some of whose flows may be stale.
    touched: BTreeSet<Front>,
    /// When the slow timer last ran out.
    looked_at: Instant,
    /// The kernel's generation after we last knew our table to be right.
    generation: Option<u32>,
    backoff: Backoff,
    /// When to try again what failed.
    retry_at: Option<Instant>,
    said: OnChange,
    status_file: StatusFile,
}

impl Runner {
    /// Reads the source and the machine, and asks the kernel for nothing else yet.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub fn new(settings: Settings, node: NodeName) -> anyhow::Result<Self> {
        let mut kernel = Kernel::open()?;
        let machine = kernel.machine()?;
        let wanted = Wanted::new(settings.from.clone().unwrap_or_default(), node.clone(), &machine);
        let own = machine.primary(wanted.catalog.node(&node), &settings.pod_ranges);
        let config = Config {
            family: Family::Ip,
            pod_ranges: settings.pod_ranges.clone(),
            node_ports: node::node_ports(&settings, &machine, &own),
            masquerade_all: settings.masquerade_all,
        };
        Ok(Self {
            status_file: StatusFile::new(settings.status_file.clone()),
            settings,
            node,
            wanted,
            state: State::new(config),
            machine,
            kernel,
            started: Instant::now(),
            adopted: false,
            restarted: false,
            unknown: true,
            machine_moved: false,
            touched: BTreeSet::new(),
            looked_at: Instant::now(),
            generation: None,
            backoff: Backoff::up_to(LONGEST_PAUSE, Random::from_system()),
            retry_at: None,
            said: OnChange::default(),
        })
    }

    /// The ruleset as text. Loaded by `nft -f`, it takes the place of what is there.
    ///
    /// # Errors
    /// There are no manifests, or some can't be read: a plan without their Services would remove them.
    pub fn plan(mut self) -> anyhow::Result<String> {
        anyhow::ensure!(self.wanted.source().was_seen(), "there are no manifests to plan for");
        anyhow::ensure!(
            self.wanted.source().is_complete(),
            "no plan: without the manifests that can't be read it would remove their Services"
        );
        self.state.sync_with(&mut self.wanted.catalog, &mut Found::default(), Duration::ZERO);
        let (family, name) = (self.state.config().family, Config::table_name());
        Ok(format!("table {family} {name}\ndelete table {family} {name}\n\n{}", self.state.table()))
    }

    /// Waits until the manifests are there: before that, an empty set of Services would be a guess that costs
    /// those that an earlier run left in the kernel. Whether to go on.
    fn wait_for_source(&mut self, wakes: &Receiver<Wake>) -> bool {
        while !self.wanted.source().was_seen() {
            self.machine_moved = true; // or may have, when the wait is over
            match wakes.recv() {
                Ok(Wake::Stop) | Err(_) => return false,
                Ok(wake) => self.read_source(&[wake]),
            }
        }
        true
    }

    /// The first pass. What an earlier run left is taken over, and only what differs is written.
    fn start(&mut self) -> anyhow::Result<()> {
        match self.sync() {
            Ok(done) => {
                let services = self.state.programmed().count();
                let Done { transactions, restarted, .. } = done;
                tracing::info!(services, restarted, transactions, "ruleset is in place");
            }
            Err(error) if error.is_permission() => return Err(error.into()),
            Err(error) => {
                let missing = self.kernel.missing_features();
                anyhow::ensure!(missing.is_empty(), "this kernel lacks {}", missing.join(", "));
                if error.is_unsupported() {
                    return Err(error.into());
                }
                self.failed(&error);
            }
        }
        self.warn_about_machine();
        Ok(())
    }

    /// What keeps node ports or forwarding from working is said once.
    fn warn_about_machine(&self) {
        if let Some(why) = node::why_closed(&self.settings, &self.machine, &self.own_addresses()) {
            tracing::warn!(node = %self.node, "{why}; node ports stay closed until then");
        }
        if linux::sysctl::read(&["net", "ipv4", "ip_forward"]).is_ok_and(|value| value == "0") {
            tracing::warn!(
                "net.ipv4.ip_forward is 0: connections to endpoints outside this host are not forwarded"
            );
        }
    }

    fn own_addresses(&self) -> BTreeSet<IpAddr> {
        self.machine.primary(self.wanted.catalog.node(&self.node), &self.settings.pod_ranges)
    }

    fn work(&mut self, wakes: &Receiver<Wake>) {
        loop {
            let until = self.due().min(self.status_file.due());
            let mut reasons = match wakes.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(wake) => vec![wake],
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            reasons.extend(wakes.try_iter());
            if reasons.contains(&Wake::Stop) {
                return;
            }
            if !reasons.is_empty() || Instant::now() >= self.due() {
                self.pass(&reasons);
            }
            self.tell();
        }
    }

    /// When there is something to do though nothing happens.
    fn due(&self) -> Instant {
        // What failed goes first: until it is tried again, nothing else can be done.
        let deadline = self.retry_at.or_else(|| Some(self.started + self.state.next_deadline()?));
        let slow = self.looked_at + SLOW_TIMER;
        deadline.map_or(slow, |at| at.min(slow))
    }

    /// Writes the status file where that is due.
    fn tell(&mut self) {
        if self.status_file.is_due() {
            let status = self.status();
            self.status_file.write(&status);
        }
    }

    /// One pass. It does the whole job, whatever the reasons.
    fn pass(&mut self, reasons: &[Wake]) {
        if self.looked_at.elapsed() >= SLOW_TIMER {
            self.looked_at = Instant::now();
            self.machine_moved = true;
            self.unknown |= self.generation_moved();
        }
        self.machine_moved |= reasons.iter().any(|reason| match reason {
            Wake::Machine => true,
            Wake::Device(device) => self.machine.depends_on(*device),
            _ => false,
        });
        self.unknown |= reasons.contains(&Wake::Table);
        self.read_source(reasons);
        let foreign = reasons.contains(&Wake::Table);
        match self.sync() {
            Ok(done) => {
                self.retry_at = None;
                self.backoff.reset();
                if self.said.clear() {
                    tracing::info!("the kernel holds what is wanted again");
                }
                done.log(foreign);
            }
            Err(error) => self.failed(&error),
        }
        self.status_file.touch();
    }

    fn failed(&mut self, error: &dyn std::error::Error) {
        self.unknown = true;
        self.retry_at = Some(Instant::now() + self.backoff.wait());
        let text = daemon::one_line(error);
        if self.said.is_new(&text) {
            tracing::error!("{text}; trying again");
        }
    }

    /// Somebody committed something since we last looked; if it was to our table, its event may be lost.
    fn generation_moved(&mut self) -> bool {
        let now = self.kernel.generation().ok();
        let moved = now != self.generation;
        self.generation = now;
        moved
    }

    fn read_source(&mut self, reasons: &[Wake]) {
        let touched = reasons.iter().filter_map(|wake| match wake {
            Wake::Source(touched) => Some(touched),
            _ => None,
        });
        self.wanted.read(touched, &self.machine);
    }

    /// Brings the kernel to what is wanted.
    fn sync(&mut self) -> Result<Done, linux::Error> {
        if self.machine_moved {
            let before = std::mem::replace(&mut self.machine, self.kernel.machine()?);
            self.machine_moved = false;
            if self.machine.itself != before.itself || self.machine.all() != before.all() {
                self.state.touch_node_ports();
                self.wanted.fill(&self.machine);
            }
        }
        let had_state = self.adopted;
        let have = self.read_back()?;
        let own = self.own_addresses();
        let (transactions, why) = self.transactions(have, &own);
        self.kernel.commit(&transactions)?;
        if self.unknown {
            self.unknown = false;
            self.generation = self.kernel.generation().ok();
        } else if let Some(generation) = &mut self.generation {
            *generation = generation.wrapping_add(transactions.len() as u32); // ours alone: one each
        }
        let flows = self.forget_flows(&own)?;
        let wanted = self.machine.wanted_routes(&self.routed(), &own);
        let routes = self.kernel.set_routes(&self.machine, &wanted)?;
        self.machine.last_resort = wanted;
        let restarted = self.restarted && !had_state;
        Ok(Done { transactions: transactions.len(), flows, routes, restarted, why })
    }

    /// The table, where what it holds is not known. At the first time, what it holds is taken over.
    fn read_back(&mut self) -> Result<Option<Option<Observed>>, linux::Error> {
        if !self.unknown {
            return Ok(None);
        }
        let have = self.kernel.table()?;
        if !self.adopted {
            let mut found = have.as_ref().map(Found::read).unwrap_or_default();
            self.wanted.inherit_from(&found, &self.machine);
            self.state.sync_with(&mut self.wanted.catalog, &mut found, self.started.elapsed());
            (self.adopted, self.restarted) = (true, have.is_some());
        }
        Ok(Some(have))
    }

    /// What has to change in the table: the difference to what was read back, or else what changed.
    fn transactions(
        &mut self,
        have: Option<Option<Observed>>,
        own: &BTreeSet<IpAddr>,
    ) -> (Vec<Transaction>, Why) {
        let mut changes = self.state.sync(&mut self.wanted.catalog, self.started.elapsed());
        if let NodePorts::At(addresses) = node::node_ports(&self.settings, &self.machine, own) {
            self.state.set_node_addresses(addresses, &mut changes);
        }
        let why = match &have {
            None if changes.is_tidying() => Why::Tidying,
            Some(_) if changes.is_empty() => Why::Repair,
            _ => Why::Change,
        };
        let transactions = match have {
            Some(have) => {
                let repairs = delta::transactions(&self.state.table(), have.as_ref());
                if !repairs.is_empty() {
                    self.state.touch_all();
                }
                repairs
            }
            None => changes.into_transactions(self.state.config()),
        };
        (transactions, why)
    }

    fn forget_flows(&mut self, own: &BTreeSet<IpAddr>) -> Result<usize, linux::Error> {
        self.touched.extend(self.state.take_touched());
        if self.touched.is_empty() {
            return Ok(0);
        }
        let node_addresses = match &self.state.config().node_ports {
            NodePorts::All => self.machine.all(),
            NodePorts::At(addresses) => addresses.union(own).copied().collect(),
        };
        let scope = Scope { node_addresses, only: self.touched.clone() };
        let forgotten = self.kernel.forget_stale(&scope, &self.state)?;
        self.touched.clear();
        Ok(forgotten)
    }

    /// Where a route has to lead so that this node's own packets reach our output hook.
    fn routed(&self) -> BTreeSet<Subnet> {
        let ranges: BTreeSet<_> =
            self.wanted.catalog.service_ranges().into_iter().filter(Subnet::is_ipv4).collect();
        if !ranges.is_empty() || self.machine.default_route.is_some() {
            return ranges;
        }
        self.state.cluster_ips().filter_map(|address| Subnet::new(address, 32).ok()).collect()
    }

    fn status(&self) -> Status {
        let mut status = Status::new(&self.node, &self.state, self.wanted.source());
        status.last_resort_routes = self.machine.last_resort.iter().map(|(to, _)| to.to_string()).collect();
        status.in_sync = !self.unknown;
        status.troubles.extend(self.wanted.refusals());
        status.troubles.extend(self.said.last().map(str::to_owned));
        status
    }
}

/// What one pass changed.
struct Done {
    transactions: usize,
    flows: usize,
    routes: usize,
    restarted: bool,
    why: Why,
}

/// Why the table was changed.
#[derive(Clone, Copy)]
enum Why {
    /// Services changed, or the node's addresses.
    Change,
    /// It was not as we left it.
    Repair,
    /// Nobody needs some of its chains any more.
    Tidying,
}

impl Done {
    /// One line, and none where nothing changed.
    fn log(&self, foreign: bool) {
        let Self { transactions, flows, routes, why, .. } = *self;
        match why {
            Why::Tidying => tracing::debug!(transactions, "chains that nobody used are gone"),
            Why::Repair if foreign && transactions > 0 => {
                tracing::warn!(transactions, "somebody else changed our table: put back");
            }
            _ if transactions + flows + routes > 0 => {
                tracing::info!(transactions, stale_flows = flows, routes, "services changed");
            }
            _ => {}
        }
    }
}

//! Our rules in the kernel's firewall: a table of our own, and two rules in the FORWARD chain of others.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use daemon::OnChange;
use linux::nft::{Changed, Events, ForeignChain, Socket};
use netmodel::{IfName, Subnet, TABLE_PREFIX};
use overlay_core::{
    forward,
    masquerade::{self, Wishes},
};
use ruleset::{Family, Hook, Name, Policy, Table, Transaction};

use crate::{flags::Settings, wake::Inbox};

/// How long the monitor waits before it reports changes of tables that only the warnings are about.
const SETTLE: Duration = Duration::from_secs(1);
/// How often rules are placed again because somebody changed others meanwhile.
const ATTEMPTS: usize = 8;
/// Where the kernel lists the tables of legacy iptables.
const LEGACY_TABLES: &str = "/proc/net/ip_tables_names";

/// What we want in the firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Want {
    device: IfName,
    network: Subnet,
    table: Option<Table>,
}

/// What we hold in the firewall.
#[derive(Debug)]
pub struct Firewall {
    socket: Socket,
    wishes: Wishes,
    want: Option<Want>,
    /// Something may be other than we left it.
    dirty: bool,
    /// Our table has been as it is wanted now.
    in_place: bool,
    warnings: Vec<String>,
    said: OnChange,
}

/// What can't be done without: our own table.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The kernel has nftables, but not all that our rules are made of.
    #[error(
        "this kernel's nftables lacks what masquerading takes: nft_chain_nat, nft_masq or nft_fib_ipv4 \
         (CONFIG_NFT_NAT, CONFIG_NFT_MASQ, CONFIG_NFT_FIB_IPV4)"
    )]
    NoMasquerade(#[source] linux::Error),
    /// Another reason.
    #[error("failed to keep the rules for packets of pods")]
    Failed(#[from] linux::Error),
}

impl FirewallError {
    /// The kernel lacks what it takes.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::NoMasquerade(_) => true,
            Self::Failed(error) => error.retry() == linux::Retry::Never,
        }
    }
}

/// What of the rules the flags ask for.
#[must_use]
pub fn wishes(settings: &Settings) -> Wishes {
    Wishes {
        masquerade: settings.ip_masq,
        at_random: settings.masquerade_at_random,
        forward: settings.forward_rules,
    }
}

impl Firewall {
    /// Opens a connection.
    ///
    /// # Errors
    /// The kernel has no netlink for netfilter.
    pub fn open(wishes: Wishes) -> Result<Self, linux::Error> {
        Ok(Self {
            socket: Socket::open()?,
            wishes,
            want: None,
            dirty: true,
            in_place: false,
            warnings: Vec::new(),
            said: OnChange::default(),
        })
    }

    /// What the kernel calls our changes.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Says what is wanted from now on.
    pub fn aim(&mut self, device: &IfName, own: Subnet, network: Subnet) {
        let table = masquerade::table(device, own, network, self.wishes);
        let want = Some(Want { device: device.clone(), network, table });
        if self.want != want {
            (self.dirty, self.in_place) = (true, false);
        }
        self.want = want;
    }

    /// Packets of pods meet the rules that are wanted.
    #[must_use]
    pub const fn is_in_place(&self) -> bool {
        self.in_place
    }

    /// Somebody may have changed something.
    pub fn look_again(&mut self) {
        self.dirty = true;
    }

    /// Puts right what is not; what failed in the tables of others comes back as text.
    ///
    /// # Errors
    /// Our own table could not be put right.
    pub fn reconcile(&mut self) -> Result<Vec<String>, FirewallError> {
        let (Some(want), true) = (self.want.clone(), self.dirty) else { return Ok(Vec::new()) };
        match self.own_table(&want) {
            // A kernel without nftables has nothing of ours to take out.
            Err(FirewallError::Failed(error))
                if error.is_unsupported() && want.table.is_none() && !self.wishes.forward =>
            {
                (self.in_place, self.dirty) = (true, false);
                return Ok(Vec::new());
            }
            outcome => outcome?,
        }
        self.in_place = true;
        let network = self.wishes.forward.then_some(want.network);
        let failures: Vec<_> = match self.forward_rules(&want.device, network) {
            Ok(()) => Vec::new(),
            Err(error) => vec![daemon::one_line(&error)],
        };
        self.warnings = match self.look_around(&want) {
            Ok(warnings) => {
                self.said.clear();
                warnings
            }
            Err(error) => {
                let text =
                    format!("what else drops forwarded packets is not known: {}", daemon::one_line(&error));
                if self.said.is_new(&text) {
                    tracing::warn!("{text}");
                }
                vec![text]
            }
        };
        self.dirty = !failures.is_empty();
        Ok(failures)
    }

    fn own_table(&mut self, want: &Want) -> Result<(), FirewallError> {
        let name = Name::from(masquerade::table_name(&want.device));
        let mut attempts = ATTEMPTS;
        loop {
            let have = self.socket.table(Family::Ip, &name)?;
            let transaction = match (&want.table, &have) {
                (Some(table), have) => ruleset::diff(table, have.as_ref()),
                (None, Some(_)) => Transaction::delete(Family::Ip, &name),
                (None, None) => return Ok(()),
            };
            if transaction.is_empty() {
                return Ok(());
            }
            attempts -= 1;
            match self.socket.commit(&transaction) {
                Ok(()) => {
                    tracing::info!(table = %name, "firewall rules written");
                    return Ok(());
                }
                // Somebody removed the table meanwhile.
                Err(error) if error.is_not_found() && attempts > 0 => {}
                // Linux says of a kind of chain or expression, too, that it is not found.
                Err(error) if self.wishes.masquerade && error.is_not_found() => {
                    return Err(FirewallError::NoMasquerade(error));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Puts our two rules where they belong in the chain of others; with no `network`, takes them out.
    fn forward_rules(&mut self, device: &IfName, network: Option<Subnet>) -> Result<(), linux::Error> {
        for _ in 0..ATTEMPTS {
            match self.try_forward_rules(device, network) {
                Err(error) if error.is_overtaken() => {}
                outcome => return outcome,
            }
        }
        self.try_forward_rules(device, network)
    }

    fn try_forward_rules(&mut self, device: &IfName, network: Option<Subnet>) -> Result<(), linux::Error> {
        // Only if nobody changed anything since: the place of our rules depends on theirs.
        let generation = self.socket.generation()?;
        let transaction = self.forward_changes(device, network)?;
        if !transaction.is_empty() {
            self.socket.commit_at(&transaction, Some(generation))?;
            tracing::info!(
                "forward rules written to chain {} of table ip {}",
                forward::CHAIN,
                forward::TABLE
            );
        }
        Ok(())
    }

    /// What is to be done in the chain of others; nothing where there is no such chain.
    fn forward_changes(
        &mut self,
        device: &IfName,
        network: Option<Subnet>,
    ) -> Result<Transaction, linux::Error> {
        let (table, chain) = (Name::from(forward::TABLE), Name::from(forward::CHAIN));
        let is_there = |c: &ForeignChain| c.family == Family::Ip && c.table == table && c.name == chain;
        let nothing = || Ok(Transaction::new(Family::Ip, table.clone()));
        if !self.socket.base_chains(Hook::Forward)?.iter().any(is_there) {
            return nothing();
        }
        match self.socket.rules(Family::Ip, &table, &chain) {
            Err(error) if error.is_not_found() => nothing(),
            have => Ok(forward::diff(device, network, &have?)),
        }
    }

    /// What else could keep pods from each other.
    fn look_around(&mut self, want: &Want) -> Result<Vec<String>, linux::Error> {
        let own = masquerade::table_name(&want.device);
        let mut warnings = Vec::new();
        for chain in self.socket.base_chains(Hook::Forward)? {
            let ours = chain.table.as_str() == own;
            let shared = chain.family == Family::Ip
                && chain.table.as_str() == forward::TABLE
                && chain.name.as_str() == forward::CHAIN;
            if ours || chain.family == Family::Ip6 || (shared && self.wishes.forward) {
                continue;
            }
            let by_policy = chain.base.is_some_and(|base| base.policy == Policy::Drop);
            let rules = self.socket.rules(chain.family, &chain.table, &chain.name).unwrap_or_default();
            let by_rule = rules.last().is_some_and(|rule| rule.code.refuses_all());
            if by_policy || by_rule {
                warnings.push(format!(
                    "chain {} of table {} {} drops what is forwarded by its {}: unless a rule in it accepts \
                     packets from and to {}, pods can't reach each other",
                    chain.name,
                    chain.family,
                    chain.table,
                    if by_policy { "policy" } else { "last rule" },
                    want.network
                ));
            }
        }
        Ok(warnings)
    }

    /// What a user should know.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        // Legacy iptables announces nothing: it is looked at each time.
        let legacy = self.want.as_ref().and_then(|want| legacy(want.network));
        self.warnings.iter().cloned().chain(legacy).collect()
    }

    /// Our table or our rules in the chain of others are there.
    ///
    /// # Errors
    /// The kernel did not answer.
    pub fn is_there(&mut self, device: &IfName) -> Result<bool, linux::Error> {
        let name = Name::from(masquerade::table_name(device));
        Ok(self.socket.table(Family::Ip, &name)?.is_some() || !self.forward_changes(device, None)?.is_empty())
    }

    /// Removes our table and our rules in the chain of others.
    ///
    /// # Errors
    /// The kernel refused, or did not answer.
    pub fn cleanup(&mut self, device: &IfName) -> Result<(), linux::Error> {
        let name = Name::from(masquerade::table_name(device));
        if self.socket.table(Family::Ip, &name)?.is_some() {
            self.socket.commit(&Transaction::delete(Family::Ip, &name))?;
        }
        self.forward_rules(device, None)
    }

    /// What [`reconcile`](Self::reconcile) would do, in the words of `nft`.
    ///
    /// # Errors
    /// The kernel did not answer.
    pub fn plan(&mut self) -> Result<Vec<String>, linux::Error> {
        let Some(want) = self.want.clone() else { return Ok(Vec::new()) };
        let mut lines = Vec::new();
        let name = Name::from(masquerade::table_name(&want.device));
        let have = self.socket.table(Family::Ip, &name)?;
        match &want.table {
            Some(table) if !ruleset::diff(table, have.as_ref()).is_empty() => {
                lines.extend(table.to_string().lines().map(str::to_owned));
            }
            None if have.is_some() => lines.push(format!("delete table ip {name}")),
            _ => {}
        }
        let network = self.wishes.forward.then_some(want.network);
        if !self.forward_changes(&want.device, network)?.is_empty() {
            let what = if network.is_some() { "accept rules go into" } else { "accept rules leave" };
            lines.push(format!("# two {what} chain {} of table ip {}", forward::CHAIN, forward::TABLE));
        }
        Ok(lines)
    }
}

/// What to type where legacy iptables filters, which no netlink reaches.
fn legacy(network: Subnet) -> Option<String> {
    let tables = fs::read_to_string(LEGACY_TABLES).ok()?;
    tables.lines().any(|table| table == "filter").then(|| {
        format!(
            "legacy iptables has a filter table, which flanneld does not touch: if it drops what is forwarded, \
             type: iptables-legacy -A FORWARD -s {network} -j ACCEPT; \
             iptables-legacy -A FORWARD -d {network} -j ACCEPT"
        )
    })
}

/// Watches the firewall on a thread of its own for as long as the process lives. Changes by `own`, the
/// port of the loop's connection, wake nobody.
///
/// # Errors
/// No thread could be started.
pub fn watch(inbox: Arc<Inbox>, own: Arc<AtomicU32>) -> std::io::Result<()> {
    thread::Builder::new().name("nft-events".to_owned()).spawn(move || {
        loop {
            match Events::open() {
                Ok(events) => {
                    // What happened before the subscription.
                    inbox.post(|pending| pending.firewall = true);
                    follow(&inbox, &own, events);
                }
                Err(error) => tracing::debug!("{}", daemon::one_line(&error)),
            }
            thread::sleep(SETTLE);
        }
    })?;
    Ok(())
}

/// Reports changes until the subscription breaks.
fn follow(inbox: &Inbox, own: &AtomicU32, mut events: Events) {
    let mut later = false;
    loop {
        let changed = match events.wait(later.then_some(SETTLE)) {
            Ok(changed) => changed,
            Err(error) if error.is_overrun() => {
                inbox.post(|pending| pending.firewall = true);
                continue;
            }
            Err(_) => return,
        };
        let own = own.load(Ordering::Relaxed);
        if changed.iter().any(|change| change.by != own && matters(change)) {
            inbox.post(|pending| pending.firewall = true);
            later = false;
        } else if changed.is_empty() && later {
            inbox.post(|pending| pending.firewall = true);
            later = false;
        } else {
            later |= changed.iter().any(|change| !change.table.as_str().starts_with(TABLE_PREFIX));
        }
    }
}

/// The table holds rules of ours.
fn matters(change: &Changed) -> bool {
    let ours = change.table.as_str().starts_with(&format!("{TABLE_PREFIX}flannel."));
    change.family == Family::Ip && (ours || change.table.as_str() == forward::TABLE)
}

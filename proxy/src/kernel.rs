//! What this program asks of the kernel, and what it tells the user where the kernel can't do it.

use std::collections::BTreeSet;

use linux::{Error, conntrack, netlink::RouteSocket, nft};
use netmodel::{IfName, Protocol, Subnet};
use proxy_core::{
    flows::{Flow, Scope},
    state::State,
    tables::Config,
};
use ruleset::{
    Chain, ChainType, Change, Expr, Family, Field, Hook, Observed, PortChoice, Rule, SLOT, Selector, SetSpec,
    Statement, Table, Transaction, Value, Writable,
};

use crate::node::{Machine, last_resort};

/// The feature that all others need.
const NF_TABLES: &str = "nf_tables for IPv4 (CONFIG_NF_TABLES, CONFIG_NF_TABLES_IPV4)";

/// The sockets of one network namespace.
#[derive(Debug)]
pub struct Kernel {
    nft: nft::Socket,
    route: RouteSocket,
    conntrack: conntrack::Socket,
}

impl Kernel {
    /// Opens the sockets in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel lacks netfilter's netlink, or no descriptor is free.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            nft: nft::Socket::open()?,
            route: RouteSocket::open()?,
            conntrack: conntrack::Socket::open()?,
        })
    }

    /// What the kernel calls our connection to nftables.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.nft.port()
    }

    /// Our table as it is.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub fn table(&mut self) -> Result<Option<Observed>, Error> {
        self.nft.table(Family::Ip, &Config::table_name())
    }

    /// A number that changes with every commit of anybody.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub fn generation(&mut self) -> Result<u32, Error> {
        self.nft.generation()
    }

    /// Carries out transactions in order, up to the first that fails.
    ///
    /// # Errors
    /// The kernel refused one, or did not answer.
    pub fn commit(&mut self, transactions: &[Transaction]) -> Result<(), Error> {
        transactions.iter().try_for_each(|transaction| self.nft.commit(transaction))
    }

    /// Removes our table, whether or not it is there.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub fn delete_table(&mut self) -> Result<(), Error> {
        match self.nft.commit(&Transaction::delete(Family::Ip, Config::table_name())) {
            Err(error) if error.is_unsupported() => Ok(()), // a kernel without nftables
            outcome => outcome,
        }
    }

    /// The machine's addresses and routes.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub fn machine(&mut self) -> Result<Machine, Error> {
        Machine::read(&mut self.route)
    }

    /// Makes our last-resort routes those that are wanted, and returns how many changed.
    ///
    /// # Errors
    /// The first that failed; the others were tried.
    pub fn set_routes(
        &mut self,
        machine: &Machine,
        wanted: &BTreeSet<(Subnet, u32)>,
    ) -> Result<usize, Error> {
        let mut requests = Vec::new();
        for (destination, device) in machine.last_resort.symmetric_difference(wanted) {
            // The name is for messages only; a device that is down or has just gone is told by its index.
            let by_index = || format!("if{device}").parse::<IfName>().ok();
            let Some(name) = machine.devices.get(device).cloned().or_else(by_index) else { continue };
            let route = last_resort(*destination, *device);
            let add = wanted.contains(&(*destination, *device));
            requests.push(if add { route.replace(&name) } else { route.delete(&name) });
        }
        let results = self.route.apply(&requests);
        let failed = results.into_iter().find_map(|result| result.err().filter(|e| !e.is_not_found()));
        failed.map_or(Ok(requests.len()), Err)
    }

    /// Forgets the UDP flows that lead nowhere any more, and returns how many.
    ///
    /// # Errors
    /// The flows could not be listed, or the first that could not be forgotten.
    pub fn forget_stale(&mut self, scope: &Scope, state: &State) -> Result<usize, Error> {
        let mut flows = self.conntrack.flows(&conntrack::Filter::all(Protocol::Udp, true))?;
        flows.retain(|flow| {
            let seen = Flow { destination: flow.original.destination, answers_from: flow.reply.source };
            scope.is_stale(&seen, state)
        });
        self.conntrack.delete(&flows).into_iter().collect::<Result<Vec<_>, _>>().map(|done| done.len())
    }

    /// What our ruleset needs and this kernel lacks, by name and kernel option.
    pub fn missing_features(&mut self) -> Vec<&'static str> {
        let lacks = |(name, table): (&'static str, Table)| {
            let mut transaction = Transaction::create(&table);
            transaction.push(Change::DeleteTable);
            self.nft.commit(&transaction).is_err().then_some(name)
        };
        let mut missing: Vec<_> = features().into_iter().filter_map(lacks).collect();
        // Without nf_tables itself there is none of it.
        if missing.first() == Some(&NF_TABLES) {
            missing.truncate(1);
        }
        missing
    }
}

/// Each feature that our ruleset needs, and a table that needs it and little else.
fn features() -> Vec<(&'static str, Table)> {
    let table = || Table::new(Family::Ip, "weft-probe");
    let with = |chain: Chain| {
        let mut table = table();
        table.chain("probe", chain);
        table
    };
    let rule = |statements: Vec<Statement>| with(Chain::regular([Rule::new(statements)]));
    let postrouting =
        |s: Statement| with(Chain::base(ChainType::Nat, Hook::Postrouting, 100, [Rule::new([s])]));
    let mut rows = table();
    rows.set(
        "rows",
        SetSpec::map([Field::MetaPriority.into(), SLOT], [Field::IpDaddr, Field::ThDport]).counter(),
    );
    let mut dnat = rows.clone();
    let slot = [Field::MetaPriority.into(), Expr::Random { modulus: 1 }];
    let to = Statement::dnat_by("rows", slot);
    dnat.chain("probe", Chain::base(ChainType::Nat, Hook::Prerouting, -100, [Rule::new([to])]));
    vec![
        (NF_TABLES, table()),
        ("nft nat chains (CONFIG_NFT_NAT)", with(Chain::base(ChainType::Nat, Hook::Prerouting, -100, []))),
        ("nft concatenated maps with counters (Linux 5.13)", rows),
        ("nft numgen (CONFIG_NFT_NUMGEN)", {
            rule(vec![Writable::MetaMark.set(Expr::Random { modulus: 2 })])
        }),
        ("nft ct (CONFIG_NFT_CT)", rule(vec![Field::CtState.is(Value::number(ruleset::ct_state::NEW))])),
        ("nft fib (CONFIG_NFT_FIB_IPV4)", {
            rule(vec![Field::FibDaddrType.is(Value::number(ruleset::FIB_LOCAL))])
        }),
        ("nft reject (CONFIG_NFT_REJECT_IPV4)", {
            with(Chain::base(ChainType::Filter, Hook::Input, 0, [Rule::new([Statement::REJECT])]))
        }),
        ("nft masquerade (CONFIG_NFT_MASQ)", postrouting(Statement::Masquerade(PortChoice::FullyRandom))),
        ("nft dnat by a map with numgen (CONFIG_NFT_NAT, CONFIG_NFT_NUMGEN)", dnat),
        ("nft lookups (CONFIG_NF_TABLES)", {
            let mut table = table();
            table.set("addresses", SetSpec::set(Field::IpDaddr));
            let known = Selector::from(Field::IpDaddr).in_set("addresses");
            table.chain("probe", Chain::regular([Rule::new([known])]));
            table
        }),
    ]
}

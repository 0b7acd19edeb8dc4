//! A node's side of a source: facts in, views out.

use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use flanneld::{
    flags::EtcdSettings,
    source::{
        Fatal, Ports,
        etcd::{Session, Times},
    },
};
use netmodel::Subnet;
use overlay_core::{
    host::{NodeFacts, NodeIdentity, Underlay},
    lease::{Assignment, View},
};
use tokio::{sync::watch, task::JoinHandle};

use crate::server::{PREFIX, Server};

/// Longest wait for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A node that leases a subnet; it ends, as after `kill -9`, when this value goes.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) facts: watch::Sender<Option<NodeFacts>>,
    pub(crate) view: watch::Receiver<View>,
    pub(crate) task: JoinHandle<Fatal>,
}

pub(crate) fn settings(server: &Server) -> EtcdSettings {
    EtcdSettings {
        endpoints: server.endpoints(),
        prefix: PREFIX.to_owned(),
        ca_file: None,
        identity: None,
        user: None,
        renew_margin: Duration::from_secs(3600),
    }
}

/// Node number `n`: 192.0.2.n.
pub(crate) fn facts(n: u8) -> NodeFacts {
    let public_ip = Ipv4Addr::new(192, 0, 2, n);
    NodeFacts {
        identity: NodeIdentity([n; 16]),
        public_ip,
        underlay: Underlay {
            name: "eth0".parse().expect("a name"),
            index: 2,
            address: public_ip,
            mtu: 1500.try_into().expect("an MTU"),
        },
        vteps: Vec::new(),
        host: Vec::new(),
        previous: None,
    }
}

/// Times of the product, but a shorter wait in a new store.
pub(crate) fn quick() -> Times {
    Times { settle: Duration::from_secs(2), ..Times::default() }
}

impl Node {
    pub(crate) fn start(server: &Server, n: u8) -> Self {
        Self::start_with(&settings(server), quick(), facts(n))
    }

    pub(crate) fn start_with(settings: &EtcdSettings, times: Times, facts: NodeFacts) -> Self {
        let (facts, heard) = watch::channel(Some(facts));
        let (said, view) = watch::channel(View::default());
        let session = Session::new(settings, times, Ports { facts: heard, view: said, device: None });
        Self { facts, view, task: tokio::spawn(session.run()) }
    }

    /// The first view that fits.
    pub(crate) async fn until(&mut self, what: &str, fits: impl Fn(&View) -> bool) -> Result<View> {
        let fitting = async { self.view.wait_for(|view| fits(view)).await.map(|view| view.clone()) };
        match tokio::time::timeout(LIMIT, fitting).await {
            Ok(Ok(view)) => Ok(view),
            Ok(Err(_)) => bail!("the source ended before {what}"),
            Err(_) => bail!("not {what} within {LIMIT:?}, but {:?}", *self.view.borrow()),
        }
    }

    /// The assignment once the source is well.
    pub(crate) async fn leased(&mut self) -> Result<Arc<Assignment>> {
        let view = self.until("leased", |view| view.state.connected && view.assignment.is_some()).await?;
        view.assignment.ok_or_else(|| anyhow::anyhow!("no assignment"))
    }

    /// The problem once there is one.
    pub(crate) async fn problem(&mut self) -> Result<String> {
        let view = self.until("in trouble", |view| view.state.problem.is_some()).await?;
        Ok(view.state.problem.unwrap_or_default())
    }

    /// Waits until the node knows that many leases.
    pub(crate) async fn knows(&mut self, leases: usize) -> Result<Arc<Assignment>> {
        let count = |view: &View| view.assignment.as_ref().map_or(0, |a| a.leases.len());
        let view = self.until(&format!("{leases} leases known"), |view| count(view) == leases).await?;
        view.assignment.ok_or_else(|| anyhow::anyhow!("no assignment"))
    }

    /// What it holds now.
    pub(crate) fn subnet(&self) -> Option<Subnet> {
        self.view.borrow().assignment.as_ref().map(|a| a.own.subnet)
    }

    pub(crate) fn note(&self) -> Option<String> {
        self.view.borrow().assignment.as_ref().and_then(|a| a.note.clone())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The key of a subnet below `subnets/`.
pub(crate) fn key(subnet: Subnet) -> String {
    format!("{}-{}", subnet.address(), subnet.prefix())
}

/// Asks `probe` until it is true.
pub(crate) async fn eventually(what: &str, mut probe: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        if probe()? {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("not {what} within {LIMIT:?}");
}

//! Where leases come from: etcd, or a file.
//!
//! ```text
//! the node's side --facts--> source --view--> the node's side
//! ```
//!
//! A source never ends because something outside is wrong: it says what is wrong in
//! [`View::state`], waits and goes on. The last assignment stays meanwhile.

pub mod etcd;
pub mod file;

use std::sync::Arc;

use daemon::Shutdown;
use overlay_core::{
    config::Config,
    host::NodeFacts,
    lease::{Assignment, NoSubnet, View},
};
use tokio::sync::watch;

use crate::{
    flags::Origin,
    lock::{LockError, OwnDevice},
};

/// What a source hears and says.
#[derive(Debug)]
pub struct Ports {
    /// What this node says of itself; `None` until it knows.
    pub facts: watch::Receiver<Option<NodeFacts>>,
    /// What the source knows. The latest one wins.
    pub view: watch::Sender<View>,
    /// Takes the device before anything is leased for it; `None` where the source runs by itself, without
    /// a device.
    pub device: Option<Arc<OwnDevice>>,
}

impl Ports {
    /// Takes the device of the configuration that is used.
    fn hold(&self, config: &Config) -> Result<(), Fatal> {
        self.device.as_ref().map_or(Ok(()), |device| Ok(device.hold(&config.vxlan.device)?))
    }
}

/// What no waiting can change.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// Every subnet overlaps this host.
    #[error("failed to lease a subnet")]
    NoSubnet(#[source] NoSubnet),
    /// Another flanneld holds the device.
    #[error(transparent)]
    Held(#[from] LockError),
}

/// There is nothing to look at.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LookError(String);

/// Follows `origin` until the end is asked for.
///
/// # Errors
/// Every subnet of the network overlaps this host, at the start; another flanneld holds the device.
pub async fn run(origin: Origin, ports: Ports, shutdown: Shutdown) -> Result<(), Fatal> {
    let follow = async {
        match origin {
            Origin::Etcd(settings) => {
                etcd::Session::new(&settings, etcd::Times::default(), ports).run().await
            }
            Origin::File(path) => file::follow(&path, ports).await,
        }
    };
    tokio::select! {
        fatal = follow => Err(fatal),
        () = shutdown.requested() => Ok(()),
    }
}

/// What [`run`] would say first, without writing anything.
///
/// # Errors
/// The source cannot be read, holds no valid configuration, or has no subnet for this node.
pub async fn look(origin: Origin, facts: &NodeFacts) -> Result<Assignment, LookError> {
    match origin {
        Origin::Etcd(settings) => etcd::look(settings, facts).await.map_err(LookError),
        Origin::File(path) => file::read(&path, facts).map_err(|error| LookError(daemon::one_line(&error))),
    }
}

/// The facts, once there are any.
async fn facts(ports: &mut Ports) -> NodeFacts {
    loop {
        if let Some(facts) = ports.facts.borrow_and_update().clone() {
            return facts;
        }
        changed(ports).await;
    }
}

/// Returns when the facts change; never, if nobody can change them any more.
async fn changed(ports: &mut Ports) {
    if ports.facts.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

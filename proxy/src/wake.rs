//! Why the loop wakes up. Whoever wakes it never acts itself.

use std::{io, sync::mpsc::Sender, thread};

use linux::{
    netlink::{Connection, Message, Protocol},
    nft,
};
use proxy_core::tables::Config;
use ruleset::Family;

use crate::source::file::Touched;

/// A reason to wake up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Manifests were touched.
    Source(Touched),
    /// Somebody else changed our table, or may have.
    Table,
    /// Addresses or the default route of this machine changed, or may have.
    Machine,
    /// The process was asked to end.
    Stop,
}

/// rtnetlink's groups of IPv4 addresses and routes (`RTNLGRP_...`), and of links.
const GROUPS: [u32; 3] = [1, 5, 7];
/// `RTM_NEWROUTE` and `RTM_DELROUTE`.
const ROUTE_EVENTS: [u16; 2] = [24, 25];

/// Wakes the loop when somebody but the connection `own` changes our table.
///
/// # Errors
/// The privilege is missing, the kernel lacks nftables, or no thread could be started.
pub fn table_events(own: u32, wake: Sender<Wake>) -> anyhow::Result<()> {
    let mut events = nft::Events::open()?;
    let ours = Config::table_name();
    start("nft-events", move || {
        loop {
            let is_foreign = match events.wait(None) {
                Ok(changed) => {
                    changed.iter().any(|c| c.table == ours && c.family == Family::Ip && c.by != own)
                }
                Err(_) => true, // lost events: what happened is read from the kernel
            };
            if is_foreign && wake.send(Wake::Table).is_err() {
                return;
            }
        }
    })
}

/// Wakes the loop when addresses, devices, the default route or our own routes change.
///
/// # Errors
/// No descriptor is free, or no thread could be started.
pub fn machine_events(wake: Sender<Wake>) -> anyhow::Result<()> {
    let mut connection = Connection::open(Protocol::Route)?;
    for group in GROUPS {
        connection.join(group)?;
    }
    start("machine-events", move || {
        loop {
            let mut matters = false;
            let waited = connection.events(None, |event| matters |= concerns_us(&event));
            if (matters || waited.is_err()) && wake.send(Wake::Machine).is_err() {
                return;
            }
        }
    })
}

/// Routes to other pods come and go; only the default one and ours matter here.
fn concerns_us(event: &Message<'_>) -> bool {
    if !ROUTE_EVENTS.contains(&event.kind) {
        return true;
    }
    // struct rtmsg: family, length of the destination's prefix, ..., protocol at byte 5.
    let (length, protocol) = (event.payload.get(1), event.payload.get(5));
    length == Some(&0) || protocol == Some(&netmodel::ROUTE_PROTOCOL)
}

/// Wakes the loop when SIGTERM or SIGINT asks the process to end.
///
/// # Errors
/// No thread could be started.
pub fn signals(wake: Sender<Wake>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    start("signals", move || {
        runtime.block_on(async {
            match daemon::Shutdown::on_signals() {
                Ok(shutdown) => shutdown.requested().await,
                Err(error) => {
                    tracing::error!(%error, "failed to listen for signals");
                    return;
                }
            }
            let _ = wake.send(Wake::Stop); // the loop is over already where nobody receives
        });
    })
}

fn start(name: &str, run: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let started: io::Result<_> = thread::Builder::new().name(name.to_owned()).spawn(run);
    started.map(drop).map_err(Into::into)
}

//! Why the loop wakes up. Whoever wakes it never acts itself.

use std::{io, sync::mpsc::Sender, thread, time::Duration};

use linux::{
    netlink::{MachineChanges, MachineEvents},
    nft,
};
use proxy_core::tables::Config;
use ruleset::Family;

use crate::source::file::Touched;

/// How long to wait after a subscription failed.
const PAUSE: Duration = Duration::from_secs(1);

/// A reason to wake up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Manifests were touched.
    Source(Touched),
    /// Somebody else changed our table, or may have.
    Table,
    /// Addresses or the default route of this machine changed, or may have.
    Machine,
    /// The device with that index changed.
    Device(u32),
    /// The process was asked to end.
    Stop,
}

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
                Err(error) => was_lost(&error),
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
    let mut events = MachineEvents::open()?;
    start("machine-events", move || {
        loop {
            let changes = events.wait(None).unwrap_or_else(|error| MachineChanges {
                others: was_lost(&error),
                ..MachineChanges::default()
            });
            let machine = changes.others.then_some(Wake::Machine);
            for reason in machine.into_iter().chain(changes.links.into_iter().map(Wake::Device)) {
                if wake.send(reason).is_err() {
                    return;
                }
            }
        }
    })
}

/// Lost events: what happened is read from the kernel, but not in a hurry where it fails for another reason,
/// which may last.
fn was_lost(error: &linux::Error) -> bool {
    if !error.is_overrun() {
        thread::sleep(PAUSE);
    }
    true
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

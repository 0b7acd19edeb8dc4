//! What flanneld can be asked to do: `run`, `plan`, `cleanup`, `status`.

use std::{
    io::Write,
    path::Path,
    sync::{Arc, atomic::AtomicU32},
    thread,
    time::Duration,
};

use anyhow::Context;
use daemon::{Backoff, OnChange, Random, Shutdown, health::Health, notify};
use overlay_core::{diff::diff, kernel::Kernel, lease::View};
use rustix::thread::{CapabilitySet, capabilities};
use tokio::sync::{oneshot, watch};

use crate::{
    events,
    firewall::{self, Firewall},
    flags::Settings,
    linux::LinuxKernel,
    lock::{self, FileLock, LockError, OwnDevice},
    node, report,
    run::{Links, Loop, Target},
    source::{self, Ports},
    status::{self, Status},
    wake::Inbox,
};

/// Works until a signal comes.
///
/// # Errors
/// What no waiting can change: a missing privilege or kernel feature, a subnet file or device that
/// another one holds, no subnet without overlap.
pub fn run(settings: Settings) -> anyhow::Result<()> {
    need_privilege()?;
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let _lock = hold_subnet_file(&settings.subnet_file)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let settings = Arc::new(settings);
    let outcome = runtime.block_on(supervise(Arc::clone(&settings)));
    // Nothing that the runtime still waits for matters now.
    runtime.shutdown_background();
    if let Err(error) = &outcome {
        report::last_words(&settings, &daemon::one_line(error.as_ref()));
    }
    outcome
}

/// Takes the subnet file, as soon as its folder can be written.
fn hold_subnet_file(path: &Path) -> Result<FileLock, LockError> {
    let mut backoff = Backoff::up_to(Duration::from_secs(5), Random::from_system());
    let mut said = OnChange::default();
    loop {
        match lock::subnet_file(path) {
            Err(error @ LockError::Failed { .. }) => {
                let text = daemon::one_line(&error);
                if said.is_new(&text) {
                    tracing::error!("{text}; trying again");
                }
                thread::sleep(backoff.wait());
            }
            outcome => return outcome,
        }
    }
}

/// Starts everything, and ends when the first part does.
async fn supervise(settings: Arc<Settings>) -> anyhow::Result<()> {
    let shutdown = Shutdown::on_signals().context("failed to listen for signals")?;
    let (facts_in, facts) = watch::channel(None);
    let (view, views) = watch::channel(View::default());
    let inbox = Arc::new(Inbox::default());
    let health = Health::new("flanneld");
    tokio::spawn(daemon::health::serve(health.clone(), settings.health));
    tokio::spawn(events::watch(Arc::clone(&inbox)));
    tokio::spawn(forward(views.clone(), Arc::clone(&inbox)));

    let nft_port = Arc::new(AtomicU32::new(0));
    firewall::watch(Arc::clone(&inbox), Arc::clone(&nft_port)).context("failed to start a thread")?;
    let links = Links { inbox: Arc::clone(&inbox), facts: facts_in, views, nft_port, health };
    let (ended_in, ended) = oneshot::channel();
    let own = Arc::clone(&settings);
    let kernel_thread = thread::Builder::new().name("kernel".to_owned()).spawn(move || {
        let outcome = Loop::new(own, links).and_then(Loop::run);
        // Nobody listens if the process ends anyway.
        let _ = ended_in.send(outcome);
    });
    let kernel_thread = kernel_thread.context("failed to start a thread")?;
    // Held until the kernel thread has ended.
    let device = Arc::new(OwnDevice::default());
    let ports = Ports { facts, view, device: Some(Arc::clone(&device)) };
    let leases = source::run(settings.origin.clone(), ports, shutdown.clone());
    let outcome = tokio::select! {
        outcome = leases => outcome.map_err(anyhow::Error::from),
        outcome = ended => match outcome {
            Ok(outcome) => outcome.map_err(anyhow::Error::from),
            Err(_) => Err(anyhow::anyhow!("the kernel thread ended unexpectedly")),
        },
    };
    if outcome.is_ok() {
        notify::stopping();
    }
    // What it is doing it finishes; what it made stays.
    inbox.post(|pending| pending.stop = true);
    let _ = kernel_thread.join();
    outcome
}

/// Wakes the loop when the source has a new word.
async fn forward(mut views: watch::Receiver<View>, inbox: Arc<Inbox>) {
    while views.changed().await.is_ok() {
        inbox.post(|pending| pending.source = true);
    }
}

/// Prints what [`run`] would do first, and does nothing.
///
/// # Errors
/// The kernel or the source could not be read.
pub fn plan(settings: &Settings) -> anyhow::Result<()> {
    need_privilege()?;
    let mut socket = linux::netlink::RouteSocket::open()?;
    let facts = node::facts(settings, None, &mut socket)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let assignment = runtime.block_on(source::look(settings.origin.clone(), &facts))?;
    let target = Target::new(Arc::new(assignment), facts, settings);
    let mut kernel = LinuxKernel::open(target.scope())?;
    let Target { assignment, want, skipped, .. } = &target;
    let config = &assignment.config;
    let mut text = format!("# subnet {}\n", assignment.own.subnet);
    for line in config.notes.iter().cloned().chain(skipped.iter().map(ToString::to_string)) {
        text += &format!("# {line}\n");
    }
    let mut rules = Firewall::open(firewall::wishes(settings))?;
    rules.aim(&config.vxlan.device, assignment.own.subnet, config.network);
    for line in rules.plan()? {
        text += &format!("{line}\n");
    }
    for op in diff(want, &kernel.observe()?) {
        text += &format!("{op}\n");
    }
    let before = Status::read(&status::path(&settings.subnet_file)).unwrap_or_default().node;
    for left in kernel.leftovers(want, &before.devices_except(&config.vxlan.device))? {
        text += &format!("ip link del {}\n", left.device);
    }
    print(&text)
}

/// Tells what a running flanneld holds.
///
/// # Errors
/// There is no status file, or the process that wrote it is gone.
pub fn status(settings: &Settings, json: bool) -> anyhow::Result<()> {
    let path = status::path(&settings.subnet_file);
    let status = Status::read(&path)?;
    let text = if json { status.to_json() } else { status.to_string() };
    print(&text)?;
    let gone = lock::is_held(&settings.subnet_file) == Some(false);
    anyhow::ensure!(!gone, "flanneld is not running: this is what it wrote last");
    Ok(())
}

pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("failed to write to standard output")
}

/// This process may change the network.
pub(crate) fn need_privilege() -> anyhow::Result<()> {
    let held = capabilities(None).context("failed to read the capabilities of this process")?.effective;
    anyhow::ensure!(
        held.contains(CapabilitySet::NET_ADMIN),
        "the privilege to change the network (CAP_NET_ADMIN) is missing: run flanneld as root"
    );
    Ok(())
}

//! What a failed ADD takes back.

use std::time::Duration;

use cni_core::{Attachment, Chosen, HostAddress};
use linux::{link, netlink::RouteSocket};
use netmodel::IfName;

use crate::{nat, reservations::Reservations};

/// How long undoing waits for others: with what ADD waited before, less than runtimes wait for ADD.
const PATIENCE: Duration = Duration::from_secs(3);

/// A step that was done.
pub(crate) enum Step {
    /// An address is reserved.
    Reserved(Chosen),
    /// Addresses are masqueraded.
    Masqueraded(Vec<HostAddress>),
    /// A veth pair is there, by its end on the host.
    Linked {
        /// The host end's index.
        index: u32,
        /// Its name.
        name: IfName,
    },
}

/// The steps done so far, taken back newest first when this value goes, unless they are kept.
pub(crate) struct Undo<'a> {
    who: &'a Attachment,
    reservations: Option<&'a Reservations>,
    steps: Vec<Step>,
}

impl<'a> Undo<'a> {
    pub(crate) fn new(who: &'a Attachment, reservations: Option<&'a Reservations>) -> Self {
        Self { who, reservations, steps: Vec::new() }
    }

    pub(crate) fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// The attachment is complete.
    pub(crate) fn keep(mut self) {
        self.steps.clear();
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        while let Some(step) = self.steps.pop() {
            let undone = match &step {
                Step::Linked { index, name } => unlink(*index, name),
                Step::Masqueraded(pods) => {
                    let stopped = nat::open().and_then(|socket| nat::stop(socket, pods, self.who));
                    stopped.map_err(|e| e.to_string())
                }
                Step::Reserved(chosen) => self.release(chosen),
            };
            // The runtime gets the first failure and calls DEL, which finds whatever is left.
            if let Err(text) = undone {
                eprintln!("flannel: failed to undo: {text}");
            }
        }
    }
}

impl Undo<'_> {
    fn release(&self, chosen: &Chosen) -> Result<(), String> {
        let Some(reservations) = self.reservations else { return Ok(()) };
        reservations.release_these(self.who, &[chosen.address], PATIENCE).map_err(|e| e.to_string())
    }
}

fn unlink(index: u32, name: &IfName) -> Result<(), String> {
    let deleted = RouteSocket::open().and_then(|mut socket| socket.request(&link::delete(index, name)));
    match deleted {
        Err(e) if !e.is_not_found() => Err(crate::failure::kernel(&e).msg),
        _ => Ok(()),
    }
}

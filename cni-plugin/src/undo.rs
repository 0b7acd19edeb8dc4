//! What a failed ADD takes back.

use std::time::Duration;

use crate::{nat, reservations::Reservations};
use cni_core::{Attachment, Chosen, Error, HostAddress};
use linux::nft::Socket;

/// How long undoing waits for others: with what ADD waited before, less than runtimes wait for ADD.
const PATIENCE: Duration = Duration::from_secs(3);

/// A step that was done.
pub(crate) enum Step {
    /// An address is reserved.
    Reserved(Chosen),
    /// Addresses are masqueraded.
    Masqueraded(Vec<HostAddress>),
    /// Anything else, with what takes it back.
    Made(Box<dyn FnOnce() -> Result<(), Error>>),
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
            let undone = match step {
                Step::Masqueraded(pods) => nat::stop(Socket::open(), &pods, self.who),
                Step::Made(take_back) => take_back(),
                Step::Reserved(chosen) => self.release(&chosen),
            };
            // The runtime gets the first failure and calls DEL, which finds whatever is left.
            if let Err(error) = undone {
                eprintln!("failed to undo: {error}");
            }
        }
    }
}

impl Undo<'_> {
    fn release(&self, chosen: &Chosen) -> Result<(), Error> {
        let Some(reservations) = self.reservations else { return Ok(()) };
        reservations.release_these(self.who, &[chosen.address], PATIENCE)
    }
}

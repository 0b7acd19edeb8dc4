//! What a failed ADD takes back.

use std::{
    io::{self, Write},
    time::Duration,
};

use cni_core::Error;

use crate::records::Held;

/// How long undoing waits for others: with what ADD waited before, less than runtimes wait for ADD.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// What takes a step back.
type TakeBack<'a> = Box<dyn FnOnce() -> Result<(), Error> + 'a>;

/// The steps done so far, taken back newest first when this value goes, unless they are kept; then the record
/// goes too. If one can't be taken back, the record stays, so that DEL finds what is left.
pub(crate) struct Undo<'a> {
    record: Option<&'a Held>,
    steps: Vec<TakeBack<'a>>,
}

impl<'a> Undo<'a> {
    pub(crate) fn new(record: Option<&'a Held>) -> Self {
        Self { record, steps: Vec::new() }
    }

    /// A step is done, or begun, which `take_back` undoes.
    pub(crate) fn push(&mut self, take_back: impl FnOnce() -> Result<(), Error> + 'a) {
        self.steps.push(Box::new(take_back));
    }

    /// The attachment is complete, and so is its record.
    pub(crate) fn keep(mut self) {
        self.steps.clear();
        if let Some(record) = self.record.take() {
            record.close();
        }
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        let mut failed = false;
        // The runtime gets the first failure of ADD itself and calls DEL.
        let mut tell = |undone: Result<(), Error>| {
            if let Err(error) = undone {
                failed = true;
                // It goes on also where nobody listens, which `eprintln` would panic at.
                let _ = writeln!(io::stderr(), "failed to undo: {error}");
            }
        };
        while let Some(take_back) = self.steps.pop() {
            tell(take_back());
        }
        // An ADD that was cut short before this one may have left what this one never came to.
        let is_all = |record: &&Held| !failed && record.is_new;
        if let Some(record) = self.record.filter(is_all) {
            let _ = record.remove();
        }
    }
}

//! The seam to the kernel: two methods, in the words of the overlay.

use crate::{op::Op, overlay::Overlay};

/// Everything that flanneld asks of Linux about devices and routes. One real implementation, one fake.
pub trait Kernel {
    /// Why an operation or an observation failed.
    type Error: std::error::Error;

    /// What is there now, of what is ours.
    ///
    /// # Errors
    /// The kernel could not be asked, or something foreign is in the way.
    fn observe(&mut self) -> Result<Overlay, Self::Error>;

    /// Carries out as many operations as it can, in order; one result for each. An operation whose
    /// effect already holds is a success.
    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), Self::Error>>;
}

//! Our rules in the kernel's firewall.

use netmodel::{IfName, Subnet};

use crate::flags::Settings;

/// What we hold in the firewall.
#[derive(Debug)]
pub struct Firewall {}

impl Firewall {
    /// Opens a connection.
    ///
    /// # Errors
    /// The kernel has no nftables.
    pub fn open(_settings: &Settings) -> Result<Self, linux::Error> {
        Ok(Self {})
    }
    /// x
    pub fn aim(&mut self, _device: &IfName, _own: Subnet, _network: Subnet) {}
    /// x
    pub fn look_again(&mut self) {}
    /// x
    pub fn reconcile(&mut self) -> Vec<String> {
        Vec::new()
    }
    /// x
    pub fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

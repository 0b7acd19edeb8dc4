//! A kernel for tests that behaves, and is stricter than Linux: an operation that would point to
//! nothing is refused, so that a wrong order shows. And a wrapper that lets operations fail.

use crate::{
    kernel::Kernel,
    op::Op,
    overlay::{Hop, Overlay, Remote},
};

/// A kernel in memory.
#[derive(Clone, Debug)]
pub struct FakeKernel {
    /// What it holds.
    pub now: Overlay,
}

/// The fake kernel refuses an operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to {op}: {why}")]
pub struct Refused {
    op: String,
    why: &'static str,
}

impl Kernel for FakeKernel {
    type Error = Refused;

    fn observe(&mut self) -> Result<Overlay, Refused> {
        Ok(self.now.clone())
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), Refused>> {
        ops.iter().map(|op| self.one(op).map_err(|why| Refused { op: op.to_string(), why })).collect()
    }
}

impl FakeKernel {
    fn one(&mut self, op: &Op) -> Result<(), &'static str> {
        match op {
            Op::SetSysctl(path, value) => {
                let slot = self.now.sysctls.get_mut(path).ok_or("no such setting")?;
                slot.clone_from(value);
            }
            Op::AddDevice(_, device) => {
                if self.now.device.is_some() {
                    return Err("the device exists");
                }
                self.now.device = Some(crate::overlay::Device { up: false, ..device.clone() });
            }
            Op::DelDevice(_) => {
                self.now.device = None;
                self.now.addresses.clear();
                self.now.neighbours.clear();
                self.now.fdb.clear();
                self.now.routes.retain(|_, hop| *hop == Hop::Blackhole);
            }
            Op::ChangeDevice(..) | Op::SetMac(..) | Op::SetMtu(..) | Op::SetUp(_) => self.change(op)?,
            Op::SetRoute(..) | Op::DelRoute(..) => self.route(op)?,
            _ => self.entry(op)?,
        }
        Ok(())
    }

    fn change(&mut self, op: &Op) -> Result<(), &'static str> {
        let device = self.now.device.as_mut().ok_or("no device")?;
        match op {
            Op::ChangeDevice(_, new) => (device.local, device.learning) = (new.local, new.learning),
            Op::SetMac(_, mac) => {
                device.mac = *mac;
                self.now.neighbours.clear();
            }
            Op::SetMtu(_, mtu) => device.mtu = *mtu,
            _ => device.up = true,
        }
        Ok(())
    }

    fn entry(&mut self, op: &Op) -> Result<(), &'static str> {
        let device = self.now.device.as_ref().ok_or("no device")?;
        match op {
            Op::AddAddress(_, address, length) => drop(self.now.addresses.insert((*address, *length))),
            Op::DelAddress(_, address, length) => drop(self.now.addresses.remove(&(*address, *length))),
            Op::SetFdb(_, mac, node) => {
                self.now.fdb.retain(|(m, _)| m != mac);
                self.now.fdb.insert((*mac, Remote::plain(*node)));
            }
            Op::DelFdb(_, mac, remote) => {
                if self.now.neighbours.values().any(|m| m == mac) {
                    return Err("a neighbour points to it");
                }
                self.now.fdb.remove(&(*mac, *remote));
            }
            Op::SetNeighbour(..) if !device.up => return Err("the device is down"),
            Op::SetNeighbour(_, address, mac) => {
                if !self.now.fdb.iter().any(|(m, _)| m == mac) {
                    return Err("no forwarding entry for it");
                }
                self.now.neighbours.insert(*address, *mac);
            }
            Op::DelNeighbour(_, address) => {
                if self.now.routes.values().any(|hop| *hop == Hop::Tunnel(*address)) {
                    return Err("a route points to it");
                }
                self.now.neighbours.remove(address);
            }
            _ => {}
        }
        Ok(())
    }

    fn route(&mut self, op: &Op) -> Result<(), &'static str> {
        match op {
            Op::SetRoute(_, key, hop) => {
                if let Hop::Tunnel(gateway) = hop {
                    let up = self.now.device.as_ref().is_some_and(|device| device.up);
                    if !up || !self.now.neighbours.contains_key(gateway) {
                        return Err("its gateway is no neighbour");
                    }
                }
                self.now.routes.insert(*key, *hop);
            }
            Op::DelRoute(_, key, _) => drop(self.now.routes.remove(key)),
            _ => {}
        }
        Ok(())
    }
}

/// A kernel that refuses every `fail_every`-th operation (0: none) whatever it is.
#[derive(Clone, Debug)]
pub struct Flaky {
    /// The kernel behind it.
    pub inner: FakeKernel,
    /// Which operation fails.
    pub fail_every: usize,
    /// Operations so far.
    pub calls: usize,
}

impl Kernel for Flaky {
    type Error = Refused;

    fn observe(&mut self) -> Result<Overlay, Refused> {
        self.inner.observe()
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), Refused>> {
        let mut one = |op: &Op| {
            self.calls += 1;
            if self.fail_every > 0 && self.calls.is_multiple_of(self.fail_every) {
                return Err(Refused { op: op.to_string(), why: "busy" });
            }
            self.inner.apply(std::slice::from_ref(op)).remove(0)
        };
        ops.iter().map(&mut one).collect()
    }
}

//! A kernel for tests that behaves, and is stricter than Linux: an operation that would point to
//! nothing is refused, so that a wrong order shows. And a wrapper that lets operations fail.

use crate::{
    kernel::Kernel,
    op::Op,
    overlay::{Hop, Overlay},
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
            Op::SetSysctl(path, _) if !self.now.sysctls.contains_key(path) => return Err("no such setting"),
            Op::AddDevice(..) if self.now.device.is_some() => return Err("the device exists"),
            Op::RenameDevice(name, _) | Op::DelDevice(name) if *name != self.now.name => {
                return Err("no device of that name");
            }
            Op::SetSysctl(..) | Op::DelDevice(_) | Op::AddDevice(..) => {}
            Op::SetRoute(_, _, hop) if !hop.is_on_device() => {}
            Op::DelRoute(..) => {}
            _ => self.on_device(op)?,
        }
        self.now.acknowledge(op);
        Ok(())
    }

    /// Refuses what would point to nothing, or leave something that does.
    fn on_device(&self, op: &Op) -> Result<(), &'static str> {
        let device = self.now.device.as_ref().ok_or("no device")?;
        match op {
            Op::SetNeighbour(..) | Op::SetRoute(..) if !device.up => Err("the device is down"),
            Op::DelFdb(_, mac, _)
                if self.now.neighbours.values().any(|m| m == mac)
                    && self.now.fdb.iter().filter(|(m, _)| m == mac).count() == 1 =>
            {
                Err("a neighbour points to it")
            }
            Op::SetNeighbour(_, _, mac) if !self.now.fdb.iter().any(|(m, _)| m == mac) => {
                Err("no forwarding entry for it")
            }
            Op::DelNeighbour(_, address) if self.now.routes.values().any(|h| *h == Hop::Tunnel(*address)) => {
                Err("a route points to it")
            }
            Op::SetRoute(_, _, Hop::Tunnel(gateway)) if self.now.addresses.contains(&(*gateway, 32)) => {
                Err("its gateway is this node itself")
            }
            Op::SetRoute(_, _, Hop::Tunnel(gateway)) if !self.now.neighbours.contains_key(gateway) => {
                Err("its gateway is no neighbour")
            }
            _ => Ok(()),
        }
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

//! What this node holds in the kernel: the overlay and its rules, and what we know of both.

use netmodel::{IfName, Subnet};
use overlay_core::{diff::diff, kernel::Kernel, masquerade::Wishes, op::Op, overlay::Overlay};

use crate::{
    firewall::{Firewall, FirewallError},
    linux::{KernelError, LinuxKernel, Scope},
    lock,
    status::Earlier,
    wake::Pending,
};

/// What ends the daemon: no waiting can change it.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// A privilege or a kernel feature is missing.
    #[error("this kernel does not let flanneld work")]
    Kernel(#[source] KernelError),
    /// A privilege or a kernel feature is missing.
    #[error("this kernel does not let flanneld work")]
    Firewall(#[source] FirewallError),
    /// Netlink itself is missing.
    #[error("failed to talk to the kernel")]
    Netlink(#[source] linux::Error),
}

/// What we hold in the kernel.
#[derive(Debug)]
pub struct Hold {
    device: IfName,
    network: Subnet,
    kernel: LinuxKernel,
    firewall: Firewall,
    /// What the kernel acknowledged.
    shadow: Option<Overlay>,
    /// The last pass changed something.
    changed: bool,
    /// The shadow may differ from what is there: read all again.
    unsure: bool,
    /// All was in place once: this kernel can do it, so a refusal no longer ends the daemon.
    proven: bool,
    /// Devices that earlier runs of this flanneld held, and that may still be there.
    earlier: Vec<Earlier>,
    /// What earlier VNIs left is gone.
    tidy: bool,
}

impl Hold {
    /// Nothing is looked at yet; what is `earlier` goes once the new device works.
    ///
    /// # Errors
    /// No descriptor is free, or the kernel lacks what it takes.
    pub fn open(scope: Scope, wishes: Wishes, earlier: Vec<Earlier>) -> Result<Self, Fatal> {
        Ok(Self {
            device: scope.device.clone(),
            network: scope.network,
            kernel: LinuxKernel::open(scope).map_err(Fatal::Netlink)?,
            firewall: Firewall::open(wishes).map_err(Fatal::Netlink)?,
            shadow: None,
            changed: false,
            unsure: true,
            proven: false,
            earlier,
            tidy: false,
        })
    }

    /// Looks at another part of the kernel from now on.
    pub fn set_scope(&mut self, scope: Scope) {
        // Whether the device is of use was judged by the old one.
        self.unsure |= self.kernel.set_scope(scope);
    }

    /// Says what the rules are to be about: this node's own subnet.
    pub fn aim_firewall(&mut self, own: Subnet) {
        self.firewall.aim(&self.device, own, self.network);
    }

    /// What the kernel calls the changes that we make in the firewall.
    #[must_use]
    pub fn nft_port(&self) -> u32 {
        self.firewall.port()
    }

    /// Index of our device, if it exists.
    #[must_use]
    pub const fn index(&self) -> Option<u32> {
        self.kernel.index()
    }

    /// Devices that earlier runs held, and that may still be there.
    #[must_use]
    pub fn earlier(&self) -> &[Earlier] {
        &self.earlier
    }

    /// The last pass changed something.
    #[must_use]
    pub const fn has_changed(&self) -> bool {
        self.changed
    }

    /// Reads the kernel settings, which send no events.
    pub fn look_at_settings(&mut self) {
        if let Some(shadow) = &mut self.shadow {
            shadow.sysctls = self.kernel.settings();
        }
    }

    /// Corrects the shadow by what happened.
    pub fn take_note(&mut self, pending: &Pending) {
        self.unsure |= pending.everything;
        if pending.firewall {
            self.firewall.look_again();
        }
        if let Some(shadow) = &mut self.shadow {
            for change in pending.changes.values() {
                shadow.note(change);
            }
        }
    }

    /// Makes the kernel hold what is wanted; what failed comes back as text.
    ///
    /// # Errors
    /// A privilege or a feature of the kernel is missing.
    pub fn bring_about(&mut self, want: &Overlay) -> Result<Vec<String>, Fatal> {
        // The rules first: no packet of a pod leaves without them.
        let mut failures = match self.firewall.reconcile() {
            Ok(failures) => failures,
            Err(error) if error.is_final() && !self.proven => return Err(Fatal::Firewall(error)),
            Err(error) => vec![daemon::one_line(&error)],
        };
        match self.reconcile(want) {
            Ok(more) => failures.extend(more),
            Err(error) if error.is_final() && !self.proven => return Err(Fatal::Kernel(error)),
            Err(error) => failures.push(daemon::one_line(&error)),
        }
        let is_up = self.is_up(want);
        self.proven |= is_up;
        if is_up && !self.tidy {
            match self.remove_leftovers(want) {
                Ok(()) => self.tidy = true,
                Err(error) => failures.push(daemon::one_line(&error)),
            }
        }
        Ok(failures)
    }

    /// Carries out what is missing on our device and among routes.
    fn reconcile(&mut self, want: &Overlay) -> Result<Vec<String>, KernelError> {
        self.changed = false;
        let mut failures = Vec::new();
        let mut have = match self.shadow.take() {
            Some(have) if !self.unsure => have,
            _ => match self.kernel.observe() {
                // It went while it was looked at: now it is not there.
                Err(KernelError::Gone(_)) => self.kernel.observe()?,
                seen => seen?,
            },
        };
        self.unsure = false;
        let plan: Vec<Op> = diff(want, &have).into_iter().collect();
        let mut done = 0_usize;
        for (op, result) in plan.iter().zip(self.kernel.apply(&plan)) {
            match result {
                Ok(()) => {
                    tracing::debug!("{op}");
                    have.acknowledge(op);
                    done += 1;
                }
                Err(error) if matches!(op, Op::AddDevice(..)) && error.is_final() => return Err(error),
                // Where /proc/sys is read-only somebody else has to see to it: the status says so.
                Err(error) if matches!(op, Op::SetSysctl(..)) => tracing::debug!("{error}"),
                Err(error) => {
                    failures.push(daemon::one_line(&error));
                    self.unsure = true;
                }
            }
        }
        self.changed = done > 0;
        if let Some(first) = plan.first().filter(|_| done > 0) {
            tracing::info!(done, failed = failures.len(), %first, "overlay changed");
        }
        self.shadow = Some(have);
        Ok(failures)
    }

    /// Removes what this node had under other VNIs, now that the new device works.
    fn remove_leftovers(&mut self, want: &Overlay) -> Result<(), linux::Error> {
        self.earlier = self.kernel.leftovers(want, &self.earlier)?;
        while let Some(last) = self.earlier.last() {
            if let Some((device, network)) = last.parse()
                // Another flanneld may hold it.
                && let Ok(_lock) = lock::device(&device)
            {
                // The device goes last: by it we know that there is something left.
                match self.firewall.cleanup(&device) {
                    Err(error) if !error.is_unsupported() => return Err(error),
                    _ => self
                        .kernel
                        .remove(&device, network.filter(|network| !network.overlaps(&self.network)))?,
                }
                tracing::info!(%device, "removed what an earlier VNI of this node left");
            }
            self.earlier.pop();
        }
        Ok(())
    }

    /// Pods can be made: the device is there, and their packets meet the rules.
    #[must_use]
    pub fn is_up(&self, want: &Overlay) -> bool {
        let is_there = |have: &Overlay| have.device == want.device && have.addresses == want.addresses;
        self.firewall.is_in_place() && self.shadow.as_ref().is_some_and(is_there)
    }

    /// What a user should know, though the overlay works.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.firewall.warnings();
        let Some(have) = &self.shadow else { return warnings };
        if have.sysctls.get("net/ipv4/ip_forward").is_some_and(|value| value != "1") {
            warnings.push(
                "net.ipv4.ip_forward is off and can't be set: pods reach nothing outside their node"
                    .to_owned(),
            );
        }
        if have.sysctls.get("net/bridge/bridge-nf-call-iptables").is_none_or(|value| value != "1") {
            warnings.push(
                "net.bridge.bridge-nf-call-iptables is off: Services break whose endpoint is on the same node \
                 as the client; load br_netfilter and set it to 1"
                    .to_owned(),
            );
        }
        warnings
    }
}

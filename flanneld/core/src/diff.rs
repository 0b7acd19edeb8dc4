//! The way from what the kernel holds to what it should hold.

use std::collections::BTreeSet;

use netmodel::IfName;

use crate::{
    op::Op,
    overlay::{Device, Hop, Overlay},
};

/// The operations that lead from `have` to `want`, in the order in which they must be carried out.
/// Empty if the two are the same already.
#[must_use]
pub fn diff(want: &Overlay, have: &Overlay) -> BTreeSet<Op> {
    let mut ops = BTreeSet::new();
    // What a device takes with it when it goes, or forgets when its address changes, is written again.
    let mut base = have.clone();
    device(want, &mut base, &mut ops);
    sysctls(want, &base, &mut ops);
    addresses(want, &base, &mut ops);
    peers(want, &base, &mut ops);
    routes(want, &base, &mut ops);
    ops
}

/// Changes of the device. What is gone by then is taken out of `base`.
fn device(want: &Overlay, base: &mut Overlay, ops: &mut BTreeSet<Op>) {
    let name = &want.name;
    match (&want.device, base.device.take()) {
        (None, None) => {}
        (None, Some(_)) => {
            ops.insert(Op::DelDevice(base.name.clone()));
            base.lose_device();
        }
        (Some(new), None) => create(name, new, base, ops),
        (Some(new), Some(old)) if !new.fits(&old) => {
            ops.insert(Op::DelDevice(base.name.clone()));
            create(name, new, base, ops);
        }
        (Some(new), Some(old)) => {
            if *name != base.name {
                ops.insert(Op::RenameDevice(base.name.clone(), name.clone()));
            }
            if (new.local, new.learning) != (old.local, old.learning) {
                ops.insert(Op::ChangeDevice(name.clone(), new.clone()));
            }
            if new.mac != old.mac {
                ops.insert(Op::SetMac(name.clone(), new.mac));
                base.neighbours.clear();
            }
            if new.mtu != old.mtu {
                ops.insert(Op::SetMtu(name.clone(), new.mtu));
            }
            if new.up && !old.up {
                ops.insert(Op::SetUp(name.clone()));
            }
        }
    }
}

fn create(name: &IfName, device: &Device, base: &mut Overlay, ops: &mut BTreeSet<Op>) {
    ops.insert(Op::AddDevice(name.clone(), device.clone()));
    if device.up {
        ops.insert(Op::SetUp(name.clone()));
    }
    base.lose_device();
}

fn sysctls(want: &Overlay, have: &Overlay, ops: &mut BTreeSet<Op>) {
    for (path, value) in &want.sysctls {
        // What this kernel does not have can't be set.
        if have.sysctls.get(path).is_some_and(|old| old != value) {
            ops.insert(Op::SetSysctl(path.clone(), value.clone()));
        }
    }
}

fn addresses(want: &Overlay, have: &Overlay, ops: &mut BTreeSet<Op>) {
    for (address, length) in want.addresses.difference(&have.addresses) {
        ops.insert(Op::AddAddress(want.name.clone(), *address, *length));
    }
    for (address, length) in have.addresses.difference(&want.addresses) {
        ops.insert(Op::DelAddress(want.name.clone(), *address, *length));
    }
}

fn peers(want: &Overlay, have: &Overlay, ops: &mut BTreeSet<Op>) {
    let name = &want.name;
    for (mac, remote) in want.fdb.difference(&have.fdb) {
        ops.insert(Op::SetFdb(name.clone(), *mac, remote.address));
    }
    // Setting the node of an address replaces the one that it had.
    let replaced: BTreeSet<_> = want.fdb.difference(&have.fdb).map(|(mac, _)| *mac).collect();
    for (mac, remote) in have.fdb.difference(&want.fdb).filter(|(mac, _)| !replaced.contains(mac)) {
        ops.insert(Op::DelFdb(name.clone(), *mac, *remote));
    }
    for (address, mac) in &want.neighbours {
        if have.neighbours.get(address) != Some(mac) {
            ops.insert(Op::SetNeighbour(name.clone(), *address, *mac));
        }
    }
    for address in have.neighbours.keys().filter(|a| !want.neighbours.contains_key(a)) {
        ops.insert(Op::DelNeighbour(name.clone(), *address));
    }
}

fn routes(want: &Overlay, have: &Overlay, ops: &mut BTreeSet<Op>) {
    let name = &want.name;
    for (key, hop) in &want.routes {
        if have.routes.get(key) != Some(hop) {
            ops.insert(Op::SetRoute(name.clone(), *key, *hop));
        }
    }
    for (key, hop) in have.routes.iter().filter(|(key, _)| !want.routes.contains_key(key)) {
        if matches!(hop, Hop::ByHand(gateway) if want.direct(key.subnet) != Some(*gateway)) {
            continue;
        }
        ops.insert(Op::DelRoute(name.clone(), *key, *hop));
    }
}

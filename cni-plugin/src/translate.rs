//! ADD's part of address translation: a host port whose owner turns out to be gone is free.

use cni_core::{Attachment, Error, Nat, Taken};

use crate::{nat, networks::Call, records::Records, sweep, undo::Undo};

/// Sets what is `wanted`, if anything, in one transaction. A host port whose owner turns out to be gone is free.
pub(crate) fn start<'a>(call: &'a Call, wanted: &Nat<'_>, undo: &mut Undo<'a>) -> Result<(), Error> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut socket = nat::open()?;
    let pods = wanted.masqueraded.is_empty().then_some(&[][..]);
    let take_back = move || nat::stop(&mut nat::open()?, &call.who, pods, true).map(drop);
    undo.push(take_back);
    let records = Records::of(&call.network)?;
    let mut done = nat::set(&mut socket, wanted)?;
    while done.as_ref().is_err_and(|taken| is_abandoned(&records, taken)) {
        done = nat::set(&mut socket, wanted)?;
    }
    done.map_err(|taken| {
        let pod = taken.owner().and_then(|owner| records.pod_of(&owner));
        taken.into_error(pod.as_deref())
    })
}

/// Whether the port may be free now: its owner, or somebody else of the network, turned out to be gone.
fn is_abandoned(records: &Records, taken: &Taken) -> bool {
    let is_gone = |owner: Attachment| sweep::sweep_one(&records.of_network(&owner.network), &owner);
    taken.owner().is_some_and(|owner| is_gone(owner).unwrap_or(false))
        || sweep::sweep(records, true).is_ok_and(|freed| freed > 0)
}

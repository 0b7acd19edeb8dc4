//! `flannel` with another delegate than `bridge`: that plugin does the work, with the configuration that
//! `flannel` renders for it.

use cni_core::{Code, Error, Network};

use crate::{
    foreign, links,
    networks::Call,
    pod::{self, Pod},
    scratch::{self, Scratch},
};

/// Attaches, and returns the delegate's result.
pub(crate) fn add(call: &Call, delegated: &Network) -> Result<String, Error> {
    // One that is not there leaves nothing to detach.
    foreign::find(&delegated.kind)?;
    // What is there is another's, or was attached before: the delegate's DEL, once its ADD fails, would remove it.
    let netns = pod::open(call)?;
    if Pod::enter(&netns, &call.who.ifname)?.is_taken()? {
        return Err(links::taken(&call.who.ifname, &links::host_name(&call.who)?));
    }
    let place = Scratch::place(call)?;
    Scratch::write(&place, delegated, &call.who)?;
    let added = foreign::add(&delegated.kind, delegated);
    added.map(|(text, _)| text).inspect_err(|error| {
        // The first failure is the one to tell. Without the file the runtime's DEL would find nothing. One that does not
        // know the version has done nothing, and says the same of DEL.
        let is_refused = error.foreign == Some(Code::IncompatibleVersion as u64);
        if is_refused || foreign::run(&delegated.kind, "DEL", delegated).is_ok() {
            let _ = scratch::remove(&place);
        }
    })
}

/// Detaches what was delegated.
pub(crate) fn del(delegated: &Network, scratch: Option<&Scratch>) -> Result<(), Error> {
    foreign::run(&delegated.kind, "DEL", delegated)?;
    scratch.map_or(Ok(()), Scratch::remove)
}

/// CHECK, GC and STATUS, which print nothing.
pub(crate) fn pass_on(verb: &str, delegated: &Network) -> Result<(), Error> {
    foreign::run(&delegated.kind, verb, delegated).map(drop)
}

//! `flannel` with another delegate than `bridge`: that plugin does the work, with the configuration that
//! `flannel` renders for it.

use cni_core::{Code, Error, Network, Outcome};

use crate::{
    foreign,
    networks::Call,
    scratch::{self, Scratch},
};

/// Attaches, and returns the delegate's result.
pub(crate) fn add(call: &Call, delegated: &Network) -> Result<String, Error> {
    let place = Scratch::place(call)?;
    Scratch::write(&place, delegated, &call.who)?;
    let added = foreign::run(&delegated.kind, "ADD", delegated).and_then(|text| checked(delegated, text));
    added.inspect_err(|_| {
        // The first failure is the one to tell. Without the file the runtime's DEL would find nothing.
        if foreign::run(&delegated.kind, "DEL", delegated).is_ok() {
            let _ = scratch::remove(&place);
        }
    })
}

/// The result, which goes on as it is.
fn checked(delegated: &Network, text: String) -> Result<String, Error> {
    let garbled =
        |why: String| Error::new(Code::Decode, format!("plugin {} printed no result: {why}", delegated.kind));
    Outcome::of_text(&text).map_err(|e| garbled(e.msg))?;
    Ok(text)
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

//! STATUS: whether a container can be attached now.

use cni_core::{Arguments, Bridge, Code, Error, Network};

use crate::networks;

/// Silent if the network is ready.
pub(crate) fn status(network: &Network) -> Result<(), Error> {
    let not_available = |error: Error| match error.code {
        Code::TryAgainLater | Code::Decode => Error { code: Code::NotAvailable, ..error },
        _ => error,
    };
    let (network, _) = networks::complete(network).map_err(not_available)?;
    let bridge = Bridge::parse(&network, &Arguments::default())?;
    let Some(ipam) = bridge.ipam else { return Ok(()) };
    let Some(reservations) = networks::reservations(&network)? else { return Ok(()) };
    let taken = reservations.taken()?;
    for set in &ipam.sets {
        let inside = taken.iter().filter(|ip| set.range_of(**ip).is_some_and(|r| r.gateway != **ip)).count();
        if inside as u128 >= set.capacity() {
            let text = format!("no IP addresses available in range set: {set}");
            return Err(Error::new(Code::NotAvailable, text));
        }
    }
    Ok(())
}

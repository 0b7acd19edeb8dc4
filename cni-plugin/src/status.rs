//! STATUS: whether a container can be attached now.

use cni_core::{Arguments, Bridge, Code, Error, Network};

use crate::{addresses, networks};

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
    addresses::ready(&ipam, &reservations)
}

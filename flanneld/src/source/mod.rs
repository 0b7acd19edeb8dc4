//! Where leases come from.

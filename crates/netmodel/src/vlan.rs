//! VLANs (IEEE 802.1Q) of a bridge port.

/// Consecutive VLANs that a bridge port is in, all treated alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortVlans {
    /// The first one.
    pub first: u16,
    /// The last one.
    pub last: u16,
    /// What comes in without a tag is in this VLAN, of which there is one at most.
    pub pvid: bool,
    /// What goes out loses its tag.
    pub untagged: bool,
}

impl PortVlans {
    /// The lowest VLAN.
    pub const LOWEST: u16 = 1;
    /// The highest VLAN.
    pub const HIGHEST: u16 = 4094;

    /// VLANs whose frames have their tags on both ways.
    #[must_use]
    pub const fn tagged(first: u16, last: u16) -> Self {
        Self { first, last, pvid: false, untagged: false }
    }

    /// The VLAN of what has no tag on either way.
    #[must_use]
    pub const fn native(vlan: u16) -> Self {
        Self { first: vlan, last: vlan, pvid: true, untagged: true }
    }
}

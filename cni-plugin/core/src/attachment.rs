//! Who an interface, an address or a file belongs to.

use std::collections::BTreeSet;

use netmodel::{IfName, MARK, Mac};
use ruleset::LONGEST_COMMENT;
use sha2::{Digest, Sha512};

/// One interface of one container in one network: what every object of ours is keyed by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The network's name.
    pub network: String,
    /// The container's id.
    pub container: String,
    /// The interface's name inside the container.
    pub ifname: IfName,
}

impl Attachment {
    /// The name of the host's end of the veth pair: the same at every call, so that DEL needs no
    /// state and no namespace.
    #[must_use]
    pub fn host_link(&self) -> String {
        format!("veth{:011x}", self.hash() & ((1 << 44) - 1))
    }

    /// The name of the ifb device that what the container sends is queued on: the reference's prefix, but
    /// another name for each interface of a container.
    #[must_use]
    pub fn ifb(&self) -> String {
        format!("bwp{:012x}", self.hash() >> 16)
    }

    /// The name that the reference's `bandwidth` gives the ifb device of this container and network, for
    /// whatever interface.
    #[must_use]
    pub fn reference_ifb(&self) -> String {
        format!("bwp{}", self.reference_digits(12))
    }

    /// The name of the chain that the reference's `portmap` has iptables make for this container and network.
    #[must_use]
    pub fn reference_host_ports(&self) -> String {
        format!("CNI-DN-{}", self.reference_digits(21))
    }

    /// So many digits of the hash in the reference's names.
    fn reference_digits(&self, count: usize) -> String {
        let hash = Sha512::new().chain_update(&self.network).chain_update(&self.container).finalize();
        let mut digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        digits.truncate(count);
        digits
    }

    /// The host end's alias and the comment of rules: `weft:<network>/<container>/<interface>`; a
    /// container id that makes it too long for a comment is replaced by a hash. (An alias may be longer:
    /// IFALIASZ, 256 bytes.)
    #[must_use]
    pub fn alias(&self) -> String {
        let alias = format!("{}{}/{}", Self::alias_prefix(&self.network), self.container, self.ifname);
        if alias.len() <= LONGEST_COMMENT {
            return alias;
        }
        format!("{}#{:016x}/{}", Self::alias_prefix(&self.network), self.hash(), self.ifname)
    }

    /// Who has an alias, in words: `<container>/<interface> of <network>`.
    #[must_use]
    pub fn named_by(alias: &str) -> Option<String> {
        let (network, who) = alias.strip_prefix(MARK)?.split_once('/')?;
        Some(format!("{who} of {network}"))
    }

    /// What the aliases of all attachments to `network` begin with.
    #[must_use]
    pub fn alias_prefix(network: &str) -> String {
        if network.len() <= LONGEST_COMMENT / 2 {
            return format!("{MARK}{network}/");
        }
        let short: String = network.chars().take(LONGEST_COMMENT / 4).collect();
        format!("{MARK}{short}#{:016x}/", mix(network.bytes()))
    }

    /// The host end's Ethernet address.
    #[must_use]
    pub fn host_mac(&self) -> Mac {
        let [_, _, a, b, c, d, e, f] = self.hash().to_be_bytes();
        Mac::locally_administered([a, b, c, d, e, f])
    }

    /// The container end's Ethernet address where no IP address decides it.
    #[must_use]
    pub fn pod_mac(&self) -> Mac {
        let [a, b, c, d, e, f, _, _] = self.hash().to_be_bytes();
        Mac::locally_administered([a, b, c, d, e ^ 0x55, f])
    }

    /// The Ethernet address of a bridge that is made for it, where no IP address decides it.
    #[must_use]
    pub fn bridge_mac(&self) -> Mac {
        let [_, a, b, c, d, e, f, _] = self.hash().to_be_bytes();
        Mac::locally_administered([a, b, c, d, e, f])
    }

    /// What the file of a reserved address holds: container, CR LF, interface.
    #[must_use]
    pub fn reservation(&self) -> String {
        format!("{}\r\n{}", self.container, self.ifname)
    }

    /// The reservation in file content `content` is this attachment's. A file of only a container's
    /// id, as old plugins wrote it, stands for each interface of it.
    #[must_use]
    pub fn owns(&self, content: &[u8]) -> bool {
        owner_of(content).is_some_and(|owner| {
            owner.container == self.container && owner.ifname.is_none_or(|i| i == self.ifname.as_str())
        })
    }

    /// 64 bits that differ between attachments (FNV-1a, then the finaliser of MurmurHash3).
    pub(crate) fn hash(&self) -> u64 {
        let fields = [self.network.as_str(), "/", &self.container, "/", self.ifname.as_str()];
        mix(fields.iter().flat_map(|f| f.bytes()))
    }
}

/// Attachments of which the owners of many reservations are looked for.
#[derive(Debug)]
pub struct Owners<'a> {
    interfaces: BTreeSet<(&'a str, &'a str)>,
    containers: BTreeSet<&'a str>,
}

impl<'a> Owners<'a> {
    /// Those of `attachments`.
    #[must_use]
    pub fn of(attachments: &'a [Attachment]) -> Self {
        Self {
            interfaces: attachments.iter().map(|who| (who.container.as_str(), who.ifname.as_str())).collect(),
            containers: attachments.iter().map(|who| who.container.as_str()).collect(),
        }
    }

    /// One of them [owns](Attachment::owns) the reservation `content`.
    #[must_use]
    pub fn own(&self, content: &[u8]) -> bool {
        owner_of(content).is_some_and(|owner| match owner.ifname {
            Some(ifname) => self.interfaces.contains(&(owner.container, ifname)),
            None => self.containers.contains(owner.container),
        })
    }
}

/// A 64-bit hash of `bytes` (FNV-1a, then the finaliser of MurmurHash3).
pub(crate) fn mix(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let fnv = bytes
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    let half = (fnv ^ (fnv >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let full = (half ^ (half >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    full ^ (full >> 33)
}

/// Whom a reservation file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner<'a> {
    /// The container's id.
    pub container: &'a str,
    /// The interface; old plugins wrote none.
    pub ifname: Option<&'a str>,
}

/// Whom the content of a reservation file names; `None` where it is empty or garbled, as a crash
/// of older plugins leaves it: such an address is free.
#[must_use]
pub fn owner_of(content: &[u8]) -> Option<Owner<'_>> {
    let text = std::str::from_utf8(content).ok()?.trim();
    let (container, ifname) = match text.split_once('\n') {
        Some((container, ifname)) => (container.trim_end(), Some(ifname.trim())),
        None => (text, None),
    };
    let ifname_fits = ifname.is_none_or(|i| i.parse::<IfName>().is_ok());
    (is_identifier(container) && ifname_fits).then_some(Owner { container, ifname })
}

/// `text` is a container id or network name: a letter or digit, then those, `_`, `.` and `-`.
pub(crate) fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container: &str, ifname: &str) -> Attachment {
        Attachment { network: "cbr0".into(), container: container.into(), ifname: ifname.parse().unwrap() }
    }

    #[test]
    fn names_are_stable() {
        let a = attachment("c1", "eth0");
        assert_eq!(a.host_link(), "veth1c2b6599487");
        assert_eq!(a.host_link().len(), 15);
        assert_eq!((a.ifb().len(), &a.ifb()[..3]), (15, "bwp"));
        assert_ne!(a.ifb(), attachment("c1", "eth1").ifb());
        // Of its version 1.1.1.
        let theirs = Attachment { network: "n".into(), ..a.clone() };
        assert_eq!(theirs.reference_ifb(), "bwp9b00b9b7c279");
        assert_eq!(theirs.reference_host_ports(), "CNI-DN-9b00b9b7c2795a8a61a6e");
        assert_eq!(a.alias(), "weft:cbr0/c1/eth0");
        assert_eq!(Attachment::named_by(&a.alias()).as_deref(), Some("c1/eth0 of cbr0"));
        assert_ne!(a.host_link(), attachment("c1", "eth1").host_link());
        assert_ne!(a.host_mac(), a.pod_mac());
        assert!(!a.host_mac().is_multicast());
    }

    #[test]
    fn a_long_id_gives_a_short_alias() {
        let (a, b) = (attachment(&"x".repeat(300), "eth0"), attachment(&"x".repeat(301), "eth0"));
        assert!(a.alias().len() <= LONGEST_COMMENT && a.alias().starts_with("weft:cbr0/#"));
        assert_ne!(a.alias(), b.alias());
        let (one, two) = (format!("{}1", "n".repeat(70)), format!("{}2", "n".repeat(70)));
        assert_ne!(Attachment::alias_prefix(&one), Attachment::alias_prefix(&two));
        let long = Attachment { network: one, ..a };
        assert!(long.alias().len() <= LONGEST_COMMENT, "{}", long.alias());
    }

    #[test]
    fn reservations_are_read_as_the_reference_writes_them() {
        let a = attachment("c1", "eth0");
        assert!(a.owns(a.reservation().as_bytes()));
        let both = [a.clone(), attachment("c2", "eth1")];
        let owners = Owners::of(&both);
        for ours in ["c1\r\neth0", "c1\neth0\n", "  c1\r\neth0  ", "c1", "c1\r\n"] {
            assert!(a.owns(ours.as_bytes()) && owners.own(ours.as_bytes()), "{ours:?}");
        }
        for other in ["", "c1\r\neth1", "c11\r\neth0", "\0\0\0", "{}"] {
            assert!(!a.owns(other.as_bytes()) && !owners.own(other.as_bytes()), "{other:?}");
        }
        assert!(owners.own(b"c2\r\neth1") && owners.own(b"c2") && !owners.own(b"c2\r\neth0"));
        for garbled in [&b""[..], b" \r\n", b"\xff\xfe", b"\0\0", b"a b", b"-x\r\neth0", b"c1\r\neth0/9"] {
            assert_eq!(owner_of(garbled), None, "{garbled:?}");
        }
    }
}

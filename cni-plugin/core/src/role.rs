//! Which of its plugins a program is called as.

use crate::{Code, Error};

/// A plugin of the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An interface on the bridge of a node that `flanneld` leased a subnet for.
    Flannel,
    /// An interface on a bridge.
    Bridge,
    /// Addresses for another plugin's interface.
    HostLocal,
    /// Ports of the host, behind an interface plugin.
    Portmap,
    /// Limits of bandwidth, behind an interface plugin.
    Bandwidth,
    /// Settings of an interface, behind an interface plugin.
    Tuning,
    /// The loopback interface.
    Loopback,
}

impl Role {
    /// Every role, in the order of this list.
    pub const ALL: [Self; 7] = [
        Self::Flannel,
        Self::Bridge,
        Self::HostLocal,
        Self::Portmap,
        Self::Bandwidth,
        Self::Tuning,
        Self::Loopback,
    ];

    /// The name of the file that the plugin is found as, and the `type` that means it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flannel => "flannel",
            Self::Bridge => "bridge",
            Self::HostLocal => "host-local",
            Self::Portmap => "portmap",
            Self::Bandwidth => "bandwidth",
            Self::Tuning => "tuning",
            Self::Loopback => "loopback",
        }
    }

    /// The role of a program called `program` with a configuration of type `kind`: a file name of the set
    /// decides, except that `flannel`, like any other name, is whatever the type says.
    ///
    /// # Errors
    /// Code 2 for a type that is none of the set, 7 where it is needed and missing.
    pub fn of(program: &str, kind: &str) -> Result<Self, Error> {
        let named = |name: &str| Self::ALL.into_iter().find(|role| role.name() == name);
        match named(program).filter(|role| *role != Self::Flannel) {
            Some(role) => Ok(role),
            None if kind.is_empty() => Err(Error::new(Code::InvalidConfig, "missing plugin type")),
            None => named(kind).ok_or_else(|| Error::unsupported("type", &format!("{kind:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_name_decides_and_then_the_type() {
        let role = |program, kind| Role::of(program, kind).map_err(|e| (e.code, e.msg));
        assert_eq!(role("host-local", "macvlan"), Ok(Role::HostLocal));
        assert_eq!(role("portmap", ""), Ok(Role::Portmap));
        assert_eq!(role("bridge", "flannel"), Ok(Role::Bridge));
        assert_eq!(role("flannel", "bridge"), Ok(Role::Bridge));
        assert_eq!(role("weft-cni", "flannel"), Ok(Role::Flannel));
        for known in Role::ALL {
            assert_eq!(role("flannel", known.name()), Ok(known));
        }
        let unknown = "unsupported value for key \"type\": \"macvlan\"".to_owned();
        assert_eq!(role("flannel", "macvlan"), Err((Code::UnsupportedField, unknown)));
        assert_eq!(role("flannel", ""), Err((Code::InvalidConfig, "missing plugin type".into())));
    }
}

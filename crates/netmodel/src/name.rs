//! Names of interfaces and nodes.

use std::{fmt, str::FromStr};

/// A Linux interface name: 1 to 15 bytes, no `/`, no `:`, no white space, not `.` or `..`
/// (`dev_valid_name` in the kernel's `net/core/dev.c`, and IFNAMSIZ).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

/// A text that is no interface name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an interface name: it must be 1 to 15 bytes without '/', ':', '%' or white space, and not \".\" or \"..\""
)]
pub struct BadIfName(String);

impl IfName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = BadIfName;

    fn from_str(text: &str) -> Result<Self, BadIfName> {
        let length_fits = (1..=15).contains(&text.len());
        // Linux makes another name of one with '%' (`dev_alloc_name`).
        let forbidden = |c: char| matches!(c, '/' | ':' | '%' | '\0') || c.is_whitespace();
        if !length_fits || text == "." || text == ".." || text.contains(forbidden) {
            return Err(BadIfName(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a node as Kubernetes knows it: a DNS subdomain, 1 to 253 bytes of `a-z 0-9 - .`
/// (RFC 1123), beginning and ending with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

/// A text that is no node name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a node name: it must be 1 to 253 characters of a-z, 0-9, '-' and '.', with a letter or digit at both ends"
)]
pub struct BadNodeName(String);

impl NodeName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = BadNodeName;

    fn from_str(text: &str) -> Result<Self, BadNodeName> {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        let ends_fit = edge(text.chars().next()) && edge(text.chars().next_back());
        if text.len() > 253 || !ends_fit || !text.chars().all(inside) {
            return Err(BadNodeName(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_name_follows_the_kernels_rule() {
        for good in ["a", "eth0", "flannel.1", "cni0", "fifteen-bytes-x"] {
            assert_eq!(good.parse::<IfName>().map(|n| n.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "eth%d", "sixteen-bytes-xx"] {
            assert_eq!(bad.parse::<IfName>(), Err(BadIfName(bad.to_owned())));
        }
    }

    #[test]
    fn a_node_name_is_a_dns_subdomain() {
        for good in ["n", "node-1", "ip-10-0-0-1.eu.example"] {
            assert!(good.parse::<NodeName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "Node", "a_b", &"a".repeat(254)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }
}

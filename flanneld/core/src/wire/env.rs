//! `subnet.env`: what the CNI plugin and docker's helper read.

use std::{fmt, net::IpAddr};

use netmodel::{Mtu, Subnet};

/// The content of `subnet.env` as flannel writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The subnet of all pods.
    pub network: Subnet,
    /// This node's subnet.
    pub subnet: Subnet,
    /// Largest packet of a pod in bytes.
    pub mtu: Mtu,
    /// `-ip-masq`: packets that leave the network are masqueraded already.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// This node's subnet in a file that an earlier run wrote.
    ///
    /// # Errors
    /// It names none, several, or one that can't be read.
    pub fn previous(text: &str) -> Result<Subnet, BadSubnetEnv> {
        let line = text.lines().rev().find_map(|line| line.trim().strip_prefix("FLANNEL_SUBNET="));
        let value = line.ok_or(BadSubnetEnv::Missing)?.trim_matches(['"', '\'']);
        let parse = || {
            let (address, length) = value.split_once('/')?;
            let address: IpAddr = address.parse().ok()?;
            Subnet::containing(address, length.parse().ok()?).ok().filter(Subnet::is_ipv4)
        };
        parse().ok_or_else(|| BadSubnetEnv::Value(value.to_owned()))
    }
}

/// A `subnet.env` that names no subnet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSubnetEnv {
    /// The line is not there.
    #[error("FLANNEL_SUBNET is missing")]
    Missing,
    /// It is there with something else.
    #[error("FLANNEL_SUBNET {0:?} is not one IPv4 subnet")]
    Value(String),
}

impl fmt::Display for SubnetEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gateway = self.subnet.nth(1).unwrap_or_else(|| self.subnet.address());
        writeln!(f, "FLANNEL_NETWORK={}", self.network)?;
        writeln!(f, "FLANNEL_SUBNET={gateway}/{}", self.subnet.prefix())?;
        writeln!(f, "FLANNEL_MTU={}", self.mtu)?;
        writeln!(f, "FLANNEL_IPMASQ={}", self.ip_masq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_flannels() {
        let env = SubnetEnv {
            network: "10.42.0.0/16".parse().unwrap(),
            subnet: "10.42.7.0/24".parse().unwrap(),
            mtu: 1450_u64.try_into().unwrap(),
            ip_masq: true,
        };
        assert_eq!(env.to_string(), include_str!("../../tests/golden/subnet.env"));
        assert_eq!(SubnetEnv::previous(&env.to_string()), Ok(env.subnet));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for garbled in
            ["", "FLANNEL_SUBNET", "FLANNEL_SUBNET=", "FLANNEL_SUBNET=10.42.7.1", "FLANNEL_SUBNET=x/24"]
                .into_iter()
                .chain([
                    "FLANNEL_SUBNET=10.42.7.1/33",
                    "FLANNEL_SUBNET=10.1.1.1/24,10.1.2.1/24",
                    "FLANNEL_SUBNET=fd00::1/64",
                ])
        {
            let error = SubnetEnv::previous(garbled).unwrap_err().to_string();
            let expected = garbled.split_once('=').map_or_else(
                || "FLANNEL_SUBNET is missing".to_owned(),
                |(_, value)| format!("FLANNEL_SUBNET {value:?} is not one IPv4 subnet"),
            );
            assert_eq!(error, expected);
        }
        let quoted = SubnetEnv::previous("FLANNEL_SUBNET=\"10.1.2.1/24\"\r\n");
        assert_eq!(quoted, Ok("10.1.2.0/24".parse().unwrap()));
    }
}

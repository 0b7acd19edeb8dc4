//! `subnet.env`: what `flanneld` tells the plugin.

use netmodel::{Mtu, Subnet};

use crate::{Code, Error, Outcome, result::address_and_prefix};

/// The content of `subnet.env`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The whole pod network, one or more per family.
    pub networks: Vec<Subnet>,
    /// This node's part of it.
    pub subnets: Vec<Subnet>,
    /// The largest packet of a pod.
    pub mtu: Mtu,
    /// `flanneld` masquerades, so the plugin must not.
    pub ip_masq: bool,
}

/// What the lines hold, before anything is required.
#[derive(Default)]
struct Found {
    networks: Vec<Subnet>,
    subnets: Vec<Subnet>,
    mtu: Option<Mtu>,
    ip_masq: Option<bool>,
}

impl SubnetEnv {
    /// Reads the text of file `path`. Blank lines, comments, quotes, `export` and unknown keys are
    /// fine; the last of a repeated key wins.
    ///
    /// # Errors
    /// Code 11 where keys are missing (`flanneld` may not have finished), 6 where a value is wrong;
    /// the file and every key that is missing are named.
    pub fn parse(path: &str, text: &str) -> Result<Self, Error> {
        let mut found = [Found::default(), Found::default()];
        for line in text.lines().map(str::trim).filter(|l| !l.starts_with('#')) {
            let line = line.strip_prefix("export ").unwrap_or(line);
            let Some((key, value)) = line.split_once('=') else { continue };
            let (key, value) = (key.trim(), value.trim().trim_matches(['"', '\'']));
            read(&mut found, key, value)
                .map_err(|why| Error::new(Code::Decode, format!("failed to read {key} in {path}: {why}")))?;
        }
        let [mut four, mut six] = found;
        four.networks.append(&mut six.networks);
        four.subnets.append(&mut six.subnets);
        four.finish(path)
    }
}

impl SubnetEnv {
    /// What it must have said for an attachment with that result.
    #[must_use]
    pub fn of_result(result: &Outcome, ifname: &str, is_masqueraded: bool) -> Option<Self> {
        let subnets = result.addresses_of(ifname).map(|ip| Subnet::containing(ip.address, ip.prefix));
        let mtu = result.interfaces.iter().find(|i| i.name == ifname).map(|i| u64::from(i.mtu));
        // That of Ethernet, where the result is too old to say it: nobody asks for it.
        let mtu = mtu.into_iter().chain([1500]).find_map(|mtu| Mtu::try_from(mtu).ok())?;
        Some(Self {
            networks: Vec::new(),
            subnets: subnets.filter_map(Result::ok).collect(),
            mtu,
            ip_masq: !is_masqueraded,
        })
    }
}

/// Takes in one line: IPv4 first, then IPv6, whose lists are kept apart so that a repeated key
/// replaces only its own.
fn read([four, six]: &mut [Found; 2], key: &str, value: &str) -> Result<(), String> {
    match key {
        "FLANNEL_NETWORK" => four.networks = subnets(value)?,
        "FLANNEL_SUBNET" => four.subnets = subnets(value)?,
        "FLANNEL_IPV6_NETWORK" => six.networks = subnets(value)?,
        "FLANNEL_IPV6_SUBNET" => six.subnets = subnets(value)?,
        "FLANNEL_MTU" => {
            let number: u64 = value.parse().map_err(|_| format!("{value:?} is not a number"))?;
            four.mtu = Some(Mtu::try_from(number).map_err(|e| e.to_string())?);
        }
        "FLANNEL_IPMASQ" => {
            four.ip_masq = Some(match value.to_ascii_lowercase().as_str() {
                "true" | "1" | "t" => true,
                "false" | "0" | "f" => false,
                _ => return Err(format!("{value:?} is neither true nor false")),
            });
        }
        _ => {}
    }
    Ok(())
}

/// A comma list of subnets; each is written with an address of its own.
fn subnets(text: &str) -> Result<Vec<Subnet>, String> {
    let one = |text: &str| {
        let (address, prefix) = address_and_prefix(text)?;
        Subnet::containing(address, prefix).ok()
    };
    let texts = text.split(',').map(str::trim).filter(|t| !t.is_empty());
    texts.map(|text| one(text).ok_or_else(|| format!("{text:?} is not a subnet"))).collect()
}

impl Found {
    fn finish(self, path: &str) -> Result<SubnetEnv, Error> {
        let missing: Vec<&str> = [
            ("FLANNEL_NETWORK", self.networks.is_empty()),
            ("FLANNEL_SUBNET", self.subnets.is_empty()),
            ("FLANNEL_MTU", self.mtu.is_none()),
            ("FLANNEL_IPMASQ", self.ip_masq.is_none()),
        ]
        .into_iter()
        .filter_map(|(key, absent)| absent.then_some(key))
        .collect();
        match (self.mtu, self.ip_masq) {
            (Some(mtu), Some(ip_masq)) if missing.is_empty() => {
                Ok(SubnetEnv { networks: self.networks, subnets: self.subnets, mtu, ip_masq })
            }
            _ => Err(Error::new(Code::TryAgainLater, format!("{path} is missing {}", missing.join(", ")))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SubnetEnv, (Code, String)> {
        SubnetEnv::parse("/run/flannel/subnet.env", text).map_err(|e| (e.code, e.msg))
    }

    const FULL: &str =
        "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn the_daemons_own_form_is_read() {
        let env = parse(FULL).unwrap();
        assert_eq!(env.networks, ["10.42.0.0/16".parse().unwrap()]);
        assert_eq!(env.subnets, ["10.42.3.0/24".parse().unwrap()]);
        assert_eq!((env.mtu.get(), env.ip_masq), (1450, true));
    }

    #[test]
    fn loose_forms_are_read() {
        let loose = "# c\r\n\r\nexport FLANNEL_NETWORK=\"10.42.0.0/16,10.43.0.0/16\"\r\n FLANNEL_SUBNET = 10.42.3.1/24 \n\
            FLANNEL_IPV6_NETWORK=fd00::/56\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\nFLANNEL_MTU='1450'\nFLANNEL_IPMASQ=False\nX\nY=1";
        let env = parse(loose).unwrap();
        assert_eq!((env.networks.len(), env.subnets.len(), env.ip_masq), (3, 2, false));
        let six = "FLANNEL_IPV6_NETWORK=fd00::/56\nFLANNEL_IPV6_SUBNET=fd00::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true";
        assert!(!parse(six).unwrap().subnets[0].is_ipv4());
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let missing = |text| parse(text).unwrap_err();
        assert_eq!(
            missing(""),
            (
                Code::TryAgainLater,
                "/run/flannel/subnet.env is missing FLANNEL_NETWORK, FLANNEL_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ"
                    .into()
            )
        );
        assert!(missing("FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=\n").1.contains("FLANNEL_SUBNET"));
        for (line, why) in [
            (
                "FLANNEL_MTU=big",
                "failed to read FLANNEL_MTU in /run/flannel/subnet.env: \"big\" is not a number",
            ),
            ("FLANNEL_MTU=7", "failed to read FLANNEL_MTU in /run/flannel/subnet.env: 7 is not an MTU"),
            ("FLANNEL_SUBNET=10.0.0.1", "\"10.0.0.1\" is not a subnet"),
            ("FLANNEL_SUBNET=10.0.0.1/+24", "\"10.0.0.1/+24\" is not a subnet"),
            ("FLANNEL_IPMASQ=maybe", "\"maybe\" is neither true nor false"),
        ] {
            let (code, text) = parse(&format!("{FULL}{line}\n")).unwrap_err();
            assert!(code == Code::Decode && text.contains(why), "{text}");
        }
    }
}

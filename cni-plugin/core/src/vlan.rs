//! VLANs of the container's port: `vlan`, `vlanTrunk` and `preserveDefaultVlan`.

use netmodel::{IfName, PortVlans};
use serde_json::Value;

use crate::{Code, Error, attachment::mix, json::Keys};

/// The VLAN of what has no tag, where a trunk is asked for and no `vlan`.
const DEFAULT: u16 = 1;

/// Which VLANs a bridge port is to be in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vlans {
    /// The port's own.
    ports: Vec<PortVlans>,
    /// It stays in those too that the bridge puts every port into.
    preserves_default: bool,
    /// The key that asks for them, and its value.
    asked: (&'static str, String),
    /// The interface for the gateway's addresses of the VLAN, or why there can be none of its name.
    gateway: Option<Result<IfName, Error>>,
}

impl Vlans {
    /// Reads the keys of a network on `bridge`; `None` where no VLAN is asked for.
    pub(crate) fn parse(keys: &Keys<'_>, bridge: &IfName, is_gateway: bool) -> Result<Option<Self>, Error> {
        let preserves_default = keys.flag("preserveDefaultVlan")?;
        let vlan = match keys.number("vlan")?.unwrap_or(0) {
            0 => None,
            vlan => Some(checked(vlan).ok_or_else(|| {
                let highest = PortVlans::HIGHEST;
                invalid(format!("invalid VLAN ID {vlan} (must be between 0 and {highest})"))
            })?),
        };
        let list = keys.list("vlanTrunk")?;
        let mut trunk = Vec::new();
        for entry in list {
            trunk.extend(trunk_entry(entry)?);
        }
        let asked = match vlan {
            Some(vlan) => ("vlan", vlan.to_string()),
            None if trunk.is_empty() => return Ok(None),
            None => ("vlanTrunk", Value::from(list).to_string()),
        };
        let native = vlan.unwrap_or(DEFAULT);
        let (trunk, mut ports) = (one_by_one(&trunk), vec![PortVlans::native(native)]);
        ports.extend(ranges(|vlan| vlan != native && trunk[usize::from(vlan)].is_some()));
        let gateway = vlan.filter(|_| is_gateway).map(|vlan| gateway_link(bridge, vlan));
        Ok(Some(Self { ports, preserves_default, asked, gateway }))
    }

    /// Those of the port behind which the gateway is: the native one alone.
    #[must_use]
    pub fn of_gateway(&self) -> Self {
        Self { ports: self.ports[..1].to_vec(), ..self.clone() }
    }

    /// The interface that has the gateway's addresses, where that is not the bridge.
    pub(crate) fn gateway_link(&self) -> Option<&IfName> {
        self.gateway.as_ref()?.as_ref().ok()
    }

    /// What the port is to be in, in any case.
    #[must_use]
    pub fn ports(&self) -> &[PortVlans] {
        &self.ports
    }

    /// What the port is not to be in: everything else, unless it stays where the bridge puts every port.
    #[must_use]
    pub fn others(&self) -> Vec<PortVlans> {
        if self.preserves_default {
            return Vec::new();
        }
        let wanted = one_by_one(&self.ports);
        ranges(|vlan| wanted[usize::from(vlan)].is_none())
    }

    /// A port that is in `seen` is as it is to be.
    #[must_use]
    pub fn are_met_by(&self, seen: &[PortVlans]) -> bool {
        let (wanted, seen) = (one_by_one(&self.ports), one_by_one(seen));
        let is_well = |(wanted, seen): (&Treatment, &Treatment)| {
            wanted == seen || (wanted.is_none() && self.preserves_default)
        };
        wanted.iter().zip(&seen).all(is_well)
    }

    /// Whether they can be had on a kernel that `is_capable` of keeping VLANs apart, or is not.
    ///
    /// # Errors
    /// Code 2 with key and value where it is not; code 7 where the gateway's interface can't have its name.
    pub fn check(&self, is_capable: bool) -> Result<(), Error> {
        if !is_capable {
            return Err(Error::unsupported(self.asked.0, &self.asked.1));
        }
        self.gateway.clone().map_or(Ok(()), |gateway| gateway.map(drop))
    }
}

/// The name of the interface that has the gateway's addresses of one VLAN of the bridge.
fn gateway_link(bridge: &IfName, vlan: u16) -> Result<IfName, Error> {
    let name = format!("{bridge}.{vlan}");
    name.parse().map_err(|e: netmodel::BadIfName| invalid(format!("invalid vlan gateway {name:?}: {e}")))
}

/// The name of the bridge port that interface `gateway` is behind.
#[must_use]
pub fn gateway_port(gateway: &IfName) -> String {
    format!("vlan{:011x}", mix(gateway.as_str().bytes()) & ((1 << 44) - 1))
}

/// The VLANs that `are_in`, with their tags, as ranges.
fn ranges(are_in: impl Fn(u16) -> bool) -> Vec<PortVlans> {
    let mut ranges: Vec<PortVlans> = Vec::new();
    for vlan in (PortVlans::LOWEST..=PortVlans::HIGHEST).filter(|vlan| are_in(*vlan)) {
        match ranges.last_mut() {
            Some(range) if range.last + 1 == vlan => range.last = vlan,
            _ => ranges.push(PortVlans::tagged(vlan, vlan)),
        }
    }
    ranges
}

/// How a port treats a VLAN that it is in: `pvid` and `untagged` of [`PortVlans`].
type Treatment = Option<(bool, bool)>;

/// The treatment of each VLAN, by its number.
fn one_by_one(ranges: &[PortVlans]) -> Vec<Treatment> {
    let mut each = vec![None; usize::from(PortVlans::HIGHEST) + 1];
    for range in ranges {
        let part = each.get_mut(usize::from(range.first)..=usize::from(range.last));
        part.into_iter().flatten().for_each(|vlan| *vlan = Some((range.pvid, range.untagged)));
    }
    each
}

fn invalid(text: String) -> Error {
    Error::new(Code::InvalidConfig, text)
}

fn checked(vlan: u64) -> Option<u16> {
    u16::try_from(vlan).ok().filter(|vlan| (PortVlans::LOWEST..=PortVlans::HIGHEST).contains(vlan))
}

/// One entry of `vlanTrunk`: an id, both ends of a range, or all three.
fn trunk_entry(entry: &Value) -> Result<impl Iterator<Item = PortVlans>, Error> {
    let keys = Keys::element("vlanTrunk", entry)?;
    let read = |name: &str| {
        let Some(vlan) = keys.number(name)? else { return Ok(None) };
        let highest = PortVlans::HIGHEST;
        checked(vlan).map(Some).ok_or_else(|| {
            invalid(format!("incorrect trunk {name} parameter {vlan}: it must be 1 to {highest}"))
        })
    };
    let id = read("id")?;
    let range = match (read("minID")?, read("maxID")?) {
        (Some(min), Some(max)) if min > max => {
            return Err(invalid(format!("minID {min} is greater than maxID {max}")));
        }
        (Some(_), None) => return Err(invalid("missing trunk parameter maxID".to_owned())),
        (None, Some(_)) => return Err(invalid("missing trunk parameter minID".to_owned())),
        (min, max) => min.zip(max),
    };
    Ok(id.map(|id| (id, id)).into_iter().chain(range).map(|(first, last)| PortVlans::tagged(first, last)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(document: &Value) -> Result<Option<Vlans>, (Code, String)> {
        let bridge = "abcdefghijkl".parse().unwrap();
        let keys = Keys::root(document.as_object().unwrap());
        Vlans::parse(&keys, &bridge, true).map_err(|e| (e.code, e.msg))
    }

    fn vlans(document: &Value) -> Vlans {
        parse(document).unwrap().unwrap()
    }

    fn trunk(entries: &Value) -> Vec<(u16, u16)> {
        vlans(&json!({"vlan": 5, "vlanTrunk": entries})).ports()[1..]
            .iter()
            .map(|p| (p.first, p.last))
            .collect()
    }

    #[test]
    fn a_trunk_is_ids_and_ranges_in_any_order() {
        assert_eq!(trunk(&json!([])), []);
        assert_eq!(trunk(&json!([{}])), []);
        assert_eq!(trunk(&json!([{"minID": 1, "maxID": 3}])), [(1, 3)]);
        assert_eq!(trunk(&json!([{"id": 4094}])), [(4094, 4094)]);
        assert_eq!(trunk(&json!([{"minID": 200, "maxID": 210}, {"id": 101}])), [(101, 101), (200, 210)]);
        assert_eq!(trunk(&json!([{"minID": 10, "maxID": 20, "ID": 21}, {"id": 7}])), [(7, 7), (10, 21)]);
        // What has no tag has one VLAN, and that is not tagged.
        assert_eq!(trunk(&json!([{"minID": 1, "maxID": 4094}])), [(1, 4), (6, 4094)]);
    }

    #[test]
    fn mistakes_are_named() {
        for (entry, text) in [
            (json!({"minID": 10}), "missing trunk parameter maxID"),
            (json!({"maxID": 10}), "missing trunk parameter minID"),
            (json!({"minID": 12, "maxID": 10}), "minID 12 is greater than maxID 10"),
            (json!({"id": 4095}), "incorrect trunk id parameter 4095: it must be 1 to 4094"),
            (json!({"id": 0}), "incorrect trunk id parameter 0: it must be 1 to 4094"),
            (json!({"minID": 0, "maxID": 7}), "incorrect trunk minID parameter 0: it must be 1 to 4094"),
            (
                json!({"minID": 4095, "maxID": 7}),
                "incorrect trunk minID parameter 4095: it must be 1 to 4094",
            ),
            (
                json!({"minID": 1, "maxID": 4095}),
                "incorrect trunk maxID parameter 4095: it must be 1 to 4094",
            ),
        ] {
            let error = parse(&json!({"vlanTrunk": [entry]})).unwrap_err();
            assert_eq!(error, (Code::InvalidConfig, text.to_owned()));
        }
        for entry in
            [json!({"id": -1}), json!({"minID": -1, "maxID": 7}), json!({"minID": 1, "maxID": -7}), json!(7)]
        {
            assert_eq!(parse(&json!({"vlanTrunk": [entry]})).unwrap_err().0, Code::Decode, "{entry}");
        }
        let text = "invalid VLAN ID 4095 (must be between 0 and 4094)";
        assert_eq!(parse(&json!({"vlan": 4095})), Err((Code::InvalidConfig, text.to_owned())));
        for document in [json!({"vlan": -1}), json!({"vlan": "7"}), json!({"preserveDefaultVlan": 1})] {
            assert_eq!(parse(&document).unwrap_err().0, Code::Decode, "{document}");
        }
    }

    #[test]
    fn what_has_no_tag_is_in_the_vlan_or_in_the_first_one() {
        assert_eq!(parse(&json!({"vlan": 0, "vlanTrunk": [], "preserveDefaultVlan": true})), Ok(None));
        assert_eq!(vlans(&json!({"vlan": 100})).ports(), [PortVlans::native(100)]);
        let trunk = vlans(&json!({"vlanTrunk": [{"id": 101}]}));
        assert_eq!(trunk.ports(), [PortVlans::native(1), PortVlans::tagged(101, 101)]);
        assert_eq!(trunk.of_gateway().ports(), [PortVlans::native(1)]);
        assert_eq!(trunk.others(), [PortVlans::tagged(2, 100), PortVlans::tagged(102, 4094)]);
        assert_eq!(vlans(&json!({"vlan": 100, "preserveDefaultVlan": true})).others(), []);
        assert_eq!(vlans(&json!({"vlanTrunk": [{"minID": 1, "maxID": 4094}]})).others(), []);
    }

    #[test]
    fn a_port_is_in_what_it_must_be_and_in_more_only_where_that_is_wanted() {
        let default = PortVlans { pvid: false, ..PortVlans::native(1) };
        let ports = [PortVlans::native(100), PortVlans::tagged(200, 201), PortVlans::tagged(202, 202)];
        let config = json!({"vlan": 100, "vlanTrunk": [{"minID": 200, "maxID": 202}]});
        let alone = vlans(&config);
        assert!(alone.are_met_by(&ports));
        for other in
            [&ports[..2], &[ports[0], ports[1], ports[2], default], &[PortVlans::tagged(100, 202)], &[]]
        {
            assert!(!alone.are_met_by(other), "{other:?}");
        }
        let preserving = Vlans { preserves_default: true, ..alone };
        assert!(preserving.are_met_by(&[default, ports[0], ports[1], ports[2]]));
        assert!(!preserving.are_met_by(&ports[1..]));
    }

    #[test]
    fn the_key_that_asks_is_named_with_its_value() {
        let refusal = |document: &Value| vlans(document).check(false).unwrap_err().msg;
        assert_eq!(refusal(&json!({"vlan": 100})), "unsupported value for key \"vlan\": 100");
        let text = "unsupported value for key \"vlanTrunk\": [{\"id\":7},{\"maxID\":9,\"minID\":8}]";
        assert_eq!(refusal(&json!({"vlanTrunk": [{"id": 7}, {"minID": 8, "maxID": 9}]})), text);
    }

    #[test]
    fn the_gateways_interface_is_named_by_bridge_and_vlan() {
        let bridge: IfName = "cni0".parse().unwrap();
        let link = gateway_link(&bridge, 100).unwrap();
        assert_eq!(vlans(&json!({"vlan": 40})).check(true), Ok(()));
        assert_eq!((link.as_str(), gateway_port(&link).len()), ("cni0.100", 15));
        assert_ne!(gateway_port(&link), gateway_port(&gateway_link(&bridge, 101).unwrap()));
        // That the kernel can't is told first.
        let long = vlans(&json!({"vlan": 4094}));
        let code = |is_capable| long.check(is_capable).unwrap_err().code;
        assert_eq!((code(true), code(false)), (Code::InvalidConfig, Code::UnsupportedField));
    }
}

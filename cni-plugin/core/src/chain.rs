//! What a chained plugin makes of the result that came to it.

use serde_json::{Map, Value};

use crate::{Code, Error, Interface, Network, Outcome, json::Keys};

impl Network {
    /// What the earlier plugins of the chain reported, as a chained plugin needs it.
    ///
    /// # Errors
    /// Code 999 without `prevResult`; 6 and 7 for a garbled one.
    pub fn chained(&self) -> Result<Outcome, Error> {
        let missing =
            || Error::new(Code::Internal, "must be called as chained plugin: Required prevResult missing");
        Outcome::parse(self.previous().ok_or_else(missing)?)
    }

    /// `prevResult` as the result of a chained plugin that changes nothing of it: word for word where it is
    /// of this network's version.
    ///
    /// # Errors
    /// As [`chained`](Self::chained).
    pub fn pass_on(&self) -> Result<String, Error> {
        self.pass_on_with(&self.chained()?.interfaces)
    }

    /// The same with the interfaces of `prevResult` as a chained plugin changed them, and more behind them.
    ///
    /// # Errors
    /// As [`chained`](Self::chained).
    pub fn pass_on_with(&self, interfaces: &[Interface]) -> Result<String, Error> {
        let before = self.chained()?;
        let is_ours = |text: &str| text.is_empty() || text == self.version.as_str();
        let verbatim = self.previous().and_then(Value::as_object).cloned().unwrap_or_default();
        if !Keys::root(&verbatim).text("cniVersion")?.is_none_or(is_ours) {
            return Outcome { interfaces: interfaces.to_vec(), ..before }.to_json(self.version);
        }
        let mut list = Keys::root(&verbatim).list("interfaces")?.to_vec();
        for (index, interface) in interfaces.iter().enumerate() {
            let wanted = interface.to_value(self.version);
            match (list.get_mut(index), wanted) {
                (Some(_), _) if before.interfaces.get(index) == Some(interface) => {}
                (Some(Value::Object(found)), Value::Object(wanted)) => {
                    wanted.into_iter().for_each(|(key, value)| replace(found, &key, value));
                }
                (_, wanted) => list.push(wanted),
            }
        }
        let mut document = verbatim;
        replace(&mut document, "cniVersion", self.version.as_str().into());
        if before.interfaces != interfaces {
            replace(&mut document, "interfaces", list.into());
        }
        Ok(Value::Object(document).to_string())
    }
}

/// Sets `key`, which may be there in another letter case.
pub(crate) fn replace(map: &mut Map<String, Value>, key: &str, value: Value) {
    map.retain(|found, _| !found.eq_ignore_ascii_case(key));
    map.insert(key.to_owned(), value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_adds_nothing_passes_on_what_came() {
        let passed = |version: &str, previous: &str| {
            let text =
                format!(r#"{{"cniVersion":"{version}","name":"n","type":"t","prevResult":{previous}}}"#);
            Network::parse(text.as_bytes()).unwrap().pass_on()
        };
        let odd =
            r#"{"cniVersion":"1.1.0","dns":{},"interfaces":[{"name":"a","socketPath":"/s"}],"x":[null]}"#;
        assert_eq!(passed("1.1.0", odd).unwrap(), odd);
        assert_eq!(passed("1.0.0", odd).unwrap(), r#"{"cniVersion":"1.0.0","interfaces":[{"name":"a"}]}"#);
        assert!(passed("1.0.0", "null").unwrap_err().msg.starts_with("must be called as chained plugin"));
    }

    #[test]
    fn what_changes_an_interface_keeps_the_rest() {
        let changed = |version: &str| {
            let previous =
                r#"{"cniVersion":"1.1.0","Interfaces":[{"name":"a","MAC":"1","socketPath":"/s"}],"x":1}"#;
            let text =
                format!(r#"{{"cniVersion":"{version}","name":"n","type":"t","prevResult":{previous}}}"#);
            let network = Network::parse(text.as_bytes()).unwrap();
            let mut interfaces = network.chained().unwrap().interfaces;
            (interfaces[0].mac, interfaces[0].mtu) = ("2".into(), 9);
            interfaces.push(Interface { name: "b".into(), ..Interface::default() });
            network.pass_on_with(&interfaces).unwrap()
        };
        let one = r#"{"cniVersion":"1.1.0","interfaces":[{"mac":"2","mtu":9,"name":"a","socketPath":"/s"},{"name":"b"}],"x":1}"#;
        assert_eq!(changed("1.1.0"), one);
        assert_eq!(
            changed("0.4.0"),
            r#"{"cniVersion":"0.4.0","dns":{},"interfaces":[{"mac":"2","name":"a"},{"name":"b"}]}"#
        );
    }
}

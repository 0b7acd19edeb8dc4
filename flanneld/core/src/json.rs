//! JSON objects as Go programs read them: keys match in any letter case, `null` is absent.

use serde_json::{Map, Value};

/// A JSON object whose keys match in any letter case; the exact case wins where both are there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Object(Map<String, Value>);

impl Object {
    /// The object in `text`, or what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|e| format!("it is not JSON: {e}"))?;
        Self::from_value(value).map_err(|value| format!("it is not a JSON object, but {value}"))
    }

    /// The object in `value`, or the value back.
    pub(crate) fn from_value(value: Value) -> Result<Self, Value> {
        match value {
            Value::Object(map) => Ok(Self(map)),
            other => Err(other),
        }
    }

    /// The value of a key; `null` counts as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        let exact = self.0.get_key_value(name);
        let folded = || self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        exact.or_else(folded).map(|(_, value)| value).filter(|value| !value.is_null())
    }
}

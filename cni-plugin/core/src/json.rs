//! Reading JSON objects as Go programs do: keys in any letter case, `null` as absent.

use std::{fmt::Display, str::FromStr};

use serde_json::{Map, Value};

use crate::{Code, Error};

/// The value of `key` in `map` in any letter case; the exact spelling wins. `null` is absent.
pub(crate) fn find<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    map.get(key)
        .or_else(|| map.iter().rev().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v))
        .filter(|v| !v.is_null())
}

/// An object at a known place of the input, or nothing where the input has none.
#[derive(Clone, Debug)]
pub(crate) struct Keys<'a> {
    /// Where the object lies, for messages: empty, or `ipam.`.
    place: String,
    map: Option<&'a Map<String, Value>>,
}

impl<'a> Keys<'a> {
    /// The input itself.
    pub(crate) fn root(map: &'a Map<String, Value>) -> Self {
        Self { place: String::new(), map: Some(map) }
    }

    /// Element `value` of a list that lies at `place`.
    pub(crate) fn element(place: &str, value: &'a Value) -> Result<Self, Error> {
        match value {
            Value::Object(map) => Ok(Self { place: format!("{place}."), map: Some(map) }),
            other => Err(wrong(place, "an object", other)),
        }
    }

    /// The raw value of `key`.
    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        find(self.map?, key)
    }

    /// The place of `key` as messages name it.
    pub(crate) fn place(&self, key: &str) -> String {
        format!("{}{key}", self.place)
    }

    /// The object at `key`; an empty one where there is none.
    pub(crate) fn child(&self, key: &str) -> Result<Self, Error> {
        let place = format!("{}{key}.", self.place);
        match self.value(key) {
            None => Ok(Self { place, map: None }),
            Some(Value::Object(map)) => Ok(Self { place, map: Some(map) }),
            Some(other) => Err(wrong(&self.place(key), "an object", other)),
        }
    }

    /// Keys and values of the object at `key`; none where there is none.
    pub(crate) fn entries(&self, key: &str) -> Result<impl Iterator<Item = (&'a str, &'a Value)>, Error> {
        let map = self.child(key)?.map;
        Ok(map.into_iter().flatten().map(|(key, value)| (key.as_str(), value)))
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(&self.place(key), "a string", other)),
        }
    }

    /// A text that is not empty.
    pub(crate) fn filled(&self, key: &str) -> Result<Option<&'a str>, Error> {
        Ok(self.text(key)?.filter(|t| !t.is_empty()))
    }

    /// A text that is not empty, parsed.
    pub(crate) fn parsed<T>(&self, key: &str) -> Result<Option<T>, Error>
    where
        T: FromStr,
        T::Err: Display,
    {
        let Some(text) = self.filled(key)? else { return Ok(None) };
        text.parse().map(Some).map_err(|e| {
            Error::new(Code::InvalidConfig, format!("invalid {} {text:?}: {e}", self.place(key)))
        })
    }

    pub(crate) fn flag(&self, key: &str) -> Result<bool, Error> {
        match self.value(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(wrong(&self.place(key), "true or false", other)),
        }
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => {
                value.as_u64().map(Some).ok_or_else(|| wrong(&self.place(key), "a whole number", value))
            }
        }
    }

    /// A number of at most 32 bits.
    pub(crate) fn number32(&self, key: &str) -> Result<Option<u32>, Error> {
        let Some(number) = self.number(key)? else { return Ok(None) };
        u32::try_from(number).map(Some).map_err(|_| {
            Error::new(Code::InvalidConfig, format!("invalid {} {number}: it is too large", self.place(key)))
        })
    }

    /// The list at `key`; empty where there is none.
    pub(crate) fn list(&self, key: &str) -> Result<&'a [Value], Error> {
        match self.value(key) {
            None => Ok(&[]),
            Some(Value::Array(list)) => Ok(list),
            Some(other) => Err(wrong(&self.place(key), "a list", other)),
        }
    }

    /// The list of strings at `key`.
    pub(crate) fn texts(&self, key: &str) -> Result<Vec<&'a str>, Error> {
        let text = |v: &'a Value| v.as_str().ok_or_else(|| wrong(&self.place(key), "a list of strings", v));
        self.list(key)?.iter().map(text).collect()
    }
}

/// `place` holds another kind of value than `wanted`.
pub(crate) fn wrong(place: &str, wanted: &str, found: &Value) -> Error {
    let mut found = found.to_string();
    if found.len() > 80 {
        let end = (0..=80).rev().find(|i| found.is_char_boundary(*i)).unwrap_or(0);
        found.truncate(end);
        found.push_str("...");
    }
    Error::new(
        Code::Decode,
        format!("error unmarshall network config: {place} must be {wanted}, not {found}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn keys_match_in_any_letter_case_and_null_is_absent() {
        let map = object(r#"{"HostPort":1,"b":null,"C":{"D":[]},"name":"low","NAME":"high"}"#);
        let keys = Keys::root(&map);
        assert_eq!(keys.number("hostPort"), Ok(Some(1)));
        assert_eq!(keys.text("b"), Ok(None));
        assert_eq!(keys.text("name"), Ok(Some("low")));
        assert!(keys.child("c").unwrap().list("d").unwrap().is_empty());
        assert!(!keys.child("absent").unwrap().flag("x").unwrap());
    }

    #[test]
    fn a_wrong_kind_names_the_place() {
        let map = object(r#"{"ipam":{"ranges":7}}"#);
        let error = Keys::root(&map).child("ipam").unwrap().list("ranges").unwrap_err();
        assert_eq!(error.code, Code::Decode);
        assert_eq!(error.msg, "error unmarshall network config: ipam.ranges must be a list, not 7");
    }
}

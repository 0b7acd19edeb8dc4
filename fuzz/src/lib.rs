//! What targets have in common that go deeper than the parser of JSON: documents of the right form, mostly, with
//! values of the right kind, mostly.

use cni_core::Network;
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use serde_json::{Map, Value, json};

/// Makes a value of the right kind.
pub type Make = fn(&mut Unstructured<'_>) -> Result<Value>;

/// The network with those keys, where it is one.
#[must_use]
pub fn network(mut keys: Value) -> Option<Network> {
    let known = [("cniVersion", "1.1.0"), ("name", "n"), ("type", "t")];
    let all = keys.as_object_mut()?;
    all.extend(known.map(|(key, value)| (key.to_owned(), value.into())));
    Network::parse(keys.to_string().as_bytes()).ok()
}

/// An object with some of these keys; now and then a key is in another letter case, or its value of any kind.
///
/// # Errors
/// As for all here: the input is used up.
pub fn object(u: &mut Unstructured<'_>, keys: &[(&str, Make)]) -> Result<Value> {
    let mut object = Map::new();
    for (key, make) in keys {
        if !u.arbitrary()? {
            continue;
        }
        let key = if u.ratio(1, 8)? { key.to_uppercase() } else { (*key).to_owned() };
        let value = if u.ratio(1, 16)? { anything(u)? } else { make(u)? };
        object.insert(key, value);
    }
    Ok(object.into())
}

/// The value at `key` of an object, in any letter case.
#[must_use]
pub fn find<'a>(object: &'a Value, key: &str) -> Option<&'a Value> {
    object.as_object()?.iter().find(|(found, _)| found.eq_ignore_ascii_case(key)).map(|(_, value)| value)
}

/// A list of at most `most` values.
///
/// # Errors
/// See [`object`].
pub fn list(u: &mut Unstructured<'_>, most: usize, make: Make) -> Result<Value> {
    (0..u.int_in_range(0..=most)?).map(|_| make(u)).collect::<Result<Vec<_>>>().map(Value::from)
}

/// One of these texts, or any.
///
/// # Errors
/// See [`object`].
pub fn text(u: &mut Unstructured<'_>, known: &[&str]) -> Result<String> {
    if u.ratio(1, 8)? { u.arbitrary() } else { Ok((*u.choose(known)?).to_owned()) }
}

/// One of these numbers, or any.
///
/// # Errors
/// See [`object`].
pub fn number(u: &mut Unstructured<'_>, known: &[u64]) -> Result<Value> {
    let number = if u.ratio(1, 4)? { u.arbitrary()? } else { *u.choose(known)? };
    Ok(number.into())
}

/// `true` or `false`.
///
/// # Errors
/// See [`object`].
pub fn flag(u: &mut Unstructured<'_>) -> Result<Value> {
    Ok(u.arbitrary::<bool>()?.into())
}

fn anything(u: &mut Unstructured<'_>) -> Result<Value> {
    Ok(match u.int_in_range(0..=6)? {
        0 => Value::Null,
        1 => u.arbitrary::<bool>()?.into(),
        2 => u.arbitrary::<i64>()?.into(),
        3 => u.arbitrary::<f64>()?.into(),
        4 => u.arbitrary::<String>()?.into(),
        5 => json!([u.arbitrary::<u8>()?]),
        _ => json!({u.arbitrary::<String>()?: 0}),
    })
}

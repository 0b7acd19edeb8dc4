//! Errors as the runtime reads them.

use serde_json::{Map, Value, json};

use crate::{SpecVersion, json::Keys};

/// Error codes of the CNI specification 1.1.0, section "Error", and two of its reference library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The configuration's version is not supported, or does not know the verb.
    IncompatibleVersion = 1,
    /// A key's value is not supported; the message names both.
    UnsupportedField = 2,
    /// An environment variable is missing or wrong; the message names it.
    BadEnvironment = 4,
    /// A file or the kernel failed.
    Io = 5,
    /// The input could not be decoded.
    Decode = 6,
    /// The configuration contradicts itself or is incomplete.
    InvalidConfig = 7,
    /// The network namespace is not usable (reference library).
    InvalidNetns = 8,
    /// A condition that passes: the same call may succeed later.
    TryAgainLater = 11,
    /// STATUS: no container can be attached now.
    NotAvailable = 50,
    /// STATUS: the same, and containers that are there may have lost their connection.
    Degraded = 51,
    /// Somebody else has what is asked for, such as a host port; the message says who.
    Taken = 100,
    /// Anything else (reference library).
    Internal = 999,
}

/// A failure, in the runtime's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}")]
pub struct Error {
    /// What kind of failure.
    pub code: Code,
    /// One sentence: what was tried, on what object, and why it failed.
    pub msg: String,
    /// More than fits a sentence; empty for none.
    pub details: String,
    /// The code of another plugin whose error this is; `code` counts for nothing then.
    pub foreign: Option<u64>,
}

impl Error {
    /// An error without details.
    #[must_use]
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new(), foreign: None }
    }

    /// Key `key` of the configuration has a value that this plugin does not support.
    #[must_use]
    pub fn unsupported(key: &str, value: &str) -> Self {
        Self::new(Code::UnsupportedField, format!("unsupported value for key {key:?}: {value}"))
    }

    /// The error that another plugin printed; `None` where `document` is none.
    #[must_use]
    pub fn passed_on(document: &str) -> Option<Self> {
        let Ok(Value::Object(map)) = serde_json::from_str(document) else { return None };
        let keys = Keys::root(&map);
        let code = keys.number("code").ok()??;
        let text = |key| keys.text(key).ok().flatten().unwrap_or_default();
        Some(Self {
            foreign: Some(code),
            ..Self::new(Code::Internal, text("msg")).with_details(text("details"))
        })
    }

    /// The same error, whose message names the plugin `kind` if it is another plugin's.
    #[must_use]
    pub fn about_plugin(mut self, kind: &str) -> Self {
        if self.foreign.is_some() {
            self.msg = format!("plugin {kind}: {}", self.msg);
        }
        self
    }

    /// The same error with `details`.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The document for standard output. `version` is the request's, where it is known.
    #[must_use]
    pub fn to_json(&self, version: Option<SpecVersion>) -> String {
        let mut document = Map::new();
        if let Some(version) = version {
            document.insert("cniVersion".into(), version.as_str().into());
        }
        document.insert("code".into(), json!(self.foreign.unwrap_or(self.code as u64)));
        document.insert("msg".into(), self.msg.as_str().into());
        if !self.details.is_empty() {
            document.insert("details".into(), self.details.as_str().into());
        }
        Value::Object(document).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_plugins_error_is_told_as_it_was() {
        let text = r#"{"cniVersion":"1.0.0","code":114,"msg":"no lease","details":"dhcp"}"#;
        let error = Error::passed_on(text).unwrap();
        assert_eq!(error.to_json(None), r#"{"code":114,"details":"dhcp","msg":"no lease"}"#);
        assert_eq!(error.about_plugin("dhcp").msg, "plugin dhcp: no lease");
        assert!(["", "{}", "[]", "panic: x"].iter().all(|text| Error::passed_on(text).is_none()));
    }

    #[test]
    fn a_document_holds_code_and_message() {
        let error = Error::unsupported("vlan", "100").with_details("d");
        assert_eq!(
            error.to_json(Some(SpecVersion::V1_1_0)),
            r#"{"cniVersion":"1.1.0","code":2,"details":"d","msg":"unsupported value for key \"vlan\": 100"}"#
        );
        assert_eq!(Error::new(Code::Internal, "x").to_json(None), r#"{"code":999,"msg":"x"}"#);
    }
}

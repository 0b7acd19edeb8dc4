//! Versions of the CNI specification.

use serde_json::json;

use crate::{Code, Error};

/// A published version of the CNI specification; ordered by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    /// 0.1.0: one address per family.
    V0_1_0,
    /// 0.2.0: VERSION.
    V0_2_0,
    /// 0.3.0: interfaces and several addresses.
    V0_3_0,
    /// 0.3.1: corrected text of 0.3.0.
    V0_3_1,
    /// 0.4.0: CHECK, and the previous result at DEL.
    V0_4_0,
    /// 1.0.0: addresses without a `version`.
    V1_0_0,
    /// 1.1.0: GC, STATUS, MTU in results.
    V1_1_0,
}

impl SpecVersion {
    /// Every version this plugin speaks, oldest first.
    pub const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The version as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version of a configuration whose `cniVersion` is `text` (empty or absent means 0.1.0).
    ///
    /// # Errors
    /// Code 1 with both sides in the details.
    pub fn of_config(text: Option<&str>) -> Result<Self, Error> {
        let text = text.filter(|t| !t.is_empty()).unwrap_or("0.1.0");
        Self::ALL.into_iter().find(|v| v.as_str() == text).ok_or_else(|| {
            let supported = Self::ALL.map(|v| format!("{:?}", v.as_str())).join(" ");
            Error::new(Code::IncompatibleVersion, "incompatible CNI versions")
                .with_details(format!("config is {text:?}, plugin supports [{supported}]"))
        })
    }
}

/// The answer to VERSION.
#[must_use]
pub fn version_reply() -> String {
    json!({
        "cniVersion": SpecVersion::V1_1_0.as_str(),
        "supportedVersions": SpecVersion::ALL.map(SpecVersion::as_str),
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_means_the_oldest_and_unknown_is_code_1() {
        assert_eq!(SpecVersion::of_config(None), Ok(SpecVersion::V0_1_0));
        assert_eq!(SpecVersion::of_config(Some("")), Ok(SpecVersion::V0_1_0));
        let error = SpecVersion::of_config(Some("9.9.9")).unwrap_err();
        assert_eq!(
            (error.code, error.msg.as_str()),
            (Code::IncompatibleVersion, "incompatible CNI versions")
        );
        assert!(error.details.starts_with("config is \"9.9.9\", plugin supports [\"0.1.0\" \"0.2.0\""));
    }

    #[test]
    fn version_lists_them_all() {
        assert_eq!(
            version_reply(),
            r#"{"cniVersion":"1.1.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#
        );
    }
}

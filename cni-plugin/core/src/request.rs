//! The request: environment and standard input.

use std::ffi::OsString;

use netmodel::{IfName, Mac};
use serde_json::{Map, Value};

use crate::{
    Attachment, Code, Error, SpecVersion,
    attachment::is_identifier,
    chain::replace,
    json::{Keys, wrong},
};

/// The variables that a runtime sets, as it set them.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// CNI_COMMAND.
    pub command: Option<OsString>,
    /// CNI_CONTAINERID.
    pub container: Option<OsString>,
    /// CNI_NETNS.
    pub netns: Option<OsString>,
    /// CNI_NETNS_OVERRIDE.
    pub netns_override: Option<OsString>,
    /// CNI_IFNAME.
    pub ifname: Option<OsString>,
    /// CNI_ARGS.
    pub args: Option<OsString>,
    /// CNI_PATH.
    pub path: Option<OsString>,
}

/// What a container's interface is asked to go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Attach.
    Add,
    /// Detach; absent is done.
    Del,
    /// Compare.
    Check,
}

/// A verb with what the environment must hold for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// List the versions; reads no input.
    Version,
    /// Can a container be attached?
    Status,
    /// Remove what belongs to no valid attachment.
    Gc,
    /// ADD, DEL or CHECK.
    Container {
        /// Which of them.
        verb: Verb,
        /// The container's id.
        container: String,
        /// The interface's name in the container.
        ifname: IfName,
        /// The namespace's path as the runtime wrote it; DEL may come without.
        netns: Option<String>,
        /// The namespace may be the plugin's own.
        own_netns: bool,
        /// CNI_ARGS.
        args: Arguments,
    },
}

/// What CNI_ARGS may hold for this plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// `IP`: the address asked for.
    pub ip: Option<String>,
    /// `MAC`: the Ethernet address asked for.
    pub mac: Option<Mac>,
    /// `K8S_POD_NAMESPACE` and `K8S_POD_NAME` as `namespace/name`, for messages.
    pub pod: Option<String>,
}

/// The text on standard error when no verb is given.
#[must_use]
pub fn about(program: &str, program_version: &str) -> String {
    let versions = SpecVersion::ALL.map(SpecVersion::as_str).join(", ");
    format!("Weft CNI plugin {program} {program_version}\nCNI protocol versions supported: {versions}\n")
}

impl Invocation {
    /// Reads the environment; `None` where it names no verb.
    ///
    /// # Errors
    /// Code 4: a variable is missing (all of them are named) or wrong.
    pub fn parse(env: &Environment) -> Result<Option<Self>, Error> {
        let Some(command) = filled("CNI_COMMAND", &env.command)? else { return Ok(None) };
        let verb = match command {
            "VERSION" => return Ok(Some(Self::Version)),
            "STATUS" => return Ok(Some(Self::Status)),
            "GC" => {
                require(&[("CNI_PATH", filled("CNI_PATH", &env.path)?)])?;
                return Ok(Some(Self::Gc));
            }
            "ADD" => Verb::Add,
            "DEL" => Verb::Del,
            "CHECK" => Verb::Check,
            other => return Err(bad(format!("unknown CNI_COMMAND: {other}"))),
        };
        let netns = filled("CNI_NETNS", &env.netns)?;
        let container = filled("CNI_CONTAINERID", &env.container)?;
        let ifname = filled("CNI_IFNAME", &env.ifname)?;
        require(&[
            ("CNI_CONTAINERID", container),
            ("CNI_NETNS", netns.or((verb == Verb::Del).then_some(""))),
            ("CNI_IFNAME", ifname),
            ("CNI_PATH", filled("CNI_PATH", &env.path)?),
        ])?;
        let container = container.unwrap_or_default();
        if !is_identifier(container) {
            return Err(bad("invalid characters in containerID").with_details(container));
        }
        Ok(Some(Self::Container {
            verb,
            container: container.to_owned(),
            ifname: interface_name(ifname.unwrap_or_default())?,
            netns: netns.map(str::to_owned),
            own_netns: filled("CNI_NETNS_OVERRIDE", &env.netns_override)?
                .is_some_and(|text| text == "1" || text.eq_ignore_ascii_case("true")),
            args: Arguments::parse(filled("CNI_ARGS", &env.args)?.unwrap_or_default())?,
        }))
    }
}

/// The environment variable of that name if it is set and not empty.
fn filled<'a>(name: &str, variable: &'a Option<OsString>) -> Result<Option<&'a str>, Error> {
    let Some(value) = variable else { return Ok(None) };
    let text = value.to_str().ok_or_else(|| bad(format!("{name} is not UTF-8: {value:?}")))?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

fn bad(msg: impl Into<String>) -> Error {
    Error::new(Code::BadEnvironment, msg)
}

/// Every variable has a value.
fn require(variables: &[(&str, Option<&str>)]) -> Result<(), Error> {
    let missing: Vec<&str> = variables.iter().filter(|(_, v)| v.is_none()).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(bad(format!("required env variables [{}] missing", missing.join(","))))
}

/// The interface's name, with the reference's words where it is none.
fn interface_name(text: &str) -> Result<IfName, Error> {
    let msg = match text {
        _ if text.len() > 15 => "interface name is too long",
        "." | ".." => "interface name is . or ..",
        _ if text.contains('%') => "interface name contains %",
        _ => "interface name contains / or : or whitespace characters",
    };
    text.parse().map_err(|e: netmodel::BadIfName| bad(msg).with_details(e.to_string()))
}

impl Arguments {
    /// Reads `KEY=VALUE;KEY=VALUE`.
    ///
    /// # Errors
    /// Code 4: a pair that is not one key, one `=` and one value, a wrong value, or an unknown key without
    /// `IgnoreUnknown`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut found = Self::default();
        let (mut unknown, mut ignore) = (Vec::new(), false);
        let (mut namespace, mut name) = (None, None);
        if text.is_empty() {
            return Ok(found);
        }
        for pair in text.split(';') {
            let sides = pair.split_once('=').filter(|(_, value)| !value.contains('='));
            let (key, value) = sides.ok_or_else(|| bad(format!("ARGS: invalid pair {pair:?}")))?;
            match key {
                "IgnoreUnknown" => ignore = yes_or_no(value)?,
                "IP" => found.ip = Some(value.to_owned()),
                "MAC" if value.is_empty() => {}
                "MAC" => found.mac = Some(value.parse().map_err(|e| bad(format!("ARGS: MAC: {e}")))?),
                "K8S_POD_NAMESPACE" => namespace = Some(value),
                "K8S_POD_NAME" => name = Some(value),
                _ => {}
            }
            if !["IgnoreUnknown", "IP", "MAC"].contains(&key) {
                unknown.push(format!("{pair:?}"));
            }
        }
        if !ignore && !unknown.is_empty() {
            return Err(bad(format!("ARGS: unknown args [{}]", unknown.join(" "))));
        }
        found.pod = namespace.zip(name).map(|(namespace, name)| format!("{namespace}/{name}"));
        Ok(found)
    }
}

/// A boolean as the reference's library reads it.
fn yes_or_no(text: &str) -> Result<bool, Error> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(bad(format!("ARGS: IgnoreUnknown: boolean unmarshal error: invalid input {text:?}"))),
    }
}

/// A network configuration: standard input, checked as far as every verb needs it.
#[derive(Clone, Debug)]
pub struct Network {
    /// The version it was written for, and the answer is written in.
    pub version: SpecVersion,
    /// The network's name.
    pub name: String,
    /// `type`: which plugin is meant; empty where it is missing (see [`Role::of`](crate::Role::of)).
    pub kind: String,
    /// The whole of it.
    pub(crate) raw: Map<String, Value>,
}

impl Network {
    /// Reads standard input.
    ///
    /// # Errors
    /// Code 6 for what is no JSON object, 1 for a version that is not supported, 7 for a missing
    /// or wrong name. The version, where it could be read, comes with the error.
    pub fn parse(stdin: &[u8]) -> Result<Self, (Option<SpecVersion>, Error)> {
        let decode = |e: String| Error::new(Code::Decode, format!("error unmarshall network config: {e}"));
        let raw = match serde_json::from_slice(stdin) {
            Ok(Value::Object(raw)) => raw,
            Ok(other) => return Err((None, wrong("the document", "an object", &other))),
            Err(e) => return Err((None, decode(e.to_string()))),
        };
        let version = Keys::root(&raw)
            .text("cniVersion")
            .and_then(SpecVersion::of_config)
            .map_err(|error| (None, error))?;
        Self::checked(raw, version).map_err(|error| (Some(version), error))
    }

    /// The same network with another document, as a delegating plugin hands it on.
    ///
    /// # Errors
    /// As [`Network::parse`].
    pub fn with_document(&self, raw: Map<String, Value>) -> Result<Self, Error> {
        Self::checked(raw, self.version)
    }

    fn checked(raw: Map<String, Value>, version: SpecVersion) -> Result<Self, Error> {
        let keys = Keys::root(&raw);
        let invalid = |msg: &str| Error::new(Code::InvalidConfig, msg);
        let name = keys.filled("name")?.ok_or_else(|| invalid("missing network name"))?.to_owned();
        if !is_identifier(&name) {
            return Err(invalid("invalid characters found in network name").with_details(name));
        }
        let kind = keys.filled("type")?.unwrap_or_default().to_owned();
        Ok(Self { version, name, kind, raw })
    }

    /// The verb is known to the configuration's version.
    ///
    /// # Errors
    /// Code 1.
    pub fn allows(&self, invocation: &Invocation) -> Result<(), Error> {
        let (verb, since) = match invocation {
            Invocation::Container { verb: Verb::Check, .. } => ("CHECK", SpecVersion::V0_4_0),
            Invocation::Gc => ("GC", SpecVersion::V1_1_0),
            Invocation::Status => ("STATUS", SpecVersion::V1_1_0),
            _ => return Ok(()),
        };
        if self.version >= since {
            return Ok(());
        }
        Err(Error::new(Code::IncompatibleVersion, format!("config version does not allow {verb}")))
    }

    /// The configuration, for another plugin.
    #[must_use]
    pub fn to_json(&self) -> String {
        Value::Object(self.raw.clone()).to_string()
    }

    /// The same network with `previous` as `prevResult`.
    #[must_use]
    pub fn with_previous(&self, previous: Option<&Value>) -> Self {
        let mut network = self.clone();
        if let Some(previous) = previous {
            replace(&mut network.raw, "prevResult", previous.clone());
        }
        network
    }

    /// The same network in another version of the specification.
    ///
    /// # Errors
    /// As [`Network::parse`].
    pub fn in_version(&self, version: SpecVersion) -> Result<Self, Error> {
        let mut raw = self.raw.clone();
        replace(&mut raw, "cniVersion", version.as_str().into());
        Self::checked(raw, version)
    }

    /// `prevResult`, where the runtime gave one.
    #[must_use]
    pub fn previous(&self) -> Option<&Value> {
        self.keys().value("prevResult")
    }

    /// The entry declares capability `name`, so that the runtime hands it `runtimeConfig` for it.
    #[must_use]
    pub fn is_capable_of(&self, name: &str) -> bool {
        self.keys().child("capabilities").and_then(|keys| keys.flag(name)).unwrap_or(false)
    }

    /// The runtime hands this entry something for the capability `name` that it declares.
    #[must_use]
    pub fn is_handed(&self, name: &str) -> bool {
        let handed = self.keys().child("runtimeConfig").ok().and_then(|keys| keys.value(name));
        self.is_capable_of(name) && handed.is_some_and(|value| value.as_array().is_none_or(|l| !l.is_empty()))
    }

    /// What the runtime hands this entry for the capability `name` that it declares, as `parse` reads it; nothing for
    /// an entry without the capability, which leaves that to the plugin behind it.
    ///
    /// # Errors
    /// Those of `parse`.
    pub fn handed<T: Default>(
        &self,
        name: &str,
        parse: impl FnOnce(&Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.is_handed(name) { parse(self) } else { Ok(T::default()) }
    }

    /// The attachments that GC must keep, as (container, interface); `None` where the key is absent.
    ///
    /// # Errors
    /// Code 6.
    pub fn valid_attachments(&self) -> Result<Option<Vec<Attachment>>, Error> {
        const KEY: &str = "cni.dev/valid-attachments";
        if self.keys().value(KEY).is_none() {
            return Ok(None);
        }
        let one = |value| -> Result<Attachment, Error> {
            let keys = Keys::element(KEY, value)?;
            let (container, ifname) = (keys.filled("containerID")?, keys.filled("ifname")?);
            let ifname = ifname.and_then(|ifname| ifname.parse().ok());
            // Whoever it means is not to be taken for gone.
            let (container, ifname) = container.zip(ifname).ok_or_else(|| {
                Error::new(Code::Decode, format!("{KEY}: {value} names no container and interface"))
            })?;
            Ok(Attachment { network: self.name.clone(), container: container.to_owned(), ifname })
        };
        self.keys().list(KEY)?.iter().map(one).collect::<Result<_, _>>().map(Some)
    }

    pub(crate) fn keys(&self) -> Keys<'_> {
        Keys::root(&self.raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(command: &str) -> Environment {
        let some = |text: &str| Some(text.into());
        Environment {
            command: some(command),
            container: some("c1"),
            netns: some("/run/netns/x"),
            ifname: some("eth0"),
            path: some("/opt/cni/bin"),
            ..Environment::default()
        }
    }

    fn message(env: &Environment) -> (Code, String) {
        let error = Invocation::parse(env).unwrap_err();
        (error.code, error.msg)
    }

    #[test]
    fn every_missing_variable_is_in_one_message() {
        let only = |command: &str| Environment { command: Some(command.into()), ..Default::default() };
        let missing =
            |names: &str| (Code::BadEnvironment, format!("required env variables [{names}] missing"));
        assert_eq!(message(&only("ADD")), missing("CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"));
        assert_eq!(message(&only("DEL")), missing("CNI_CONTAINERID,CNI_IFNAME,CNI_PATH"));
        assert_eq!(message(&only("GC")), missing("CNI_PATH"));
        assert_eq!(Invocation::parse(&only("VERSION")), Ok(Some(Invocation::Version)));
        assert_eq!(Invocation::parse(&only("STATUS")), Ok(Some(Invocation::Status)));
        assert_eq!(Invocation::parse(&only("")), Ok(None));
        assert_eq!(message(&env("FOO")), (Code::BadEnvironment, "unknown CNI_COMMAND: FOO".into()));
    }

    #[test]
    fn an_empty_namespace_is_fine_for_del_only() {
        let empty = |command| Environment { netns: Some("".into()), ..env(command) };
        assert!(matches!(
            Invocation::parse(&empty("DEL")),
            Ok(Some(Invocation::Container { netns: None, .. }))
        ));
        assert!(Invocation::parse(&empty("ADD")).is_err() && Invocation::parse(&empty("CHECK")).is_err());
    }

    #[test]
    fn bad_names_are_code_4() {
        let named = |name: &str| message(&Environment { ifname: Some(name.into()), ..env("ADD") });
        assert_eq!(named("sixteen-bytes-xx"), (Code::BadEnvironment, "interface name is too long".into()));
        for bad in [".", "..", "a/b", "a:b", "a b"] {
            assert_eq!(named(bad).0, Code::BadEnvironment, "{bad}");
        }
        for bad in ["-a", "a/b", "a b", "ä", "../x"] {
            let found = message(&Environment { container: Some(bad.into()), ..env("DEL") });
            assert_eq!(found, (Code::BadEnvironment, "invalid characters in containerID".into()), "{bad}");
        }
    }

    #[test]
    fn arguments_are_strict_unless_told_otherwise() {
        let kubernetes = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=7";
        assert_eq!(Arguments::parse(kubernetes).unwrap().pod.as_deref(), Some("default/web"));
        let asked = Arguments::parse("IP=10.1.2.3;MAC=02:00:00:00:00:01").unwrap();
        assert_eq!((asked.ip.as_deref(), asked.mac), (Some("10.1.2.3"), "02:00:00:00:00:01".parse().ok()));
        let wrong = |text| Arguments::parse(text).unwrap_err().msg;
        assert_eq!(wrong("FOO=bar"), "ARGS: unknown args [\"FOO=bar\"]");
        assert_eq!(wrong("IgnoreUnknown=true;FOO"), "ARGS: invalid pair \"FOO\"");
        for empty in [";", "IP=10.1.2.3;", "IgnoreUnknown=1;;FOO=bar"] {
            assert_eq!(wrong(empty), "ARGS: invalid pair \"\"", "{empty}");
        }
        assert!(wrong("IgnoreUnknown=maybe").starts_with("ARGS: IgnoreUnknown: boolean unmarshal error"));
        assert!(Arguments::parse("IgnoreUnknown=False;FOO=1").is_err());
    }

    #[test]
    fn a_network_needs_a_name() {
        let parse = |text: &str| Network::parse(text.as_bytes()).map_err(|(_, e)| (e.code, e.msg));
        let network = parse(r#"{"CNIVersion":"1.0.0","Name":"n","TYPE":"bridge","x":1}"#).unwrap();
        assert_eq!((network.version, network.kind.as_str()), (SpecVersion::V1_0_0, "bridge"));
        for (text, code, msg) in [
            ("", Code::Decode, "error unmarshall network config: EOF while parsing"),
            ("{\"name\":", Code::Decode, "error unmarshall network config: "),
            ("[]", Code::Decode, "error unmarshall network config: the document must be an object"),
            (r#"{"cniVersion":1}"#, Code::Decode, "error unmarshall network config: cniVersion must be"),
            (r#"{"cniVersion":"x"}"#, Code::IncompatibleVersion, "incompatible CNI versions"),
            (r#"{"type":"bridge"}"#, Code::InvalidConfig, "missing network name"),
            (r#"{"name":"a/b","type":"x"}"#, Code::InvalidConfig, "invalid characters found in network name"),
        ] {
            let (found, text) = parse(text).unwrap_err();
            assert!(found == code && text.starts_with(msg), "{found:?} {text}");
        }
    }

    #[test]
    fn verbs_have_a_first_version() {
        let check = Invocation::parse(&env("CHECK")).unwrap().unwrap();
        let network = |version: &str| {
            Network::parse(format!(r#"{{"cniVersion":"{version}","name":"n","type":"t"}}"#).as_bytes())
                .unwrap()
        };
        assert_eq!(network("0.3.1").allows(&check).unwrap_err().msg, "config version does not allow CHECK");
        assert_eq!(network("0.4.0").allows(&check), Ok(()));
        assert_eq!(network("1.0.0").allows(&Invocation::Gc).unwrap_err().code, Code::IncompatibleVersion);
        assert_eq!(network("1.1.0").allows(&Invocation::Status), Ok(()));
    }

    #[test]
    fn valid_attachments_may_be_absent_or_empty() {
        let valid = |tail: &str| {
            let text = format!(r#"{{"cniVersion":"1.1.0","name":"n","type":"t"{tail}}}"#);
            Network::parse(text.as_bytes()).unwrap().valid_attachments().unwrap()
        };
        assert_eq!(valid(""), None);
        assert_eq!(valid(r#","cni.dev/valid-attachments":[]"#), Some(vec![]));
        let one = valid(r#","cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}]"#).unwrap();
        assert_eq!((one[0].container.as_str(), one[0].ifname.as_str()), ("c", "eth0"));
    }
}

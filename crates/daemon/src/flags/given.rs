//! What was given, and what was wrong with it.

use std::{collections::BTreeMap, fmt, str::FromStr};

use super::{Flag, Kind};
use crate::Secret;

/// Everything that is wrong with a command line and its environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes {
    usage: Vec<String>,
    values: Vec<String>,
}

impl Mistakes {
    /// Something that can't be read at all: an unknown flag, a number that is none.
    pub fn usage(&mut self, text: String) {
        self.usage.push(text);
    }

    /// Something that can be read but makes no sense: a number out of its range.
    pub fn value(&mut self, text: String) {
        self.values.push(text);
    }

    /// Nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.usage.is_empty() && self.values.is_empty()
    }

    /// One sentence each.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.usage.iter().chain(&self.values).map(String::as_str)
    }

    /// The exit code of a Go program: 2 where the command line can't be read, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.usage.is_empty() { 1 } else { 2 }
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().collect::<Vec<_>>().join("\n"))
    }
}

/// One value of a flag, and where it comes from.
#[derive(Clone)]
pub(super) struct Value {
    pub(super) text: String,
    /// `-flag` or the name of a variable.
    pub(super) origin: String,
    /// It is the value of a variable of its own.
    pub(super) from_variable: bool,
    pub(super) secret: bool,
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.secret { "***" } else { &self.text })
    }
}

impl fmt::Display for Value {
    /// As a mistake names it: `-healthz-port "x"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.secret {
            write!(f, "{} ***", self.origin)
        } else {
            write!(f, "{} {:?}", self.origin, self.text)
        }
    }
}

/// The command and the flags that were given, defaults included.
#[derive(Clone, Debug)]
pub struct Given {
    pub(super) command: &'static str,
    pub(super) flags: &'static [&'static [Flag]],
    pub(super) values: BTreeMap<&'static str, Vec<Value>>,
    pub(super) warnings: Vec<String>,
}

impl Given {
    /// The command, by the name in the program's table.
    #[must_use]
    pub const fn command(&self) -> &'static str {
        self.command
    }

    /// One sentence for each flag that has no meaning here, to be logged once.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The value of a flag, its default where it was not given.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        self.last(name).map_or_else(|| self.default(name), |value| &value.text)
    }

    /// The value of a secret flag, where it was given.
    #[must_use]
    pub fn secret(&self, name: &str) -> Option<Secret> {
        self.last(name).map(|value| Secret::new(value.text.clone()))
    }

    /// All values of a repeatable flag, in order.
    #[must_use]
    pub fn list(&self, name: &str) -> Vec<&str> {
        self.values.get(name).into_iter().flatten().map(|value| value.text.as_str()).collect()
    }

    /// A switch is on.
    #[must_use]
    pub fn is_on(&self, name: &str) -> bool {
        parse_bool(self.text(name)).unwrap_or(false)
    }

    /// The flag and its value as a mistake names them: `-healthz-port "x"`, with the name of the
    /// variable if the value comes from there.
    #[must_use]
    pub fn describe(&self, name: &str) -> String {
        self.last(name).map_or_else(|| format!("-{name} {:?}", self.default(name)), Value::to_string)
    }

    /// The value of a flag as a `T`; `None` if it is empty, or if it is none and `mistakes` says so.
    pub fn parsed<T>(&self, name: &str, mistakes: &mut Mistakes) -> Option<T>
    where
        T: FromStr<Err: fmt::Display>,
    {
        let text = self.text(name);
        if text.is_empty() {
            return None;
        }
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                mistakes.usage(format!("{}: {error}", self.describe(name)));
                None
            }
        }
    }

    /// How much to log, on klog's scale, by the flag `v`.
    pub fn verbosity(&self, mistakes: &mut Mistakes) -> u8 {
        let given = self.parsed::<i64>("v", mistakes).unwrap_or(0).clamp(0, 255);
        u8::try_from(given).unwrap_or(u8::MAX)
    }

    fn last(&self, name: &str) -> Option<&Value> {
        self.values.get(name).and_then(|values| values.last())
    }

    fn default(&self, name: &str) -> &'static str {
        let flag = self.flags.iter().copied().flatten().find(|flag| flag.name == name);
        debug_assert!(flag.is_some(), "-{name} is not in the table");
        flag.map_or("", |flag| flag.default)
    }
}

/// A truth value in each spelling that Go's `strconv.ParseBool` takes.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Some(true),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

impl Flag {
    /// Says what is wrong with a value, for the flags whose rule is known here.
    pub(super) fn check(&self, value: &Value) -> Result<(), String> {
        let truth = parse_bool(&value.text);
        if self.is_switch() && truth.is_none() {
            return Err(format!("{value}: it must be true or false"));
        }
        let off = truth == Some(false) || value.text.is_empty();
        match self.kind {
            Kind::Number if !value.text.is_empty() => {
                value.text.parse::<i64>().map(drop).map_err(|error| format!("{value}: {error}"))
            }
            Kind::Refused(_) if !off => Err(format!("{}: {}", value.origin, self.help)),
            _ => Ok(()),
        }
    }
}

//! Flags in the manner of Go programs, from one table per program.
//!
//! - One dash or two; `-flag=value` and `-flag value`; a bare switch is true, and only `-flag=false`
//!   turns one off; the last of a flag wins, except that a repeatable one collects; `--` ends the flags.
//! - Below the command line stands the environment: `<PREFIX><FLAG>` in upper case with `_` for `-`,
//!   then the words of a variable that holds options, then other variables of a flag, then its
//!   default. An empty variable is none.
//! - Every mistake is reported, not just the first. It is one in the environment too, and names the variable; but
//!   a variable that holds no number or truth value where one is asked for is warned of, and the default is used,
//!   as with flannel.
//!
//! A word that is no flag names the command (`flanneld status -json`); the first one of the table is
//! meant where there is none.

mod given;
mod help;
mod parse;

pub use given::{Given, Mistakes};

/// What one program takes on its command line.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// The program's own name.
    pub name: &'static str,
    /// What it is, in one line.
    pub about: &'static str,
    /// Its commands with one line each; the first is the default.
    pub commands: &'static [(&'static str, &'static str)],
    /// Its flags, in the order of the help text; those that programs share in slices of their own.
    pub flags: &'static [&'static [Flag]],
    /// What its environment variables begin with, such as `FLANNELD_`.
    pub prefix: &'static str,
    /// A variable that holds a whole command line, such as `FLANNEL_OPTIONS`.
    pub options_variable: Option<&'static str>,
}

/// One row of a program's table.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
    variables: &'static [&'static str],
}

/// What a flag holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One value.
    Text,
    /// One whole number.
    Number,
    /// One value that is never printed.
    Secret,
    /// True or false.
    Switch,
    /// As many values as are given.
    Repeated,
    /// Known to a program that we stand in for, without a meaning here.
    Ignored(Takes),
    /// Known to a program that we stand in for, with a meaning that this version does not have.
    Refused(Takes),
}

/// Whether a flag that we do not use is followed by a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// `-flag value`.
    Value,
    /// `-flag`, or `-flag=false`.
    Switch,
}

impl Flag {
    /// A flag with one value.
    #[must_use]
    pub const fn text(name: &'static str, default: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Text, default, help, variables: &[] }
    }

    /// A flag with one whole number.
    #[must_use]
    pub const fn number(name: &'static str, default: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Number, default, help, variables: &[] }
    }

    /// A flag with one value that is never printed.
    #[must_use]
    pub const fn secret(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Secret, default: "", help, variables: &[] }
    }

    /// A flag that is true or false.
    #[must_use]
    pub const fn switch(name: &'static str, default: bool, help: &'static str) -> Self {
        let default = if default { "true" } else { "false" };
        Self { name, kind: Kind::Switch, default, help, variables: &[] }
    }

    /// A flag that may be given several times.
    #[must_use]
    pub const fn repeated(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Repeated, default: "", help, variables: &[] }
    }

    /// A flag that is accepted with one warning, which gives the reason `why`.
    #[must_use]
    pub const fn ignored(name: &'static str, takes: Takes, why: &'static str) -> Self {
        Self { name, kind: Kind::Ignored(takes), default: "", help: why, variables: &[] }
    }

    /// A flag that is a mistake, which gives the reason `why`, unless it is switched off or empty.
    #[must_use]
    pub const fn refused(name: &'static str, takes: Takes, why: &'static str) -> Self {
        Self { name, kind: Kind::Refused(takes), default: "", help: why, variables: &[] }
    }

    /// Further environment variables, the stronger first, which stand below everything else.
    #[must_use]
    pub const fn or_variables(mut self, variables: &'static [&'static str]) -> Self {
        self.variables = variables;
        self
    }

    /// Without a value this flag means true.
    const fn is_switch(&self) -> bool {
        matches!(self.kind, Kind::Switch | Kind::Ignored(Takes::Switch) | Kind::Refused(Takes::Switch))
    }
}

/// Flags of klog, which each of flannel's and kube-proxy's programs has.
pub const KLOG: &[Flag] = &[
    Flag::number("v", "0", "how much to log: 0 to 3 changes, 4 and 5 each step, 6 and more everything"),
    klog("vmodule", Takes::Value),
    klog("log_backtrace_at", Takes::Value),
    klog("logtostderr", Takes::Switch),
    klog("alsologtostderr", Takes::Switch),
    klog("stderrthreshold", Takes::Value),
    klog("log_dir", Takes::Value),
    klog("log_file", Takes::Value),
    klog("log_file_max_size", Takes::Value),
    klog("add_dir_header", Takes::Switch),
    klog("one_output", Takes::Switch),
    klog("skip_headers", Takes::Switch),
    klog("skip_log_headers", Takes::Switch),
];

/// A flag that says where logs go, and how.
#[must_use]
pub const fn klog(name: &'static str, takes: Takes) -> Flag {
    Flag::ignored(name, takes, "logs always go to standard error, one line per event")
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Asked {
    /// The help text; it is printed and the program ends with success.
    Help(String),
    /// Work, with the flags and with the mistakes found so far, to which the program's own checks
    /// add theirs.
    Work(Given, Mistakes),
}

/// What the command line comes to.
#[derive(Debug)]
pub enum Outcome<T> {
    /// Help for standard output, and success.
    Help(String),
    /// The program's name and version, and success.
    Version(String),
    /// Everything that is wrong, and the exit code of a failure.
    Wrong(Mistakes),
    /// Work, with the program's own settings.
    Work(T),
}

impl Program {
    /// Reads the command line (without the program's own name) and the environment.
    ///
    /// `variable` answers with the value of an environment variable.
    pub fn parse<A, V>(&self, arguments: A, variable: V) -> Asked
    where
        A: IntoIterator<Item = std::ffi::OsString>,
        V: Fn(&str) -> Option<String>,
    {
        parse::parse(self, arguments.into_iter().collect(), &variable)
    }

    /// Reads this process's command line and environment.
    #[must_use]
    pub fn parse_own(&self) -> Asked {
        let variable = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        self.parse(std::env::args_os().skip(1), variable)
    }

    /// What `asked` comes to. `check` makes settings of what was given; `None` only where mistakes say why.
    pub fn outcome<T>(
        &self,
        asked: Asked,
        check: impl FnOnce(&Given, &mut Mistakes) -> Option<T>,
    ) -> Outcome<T> {
        let (given, mut mistakes) = match asked {
            Asked::Help(text) => return Outcome::Help(text),
            Asked::Work(given, mistakes) => (given, mistakes),
        };
        if mistakes.is_empty() && given.is_on("version") {
            // All crates of the workspace have one version.
            return Outcome::Version(format!("{} {}", self.name, env!("CARGO_PKG_VERSION")));
        }
        match check(&given, &mut mistakes) {
            Some(settings) if mistakes.is_empty() => Outcome::Work(settings),
            _ => Outcome::Wrong(mistakes),
        }
    }

    /// The help text: usage, commands, and every flag with its default and its variable.
    #[must_use]
    pub fn help(&self) -> String {
        help::text(self)
    }

    fn flag(&self, name: &str) -> Option<&'static Flag> {
        self.flags().find(|flag| flag.name == name)
    }

    fn flags(&self) -> impl Iterator<Item = &'static Flag> + use<> {
        self.flags.iter().copied().flatten()
    }

    /// The environment variable of a flag.
    fn variable(&self, flag: &Flag) -> String {
        format!("{}{}", self.prefix, flag.name.to_uppercase().replace('-', "_"))
    }
}

#[cfg(test)]
mod tests;

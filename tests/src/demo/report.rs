//! Checks, as they are shown to a reader.

use std::fmt::Write as _;

use anyhow::Result;
use testkit::Ran;

/// The measured value of a check that could not be carried out.
pub const UNMEASURED: &str = "could not be measured";

/// What was seen, and by which foreign command.
#[derive(Clone, Debug)]
pub(super) struct Judged {
    /// It is as it should be.
    pub(super) pass: bool,
    /// The measured value, with its bar where there is one.
    pub(super) measured: String,
    /// Where the command ran, and the command.
    pub(super) command: String,
    /// The line of its output that was judged.
    pub(super) line: String,
}

impl Judged {
    /// Judges by a command that ran at `place`; `line` is the line of its output that counts.
    pub(super) fn by(
        pass: bool,
        measured: impl Into<String>,
        place: &str,
        ran: &Ran,
        line: Option<&str>,
    ) -> Self {
        let first = || ran.stderr.lines().chain(ran.stdout.lines()).find(|line| !line.trim().is_empty());
        let line = line.or_else(first).unwrap_or("(no output)").trim().to_owned();
        Self { pass, measured: measured.into(), command: format!("{place}# {}", ran.command), line }
    }
}

/// The checks that were carried out.
#[derive(Debug, Default)]
pub(super) struct Report {
    checks: Vec<(String, Judged)>,
    only: Option<&'static [&'static str]>,
}

impl Report {
    /// Carries out only the checks with these names; all others are passed over.
    pub(super) fn only(names: &'static [&'static str]) -> Self {
        Self { checks: Vec::new(), only: Some(names) }
    }

    /// Carries a check out, notes it, and prints it. A check that could not be carried out has failed.
    pub(super) fn check(&mut self, name: impl Into<String>, work: impl FnOnce() -> Result<Judged>) {
        let name = name.into();
        if self.only.is_some_and(|only| !only.contains(&name.as_str())) {
            return;
        }
        let judged = work().unwrap_or_else(|error| Judged {
            pass: false,
            measured: UNMEASURED.to_owned(),
            command: String::new(),
            line: format!("{error:#}"),
        });
        println!("  {} {name}: {}", word(judged.pass), judged.measured);
        self.checks.push((name, judged));
    }

    /// Every check passed, and there was one.
    #[must_use]
    pub(super) fn passed(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|(_, judged)| judged.pass)
    }

    /// The table: per check the verdict, the value, the command and the line it was judged by.
    #[must_use]
    pub(super) fn table(&self) -> String {
        let wide = |text: &str| text.chars().count();
        let name_width = self.checks.iter().map(|(name, _)| wide(name)).max().unwrap_or_default();
        let mut text = String::new();
        for (name, judged) in &self.checks {
            let _ = writeln!(text, "{}  {name:name_width$}  {}", word(judged.pass), judged.measured);
            if !judged.command.is_empty() {
                let _ = writeln!(text, "        {}", judged.command);
            }
            for line in judged.line.lines() {
                let _ = writeln!(text, "        > {line}");
            }
        }
        let failed = self.checks.iter().filter(|(_, judged)| !judged.pass).count();
        let _ = write!(text, "{} passed, {failed} failed", self.checks.len() - failed);
        text
    }
}

fn word(pass: bool) -> &'static str {
    if pass { "PASS" } else { "FAIL" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_could_not_run_has_failed() {
        let mut report = Report::default();
        assert!(!report.passed(), "no check is no pass");
        report.check("works", || {
            Ok(Judged { pass: true, measured: "1 of 1".into(), command: "n# true".into(), line: "ok".into() })
        });
        assert!(report.passed());
        report.check("breaks", || anyhow::bail!("no such device"));
        assert!(!report.passed());
        let expected = "\
PASS  works   1 of 1
        n# true
        > ok
FAIL  breaks  could not be measured
        > no such device
1 passed, 1 failed";
        assert_eq!(report.table(), expected);
    }
}

//! Commands with captured output and a time limit.

use std::ffi::OsStr;
use std::fmt;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

/// A command to run: its words, what it reads, and for how long it may run (10 s unless told).
///
/// Namespace guards hand one out that is already prefixed with what enters the namespace; the text that is
/// shown to people leaves this prefix out.
#[derive(Clone, Debug)]
pub struct Cmd {
    enter: Vec<String>,
    words: Vec<String>,
    env: Vec<(String, String)>,
    stdin: Option<Vec<u8>>,
    limit: Duration,
}

impl Cmd {
    /// A command given as one line, cut at white space; no quoting. [`Cmd::arg`] adds words as they are.
    pub fn new(line: impl AsRef<str>) -> Self {
        let words = line.as_ref().split_whitespace().map(str::to_owned).collect();
        Self { enter: Vec::new(), words, env: Vec::new(), stdin: None, limit: Duration::from_secs(10) }
    }

    /// A line for the shell.
    pub fn shell(line: impl Into<String>) -> Self {
        Self::new("bash -c").arg(line)
    }

    /// Adds one word, kept as it is.
    #[must_use]
    pub fn arg(mut self, word: impl Into<String>) -> Self {
        self.words.push(word.into());
        self
    }

    /// Adds words, kept as they are.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.words.extend(words.into_iter().map(Into::into));
        self
    }

    /// Sets one variable of the environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// What the command reads from its standard input; nothing unless told.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// For how long the command may run before it is killed.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Puts words before the command (`nsenter ...`) that are not shown to people.
    #[must_use]
    pub fn entering<S: Into<String>>(mut self, prefix: impl IntoIterator<Item = S>) -> Self {
        let mut enter: Vec<String> = prefix.into_iter().map(Into::into).collect();
        enter.append(&mut self.enter);
        self.enter = enter;
        self
    }

    /// The command as `std` wants it, for callers that start it themselves. Carries no standard input.
    #[must_use]
    pub fn to_command(&self) -> Command {
        let mut all = self.enter.iter().chain(&self.words);
        let mut command = Command::new(all.next().map_or("false", String::as_str));
        command.args(all.map(OsStr::new)).stdin(Stdio::null());
        // A web proxy of the user's can't be reached from a namespace: curl and etcdctl would try.
        for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env_remove(name);
        }
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Runs the command to its end, or kills it and what it started when its time is over.
    ///
    /// # Errors
    /// Only when it could not be started; an exit code other than 0 is in the answer.
    pub fn run(&self) -> Result<Ran> {
        let mut command = self.to_command();
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        if self.stdin.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().with_context(|| format!("failed to start {self}"))?;
        let pid = Pid::from_child(&child);
        if let (Some(bytes), Some(mut pipe)) = (self.stdin.clone(), child.stdin.take()) {
            // A command may end without having read everything: that is its business.
            std::thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        let (done, wait) = mpsc::channel();
        std::thread::spawn(move || drop(done.send(child.wait_with_output())));
        let (output, timed_out) = match wait.recv_timeout(self.limit) {
            Ok(output) => (output, false),
            Err(_) => {
                let _ = kill_process_group(pid, Signal::KILL);
                let output = wait.recv_timeout(Duration::from_secs(2));
                (output.with_context(|| format!("{self} did not end after {:?}", self.limit))?, true)
            }
        };
        let output = output.with_context(|| format!("failed to wait for {self}"))?;
        Ok(Ran {
            command: self.to_string(),
            code: output.status.code(),
            signal: output.status.signal(),
            timed_out,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs the command and takes anything but exit code 0 as an error that shows its output.
    ///
    /// # Errors
    /// When it could not be started, ran too long, or failed.
    pub fn ok(&self) -> Result<Ran> {
        let ran = self.run()?;
        if !ran.success() {
            bail!("{ran}");
        }
        Ok(ran)
    }

    /// [`Cmd::ok`], its standard output read as JSON (an empty output is `null`, as `ip -j` prints it).
    ///
    /// # Errors
    /// As [`Cmd::ok`], and where the output is not JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        let ran = self.ok()?;
        if ran.stdout.trim().is_empty() {
            return Ok(serde_json::Value::Null);
        }
        serde_json::from_str(&ran.stdout).with_context(|| format!("failed to read the JSON of: {ran}"))
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [bash, option, script] = self.words.as_slice()
            && (bash.as_str(), option.as_str()) == ("bash", "-c")
        {
            return f.write_str(script);
        }
        for (i, word) in self.words.iter().enumerate() {
            let gap = if i == 0 { "" } else { " " };
            let program = Path::new(word).file_name().and_then(OsStr::to_str).filter(|_| i == 0);
            let word = program.unwrap_or(word);
            if word.is_empty() || word.contains(|c: char| c.is_whitespace() || "'\"*[]{}$|&;<>".contains(c)) {
                write!(f, "{gap}'{word}'")?;
            } else {
                write!(f, "{gap}{word}")?;
            }
        }
        Ok(())
    }
}

/// What a command did.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The command as a person would type it.
    pub command: String,
    /// Exit code, absent when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// It was killed because its time was over.
    pub timed_out: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// It ended in time with exit code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == Some(0) && !self.timed_out
    }

    /// The first line of the standard output that holds `text`, without the white space around it.
    #[must_use]
    pub fn line_with(&self, text: &str) -> Option<&str> {
        self.stdout.lines().find(|line| line.contains(text)).map(str::trim)
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = match (self.timed_out, self.code, self.signal) {
            (true, ..) => "ran too long".to_owned(),
            (_, Some(code), _) => format!("exit code {code}"),
            (_, None, signal) => format!("ended by signal {}", signal.unwrap_or_default()),
        };
        write!(f, "`{}`: {end}", self.command)?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !text.trim().is_empty() {
                write!(f, "\n{name}: {}", text.trim_end())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventually;
    use std::time::Instant;

    #[test]
    fn output_and_code_are_captured() -> Result<()> {
        let ran = Cmd::shell("cat; echo err >&2; exit 3").stdin("hello\n").run()?;
        assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(3), "hello\n", "err\n"));
        assert!(!ran.success());
        Ok(())
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_what_it_started() -> Result<()> {
        let start = Instant::now();
        let hangs = Cmd::shell("sleep 30 & echo $!; wait").limit(Duration::from_millis(500));
        let ran = hangs.run()?;
        assert!(ran.timed_out && !ran.success());
        assert!(start.elapsed() < Duration::from_secs(20));
        let stat = || std::fs::read_to_string(format!("/proc/{}/stat", ran.stdout.trim()));
        // Killed, though perhaps nobody waits for it.
        let gone = || stat().map_or(true, |stat| stat.contains(") Z ")).then_some(());
        assert!(eventually(Duration::from_secs(10), gone).is_some(), "what it started goes on: {:?}", stat());
        Ok(())
    }

    #[test]
    fn text_for_people_has_no_prefix_and_quotes_what_needs_it() {
        let cmd = Cmd::new("/usr/sbin/ip -j link").arg("a b").entering(["nsenter", "--net=/x"]);
        assert_eq!(cmd.to_string(), "ip -j link 'a b'");
        assert_eq!(Cmd::shell("a | b 'c'").to_string(), "a | b 'c'");
    }
}

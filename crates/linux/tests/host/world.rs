//! A network namespace per test, and the foreign tools that judge what is in it.

use std::process::Command;

use linux::netns::Netns;
use serde_json::Value;

/// Runs `test` in a network namespace of its own, or says that it could not.
///
/// # Panics
/// `REQUIRE_NETNS` is set and there can be no namespace; or the test failed.
pub(crate) fn in_namespace(test: impl FnOnce() + Send) {
    let Some(namespace) = namespace() else { return };
    namespace.enter(test).expect("a namespace that was just made can be entered");
}

/// A new namespace; `None` where there can be none.
pub(crate) fn namespace() -> Option<Netns> {
    match Netns::create() {
        Ok(namespace) => Some(namespace),
        Err(error) => {
            let why = error.cause;
            assert!(std::env::var_os("REQUIRE_NETNS").is_none(), "REQUIRE_NETNS is set, but: {why}");
            eprintln!("SKIPPED (no network namespace here): {why}");
            None
        }
    }
}

/// What a tool prints, run in the namespace of the calling thread.
pub(crate) fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a program");
    let output = Command::new(program).args(words).output().unwrap_or_else(|error| panic!("{line}: {error}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("tools print text")
}

/// What a tool prints as JSON.
pub(crate) fn json(line: &str) -> Value {
    let text = run(line);
    if text.trim().is_empty() { Value::Array(Vec::new()) } else { serde_json::from_str(&text).expect("JSON") }
}

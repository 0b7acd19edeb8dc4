//! The help text.

use std::fmt::Write;

use super::{Flag, Kind, Program};

pub(super) fn text(program: &Program) -> String {
    let mut text = format!("{} - {}\n\nUsage: {0} [command] [flags]\n", program.name, program.about);
    if !program.commands.is_empty() {
        text.push_str("\nCommands (the first one is meant where none is given):\n");
    }
    for (name, help) in program.commands {
        let _ = writeln!(text, "  {name:<10} {help}");
    }
    text.push_str("\nFlags, with one dash or two:\n");
    for flag in program.flags().filter(|flag| !matches!(flag.kind, Kind::Ignored(_) | Kind::Refused(_))) {
        describe(&mut text, flag, &program.variable(flag));
    }
    text.push_str("  -help\n        this text\n");
    list(&mut text, program, "Accepted without effect", |kind| matches!(kind, Kind::Ignored(_)));
    list(&mut text, program, "Not in this version", |kind| matches!(kind, Kind::Refused(_)));
    text
}

fn describe(text: &mut String, flag: &Flag, variable: &str) {
    let value = match flag.kind {
        Kind::Switch => "",
        Kind::Repeated => " value (repeatable)",
        _ => " value",
    };
    let default = match flag.default {
        "" | "false" => String::new(),
        default => format!(" (default {default})"),
    };
    let _ = writeln!(text, "  -{}{value}  [{variable}]\n        {}{default}", flag.name, flag.help);
}

fn list(text: &mut String, program: &Program, title: &str, kind: fn(Kind) -> bool) {
    let names: Vec<_> =
        program.flags().filter(|flag| kind(flag.kind)).map(|flag| format!("-{}", flag.name)).collect();
    if !names.is_empty() {
        let _ = writeln!(text, "\n{title}: {}", names.join(" "));
    }
}

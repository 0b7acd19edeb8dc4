//! From words to values.

use std::{collections::BTreeMap, ffi::OsString};

use super::{Asked, Flag, Given, Kind, Mistakes, Program, given::Value};

/// What one list of words holds.
#[derive(Default)]
struct Words {
    values: BTreeMap<&'static str, Vec<Value>>,
    plain: Vec<String>,
    help: bool,
}

pub(super) fn parse(
    program: &Program,
    arguments: Vec<OsString>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Asked {
    let mut mistakes = Mistakes::default();
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let mut line = read(program, words(arguments, &mut mistakes), None, &mut mistakes);
    let options = program.options_variable.and_then(|name| Some((name, variable(name)?)));
    let mut options = options.map_or_else(Words::default, |(name, text)| {
        let words = split(&text).unwrap_or_else(|| {
            mistakes.usage(format!("{name}: a quotation mark is not closed"));
            Vec::new()
        });
        read(program, words, Some(name), &mut mistakes)
    });
    if line.help {
        return Asked::Help(program.help());
    }
    if let (Some(word), Some(name)) = (options.plain.first(), program.options_variable) {
        mistakes.usage(format!("{name}: {word:?} is not a flag"));
    }
    let command = command(program, &line.plain, &mut mistakes);
    let (mut values, mut warnings) = (BTreeMap::new(), Vec::new());
    for flag in program.flags() {
        let found = line.values.remove(flag.name).or_else(|| {
            let own = from_variable(flag, &program.variable(flag), &variable);
            let low = || flag.variables.iter().find_map(|name| from_variable(flag, name, &variable));
            own.or_else(|| options.values.remove(flag.name)).or_else(low)
        });
        let Some(found) = found else { continue };
        let mut fitting = Vec::new();
        for value in found {
            match flag.check(&value) {
                Ok(()) => fitting.push(value),
                Err(mistake) if value.from_variable && !matches!(flag.kind, Kind::Refused(_)) => {
                    warnings.push(format!("{mistake}; the default is used"));
                }
                Err(mistake) => mistakes.usage(mistake),
            }
        }
        let Some(value) = fitting.first() else { continue };
        if let Kind::Ignored(_) = flag.kind {
            warnings.push(format!("{} has no effect: {}", value.origin, flag.help));
        }
        values.insert(flag.name, fitting);
    }
    Asked::Work(Given { command, flags: program.flags, values, warnings }, mistakes)
}

fn words(arguments: Vec<OsString>, mistakes: &mut Mistakes) -> Vec<String> {
    let mut words = Vec::new();
    for argument in arguments {
        match argument.into_string() {
            Ok(word) => words.push(word),
            Err(raw) => mistakes.usage(format!("{} is not UTF-8", raw.to_string_lossy())),
        }
    }
    words
}

/// Sorts words into flags with their values and plain words. `variable` names where they come from,
/// if not from the command line.
fn read(program: &Program, words: Vec<String>, variable: Option<&str>, mistakes: &mut Mistakes) -> Words {
    let at = |text: String| variable.map_or_else(|| text.clone(), |name| format!("{name}: {text}"));
    let mut found = Words::default();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if word == "--" {
            found.plain.extend(words);
            break;
        }
        let Some(body) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|b| !b.is_empty())
        else {
            // A unit file's "$OPTIONS" that is empty arrives as an empty word.
            found.plain.extend((!word.is_empty()).then_some(word));
            continue;
        };
        let (name, value) = body.split_once('=').map_or((body, None), |(n, v)| (n, Some(v.to_owned())));
        let Some(flag) = program.flag(name) else {
            if matches!(name, "h" | "help") {
                found.help = true;
            } else {
                mistakes.usage(at(format!("-{name}: there is no such flag; -help lists all of them")));
            }
            continue;
        };
        let text = value.or_else(|| if flag.is_switch() { Some("true".to_owned()) } else { words.next() });
        let Some(text) = text else {
            mistakes.usage(at(format!("-{name}: a value is missing")));
            continue;
        };
        add(&mut found.values, flag, text, at(format!("-{name}")));
    }
    found
}

fn add(values: &mut BTreeMap<&'static str, Vec<Value>>, flag: &'static Flag, text: String, origin: String) {
    let values = values.entry(flag.name).or_default();
    if flag.kind != Kind::Repeated {
        values.clear();
    }
    values.push(Value { text, origin, from_variable: false, secret: flag.kind == Kind::Secret });
}

fn from_variable(flag: &Flag, name: &str, variable: &dyn Fn(&str) -> Option<String>) -> Option<Vec<Value>> {
    let text = variable(name)?;
    Some(vec![Value {
        text,
        origin: name.to_owned(),
        from_variable: true,
        secret: flag.kind == Kind::Secret,
    }])
}

fn command(program: &Program, plain: &[String], mistakes: &mut Mistakes) -> &'static str {
    let default = program.commands.first().map_or("", |(name, _)| *name);
    let Some((word, rest)) = plain.split_first() else { return default };
    if let Some(extra) = rest.first() {
        mistakes.usage(format!("{extra:?}: no further word may follow the command {word:?}"));
    }
    let known = program.commands.iter().find(|(name, _)| name == word);
    known.map_or_else(
        || {
            let names = program.commands.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            mistakes.usage(format!("{word:?} is not a command: there are {names}"));
            default
        },
        |(name, _)| *name,
    )
}

/// The words of a text in which `'` and `"` hold a word together; `None` if one is not closed.
fn split(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in text.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

//! The borders that the compiler does not guard: what each crate may depend on and what it may call.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use testkit::{Cmd, workspace};

/// No I/O, no clock, no threads: neither in their own code nor in what they stand on.
const PURE: &[&str] = &["netmodel", "ruleset", "overlay-core", "proxy-core", "cni-core"];

/// What a pure crate may never depend on, directly or not.
const IMPURE: &[&str] =
    &["tokio", "libc", "rustix", "nix", "linux", "k8s", "daemon", "rand", "mio", "socket2"];

/// What a pure crate may never write.
const IMPURE_WORDS: &[&str] = &[
    "std::fs",
    "std::env",
    "std::thread",
    "std::process",
    "SystemTime",
    "Instant::now",
    "TcpStream",
    "UdpSocket",
    "File::open",
    "println!",
];

/// Who must never depend on whom.
const NEVER: &[(&str, &[&str])] = &[
    (
        "cni-plugin",
        &["tokio", "etcd-client", "tonic", "hyper", "daemon", "clap", "overlay-core", "proxy-core"],
    ),
    ("weft-proxy", &["etcd-client", "tonic", "prost", "overlay-core", "cni-core", "flanneld"]),
    ("flanneld", &["proxy-core", "cni-core"]),
    ("linux", &["tokio", "async-std", "futures-util"]),
];

/// The one file that executes programs: plugins of other packages, as the CNI specification says.
const EXECUTES: &str = "/cni-plugin/src/foreign.rs:";

/// Everything that is not the product.
const NOT_PRODUCT: &[&str] = &["testkit", "netns-tests", "bench"];

/// Never in what we ship: unmaintained, C libraries that stop a static build, or running other programs.
const BANNED: &[&str] = &[
    "async-std",
    "iptables",
    "k8s-openapi",
    "native-tls",
    "netlink-packet-netfilter",
    "nftables",
    "nftnl",
    "nftnl-sys",
    "openssl",
    "openssl-sys",
    "rustables",
    "serde_yaml",
];

/// Licences whose terms a binary under Apache-2.0 can meet.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

struct Package {
    licence: Option<String>,
    root: PathBuf,
    /// The root file of the library and of each program.
    roots: Vec<PathBuf>,
    normal_deps: BTreeSet<String>,
    ours: bool,
}

/// All packages of the build by name and version, with their normal dependencies on Linux.
fn packages() -> BTreeMap<String, Package> {
    let metadata = Cmd::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version=1",
            "--filter-platform=x86_64-unknown-linux-gnu",
            "--manifest-path",
        ])
        .arg(workspace().join("Cargo.toml").display().to_string())
        .limit(std::time::Duration::from_secs(120))
        .json()
        .expect("cargo metadata");
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut all: BTreeMap<String, Package> = list(&metadata["packages"])
        .iter()
        .map(|package| {
            let shipped = |target: &&Value| {
                list(&target["kind"]).iter().any(|kind| matches!(kind.as_str(), Some("lib" | "bin")))
            };
            let targets = list(&package["targets"]);
            let manifest = PathBuf::from(text(&package["manifest_path"]).expect("a manifest path"));
            let made = Package {
                licence: text(&package["license"]),
                root: manifest.parent().expect("a folder").to_owned(),
                roots: targets
                    .iter()
                    .filter(shipped)
                    .filter_map(|t| text(&t["src_path"]))
                    .map(Into::into)
                    .collect(),
                normal_deps: BTreeSet::new(),
                ours: package["source"].is_null(),
            };
            (text(&package["id"]).expect("a package id"), made)
        })
        .collect();
    for node in list(&metadata["resolve"]["nodes"]) {
        let normal = |dep: &&Value| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
        let deps = list(&node["deps"]).iter().filter(normal).filter_map(|dep| text(&dep["pkg"])).collect();
        let id = text(&node["id"]).expect("a package id");
        all.get_mut(&id).expect("a node for a package").normal_deps = deps;
    }
    all
}

/// `path+file:///x/flanneld/core#overlay-core@0.1.0` or `...#serde@1.0.1` or `.../linux#0.1.0`: the name.
fn name(id: &str) -> &str {
    let (before, after) = id.rsplit_once('#').unwrap_or(("", id));
    match after.split_once('@') {
        Some((name, _)) => name,
        None => before.rsplit('/').next().unwrap_or(before),
    }
}

/// Names of everything that `of` stands on by normal dependencies.
fn closure(all: &BTreeMap<String, Package>, of: &str) -> BTreeSet<String> {
    let start = all.keys().find(|id| name(id) == of && all[*id].ours);
    let mut todo = vec![start.unwrap_or_else(|| panic!("there is no package {of}"))];
    let mut seen = BTreeSet::new();
    while let Some(id) = todo.pop() {
        for dep in &all[id].normal_deps {
            if seen.insert(dep) {
                todo.push(dep);
            }
        }
    }
    seen.into_iter().map(|id| name(id).to_owned()).collect()
}

/// The source files of a package without test modules, each as path and text.
fn sources(package: &Package) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![package.root.join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a source folder").flatten() {
            let path = entry.path();
            let test = path.file_stem().is_some_and(|stem| stem == "tests");
            if path.is_dir() && !test {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") && !test {
                let text = fs::read_to_string(&path).expect("a source file");
                let product = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
                found.push((path, product));
            }
        }
    }
    found
}

/// Code lines and imports that hold one of `words`, comments left out, as `path:line: text`.
fn lines_with(package: &Package, words: &[&str]) -> Vec<String> {
    let code = |line: &str| !line.trim_start().starts_with("//");
    let held = |text: &str| words.iter().any(|word| text.contains(word));
    let hit = |path: &Path, text: &str| -> Vec<String> {
        let lines = text.lines().enumerate().filter(|(_, line)| code(line) && held(line));
        let lines = lines.map(|(i, line)| format!("{}:{}: {}", path.display(), i + 1, line.trim()));
        let imports = imports(&text.lines().filter(|line| code(line)).collect::<Vec<_>>().join("\n"));
        let imports = imports.into_iter().filter(|import| held(import));
        lines.chain(imports.map(|import| format!("{}: use {import}", path.display()))).collect()
    };
    sources(package).iter().flat_map(|(path, text)| hit(path, text)).collect()
}

/// The whole path of everything that a source file imports, whether alone or in braces.
fn imports(text: &str) -> Vec<String> {
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some((_, behind)) = rest.split_once("use ") {
        let (tree, behind) = behind.split_once(';').unwrap_or((behind, ""));
        spell_out("", tree.trim(), &mut found);
        rest = behind;
    }
    found
}

/// Appends the paths that `tree` names below `prefix`.
fn spell_out(prefix: &str, tree: &str, found: &mut Vec<String>) {
    let Some((path, inner)) = tree.split_once('{') else {
        return found.push(format!("{prefix}{tree}"));
    };
    let inner = inner.strip_suffix('}').unwrap_or(inner);
    let mut depth = 0;
    let branches = inner.split(|c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    for branch in branches.map(str::trim).filter(|branch| !branch.is_empty()) {
        spell_out(&format!("{prefix}{path}"), branch, found);
    }
}

fn ours(all: &BTreeMap<String, Package>) -> impl Iterator<Item = (&str, &Package)> {
    all.iter().filter(|(_, package)| package.ours).map(|(id, package)| (name(id), package))
}

#[test]
fn pure_crates_stay_pure() {
    let all = packages();
    let mut faults = Vec::new();
    for krate in PURE {
        let deps = closure(&all, krate);
        let bad = IMPURE.iter().filter(|dep| deps.contains(**dep));
        faults.extend(bad.map(|dep| format!("{krate} must stay free of I/O, but depends on {dep}")));
    }
    for (_, package) in ours(&all).filter(|(name, _)| PURE.contains(name)) {
        faults.extend(lines_with(package, IMPURE_WORDS));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn programs_do_not_link_what_is_not_theirs() {
    let all = packages();
    let mut faults = Vec::new();
    for (krate, never) in NEVER {
        let deps = closure(&all, krate);
        faults.extend(
            never.iter().filter(|dep| deps.contains(**dep)).map(|dep| format!("{krate} links {dep}")),
        );
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn nothing_banned_comes_in_and_every_licence_is_on_the_list() {
    let all = packages();
    let product = ours(&all).filter(|(name, _)| !NOT_PRODUCT.contains(name));
    let linked: BTreeSet<String> = product.flat_map(|(name, _)| closure(&all, name)).collect();
    let mut faults: Vec<_> =
        BANNED.iter().filter(|b| linked.contains(**b)).map(|b| format!("{b} is linked")).collect();
    for (id, package) in &all {
        let licence = package.licence.as_deref().unwrap_or("none");
        if !allowed(licence) {
            faults.push(format!("{} is under {licence}", name(id)));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn unsafe_code_is_forbidden_outside_the_one_crate() {
    let all = packages();
    let mut faults = Vec::new();
    for (_, package) in ours(&all).filter(|(name, _)| *name != "linux") {
        for root in &package.roots {
            if !fs::read_to_string(root).expect("a root file").contains("#![forbid(unsafe_code)]") {
                faults.push(format!("{} lacks #![forbid(unsafe_code)]", root.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_program_runs_another_one() {
    let all = packages();
    let product: Vec<_> = ours(&all).filter(|(name, _)| !NOT_PRODUCT.contains(name)).collect();
    let words = ["process::Command", "execve(", "execvp(", "posix_spawn"];
    let lines = product.iter().flat_map(|(_, package)| lines_with(package, &words));
    // What binds a plugin to who started it needs `unsafe`, and starts nothing.
    let binds =
        |line: &str| line.contains("/crates/linux/src/sys.rs:") && line.contains("process::CommandExt");
    let faults: Vec<_> = lines.filter(|line| !line.contains(EXECUTES) && !binds(line)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn an_import_is_seen_however_it_is_written() {
    let text = "use std::fs;\nuse std::{\n    env,\n    process::{self, Command},\n};\nfn f() {}\n";
    assert_eq!(imports(text), ["std::fs", "std::env", "std::process::self", "std::process::Command"]);
}

/// Whether some choice that an SPDX expression offers is made of licences on the list.
fn allowed(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let answer = any_of(&mut rest);
    answer && rest.is_empty()
}

fn any_of(words: &mut &[&str]) -> bool {
    let mut answer = all_of(words);
    while let ["OR", rest @ ..] = *words {
        *words = rest;
        answer |= all_of(words);
    }
    answer
}

fn all_of(words: &mut &[&str]) -> bool {
    let mut answer = one(words);
    while let ["AND", rest @ ..] = *words {
        *words = rest;
        answer &= one(words);
    }
    answer
}

fn one(words: &mut &[&str]) -> bool {
    match *words {
        ["(", rest @ ..] => {
            *words = rest;
            let answer = any_of(words);
            *words = words.strip_prefix(&[")"]).unwrap_or_default();
            answer
        }
        [licence, "WITH", exception, rest @ ..] => {
            *words = rest;
            LICENCES.contains(&format!("{licence} WITH {exception}").as_str())
        }
        [licence, rest @ ..] => {
            *words = rest;
            LICENCES.contains(licence)
        }
        [] => false,
    }
}

#[test]
fn licence_expressions_are_read_as_spdx_means_them() {
    let cases = [
        ("MIT", true),
        ("MIT OR GPL-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR GPL-2.0) AND Unicode-3.0", true),
        ("Apache-2.0 WITH LLVM-exception OR GPL-3.0", true),
        ("MIT/Apache-2.0", true),
        ("GPL-3.0-only", false),
        ("none", false),
    ];
    for (expression, expected) in cases {
        assert_eq!(allowed(expression), expected, "{expression}");
    }
}

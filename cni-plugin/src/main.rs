//! The CNI plugins that a container runtime executes, all of them in one program: which of them it is
//! called as its file's name says, or the configuration's type (see [`Role`]). Networks of type `flannel`
//! and `bridge` with addresses of type `host-local` are made in one process.
//!
//! Environment and standard input go in; at most one JSON document comes out. What decides is in
//! `cni-core`; here are the files, the kernel and the order of things.
#![forbid(unsafe_code)]

mod add;
mod addresses;
mod bandwidth;
mod chained;
mod check;
mod del;
mod delegate;
mod failure;
mod files;
mod foreign;
mod gc;
mod host_local;
mod hostports;
mod install;
mod interface;
mod linkage;
mod links;
mod lock;
mod loopback;
mod nat;
mod networks;
mod plugin;
mod pod;
mod portmap;
mod records;
mod released;
mod reservations;
mod scratch;
mod shaping;
mod status;
mod sweep;
mod translate;
mod tuning;
mod undo;
mod vlans;

use std::{
    env,
    io::{self, Read, Write},
    panic,
    path::PathBuf,
    process::ExitCode,
    thread,
};

use cni_core::{Attachment, Code, Environment, Error, Invocation, Network, Role, SpecVersion, Verb};

use crate::{networks::Call, plugin::Plugin};

/// The longest input: some 60 times a large previous result.
const LONGEST_INPUT: u64 = 16 << 20;

/// A failure, and the version to report it in where the input said one.
type Failure = (Option<SpecVersion>, Error);

/// What a request is answered with: nothing, or a document.
type Answer = Result<Option<String>, Failure>;

fn main() -> ExitCode {
    if let Some(arguments) = install::asked() {
        return told(install::install(arguments));
    }
    let (document, succeeded) = conclude(panic::catch_unwind(run));
    // Nobody can be told that standard output is closed, but the runtime must not take it for success.
    let told = document.is_none_or(|document| writeln!(io::stdout(), "{document}").is_ok());
    if told && succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints what a command for people did, or why it did not.
fn told(done: Result<String, Error>) -> ExitCode {
    match done {
        Ok(text) if writeln!(io::stdout(), "{text}").is_ok() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            // The exit code tells it too.
            let _ = writeln!(io::stderr(), "flannel: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The document to print, if any, and whether it tells of success. A panic is a failure like others.
fn conclude(answer: thread::Result<Answer>) -> (Option<String>, bool) {
    match answer {
        Ok(Ok(document)) => (document, true),
        Ok(Err((version, error))) => (Some(error.to_json(version)), false),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            let error = Error::new(Code::Internal, "the plugin failed unexpectedly").with_details(text);
            (Some(error.to_json(None)), false)
        }
    }
}

/// Answers the request; `None` where success is silent.
fn run() -> Answer {
    let Some(invocation) = Invocation::parse(&environment()).map_err(|error| (None, error))? else {
        // Nobody to tell if standard error is closed.
        let _ = io::stderr().write_all(cni_core::about(&program(), env!("CARGO_PKG_VERSION")).as_bytes());
        return Ok(None);
    };
    if invocation == Invocation::Version {
        return Ok(Some(cni_core::version_reply()));
    }
    let mut input = Vec::new();
    io::stdin().take(LONGEST_INPUT + 1).read_to_end(&mut input).map_err(|e| {
        (None, Error::new(Code::Io, format!("failed to read standard input: {}", failure::reason(&e))))
    })?;
    if input.len() as u64 > LONGEST_INPUT {
        let text = format!("standard input is too long: more than {LONGEST_INPUT} bytes");
        return Err((None, Error::new(Code::Decode, text)));
    }
    let network = Network::parse(&input)?;
    let version = network.version;
    network.allows(&invocation).and_then(|()| answer(invocation, network)).map_err(|e| (Some(version), e))
}

fn answer(invocation: Invocation, mut network: Network) -> Result<Option<String>, Error> {
    let role = Role::of(&program(), &network.kind)?;
    network.kind = role.name().to_owned();
    let plugin = plugin_of(role);
    let (verb, container, ifname, netns, own_netns, args) = match invocation {
        Invocation::Container { verb, container, ifname, netns, own_netns, args } => {
            (verb, container, ifname, netns, own_netns, args)
        }
        Invocation::Gc => return (plugin.gc)(&network).map(|()| None),
        Invocation::Status => return (plugin.status)(&network).map(|()| None),
        Invocation::Version => return Ok(None),
    };
    let who = Attachment { network: network.name.clone(), container, ifname };
    let call = Call { who, netns, own_netns, args, network };
    let answer = match verb {
        Verb::Add => (plugin.add)(&call).and_then(|result| tell(&plugin, &call, &result)).map(|()| None),
        Verb::Del => (plugin.del)(&call).map(|()| None),
        Verb::Check => (plugin.check)(&call).map(|()| None),
    };
    answer.map_err(|error| call.describe(error))
}

const fn plugin_of(role: Role) -> Plugin {
    match role {
        Role::Flannel | Role::Bridge => interface::PLUGIN,
        Role::HostLocal => host_local::PLUGIN,
        Role::Portmap => portmap::PLUGIN,
        Role::Bandwidth => bandwidth::PLUGIN,
        Role::Tuning => tuning::PLUGIN,
        Role::Loopback => loopback::PLUGIN,
    }
}

/// Prints the result of ADD; what nobody can be told of is taken back.
fn tell(plugin: &Plugin, call: &Call, result: &str) -> Result<(), Error> {
    writeln!(io::stdout(), "{result}").map_err(|e| {
        // The runtime calls DEL, too.
        let _ = (plugin.del)(call);
        Error::new(Code::Io, format!("failed to write the result: {}", failure::reason(&e)))
    })
}

/// The name that this program was called by, without its folder.
fn program() -> String {
    let called = env::args_os().next().map(PathBuf::from).unwrap_or_default();
    called.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn environment() -> Environment {
    Environment {
        command: env::var_os("CNI_COMMAND"),
        container: env::var_os("CNI_CONTAINERID"),
        netns: env::var_os("CNI_NETNS"),
        netns_override: env::var_os("CNI_NETNS_OVERRIDE"),
        ifname: env::var_os("CNI_IFNAME"),
        args: env::var_os("CNI_ARGS"),
        path: env::var_os("CNI_PATH"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_one_document() {
        let panicked = panic::catch_unwind(|| -> Answer { panic!("index {} is out of range", 7) });
        let (document, succeeded) = conclude(panicked);
        let wanted =
            r#"{"code":999,"details":"index 7 is out of range","msg":"the plugin failed unexpectedly"}"#;
        assert_eq!((document.as_deref(), succeeded), (Some(wanted), false));
        assert_eq!(conclude(Ok(Ok(None))), (None, true));
    }
}

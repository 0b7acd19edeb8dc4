//! `flannel`, the CNI plugin that a container runtime executes: networks of type `flannel` and
//! `bridge` with addresses of type `host-local`, in one process.
//!
//! Environment and standard input go in; at most one JSON document comes out. What decides is in
//! `cni-core`; here are the files, the kernel and the order of things.
#![forbid(unsafe_code)]

mod add;
mod check;
mod del;
mod failure;
mod gc;
mod index;
mod linkage;
mod lock;
mod nat;
mod networks;
mod pod;
mod reservations;
mod status;
mod undo;

use std::{
    env,
    io::{self, Read, Write},
    panic,
    process::ExitCode,
};

use cni_core::{Attachment, Code, Environment, Error, Invocation, Network, SpecVersion, Verb};

use crate::networks::Call;

/// The longest input: some 60 times a large previous result.
const LONGEST_INPUT: u64 = 16 << 20;

/// A failure, and the version to report it in where the input said one.
type Failure = (Option<SpecVersion>, Error);

fn main() -> ExitCode {
    let answer = panic::catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|t| (*t).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err((None, Error::new(Code::Internal, "the plugin failed unexpectedly").with_details(text)))
    });
    let (document, code) = match answer {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(document)) => (document, ExitCode::SUCCESS),
        Err((version, error)) => (error.to_json(version), ExitCode::FAILURE),
    };
    match writeln!(io::stdout(), "{document}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Answers the request; `None` where success is silent.
fn run() -> Result<Option<String>, Failure> {
    let Some(invocation) = Invocation::parse(&environment()).map_err(|error| (None, error))? else {
        // Nobody to tell if standard error is closed.
        let _ = io::stderr().write_all(cni_core::about(env!("CARGO_PKG_VERSION")).as_bytes());
        return Ok(None);
    };
    if invocation == Invocation::Version {
        return Ok(Some(cni_core::version_reply()));
    }
    let mut input = Vec::new();
    io::stdin().take(LONGEST_INPUT).read_to_end(&mut input).map_err(|e| {
        (None, Error::new(Code::Io, format!("failed to read standard input: {}", failure::reason(&e))))
    })?;
    let network = Network::parse(&input)?;
    let version = network.version;
    network.allows(&invocation).and_then(|()| answer(invocation, network)).map_err(|e| (Some(version), e))
}

fn answer(invocation: Invocation, network: Network) -> Result<Option<String>, Error> {
    networks::known(&network)?;
    let (verb, container, ifname, netns, args) = match invocation {
        Invocation::Container { verb, container, ifname, netns, args } => {
            (verb, container, ifname, netns, args)
        }
        Invocation::Gc => return gc::gc(&network).map(|()| None),
        Invocation::Status => return status::status(&network).map(|()| None),
        Invocation::Version => return Ok(None),
    };
    let who = Attachment { network: network.name.clone(), container, ifname };
    let call = Call { who, netns, args, network };
    let answer = match verb {
        Verb::Add => add::add(&call).map(Some),
        Verb::Del => del::del(&call).map(|()| None),
        Verb::Check => check::check(&call).map(|()| None),
    };
    answer.map_err(|error| call.describe(error))
}

fn environment() -> Environment {
    let variable = |name: &str| env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    Environment {
        command: variable("CNI_COMMAND"),
        container: variable("CNI_CONTAINERID"),
        netns: variable("CNI_NETNS"),
        ifname: variable("CNI_IFNAME"),
        args: variable("CNI_ARGS"),
        path: variable("CNI_PATH"),
    }
}

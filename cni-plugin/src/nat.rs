//! Address translation: the table of `cni-core` brought into the kernel and kept small.

use cni_core::{
    Attachment, Code, Elements, Error, HostAddress, Nat, Questions, Taken, Translated, masquerade_key,
    masquerade_sets, mend, nat_sweep, nat_table, port_sets, unmasquerade, unused_classes,
};
use linux::{Retry, nft::Socket};
use ruleset::{Name, SetSpec, Transaction};

use crate::failure::kernel;

/// How often a step is begun again because others changed the rules meanwhile.
const ATTEMPTS: usize = 200;

/// Sets what `nat` is in one transaction, or says whose port it wants.
pub(crate) fn set(socket: &mut Socket, nat: &Nat<'_>) -> Result<Result<(), Taken>, Error> {
    let (family, table) = nat_table();
    persist(|| {
        let generation = socket.generation()?;
        let rules = socket.all_rules(family, &table)?;
        let claim = if rules.is_empty() {
            Ok(None)
        } else {
            let seen = answers(socket, nat.questions())?;
            nat.claim(&rules, &seen)
        };
        let (change, is_contended) = match claim {
            // Nobody else may want what is for this container's addresses alone.
            Ok(Some(change)) => (Ok(change), !nat.ports.is_empty()),
            Ok(None) => (nat.repair(socket.table(family, &table)?.as_ref()), true),
            Err(taken) => (Err(taken), true),
        };
        match change {
            Ok(change) => socket.commit_at(&change, is_contended.then_some(generation)).map(Ok),
            Err(taken) => Ok(Err(taken)),
        }
    })
}

fn answers(socket: &mut Socket, questions: Questions) -> Result<Elements, linux::Error> {
    let (family, table) = nat_table();
    let mut seen = elements(socket, questions.sets.into_iter())?;
    for (set, key) in questions.keys {
        if let Some(element) = socket.element(family, (&table, &set), &key)? {
            seen.entry(set).or_default().insert(key.into(), element);
        }
    }
    Ok(seen)
}

/// Ends it for `who`, and returns the host ports that ended. `pods` are its masqueraded addresses; `None` where
/// they are not known, or may be somebody else's by now: then all elements are looked through. So are those of host
/// ports where there may be `ports`.
pub(crate) fn stop(
    socket: &mut Socket,
    who: &Attachment,
    pods: Option<&[HostAddress]>,
    ports: bool,
) -> Result<Vec<Translated>, Error> {
    let (alias, mut pods) = (who.alias(), pods);
    if is_without_tables(socket) {
        return Ok(Vec::new());
    }
    persist(|| {
        let own = pods.map_or(Ok(None), |pods| owned(socket, &alias, pods))?;
        let masqueraded = masquerade_sets().filter(|_| own.is_none());
        let seen = elements(socket, port_sets().filter(|_| ports).chain(masqueraded))?;
        let (mut change, ended) = nat_sweep(&seen, |owner| owner == alias);
        change.extend(unmasquerade(&own.unwrap_or_default()));
        let done = socket.commit(&change);
        // Where something is missing, others have changed it: what is left is found by looking.
        pods = pods.filter(|pods| pods.is_empty());
        done.map(|()| ended)
    })
}

/// Those of `pods` that are masqueraded for `alias`, and not for who has the address by now; `None` where one is not
/// masqueraded at all: others have changed something.
fn owned(
    socket: &mut Socket,
    alias: &str,
    pods: &[HostAddress],
) -> Result<Option<Vec<HostAddress>>, linux::Error> {
    let (family, table) = nat_table();
    let mut own = Vec::new();
    for pod in pods {
        let (set, key) = masquerade_key(pod.address);
        match socket.element(family, (&table, &set), &key)? {
            Some(element) if element.comment.as_deref() == Some(alias) => own.push(*pod),
            Some(_) => {}
            None => return Ok(None),
        }
    }
    Ok(Some(own))
}

/// The elements of these sets.
fn elements(
    socket: &mut Socket,
    sets: impl Iterator<Item = (Name, SetSpec)>,
) -> Result<Elements, linux::Error> {
    let (family, table) = nat_table();
    let mut seen = Elements::new();
    for (set, spec) in sets {
        match socket.elements(family, (&table, &set), spec.form()) {
            Err(error) if error.is_not_found() => {}
            elements => drop(seen.insert(set, elements?)),
        }
    }
    Ok(seen)
}

/// Takes out the elements whose comment is doomed, makes the rules whole that are there, and returns the host
/// ports that ended.
pub(crate) fn sweep(is_doomed: impl Fn(&str) -> bool) -> Result<Vec<Translated>, Error> {
    let (family, table) = nat_table();
    let Some(mut socket) = open_if_there()? else { return Ok(Vec::new()) };
    if is_without_tables(&mut socket) {
        return Ok(Vec::new());
    }
    persist(|| {
        let generation = socket.generation()?;
        let mut have = socket.table(family, &table)?;
        let mut change = have.as_ref().map_or_else(|| Transaction::new(family, &table), mend);
        // Where that can't be foretold, the kernel refuses it as well.
        let _ = ruleset::apply(&mut have, &change);
        let Some(have) = have else { return Ok(Vec::new()) };
        let classes = unused_classes(&have, &is_doomed);
        let seen = have.sets.into_iter().map(|(name, set)| (name, set.elements)).collect();
        let (doomed, ended) = nat_sweep(&seen, &is_doomed);
        change.extend(doomed).extend(classes);
        socket.commit_at(&change, Some(generation)).map(|()| ended)
    })
}

/// What of `nat` is not there, in words.
pub(crate) fn missing(nat: &Nat<'_>) -> Result<Vec<String>, Error> {
    if nat.is_empty() {
        return Ok(Vec::new());
    }
    let (family, table) = nat_table();
    let have = open()?.table(family, &table).map_err(|e| kernel(&e))?;
    Ok(nat.missing(have.as_ref()))
}

pub(crate) fn open() -> Result<Socket, Error> {
    Socket::open().map_err(|e| kernel(&e))
}

/// A connection to the rules of this namespace; `None` where the kernel has none.
pub(crate) fn open_if_there() -> Result<Option<Socket>, Error> {
    match Socket::open() {
        Err(e) if e.is_unsupported() => Ok(None),
        opened => opened.map(Some).map_err(|e| kernel(&e)),
    }
}

/// The kernel has no nftables, and so translates nothing.
fn is_without_tables(socket: &mut Socket) -> bool {
    socket.generation().is_err_and(|e| e.is_unsupported())
}

/// Does `step` until nobody changes the rules meanwhile. Of several that find something missing one makes it:
/// the generation tells the others that they were overtaken.
fn persist<T>(mut step: impl FnMut() -> Result<T, linux::Error>) -> Result<T, Error> {
    for _ in 0..ATTEMPTS {
        match step() {
            Err(e) if e.is_overtaken() || e.is_not_found() || e.retry() == Retry::Now => {}
            other => return other.map_err(|e| kernel(&e)),
        }
    }
    Err(Error::new(Code::TryAgainLater, "the nftables rules kept changing while they were being set"))
}

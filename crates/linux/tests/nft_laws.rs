//! The value that stands for the kernel, against the kernel: the same random changes are accepted or refused
//! by both and end in the same state; random tables are read back as they were committed.

#[path = "../../ruleset/tests/random/mod.rs"]
mod random;

use std::cell::{Cell, RefCell};

use linux::nft::Socket;
use proptest::{collection::vec, prelude::*, test_runner::TestRunner};
use ruleset::{Family, Name, Observed, Transaction, apply, diff};
use testkit::netns_or_skip;

fn runner() -> TestRunner {
    TestRunner::new(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })
}

fn read(socket: &mut Socket) -> Option<Observed> {
    socket.table(Family::Ip, &Name::from(random::TABLE)).unwrap().map(Observed::without_handles)
}

#[test]
fn the_shadow_accepts_refuses_and_holds_what_the_kernel_does() {
    let Some(ns) = netns_or_skip() else { return };
    let _inside = ns.enter().unwrap();
    let socket = RefCell::new(Socket::open().unwrap());
    let (accepted, refused) = (Cell::new(0), Cell::new(0));
    let run = runner().run(&(random::tables(), vec(random::transactions(), 1..12)), |(table, changes)| {
        let mut socket = socket.borrow_mut();
        socket.commit(&Transaction::delete(Family::Ip, random::TABLE)).unwrap();
        let mut shadow = None;
        for transaction in std::iter::once(Transaction::create(&table)).chain(changes) {
            let mut after = shadow.clone();
            let expected = apply(&mut after, &transaction);
            let done = socket.commit(&transaction);
            prop_assert_eq!(done.is_ok(), expected.is_ok(), "{:?} {:?} {:?}", done, expected, transaction);
            let count = if done.is_ok() { &accepted } else { &refused };
            count.set(count.get() + 1);
            if done.is_ok() {
                shadow = after;
            }
            prop_assert_eq!(&read(&mut socket), &shadow, "after {:?}", transaction);
        }
        Ok(())
    });
    run.unwrap();
    assert!(accepted.get() > 200 && refused.get() > 100, "{accepted:?} accepted, {refused:?} refused");
}

#[test]
fn any_table_is_read_back_and_any_other_reached_from_it() {
    let Some(ns) = netns_or_skip() else { return };
    let _inside = ns.enter().unwrap();
    let socket = RefCell::new(Socket::open().unwrap());
    let run = runner().run(&vec(random::tables(), 1..6), |tables| {
        let mut socket = socket.borrow_mut();
        for table in tables {
            let step = diff(&table, read(&mut socket).as_ref());
            let done = socket.commit(&step);
            prop_assert!(done.is_ok(), "{:?} {:?}", done, step);
            let mut goal = None;
            apply(&mut goal, &Transaction::create(&table)).unwrap();
            prop_assert_eq!(read(&mut socket), goal);
        }
        Ok(())
    });
    run.unwrap();
}

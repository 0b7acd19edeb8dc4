//! The value that stands for the kernel, against the kernel: the same random changes are accepted or refused
//! by both and end in the same state; random tables are read back as they were committed, and do to packets
//! what the trace says.

#[path = "../../ruleset/tests/random/mod.rs"]
mod random;

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use linux::nft::Socket;
use netmodel::Protocol;
use proptest::{collection::vec, prelude::*, test_runner::TestRunner};
use ruleset::{
    Family, Name, Observed, Transaction, apply, diff,
    trace::{Outcome, Packet, Tracer},
};
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

/// Real packets through random tables end where the virtual ones do.
#[test]
fn a_virtual_packet_ends_where_a_real_one_does() {
    let Some(ns) = netns_or_skip() else { return };
    let _inside = ns.enter().unwrap();
    let addresses: Vec<Ipv4Addr> = (0..4).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
    for address in &addresses {
        ns.cmd(format!("ip address add {address}/32 dev lo")).ok().unwrap();
    }
    let ends: Vec<SocketAddrV4> =
        addresses.iter().flat_map(|ip| [1, 2, 3].map(|port| SocketAddrV4::new(*ip, port))).collect();
    let receivers: Vec<UdpSocket> = ends.iter().map(|end| UdpSocket::bind(end).unwrap()).collect();
    let senders: Vec<UdpSocket> = addresses.iter().map(|ip| UdpSocket::bind((*ip, 0)).unwrap()).collect();
    let local: Vec<IpAddr> = addresses.iter().map(|ip| (*ip).into()).collect();
    let socket = RefCell::new(Socket::open().unwrap());
    let (arrived, lost) = (Cell::new(0), Cell::new(0));
    let run = runner().run(&random::tables_of(3..9), |table| {
        let mut socket = socket.borrow_mut();
        let before = Transaction::delete(Family::Ip, random::TABLE);
        socket.commit(&before).and_then(|()| socket.commit(&Transaction::create(&table))).unwrap();
        let mut tracer = Tracer::new(&table, &local, |_| 0);
        for (from, (end, receiver)) in senders.iter().cycle().zip(ends.iter().zip(&receivers)) {
            let packet = Packet::sent(from.local_addr().unwrap(), (*end).into(), Protocol::Udp);
            let reaches = matches!(tracer.trace(&packet), Outcome::Reaches(..));
            let sent = from.send_to(b"weft", end);
            // What the loopback device delivers is there when the send returns; a little patience all the same.
            let patience = if reaches { Duration::from_secs(2) } else { Duration::from_millis(1) };
            receiver.set_read_timeout(Some(patience)).unwrap();
            let arrives = receiver.recv(&mut [0; 8]).is_ok();
            prop_assert_eq!(arrives, reaches, "{:?} {:?}\n{}", packet, sent, table);
            let count = if arrives { &arrived } else { &lost };
            count.set(count.get() + 1);
        }
        Ok(())
    });
    run.unwrap();
    assert!(arrived.get() > 200 && lost.get() > 200, "{arrived:?} arrived, {lost:?} did not");
}

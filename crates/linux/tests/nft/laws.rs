//! The value that stands for the kernel, against the kernel: the same random changes are accepted or refused
//! by both and end in the same state; random tables are read back as they were committed, and do to packets
//! what the trace says.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use linux::nft::Socket;
use netmodel::Protocol;
use proptest::{collection::vec, prelude::*, test_runner::TestRunner};
use ruleset::{
    Chain, ChainType, Element, Family, Field, Hook, Name, Observed, Rule, SetSpec, Statement, Table,
    Transaction, apply, diff, has_ports,
    trace::{Masqueraded, Outcome, Packet, Tracer},
};
use testkit::{Netns, netns_or_skip};

use crate::random;

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

/// Sockets on the loopback device: one to send from each address, three ports to receive at.
struct Ends {
    senders: Vec<UdpSocket>,
    receivers: BTreeMap<SocketAddr, UdpSocket>,
    addresses: Vec<IpAddr>,
}

impl Ends {
    fn new(ns: &Netns) -> Self {
        let addresses: Vec<IpAddr> = (0..4).map(|last| [10, 0, 0, last].into()).collect();
        for address in &addresses {
            ns.cmd(format!("ip address add {address}/32 dev lo")).ok().unwrap();
        }
        let ends = addresses.iter().flat_map(|ip| [1, 2, 3].map(|port| SocketAddr::new(*ip, port)));
        Self {
            receivers: ends.map(|end| (end, UdpSocket::bind(end).unwrap())).collect(),
            senders: addresses.iter().map(|ip| UdpSocket::bind((*ip, 0)).unwrap()).collect(),
            addresses,
        }
    }

    /// Sends a packet to `to` and says where it should end, and whether it came there.
    fn send(&self, table: &Table, from: &UdpSocket, to: SocketAddr) -> (Outcome, bool) {
        let packet = Packet::sent(from.local_addr().unwrap(), to, Protocol::Udp);
        let outcome = Tracer::new(table, &self.addresses, |_| 0).trace(&packet);
        let (end, patience) = match outcome {
            // What the loopback device delivers is there when the send returns; a little patience all the same.
            Outcome::Reaches(end, _) => (end, Duration::from_secs(2)),
            Outcome::Rejected | Outcome::Dropped => (to, Duration::from_millis(1)),
        };
        let receiver = &self.receivers[&end];
        receiver.set_read_timeout(Some(patience)).unwrap();
        // A packet that is dropped on its way out is an error of the send.
        let _ = from.send_to(b"weft", to);
        (outcome, receiver.recv(&mut [0; 8]).is_ok())
    }
}

/// Real packets through random tables end where the virtual ones do.
#[test]
fn a_virtual_packet_ends_where_a_real_one_does() {
    let Some(ns) = netns_or_skip() else { return };
    let _inside = ns.enter().unwrap();
    let ends = Ends::new(&ns);
    let socket = RefCell::new(Socket::open().unwrap());
    let (arrived, lost) = (Cell::new(0), Cell::new(0));
    let run = runner().run(&random::tables_of(2..6), |table| {
        let mut socket = socket.borrow_mut();
        let before = Transaction::delete(Family::Ip, random::TABLE);
        socket.commit(&before).and_then(|()| socket.commit(&Transaction::create(&table))).unwrap();
        for (from, to) in ends.senders.iter().cycle().zip(ends.receivers.keys()) {
            let (outcome, arrives) = ends.send(&table, from, *to);
            let reaches = matches!(outcome, Outcome::Reaches(..));
            prop_assert_eq!(arrives, reaches, "{:?} to {}\n{}", from.local_addr(), to, table);
            let count = if arrives { &arrived } else { &lost };
            count.set(count.get() + 1);
        }
        Ok(())
    });
    run.unwrap();
    // A run has about 250 that arrive, give or take 45: that this was judged at all is what matters.
    assert!(arrived.get() > 64 && lost.get() > 64, "{arrived:?} arrived, {lost:?} did not");
}

/// Through the loopback device a packet comes by both hooks at which its destination could be rewritten.
#[test]
fn nat_decides_once_about_a_packet_that_loops_back() {
    let Some(ns) = netns_or_skip() else { return };
    let _inside = ns.enter().unwrap();
    let ends = Ends::new(&ns);
    let [first, second, third] = [1, 2, 3].map(|last| SocketAddr::from(([10, 0, 0, last], 1)));
    let mut table = Table::new(Family::Ip, "twice");
    for (name, hook, from, to) in
        [("out", Hook::Output, first, second), ("back", Hook::Prerouting, second, third)]
    {
        let dnat = Rule::new([has_ports(), Statement::dnat_by(name, Field::IpDaddr)]);
        table
            .set(name, SetSpec::map(Field::IpDaddr, Field::IpDaddr))
            .element(&name.into(), from.ip(), Element::value(to.ip()))
            .chain(format!("nat-{name}"), Chain::base(ChainType::Nat, hook, -100, [dnat]));
    }
    assert_eq!(table.check(), Ok(()));
    Socket::open().unwrap().commit(&Transaction::create(&table)).unwrap();
    for (to, end) in [(first, second), (second, second), (third, third)] {
        let reached = ends.send(&table, &ends.senders[0], to);
        assert_eq!(reached, (Outcome::Reaches(end, Masqueraded(false)), true), "{to}");
    }
}

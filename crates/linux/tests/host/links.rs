//! Interfaces, judged with `ip -j`.

use std::time::Duration;

use linux::{
    fdb,
    link::{self, Bridge, BridgePort, Change, Kind, LinkEvents, Veth, Vxlan},
    netlink::{Connection, Protocol, Request, RouteSocket},
    netns::Netns,
};
use netlink_packet_core::NLM_F_DUMP_INTR;
use netmodel::{IfName, Mac, Mtu, Port, Vni};

use crate::world::{in_namespace, json, namespace, run};

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn mtu(bytes: u64) -> Mtu {
    Mtu::try_from(bytes).unwrap()
}

fn bridge(text: &str) -> Bridge {
    Bridge { name: name(text), mac: Some(Mac([2, 0, 0, 0, 0, 9])), mtu: Some(mtu(1450)) }
}

fn vxlan() -> Vxlan {
    Vxlan {
        name: name("flannel.1"),
        vni: Vni::try_from(1).unwrap(),
        port: Port::try_from(8472).unwrap(),
        local: Some("127.0.0.1".parse().unwrap()),
        underlay: None,
        learning: false,
        gbp: false,
        mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        mtu: Some(mtu(1450)),
    }
}

#[test]
fn a_bridge_is_up_with_its_own_address_and_mtu() {
    in_namespace(|| {
        let mut socket = RouteSocket::open().unwrap();
        let wanted = bridge("cni0");
        socket.request(&wanted.add()).unwrap();
        let seen = &json("ip -j -d link show cni0")[0];
        assert_eq!(seen["linkinfo"]["info_kind"], "bridge");
        assert_eq!((seen["address"].as_str(), seen["mtu"].as_u64()), (Some("02:00:00:00:00:09"), Some(1450)));
        assert!(seen["flags"].as_array().unwrap().contains(&"UP".into()), "{seen}");

        let read = socket.link(&name("cni0")).unwrap().unwrap();
        assert_eq!((read.kind, read.up, read.mtu), (Kind::Bridge, true, 1450));
        assert_eq!((read.mac, read.alias), (wanted.mac, None));

        let again = socket.request(&wanted.add()).unwrap_err();
        assert!(again.is_exists() && again.to_string() == "failed to add bridge cni0", "{again}");
    });
}

#[test]
fn a_veth_peer_is_made_in_the_other_namespace_in_one_message() {
    let Some(pod) = namespace() else { return };
    in_namespace(|| {
        let mut socket = RouteSocket::open().unwrap();
        socket.request(&bridge("cni0").add()).unwrap();
        let cni0 = socket.link(&name("cni0")).unwrap().unwrap();
        let (near, far) = (name("veth0"), name("eth0"));
        let veth = Veth {
            name: &near,
            mac: Some(Mac([2, 0, 0, 0, 0, 2])),
            mtu: Some(mtu(1400)),
            master: Some(cni0.index),
            peer_name: &far,
            peer_mac: Some(Mac([2, 0, 0, 0, 0, 3])),
            peer_namespace: &pod,
        };
        let indexes = socket.add_veth(&veth).unwrap();

        let seen = &json("ip -j -d link show veth0")[0];
        assert_eq!(
            (seen["ifindex"].as_u64(), seen["link_index"].as_u64()),
            (Some(indexes.near.into()), Some(indexes.far.into()))
        );
        assert_eq!((seen["address"].as_str(), seen["mtu"].as_u64()), (Some("02:00:00:00:00:02"), Some(1400)));
        assert_eq!(seen["master"], "cni0");
        assert!(seen["flags"].as_array().unwrap().contains(&"UP".into()), "{seen}");
        let peer = pod.enter(|| json("ip -j link show eth0")[0].clone()).unwrap();
        assert_eq!((peer["address"].as_str(), peer["mtu"].as_u64()), (Some("02:00:00:00:00:03"), Some(1400)));
        assert_eq!(peer["ifindex"].as_u64(), Some(indexes.far.into()));

        let read = socket.link_by_index(indexes.near).unwrap().unwrap();
        assert_eq!(
            (read.kind, read.master, read.port),
            (Kind::Veth, Some(cni0.index), Some(BridgePort::default()))
        );
        assert_eq!(read.peer.map(|peer| (peer.index, peer.namespace.is_some())), Some((indexes.far, true)));

        let taken = socket.add_veth(&veth).unwrap_err();
        assert!(taken.is_exists(), "{taken}: {}", taken.cause);
    });
}

#[test]
fn hairpin_isolation_and_lock_are_set_and_read_back() {
    in_namespace(|| {
        run("ip link add cni0 type bridge");
        run("ip link add veth0 master cni0 type veth peer name veth1");
        let mut socket = RouteSocket::open().unwrap();
        let index = socket.link(&name("veth0")).unwrap().unwrap().index;
        let port = BridgePort { hairpin: true, isolated: true, locked: true };
        socket.request(&link::set_port(index, &name("veth0"), port)).unwrap();
        let data = &json("ip -j -d link show veth0")[0]["linkinfo"]["info_slave_data"];
        assert_eq!((&data["hairpin"], &data["isolated"]), (&true.into(), &true.into()));
        assert_eq!((&data["locked"], &data["learning"]), (&true.into(), &false.into()));
        let mac = "02:00:00:00:00:09".parse().unwrap();
        socket.request(&fdb::set_behind(index, mac, &name("veth0"))).unwrap();
        let entries = run("bridge fdb show br cni0");
        assert!(entries.contains("02:00:00:00:00:09 dev veth0 master cni0 static"), "{entries}");
        let read = socket.link(&name("veth0")).unwrap().unwrap();
        assert_eq!(read.port, Some(port));
        assert_eq!(read.peer.map(|peer| peer.namespace), Some(None));
    });
}

#[test]
fn a_vxlan_device_has_the_attributes_that_were_asked_for() {
    in_namespace(|| {
        let mut socket = RouteSocket::open().unwrap();
        socket.request(&vxlan().add()).unwrap();
        let seen = &json("ip -j -d link show flannel.1")[0];
        let data = &seen["linkinfo"]["info_data"];
        assert_eq!((data["id"].as_u64(), data["port"].as_u64()), (Some(1), Some(8472)));
        assert_eq!((data["local"].as_str(), data["learning"].as_bool()), (Some("127.0.0.1"), Some(false)));
        assert_eq!((seen["address"].as_str(), seen["mtu"].as_u64()), (Some("02:00:00:00:00:01"), Some(1450)));
        assert!(
            data["link"].is_null() && !seen["flags"].as_array().unwrap().contains(&"UP".into()),
            "{seen}"
        );

        let read = socket.link(&name("flannel.1")).unwrap().unwrap();
        let Kind::Vxlan(facts) = &read.kind else { panic!("{read:?}") };
        assert_eq!((facts.vni, facts.port), (Vni::try_from(1).ok(), 8472));
        assert_eq!((facts.local, facts.underlay, facts.group), (vxlan().local, None, None));
        assert!(!facts.learning && !facts.gbp, "{facts:?}");
    });
}

#[test]
fn a_vxlan_device_may_learn_carry_policy_and_be_bound_to_an_underlay() {
    in_namespace(|| {
        run("ip link add under0 type bridge");
        let mut socket = RouteSocket::open().unwrap();
        let underlay = socket.link(&name("under0")).unwrap().unwrap().index;
        let wanted = Vxlan { underlay: Some(underlay), learning: true, gbp: true, ..vxlan() };
        socket.request(&wanted.add()).unwrap();
        let data = &json("ip -j -d link show flannel.1")[0]["linkinfo"]["info_data"];
        assert_eq!((&data["link"], &data["gbp"]), (&"under0".into(), &true.into()));
        let Kind::Vxlan(facts) = socket.link(&name("flannel.1")).unwrap().unwrap().kind else { panic!() };
        assert_eq!((facts.underlay, facts.learning, facts.gbp), (Some(underlay), true, true));
    });
}

#[test]
fn a_link_is_changed_in_one_request() {
    in_namespace(|| {
        run("ip link add br0 type bridge");
        run("ip link add veth0 type veth peer name veth1");
        let mut socket = RouteSocket::open().unwrap();
        let (br0, veth0) =
            (socket.link(&name("br0")).unwrap().unwrap(), socket.link(&name("veth0")).unwrap().unwrap());
        let wanted = Change {
            up: Some(true),
            mtu: Some(mtu(1300)),
            mac: Some(Mac([2, 0, 0, 0, 0, 7])),
            master: Some(Some(br0.index)),
            alias: Some("weft:changed"),
            promiscuous: Some(true),
            all_multicast: Some(true),
            queue_length: Some(77),
            rename: None,
        };
        socket.request(&link::change(veth0.index, &veth0.name, &wanted)).unwrap();
        let seen = &json("ip -j link show veth0")[0];
        assert_eq!((seen["address"].as_str(), seen["mtu"].as_u64()), (Some("02:00:00:00:00:07"), Some(1300)));
        assert_eq!((seen["master"].as_str(), seen["ifalias"].as_str()), (Some("br0"), Some("weft:changed")));
        let flags = seen["flags"].as_array().unwrap();
        for flag in ["UP", "PROMISC", "ALLMULTI"] {
            assert!(flags.contains(&flag.into()), "{flags:?}");
        }
        assert_eq!(seen["txqlen"], 77);

        let read = socket.link(&name("veth0")).unwrap().unwrap();
        assert_eq!(read.alias.as_deref(), Some("weft:changed"));
        assert_eq!((read.promiscuous, read.all_multicast, read.queue_length), (true, true, 77));

        let undo = Change { up: Some(false), master: Some(None), alias: Some(""), ..Change::default() };
        socket.request(&link::change(veth0.index, &veth0.name, &undo)).unwrap();
        let seen = &json("ip -j link show veth0")[0];
        assert!(seen["master"].is_null() && seen["ifalias"].is_null(), "{seen}");
        assert!(!seen["flags"].as_array().unwrap().contains(&"UP".into()), "{seen}");
    });
}

#[test]
fn an_absent_link_is_none_and_its_deletion_says_so() {
    in_namespace(|| {
        let mut socket = RouteSocket::open().unwrap();
        assert_eq!(socket.link(&name("nothere")).unwrap(), None);
        assert_eq!(socket.link_by_index(4711).unwrap(), None);
        let error = socket.request(&link::delete(4711, &name("nothere"))).unwrap_err();
        assert!(error.is_not_found() && error.to_string() == "failed to delete link nothere", "{error}");
        assert!(link::detach_and_delete(4711, &name("nothere"), None).unwrap_err().is_not_found());
        assert_eq!(socket.links().unwrap().len(), 1, "only the loopback");
    });
}

#[test]
fn after_a_detached_deletion_both_ends_are_gone() {
    let Some(pod) = namespace() else { return };
    in_namespace(|| {
        let mut socket = RouteSocket::open().unwrap();
        socket.request(&bridge("cni0").add()).unwrap();
        let master = socket.link(&name("cni0")).unwrap().map(|link| link.index);
        let (near, far) = (name("veth0"), name("eth0"));
        let veth = Veth {
            name: &near,
            mac: None,
            mtu: None,
            master,
            peer_name: &far,
            peer_mac: None,
            peer_namespace: &pod,
        };
        for _ in 0..10 {
            let indexes = socket.add_veth(&veth).unwrap();
            link::detach_and_delete(indexes.near, &near, None).unwrap();
            assert_eq!(socket.link(&near).unwrap(), None, "it is gone when the call returns");
        }
        let left = pod.enter(|| json("ip -j link show")).unwrap();
        assert_eq!(left.as_array().unwrap().len(), 1, "{left}");
    });
}

#[test]
fn the_announcement_of_a_bridge_port_is_not_taken_for_the_end_of_the_link() {
    in_namespace(|| {
        run("ip link add br0 type bridge");
        run("ip link add veth0 master br0 type veth peer name veth1");
        let index = RouteSocket::open().unwrap().link(&name("veth0")).unwrap().unwrap().index;
        let mut events = LinkEvents::open().unwrap();
        run("ip link set veth0 nomaster");
        assert!(!events.is_gone(index, Duration::from_millis(200)).unwrap());
        run("ip link del veth0");
        assert!(events.is_gone(index, Duration::from_secs(10)).unwrap());
    });
}

#[test]
fn a_list_that_the_kernel_marks_as_inconsistent_is_read_again() {
    in_namespace(|| {
        let mut socket = RouteSocket::open().unwrap();
        let many: Vec<Request> = (0..200).map(|number| bridge(&format!("br{number}")).add()).collect();
        assert!(socket.apply(&many).iter().all(Result::is_ok));
        let here = Netns::current().unwrap();
        let churn = std::thread::spawn(move || {
            let mut socket = RouteSocket::open_in(&here).unwrap();
            for _ in 0..60 {
                socket.request(&bridge("churn").add()).unwrap();
                let index = socket.link(&name("churn")).unwrap().unwrap().index;
                socket.request(&link::delete(index, &name("churn"))).unwrap();
            }
        });
        let mut connection = Connection::open(Protocol::Route).unwrap();
        let list =
            Request { verb: "list", object: "links".to_owned(), kind: 18, flags: 0, payload: vec![0; 16] };
        let (mut lists, mut repeated) = (0, 0);
        while !churn.is_finished() {
            let mut marked = false;
            let links = connection.dump(&list, |message| {
                marked |= message.flags & NLM_F_DUMP_INTR != 0;
                Ok(Some(message.kind))
            });
            // The loopback, two hundred, and the one that comes and goes.
            assert!((201..=202).contains(&links.unwrap().len()));
            lists += 1;
            repeated += u32::from(marked);
        }
        churn.join().unwrap();
        eprintln!("{repeated} of {lists} lists were read again");
        assert!(repeated > 0, "the kernel marked none of {lists} lists");
    });
}

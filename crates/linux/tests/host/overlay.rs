//! Addresses, routes, neighbours and forwarding entries, judged with `ip -j` and `bridge -j`.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use linux::{
    address::{Address, IfPresent, Scope},
    fdb::Entry,
    link::{Vxlan, set_up},
    neighbour::{Neighbour, State},
    netlink::{Connection, Protocol, Request, RouteSocket},
    netns::Netns,
    route::{Filter, Kind, Route},
    sysctl,
};
use netmodel::{IfName, Mac, Mtu, Port, Subnet, Vni};
use serde_json::Value;

use crate::world::{in_namespace, json, run};

/// Multicast group of route events (`RTNLGRP_IPV4_ROUTE`).
const GROUP_IPV4_ROUTE: u32 = 7;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn subnet(text: &str) -> Subnet {
    text.parse().unwrap()
}

/// The overlay device of one test.
struct Device {
    socket: RouteSocket,
    index: u32,
    name: IfName,
}

impl Device {
    fn new() -> Self {
        let name: IfName = "flannel.1".parse().unwrap();
        let mut socket = RouteSocket::open().unwrap();
        let vxlan = Vxlan {
            name: name.clone(),
            vni: Vni::try_from(1).unwrap(),
            port: Port::try_from(8472).unwrap(),
            local: None,
            underlay: None,
            learning: false,
            gbp: false,
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            mtu: Mtu::try_from(1450).ok(),
        };
        socket.request(&vxlan.add()).unwrap();
        let index = socket.link(&name).unwrap().unwrap().index;
        socket.request(&set_up(index, &name)).unwrap();
        // As long as a namespace has no address at all, the kernel takes every gateway for a broadcast address.
        run("ip link set lo up");
        Self { socket, index, name }
    }

    /// What the overlay needs for one peer.
    fn peer(&self, number: u32) -> [Request; 3] {
        let [_, _, high, low] = number.to_be_bytes();
        let (mac, gateway) =
            (Mac([2, 1, 0, 0, high, low]), IpAddr::from(Ipv4Addr::from((10 << 24) + (number << 8))));
        let route = Route {
            gateway: Some(gateway),
            device: Some(self.index),
            metric: Some(number),
            onlink: true,
            ..Route::to(Subnet::new(gateway, 24).unwrap())
        };
        [
            Neighbour::permanent(self.index, gateway, mac).replace(&self.name),
            Entry::permanent(self.index, mac, [192, 0, 2, 1].into()).replace(&self.name),
            route.replace(&self.name),
        ]
    }
}

fn all_ok(results: Vec<Result<(), linux::Error>>) {
    for result in results {
        result.unwrap_or_else(|error| panic!("{error}: {}", error.cause));
    }
}

/// The element of a JSON list whose field has that value.
fn find<'a>(list: &'a Value, field: &str, value: &str) -> Option<&'a Value> {
    list.as_array().unwrap().iter().find(|element| element[field] == value)
}

#[test]
fn an_address_is_added_kept_listed_and_deleted() {
    in_namespace(|| {
        let mut device = Device::new();
        let v4 = Address::new(device.index, ip("10.244.1.1"), 24);
        let v6 =
            Address { nodad: true, noprefixroute: true, ..Address::new(device.index, ip("fd00::1"), 64) };
        all_ok(
            device
                .socket
                .apply(&[v4.add(&device.name, IfPresent::Fail), v6.add(&device.name, IfPresent::Fail)]),
        );

        let seen = &json("ip -j addr show dev flannel.1")[0]["addr_info"];
        let seen4 = find(seen, "local", "10.244.1.1").unwrap();
        assert_eq!((&seen4["prefixlen"], &seen4["broadcast"]), (&24.into(), &"10.244.1.255".into()));
        let seen6 = find(seen, "local", "fd00::1").unwrap();
        assert_eq!((&seen6["nodad"], &seen6["noprefixroute"]), (&true.into(), &true.into()));
        assert!(json("ip -6 -j route show dev flannel.1 fd00::/64").as_array().unwrap().is_empty());

        let again = device.socket.request(&v4.add(&device.name, IfPresent::Fail)).unwrap_err();
        assert!(again.is_exists(), "{again}");
        assert_eq!(again.to_string(), "failed to add address 10.244.1.1/24 dev flannel.1");
        device.socket.request(&v4.add(&device.name, IfPresent::Keep)).unwrap();

        let listed = device.socket.addresses(Some(device.index)).unwrap();
        assert!(listed.contains(&v4) && listed.contains(&v6), "{listed:?}");
        device.socket.request(&v4.delete(&device.name)).unwrap();
        assert_eq!(find(&json("ip -j addr show dev flannel.1")[0]["addr_info"], "local", "10.244.1.1"), None);
        assert!(device.socket.request(&v4.delete(&device.name)).unwrap_err().is_not_found());
    });
}

#[test]
fn an_address_may_have_a_narrow_scope() {
    in_namespace(|| {
        let mut device = Device::new();
        let address = Address { scope: Scope::Link, ..Address::new(device.index, ip("10.244.1.0"), 32) };
        device.socket.request(&address.add(&device.name, IfPresent::Fail)).unwrap();
        let seen = &json("ip -j -4 addr show dev flannel.1")[0]["addr_info"][0];
        assert_eq!((&seen["scope"], &seen["broadcast"]), (&"link".into(), &Value::Null));
        assert_eq!(
            device.socket.addresses(Some(device.index)).unwrap().iter().find(|a| a.address.is_ipv4()),
            Some(&address)
        );
    });
}

#[test]
fn a_peer_is_a_neighbour_a_forwarding_entry_and_an_onlink_route() {
    in_namespace(|| {
        let mut device = Device::new();
        all_ok(device.socket.apply(&device.peer(0x0102)));

        let route = &json("ip -j -d route show dev flannel.1")[0];
        assert_eq!((&route["dst"], &route["gateway"]), (&"10.1.2.0/24".into(), &"10.1.2.0".into()));
        assert_eq!(
            (&route["metric"], &route["protocol"], &route["flags"][0]),
            (&258.into(), &"154".into(), &"onlink".into())
        );
        let neighbour = &json("ip -j neigh show dev flannel.1")[0];
        assert_eq!(
            (&neighbour["dst"], &neighbour["lladdr"]),
            (&"10.1.2.0".into(), &"02:01:00:00:01:02".into())
        );
        assert_eq!(neighbour["state"][0], "PERMANENT");
        let fdb = json("bridge -j fdb show dev flannel.1");
        let entry = find(&fdb, "mac", "02:01:00:00:01:02").unwrap();
        assert_eq!((&entry["dst"], &entry["state"]), (&"192.0.2.1".into(), &"permanent".into()));

        let mac = Mac([2, 1, 0, 0, 1, 2]);
        let neighbours = device.socket.neighbours(device.index).unwrap();
        assert!(
            neighbours.contains(&Neighbour::permanent(device.index, ip("10.1.2.0"), mac)),
            "{neighbours:?}"
        );
        let entry = Entry::permanent(device.index, mac, ip("192.0.2.1"));
        assert_eq!(device.socket.fdb(device.index).unwrap(), [entry]);
        let routes = device
            .socket
            .routes(Filter { protocol: Some(154), device: Some(device.index), ..Filter::main(true) })
            .unwrap();
        assert_eq!((routes.len(), routes[0].metric, routes[0].onlink), (1, Some(258), true));

        let neighbour = Neighbour::permanent(device.index, ip("10.1.2.0"), mac);
        let undo =
            [routes[0].delete(&device.name), entry.delete(&device.name), neighbour.delete(&device.name)];
        all_ok(device.socket.apply(&undo));
        assert!(device.socket.apply(&undo).iter().all(|result| result.as_ref().unwrap_err().is_not_found()));
        assert_eq!(run("ip route show dev flannel.1"), "");
        assert_eq!(run("bridge fdb show dev flannel.1"), "");
    });
}

#[test]
fn a_peer_that_moved_is_replaced_in_place() {
    in_namespace(|| {
        let mut device = Device::new();
        all_ok(device.socket.apply(&device.peer(7)));
        let (mac, new) = (Mac([2, 1, 0, 0, 0, 7]), Mac([2, 9, 9, 9, 9, 9]));
        let moved = Entry::permanent(device.index, mac, ip("192.0.2.99"));
        let other = Neighbour::permanent(device.index, ip("10.0.7.0"), new);
        all_ok(device.socket.apply(&[moved.replace(&device.name), other.replace(&device.name)]));
        assert_eq!(device.socket.fdb(device.index).unwrap(), [moved]);
        assert_eq!(json("ip -j neigh show dev flannel.1")[0]["lladdr"], "02:09:09:09:09:09");
        assert!(device.socket.request(&other.add(&device.name)).unwrap_err().is_exists());
    });
}

#[test]
fn an_address_of_zeros_may_have_many_destinations() {
    in_namespace(|| {
        let mut device = Device::new();
        let to = |text| Entry::permanent(device.index, Mac::default(), ip(text));
        let (one, two) = (to("192.0.2.1"), to("192.0.2.2"));
        all_ok(device.socket.apply(&[one.append(&device.name), two.append(&device.name)]));
        assert_eq!(json("bridge -j fdb show dev flannel.1").as_array().unwrap().len(), 2);
        all_ok(device.socket.apply(&[one.delete(&device.name)]));
        assert_eq!(device.socket.fdb(device.index).unwrap(), [two]);
    });
}

#[test]
fn overlay_entries_exist_over_ipv6_as_well() {
    in_namespace(|| {
        let name: IfName = "flannel-v6.1".parse().unwrap();
        let mut socket = RouteSocket::open().unwrap();
        run("ip link add flannel-v6.1 type vxlan id 1 dstport 8472 local ::1 nolearning");
        let index = socket.link(&name).unwrap().unwrap().index;
        socket.request(&set_up(index, &name)).unwrap();
        let mac = Mac([2, 6, 0, 0, 0, 1]);
        let route = Route {
            gateway: Some(ip("fd00:1::")),
            device: Some(index),
            metric: Some(9),
            onlink: true,
            ..Route::to(subnet("fd00:1::/64"))
        };
        all_ok(socket.apply(&[
            Neighbour::permanent(index, ip("fd00:1::"), mac).replace(&name),
            Entry::permanent(index, mac, ip("2001:db8::1")).replace(&name),
            route.replace(&name),
        ]));
        assert_eq!(
            find(&json("ip -6 -j route show dev flannel-v6.1"), "dst", "fd00:1::/64").unwrap()["metric"],
            9
        );
        assert_eq!(
            find(&json("ip -6 -j neigh show dev flannel-v6.1"), "dst", "fd00:1::").unwrap()["state"][0],
            "PERMANENT"
        );
        assert_eq!(json("bridge -j fdb show dev flannel-v6.1")[0]["dst"], "2001:db8::1");
        assert_eq!(socket.fdb(index).unwrap(), [Entry::permanent(index, mac, ip("2001:db8::1"))]);
        let listed = socket.routes(Filter { protocol: Some(154), ..Filter::main(false) }).unwrap();
        assert_eq!((listed.len(), &listed[0].destination), (1, &route.destination));
        all_ok(socket.apply(&[listed[0].delete(&name)]));
    });
}

#[test]
fn an_error_in_a_pipeline_belongs_to_its_request_and_carries_the_kernels_words() {
    in_namespace(|| {
        let mut device = Device::new();
        let mut requests: Vec<Request> = (1..=2000).flat_map(|number| device.peer(number)).collect();
        // Not on the link, and not said to be: the kernel refuses it in words.
        let bad = Route {
            gateway: Some(ip("203.0.113.1")),
            device: Some(device.index),
            ..Route::to(subnet("198.51.100.0/24"))
        };
        let bad_at = [0, 1023, 1024, 4711, requests.len()];
        for at in bad_at {
            requests.insert(at, bad.add(&device.name));
        }
        let results = device.socket.apply(&requests);
        assert_eq!(results.len(), requests.len());
        let failed: Vec<usize> = (0..results.len()).filter(|at| results[*at].is_err()).collect();
        assert_eq!(failed, bad_at);
        for at in failed {
            let error = results[at].as_ref().unwrap_err();
            assert_eq!(
                error.to_string(),
                "failed to add route 198.51.100.0/24 via 203.0.113.1 dev flannel.1"
            );
            assert!(error.cause.to_string().ends_with(": Nexthop has invalid gateway"), "{}", error.cause);
        }
        assert_eq!(json("ip -j route show dev flannel.1").as_array().unwrap().len(), 2000);
    });
}

#[test]
fn a_pipeline_in_which_everything_fails_reports_everything() {
    in_namespace(|| {
        let mut device = Device::new();
        let absent: Vec<Request> = (0..10_000_u32)
            .map(|number| Route {
                device: Some(device.index),
                gateway: Some(ip("10.0.0.1")),
                ..Route::to(Subnet::new(Ipv4Addr::from(number << 8).into(), 24).unwrap())
            })
            .map(|route| route.add(&device.name))
            .collect();
        let results = device.socket.apply(&absent);
        let is_told = |e: &linux::Error| matches!(e.cause, linux::Cause::Refused { .. });
        let refused = results.iter().filter(|result| result.as_ref().is_err_and(is_told)).count();
        assert_eq!(refused, 10_000, "{:?}", results.iter().find(|result| result.is_ok()));
        all_ok(device.socket.apply(&device.peer(1)));
    });
}

#[test]
fn five_thousand_peers_are_programmed_in_one_go() {
    in_namespace(|| {
        let mut device = Device::new();
        let requests: Vec<Request> = (1..=5000).flat_map(|number| device.peer(number)).collect();
        let begun = Instant::now();
        all_ok(device.socket.apply(&requests));
        let took = begun.elapsed();
        eprintln!("{} requests: {took:?}", requests.len());
        assert!(took < Duration::from_secs(10), "{took:?}");
        let filter = Filter { protocol: Some(154), device: Some(device.index), ..Filter::main(true) };
        assert_eq!(device.socket.routes(filter).unwrap().len(), 5000);
        assert_eq!(device.socket.fdb(device.index).unwrap().len(), 5000);
        let permanent = |neighbour: &Neighbour| neighbour.state == State::Permanent;
        assert_eq!(
            device.socket.neighbours(device.index).unwrap().into_iter().filter(permanent).count(),
            5000
        );
        assert_eq!(json("bridge -j fdb show dev flannel.1").as_array().unwrap().len(), 5000);
    });
}

#[test]
fn a_list_read_while_it_changes_holds_every_route_that_stays() {
    in_namespace(|| {
        let mut device = Device::new();
        let staying: Vec<Request> = (1..=3000).flat_map(|number| device.peer(number)).collect();
        all_ok(device.socket.apply(&staying));
        let (index, name) = (device.index, device.name.clone());
        let here = Netns::current().unwrap();
        let churn = std::thread::spawn(move || {
            let mut socket = RouteSocket::open_in(&here).unwrap();
            let route = Route { device: Some(index), ..Route::to(subnet("10.5.5.0/24")) };
            for _ in 0..3000 {
                all_ok(socket.apply(&[route.add(&name), route.delete(&name)]));
            }
        });
        let filter = Filter { protocol: Some(154), ..Filter::main(true) };
        while !churn.is_finished() {
            match device.socket.routes(filter) {
                Ok(routes) => assert!((3000..=3001).contains(&routes.len()), "{}", routes.len()),
                Err(error) => assert_eq!(error.retry(), linux::Retry::Now, "{error}: {}", error.cause),
            }
        }
        churn.join().unwrap();
        assert_eq!(device.socket.routes(filter).unwrap().len(), 3000);
    });
}

#[test]
fn neighbours_are_all_listed_while_the_table_of_all_namespaces_grows() {
    let Some(other) = crate::world::namespace() else { return };
    in_namespace(|| {
        let mut device = Device::new();
        let neighbours = |device: &Device, count: u32| -> Vec<Request> {
            let entry = |number: u32| {
                let address = Ipv4Addr::from((10 << 24) + number).into();
                Neighbour::permanent(device.index, address, Mac([2, 0, 0, 0, 0, 1])).replace(&device.name)
            };
            (1..=count).map(entry).collect()
        };
        all_ok(device.socket.apply(&neighbours(&device, 5000)));
        std::thread::scope(|scope| {
            let growth = scope.spawn(|| {
                let fill = || {
                    let mut device = Device::new();
                    all_ok(device.socket.apply(&neighbours(&device, 100_000)));
                };
                other.enter(fill).unwrap();
            });
            while !growth.is_finished() {
                match device.socket.neighbours(device.index) {
                    Ok(listed) => {
                        assert_eq!(listed.iter().filter(|n| n.state == State::Permanent).count(), 5000);
                    }
                    Err(error) => assert_eq!(error.retry(), linux::Retry::Now, "{error}: {}", error.cause),
                }
            }
        });
    });
}

#[test]
fn lost_events_are_reported_and_the_connection_stays_usable() {
    in_namespace(|| {
        let mut device = Device::new();
        let mut events = Connection::open(Protocol::Route).unwrap();
        events.join(GROUP_IPV4_ROUTE).unwrap();
        for round in 0..4 {
            let requests: Vec<Request> =
                (1..=5000).flat_map(|number| device.peer(number + 5000 * round)).collect();
            all_ok(device.socket.apply(&requests));
        }
        let mut seen = 0;
        let error = loop {
            match events.events(Some(Duration::from_secs(5)), |_| seen += 1) {
                Ok(came) => assert!(came, "{seen} events and no word of those that were lost"),
                Err(error) => break error,
            }
        };
        assert!(
            error.is_overrun() && error.retry() == linux::Retry::AfterObserving,
            "{error}: {}",
            error.cause
        );
        while events.events(Some(Duration::ZERO), |_| ()).unwrap() {}
        all_ok(device.socket.apply(&device.peer(60_000)));
        let mut later = 0;
        assert!(events.events(Some(Duration::from_secs(5)), |_| later += 1).unwrap() && later == 1);
    });
}

#[test]
fn a_list_is_whole_although_answers_were_lost_meanwhile() {
    in_namespace(|| {
        let mut device = Device::new();
        let mut connection = Connection::open(Protocol::Route).unwrap();
        // Its own numbers, so that no event of another connection looks like an answer.
        connection.reserve(1_000_000);
        connection.join(GROUP_IPV4_ROUTE).unwrap();
        for round in 0..4 {
            let requests: Vec<Request> =
                (1..=5000).flat_map(|number| device.peer(number + 5000 * round)).collect();
            all_ok(device.socket.apply(&requests));
        }
        // struct rtmsg, of IPv4 and the main table.
        let payload = [&[2, 0, 0, 0, 254][..], &[0; 7]].concat();
        let list = Request { verb: "list", object: "routes".to_owned(), kind: 26, flags: 0, payload };
        for _ in 0..2 {
            let routes = connection.dump(&list, |message| Ok(Some(message.kind))).unwrap();
            assert_eq!(routes.len(), 20_000);
        }
    });
}

#[test]
fn routes_are_filtered_by_table_and_the_way_to_an_address_is_found() {
    in_namespace(|| {
        let mut device = Device::new();
        run("ip addr add 10.9.0.1/24 dev flannel.1");
        run("ip route add 198.51.100.0/24 via 10.9.0.7 src 10.9.0.1 mtu 1300");
        run("ip route add 203.0.113.0/24 dev flannel.1 table 1000");
        run("ip route add 192.0.2.0/24 nexthop via 10.9.0.8 nexthop via 10.9.0.9");
        let main = device.socket.routes(Filter::main(true)).unwrap();
        let by = |text: &str| main.iter().find(|route| route.destination == subnet(text)).unwrap();
        assert_eq!((main.len(), by("10.9.0.0/24").protocol, by("10.9.0.0/24").scope), (3, 2, Scope::Link));
        assert_eq!(by("198.51.100.0/24").mtu, Mtu::try_from(1300).ok());
        let hops: Vec<_> = by("192.0.2.0/24").multipath.iter().filter_map(|hop| hop.gateway).collect();
        assert_eq!(hops, [ip("10.9.0.8"), ip("10.9.0.9")]);
        let other = device.socket.routes(Filter { table: Some(1000), ..Filter::main(true) }).unwrap();
        assert_eq!((other.len(), other[0].table), (1, 1000));
        assert_eq!(device.socket.routes(Filter { table: Some(77), ..Filter::main(true) }).unwrap(), []);

        let way = device.socket.way_to(ip("198.51.100.1")).unwrap().unwrap();
        assert_eq!(
            (way.device, way.gateway, way.source),
            (device.index, Some(ip("10.9.0.7")), Some(ip("10.9.0.1")))
        );
        assert_eq!(device.socket.way_to(ip("10.9.0.1")).unwrap().unwrap().kind, Kind::Local);
        assert_eq!(device.socket.way_to(ip("8.8.8.8")).unwrap(), None);
    });
}

#[test]
fn settings_are_those_of_the_namespace() {
    in_namespace(|| {
        let _device = Device::new();
        let path = ["net", "ipv4", "conf", "flannel.1", "forwarding"];
        sysctl::write(&path, "1").unwrap();
        assert_eq!(sysctl::read(&path).unwrap(), "1");
        assert_eq!(run("cat /proc/sys/net/ipv4/conf/flannel.1/forwarding").trim(), "1");
        let error = sysctl::write(&path, "x").unwrap_err();
        assert_eq!(error.to_string(), "failed to set sysctl net/ipv4/conf/flannel.1/forwarding to \"x\"");
        assert!(
            sysctl::write(&["net", "ipv4", "conf", "absent", "forwarding"], "1").unwrap_err().is_not_found()
        );
    });
}

//! What must hold whatever the kernel holds and whatever the leases say; and single cases as text.

use std::collections::BTreeMap;

use netmodel::{Mac, Mtu};
use proptest::prelude::*;

use crate::{
    desired::{Skipped, desired},
    diff::diff,
    fake::{FakeKernel, Flaky},
    host::{ByHand, DeviceKind, HostPrefix, NodeFacts},
    kernel::Kernel,
    lease::{Lease, RawLease},
    overlay::{Device, Hop, Overlay, Remote, RouteKey},
    test::{config, facts, host_address, lease},
    wire,
};

const NETWORK: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

fn own() -> Lease {
    Lease {
        subnet: "10.5.1.0/24".parse().unwrap(),
        public_ip: "192.0.2.1".parse().unwrap(),
        vtep_mac: Mac([2, 0, 0, 0, 0, 1]),
        vni: 1_u64.try_into().unwrap(),
        expires: None,
    }
}

fn want(leases: &[RawLease], me: &NodeFacts) -> (Overlay, Vec<Skipped>) {
    desired(leases, &config(NETWORK), &own(), me)
}

/// What a kernel without anything of ours holds.
fn bare() -> Overlay {
    let mut overlay = Overlay::empty("flannel.1".parse().unwrap());
    overlay.sysctls = BTreeMap::from([("net/ipv4/ip_forward".to_owned(), "0".to_owned())]);
    overlay
}

fn settled(leases: &[RawLease]) -> Overlay {
    let mut overlay = want(leases, &facts()).0;
    overlay.sysctls.retain(|path, _| path == "net/ipv4/ip_forward");
    overlay
}

/// The operations that lead from `have` to what `leases` ask for.
fn check(have: &Overlay, leases: &[RawLease], expected: &str) {
    let plan = diff(&want(leases, &facts()).0, have);
    let text: Vec<_> = plan.iter().map(ToString::to_string).collect();
    assert_eq!(text.join("\n"), expected.trim());
}

#[test]
fn the_first_run_makes_the_device_then_each_peer_with_the_route_last() {
    check(
        &bare(),
        &[lease("10.5.1.0-24", "192.0.2.1", 1), lease("10.5.34.0-24", "192.0.2.2", 2)],
        "
sysctl -w net/ipv4/ip_forward=1
ip link add flannel.1 address 02:00:00:00:00:01 mtu 1450 type vxlan id 1 local 192.0.2.1 dstport 8472 nolearning
ip link set flannel.1 up
ip addr add 10.5.1.0/32 dev flannel.1
bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent
ip neigh replace 10.5.34.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent
ip route replace 10.5.34.0/24 via 10.5.34.0 dev flannel.1 metric 35 onlink proto 154",
    );
}

#[test]
fn a_peer_that_moved_leaves_nothing_behind() {
    let have = settled(&[lease("10.5.34.0-24", "192.0.2.2", 2)]);
    check(
        &have,
        &[lease("10.5.34.0-24", "192.0.2.3", 3)],
        "
bridge fdb replace 02:00:00:00:00:03 dev flannel.1 dst 192.0.2.3 self permanent
ip neigh replace 10.5.34.0 lladdr 02:00:00:00:00:03 dev flannel.1 nud permanent
bridge fdb del 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2",
    );
    let same_device = [lease("10.5.34.0-24", "192.0.2.9", 2)];
    check(
        &have,
        &same_device,
        "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.9 self permanent",
    );
}

#[test]
fn a_peer_that_left_goes_route_first() {
    check(
        &settled(&[lease("10.5.34.0-24", "192.0.2.2", 2)]),
        &[],
        "
ip route del 10.5.34.0/24 via 10.5.34.0 dev flannel.1 metric 35 onlink
ip neigh del 10.5.34.0 dev flannel.1
bridge fdb del 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2",
    );
}

#[test]
fn flannels_route_goes_only_after_ours_is_there() {
    let peers = [lease("10.5.34.0-24", "192.0.2.2", 2)];
    let mut have = settled(&peers);
    let subnet = "10.5.34.0/24".parse().unwrap();
    have.routes = [(RouteKey { subnet, metric: 0 }, Hop::Foreign(3))].into();
    check(
        &have,
        &peers,
        "
ip route replace 10.5.34.0/24 via 10.5.34.0 dev flannel.1 metric 35 onlink proto 154
ip route del 10.5.34.0/24 dev flannel.1 metric 0",
    );
}

#[test]
fn flannels_direct_route_goes_after_ours_is_there_and_one_by_another_gateway_stays() {
    let config = config(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#);
    let mut host = host_address("192.0.2.1/24", "eth0", DeviceKind::Other);
    let mut have = settled(&[]);
    for (third, last) in [(34, 2), (35, 77)] {
        let subnet = format!("10.5.{third}.0/24").parse().unwrap();
        let gateway = [192, 0, 2, last].into();
        have.routes.insert(RouteKey { subnet, metric: 0 }, Hop::ByHand(gateway));
        let by_hand = Some(ByHand { metric: 0, gateway: Some(gateway) });
        let device = Some("eth0".parse().unwrap());
        host.push(HostPrefix { subnet, address: None, device, kind: DeviceKind::Other, by_hand });
    }
    let me = NodeFacts { host, ..facts() };
    let leases = [lease("10.5.34.0-24", "192.0.2.2", 2), lease("10.5.35.0-24", "192.0.2.3", 3)];
    let (want, skipped) = desired(&leases, &config, &own(), &me);
    let text: Vec<_> = diff(&want, &have).iter().map(ToString::to_string).collect();
    let expected = "
ip route replace 10.5.34.0/24 via 192.0.2.2 metric 35 proto 154
ip route del 10.5.34.0/24 via 192.0.2.2 metric 0";
    assert_eq!(text.join("\n"), expected.trim());
    let why = "it overlaps route 10.5.35.0/24 through eth0 of this host";
    assert_eq!(skipped[0].to_string(), format!("lease \"10.5.35.0-24\" is skipped: {why}"));
    let overlaps: Vec<_> = me.overlaps(&config, None, &want).iter().map(|o| o.subnet.to_string()).collect();
    assert_eq!((skipped.len(), overlaps), (1, vec!["10.5.35.0/24".to_owned()]));
    // Where a tunnel leads to the peer, flannel's route is in its way, and nothing says that it is flannel's.
    assert_eq!(self::want(&leases, &me).1.len(), 2);
}

#[test]
fn a_device_is_changed_in_place_where_linux_can() {
    let peers = [lease("10.5.34.0-24", "192.0.2.2", 2)];
    let mut have = settled(&peers);
    let device = have.device.as_mut().unwrap();
    device.mtu = Mtu::try_from(1400).unwrap();
    device.learning = true;
    device.mac = Mac([2, 9, 9, 9, 9, 9]);
    check(
        &have,
        &peers,
        "
ip link set flannel.1 type vxlan local 192.0.2.1 nolearning
ip link set flannel.1 address 02:00:00:00:00:01
ip link set flannel.1 mtu 1450
ip neigh replace 10.5.34.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent",
    );
}

#[test]
fn a_device_that_was_renamed_gets_its_name_back_and_keeps_everything() {
    let peers = [lease("10.5.34.0-24", "192.0.2.2", 2)];
    let mut have = settled(&peers);
    have.name = "other0".parse().unwrap();
    check(&have, &peers, "ip link set other0 name flannel.1");
}

#[test]
fn a_device_that_cannot_be_changed_is_made_anew_with_all_peers_and_its_address() {
    let peers = [lease("10.5.34.0-24", "192.0.2.2", 2)];
    let mut have = settled(&peers);
    have.device.as_mut().unwrap().port = 4789.try_into().unwrap();
    check(
        &have,
        &peers,
        "
ip link del flannel.1
ip link add flannel.1 address 02:00:00:00:00:01 mtu 1450 type vxlan id 1 local 192.0.2.1 dstport 8472 nolearning
ip link set flannel.1 up
ip addr add 10.5.1.0/32 dev flannel.1
bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent
ip neigh replace 10.5.34.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent
ip route replace 10.5.34.0/24 via 10.5.34.0 dev flannel.1 metric 35 onlink proto 154",
    );
}

/// One lease beside a good one: it is skipped with that reason, and the good one is used.
fn check_skipped(bad: &RawLease, me: &NodeFacts, reason: &str) {
    let good = lease("10.5.34.0-24", "192.0.2.2", 2);
    let (overlay, skipped) = want(&[bad.clone(), good], me);
    assert_eq!(overlay.routes.len(), 1, "{reason}");
    assert_eq!(overlay.neighbours.len(), 1, "{reason}");
    let text: Vec<_> = skipped.iter().map(ToString::to_string).collect();
    assert_eq!(text, [format!("lease {:?} is skipped: {reason}", bad.key)]);
}

#[test]
fn a_peer_on_the_same_link_gets_a_plain_route_where_that_is_wanted() {
    let config = config(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#);
    let me = NodeFacts { host: host_address("192.0.2.1/24", "eth0", DeviceKind::Other), ..facts() };
    let leases = [lease("10.5.34.0-24", "192.0.2.2", 2), lease("10.5.35.0-24", "198.51.100.3", 3)];
    let want = desired(&leases, &config, &own(), &me).0;
    let text: Vec<_> = diff(&want, &settled(&[])).iter().map(ToString::to_string).collect();
    let expected = "
bridge fdb replace 02:00:00:00:00:03 dev flannel.1 dst 198.51.100.3 self permanent
ip neigh replace 10.5.35.0 lladdr 02:00:00:00:00:03 dev flannel.1 nud permanent
ip route replace 10.5.34.0/24 via 192.0.2.2 metric 35 proto 154
ip route replace 10.5.35.0/24 via 10.5.35.0 dev flannel.1 metric 36 onlink proto 154";
    assert_eq!(text.join("\n"), expected.trim());
}

fn with_value(value: &str) -> RawLease {
    RawLease { value: value.to_owned(), ..lease("10.5.7.0-24", "192.0.2.7", 7) }
}

fn with_mac(mac: &str) -> RawLease {
    with_value(&format!(
        r#"{{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    ))
}

#[test]
fn each_bad_lease_is_skipped_by_name_and_harms_no_other() {
    let me = facts();
    let key = |key: &str| lease(key, "192.0.2.7", 7);
    check_skipped(
        &key("nonsense"),
        &me,
        "the key \"nonsense\" is not a lease: it must be an IPv4 subnet such as \"10.5.34.0-24\"",
    );
    check_skipped(&key("0.0.0.0-0"), &me, "it lies outside the network 10.5.0.0/16");
    check_skipped(&key("10.6.0.0-24"), &me, "it lies outside the network 10.5.0.0/16");
    check_skipped(&key("10.5.0.0-16"), &me, "it overlaps this node's own subnet 10.5.1.0/24");
    check_skipped(&key("10.5.1.128-25"), &me, "it overlaps this node's own subnet 10.5.1.0/24");
    check_skipped(&key("10.5.34.128-25"), &me, "it overlaps the older lease 10.5.34.0/24");
    check_skipped(&key("10.5.32.0-22"), &me, "it overlaps the older lease 10.5.34.0/24");
    let ip = |ip: &str| lease("10.5.7.0-24", ip, 7);
    check_skipped(&ip("0.0.0.0"), &me, "its PublicIP 0.0.0.0 is zero");
    check_skipped(&ip("127.0.0.1"), &me, "its PublicIP 127.0.0.1 is a loopback address");
    check_skipped(&ip("239.1.1.1"), &me, "its PublicIP 239.1.1.1 is a multicast address");
    check_skipped(&ip("255.255.255.255"), &me, "its PublicIP 255.255.255.255 is the broadcast address");
    check_skipped(&ip("192.0.2.1"), &me, "its PublicIP 192.0.2.1 is this node's own");
    check_skipped(&ip("10.5.7.9"), &me, "its PublicIP 10.5.7.9 is in its own subnet");
    check_skipped(&with_mac("00:00:00:00:00:00"), &me, "its VtepMAC 00:00:00:00:00:00 is zero");
    check_skipped(
        &with_mac("01:00:5e:00:00:01"),
        &me,
        "its VtepMAC 01:00:5e:00:00:01 is a multicast address",
    );
    check_skipped(
        &with_mac("02:00:00:00:00:01"),
        &me,
        "its VtepMAC 02:00:00:00:00:01 is also that of this node",
    );
    check_skipped(
        &with_mac("02:00:00:00:00:02"),
        &me,
        "its VtepMAC 02:00:00:00:00:02 is also that of the older lease 10.5.34.0/24",
    );
    let syntax = "its VtepMAC: \"x\" is not an Ethernet address: it must be six pairs of hex digits such as \"c6:d2:32:6f:8f:44\"";
    check_skipped(&with_mac("x"), &me, syntax);
    let no_mac = with_value(r#"{"PublicIP":"192.0.2.7","BackendType":"vxlan"}"#);
    check_skipped(&no_mac, &me, "it has no VtepMAC");
    check_skipped(
        &with_value("{not json"),
        &me,
        "the value is not a lease: it is not JSON: key must be a string at line 1 column 2",
    );
    check_skipped(&with_value("null"), &me, "the value is not a lease: it is not a JSON object, but null");
    let udp = with_value(r#"{"PublicIP":"192.0.2.7"}"#);
    check_skipped(&udp, &me, "its BackendType is \"\", not \"vxlan\"");
    let other_vni = wire::vxlan_value("192.0.2.7".parse().unwrap(), 2_u64.try_into().unwrap(), Mac([2; 6]));
    check_skipped(&with_value(&other_vni), &me, "its VNI is 2, not 1");
    let host = NodeFacts { host: host_address("10.5.7.11/24", "eth1", DeviceKind::Other), ..facts() };
    check_skipped(&key("10.5.7.0-24"), &host, "it overlaps address 10.5.7.11/24 of eth1 of this host");
}

#[test]
fn an_old_lease_without_a_vni_is_used() {
    let old = with_value(
        r#"{"PublicIP":"192.0.2.7","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:00:00:00:07"}}"#,
    );
    assert_eq!(want(&[old], &facts()).0.routes.len(), 1);
}

prop_compose! {
    fn some_lease()(
        third in 0_u8..12, length in 22_u8..=26, ip in 0_u8..12, mac in 0_u8..12, created in 0_i64..5,
    ) -> RawLease {
        let subnet = netmodel::Subnet::containing([10, 5, third, 0].into(), length).unwrap();
        let key = format!("{}-{length}", subnet.address());
        RawLease { created, ..lease(&key, &format!("192.0.2.{ip}"), mac) }
    }
}

prop_compose! {
    fn some_device()(
        (mac, mtu) in (0_u8..3, 1448_u64..1452),
        (local, port) in (1_u8..3, 8472_i64..8474),
        learning: bool, up: bool, foreign: bool, gbp: bool,
    ) -> Device {
        Device {
            vni: 1_u64.try_into().unwrap(),
            port: port.try_into().unwrap(),
            local: [192, 0, 2, local].into(),
            mac: Mac([2, 0, 0, 0, 0, mac]),
            mtu: mtu.try_into().unwrap(),
            gbp, learning, up, foreign,
        }
    }
}

prop_compose! {
    /// What earlier runs, flannel and foreigners may have left.
    fn some_kernel()(
        leases in prop::collection::vec(some_lease(), 0..10),
        device in prop::option::of(some_device()),
        forward: bool,
        stray_routes in prop::collection::vec((0_u8..12, 0_u32..3, 0_u8..3), 0..5),
        stray_entries in prop::collection::vec((0_u8..12, 0_u8..12, prop::bool::ANY), 0..5),
        lost in prop::collection::vec(0_u8..12, 0..5),
        addresses in prop::collection::btree_set((0_u8..12).prop_map(|n| ([10, 5, n, 0].into(), 32)), 0..3),
        renamed: bool,
    ) -> Overlay {
        let mut have = settled(&leases);
        have.sysctls.insert("net/ipv4/ip_forward".to_owned(), u8::from(forward).to_string());
        for (third, metric, kind) in stray_routes {
            let subnet = format!("10.5.{third}.0/24").parse().unwrap();
            let hop = [Hop::Blackhole, Hop::Foreign(3), Hop::Direct([192, 0, 2, 9].into())][usize::from(kind)];
            have.routes.insert(RouteKey { subnet, metric }, hop);
        }
        for (mac, node, odd) in stray_entries {
            have.fdb.insert((Mac([2, 0, 0, 0, 0, mac]), Remote { address: [192, 0, 2, node].into(), odd }));
            have.neighbours.insert([10, 5, node, 0].into(), Mac([2, 0, 0, 0, 1, mac]));
        }
        for mac in lost {
            have.fdb.retain(|(m, _)| m.0[5] != mac);
            have.neighbours.remove(&[10, 5, mac, 0].into());
        }
        have.addresses = addresses;
        if renamed && device.is_some() {
            have.name = "other0".parse().unwrap();
        }
        match device {
            // A device that is down has no routes and neighbours.
            Some(device) if !device.up => {
                have.neighbours.clear();
                have.routes.retain(|_, hop| !hop.is_on_device());
                have.device = Some(device);
            }
            Some(device) => have.device = Some(device),
            None => {
                let routes = have.routes.into_iter().filter(|(_, hop)| !hop.is_on_device()).collect();
                have = Overlay { routes, sysctls: have.sysctls, ..Overlay::empty(have.name) };
            }
        }
        have
    }
}

proptest! {
    #[test]
    fn one_pass_reaches_the_goal_and_a_second_does_nothing(
        have in some_kernel(), leases in prop::collection::vec(some_lease(), 0..10),
    ) {
        let want = settled(&leases);
        let mut kernel = FakeKernel { now: have };
        let plan: Vec<_> = diff(&want, &kernel.now).into_iter().collect();
        for (op, result) in plan.iter().zip(kernel.apply(&plan)) {
            prop_assert!(result.is_ok(), "{op}: {result:?}");
        }
        prop_assert_eq!(&kernel.now, &want);
        prop_assert!(diff(&want, &kernel.now).is_empty());
    }

    #[test]
    fn it_converges_once_faults_stop(
        have in some_kernel(), leases in prop::collection::vec(some_lease(), 0..10),
        fail_every in 2_usize..5, faulty_passes in 1_usize..6,
    ) {
        let want = settled(&leases);
        let mut kernel = Flaky { inner: FakeKernel { now: have }, fail_every, calls: 0 };
        for pass in 0..faulty_passes + 2 {
            if pass == faulty_passes {
                kernel.fail_every = 0;
            }
            let plan: Vec<_> = diff(&want, &kernel.observe().unwrap()).into_iter().collect();
            kernel.apply(&plan);
        }
        prop_assert_eq!(&kernel.inner.now, &want);
    }

    #[test]
    fn a_used_lease_never_overlaps_another_and_each_other_one_is_named(
        leases in prop::collection::vec(some_lease(), 0..12),
    ) {
        let (overlay, skipped) = want(&leases, &facts());
        let subnets: Vec<_> = overlay.routes.keys().map(|key| key.subnet).collect();
        for (i, a) in subnets.iter().enumerate() {
            prop_assert!(!a.overlaps(&own().subnet));
            prop_assert!(subnets[i + 1..].iter().all(|b| !a.overlaps(b)));
        }
        let own_ones = leases.iter().filter(|l| l.key == "10.5.1.0-24").count();
        prop_assert_eq!(subnets.len() + skipped.len() + own_ones, leases.len());
    }
}

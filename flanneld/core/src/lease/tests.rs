use super::*;
use crate::host::DeviceKind;
use crate::test::{config, facts, host_address, lease};

/// Chooses with the first of the free subnets, and says what came out.
fn check(
    leases: &[RawLease],
    records: &[(u8, &str, &str)],
    me: &NodeFacts,
    expected: &str,
) -> Option<Choice> {
    check_beside(&[], leases, records, me, expected)
}

/// The same where those addresses took a lease from this node before.
fn check_beside(
    rivals: &[&str],
    leases: &[RawLease],
    records: &[(u8, &str, &str)],
    me: &NodeFacts,
    expected: &str,
) -> Option<Choice> {
    let rivals = rivals.iter().map(|ip| ip.parse().unwrap()).collect();
    let records: Vec<_> = records
        .iter()
        .map(|(id, subnet, ip)| {
            let record = NodeRecord { subnet: subnet.parse().unwrap(), public_ip: ip.parse().unwrap() };
            (NodeIdentity([*id; 16]), record)
        })
        .collect();
    let known = Known { leases, records: &records, rivals: &rivals };
    let config = config(r#"{"Network":"10.5.0.0/20","Backend":{"Type":"vxlan"}}"#);
    let choice = choose(known, &config, me, &mut |_| 0);
    let text = match &choice {
        Ok(choice) => {
            let stale: String = choice.stale.iter().map(|s| format!(", deletes {}", s.key)).collect();
            let how = match choice.claim {
                Claim::Create => "create".to_owned(),
                Claim::Replace { modified, reservation: false } => format!("replace @{modified}"),
                Claim::Replace { modified, reservation: true } => {
                    format!("replace reservation @{modified}")
                }
            };
            format!("{} {how}: {}{stale}", choice.lease.key(), choice.reason)
        }
        Err(error) => error.to_string(),
    };
    assert_eq!(text, expected);
    choice.ok()
}

#[test]
fn a_new_node_takes_a_free_subnet() {
    let leases = [lease("10.5.1.0-24", "192.0.2.9", 9)];
    let choice = check(&leases, &[], &facts(), "10.5.2.0-24 create: a free subnet").unwrap();
    let mac = NodeIdentity([1; 16]).vtep_mac(Vni::try_from(1).unwrap());
    assert_eq!(choice.lease.vtep_mac, mac);
    assert_eq!(
        choice.lease.value(),
        format!(
            r#"{{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        )
    );
}

#[test]
fn a_subnet_that_another_node_had_last_is_left_for_it() {
    check(&[], &[(2, "10.5.1.0/24", "192.0.2.9")], &facts(), "10.5.2.0-24 create: a free subnet");
}

#[test]
fn its_own_lease_is_taken_again() {
    let same_ip = [lease("10.5.3.0-24", "192.0.2.1", 9)];
    let by_ip = "10.5.3.0-24 replace @1: this node's own lease, by its public address";
    let choice = check(&same_ip, &[], &facts(), by_ip).unwrap();
    assert_eq!(
        choice.lease.vtep_mac.to_string(),
        "02:00:00:00:00:09",
        "a new device gets the lease's address"
    );

    let old_ip = [lease("10.5.3.0-24", "192.0.2.77", 9)];
    let by_identity = "10.5.3.0-24 replace @1: this node's own lease, by its identity";
    check(&old_ip, &[(1, "10.5.3.0/24", "192.0.2.77")], &facts(), by_identity);
    let by_device = "10.5.3.0-24 replace @1: this node's own lease, by its device";
    let with_device =
        NodeFacts { vteps: vec![(Vni::try_from(1).unwrap(), Mac([2, 0, 0, 0, 0, 9]))], ..facts() };
    check(&old_ip, &[], &with_device, by_device);
    check(&old_ip, &[(2, "10.5.3.0/24", "192.0.2.77")], &with_device, by_device);
}

#[test]
fn a_lease_that_another_wrote_meanwhile_is_not_its_own() {
    let taken = [lease("10.5.3.0-24", "192.0.2.9", 9)];
    check(&taken, &[(1, "10.5.3.0/24", "192.0.2.1")], &facts(), "10.5.1.0-24 create: a free subnet");
    // Two nodes behind one address: the record says whose it is.
    let shared = [lease("10.5.3.0-24", "192.0.2.1", 9)];
    check(&shared, &[(2, "10.5.3.0/24", "192.0.2.1")], &facts(), "10.5.1.0-24 create: a free subnet");
}

/// `lease` with the Ethernet address that `facts` has by its identity.
fn with_our_mac(lease: RawLease) -> RawLease {
    let mac = facts().vtep_macs(Vni::try_from(1).unwrap())[0].to_string();
    RawLease { value: lease.value.replace("02:00:00:00:00:09", &mac), ..lease }
}

#[test]
fn what_a_machine_with_the_same_identity_took_stays_theirs() {
    let vni = Vni::try_from(1).unwrap();
    let [by_identity, by_address] = facts().vtep_macs(vni);
    let taken = with_our_mac(lease("10.5.3.0-24", "192.0.2.9", 9));
    let record = [(1, "10.5.3.0/24", "192.0.2.9")];
    let me = NodeFacts { vteps: vec![(vni, by_identity)], previous: "10.5.3.0/24".parse().ok(), ..facts() };
    let other = "10.5.1.0-24 create: a free subnet";
    let choice = check_beside(&["192.0.2.9"], std::slice::from_ref(&taken), &record, &me, other).unwrap();
    assert_eq!(choice.lease.vtep_mac, by_address, "the other machine has the first one");
    // After a restart the lease of our own address is surer than the record, which the other one wrote last.
    let both = [taken, choice_as_lease(&choice)];
    let restarted =
        NodeFacts { vteps: vec![(vni, by_address)], previous: "10.5.1.0/24".parse().ok(), ..facts() };
    for (me, why) in [(&restarted, "its device"), (&facts(), "its public address")] {
        let own = format!("10.5.1.0-24 replace @1: this node's own lease, by {why}");
        let choice = check(&both, &record, me, &own).unwrap();
        assert_eq!((choice.lease.vtep_mac, choice.stale), (by_address, vec![]));
    }
    // Where it has ended, subnet.env tells that the record is not ours.
    let free = "10.5.1.0-24 create: this node's earlier subnet, by subnet.env";
    check(&both[..1], &record, &restarted, free);
}

fn choice_as_lease(choice: &Choice) -> RawLease {
    RawLease { value: choice.lease.value(), ..lease(&choice.lease.key(), "192.0.2.1", 10) }
}

#[test]
fn an_ethernet_address_of_another_lease_is_not_used() {
    let leases = [lease("10.5.3.0-24", "192.0.2.1", 9), lease("10.5.4.0-24", "192.0.2.4", 9)];
    let own = "10.5.3.0-24 replace @1: this node's own lease, by its public address";
    let choice = check(&leases, &[], &facts(), own).unwrap();
    assert_eq!(choice.lease.vtep_mac, facts().vtep_macs(choice.lease.vni)[0]);
}

#[test]
fn its_earlier_subnet_is_taken_again_if_it_is_free() {
    let me = NodeFacts { previous: Some("10.5.7.0/24".parse().unwrap()), ..facts() };
    let records = [(1, "10.5.8.0/24", "192.0.2.1")];
    check(&[], &records, &me, "10.5.7.0-24 create: this node's earlier subnet, by subnet.env");
    let taken = [lease("10.5.7.0-24", "192.0.2.9", 9)];
    check(&taken, &records, &me, "10.5.8.0-24 create: this node's earlier subnet, by its identity");
    let outside = NodeFacts { previous: Some("10.99.7.0/24".parse().unwrap()), ..facts() };
    check(&[], &[], &outside, "10.5.1.0-24 create: a free subnet");
}

#[test]
fn a_reservation_stays_one() {
    let reserved = RawLease { ttl_lease: 0, ..lease("10.5.3.0-24", "192.0.2.1", 9) };
    check(
        &[reserved],
        &[],
        &facts(),
        "10.5.3.0-24 replace reservation @1: this node's own lease, by its public address",
    );
}

#[test]
fn a_lease_that_no_longer_fits_is_deleted() {
    let leases = [lease("10.5.0.0-25", "192.0.2.1", 9)];
    check(&leases, &[], &facts(), "10.5.1.0-24 create: a free subnet, deletes 10.5.0.0-25");
}

#[test]
fn what_this_host_uses_is_never_leased() {
    let mut me = facts();
    me.host = host_address("10.5.1.11/24", "eth1", DeviceKind::Other);
    check(&[], &[], &me, "10.5.2.0-24 create: a free subnet");
    let own = [lease("10.5.1.0-24", "192.0.2.1", 9)];
    check(&own, &[], &me, "10.5.2.0-24 create: a free subnet, deletes 10.5.1.0-24");
    me.host = host_address("10.5.1.11/8", "eth1", DeviceKind::Other);
    let refused = "no subnet of 10.5.0.0/20 is free of overlap with this host: 10.5.1.0/24 overlaps address 10.5.1.11/8 of eth1";
    check(&[], &[], &me, refused);
}

#[test]
fn its_pods_bridge_is_no_obstacle() {
    let mut me = NodeFacts { previous: Some("10.5.7.0/24".parse().unwrap()), ..facts() };
    for (bridge, address) in [("cni0", "10.5.7.254/24"), ("mybridge", "10.5.7.1/24")] {
        me.host = host_address(address, bridge, DeviceKind::Bridge);
        check(&[], &[], &me, "10.5.7.0-24 create: this node's earlier subnet, by subnet.env");
    }
    // Pods of an earlier subnet that is gone stay out of the way of the next one.
    me.previous = None;
    me.host = host_address("10.5.1.1/24", "cni0", DeviceKind::Bridge);
    check(&[], &[], &me, "10.5.2.0-24 create: a free subnet");
}

#[test]
fn a_garbled_lease_takes_nothing_away() {
    let garbled =
        ["0.0.0.0-0", "10.5.0.0-20", "10.0.0.0-8", "nonsense"].map(|key| lease(key, "192.0.2.9", 9));
    check(&garbled, &[], &facts(), "10.5.1.0-24 create: a free subnet");
}

#[test]
fn no_subnet_left_is_an_error_of_its_own() {
    let all: Vec<_> = (1..16).map(|i| lease(&format!("10.5.{i}.0-24"), "192.0.2.9", i)).collect();
    check(
        &all,
        &[],
        &facts(),
        "no subnet is left: all 15 subnets from 10.5.1.0 to 10.5.15.0 of 10.5.0.0/20 are leased",
    );
}

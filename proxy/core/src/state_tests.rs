use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    delta,
    ids::Masquerade,
    object::{Key as ObjectKey, Object},
    world::{World, catalog, config, created, port, service, start, steps},
};

const fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_change_of_one_endpoint_is_one_or_two_small_transactions() {
    let other = service("other", "10.96.0.2", None, &[9, 10, 11]);
    let one_more = service("more", "10.96.0.3", Some(30000), &[7, 8]);
    let with = |endpoints: &[u8]| {
        [service("web", "10.96.0.1", Some(30080), endpoints), other.clone(), one_more.clone()]
    };
    let mut world = World::new(&with(&[1, 2]));
    assert_eq!(
        world.change(&with(&[1, 2, 4]), at(20)),
        // Chains cluster3 and spread3 are there because of the other Service.
        ["+external3 +1 classes +2 endpoints", "-2 frontends +2 frontends -1 nodeports +1 nodeports"]
    );
    assert_eq!(
        world.change(&with(&[1, 5, 4]), at(21)),
        ["-2 endpoints +2 endpoints"],
        "an endpoint that is replaced touches its own rows only"
    );
    assert_eq!(
        world.change(&with(&[5, 4]), at(22)),
        ["-2 frontends +2 frontends -1 nodeports +1 nodeports -2 endpoints +2 endpoints", "-2 endpoints"],
        "the last one moves into the gap"
    );
    assert_eq!(
        world.change(&with(&[4]), at(23)),
        [
            "+cluster1 +external1 +spread1 +2 classes",
            "-2 frontends +2 frontends -1 nodeports +1 nodeports -2 endpoints"
        ],
        "to a number that no Service had"
    );
    assert_eq!(world.state.next_deadline(), Some(at(82)));
    let other = world.change(&with(&[6]), at(82));
    assert_eq!(other, ["-2 endpoints +2 endpoints +1 hairpins"], "a change comes alone");
    assert_eq!(world.state.next_deadline(), Some(at(82)));
    assert_eq!(world.change(&with(&[6]), at(82)), ["-1 classes", "-external3"]);
    assert_eq!(world.change(&with(&[6]), at(90)), Vec::<String>::new());
}

/// The kernel refuses a range beside one that it overlaps, also within one transaction.
#[test]
fn other_pod_ranges_take_the_place_of_those_that_they_overlap() {
    let services = [service("web", "10.96.0.1", None, &[1])];
    let mut fake = World::new(&services).fake;
    for range in ["10.244.0.0/15", "10.244.0.0/17", "10.0.0.0/8", "10.244.0.0/16"] {
        let mut state = State::new(Config { pod_ranges: vec![range.parse().unwrap()], ..config() });
        let mut found = Found::read(fake.table.as_ref().unwrap());
        state.sync_with(&mut catalog(&services), &mut found, at(0));
        let transactions = delta::transactions(&state.table(), fake.table.as_ref());
        assert_eq!(steps(&transactions), ["-1 pod-ranges +1 pod-ranges"], "{range}");
        assert_eq!(fake.commit(&transactions), Ok(()), "{range}");
    }
}

#[test]
fn from_and_to_zero_endpoints_never_leave_a_gap() {
    let with = |endpoints: &[u8]| [service("web", "10.96.0.1", None, endpoints)];
    let mut world = World::new(&with(&[]));
    assert_eq!(
        world.change(&with(&[1]), at(1)),
        ["+cluster1 +spread1 +1 classes +2 endpoints", "+2 frontends -2 rejects"]
    );
    assert_eq!(world.change(&with(&[]), at(2)), ["-2 frontends +2 rejects", "-2 endpoints"]);
}

#[test]
fn an_endpoint_that_is_replaced_on_this_node_costs_two_transactions() {
    let mut world = World::new(&[service("web", "10.96.0.1", None, &[3, 1])]);
    assert_eq!(
        world.change(&[service("web", "10.96.0.1", None, &[6, 1])], at(1)),
        ["-2 endpoints +2 endpoints +1 hairpins", "-1 hairpins"]
    );
}

#[test]
fn what_the_source_cannot_tell_after_a_restart_is_read_from_the_table() {
    let services = [
        service("web", "10.96.0.1", Some(30080), &[1, 2, 3]),
        service("b", "10.96.0.2", None, &[5]),
        service("empty", "10.96.0.3", Some(30081), &[]),
    ];
    let table = World::new(&services).fake.table;
    let node = "n1".parse().unwrap();
    for known in 0..=services.len() {
        let mut found = Found::read(table.as_ref().unwrap());
        let mut catalog = catalog(&services[..known]);
        for (key, object) in found.unknown_to(&catalog, &node, |_| false) {
            assert!(!catalog.knows(&key), "{key}");
            catalog.set(key, Some(object));
        }
        assert_eq!(catalog.node(&node), Some(&["192.0.2.1".parse().unwrap()][..]));
        let mut restarted = State::new(config());
        restarted.sync_with(&mut catalog, &mut found, at(0));
        let steps = steps(&delta::transactions(&restarted.table(), table.as_ref()));
        assert_eq!(steps, Vec::<String>::new(), "{known} known");
    }
}

#[test]
fn endpoints_of_a_slice_that_cannot_be_read_are_kept_beside_those_of_others() {
    let table = World::new(&[service("web", "10.96.0.1", None, &[1, 2, 3])]).fake.table;
    let found = Found::read(table.as_ref().unwrap());
    let rows = |endpoints: &[u8]| {
        let mut catalog = catalog(&[service("web", "10.96.0.1", None, endpoints)]);
        for (key, mut object) in found.unknown_to(&catalog, &"n1".parse().unwrap(), |_| true) {
            let Object::Slice(slice) = Arc::make_mut(&mut object) else { continue };
            if crate::adopt::narrow(slice, &catalog) {
                catalog.set(key, Some(object));
            }
        }
        let mut state = State::new(config());
        state.sync_with(&mut catalog, &mut found.clone(), at(0));
        let (_, ports) = state.programmed().next().unwrap();
        ports[0].rows.iter().map(|(row, here)| format!("{} {here}", row.ip())).collect::<Vec<_>>()
    };
    let all = ["10.244.1.1 false", "10.244.2.2 false", "10.244.0.3 true"];
    let mut kept = rows(&[2]);
    kept.sort_by_key(|row| all.iter().position(|one| one == row));
    assert_eq!(kept, all);
    assert_eq!(rows(&[1, 2, 3]).len(), 3);
    assert_eq!(rows(&[7]).len(), 4);
}

#[test]
fn a_restart_with_nothing_changed_writes_nothing() {
    let services =
        [service("web", "10.96.0.1", Some(30080), &[1, 2, 4]), service("b", "10.96.0.2", None, &[5])];
    let mut world = World::new(&services);
    world.change(&[service("web", "10.96.0.1", Some(30080), &[2, 4]), services[1].clone()], at(1));
    world.change(&[service("web", "10.96.0.1", Some(30080), &[7, 4, 2]), services[1].clone()], at(9));
    let before = world.fake.table.clone();
    let mut restarted = State::new(config());
    let mut found = before.as_ref().map(Found::read).unwrap();
    let mut catalog = catalog(&[service("web", "10.96.0.1", Some(30080), &[7, 4, 2]), services[1].clone()]);
    restarted.sync_with(&mut catalog, &mut found, at(0));
    assert_eq!(steps(&delta::transactions(&restarted.table(), before.as_ref())), Vec::<String>::new());
    assert_eq!(restarted.take_touched().len(), 2, "all UDP front ends are looked at after a restart");
}

/// A packet may have read an id in the kernel before a restart, and look for its rows behind it.
#[test]
fn after_a_restart_nothing_new_gets_an_id_that_is_still_in_the_kernel() {
    let before = service("bbb", "10.96.0.2", None, &[1]);
    let table = World::new(std::slice::from_ref(&before)).fake.table;
    let new = service("aaa", "10.96.0.1", None, &[2]);
    let empty = service("bbb", "10.96.0.2", None, &[]);
    for (services, wanted) in [
        (vec![new.clone(), before], vec!["+2 endpoints", "+1 cluster-ips +2 frontends"]),
        (
            vec![new, empty],
            vec!["+2 endpoints", "+1 cluster-ips +2 frontends +2 rejects -2 frontends", "-2 endpoints"],
        ),
    ] {
        let mut state = State::new(config());
        let mut found = Found::read(table.as_ref().unwrap());
        state.sync_with(&mut catalog(&services), &mut found, at(0));
        assert_eq!(steps(&delta::transactions(&state.table(), table.as_ref())), wanted);
    }
}

#[test]
fn a_front_end_that_went_while_we_were_away_is_looked_at_for_stale_flows() {
    let gone = World::new(&[service("web", "10.96.0.1", None, &[1])]).fake.table;
    let mut state = State::new(config());
    state.sync_with(&mut Catalog::default(), &mut Found::read(&gone.unwrap()), at(0));
    let touched: Vec<_> = state.take_touched().iter().map(ToString::to_string).collect();
    assert_eq!(touched, ["10.96.0.1:53/udp"]);
}

#[test]
fn after_a_repair_all_udp_front_ends_are_looked_at_for_stale_flows() {
    let mut world = World::new(&[service("web", "10.96.0.1", Some(30080), &[1])]);
    world.state.take_touched();
    world.state.touch_all();
    let touched: Vec<_> = world.state.take_touched().iter().map(ToString::to_string).collect();
    assert_eq!(touched, ["10.96.0.1:53/udp"]);
}

#[test]
fn a_front_end_belongs_to_who_has_it_until_that_gives_it_up() {
    let (first, second) =
        (service("zebra", "10.96.0.1", Some(30080), &[1]), service("ant", "10.96.0.1", Some(30081), &[2]));
    let mut world = World::new(std::slice::from_ref(&first));
    world.change(&[first, second.clone()], at(1));
    let problems = &world.state.problems()[&ObjectName::new("", "ant")];
    assert_eq!(problems[0].to_string(), "10.96.0.1:80/tcp belongs to default/zebra");
    let front = Front::Cluster("10.96.0.1".parse().unwrap(), Protocol::Tcp, port(80));
    let endpoint = |world: &World| world.state.behind(&front).unwrap().rows[0].0.to_string();
    assert_eq!(endpoint(&world), "10.244.1.1:8080");
    let (_, ant) = world.state.programmed().find(|(name, _)| name.as_str() == "default/ant").unwrap();
    let sizes: Vec<_> = ant.iter().map(|port| (port.fronts.len(), port.rows.len())).collect();
    assert_eq!(sizes, [(1, 1), (0, 0)], "its node port is its own; without a front end there is no row");
    world.change(&[second], at(2));
    assert_eq!(endpoint(&world), "10.244.2.2:8080");
    assert!(world.state.problems().is_empty());
}

#[test]
fn a_front_end_belongs_to_who_has_it_across_a_restart() {
    let (first, second) =
        (service("zebra", "10.96.0.1", Some(30080), &[1]), service("ant", "10.96.0.1", Some(30081), &[2]));
    let mut world = World::new(std::slice::from_ref(&first));
    world.change(&[first.clone(), second.clone()], at(1));
    let mut restarted = State::new(config());
    let mut found = Found::read(world.fake.table.as_ref().unwrap());
    restarted.sync_with(&mut catalog(&[first, second.clone()]), &mut found, at(2));
    assert_eq!(restarted.problems(), world.state.problems());
    assert_eq!(
        steps(&delta::transactions(&restarted.table(), world.fake.table.as_ref())),
        Vec::<String>::new()
    );
    let state = start(&mut catalog(&[second]), &mut world.fake, at(3));
    assert!(state.problems().is_empty(), "its owner went meanwhile");
}

#[test]
fn nobody_waits_for_a_front_end_that_it_no_longer_asks_for() {
    let first = service("zebra", "10.96.0.1", None, &[1]);
    let mut world = World::new(std::slice::from_ref(&first));
    world.change(&[first.clone(), service("ant", "10.96.0.1", None, &[2])], at(1));
    assert_eq!(world.state.waiting.len(), 2);
    world.change(&[first.clone(), service("ant", "10.96.0.2", None, &[2])], at(2));
    assert_eq!((world.state.waiting.len(), world.state.problems().len()), (0, 0));
    world.change(&[first.clone(), service("ant", "10.96.0.1", None, &[2])], at(3));
    world.change(&[first], at(4));
    assert_eq!((world.state.waiting.len(), world.state.problems().len()), (0, 0));
}

#[test]
fn without_a_free_id_or_class_the_old_state_stays() {
    let with = |endpoints: &[u8]| [service("web", "10.96.0.1", None, endpoints)];
    let mut world = World::new(&with(&[1]));
    for endpoints in 2..=4095 {
        let class = Class { endpoints, masquerade: Masquerade::Never, affinity: None, view: View::Cluster };
        world.state.classes.hold(class, at(0));
        world.state.classes.enter(&class);
    }
    world.fake.table = created(&world.state);
    assert_eq!(world.change(&with(&[1, 2]), at(1)), Vec::<String>::new());
    let name = ObjectName::new("", "web");
    assert_eq!(world.state.problems()[&name], [Problem::NoClass, Problem::NoClass]);
    let freed = Class { endpoints: 77, masquerade: Masquerade::Never, affinity: None, view: View::Cluster };
    world.state.classes.leave(&freed, at(2));
    world.change(&with(&[1, 2]), at(62));
    let after = world.change(&with(&[1, 2]), at(72));
    assert!(world.state.problems().is_empty() && !after.is_empty(), "tried again once a number is free");
}

#[test]
fn a_service_that_stays_as_it_was_keeps_no_front_end_that_it_never_had() {
    let mut world = World::new(&[service("web", "10.96.0.1", None, &[1])]);
    for endpoints in 2..=4095 {
        let class = Class { endpoints, masquerade: Masquerade::Never, affinity: None, view: View::Cluster };
        world.state.classes.hold(class, at(0));
        world.state.classes.enter(&class);
    }
    world.fake.table = created(&world.state);
    world.change(&[service("web", "10.96.0.1", Some(30080), &[1, 2])], at(1));
    assert_eq!(world.state.problems().len(), 1);
    world.change(&[service("web", "10.96.0.1", None, &[1])], at(2));
    world.change(
        &[service("web", "10.96.0.1", None, &[1]), service("z", "10.96.0.2", Some(30080), &[])],
        at(3),
    );
    assert!(world.state.problems().is_empty(), "{:?}", world.state.problems());
}

/// Up to six Services with up to six endpoints each; an index is a name and a cluster IP.
fn some_services() -> impl Strategy<Value = Vec<Vec<(ObjectKey, Arc<Object>)>>> {
    let one = (any::<bool>(), any::<bool>(), proptest::collection::btree_set(1_u8..7, 0..6));
    proptest::collection::vec(one, 6).prop_map(|all| {
        let present = (1_u16..).zip(all).filter(|(_, (present, ..))| *present);
        let service = |(n, (_, node_port, endpoints)): (u16, (bool, bool, BTreeSet<u8>))| {
            let endpoints: Vec<_> = endpoints.into_iter().collect();
            service(&format!("s{n}"), &format!("10.96.0.{n}"), node_port.then_some(30000 + n), &endpoints)
        };
        present.map(service).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Change by change or all at once: the table is the same, and so is that of a restarted proxy.
    #[test]
    fn incremental_is_full(
        history in proptest::collection::vec((some_services(), 0_u64..90_000), 1..8)
    ) {
        let mut world = World::new(&[]);
        let mut now = Duration::ZERO;
        for (services, pause) in &history {
            now += Duration::from_millis(*pause);
            world.change(services, now); // compares the outcome with the whole table
        }
        let mut catalog = catalog(&history.last().unwrap().0);
        let mut restarted = State::new(config());
        restarted.sync_with(&mut catalog, &mut Found::read(world.fake.table.as_ref().unwrap()), now);
        let silent = delta::transactions(&restarted.table(), world.fake.table.as_ref());
        prop_assert_eq!(steps(&silent), Vec::<String>::new());
    }

    /// From any state that another run left, one pass reaches the goal and a second does nothing.
    #[test]
    fn one_pass_reaches_the_goal_from_any_start(before in some_services(), after in some_services()) {
        let mut world = World::new(&before);
        let mut catalog = catalog(&after);
        let state = start(&mut catalog, &mut world.fake, at(0));
        prop_assert_eq!(&world.fake.table, &created(&state));
        prop_assert!(delta::transactions(&state.table(), world.fake.table.as_ref()).is_empty());
    }

    /// Where commits fail, the state is read back and corrected; once they succeed, it is as wanted.
    #[test]
    fn it_converges_once_faults_stop(
        history in proptest::collection::vec(some_services(), 1..6),
        fail_every in 2_usize..5
    ) {
        let mut world = World::new(&[]);
        world.fake.fail_every = fail_every;
        for (now, services) in (1..).zip(&history) {
            world.catalog.replace(&services.iter().flatten().cloned().collect());
            let transactions = world.state.sync(&mut world.catalog, at(now)).into_transactions(&config());
            if world.fake.commit(&transactions).is_err() {
                let again = delta::transactions(&world.state.table(), world.fake.table.as_ref());
                if world.fake.commit(&again).is_err() {
                    world.fake.fail_every = 0;
                    let again = delta::transactions(&world.state.table(), world.fake.table.as_ref());
                    prop_assert_eq!(world.fake.commit(&again), Ok(()));
                    world.fake.fail_every = fail_every;
                }
            }
            prop_assert_eq!(&world.fake.table, &created(&world.state));
        }
    }
}

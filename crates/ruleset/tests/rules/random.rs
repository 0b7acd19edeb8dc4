//! Random tables and changes over a few names, such as the kernel accepts or refuses for reasons that
//! [`ruleset::apply`] knows.

use std::{collections::BTreeMap, ops::Range};

use proptest::{collection::vec, option, prelude::*, sample::select};
use ruleset::*;

pub(crate) const TABLE: &str = "weft-random";

/// Regular chains; a rule leads only to a later one, so that there are no loops.
const CHAINS: [&str; 3] = ["a", "b", "c"];
const BASES: [&str; 3] = ["forward", "input", "prerouting"];
const SETS: [&str; 4] = ["addresses", "ranges", "marks", "verdicts"];

fn spec(set: &str) -> SetSpec {
    match set {
        "ranges" => SetSpec::set(Field::IpSaddr).interval(),
        "marks" => SetSpec::map([Field::IpDaddr, Field::ThDport], Field::MetaMark).counter(),
        "verdicts" => SetSpec::vmap(Field::MetaMark),
        _ => SetSpec::set(Field::IpDaddr),
    }
}

fn base(chain: &str, policy: Policy) -> Option<Base> {
    let hook = match chain {
        "forward" => Hook::Forward,
        "input" => Hook::Input,
        "prerouting" => Hook::Prerouting,
        _ => return None,
    };
    Some(Base { kind: ChainType::Filter, hook, priority: 0, policy })
}

fn policies() -> impl Strategy<Value = Policy> {
    prop_oneof![Just(Policy::Accept), Just(Policy::Drop)]
}

fn chains() -> impl Strategy<Value = &'static str> {
    select([CHAINS.as_slice(), &BASES].concat())
}

fn address() -> impl Strategy<Value = Value> {
    (0_u8..4).prop_map(|last| Value::from([10, 0, 0, last]))
}

fn key(set: &'static str) -> BoxedStrategy<Key> {
    match set {
        // Ranges from a fixed cut, so that no two overlap.
        "ranges" => (0_u8..8)
            .prop_map(|block| {
                let from = Value::from([block * 32, 0, 0, 0]);
                Key::range(from, Value::from([block * 32 + 31, 255, 255, 255]))
            })
            .boxed(),
        "marks" => (address(), 1_u16..3)
            .prop_map(|(address, port)| Key::One(Value::concat([address, Value::port(port)])))
            .boxed(),
        "verdicts" => (1_u32..4).prop_map(|mark| Key::One(Value::number(mark))).boxed(),
        _ => address().prop_map(Key::One).boxed(),
    }
}

fn data(set: &'static str) -> BoxedStrategy<Data> {
    match set {
        "marks" => (1_u32..3).prop_map(|mark| Data::Value(Value::number(mark))).boxed(),
        "verdicts" => prop_oneof![
            Just(Verdict::Accept),
            Just(Verdict::Drop),
            Just(Verdict::Goto("c".into())),
            Just(Verdict::Jump("c".into())),
        ]
        .prop_map(Data::Verdict)
        .boxed(),
        _ => Just(Data::None).boxed(),
    }
}

fn comments() -> impl Strategy<Value = Option<Box<str>>> {
    option::of(select(vec!["weft: x", "ns/name:port"]).prop_map(Box::from))
}

fn elements(set: &'static str) -> impl Strategy<Value = BTreeMap<Key, Element>> {
    let element = (data(set), comments()).prop_map(|(data, comment)| Element { data, comment });
    proptest::collection::btree_map(key(set), element, 0..5)
}

/// A rule of `chain`, which may use any set and lead to any later chain.
fn rule(chain: &'static str) -> impl Strategy<Value = Rule> {
    let later = CHAINS.iter().filter(move |to| **to > chain || !CHAINS.contains(&chain));
    let later: Vec<_> = later.copied().collect();
    // What `verdicts` leads to is the last chain: that can't look it up.
    let may_look_up = chain != "c";
    let verdict = if later.is_empty() {
        Just(Statement::RETURN).boxed()
    } else {
        (any::<bool>(), select(later))
            .prop_map(|(jump, to)| if jump { Statement::jump(to) } else { Statement::goto(to) })
            .boxed()
    };
    let condition = prop_oneof![
        Just(Field::IpDaddr.in_set("addresses")),
        Just(Field::IpSaddr.not_in_set("ranges")),
        Just(has_ports()),
        Just(Field::IpSaddr.any_of(["10.0.0.0/8".parse::<netmodel::Subnet>().unwrap()])),
        Just(Writable::MetaMark.set(Selector::from([Field::IpDaddr, Field::ThDport]).map("marks"))),
    ];
    let action = prop_oneof![
        3 => verdict,
        1 => Just(Statement::DROP),
        1 => Just(Statement::Counter),
        1 => Just(if may_look_up {
            Selector::from(Field::MetaMark).vmap("verdicts")
        } else {
            Statement::ACCEPT
        }),
    ];
    (option::weighted(0.8, condition), action, comments()).prop_map(|(condition, action, comment)| Rule {
        statements: condition.into_iter().chain([action]).collect(),
        comment,
    })
}

/// A table that [`Table::check`] has nothing against.
pub(crate) fn tables() -> impl Strategy<Value = Table> {
    tables_of(0..4)
}

/// Such a table with that many rules in each chain, before those that name something absent are left out.
pub(crate) fn tables_of(rules: Range<usize>) -> impl Strategy<Value = Table> {
    let sets = SETS.map(|name| option::weighted(0.8, elements(name)));
    let chain = |name: &'static str| option::weighted(0.9, (policies(), vec(rule(name), rules.clone())));
    let chains = CHAINS.map(chain);
    let bases = BASES.map(chain);
    (sets, chains, bases, comments()).prop_map(|(sets, chains, bases, comment)| {
        let mut table = Table::new(Family::Ip, TABLE);
        table.comment = comment;
        for (name, elements) in SETS.into_iter().zip(sets) {
            if let Some(elements) = elements {
                table.set(name, Set { spec: spec(name), elements });
            }
        }
        let all = CHAINS.into_iter().zip(chains).chain(BASES.into_iter().zip(bases));
        for (name, chain) in all {
            if let Some((policy, rules)) = chain {
                table.chain(name, Chain { base: base(name, policy), rules });
            }
        }
        leave_out_what_leads_nowhere(&mut table);
        table
    })
}

/// Rules that name a set or chain that the table happens not to have.
fn leave_out_what_leads_nowhere(table: &mut Table) {
    if !table.chains.contains_key(&Name::from("c")) {
        table.sets.remove(&Name::from("verdicts"));
    }
    let mut alone = table.clone();
    alone.chains.values_mut().for_each(|chain| chain.rules.clear());
    for (name, chain) in &mut table.chains {
        chain.rules.retain(|rule| {
            let mut alone = alone.clone();
            alone.chains.get_mut(name).unwrap().rules.push(rule.clone());
            alone.check().is_ok()
        });
    }
    assert_eq!(table.check(), Ok(()));
}

fn change() -> impl Strategy<Value = Change> {
    let of_set = |set: &'static str| {
        let (form, name) = (spec(set).form(), Name::from(set));
        let add = {
            let name = name.clone();
            elements(set).prop_filter("no element", |e| !e.is_empty()).prop_map(move |elements| {
                Change::AddElements { set: name.clone(), form, elements: elements.into_iter().collect() }
            })
        };
        let delete = {
            let name = name.clone();
            key(set).prop_map(move |key| Change::DeleteElements { set: name.clone(), form, keys: vec![key] })
        };
        let new = Change::AddSet { name: name.clone(), header: spec(set).lower() };
        prop_oneof![3 => add, 2 => delete, 3 => Just(new), 1 => Just(Change::DeleteSet { name })]
    };
    let of_chain = |chain: &'static str| {
        let name = Name::from(chain);
        let scope = Table::new(Family::Ip, TABLE);
        let add = {
            let name = name.clone();
            rule(chain).prop_map(move |rule| Change::AddRule {
                chain: name.clone(),
                place: Place::End,
                code: rule.lower(&scope),
            })
        };
        let new = {
            let name = name.clone();
            policies()
                .prop_map(move |policy| Change::AddChain { name: name.clone(), base: base(chain, policy) })
        };
        prop_oneof![
            3 => add,
            3 => new,
            1 => Just(Change::FlushChain { name: name.clone() }),
            1 => Just(Change::DeleteChain { name }),
        ]
    };
    prop_oneof![
        8 => select(SETS.to_vec()).prop_flat_map(of_set),
        8 => chains().prop_flat_map(of_chain),
        1 => Just(Change::AddTable { comment: None }),
        1 => Just(Change::DeleteTable),
    ]
}

/// A few changes that may or may not be possible.
pub(crate) fn transactions() -> impl Strategy<Value = Transaction> {
    vec(change(), 1..6).prop_map(|changes| {
        let mut transaction = Transaction::new(Family::Ip, TABLE);
        // Else most would fail for want of a table.
        transaction.changes = vec![Change::AddTable { comment: None }];
        transaction.changes.extend(changes);
        transaction
    })
}

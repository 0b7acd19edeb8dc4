//! Our messages against those that the `nftnl` crate builds with libnftnl, for what it can express: tables,
//! chains, rules, and elements of plain sets.

use std::net::Ipv4Addr;

use linux::nft::pack;
use nftnl::{Batch, Chain, MsgType, ProtoFamily, Rule, Table, nft_expr};
use ruleset::{ChainType, Element, Family, Field, Hook, Name, Policy, SetSpec, Statement, Transaction};

use crate::tools::{Sent, batch_of};

/// Attributes of a set: its flags, which nftnl leaves out where there are none, and notes for `nft`, which
/// it doesn't write.
const SET_FLAGS: u16 = 3;
const SET_USERDATA: u16 = 13;

fn ours(transaction: &Transaction) -> Vec<Sent> {
    let all = batch_of(&pack(transaction).unwrap());
    all[1..all.len() - 1].iter().map(|message| message.sorted_without(&[])).collect()
}

fn theirs(fill: impl FnOnce(&mut Batch)) -> Vec<Sent> {
    let mut batch = Batch::new();
    fill(&mut batch);
    let batch = batch.finalize();
    let bytes: Vec<u8> = batch.iter().flatten().copied().collect();
    let all = batch_of(&bytes);
    all[1..all.len() - 1].iter().map(|message| message.sorted_without(&[])).collect()
}

#[test]
fn tables_and_chains_are_the_same() {
    let mut table = ruleset::Table::new(Family::Ip6, "t");
    table.chain("regular", ruleset::Chain::regular([]));
    let mut base = ruleset::Chain::base(ChainType::Nat, Hook::Postrouting, -7, []);
    base.base.as_mut().unwrap().policy = Policy::Drop;
    table.chain("second", base);
    let theirs = theirs(|batch| {
        let table = Table::new(c"t", ProtoFamily::Ipv6);
        batch.add(&table, MsgType::Add);
        batch.add(&Chain::new(c"regular", &table), MsgType::Add);
        let mut chain = Chain::new(c"second", &table);
        chain.set_hook(nftnl::Hook::PostRouting, -7);
        chain.set_type(nftnl::ChainType::Nat);
        chain.set_policy(nftnl::Policy::Drop);
        batch.add(&chain, MsgType::Add);
    });
    // nftnl asks to make the table; the kernel makes it anyway.
    assert_eq!(ours(&Transaction::create(&table))[1..], theirs[1..]);
    assert_eq!(theirs.len(), 3);
}

#[test]
fn rules_are_the_same() {
    let address = Ipv4Addr::new(10, 1, 2, 3);
    let scope = ruleset::Table::new(Family::Ip, "t");
    let accept_new = ruleset::Rule::new([
        Field::IpSaddr.is(address),
        Field::IpDaddr.is_not(address),
        Field::CtState.has_any(ruleset::ct_state::NEW),
        Statement::Counter,
        Statement::ACCEPT,
    ])
    .comment("weft: x");
    let leave = ruleset::Rule::new([
        Field::MetaMark.is_not(ruleset::Value::number(7)),
        Field::MetaL4proto.is(netmodel::Protocol::Tcp),
        Statement::goto("other"),
    ]);
    let masquerade = ruleset::Rule::new([Statement::Masquerade(ruleset::PortChoice::Keep)]);
    let mut transaction = Transaction::new(Family::Ip, "t");
    for rule in [accept_new, leave, masquerade] {
        transaction.add_rule(&scope, &"c".into(), &rule);
    }

    let theirs = theirs(|batch| {
        let table = Table::new(c"t", ProtoFamily::Ipv4);
        let chain = Chain::new(c"c", &table);
        let mut rule = Rule::new(&chain);
        rule.add_expr(&nft_expr!(payload ipv4 saddr));
        rule.add_expr(&nft_expr!(cmp == address));
        rule.add_expr(&nft_expr!(payload ipv4 daddr));
        rule.add_expr(&nft_expr!(cmp != address));
        rule.add_expr(&nft_expr!(ct state));
        rule.add_expr(&nft_expr!(bitwise mask 8_u32, xor 0_u32));
        rule.add_expr(&nft_expr!(cmp != 0_u32));
        rule.add_expr(&nft_expr!(counter));
        rule.add_expr(&nft_expr!(verdict accept));
        rule.set_comment(c"weft: x").unwrap();
        batch.add(&rule, MsgType::Add);
        let mut rule = Rule::new(&chain);
        rule.add_expr(&nft_expr!(meta mark));
        rule.add_expr(&nft_expr!(cmp != 7_u32));
        rule.add_expr(&nft_expr!(meta l4proto));
        rule.add_expr(&nft_expr!(cmp == 6_u8));
        rule.add_expr(&nft_expr!(verdict goto c"other".to_owned()));
        batch.add(&rule, MsgType::Add);
        let mut rule = Rule::new(&chain);
        rule.add_expr(&nft_expr!(masquerade));
        batch.add(&rule, MsgType::Add);
    });
    assert_eq!(ours(&transaction), theirs);
}

#[test]
fn sets_of_addresses_and_their_elements_are_the_same() {
    let addresses = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
    let mut table = ruleset::Table::new(Family::Ip, "t");
    let name = Name::from("s");
    table.set(&name, SetSpec::set(Field::IpDaddr));
    for address in addresses {
        table.element(&name, address, Element::default());
    }
    let mut transaction = Transaction::new(Family::Ip, "t");
    transaction.add_set(&name, &table.sets[&name]);
    let theirs = theirs(|batch| {
        let table = Table::new(c"t", ProtoFamily::Ipv4);
        let mut set = nftnl::set::Set::<Ipv4Addr>::new_named(c"s", 1, &table, ProtoFamily::Ipv4);
        addresses.iter().for_each(|address| set.add(address));
        batch.add(&set, MsgType::Add);
        batch.add_iter(set.elems_iter(), MsgType::Add);
    });
    let ours: Vec<Sent> =
        ours(&transaction).iter().map(|message| message.sorted_without(&[SET_USERDATA])).collect();
    assert_eq!(ours[0].sorted_without(&[SET_FLAGS]), theirs[0]);
    assert_eq!(ours[1], theirs[1]);
    assert_eq!((ours.len(), theirs.len()), (2, 2));
}

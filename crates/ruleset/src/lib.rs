//! nftables as typed values: what a program wants in the kernel, what is there, and the way between.
//!
//! A [`Table`] is a plain value made of [`Chain`]s with [`Rule`]s, and of [`Set`]s (maps are sets whose
//! elements have data). Rules read like the text of `nft`:
//!
//! ```
//! use netmodel::Protocol;
//! use ruleset::*;
//!
//! let mut table = Table::new(Family::Ip, "weft-example");
//! let (frontends, class) = (Name::from("frontends"), Field::MetaPriority);
//! let front = [Field::IpDaddr, Field::MetaL4proto, Field::ThDport];
//! table.set(&frontends, SetSpec::map(front, class).counter());
//! table.set("classes", SetSpec::vmap(class));
//! table.set("endpoints", SetSpec::map([class.into(), SLOT], [Field::IpDaddr, Field::ThDport]));
//! let key = Value::concat([[10, 254, 0, 10].into(), Protocol::Udp.into(), Value::port(53)]);
//! table.element(&frontends, key, Element::value(Value::number(0x2002)).comment("default/dns"));
//! table.chain(
//!     "services",
//!     Chain::regular([Rule::new([
//!         Writable::MetaPriority.set(Selector::from(front).map(&frontends)),
//!         Selector::from(class.and(0xfff)).vmap("classes"),
//!     ])]),
//! );
//! table.chain(
//!     "spread2",
//!     Chain::regular([
//!         Rule::new([
//!             has_ports(),
//!             Statement::dnat_by("endpoints", [class.and(0xffff_f000), Expr::Random { modulus: 2 }]),
//!         ]),
//!         Rule::new([Statement::DROP]),
//!     ]),
//! );
//! table.chain(
//!     "nat-prerouting",
//!     Chain::base(ChainType::Nat, Hook::Prerouting, -100, [Rule::new([Statement::goto("services")])]),
//! );
//! assert!(table.to_string().contains("elements = { 10.254.0.10 . udp . 53 comment \"default/dns\" : 0:2002 }"));
//! ```
//!
//! `Display` of a table is text that `nft -f` reads. Nothing here does I/O; `linux::nft` carries it out:
//!
//! ```text
//! Table (wanted) --lower--> code --+
//!                                  +-- diff --> Transaction --commit--> kernel
//! Observed  <-----dump-------------+                 |
//!     ^----------------apply (what was acknowledged)-+
//! ```
//!
//! [`Table::check`] finds what the kernel or `nft` would not accept, and [`trace`] walks a virtual packet
//! through a table, so that rules are tested without a kernel.
//!
//! A small change to a large table needs no `diff`: build its [`Transaction`] by hand, commit it, and
//! [`apply`] it to the [`Observed`] that is kept.
#![forbid(unsafe_code)]

mod check;
pub mod code;
mod diff;
mod expr;
mod lower;
mod observed;
mod origin;
mod statement;
mod table;
mod text;
pub mod trace;
mod transaction;
pub mod userdata;
mod value;

pub use check::{Fault, LONGEST_COMMENT};
pub use diff::diff;
pub use observed::{Observed, ObservedChain, ObservedRule, ObservedSet, Refusal, apply};
pub use transaction::{Change, Place, Transaction};

pub use expr::{BitOp, Expr, FIB_LOCAL, Field, Selector, Source, Type, ct_state, ct_status, has_ports};
pub use statement::{DynamicOp, PortChoice, RejectWith, Relation, Rule, Statement, Verdict, Writable};
pub use table::{
    AddressFields, Base, Chain, ChainType, Data, Element, Family, Hook, MapData, Name, Policy, SLOT, Set,
    SetSpec, Table,
};
pub use value::{Key, Value};

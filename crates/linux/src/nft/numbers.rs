//! Numbers of the kernel's `linux/netfilter/nf_tables.h`, `nfnetlink.h` and `nf_nat.h`, under its names
//! without the prefix.

use ruleset::{DynamicOp, Family, Field, Hook, PortChoice, Writable};

const NFTABLES: u16 = 10 << 8;
/// The resource that a batch is for.
pub(super) const SUBSYSTEM: u16 = 10;
pub(super) const BATCH_BEGIN: u16 = 16;
pub(super) const BATCH_END: u16 = 17;
pub(super) const BATCH_GENID: u16 = 1;

pub(super) const NEWTABLE: u16 = NFTABLES;
pub(super) const GETTABLE: u16 = NFTABLES | 1;
pub(super) const DELTABLE: u16 = NFTABLES | 2;
pub(super) const NEWCHAIN: u16 = NFTABLES | 3;
pub(super) const GETCHAIN: u16 = NFTABLES | 4;
pub(super) const DELCHAIN: u16 = NFTABLES | 5;
pub(super) const NEWRULE: u16 = NFTABLES | 6;
pub(super) const GETRULE: u16 = NFTABLES | 7;
pub(super) const DELRULE: u16 = NFTABLES | 8;
pub(super) const NEWSET: u16 = NFTABLES | 9;
pub(super) const GETSET: u16 = NFTABLES | 10;
pub(super) const DELSET: u16 = NFTABLES | 11;
pub(super) const NEWSETELEM: u16 = NFTABLES | 12;
pub(super) const GETSETELEM: u16 = NFTABLES | 13;
pub(super) const DELSETELEM: u16 = NFTABLES | 14;
pub(super) const NEWGEN: u16 = NFTABLES | 15;
pub(super) const GETGEN: u16 = NFTABLES | 16;

pub(super) const GEN_ID: u16 = 1;

/// Multicast group of changes (`NFNLGRP_NFTABLES`).
pub(super) const GROUP: u32 = 7;

pub(super) const UNSPEC: u8 = 0;

/// Attributes that all objects have: the table's name.
pub(super) const TABLE: u16 = 1;

pub(super) const TABLE_FLAGS: u16 = 2;
pub(super) const TABLE_USERDATA: u16 = 6;

pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const CHAIN_TYPE: u16 = 7;
pub(super) const HOOK_NUMBER: u16 = 1;
pub(super) const HOOK_PRIORITY: u16 = 2;

pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_HANDLE: u16 = 3;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const RULE_POSITION: u16 = 6;
pub(super) const RULE_USERDATA: u16 = 7;

pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
pub(super) const SET_KEY_TYPE: u16 = 4;
pub(super) const SET_KEY_LEN: u16 = 5;
pub(super) const SET_DATA_TYPE: u16 = 6;
pub(super) const SET_DATA_LEN: u16 = 7;
pub(super) const SET_DESC: u16 = 9;
pub(super) const SET_ID: u16 = 10;
pub(super) const SET_USERDATA: u16 = 13;
pub(super) const SET_EXPR: u16 = 17;
pub(super) const SET_DESC_SIZE: u16 = 1;
pub(super) const SET_DESC_CONCAT: u16 = 2;
pub(super) const SET_FIELD_LEN: u16 = 1;
/// The number of a map's data type that says "verdict".
pub(super) const DATA_VERDICT_TYPE: u32 = 0xffff_ff00;

pub(super) const SET_ANONYMOUS: u32 = 0x1;
pub(super) const SET_CONSTANT: u32 = 0x2;
pub(super) const SET_INTERVAL: u32 = 0x4;
pub(super) const SET_MAP: u32 = 0x8;
pub(super) const SET_HAS_TIMEOUT: u32 = 0x10;
pub(super) const SET_EVAL: u32 = 0x20;
pub(super) const SET_CONCAT: u32 = 0x80;

pub(super) const ELEM_LIST_SET: u16 = 2;
pub(super) const ELEM_LIST_ELEMENTS: u16 = 3;
pub(super) const ELEM_LIST_SET_ID: u16 = 4;
pub(super) const ELEM_KEY: u16 = 1;
pub(super) const ELEM_DATA: u16 = 2;
pub(super) const ELEM_FLAGS: u16 = 3;
pub(super) const ELEM_USERDATA: u16 = 6;
pub(super) const ELEM_KEY_END: u16 = 10;
pub(super) const ELEM_INTERVAL_END: u32 = 1;
pub(super) const ELEM_CATCHALL: u32 = 2;

/// An entry of a list.
pub(super) const LIST_ELEM: u16 = 1;
pub(super) const EXPR_NAME: u16 = 1;
pub(super) const EXPR_DATA: u16 = 2;

pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
pub(super) const VERDICT_CODE: u16 = 1;
pub(super) const VERDICT_CHAIN: u16 = 2;

/// Verdicts (`NF_...`, `NFT_...`).
pub(super) const DROP: i32 = 0;
pub(super) const ACCEPT: i32 = 1;
pub(super) const CONTINUE: i32 = -1;
pub(super) const JUMP: i32 = -3;
pub(super) const GOTO: i32 = -4;
pub(super) const RETURN: i32 = -5;

pub(super) const PAYLOAD_DREG: u16 = 1;
pub(super) const PAYLOAD_BASE: u16 = 2;
pub(super) const PAYLOAD_OFFSET: u16 = 3;
pub(super) const PAYLOAD_LEN: u16 = 4;
pub(super) const NETWORK_HEADER: u32 = 1;
pub(super) const TRANSPORT_HEADER: u32 = 2;

pub(super) const META_DREG: u16 = 1;
pub(super) const META_KEY: u16 = 2;
pub(super) const META_SREG: u16 = 3;

pub(super) const CT_DREG: u16 = 1;
pub(super) const CT_KEY: u16 = 2;
pub(super) const CT_DIRECTION: u16 = 3;
pub(super) const CT_SREG: u16 = 4;

pub(super) const FIB_DREG: u16 = 1;
pub(super) const FIB_RESULT: u16 = 2;
pub(super) const FIB_FLAGS: u16 = 3;
pub(super) const FIB_RESULT_ADDRTYPE: u32 = 3;

pub(super) const NG_DREG: u16 = 1;
pub(super) const NG_MODULUS: u16 = 2;
pub(super) const NG_TYPE: u16 = 3;
pub(super) const NG_OFFSET: u16 = 4;
pub(super) const NG_RANDOM: u32 = 1;

pub(super) const BITWISE_SREG: u16 = 1;
pub(super) const BITWISE_DREG: u16 = 2;
pub(super) const BITWISE_LEN: u16 = 3;
pub(super) const BITWISE_MASK: u16 = 4;
pub(super) const BITWISE_XOR: u16 = 5;
pub(super) const BITWISE_OP: u16 = 6;

pub(super) const CMP_SREG: u16 = 1;
pub(super) const CMP_OP: u16 = 2;
pub(super) const CMP_DATA: u16 = 3;
pub(super) const CMP_EQ: u32 = 0;
pub(super) const CMP_NEQ: u32 = 1;

pub(super) const LOOKUP_SET: u16 = 1;
pub(super) const LOOKUP_SREG: u16 = 2;
pub(super) const LOOKUP_DREG: u16 = 3;
pub(super) const LOOKUP_SET_ID: u16 = 4;
pub(super) const LOOKUP_FLAGS: u16 = 5;
pub(super) const LOOKUP_INVERTED: u32 = 1;

pub(super) const IMMEDIATE_DREG: u16 = 1;
pub(super) const IMMEDIATE_DATA: u16 = 2;

pub(super) const NAT_TYPE: u16 = 1;
pub(super) const NAT_FAMILY: u16 = 2;
pub(super) const NAT_REG_ADDR_MIN: u16 = 3;
pub(super) const NAT_REG_ADDR_MAX: u16 = 4;
pub(super) const NAT_REG_PROTO_MIN: u16 = 5;
pub(super) const NAT_REG_PROTO_MAX: u16 = 6;
pub(super) const NAT_FLAGS: u16 = 7;
pub(super) const NAT_DNAT: u32 = 1;
/// What the kernel adds where there are such registers: `NF_NAT_RANGE_PROTO_SPECIFIED`,
/// `NF_NAT_RANGE_MAP_IPS`.
pub(super) const NAT_PORT: u32 = 2;
pub(super) const NAT_ADDRESS: u32 = 1;

pub(super) const MASQ_FLAGS: u16 = 1;

pub(super) const REJECT_TYPE: u16 = 1;
pub(super) const REJECT_CODE: u16 = 2;

pub(super) const DYNSET_NAME: u16 = 1;
pub(super) const DYNSET_ID: u16 = 2;
pub(super) const DYNSET_OP: u16 = 3;
pub(super) const DYNSET_SREG_KEY: u16 = 4;
pub(super) const DYNSET_SREG_DATA: u16 = 5;
pub(super) const DYNSET_TIMEOUT: u16 = 6;

/// Of an iptables match or target inside nftables (`NFTA_MATCH_...`, `NFTA_TARGET_...`).
pub(super) const XT_NAME: u16 = 1;
pub(super) const XT_INFO: u16 = 3;

/// Registers: the verdict; 16 bytes each from 1 on; 4 bytes each from 8 on.
pub(super) const REG_VERDICT: u32 = 0;
pub(super) const REG_1: u32 = 1;
pub(super) const REG32_00: u32 = 8;

/// `NFPROTO_...`
pub(super) const fn family(family: Family) -> u8 {
    match family {
        Family::Inet => 1,
        Family::Ip => 2,
        Family::Ip6 => 10,
    }
}

pub(super) fn read_family(number: u8) -> Option<Family> {
    [Family::Inet, Family::Ip, Family::Ip6].into_iter().find(|known| family(*known) == number)
}

/// `NF_INET_...`
pub(super) const fn hook(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

pub(super) fn read_hook(number: u32) -> Option<Hook> {
    [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting]
        .into_iter()
        .find(|known| hook(*known) == number)
}

pub(super) const fn read_writable(field: Field) -> Option<Writable> {
    Some(match field {
        Field::MetaMark => Writable::MetaMark,
        Field::MetaPriority => Writable::MetaPriority,
        Field::CtMark => Writable::CtMark,
        _ => return None,
    })
}

/// `NF_NAT_RANGE_PROTO_RANDOM...`
pub(super) const fn port_choice(choice: PortChoice) -> u32 {
    match choice {
        PortChoice::Keep => 0,
        PortChoice::Random => 0x4,
        PortChoice::FullyRandom => 0x10,
    }
}

pub(super) fn read_port_choice(flags: u32) -> Option<PortChoice> {
    [PortChoice::Keep, PortChoice::Random, PortChoice::FullyRandom]
        .into_iter()
        .find(|choice| port_choice(*choice) == flags)
}

/// `NFT_DYNSET_OP_...`
pub(super) const fn dynamic_op(op: DynamicOp) -> u32 {
    match op {
        DynamicOp::Update => 1,
        DynamicOp::Delete => 2,
    }
}

pub(super) fn read_dynamic_op(number: u32) -> Option<DynamicOp> {
    [DynamicOp::Update, DynamicOp::Delete].into_iter().find(|op| dynamic_op(*op) == number)
}

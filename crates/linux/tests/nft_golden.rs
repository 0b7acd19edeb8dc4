//! Our nftables messages against those of the `nft` tool, byte for byte, and our tables against what `nft`
//! lists of them.

#[path = "../../ruleset/tests/c6/mod.rs"]
mod c6;
mod nft_tools;

use linux::nft::{Socket, pack};
use nft_tools::{Result, batch_of, namespace, theirs};
use ruleset::{Family, Table, Transaction};

fn tables() -> Vec<Table> {
    vec![c6::overlay(), c6::services(), c6::shape(Family::Ip6), c6::oddments(), c6::both()]
}

#[test]
fn a_whole_table_is_sent_as_nft_sends_its_text() -> Result {
    for table in tables() {
        let Some(ns) = namespace() else { return Ok(()) };
        assert_eq!(table.check(), Ok(()));
        let sent = theirs(&ns, &table.to_string())?;
        let packed = pack(&Transaction::create(&table));
        let (sent, packed) = (batch_of(&sent), batch_of(&packed));
        for (theirs, ours) in sent.iter().zip(&packed) {
            // nft 1.0.6 loads the data of an element over the end of a key that is longer than 16 bytes
            // (`update @affinity { meta priority . ip6 saddr : meta priority }`).
            let overwrites = table.family == Family::Ip6 && ours.mentions("dynset");
            // It turns round the one byte of `meta l4proto` where the set has ranges.
            let turns_a_byte = table.name.as_str() == "oddments" && theirs.mentions("byteorder");
            assert!(theirs == ours || overwrites || turns_a_byte, "in {}:\n{theirs:?}\n{ours:?}", table.name);
        }
        assert_eq!(sent.len(), packed.len(), "messages for table {}", table.name);
    }
    Ok(())
}

#[test]
fn what_was_committed_is_read_back() -> Result {
    for table in tables() {
        let Some(ns) = namespace() else { return Ok(()) };
        let mut have = None;
        ruleset::apply(&mut have, &Transaction::create(&table))?;
        let _inside = ns.enter()?;
        let mut socket = Socket::open()?;
        socket.commit(&Transaction::create(&table))?;
        let read = socket.table(table.family, &table.name)?.map(ruleset::Observed::without_handles);
        assert_eq!(read, have);
        assert!(ruleset::diff(&table, read.as_ref()).is_empty());
    }
    Ok(())
}

#[test]
fn nft_lists_our_table_as_it_lists_its_text_and_reads_it_again() -> Result {
    for table in tables() {
        let Some(ns) = namespace() else { return Ok(()) };
        let list = format!("nft -j list table {} {}", table.family, table.name);
        ns.cmd("nft -f -").stdin(table.to_string()).ok()?;
        let from_text = nft_tools::without_handles(&ns.cmd(&list).json()?);
        ns.cmd("nft flush ruleset").ok()?;
        ns.inside(|| Socket::open()?.commit(&Transaction::create(&table)))??;
        let from_us = nft_tools::without_handles(&ns.cmd(&list).json()?);
        assert_eq!(from_us, from_text, "{}", table.name);
        let listed = ns.cmd("nft list ruleset").ok()?.stdout;
        ns.cmd("nft flush ruleset").ok()?;
        ns.cmd("nft -f -").stdin(listed.clone()).ok()?;
        assert_eq!(ns.cmd("nft list ruleset").ok()?.stdout, listed);
    }
    Ok(())
}

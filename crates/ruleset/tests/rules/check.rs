//! What is wrong with a table is named. That `nft` or the kernel refuses it too is shown beside the kernel.

use crate::{c6, faults};

#[test]
fn every_mistake_is_named() {
    for case in faults::cases() {
        let found = case.table.check().err().unwrap_or_default();
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, case.faults, "tolerated: {:?}\n{}", case.tolerated, case.table);
    }
}

#[test]
fn what_fits_has_no_fault() {
    for table in
        [c6::overlay(), c6::services(), c6::oddments(), c6::both(), c6::fields(), faults::at_the_limits()]
    {
        assert_eq!(table.check(), Ok(()));
    }
}

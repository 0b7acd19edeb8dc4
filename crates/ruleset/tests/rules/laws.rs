//! The laws of differences, over a kernel that is a value and one that often refuses.

use proptest::prelude::*;
use ruleset::{Observed, Table, Transaction, apply, diff};

use crate::random;

fn loaded(table: &Table) -> Option<Observed> {
    let mut have = None;
    apply(&mut have, &Transaction::create(table)).unwrap();
    have
}

proptest! {
    /// From any table to any other in one transaction, and then there is nothing left to do.
    #[test]
    fn one_pass_reaches_the_goal_and_a_second_does_nothing(from in random::tables(), to in random::tables()) {
        let mut have = loaded(&from);
        let step = diff(&to, have.as_ref());
        prop_assert_eq!(apply(&mut have, &step), Ok(()), "{:?}", step);
        prop_assert_eq!(&have, &loaded(&to));
        prop_assert!(diff(&to, have.as_ref()).is_empty());
    }

    /// Commits that fail, and others' changes between, are only a matter of time.
    #[test]
    fn it_converges_once_the_trouble_is_over(
        start in random::tables(),
        goal in random::tables(),
        trouble in prop::collection::vec((any::<bool>(), random::transactions()), 0..6),
    ) {
        let mut have = loaded(&start);
        for (refuses, foreign) in trouble {
            let step = diff(&goal, have.as_ref());
            if !refuses {
                prop_assert_eq!(apply(&mut have, &step), Ok(()));
            }
            let mut after = have.clone();
            if apply(&mut after, &foreign).is_ok() {
                have = after;
            }
        }
        let step = diff(&goal, have.as_ref());
        prop_assert_eq!(apply(&mut have, &step), Ok(()), "{:?}", step);
        prop_assert_eq!(have, loaded(&goal));
    }
}

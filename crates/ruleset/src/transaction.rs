//! An ordered list of changes to one table, carried out as a whole or not at all.

use std::fmt;

use crate::{
    Base, Element, Family, Key, Name, Rule, Set, SetSpec, Table,
    code::{Code, KeyForm, SetHeader},
};

/// Where a rule goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Behind the last rule of the chain.
    End,
    /// In front of the rule with that handle.
    Before(u64),
}

/// One change. All names are of the transaction's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Makes the table; if it is there, nothing happens.
    AddTable {
        /// The table's comment.
        comment: Option<Box<str>>,
    },
    /// Deletes the table with everything in it. It must be there: put [`Change::AddTable`] in front where
    /// that isn't sure.
    DeleteTable,
    /// Makes a chain without rules, or changes the policy of a base chain.
    AddChain {
        /// The chain's name.
        name: Name,
        /// `None` for a regular chain.
        base: Option<Base>,
    },
    /// Deletes a chain with its rules; nothing may lead to it.
    DeleteChain {
        /// The chain's name.
        name: Name,
    },
    /// Deletes all rules of a chain.
    FlushChain {
        /// The chain's name.
        name: Name,
    },
    /// Makes a set or map without elements.
    AddSet {
        /// The set's name.
        name: Name,
        /// What it is.
        header: SetHeader,
    },
    /// Deletes a set or map with its elements; no rule may use it.
    DeleteSet {
        /// The set's name.
        name: Name,
    },
    /// Adds a rule.
    AddRule {
        /// To which chain.
        chain: Name,
        /// Where in it.
        place: Place,
        /// The rule.
        code: Code,
    },
    /// Deletes one rule.
    DeleteRule {
        /// From which chain.
        chain: Name,
        /// Which.
        handle: u64,
    },
    /// Adds elements. One that is there already must be the same.
    AddElements {
        /// To which set.
        set: Name,
        /// How that set finds its elements.
        form: KeyForm,
        /// Keys and what they lead to, none twice.
        elements: Vec<(Key, Element)>,
    },
    /// Deletes elements, which must be there.
    DeleteElements {
        /// From which set.
        set: Name,
        /// How that set finds its elements.
        form: KeyForm,
        /// Which.
        keys: Vec<Key>,
    },
}

/// Changes to one table, in the order in which the kernel is to make them: all or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The table's family.
    pub family: Family,
    /// The table's name.
    pub table: Name,
    /// What is to change, in order.
    pub changes: Vec<Change>,
}

impl Transaction {
    /// A transaction that changes nothing yet.
    #[must_use]
    pub fn new(family: Family, table: impl Into<Name>) -> Self {
        Self { family, table: table.into(), changes: Vec::new() }
    }

    /// The transaction that makes `table` where there is none of that name.
    #[must_use]
    pub fn create(table: &Table) -> Self {
        let mut transaction = Self::new(table.family, &table.name);
        transaction.push_whole(table);
        transaction
    }

    /// The transaction after which there is no such table, whether or not there was one.
    #[must_use]
    pub fn delete(family: Family, table: impl Into<Name>) -> Self {
        let changes = vec![Change::AddTable { comment: None }, Change::DeleteTable];
        Self { family, table: table.into(), changes }
    }

    /// It changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Appends a change.
    pub fn push(&mut self, change: Change) -> &mut Self {
        self.changes.push(change);
        self
    }

    /// Appends all changes of a transaction on the same table.
    pub fn extend(&mut self, other: Self) -> &mut Self {
        self.changes.extend(other.changes);
        self
    }

    /// Makes a set or map with its elements.
    pub fn add_set(&mut self, name: &Name, set: &Set) -> &mut Self {
        self.push(Change::AddSet { name: name.clone(), header: set.spec.lower() });
        let elements = set.elements.iter().map(|(key, element)| (key.clone(), element.clone()));
        self.add_elements(name, &set.spec, elements)
    }

    /// Adds elements to the set `name`, which is as `spec` says.
    pub fn add_elements(
        &mut self,
        name: &Name,
        spec: &SetSpec,
        elements: impl IntoIterator<Item = (Key, Element)>,
    ) -> &mut Self {
        let elements: Vec<_> = elements.into_iter().collect();
        if elements.is_empty() {
            return self;
        }
        self.push(Change::AddElements { set: name.clone(), form: spec.form(), elements })
    }

    /// Deletes elements of the set `name`, which is as `spec` says.
    pub fn delete_elements(
        &mut self,
        name: &Name,
        spec: &SetSpec,
        keys: impl IntoIterator<Item = Key>,
    ) -> &mut Self {
        let keys: Vec<_> = keys.into_iter().collect();
        if keys.is_empty() {
            return self;
        }
        self.push(Change::DeleteElements { set: name.clone(), form: spec.form(), keys })
    }

    /// Makes a chain, or changes a base chain's policy; rules come with [`add_rule`](Self::add_rule).
    pub fn add_chain(&mut self, name: &Name, base: Option<Base>) -> &mut Self {
        self.push(Change::AddChain { name: name.clone(), base })
    }

    /// Adds a rule behind the last one of a chain of `table`.
    pub fn add_rule(&mut self, table: &Table, chain: &Name, rule: &Rule) -> &mut Self {
        self.push(Change::AddRule { chain: chain.clone(), place: Place::End, code: rule.lower(table) })
    }

    /// Makes a whole table in the order in which `nft` does: the table, chains, sets with their elements,
    /// rules.
    pub(crate) fn push_whole(&mut self, table: &Table) {
        self.push(Change::AddTable { comment: table.comment.clone() });
        for (name, chain) in &table.chains {
            self.add_chain(name, chain.base);
        }
        for (name, set) in &table.sets {
            self.add_set(name, set);
        }
        for (name, chain) in &table.chains {
            for rule in &chain.rules {
                self.add_rule(table, name, rule);
            }
        }
    }
}

impl Change {
    /// What is tried, for messages: "add", "delete", "flush".
    #[must_use]
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::AddTable { .. }
            | Self::AddChain { .. }
            | Self::AddSet { .. }
            | Self::AddRule { .. }
            | Self::AddElements { .. } => "add",
            Self::DeleteTable
            | Self::DeleteChain { .. }
            | Self::DeleteSet { .. }
            | Self::DeleteRule { .. }
            | Self::DeleteElements { .. } => "delete",
            Self::FlushChain { .. } => "flush",
        }
    }

    /// On what, for messages: "chain services", "2 elements of endpoints".
    #[must_use]
    pub fn object(&self) -> String {
        match self {
            Self::AddTable { .. } | Self::DeleteTable => "table".to_owned(),
            Self::AddChain { name, .. } | Self::DeleteChain { name } | Self::FlushChain { name } => {
                format!("chain {name}")
            }
            Self::AddSet { name, .. } | Self::DeleteSet { name } => format!("set {name}"),
            Self::AddRule { chain, .. } => format!("rule of chain {chain}"),
            Self::DeleteRule { chain, handle } => format!("rule {handle} of chain {chain}"),
            Self::AddElements { set, elements, .. } => elements_object(set, elements.len()),
            Self::DeleteElements { set, keys, .. } => elements_object(set, keys.len()),
        }
    }
}

fn elements_object(set: &Name, count: usize) -> String {
    match count {
        1 => format!("element of {set}"),
        _ => format!("{count} elements of {set}"),
    }
}

impl fmt::Display for Change {
    /// What is done to what: `add chain services`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb(), self.object())
    }
}

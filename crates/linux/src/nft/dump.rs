//! Tables, chains and rules read back from the kernel.

use std::collections::BTreeMap;

use ruleset::{
    Base, Element, Family, Hook, Key, Name, Observed, ObservedChain, ObservedRule, ObservedSet, Value,
    code::KeyForm,
};

use super::{AnonymousSets, Socket, attr::Writer, decode, get, numbers as n, table_object};
use crate::{Cause, Error, netlink::Request};

/// How often a table is read again because the ruleset changed meanwhile.
const ATTEMPTS: usize = 16;

/// A chain of any table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignChain {
    /// The table's family.
    pub family: Family,
    /// The table's name.
    pub table: Name,
    /// The chain's name.
    pub name: Name,
    /// What makes it a base chain, if it is one.
    pub base: Option<Base>,
}

impl Socket {
    /// The table of that name with everything in it, or `None` where there is none.
    ///
    /// All parts are of one generation of the ruleset; or, where others keep changing their tables, two
    /// readings in a row were the same.
    ///
    /// # Errors
    /// The kernel refused or did not answer, or the table kept changing.
    pub fn table(&mut self, family: Family, name: &Name) -> Result<Option<Observed>, Error> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let before = self.generation()?;
            let read = self.read_table(family, name);
            if self.generation()? == before {
                return read;
            }
            // An error now only says that something went away while it was read.
            if let Ok(read) = read {
                if last.as_ref() == Some(&read) {
                    return Ok(read);
                }
                last = Some(read);
            }
        }
        Err(Error::new("read", table_object(family, name), Cause::KeptChanging))
    }

    /// All chains of all tables of the families ip, ip6 and inet.
    ///
    /// # Errors
    /// The kernel refused or did not answer, or the ruleset kept changing.
    pub fn chains(&mut self) -> Result<Vec<ForeignChain>, Error> {
        let request = get("list", "nftables chains", n::GETCHAIN, n::UNSPEC, &[]);
        self.connection.dump(&request, |message| {
            let attributes = decode::attributes(message);
            let names = (decode::name(attributes, n::TABLE), decode::name(attributes, n::CHAIN_NAME));
            Ok(match (n::read_family(decode::family(message)), names) {
                (Some(family), (Some(table), Some(name))) => {
                    Some(ForeignChain { family, table, name, base: decode::base(attributes) })
                }
                _ => None,
            })
        })
    }

    /// All base chains at a hook, by priority: in the order in which packets meet them, where no two are equal.
    ///
    /// # Errors
    /// The kernel refused or did not answer, or the ruleset kept changing.
    pub fn base_chains(&mut self, hook: Hook) -> Result<Vec<ForeignChain>, Error> {
        let mut chains = self.chains()?;
        chains.retain(|chain| chain.base.is_some_and(|base| base.hook == hook));
        chains.sort_by_key(|chain| chain.base.map(|base| base.priority));
        Ok(chains)
    }

    /// The rules of a chain of any table, from first to last; none where there is no such chain. What we have
    /// no word for is [`Op::Other`](ruleset::code::Op::Other); the comment is the rule's own or that of an
    /// iptables `comment` match.
    ///
    /// # Errors
    /// The kernel refused or did not answer, or the ruleset kept changing.
    pub fn rules(&mut self, family: Family, table: &Name, chain: &Name) -> Result<Vec<ObservedRule>, Error> {
        let object = format!("rules of chain {chain} in {}", table_object(family, table));
        let filter = [(n::TABLE, table.as_str()), (n::RULE_CHAIN, chain.as_str())];
        let request = get("list", &object, n::GETRULE, n::family(family), &filter);
        let rules = self.rules_of_table(&request, table, &AnonymousSets::new())?;
        Ok(rules.into_iter().filter(|(of, _)| of == chain).map(|(_, rule)| rule).collect())
    }

    /// The rules of all chains of a table; none where there is no such table. Lookups in anonymous sets name
    /// those as the kernel does.
    ///
    /// # Errors
    /// The kernel refused or did not answer, or the ruleset kept changing.
    pub fn all_rules(
        &mut self,
        family: Family,
        table: &Name,
    ) -> Result<BTreeMap<Name, Vec<ObservedRule>>, Error> {
        let object = format!("rules of {}", table_object(family, table));
        let request = get("list", &object, n::GETRULE, n::family(family), &[(n::TABLE, table.as_str())]);
        let mut chains = BTreeMap::<Name, Vec<_>>::new();
        for (chain, rule) in self.rules_of_table(&request, table, &AnonymousSets::new())? {
            chains.entry(chain).or_default().push(rule);
        }
        Ok(chains)
    }

    /// The elements of a set or map whose elements are found in that way.
    ///
    /// # Errors
    /// There is no such set ([`Error::is_not_found`]), the kernel refused or did not answer, or the ruleset
    /// kept changing.
    pub fn elements(
        &mut self,
        family: Family,
        (table, set): (&Name, &Name),
        form: KeyForm,
    ) -> Result<BTreeMap<Key, Element>, Error> {
        let request = elements_request(family, table, set);
        let parts = self.connection.dump(&request, |message| {
            Ok(Some(decode::entries(decode::attributes(message)).collect::<Vec<_>>()))
        })?;
        Ok(decode::elements(form, parts.into_iter().flatten().collect()))
    }

    /// The element of a set or map without ranges that has that key; `None` also where there is no such set.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub fn element(
        &mut self,
        family: Family,
        (table, set): (&Name, &Name),
        key: &Value,
    ) -> Result<Option<Element>, Error> {
        let mut request = elements_request(family, table, set);
        let mut wanted = Writer::default();
        wanted.nest(n::ELEM_LIST_ELEMENTS, |list| {
            list.nest(n::LIST_ELEM, |element| element.value(n::ELEM_KEY, key.as_bytes()));
        });
        request.payload.extend(wanted.bytes);
        request.verb = "read";
        let found = self.connection.ask(&request, |message| {
            let entries = decode::entries(decode::attributes(message)).collect();
            Ok(decode::elements(KeyForm::Exact, entries).into_values().next())
        });
        match found {
            Err(error) if error.is_not_found() => Ok(None),
            found => Ok(found?.into_iter().flatten().next()),
        }
    }

    fn read_table(&mut self, family: Family, name: &Name) -> Result<Option<Observed>, Error> {
        let object = table_object(family, name);
        let request = get("read", &object, n::GETTABLE, n::family(family), &[(n::TABLE, name.as_str())]);
        let found = self.connection.ask(&request, |message| Ok(decode::table(decode::attributes(message))));
        let (flags, comment) = match found {
            Err(error) if error.is_not_found() => return Ok(None),
            found => found?.into_iter().next().unwrap_or_default(),
        };
        let mut chains: BTreeMap<Name, ObservedChain> = self
            .chains()?
            .into_iter()
            .filter(|chain| chain.family == family && chain.table == *name)
            .map(|chain| (chain.name, ObservedChain { base: chain.base, rules: Vec::new() }))
            .collect();
        let (sets, anonymous) = self.read_sets(family, name)?;
        let object = format!("rules of {}", table_object(family, name));
        let request = get("list", &object, n::GETRULE, n::family(family), &[(n::TABLE, name.as_str())]);
        for (chain, rule) in self.rules_of_table(&request, name, &anonymous)? {
            chains.entry(chain).or_default().rules.push(rule);
        }
        Ok(Some(Observed { family, name: name.clone(), flags, comment, chains, sets }))
    }

    fn read_sets(
        &mut self,
        family: Family,
        table: &Name,
    ) -> Result<(BTreeMap<Name, ObservedSet>, AnonymousSets), Error> {
        let object = format!("sets of {}", table_object(family, table));
        let filter = [(n::TABLE, table.as_str())];
        let request = get("list", &object, n::GETSET, n::family(family), &filter);
        let headers = self.connection.dump(&request, |message| {
            let attributes = decode::attributes(message);
            let ours = attributes.text(n::TABLE) == Some(table.as_str());
            let name = decode::name(attributes, n::SET_NAME).filter(|_| ours);
            Ok(name.zip(decode::set(attributes)).map(|set| (set, decode::is_anonymous(attributes))))
        })?;
        let (mut sets, mut anonymous) = (BTreeMap::new(), AnonymousSets::new());
        for ((name, header), is_anonymous) in headers {
            let elements = self.elements(family, (table, &name), header.form)?;
            if is_anonymous {
                anonymous.extend(decode::anonymous(header, elements).map(|set| (name, set)));
            } else {
                sets.insert(name, ObservedSet { header, elements });
            }
        }
        Ok((sets, anonymous))
    }

    /// The rules that `request` lists, as far as they are in `table`, with their chains.
    fn rules_of_table(
        &mut self,
        request: &Request,
        table: &Name,
        anonymous: &AnonymousSets,
    ) -> Result<Vec<(Name, ObservedRule)>, Error> {
        self.connection.dump(request, |message| {
            let attributes = decode::attributes(message);
            let chain = decode::name(attributes, n::RULE_CHAIN)
                .filter(|_| attributes.text(n::TABLE) == Some(table.as_str()));
            Ok(chain.map(|chain| (chain, decode::rule(decode::family(message), attributes, anonymous))))
        })
    }
}

fn elements_request(family: Family, table: &Name, set: &Name) -> Request {
    let object = format!("elements of {set} in {}", table_object(family, table));
    let filter = [(n::TABLE, table.as_str()), (n::ELEM_LIST_SET, set.as_str())];
    get("list", &object, n::GETSETELEM, n::family(family), &filter)
}

//! Our two rules in the FORWARD chain of `ip filter`, which others own: accepting in a table of our own
//! does not outvote a drop there.
//!
//! They stand at the end, or just before a final rule that drops or rejects everything: never before
//! another rule, so that network policies still decide. Those of several flanneld on one host stand there
//! side by side, in any order: if each wanted the very last place, they would move in turns for ever.
//!
//! We know them by their comment, which iptables-save and iptables-restore turn from the rule's own into a
//! match of iptables and back.

use netmodel::{IfName, MARK, Subnet};
use ruleset::{
    Change, Family, Field, Name, ObservedRule, Place, Rule, Statement, Table, Transaction,
    code::{Code, Op},
};

/// The table that our rules stand in.
pub const TABLE: &str = "filter";
/// Its chain.
pub const CHAIN: &str = "FORWARD";
/// What follows the device in a comment.
const COMMENT_END: &str = " forward";

/// The comment of the rules that belong to a device.
#[must_use]
pub fn comment(device: &IfName) -> String {
    format!("{MARK}{device}{COMMENT_END}")
}

/// The rule belongs to this flanneld, or to another one on this host.
fn is_of_flanneld(rule: &ObservedRule) -> bool {
    let comment = rule.code.comment.as_deref();
    comment.is_some_and(|comment| comment.starts_with(MARK) && comment.ends_with(COMMENT_END))
}

/// Our two rules: from and to all pods.
fn wanted(device: &IfName, network: Subnet) -> Vec<Code> {
    let table = Table::new(Family::Ip, TABLE);
    [Field::IpSaddr, Field::IpDaddr]
        .map(|field| {
            let statements = [field.within(network), Statement::Counter, Statement::ACCEPT];
            Rule::new(statements).comment(comment(device)).lower(&table)
        })
        .into()
}

/// What leads from the rules of the chain to those with ours where they belong; with no `network`, to
/// those without ours. Empty if nothing is to be done.
#[must_use]
pub fn diff(device: &IfName, network: Option<Subnet>, have: &[ObservedRule]) -> Transaction {
    let mut transaction = Transaction::new(Family::Ip, TABLE);
    let chain = Name::from(CHAIN);
    let mark = comment(device);
    let is_ours = |rule: &&ObservedRule| rule.code.comment.as_deref() == Some(mark.as_str());
    let want = network.map_or_else(Vec::new, |network| wanted(device, network));
    let last = have.iter().rfind(|rule| !is_of_flanneld(rule)).filter(|rule| rule.code.refuses_all());
    let last = last.map(|rule| rule.handle);
    let behind = have.iter().position(|rule| last == Some(rule.handle)).unwrap_or(have.len());
    let first = have[..behind].iter().rposition(|rule| !is_of_flanneld(rule)).map_or(0, |before| before + 1);
    let there: Vec<_> = have[first..behind].iter().filter(is_ours).collect();
    let in_place = there.len() == want.len()
        && have.iter().filter(is_ours).count() == want.len()
        && there.iter().zip(&want).all(|(rule, want)| means(&rule.code, want));
    if in_place {
        return transaction;
    }
    for code in want {
        let place = last.map_or(Place::End, Place::Before);
        transaction.push(Change::AddRule { chain: chain.clone(), place, code });
    }
    for rule in have.iter().filter(is_ours) {
        transaction.push(Change::DeleteRule { chain: chain.clone(), handle: rule.handle });
    }
    transaction
}

/// A rule does what we want, whoever wrote it down.
fn means(rule: &Code, want: &Code) -> bool {
    let of = |code: &Code| -> Vec<Op> {
        let says_nothing = |op: &&Op| {
            matches!(op, Op::Counter) || matches!(op, Op::Other { name, .. } if &**name == "xt match comment")
        };
        code.ops.iter().filter(|op| !says_nothing(op)).cloned().collect()
    };
    of(rule) == of(want)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chain as letters: `s` and `d` are ours, `S` is ours as iptables-restore writes it, `o` and `p` those
    /// of another flanneld, `x` a foreign rule, `D` and `R` drop and reject everything.
    fn chain(text: &str) -> Vec<ObservedRule> {
        let table = Table::new(Family::Ip, TABLE);
        let ours = wanted(&device(), network());
        let others = wanted(&"flannel.2".parse().unwrap(), "10.6.0.0/16".parse().unwrap());
        let foreign = |statement| Rule::new([Statement::Counter, statement]).lower(&table);
        let code = |letter| match letter {
            's' => ours[0].clone(),
            'd' => ours[1].clone(),
            'o' => others[0].clone(),
            'p' => others[1].clone(),
            'S' => {
                let mut code = ours[0].clone();
                code.ops.insert(0, Op::Other { name: "xt match comment".into(), attributes: vec![1] });
                code
            }
            'D' => foreign(Statement::DROP),
            'R' => foreign(Statement::REJECT),
            _ => Rule::new([Field::IpSaddr.is([10, 5, 1, 7]), Statement::DROP]).lower(&table),
        };
        text.chars().zip(1..).map(|(letter, handle)| ObservedRule { handle, code: code(letter) }).collect()
    }

    fn device() -> IfName {
        "flannel.1".parse().unwrap()
    }

    fn network() -> Subnet {
        "10.5.0.0/16".parse().unwrap()
    }

    fn letters(rules: &[ObservedRule]) -> String {
        let ours = wanted(&device(), network());
        let letter = |rule: &ObservedRule| {
            if means(&rule.code, &ours[0]) {
                's'
            } else if means(&rule.code, &ours[1]) {
                'd'
            } else if is_of_flanneld(rule) {
                'o'
            } else if rule.code.refuses_all() {
                'D'
            } else {
                'x'
            }
        };
        rules.iter().map(letter).collect()
    }

    fn check(have: &str, network: Option<Subnet>, expected: &str) {
        let rules = chain(have);
        let transaction = diff(&device(), network, &rules);
        let mut table = Some(ruleset::Observed {
            family: Family::Ip,
            name: TABLE.into(),
            flags: 0,
            comment: None,
            chains: [(Name::from(CHAIN), ruleset::ObservedChain { base: None, rules })].into(),
            sets: std::collections::BTreeMap::new(),
        });
        ruleset::apply(&mut table, &transaction).unwrap();
        let mut after = table.unwrap().chains.remove(&Name::from(CHAIN)).unwrap().rules;
        assert_eq!(letters(&after), expected, "{have}");
        for (rule, handle) in after.iter_mut().zip(100..) {
            rule.handle = handle;
        }
        assert!(diff(&device(), network, &after).is_empty(), "{have}: a second pass is not silent");
    }

    #[test]
    fn our_rules_stand_last_or_before_a_final_refusal_and_once() {
        for (have, expected) in [
            ("", "sd"),
            ("xx", "xxsd"),
            ("xD", "xsdD"),
            ("R", "sdD"),
            ("sd", "sd"),
            ("Sd", "sd"),
            ("xsdD", "xsdD"),
            ("sdx", "xsd"),
            ("sdxD", "xsdD"),
            ("xDsd", "xsdD"),
            ("sdsd", "sd"),
            ("s", "sd"),
            ("ds", "sd"),
            ("DxD", "DxsdD"),
            ("op", "oosd"),
            ("sdxop", "xoosd"),
            ("xopD", "xoosdD"),
            ("xDop", "xsdDoo"),
        ] {
            check(have, Some(network()), expected);
        }
    }

    #[test]
    fn nothing_of_ours_is_left_where_it_is_not_wanted() {
        for (have, expected) in [("", ""), ("xsdD", "xD"), ("Sdx", "x"), ("xD", "xD")] {
            check(have, None, expected);
        }
    }

    #[test]
    fn what_is_right_is_not_touched() {
        for have in ["sd", "Sd", "xsd", "xsdD", "sdR", "sdop", "opsd", "xsdopD", "xopsdD", "sopd"] {
            assert!(diff(&device(), Some(network()), &chain(have)).is_empty(), "{have}");
        }
        assert!(diff(&"flannel.2".parse().unwrap(), None, &chain("sd")).is_empty(), "another device's rules");
    }
}

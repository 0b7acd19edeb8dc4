//! Host ports whose packets are not treated as usual: only some of them are translated (`conditionsV4`,
//! `conditionsV6`), or all of them get the host's address (`masqAll`).

use netmodel::{IfName, Subnet};
use ruleset::{Chain, Field, Name, Relation, Rule, Statement, Value};

use crate::{Error, attachment::mix};

/// What the names of the chains of classes begin with.
const PREFIX: &str = "class-";

/// The most rules that conditions may need.
const MOST_RULES: usize = 64;

/// One way to treat packets to a host port: a chain, shared by all ports that are treated so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Class {
    /// A packet is translated if it fulfils all of one of these.
    alternatives: Vec<Vec<Statement>>,
    /// Every source is replaced.
    masquerade_all: bool,
    name: Name,
}

impl Class {
    /// Reads the conditions at `key`, written as `nft` writes matches. `None`: there is nothing unusual.
    pub(crate) fn parse(
        key: &str,
        conditions: &[&str],
        ipv4: bool,
        masquerade_all: bool,
    ) -> Result<Option<Self>, Error> {
        let text = conditions.join(" ");
        if text.trim().is_empty() && !masquerade_all {
            return Ok(None);
        }
        let unsupported = || Error::unsupported(key, &format!("{text:?}"));
        let spaced = text.replace('{', " { ").replace('}', " } ").replace(',', " ");
        let mut words = spaced.split_whitespace().peekable();
        let mut alternatives = vec![Vec::new()];
        while words.peek().is_some() {
            let condition = Condition::read(&mut words, ipv4).ok_or_else(unsupported)?;
            alternatives = condition.added_to(&alternatives);
            if alternatives.len() > MOST_RULES {
                return Err(unsupported());
            }
        }
        let hash = mix(format!("{ipv4} {masquerade_all} {alternatives:?}").bytes());
        Ok(Some(Self { alternatives, masquerade_all, name: format!("{PREFIX}{hash:016x}").into() }))
    }

    /// The chain's name.
    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// A chain of that name belongs to some class.
    pub(crate) fn is_name(name: &Name) -> bool {
        name.as_str().starts_with(PREFIX)
    }

    /// The chain. What it lets through goes on to `usual`, or to `masquerade`.
    pub(crate) fn chain(&self, usual: &str, masquerade: &str) -> Chain {
        let next = if self.masquerade_all { masquerade } else { usual };
        let rule = |conditions: &Vec<Statement>| {
            Rule::new(conditions.iter().cloned().chain([Statement::goto(next)]))
        };
        Chain::regular(self.alternatives.iter().map(rule))
    }
}

/// `field value`, `field != value` or `field { value, ... }`.
struct Condition {
    relation: Relation,
    /// One for each value.
    matches: Vec<Statement>,
}

impl Condition {
    /// Takes one off the words; `None` for what is not understood or could never be.
    fn read<'a>(words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>, ipv4: bool) -> Option<Self> {
        let family = if ipv4 { "ip" } else { "ip6" };
        let mut word = words.next()?;
        if word == "meta" {
            word = words.next()?;
        }
        let field = match (word, ipv4) {
            ("iifname", _) => Field::Iifname,
            (word, _) if word != family => return None,
            (_, ipv4) => match (words.next()?, ipv4) {
                ("saddr", true) => Field::IpSaddr,
                ("daddr", true) => Field::IpDaddr,
                ("saddr", false) => Field::Ip6Saddr,
                ("daddr", false) => Field::Ip6Daddr,
                _ => return None,
            },
        };
        let relation = match *words.peek()? {
            "!=" | "ne" => Relation::Ne,
            _ => Relation::Eq,
        };
        words.next_if(|word| ["!=", "ne", "==", "eq"].contains(word));
        let values: Vec<&str> = match words.next()? {
            "{" => words.by_ref().take_while(|word| *word != "}").collect(),
            one => vec![one],
        };
        let matches: Option<Vec<_>> =
            values.into_iter().map(|value| matching(field, relation, value)).collect();
        Some(Self { relation, matches: matches.filter(|matches| !matches.is_empty())? })
    }

    /// All of `alternatives` under this condition too: one of several values means as many alternatives, none
    /// of several values means all these statements.
    fn added_to(self, alternatives: &[Vec<Statement>]) -> Vec<Vec<Statement>> {
        let with = |before: &Vec<Statement>, more: &[Statement]| [before, more].concat();
        match self.relation {
            Relation::Ne => alternatives.iter().map(|before| with(before, &self.matches)).collect(),
            Relation::Eq => alternatives
                .iter()
                .flat_map(|before| self.matches.chunks(1).map(|one| with(before, one)))
                .collect(),
        }
    }
}

fn matching(field: Field, relation: Relation, value: &str) -> Option<Statement> {
    let value = value.trim_matches('"');
    if field == Field::Iifname {
        let name: IfName = value.parse().ok().filter(|_| !value.contains('*'))?;
        let right = Value::interface(&name);
        return Some(Statement::Compare { left: field.into(), relation, right });
    }
    let subnet: Option<Subnet> = value.parse().ok();
    let single = || {
        let address: std::net::IpAddr = value.parse().ok()?;
        Subnet::new(address, if address.is_ipv4() { 32 } else { 128 }).ok()
    };
    let subnet = subnet.or_else(single)?;
    let fits = subnet.is_ipv4() == matches!(field, Field::IpSaddr | Field::IpDaddr);
    fits.then_some(Statement::Within { field, relation, subnet })
}

#[cfg(test)]
mod tests {
    use ruleset::{Family, Table};

    use super::*;
    use crate::Code;

    fn rules(conditions: &[&str], ipv4: bool) -> Vec<String> {
        let class = Class::parse("conditionsV4", conditions, ipv4, false).unwrap().unwrap();
        class.chain("usual", "masquerade").rules.iter().map(text).collect()
    }

    fn text(rule: &Rule) -> String {
        let mut table = Table::new(Family::Inet, "t");
        let text = table.chain("c", Chain::regular([rule.clone()])).to_string();
        text.lines().find(|line| line.contains("goto")).unwrap_or_default().trim().to_owned()
    }

    #[test]
    fn conditions_in_the_form_of_nft_become_rules() {
        assert_eq!(
            rules(&["ip", "saddr", "10.0.0.0/8", "iifname", "!=", "\"eth1\""], true),
            ["ip saddr 10.0.0.0/8 iifname != \"eth1\" goto usual"]
        );
        assert_eq!(
            rules(&["ip daddr {192.0.2.1, 192.0.2.2}", "meta iifname { a, b }"], true),
            [
                "ip daddr 192.0.2.1 iifname \"a\" goto usual",
                "ip daddr 192.0.2.1 iifname \"b\" goto usual",
                "ip daddr 192.0.2.2 iifname \"a\" goto usual",
                "ip daddr 192.0.2.2 iifname \"b\" goto usual"
            ]
        );
        assert_eq!(
            rules(&["ip6 saddr != { fd00::/8, fe80::/10 }"], false),
            ["ip6 saddr != fd00::/8 ip6 saddr != fe80::/10 goto usual"]
        );
    }

    #[test]
    fn what_is_not_understood_is_code_2_with_key_and_value() {
        for bad in [
            "-d 192.0.2.0/24",
            "! -d 192.0.2.0/24",
            "ip6 saddr fd00::/8",
            "ip saddr fd00::/8",
            "ip saddr",
            "ip saddr { }",
            "ip saddr 10.0.0.1/8",
            "tcp flags syn",
            "iifname eth*",
            "meta",
            "ip ttl 5",
        ] {
            let error = Class::parse("conditionsV4", &[bad], true, false).unwrap_err();
            assert_eq!(error.code, Code::UnsupportedField, "{bad}");
            assert_eq!(error.msg, format!("unsupported value for key \"conditionsV4\": {bad:?}"));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_conditions_are_read_without_harm(
            words in proptest::collection::vec("ip6?|saddr|daddr|meta|iifname|!=|[{},]|10\\.0\\.0\\.0/8|fd00::/8|.{0,4}", 0..12),
            ipv4: bool,
        ) {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            if let Ok(Some(class)) = Class::parse("k", &words, ipv4, false) {
                let mut table = Table::new(Family::Inet, "t");
                table.chain("usual", Chain::regular([])).chain("c", class.chain("usual", "usual"));
                assert_eq!(table.check(), Ok(()));
            }
        }
    }

    #[test]
    fn one_way_is_one_chain() {
        let class = |text: &str, all| Class::parse("k", &[text], true, all).unwrap();
        assert_eq!(class(" ", false), None);
        let (one, same) = (class("ip saddr 10.0.0.0/8", false), class("ip saddr == 10.0.0.0/8", false));
        assert_eq!(one.as_ref().map(Class::name), same.as_ref().map(Class::name));
        let all = class("ip saddr 10.0.0.0/8", true).unwrap();
        assert_ne!(one.as_ref().map(Class::name), Some(all.name()));
        assert!(Class::is_name(all.name()) && !Class::is_name(&"hostports".into()));
        assert_eq!(text(&all.chain("usual", "masquerade").rules[0]), "ip saddr 10.0.0.0/8 goto masquerade");
    }
}

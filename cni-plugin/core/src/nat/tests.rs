use ruleset::apply;

use super::*;
use crate::{Network, PortMappings};

const A: &str = "weft:n/a/eth0";
const B: &str = "weft:n/b/eth0";

fn pods(number: u8) -> Vec<HostAddress> {
    [(format!("10.1.0.{number}"), 24), (format!("fd00::{number}"), 64)]
        .map(|(address, prefix)| HostAddress { address: address.parse().unwrap(), prefix })
        .into()
}

/// The ports of pod `number`: `text` are the mappings and, behind `;`, other keys.
fn ports(number: u8, text: &str) -> Vec<Forwarding> {
    let (mappings, keys) = text.split_once(';').unwrap_or((text, ""));
    let document =
        format!(r#"{{"name":"n","type":"portmap","runtimeConfig":{{"portMappings":[{mappings}]}}{keys}}}"#);
    let network = Network::parse(document.as_bytes()).unwrap();
    let located: Vec<_> = pods(number).into_iter().map(|pod| (pod.address, "cni0".parse().ok())).collect();
    PortMappings::parse(&network).unwrap().to(&located)
}

fn mapping(port: u16, host: &str) -> String {
    format!(r#"{{"hostPort":{port},"containerPort":80,"hostIP":"{host}"}}"#)
}

/// The kernel's table, as far as these tests need one.
#[derive(Default)]
struct Kernel(Option<Observed>);

impl Kernel {
    fn set(&mut self, nat: &Nat<'_>) -> Result<(), Taken> {
        let change = match &self.0 {
            None => nat.repair(None)?,
            Some(have) => {
                let rules = have.chains.iter().map(|(n, c)| (n.clone(), c.rules.clone()));
                let rules = rules.filter(|(_, rules)| !rules.is_empty()).collect();
                match nat.claim(&rules, &self.seen(&nat.questions()))? {
                    Some(change) => change,
                    None => nat.repair(Some(have))?,
                }
            }
        };
        apply(&mut self.0, &change).unwrap();
        assert_eq!(nat.missing(self.0.as_ref()), [""; 0]);
        Ok(())
    }

    /// Only what was asked for.
    fn seen(&self, questions: &Questions) -> Elements {
        let mut seen = Elements::new();
        for (set, element) in self.elements() {
            let keys = questions.keys.iter().filter(|(name, _)| *name == set).map(|(_, key)| key);
            let asked: Vec<Key> = keys.cloned().map(Key::One).collect();
            let whole = questions.sets.contains_key(&set);
            let wanted = element.into_iter().filter(|(key, _)| whole || asked.contains(key)).collect();
            seen.insert(set, wanted);
        }
        seen
    }

    fn elements(&self) -> Elements {
        let sets = self.0.iter().flat_map(|have| &have.sets);
        sets.map(|(name, set)| (name.clone(), set.elements.clone())).collect()
    }

    fn owned_by(&self, whose: &str) -> usize {
        let all = self.elements();
        all.values().flatten().filter(|(_, element)| element.comment.as_deref() == Some(whose)).count()
    }
}

fn nat<'a>(whose: &'a str, masqueraded: &'a [HostAddress], ports: &'a [Forwarding]) -> Nat<'a> {
    Nat { whose, masqueraded, ports, mark_bit: None }
}

#[test]
fn the_table_is_a_few_rules_for_any_number_of_pods() {
    let table = table(mark(None));
    assert_eq!(table.check(), Ok(()));
    let text = table.to_string();
    for wanted in [
        "ip saddr . ip daddr @homes4 return",
        "ip saddr @pods4 ip daddr != 224.0.0.0/4 masquerade",
        "ip6 saddr @pods6 ip6 daddr != ff00::/8 masquerade",
        "type nat hook prerouting priority -99",
        "fib daddr type local jump hostports",
        "dnat ip to ip daddr . meta l4proto . th dport map @hostip-ports4",
        "meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @hostports6",
        "meta nfproto ipv4 iifname . meta l4proto . th dport @hairpins4 goto from-host",
    ] {
        assert!(text.contains(wanted), "{wanted} in:\n{text}");
    }
}

#[test]
fn elements_come_go_and_are_found_by_their_owner() {
    let mut kernel = Kernel::default();
    let (a, b) = (ports(5, &mapping(8080, "")), ports(6, &mapping(8081, "192.0.2.1")));
    kernel.set(&nat(A, &pods(5), &a)).unwrap();
    kernel.set(&nat(B, &pods(6), &b)).unwrap();
    assert_eq!((kernel.owned_by(A), kernel.owned_by(B)), (8, 6));
    let (change, ended) = nat_sweep(&kernel.elements(), |owner| owner == A);
    let ended: Vec<_> = ended.iter().map(|e| (e.port, e.pod.to_string(), e.container_port)).collect();
    assert_eq!(ended, [(8080, "10.1.0.5".to_owned(), 80), (8080, "fd00::5".to_owned(), 80)]);
    apply(&mut kernel.0, &change).unwrap();
    assert_eq!((kernel.owned_by(A), kernel.owned_by(B)), (0, 6));
    apply(&mut kernel.0, &unmasquerade(&pods(6))).unwrap();
    assert_eq!(kernel.elements().values().flatten().count(), 2);
}

#[test]
fn a_port_has_one_owner() {
    let taken = |first: &str, second: &str| {
        let mut kernel = Kernel::default();
        let (a, b) = (ports(5, first), ports(6, second));
        kernel.set(&nat(A, &[], &a)).unwrap();
        let by_listing = nat(B, &[], &b).repair(kernel.0.as_ref()).err();
        let by_asking = kernel.set(&nat(B, &[], &b)).err();
        assert_eq!(by_listing, by_asking);
        assert_eq!(by_asking.is_some(), kernel.owned_by(B) == 0);
        by_asking.map(|taken| taken.into_error(None).msg)
    };
    let any = mapping(80, "");
    let by_a =
        |port: &str| Some(format!("host port {port} is taken by container a (interface eth0, network n)"));
    assert_eq!(taken(&any, &any), by_a("80/tcp"));
    assert_eq!(taken(&any, &mapping(80, "192.0.2.1")), by_a("192.0.2.1:80/tcp"));
    assert_eq!(taken(&mapping(80, "192.0.2.1"), &any), by_a("80/tcp"));
    assert_eq!(taken(&mapping(80, "2001:db8::1"), &any), by_a("80/tcp"));
    assert_eq!(taken(&mapping(80, "192.0.2.1"), &mapping(80, "0.0.0.0")), by_a("80/tcp"));
    assert_eq!(taken(&mapping(80, "2001:db8::1"), &mapping(80, "2001:db8::1")), by_a("[2001:db8::1]:80/tcp"));
    for free in [
        mapping(81, ""),
        mapping(80, "192.0.2.2"),
        mapping(80, "::"),
        r#"{"hostPort":80,"containerPort":80,"protocol":"UDP"}"#.into(),
    ] {
        assert_eq!(taken(&mapping(80, "192.0.2.1"), &free), None, "{free}");
    }
}

#[test]
fn an_owner_is_named_as_well_as_it_is_known() {
    let text = |owner: &str, pod| {
        Taken { port: "80/tcp".into(), owner: owner.into() }
            .into_error(pod)
            .msg
            .replace("host port 80/tcp is taken by ", "")
    };
    assert_eq!(text(A, Some("default/web")), "pod default/web, container a (interface eth0, network n)");
    assert_eq!(text(A, None), "container a (interface eth0, network n)");
    assert_eq!(text("", None), "an unknown owner");
    assert_eq!(text("weft:n/eth0", None), "weft:n/eth0");
}

#[test]
fn what_others_left_is_replaced() {
    let mut kernel = Kernel::default();
    let port = ports(5, &mapping(80, ""));
    kernel.set(&nat(A, &pods(5), &port)).unwrap();
    // The same address is somebody else's now: its old owner has gone without a DEL.
    kernel.set(&nat(B, &pods(5), &port)).unwrap();
    assert_eq!((kernel.owned_by(A), kernel.owned_by(B)), (0, 8));
    let other = ports(6, &mapping(80, ""));
    let claim = nat(A, &[], &other);
    assert!(claim.repair(kernel.0.as_ref()).is_err());
    // ADD again after one that was cut short.
    kernel.set(&nat(B, &pods(6), &other)).unwrap();
}

#[test]
fn an_address_has_one_home_and_homes_never_overlap() {
    let at = |address: &str, prefix| HostAddress { address: address.parse().unwrap(), prefix };
    let (wide, narrow) = ([at("10.1.5.9", 16)], [at("10.1.5.2", 24), at("10.1.5.3", 24)]);
    let homes = |kernel: &Kernel| kernel.elements()[&Name::from("homes4")].len();
    for pods in [[&wide[..], &narrow], [&narrow, &wide]] {
        let mut kernel = Kernel::default();
        for (pods, whose) in pods.into_iter().zip([A, B]) {
            kernel.set(&nat(whose, pods, &[])).unwrap();
        }
        assert_eq!(homes(&kernel), 3);
        // The same address in another subnet.
        kernel.set(&nat(B, &[at("10.1.5.2", 16)], &[])).unwrap();
        assert_eq!(homes(&kernel), 3);
        kernel.set(&nat(B, &[at("10.1.5.2", 32)], &[])).unwrap();
        assert!(nat(B, &[at("10.1.5.2", 32)], &[]).missing(kernel.0.as_ref()).is_empty());
        let (all, _) = nat_sweep(&kernel.elements(), |_| true);
        apply(&mut kernel.0, &all).unwrap();
        assert_eq!(kernel.elements().values().flatten().count(), 0);
    }
}

#[test]
fn a_container_has_its_port_on_the_interface_that_asked_first() {
    let sibling = A.replace("eth0", "eth1");
    let mut kernel = Kernel::default();
    let (one, two) = (ports(5, &mapping(80, "")), ports(6, &mapping(80, "")));
    kernel.set(&nat(A, &pods(5), &one)).unwrap();
    let before = kernel.owned_by(A);
    kernel.set(&nat(&sibling, &pods(6), &two)).unwrap();
    assert_eq!((kernel.owned_by(A), nat(A, &pods(5), &one).missing(kernel.0.as_ref())), (before, vec![]));
    assert_eq!(nat(&sibling, &pods(6), &two).missing(kernel.0.as_ref()), [""; 0]);
    assert!(kernel.set(&nat(B, &[], &two)).is_err());
}

#[test]
fn a_table_that_others_broke_is_made_whole_with_its_elements() {
    let mut kernel = Kernel::default();
    let port = ports(5, &mapping(80, ""));
    kernel.set(&nat(A, &pods(5), &port)).unwrap();
    let whole = kernel.0.clone().map(Observed::without_handles);
    assert!(mend(kernel.0.as_ref().unwrap()).is_empty());
    type Break = fn(&mut Observed);
    let breaks: [Break; 4] = [
        |have| have.chains.get_mut(&POSTROUTING.into()).unwrap().rules.clear(),
        |have| drop(have.chains.get_mut(&"hostports".into()).unwrap().rules.pop()),
        |have| have.chains.clear(),
        |have| {
            have.chains.clear();
            have.sets.remove(&"homes4".into());
        },
    ];
    for broken in breaks {
        broken(kernel.0.as_mut().unwrap());
        assert!(!nat(A, &pods(5), &port).missing(kernel.0.as_ref()).is_empty());
        kernel.set(&nat(A, &pods(5), &port)).unwrap();
        assert_eq!(kernel.0.clone().map(Observed::without_handles), whole);
    }
}

#[test]
fn unusual_ports_have_chains_that_others_keep() {
    let mut kernel = Kernel::default();
    let all = ports(5, &format!(r#"{};,"masqAll":true"#, mapping(80, "")));
    let two = [mapping(81, "0.0.0.0"), mapping(82, "0.0.0.0")].join(",");
    let some = ports(6, &format!(r#"{two};,"conditionsV4":["ip","saddr","10.0.0.0/8"]"#));
    kernel.set(&nat(A, &[], &all)).unwrap();
    kernel.set(&nat(B, &[], &some)).unwrap();
    let classes = |kernel: &Kernel| {
        kernel.0.iter().flat_map(|have| have.chains.keys()).filter(|name| Class::is_name(name)).count()
    };
    assert_eq!(classes(&kernel), 3);
    let unused =
        |owner: &str| unused_classes(kernel.0.as_ref().unwrap(), |found| found == owner).changes.len();
    assert_eq!((unused("nobody"), unused(A), unused(B)), (0, 4, 2));
    kernel.0.as_mut().unwrap().chains.get_mut(&POSTROUTING.into()).unwrap().rules.clear();
    kernel.set(&nat(B, &[], &some)).unwrap();
    assert_eq!(classes(&kernel), 3);
    for chain in kernel.0.as_mut().unwrap().chains.values_mut() {
        chain.rules.clear();
    }
    kernel.set(&nat(A, &[], &all)).unwrap();
    assert_eq!(nat(B, &[], &some).missing(kernel.0.as_ref()).len(), 1);
    // A chain of that name is of another kind: the table is made again.
    kernel.0.as_mut().unwrap().chains.get_mut(&POSTROUTING.into()).unwrap().base = None;
    let change = nat(A, &[], &all).repair(kernel.0.as_ref()).unwrap();
    apply(&mut kernel.0, &change).unwrap();
    assert_eq!((classes(&kernel), kernel.owned_by(A), kernel.owned_by(B)), (2, 6, 4));
}

#[test]
fn the_mark_follows_who_names_a_bit() {
    let mut kernel = Kernel::default();
    let port = ports(5, &mapping(80, ""));
    kernel.set(&nat(A, &pods(5), &[])).unwrap();
    kernel.set(&Nat { mark_bit: Some(5), ..nat(A, &[], &port) }).unwrap();
    // Whoever leaves it open takes what is there.
    assert!(nat(A, &pods(5), &port).missing(kernel.0.as_ref()).is_empty());
    assert!(mend(kernel.0.as_ref().unwrap()).is_empty());
    let thirteen = Nat { mark_bit: Some(13), ..nat(A, &[], &port) };
    assert!(!thirteen.missing(kernel.0.as_ref()).is_empty());
}

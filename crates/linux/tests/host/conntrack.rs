//! Flows made and judged with the `conntrack` tool.

use std::net::SocketAddr;

use linux::conntrack::{Filter, Socket};
use netmodel::Protocol;

use crate::world::{in_namespace, run};

/// Makes the kernel remember a flow.
fn insert(protocol: &str, client: &str, service: &str, endpoint: &str) {
    let [client, service, endpoint]: [SocketAddr; 3] =
        [client, service, endpoint].map(|text| text.parse().unwrap());
    let state = if protocol == "tcp" { "--state ESTABLISHED" } else { "" };
    run(&format!(
        "conntrack -I -p {protocol} -t 600 {state} -s {} -d {} --sport {} --dport {} -r {} -q {} --reply-port-src {} --reply-port-dst {}",
        client.ip(),
        service.ip(),
        client.port(),
        service.port(),
        endpoint.ip(),
        client.ip(),
        endpoint.port(),
        client.port(),
    ));
}

/// How many flows of a family the tool lists with that text in them.
fn listed(family: &str, text: &str) -> usize {
    run(&format!("conntrack -L -f {family}")).lines().filter(|line| line.contains(text)).count()
}

#[test]
fn the_flows_to_one_service_that_one_endpoint_answers_are_forgotten_and_no_other() {
    in_namespace(|| {
        for port in 1000..1020 {
            let client = format!("10.244.1.7:{port}");
            insert("udp", &client, "10.254.0.10:53", "10.244.2.5:5353");
            insert("udp", &client, "10.254.0.11:53", "10.244.2.6:5353");
        }
        insert("udp", "10.244.1.8:1000", "10.254.0.10:53", "10.244.2.6:5353");
        insert("udp", "10.244.1.8:1001", "10.254.0.10:54", "10.244.2.5:5353");
        insert("tcp", "10.244.1.8:1002", "10.254.0.10:53", "10.244.2.5:5353");

        let mut socket = Socket::open().unwrap();
        let stale = Filter {
            destination: "10.254.0.10".parse().ok(),
            destination_port: Some(53),
            endpoint: "10.244.2.5".parse().ok(),
            endpoint_port: Some(5353),
            ..Filter::all(Protocol::Udp, true)
        };
        let flows = socket.flows(&stale).unwrap();
        assert_eq!(flows.len(), 20);
        assert_eq!(flows[0].original.destination, "10.254.0.10:53".parse().unwrap());
        assert_eq!(flows[0].reply.source, "10.244.2.5:5353".parse().unwrap());
        assert!(socket.delete(&flows).into_iter().all(|result| result.is_ok()));
        assert_eq!(listed("ipv4", "udp"), 22);
        assert_eq!(listed("ipv4", "tcp"), 1);
        assert_eq!(socket.flows(&stale).unwrap(), []);
        assert!(socket.delete(&flows).into_iter().all(|result| result.is_ok()), "gone already is a success");
        assert_eq!(listed("ipv4", "udp"), 22);
    });
}

#[test]
fn flows_are_filtered_by_each_field_alone() {
    in_namespace(|| {
        insert("udp", "10.244.1.7:1", "10.254.0.10:53", "10.244.2.5:5353");
        insert("udp", "10.244.1.7:2", "10.254.0.11:53", "10.244.2.5:5354");
        insert("udp", "10.244.1.7:3", "10.254.0.10:54", "10.244.2.6:5353");
        insert("tcp", "10.244.1.7:4", "10.254.0.10:53", "10.244.2.5:5353");
        let mut socket = Socket::open().unwrap();
        let all = Filter::all(Protocol::Udp, true);
        let mut count = |filter: Filter| socket.flows(&filter).unwrap().len();
        assert_eq!(count(all), 3);
        assert_eq!(count(Filter::all(Protocol::Tcp, true)), 1);
        assert_eq!(count(Filter::all(Protocol::Sctp, true)), 0);
        assert_eq!(count(Filter::all(Protocol::Udp, false)), 0);
        assert_eq!(count(Filter { destination: "10.254.0.10".parse().ok(), ..all }), 2);
        assert_eq!(count(Filter { destination_port: Some(53), ..all }), 2);
        assert_eq!(count(Filter { endpoint: "10.244.2.5".parse().ok(), ..all }), 2);
        assert_eq!(count(Filter { endpoint_port: Some(5353), ..all }), 2);
    });
}

#[test]
fn flows_over_ipv6_are_forgotten_as_well() {
    in_namespace(|| {
        insert("udp", "[fd00::7]:1000", "[fd01::a]:53", "[fd00::25]:5353");
        insert("udp", "[fd00::7]:1001", "[fd01::b]:53", "[fd00::25]:5353");
        let mut socket = Socket::open().unwrap();
        let stale = Filter { destination: "fd01::a".parse().ok(), ..Filter::all(Protocol::Udp, false) };
        let flows = socket.flows(&stale).unwrap();
        assert_eq!(flows.len(), 1);
        assert!(socket.delete(&flows)[0].is_ok());
        assert_eq!((listed("ipv6", "fd01::a"), listed("ipv6", "fd01::b")), (0, 1));
    });
}

#[test]
fn a_later_flow_with_the_same_addresses_is_kept() {
    in_namespace(|| {
        insert("udp", "10.244.1.7:1000", "10.254.0.10:53", "10.244.2.5:5353");
        let mut socket = Socket::open().unwrap();
        let service = Filter { destination: "10.254.0.10".parse().ok(), ..Filter::all(Protocol::Udp, true) };
        let before = socket.flows(&service).unwrap();
        let mut later = before.clone();
        // The kernel may put the later one into the same place, and number it alike.
        for number in 1..100 {
            if later[0].id != before[0].id {
                break;
            }
            run("conntrack -F");
            insert("udp", &format!("10.244.1.9:{number}"), "10.254.0.99:53", "10.244.2.5:5353");
            insert("udp", "10.244.1.7:1000", "10.254.0.10:53", "10.244.2.6:5353");
            later = socket.flows(&service).unwrap();
        }
        assert!(socket.delete(&before)[0].is_ok());
        assert_eq!(listed("ipv4", "10.244.2.6"), 1);
    });
}

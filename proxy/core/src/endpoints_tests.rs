use super::*;
use crate::wire::{Manifest, Object};

fn node() -> NodeName {
    "n1".parse().unwrap()
}

fn slices(text: &str) -> Vec<Slice> {
    let slice = |object: &Object| match object {
        Object::EndpointSlice(slice) => Slice::check(slice, &node()).unwrap(),
        Object::Endpoints(endpoints) => Some(Slice::check_endpoints(endpoints, &node()).unwrap()),
        _ => panic!("no endpoints"),
    };
    Manifest::read(text).unwrap().objects.iter().filter_map(slice).collect()
}

/// An EndpointSlice of Service `s` with one port named `p` and these endpoints.
fn slice(endpoints: &str) -> String {
    format!(
        "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, \
         metadata: {{name: x, labels: {{kubernetes.io/service-name: s}}}}, \
         ports: [{{name: p, port: 8080}}, {{name: other, port: 9090}}], endpoints: {endpoints}}}\n"
    )
}

fn chosen(text: &str) -> String {
    let port = ServicePort {
        name: "p".into(),
        protocol: Protocol::Tcp,
        port: Port::try_from(80).unwrap(),
        node_port: None,
    };
    let chosen = choose(&slices(text), &port, Family::Ip);
    let usable: Vec<_> =
        chosen.usable.iter().map(|(a, here)| format!("{a}{}", if *here { "*" } else { "" })).collect();
    format!(
        "{} | {}",
        usable.join(" "),
        chosen.serving.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    )
}

#[test]
fn ready_endpoints_are_used_and_an_absent_condition_means_ready() {
    let text = slice(
        "[{addresses: [10.0.0.1], nodeName: n1}, {addresses: [10.0.0.2], nodeName: n2, conditions: {ready: true}}, \
         {addresses: [10.0.0.3], conditions: {ready: false}}, {addresses: []}]",
    );
    assert_eq!(chosen(&text), "10.0.0.1:8080* 10.0.0.2:8080 | 10.0.0.1:8080 10.0.0.2:8080");
}

#[test]
fn without_a_ready_one_those_that_serve_while_they_go_are_used() {
    let going = "{addresses: [10.0.0.1], conditions: {ready: false, serving: true, terminating: true}}";
    let gone = "{addresses: [10.0.0.2], conditions: {ready: false, serving: false, terminating: true}}";
    let starting = "{addresses: [10.0.0.3], conditions: {ready: false, serving: false}}";
    assert_eq!(chosen(&slice(&format!("[{going}, {gone}, {starting}]"))), "10.0.0.1:8080* | 10.0.0.1:8080");
    let ready = "{addresses: [10.0.0.4]}";
    assert_eq!(
        chosen(&slice(&format!("[{going}, {ready}]"))),
        "10.0.0.4:8080* | 10.0.0.1:8080 10.0.0.4:8080",
        "a ready one takes precedence, but connections to the other stay"
    );
    assert_eq!(chosen(&slice(&format!("[{gone}, {starting}]"))), " | ");
}

#[test]
fn an_endpoint_in_two_slices_counts_once() {
    let text = slice("[{addresses: [10.0.0.1], nodeName: n2, conditions: {ready: false}}]")
        + &slice("[{addresses: [10.0.0.1], nodeName: n2}, {addresses: [10.0.0.2, 10.0.0.3], nodeName: n2}]");
    assert_eq!(chosen(&text), "10.0.0.1:8080 10.0.0.2:8080 | 10.0.0.1:8080 10.0.0.2:8080");
}

#[test]
fn ports_meet_by_name_and_protocol() {
    let other = slice("[{addresses: [10.0.0.1]}]").replace("name: p,", "name: q,");
    assert_eq!(chosen(&other), " | ");
    let udp = slice("[{addresses: [10.0.0.1]}]").replace("port: 8080", "port: 8080, protocol: UDP");
    assert_eq!(chosen(&udp), " | ");
    let unnumbered = slice("[{addresses: [10.0.0.1]}]").replace("name: p, port: 8080", "name: p");
    assert_eq!(chosen(&unnumbered), " | ");
}

#[test]
fn the_other_family_and_host_names_are_not_used() {
    assert_eq!(chosen(&slice("[{addresses: ['fd00::1']}]").replace("IPv4", "IPv6")), " | ");
    assert!(slices(&slice("[{addresses: [example.org]}]").replace("IPv4", "FQDN")).is_empty());
    assert!(slices(&slice("[]").replace("kubernetes.io/service-name: s", "a: b")).is_empty());
}

#[test]
fn endpoints_may_have_subsets_with_different_ports() {
    let text = "{apiVersion: v1, kind: Endpoints, metadata: {name: s}, subsets: [\
        {addresses: [{ip: 10.0.0.1}], notReadyAddresses: [{ip: 10.0.0.2}], ports: [{name: p, port: 1}]}, \
        {addresses: [{ip: 10.0.0.3, nodeName: n2}], ports: [{name: p, port: 2}]}]}";
    assert_eq!(chosen(text), "10.0.0.1:1* 10.0.0.3:2 | 10.0.0.1:1 10.0.0.3:2");
    assert!(slices(text)[0].legacy);
}

#[test]
fn special_addresses_are_left_out_and_named() {
    let text = slice(
        "[{addresses: [127.0.0.1]}, {addresses: [10.0.0.1]}, {addresses: [0.0.0.0]}, {addresses: [224.0.0.1]}, \
         {addresses: [255.255.255.255]}, {addresses: [169.254.1.1]}, {addresses: [127.0.0.1]}]",
    );
    assert_eq!(chosen(&text), "10.0.0.1:8080* | 10.0.0.1:8080");
    let remark = |text: &str| crate::object::remark(&Manifest::read(text).unwrap().objects[0]);
    let expected = "0.0.0.0 is the unspecified address, 127.0.0.1 is a loopback address, 169.254.1.1 is a link-local \
                    address, 224.0.0.1 is a multicast address, 255.255.255.255 is the broadcast address: \
                    no endpoint can be that; it is served without";
    assert_eq!(remark(&text).as_deref(), Some(expected));
    assert_eq!(remark(&slice("[{addresses: [10.0.0.1]}, {addresses: []}]")), None);
    let legacy = "{apiVersion: v1, kind: Endpoints, metadata: {name: s}, subsets: [\
        {addresses: [{ip: 10.0.0.1}], notReadyAddresses: [{ip: '127.0.0.1'}], ports: [{name: p, port: 1}]}]}";
    assert_eq!(chosen(legacy), "10.0.0.1:1* | 10.0.0.1:1");
    assert!(remark(legacy).is_some());
}

#[test]
fn an_address_that_is_none_refuses_the_slice() {
    let manifest = Manifest::read(&slice("[{addresses: [10.0.0.300]}]")).unwrap();
    let Object::EndpointSlice(wire) = &manifest.objects[0] else { panic!("no slice") };
    assert_eq!(Slice::check(wire, &node()), Err("\"10.0.0.300\" is not an IP address".to_owned()));
}

use super::*;

fn read(text: &str) -> Manifest {
    Manifest::read(text).unwrap()
}

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {a: b}}
spec:
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7, 'fd00::7']
  type: NodePort
  somethingNew: {x: [1, 2]}
  ports:
  - {name: http, port: 80, targetPort: web, nodePort: 30080}
  - {name: dns, port: 53, protocol: UDP, targetPort: 5353}
";

#[test]
fn a_service_of_a_manifest_is_read_and_unknown_fields_are_passed_over() {
    let Object::Service(service) = &read(WEB).objects[0] else { panic!("no Service") };
    assert_eq!((service.metadata.namespace.as_str(), service.metadata.name.as_str()), ("shop", "web"));
    assert_eq!(service.spec.cluster_ips, ["10.96.0.7", "fd00::7"]);
    assert_eq!(service.spec.kind, "NodePort");
    assert_eq!((service.spec.ports[0].port, service.spec.ports[0].node_port), (80, 30080));
    assert_eq!((service.spec.ports[1].protocol.as_str(), service.spec.ports[1].node_port), ("UDP", 0));
}

#[test]
fn documents_lists_and_typed_lists_are_flattened_in_order() {
    let text = format!(
        "# a comment only\n---\n{WEB}---\napiVersion: v1\nkind: List\nitems:\n\
         - {{apiVersion: v1, kind: Node, metadata: {{name: n1}}, \
            status: {{addresses: [{{type: InternalIP, address: 10.0.0.1}}]}}}}\n\
         - {{apiVersion: apps/v1, kind: Deployment, metadata: {{name: d}}, spec: {{ports: no}}}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSliceList\nitems:\n\
         - {{metadata: {{name: s}}, addressType: IPv4, endpoints: null, ports: null}}\n"
    );
    let kinds: Vec<_> = read(&text)
        .objects
        .iter()
        .map(|o| match o {
            Object::Service(_) => "service",
            Object::Node(_) => "node",
            Object::EndpointSlice(_) => "slice",
            _ => "other",
        })
        .collect();
    assert_eq!(kinds, ["service", "node", "slice"]);
}

#[test]
fn json_is_read_as_kubectl_prints_it() {
    let text = r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Endpoints",
        "metadata":{"name":"kubernetes","namespace":"default"},
        "subsets":[{"addresses":[{"ip":"192.0.2.1"}],"ports":[{"name":"https","port":6443,"protocol":"TCP"}]}]}]}"#;
    let Object::Endpoints(endpoints) = &read(text).objects[0] else { panic!("no Endpoints") };
    assert_eq!(endpoints.subsets[0].addresses[0].ip, "192.0.2.1");
    assert_eq!(endpoints.subsets[0].ports[0].port, Some(6443));
}

#[test]
fn what_a_service_asks_for_in_vain_is_known() {
    let asked = |more: &str| {
        let text = format!("{{apiVersion: v1, kind: Service, metadata: {{name: s}}, spec: {{{more}}}}}");
        let Object::Service(service) = &read(&text).objects[0] else { panic!("no Service") };
        service.unserved().join(", ")
    };
    for nothing in [
        "sessionAffinity: None, internalTrafficPolicy: Cluster, externalTrafficPolicy: Cluster",
        "loadBalancerSourceRanges: []}, status: {loadBalancer: {}",
        "}, status: {loadBalancer: {ingress: [{hostname: lb.example}, {ip: 1.2.3.4, ipMode: Proxy}]}",
    ] {
        assert_eq!(asked(nothing), "", "{nothing}");
    }
    assert_eq!(
        asked("loadBalancerSourceRanges: [10.0.0.0/8]}, status: {loadBalancer: {ingress: [{ip: 1.2.3.4}]}"),
        "loadBalancerSourceRanges, status.loadBalancer.ingress"
    );
    assert_eq!(
        asked("sessionAffinity: ClientIP, externalIPs: [1.2.3.4]"),
        "sessionAffinity ClientIP, externalIPs"
    );
}

#[test]
fn a_service_of_another_group_is_not_ours() {
    let text =
        "{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: hello}, spec: {ports: 3}}";
    assert_eq!(read(text), Manifest::default());
}

#[test]
fn a_garbled_object_is_named_and_harms_no_other() {
    let bad = "{apiVersion: v1, kind: Service, metadata: {name: bad}, spec: {ports: [{port: eighty}]}}";
    let manifest = read(&format!("{WEB}---\n{bad}\n"));
    assert_eq!(manifest.objects.len(), 1);
    assert_eq!((manifest.bad[0].kind.as_str(), manifest.bad[0].name.as_str()), ("Service", "default/bad"));
    let why = "spec.ports[0].port: invalid type: string \"eighty\", expected i64";
    assert_eq!(manifest.bad[0].why, why);
    let empty = read(&bad.replace("name: bad", "name: bad, namespace: ''"));
    assert_eq!(empty.bad[0].name, "default/bad");
    let nameless = read("{apiVersion: v1, kind: Service, spec: {}}");
    assert_eq!(nameless.bad[0].why, "it has no metadata.name");
}

#[test]
fn a_broken_text_is_an_error_that_says_where() {
    for (text, expected) in [
        ("a: [1, 2\nb: 3", "document 1 is neither YAML nor JSON"),
        ("{\"apiVersion\": \"v1\",", "document 1 is neither YAML nor JSON"),
        ("kind: Service", "document 1 is no Kubernetes object: it has no apiVersion"),
        ("apiVersion: v1", "document 1 is no Kubernetes object: it has no kind"),
        (
            "{apiVersion: v1, kind: List, items: {a: b}}",
            "document 1 is no Kubernetes object: its items are not a list",
        ),
        (
            "{apiVersion: v1, kind: ServiceList, items: x}",
            "document 1 is no Kubernetes object: its items are not a list",
        ),
        ("just words", "document 1 is no Kubernetes object: it is not a mapping"),
    ] {
        assert_eq!(Manifest::read(text).unwrap_err().to_string(), expected, "{text}");
    }
    assert_eq!(read(""), Manifest::default());
}

proptest::proptest! {
    /// Whatever a file holds, it is read or refused.
    #[test]
    fn any_text_is_read_or_refused(text in ".{0,200}", cut in 0_usize..400) {
        let _ = Manifest::read(&text);
        let half: String = WEB.chars().take(cut).collect();
        let _ = Manifest::read(&half);
        let _ = Manifest::read(&(half + &text));
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_manifest() {
    for text in [
        "\u{feff}---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\n",
        "\u{feff}apiVersion: v1\r\nkind: Node\r\nmetadata: {name: n1}\r\n",
        "\u{feff}{\"apiVersion\": \"v1\", \"kind\": \"Node\", \"metadata\": {\"name\": \"n1\"}}",
    ] {
        assert_eq!(Manifest::read(text).unwrap().objects.len(), 1, "{text}");
    }
}

#[test]
fn a_manifest_is_cut_where_yaml_documents_begin() {
    for (text, expected) in [
        ("", vec![""]),
        ("a: 1\n", vec!["a: 1\n"]),
        ("---\na: 1\n--- # b\r\nb: 2\n---", vec!["---\na: 1\n", "--- # b\r\nb: 2\n---"]),
        ("a: |\n  ---\n----: 1\n", vec!["a: |\n  ---\n----: 1\n"]),
        ("%YAML 1.2\n---\na: 1\n", vec!["%YAML 1.2\n---\na: 1\n"]),
        ("{\"a\": 1}\n{\"a\": 2}\n", vec!["{\"a\": 1}\n{\"a\": 2}\n"]),
    ] {
        assert_eq!(pieces(text), expected);
    }
}

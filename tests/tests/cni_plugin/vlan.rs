//! VLANs: which ports are in which, who reaches whom, what stands at the gateway. On a kernel whose bridges don't
//! keep VLANs apart, each network that asks for them is refused instead, and the test says that it ends there.

use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Cmd, Netns, require_or_skip};

use crate::bed::{Bed, Who, addresses, call, device, with};

/// Whether this kernel knows VLANs of bridges. If not, `config` must be refused for `key` with that value, and
/// nothing be made.
fn known_or_refused(bed: &Bed, config: &Value, key: &str, value: &Value) -> Result<bool> {
    if Cmd::new("ip link add probe type bridge vlan_filtering 1").run()?.success() {
        Cmd::new("ip link del probe").ok()?;
        return Ok(true);
    }
    eprintln!(
        "SKIPPED but for the refusal: bridges of this kernel keep no VLANs apart (CONFIG_BRIDGE_VLAN_FILTERING)"
    );
    let pod = Netns::new()?;
    let refusal = (2, format!("unsupported value for key {key:?}: {value}"));
    for verb in ["ADD", "CHECK", "STATUS"] {
        assert_eq!(call(verb, &Who::new("refused", &pod), config).error(), refusal);
        assert_eq!(device(&bed.host, "br0")?, Value::Null);
        assert!(bed.veths()?.is_empty());
        assert!(["state", "networks", "flannel"].iter().all(|folder| !bed.path(folder).exists()));
    }
    call("DEL", &Who::new("refused", &pod), config).silent();
    Ok(false)
}

/// A network without addresses and with these keys.
fn cable(bed: &Bed, keys: &Value) -> Value {
    let base = json!({"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br0",
                      "stateDir": bed.path("state")});
    with(&base, keys)
}

/// The bridge test network in one VLAN.
fn in_vlan(bed: &Bed, vlan: u16, keys: &Value) -> Value {
    let subnet = format!("10.{vlan}.0.0/24");
    let network = json!({"name": format!("net{vlan}"), "vlan": vlan,
        "ipam": {"type": "host-local", "dataDir": bed.path("networks"), "ranges": [[{"subnet": subnet}]]}});
    with(&with(&bed.bridge(), &network), keys)
}

/// `port: vlan flags, ...` as `bridge vlan` shows it; P for PVID, u for untagged.
fn vlans_of(port: &str) -> Result<String> {
    let list = Cmd::new(format!("bridge -j -compressvlans vlan show dev {port}")).json()?;
    let all =
        list.as_array().and_then(|ports| ports.first()).and_then(|port| port["vlans"].as_array()).cloned();
    let text = |vlan: &Value| {
        let end = vlan["vlanEnd"].as_u64().map(|end| format!("-{end}")).unwrap_or_default();
        let flags = vlan["flags"].to_string();
        let marks = [("PVID", "P"), ("Egress Untagged", "u")]
            .map(|(flag, mark)| if flags.contains(flag) { mark } else { "" });
        format!("{}{end}{}", vlan["vlan"], marks.concat())
    };
    Ok(all.unwrap_or_default().iter().map(text).collect::<Vec<_>>().join(" "))
}

fn name_of(interface: &Value) -> &str {
    interface["name"].as_str().unwrap_or_default()
}

fn reaches(from: &Netns, words: &str) -> Result<bool> {
    Ok(from.cmd(format!("ping -n -c1 -W2 {words}")).run()?.success())
}

#[test]
fn a_port_is_in_the_vlans_asked_for_and_in_no_other() -> Result<()> {
    let Some(bed) = Bed::new("vlans")? else { return Ok(()) };
    let trunk = json!([{"id": 101}, {"minID": 200, "maxID": 210}]);
    let wholly = json!([{"minID": 1, "maxID": 4094}]);
    let cases = [
        (json!({"vlan": 100, "isGateway": true}), "100Pu"),
        (json!({"vlan": 100, "preserveDefaultVlan": true}), "1u 100Pu"),
        (json!({"vlan": 1}), "1Pu"),
        (json!({"vlanTrunk": trunk}), "1Pu 101 200-210"),
        (json!({"vlanTrunk": trunk, "vlan": 100}), "100Pu 101 200-210"),
        (json!({"vlanTrunk": trunk, "vlan": 100, "preserveDefaultVlan": true}), "1u 100Pu 101 200-210"),
        (json!({"vlanTrunk": trunk, "vlan": 205, "macspoofchk": true}), "101 200-204 205Pu 206-210"),
        (json!({"vlanTrunk": wholly}), "1Pu 2-4094"),
    ];
    let refused =
        |(keys, _): &(Value, &str), key: &str| known_or_refused(&bed, &cable(&bed, keys), key, &keys[key]);
    if !refused(&cases[3], "vlanTrunk")? | !refused(&cases[4], "vlan")? {
        return Ok(());
    }
    for version in ["0.3.0", "0.4.0", "1.0.0", "1.1.0"] {
        for (keys, ports) in &cases {
            let (pod, config) = (Netns::new()?, with(&cable(&bed, keys), &json!({"cniVersion": version})));
            let who = Who::new("c1", &pod);
            let result = call("ADD", &who, &config).result();
            assert_eq!(vlans_of(name_of(&result["interfaces"][1]))?, *ports, "{keys}");
            assert_eq!(result["interfaces"].as_array().map(Vec::len), Some(3));
            if version != "0.3.0" {
                call("CHECK", &who, &with(&config, &json!({"prevResult": result}))).silent();
            }
            call("DEL", &who, &config).silent();
        }
        let bridge = device(&bed.host, "br0")?;
        assert_eq!(bridge["linkinfo"]["info_data"]["vlan_filtering"], 1, "{bridge}");
        assert!(bed.veths()?.is_empty(), "{:?}", bed.veths()?);
        Cmd::new("ip link del br0").ok()?;
    }
    Ok(())
}

#[test]
fn pods_of_a_vlan_reach_each_other_and_its_gateway_alone() -> Result<()> {
    let Some(bed) = Bed::new("gateway")? else { return Ok(()) };
    let (first, second) = (in_vlan(&bed, 100, &json!({})), in_vlan(&bed, 200, &json!({})));
    if !known_or_refused(&bed, &first, "vlan", &json!(100))? {
        return Ok(());
    }
    let pods = [Netns::new()?, Netns::new()?, Netns::new()?];
    let result = call("ADD", &Who::new("c0", &pods[0]), &first).result();
    call("ADD", &Who::new("c1", &pods[1]), &first).result();
    call("ADD", &Who::new("c2", &pods[2]), &second).result();
    let names: Vec<&str> = result["interfaces"].as_array().into_iter().flatten().map(name_of).collect();
    assert!(matches!(names[..], ["br0", _, "eth0", "br0.100"]), "{names:?}");
    assert_eq!(result["ips"][0]["interface"], 2);
    let gateway = device(&bed.host, "br0.100")?;
    assert_eq!(addresses(&gateway), ["10.100.0.1/24"]);
    assert_eq!((&gateway["address"], &gateway["mtu"]), (&result["interfaces"][3]["mac"], &json!(1400)));
    assert!(addresses(&device(&bed.host, "br0")?).is_empty());
    assert_eq!(vlans_of(gateway["link"].as_str().unwrap_or_default())?, "100Pu");
    assert!(reaches(&pods[0], "10.100.0.1")? && reaches(&pods[0], "10.100.0.3")?);
    // Through the gateways, as between any two networks, and not beside them.
    assert!(reaches(&pods[0], "10.200.0.2")?);
    for pod in &pods {
        pod.cmd("ip route add 10.0.0.0/8 dev eth0").ok()?;
    }
    assert!(!reaches(&pods[0], "10.200.0.2")? && reaches(&pods[0], "10.100.0.3")?);
    Ok(())
}

#[test]
fn both_families_have_their_gateway_in_the_vlan() -> Result<()> {
    let Some(bed) = Bed::new("families")? else { return Ok(()) };
    let ranges = json!([[{"subnet": "10.100.0.0/24"}], [{"subnet": "fd99::/64"}]]);
    let ipam = json!({"type": "host-local", "dataDir": bed.path("networks"), "ranges": ranges});
    for (id, keys, port) in
        [("c1", json!({}), "100Pu"), ("c2", json!({"preserveDefaultVlan": true}), "1u 100Pu")]
    {
        let config = in_vlan(&bed, 100, &with(&keys, &json!({"ipam": ipam})));
        if !known_or_refused(&bed, &config, "vlan", &json!(100))? {
            return Ok(());
        }
        let pod = Netns::new()?;
        let who = Who::new(id, &pod);
        let result = call("ADD", &who, &config).result();
        assert_eq!(vlans_of(name_of(&result["interfaces"][1]))?, port);
        let gateway = device(&bed.host, "br0.100")?;
        assert_eq!(addresses(&gateway), ["10.100.0.1/24", "fd99::1/64"]);
        assert_eq!(vlans_of(gateway["link"].as_str().unwrap_or_default())?, port);
        assert!(reaches(&pod, "10.100.0.1")? && reaches(&pod, "fd99::1")?);
        call("CHECK", &who, &with(&config, &json!({"prevResult": result}))).silent();
        call("DEL", &who, &config).silent();
        // It stays, as the bridge does.
        Cmd::new("ip link del br0.100").ok()?;
    }
    Ok(())
}

#[test]
fn pods_without_a_vlan_go_on_beside_them() -> Result<()> {
    let Some(bed) = Bed::new("beside")? else { return Ok(()) };
    let pods = [Netns::new()?, Netns::new()?, Netns::new()?];
    let trunk = with(&bed.bridge(), &json!({"vlanTrunk": [{"id": 100}]}));
    if !known_or_refused(&bed, &trunk, "vlanTrunk", &trunk["vlanTrunk"])? {
        return Ok(());
    }
    call("ADD", &Who::new("c0", &pods[0]), &bed.bridge()).result();
    let result = call("ADD", &Who::new("c1", &pods[1]), &in_vlan(&bed, 100, &json!({}))).result();
    // It has the one of VLAN 1 for what has no tag.
    call("ADD", &Who::new("c2", &pods[2]), &trunk).result();
    for pod in [&pods[0], &pods[2]] {
        assert!(reaches(pod, "10.99.0.1")? && reaches(pod, "10.99.0.3")?);
        pod.cmd("ip route add 10.100.0.0/24 dev eth0").ok()?;
        assert!(!reaches(pod, "10.100.0.2")?);
    }
    assert_eq!(vlans_of("br0")?, "1Pu");
    let address = &result["interfaces"][0]["mac"];
    for (id, pod) in [("c0", &pods[0]), ("c2", &pods[2])] {
        call("DEL", &Who::new(id, pod), &bed.bridge()).silent();
    }
    assert_eq!(&device(&bed.host, "br0")?["address"], address);
    Ok(())
}

#[test]
fn of_many_first_pods_all_find_the_gateway() -> Result<()> {
    let Some(bed) = Bed::new("first")? else { return Ok(()) };
    let config = in_vlan(&bed, 100, &json!({}));
    if !known_or_refused(&bed, &config, "vlan", &json!(100))? {
        return Ok(());
    }
    let pods: Vec<Netns> = (0..12).map(|_| Netns::new()).collect::<Result<_>>()?;
    std::thread::scope(|scope| {
        for (number, pod) in pods.iter().enumerate() {
            let (who, config, host) = (Who::new(&format!("c{number}"), pod), &config, &bed.host);
            scope.spawn(move || {
                host.inside(|| call("ADD", &who, config).result()).expect("the namespace opens")
            });
        }
    });
    assert_eq!(bed.veths()?.len(), pods.len() + 2);
    for pod in &pods {
        assert!(reaches(pod, "10.100.0.1")?);
    }
    Ok(())
}

#[test]
fn a_trunk_carries_tagged_frames_of_its_vlans_alone() -> Result<()> {
    let Some(bed) = Bed::new("trunk")? else { return Ok(()) };
    let trunk = json!({"name": "trunk", "vlan": 300, "vlanTrunk": [{"minID": 99, "maxID": 101}], "macspoofchk": true});
    let trunk = cable(&bed, &trunk);
    if !known_or_refused(&bed, &trunk, "vlan", &json!(300))? {
        return Ok(());
    }
    let [inside, outside, mate, trunked] = [Netns::new()?, Netns::new()?, Netns::new()?, Netns::new()?];
    call("ADD", &Who::new("c1", &inside), &in_vlan(&bed, 100, &json!({}))).result();
    call("ADD", &Who::new("c2", &outside), &in_vlan(&bed, 200, &json!({}))).result();
    call("ADD", &Who::new("c3", &mate), &with(&trunk, &json!({"vlanTrunk": []}))).result();
    call("ADD", &Who::new("c4", &trunked), &trunk).result();
    let tagged = trunked.cmd("ip link add link eth0 name t100 type vlan id 100").ok();
    if require_or_skip("VLAN device (CONFIG_VLAN_8021Q)", tagged).is_none() {
        return Ok(());
    }
    trunked.cmd("ip link add link eth0 name t200 type vlan id 200").ok()?;
    for (name, address) in [("t100", "10.100.0.50"), ("t200", "10.200.0.50"), ("eth0", "10.30.0.1")] {
        trunked.cmd(format!("ip address add {address}/24 dev {name}")).ok()?;
        trunked.cmd(format!("ip link set {name} up")).ok()?;
    }
    mate.cmd("ip address add 10.30.0.2/24 dev eth0").ok()?;
    assert!(reaches(&trunked, "-I t100 10.100.0.2")? && reaches(&trunked, "-I t100 10.100.0.1")?);
    assert!(!reaches(&trunked, "-I t200 10.200.0.2")?);
    assert!(reaches(&trunked, "-I eth0 10.30.0.2")?);
    Ok(())
}

#[test]
fn what_is_no_longer_so_is_told_and_made_so_again() -> Result<()> {
    let Some(bed) = Bed::new("mended")? else { return Ok(()) };
    let config = in_vlan(&bed, 100, &json!({}));
    if !known_or_refused(&bed, &config, "vlan", &json!(100))? {
        return Ok(());
    }
    // One that others made, and that keeps nothing apart.
    Cmd::new("ip link add br0 type bridge").ok()?;
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let result = call("ADD", &who, &config).result();
    let near = name_of(&result["interfaces"][1]).to_owned();
    let port = device(&bed.host, "br0.100")?["link"].as_str().unwrap_or_default().to_owned();
    let breaks = [
        (
            format!("bridge vlan add dev {near} vid 7"),
            "is not in the VLANs it was put in",
            Some(format!("bridge vlan del dev {near} vid 7")),
        ),
        (format!("bridge vlan del dev {port} vid 100"), "is not in the VLANs it was put in", None),
        ("ip link set br0 type bridge vlan_filtering 0".to_owned(), "does not keep VLANs apart", None),
        (format!("ip link set {port} nomaster"), "does not lead to the bridge", None),
        (format!("ip link set {port} down"), "does not lead to the bridge", None),
        ("ip link del br0.100".to_owned(), "does not lead to the bridge", None),
    ];
    for (number, (broken, text, mended)) in breaks.iter().enumerate() {
        let check = || call("CHECK", &who, &with(&config, &json!({"prevResult": result})));
        check().silent();
        assert!(reaches(&pod, "10.100.0.1")?, "before {broken}");
        Cmd::new(broken).ok()?;
        let told = check().error().1;
        assert!(told.contains(text), "{broken}: {told}");
        match mended {
            Some(mended) => drop(Cmd::new(mended).ok()?),
            None => drop(call("ADD", &Who::new(&format!("more{number}"), &Netns::new()?), &config).result()),
        }
    }
    call("CHECK", &who, &with(&config, &json!({"prevResult": result}))).silent();
    call("STATUS", &who, &config).silent();
    Cmd::new("ip link del br0.100").ok()?;
    assert_eq!(call("STATUS", &who, &config).error().0, 51);
    Ok(())
}

#[test]
fn the_gateway_of_a_vlan_is_no_pod() -> Result<()> {
    let Some(bed) = Bed::new("owned")? else { return Ok(()) };
    let mut config = with(&bed.flannel()?, &json!({"cniVersion": "1.1.0"}));
    config["delegate"]["vlan"] = json!(100);
    config["delegate"]["bridge"] = json!("br0");
    if !known_or_refused(&bed, &config, "vlan", &json!(100))? {
        return Ok(());
    }
    let [first, second] = [Netns::new()?, Netns::new()?];
    call("ADD", &Who::new("c1", &first), &config).result();
    let gateway = || device(&bed.host, "br0.100").map(|gateway| addresses(&gateway));
    assert_eq!(gateway()?, ["10.42.3.1/24"]);
    let moved =
        "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.7.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=true\n";
    bed.dir.write("subnet.env", moved)?;
    let text = call("ADD", &Who::new("c2", &second), &config).error().1;
    let wanted = "\"br0.100\" already has an IP address different from 10.42.7.1/24: 10.42.3.1/24 is held by c1/eth0 of cbr0";
    assert_eq!(text, wanted);
    assert_eq!(call("STATUS", &Who::new("c1", &first), &config).error().0, 51);
    call("DEL", &Who::new("c1", &first), &config).silent();
    call("ADD", &Who::new("c2", &second), &config).result();
    assert_eq!(gateway()?, ["10.42.7.1/24"]);
    assert_eq!(device(&bed.host, "br0.100")?["mtu"], 1400);
    assert!(reaches(&second, "10.42.7.1")?);
    // Nobody's, so nothing that a runtime forgets may take it along.
    call("GC", &Who::new("", &second), &with(&config, &json!({"cni.dev/valid-attachments": []}))).silent();
    assert_eq!(gateway()?, ["10.42.7.1/24"]);
    Ok(())
}

//! A network as libcni runs it: a list of plugins, each of which hears what the ones before it answered.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Cmd, Netns};

use crate::bed::{Answer, Bed, Who, call_of, nobody, with};

/// The names under which the one program is found.
pub(crate) const NAMES: [&str; 7] =
    ["flannel", "bridge", "host-local", "portmap", "bandwidth", "loopback", "tuning"];

/// The versions of the specification.
pub(crate) const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A burst that containerd asks for with every rate.
const HUGE: u64 = 4_294_967_295;

/// No traces.
pub(crate) const NONE: &[String] = &[];

/// A list of plugins and what the runtime keeps between their calls.
pub(crate) struct Network<'a> {
    bed: &'a Bed,
    pub(crate) plugins: Vec<Value>,
    /// `runtimeConfig`, before it is cut to each plugin's capabilities.
    pub(crate) runtime: Value,
    /// The result of each ADD.
    results: BTreeMap<(String, String), Value>,
}

impl<'a> Network<'a> {
    /// One entry of type `flannel` that does it all.
    pub(crate) fn whole(bed: &'a Bed, version: &str) -> Result<Self> {
        let mut flannel = with(
            &bed.flannel()?,
            &json!({"cniVersion": version,
                    "capabilities": {"portMappings": true, "bandwidth": true, "ips": true}}),
        );
        flannel["delegate"]["ipMasq"] = true.into();
        Ok(Self::of(bed, vec![flannel]))
    }

    /// The classic chain, each plugin under its own name; from version 0.3.0.
    pub(crate) fn chain(bed: &'a Bed, version: &str) -> Self {
        let entry = |name: &str, more: Value| {
            let base =
                json!({"cniVersion": version, "name": "cbr0", "type": name, "stateDir": bed.path("state")});
            with(&base, &more)
        };
        let ipam = json!({"type": "host-local", "dataDir": bed.path("networks"),
            "ranges": [[{"subnet": "10.42.3.0/24"}]], "routes": [{"dst": "10.42.0.0/16"}]});
        let bridge = json!({"bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true, "ipMasq": true,
            "mtu": 1450, "capabilities": {"ips": true}, "ipam": ipam});
        let tuning =
            json!({"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "dataDir": bed.path("tuning")});
        Self::of(
            bed,
            vec![
                entry("bridge", bridge),
                entry("tuning", tuning),
                entry("bandwidth", json!({"capabilities": {"bandwidth": true}})),
                entry("portmap", json!({"capabilities": {"portMappings": true}})),
            ],
        )
    }

    /// Both forms, of a version that knows all verbs.
    pub(crate) fn both(bed: &'a Bed) -> Result<[Self; 2]> {
        Ok([Self::whole(bed, "1.1.0")?, Self::chain(bed, "1.1.0")])
    }

    /// Any list.
    pub(crate) fn of(bed: &'a Bed, plugins: Vec<Value>) -> Self {
        Self { bed, plugins, runtime: Value::Null, results: BTreeMap::new() }
    }

    /// The same list, with results of its own.
    pub(crate) fn of_same(other: &Self) -> Self {
        Self::of(other.bed, other.plugins.clone())
    }

    /// With a host port and both limits.
    pub(crate) fn asking(mut self, port: u16) -> Self {
        self.runtime = json!({
            "portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}],
            "bandwidth": {"ingressRate": 50_000_000, "ingressBurst": HUGE,
                          "egressRate": 60_000_000, "egressBurst": HUGE},
        });
        self
    }

    /// What libcni writes to a plugin's standard input.
    pub(crate) fn input(&self, index: usize, result: Option<&Value>) -> Value {
        let mut config = self.plugins[index].clone();
        let able: serde_json::Map<String, Value> = self
            .runtime
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, _)| config["capabilities"][key.as_str()] == true)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if !able.is_empty() {
            config["runtimeConfig"] = able.into();
        }
        if let Some(result) = result {
            config["prevResult"] = result.clone();
        }
        config
    }

    /// One call of one plugin, which is found by its type.
    pub(crate) fn call(&self, verb: &str, index: usize, who: &Who, result: Option<&Value>) -> Answer {
        let name = self.plugins[index]["type"].as_str().expect("a type");
        let program = self.bed.program(name).expect("a link");
        call_of(&program, verb, who, &self.input(index, result))
    }

    fn key(who: &Who) -> (String, String) {
        (who.id.clone(), who.ifname.clone())
    }

    /// ADD of each in order, until one fails; nothing is taken back.
    pub(crate) fn try_add(&mut self, who: &Who) -> Result<Value, Answer> {
        let mut result = None;
        for index in 0..self.plugins.len() {
            let answer = self.call("ADD", index, who, result.as_ref());
            if answer.code != Some(0) {
                return Err(answer);
            }
            result = Some(answer.result());
        }
        let result = result.expect("a plugin");
        self.results.insert(Self::key(who), result.clone());
        Ok(result)
    }

    /// ADD that has to succeed.
    #[track_caller]
    pub(crate) fn add(&mut self, who: &Who) -> Value {
        self.try_add(who).unwrap_or_else(|answer| panic!("{answer:?}"))
    }

    /// The result of the last ADD, if DEL and CHECK hear of it in this version.
    pub(crate) fn cached(&self, who: &Who) -> Option<&Value> {
        let tells = self.plugins[0]["cniVersion"].as_str() >= Some("0.4.0");
        self.results.get(&Self::key(who)).filter(|_| tells)
    }

    /// CHECK of each in order, until one fails.
    pub(crate) fn check(&self, who: &Who) -> Result<(), String> {
        let answers = (0..self.plugins.len()).map(|index| self.call("CHECK", index, who, self.cached(who)));
        for answer in answers {
            if answer.code != Some(0) {
                return Err(answer.error().1);
            }
            answer.silent();
        }
        Ok(())
    }

    /// DEL of each in reverse order, as runtimes do that kept the result.
    #[track_caller]
    pub(crate) fn del(&self, who: &Who) {
        self.del_with(who, self.cached(who));
    }

    /// DEL without a previous result.
    #[track_caller]
    pub(crate) fn del_bare(&self, who: &Who) {
        self.del_with(who, None);
    }

    /// DEL with this previous result.
    #[track_caller]
    pub(crate) fn del_with(&self, who: &Who, result: Option<&Value>) {
        for index in (0..self.plugins.len()).rev() {
            self.call("DEL", index, who, result).silent();
        }
    }

    /// GC of each; `valid` is the list of attachments as `(container, interface)`.
    #[track_caller]
    pub(crate) fn gc(&self, valid: &[(&str, &str)]) {
        let list: Vec<Value> =
            valid.iter().map(|(id, ifname)| json!({"containerID": id, "ifname": ifname})).collect();
        for index in 0..self.plugins.len() {
            self.gc_one(index, &json!({"cni.dev/valid-attachments": list, "cni.dev/attachments": list}))
                .silent();
        }
    }

    /// GC of one plugin with these keys.
    pub(crate) fn gc_one(&self, index: usize, keys: &Value) -> Answer {
        let name = self.plugins[index]["type"].as_str().expect("a type");
        let program = self.bed.program(name).expect("a link");
        call_of(&program, "GC", &nobody(), &with(&self.input(index, None), keys))
    }

    /// STATUS of each, until one fails.
    pub(crate) fn status(&self) -> Result<(), (u64, String)> {
        for index in 0..self.plugins.len() {
            let answer = self.call("STATUS", index, &nobody(), None);
            if answer.code != Some(0) {
                return Err(answer.error());
            }
            answer.silent();
        }
        Ok(())
    }
}

/// `who` with another interface.
pub(crate) fn on(who: &Who, ifname: &str) -> Who {
    Who { ifname: ifname.to_owned(), ..who.clone() }
}

/// Everything on the host that an attachment could leave: links, addresses, queues, rules, elements, files.
pub(crate) fn traces(bed: &Bed) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let list = |value: Value| value.as_array().cloned().unwrap_or_default();
    for link in list(Cmd::new("ip -j address show").json()?) {
        found.push(format!("link {}", link["ifname"]));
        let addresses = list(link["addr_info"].clone()).into_iter().filter(|a| a["scope"] == "global");
        found.extend(addresses.map(|a| format!("address {} of {}", a["local"], link["ifname"])));
    }
    for queue in list(Cmd::new("tc -j qdisc show").json()?) {
        found.push(format!("queue {} of {}", queue["kind"], queue["dev"]));
    }
    found.extend(nft_objects()?);
    files(bed.dir.path(), &mut found);
    found.sort();
    Ok(found)
}

/// What is there now and was not in `before`.
pub(crate) fn left(bed: &Bed, before: &[String]) -> Result<Vec<String>> {
    Ok(traces(bed)?.into_iter().filter(|line| !before.contains(line)).collect())
}

/// What is there now and was not in `before`, and what was there and is no more.
pub(crate) fn changes(bed: &Bed, before: &[String]) -> Result<Vec<String>> {
    let now = traces(bed)?;
    let gone = before.iter().filter(|line| !now.contains(line)).map(|line| format!("gone: {line}"));
    Ok(gone.chain(left(bed, before)?).collect())
}

/// The objects of nftables, an element each, without what packets and time change.
pub(crate) fn nft_objects() -> Result<Vec<String>> {
    let mut found = Vec::new();
    let ruleset = Cmd::new("nft -j list ruleset").json()?;
    for object in ruleset["nftables"].as_array().into_iter().flatten() {
        let mut object = object.clone();
        for (kind, body) in object.as_object_mut().into_iter().flatten() {
            let Some(body) = body.as_object_mut() else { continue };
            if kind == "metainfo" {
                continue;
            }
            body.remove("handle");
            let elements = body.remove("elem");
            let of = format!(
                "{} {}",
                body["family"],
                body.get("name").or_else(|| body.get("table")).unwrap_or(&Value::Null)
            );
            for element in elements.iter().flat_map(|e| e.as_array()).flatten() {
                found.push(format!("element of {of}: {}", without_counter(element)));
            }
            if kind != "rule" {
                found.push(format!("{kind} {of}"));
            } else {
                found.push(format!("rule of {of}: {}", without_counter(&body["expr"])));
            }
        }
    }
    Ok(found)
}

fn without_counter(value: &Value) -> Value {
    match value {
        Value::Array(all) => all.iter().map(without_counter).collect(),
        Value::Object(all) => {
            let kept = all.iter().filter(|(key, _)| !["counter", "expires"].contains(&key.as_str()));
            kept.map(|(key, value)| (key.clone(), without_counter(value))).collect()
        }
        other => other.clone(),
    }
}

fn files(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.path().is_dir() {
            found.push(format!("file {}", entry.path().display()));
        } else if entry.file_name() != "bin" {
            files(&entry.path(), found);
        }
    }
}

/// What is on the host once the network has been used: the bridge, the rules, the files that are nobody's.
pub(crate) fn used(network: &mut Network) -> Result<Vec<String>> {
    let pod = Netns::new()?;
    let who = Who::new("first", &pod);
    network.add(&who);
    network.del(&who);
    traces(network.bed)
}

/// Names of the links in a namespace.
pub(crate) fn links(ns: &Netns) -> Result<Vec<String>> {
    let list = ns.cmd("ip -j link show").json()?;
    let names = list.as_array().into_iter().flatten().filter_map(|l| l["ifname"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// Our program behind a script that first takes something away from it.
pub(crate) fn wrapped(bed: &Bed, name: &str, script: &str) -> Result<PathBuf> {
    let program = bed.program("flannel")?;
    let path =
        bed.dir.write(&format!("bin/{name}"), format!("#!/bin/sh\n{script} {}\n", program.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Our program where reservations can't be written or removed.
pub(crate) fn frozen(bed: &Bed) -> Result<PathBuf> {
    let script = "mount --bind $1 $1; mount -o remount,bind,ro $1; exec $2";
    let folder = bed.path("networks");
    wrapped(bed, "frozen", &format!("exec unshare --mount sh -c '{script}' sh {}", folder.display()))
}

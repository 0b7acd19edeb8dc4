//! A host for a runtime: namespaces of its own, the plugins as they are installed, an image, a node's
//! `subnet.env`.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::{Cmd, Process, Space, TempDir, bin, eventually, require_or_skip};

/// The image of all containers.
pub(crate) const IMAGE: &str = "localhost/pause:test";

/// Folders of plugins and networks of its own (podman's package makes `/etc/cni`), in a process
/// namespace: whatever a runtime starts ends with it.
const SETUP: &str = "set -e
mount -t tmpfs weft /etc/cni
mount -t tmpfs weft /opt
mkdir -p /opt/cni/bin /etc/cni/net.d
mount --bind \"$0/bin\" /opt/cni/bin
mount --bind \"$0/net.d\" /etc/cni/net.d
mkdir -p /run/flannel && cp \"$0/subnet.env\" /run/flannel/
echo inside
exec sleep infinity";

/// A layout of an OCI image with busybox alone, written to `$0/image.tar`.
const IMAGE_SETUP: &str = r#"set -e
cd "$0"
mkdir -p rootfs/bin rootfs/proc rootfs/sys rootfs/dev rootfs/etc rootfs/tmp layout/blobs/sha256
cp /bin/busybox rootfs/bin/
for name in sh ip sleep ping nc wget sysctl cat; do ln -s busybox rootfs/bin/$name; done
blob() { sum=$(sha256sum "$1" | cut -d' ' -f1); size=$(stat -c %s "$1"); mv "$1" layout/blobs/sha256/$sum; }
tar -C rootfs -cf layer .
blob layer; layer=$sum layer_size=$size
printf '{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/bin/sleep"],"Cmd":["100000"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' $layer > config
blob config
oci=application/vnd.oci.image
printf '{"schemaVersion":2,"mediaType":"%s.manifest.v1+json","config":{"mediaType":"%s.config.v1+json","digest":"sha256:%s","size":%s},"layers":[{"mediaType":"%s.layer.v1.tar","digest":"sha256:%s","size":%s}]}' $oci $oci $sum $size $oci $layer $layer_size > manifest
blob manifest
printf '{"schemaVersion":2,"manifests":[{"mediaType":"%s.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"io.containerd.image.name":"%s"}}]}' $oci $sum $size "$1" > layout/index.json
printf '{"imageLayoutVersion":"1.0.0"}' > layout/oci-layout
tar -C layout -cf image.tar oci-layout index.json blobs"#;

/// The host. Its first process leads all others.
pub(crate) struct Stage {
    inner: Process,
    pub(crate) space: Space,
    pub(crate) dir: TempDir,
}

impl Stage {
    /// A new host with `conflist` as its only network; `None` where this machine allows none.
    pub(crate) fn new(what: &str, conflist: &Value) -> Result<Option<Self>> {
        let dir = TempDir::new(what)?;
        let Some(space) = require_or_skip("namespaces", Space::new(what, dir.path(), false)) else {
            return Ok(None);
        };
        let path = dir.path().display().to_string();
        dir.write(
            "subnet.env",
            "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
        )?;
        let install = Cmd::new(bin("flannel").display().to_string()).arg("install");
        install
            .args(["--bin-dir".into(), format!("{path}/bin"), "--conf-dir".into(), format!("{path}/net.d")])
            .ok()?;
        dir.write("net.d/10-flannel.conflist", conflist.to_string())?;
        Cmd::new("sh -c").arg(IMAGE_SETUP).arg(&path).arg(IMAGE).ok()?;
        let setup =
            Cmd::new("unshare --mount --pid --fork --kill-child --mount-proc -- sh -c").arg(SETUP).arg(path);
        let mut inner = space.spawn(setup, dir.path().join("inner.log"))?;
        inner.wait_for_log("inside", Duration::from_secs(60))?;
        space.cmd("sysctl -qw net.ipv4.ip_forward=1").ok()?;
        Ok(Some(Self { inner, space, dir }))
    }

    /// The conflist that is shipped.
    pub(crate) fn shipped() -> Result<Value> {
        let path = testkit::workspace().join("manifests/10-flannel.conflist");
        Ok(serde_json::from_str(&fs::read_to_string(path)?)?)
    }

    /// The classic chain: one plugin after another.
    pub(crate) fn chain() -> Value {
        json!({
            "name": "cbr0", "cniVersion": "0.3.1", "plugins": [
                {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
                {"type": "portmap", "capabilities": {"portMappings": true}},
                {"type": "bandwidth", "capabilities": {"bandwidth": true}},
            ],
        })
    }

    /// The first process inside, by its number outside.
    fn first(&self) -> Result<String> {
        let unshare = self.inner.pid();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
        Ok(children.split_whitespace().next().context("the host has ended")?.to_owned())
    }

    /// Where the file that is `/path` inside can be reached from outside.
    pub(crate) fn file(&self, path: &str) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/root/{path}", self.first()?)))
    }

    /// Lets a command run inside.
    pub(crate) fn wrap(&self, cmd: Cmd) -> Result<Cmd> {
        let first = self.first()?;
        Ok(cmd.entering(["nsenter", "-t", &first, "-n", "-m", "-u", "-p", "--"].map(str::to_owned)))
    }

    /// A command, cut at white space, that runs inside.
    pub(crate) fn cmd(&self, line: &str) -> Result<Cmd> {
        self.wrap(Cmd::new(line))
    }

    /// Starts a long-running program inside.
    pub(crate) fn spawn(&self, cmd: Cmd, log: &str) -> Result<Process> {
        Process::spawn(&self.wrap(cmd)?, self.dir.path().join(log))
    }

    /// A path in the test's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the plugin made and has not removed: links, reservations, records, elements of nftables.
    pub(crate) fn leftovers(&self) -> Result<Vec<String>> {
        let links: Value = self.space.cmd("ip -j link show").json()?;
        let names = links.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str());
        let mut found: Vec<String> =
            names.filter(|name| !["lo", "cni0", "tunl0", "sit0"].contains(name)).map(str::to_owned).collect();
        let files =
            "find /var/lib/cni/networks /var/lib/cni/flannel /run/weft/attachments -type f 2>/dev/null; true";
        let files = self.wrap(Cmd::shell(files))?.ok()?.stdout;
        let kept = |line: &&str| {
            let name = line.rsplit('/').next().unwrap_or_default();
            name != "lock" && !name.starts_with("last_reserved_ip.") && !name.starts_with('.')
        };
        found.extend(files.lines().filter(kept).map(str::to_owned));
        let rules: Value = self.space.cmd("nft -j list ruleset").json()?;
        let objects = rules["nftables"].as_array().context("no rules")?;
        let elements = objects.iter().flat_map(|object| {
            let set = if object["set"].is_null() { &object["map"] } else { &object["set"] };
            set["elem"].as_array().cloned().unwrap_or_default()
        });
        found.extend(elements.map(|element| element.to_string()));
        Ok(found)
    }

    /// Nothing of the plugin's is left.
    pub(crate) fn is_clean(&self) -> Result<()> {
        let clean = || self.leftovers().ok().filter(Vec::is_empty);
        ensure!(eventually(Duration::from_secs(5), clean).is_some(), "left: {:?}", self.leftovers()?);
        Ok(())
    }
}

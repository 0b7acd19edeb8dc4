//! podman with `network_backend = "cni"`.

use anyhow::{Result, ensure};
use serde_json::json;
use testkit::Cmd;

use crate::stage::Stage;

/// Rule 67: a container with a published port gets an address, and nothing stays behind.
#[test]
fn rule_67_podman_run() -> Result<()> {
    let conflist = json!({
        "name": "n", "cniVersion": "0.4.0", "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
             "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}],
                      "ranges": [[{"subnet": "10.232.0.0/24", "gateway": "10.232.0.1"}]]}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "tuning"},
        ],
    });
    let Some(stage) = Stage::new("podman", &conflist)? else { return Ok(()) };
    let conf = stage.dir.write(
        "containers.conf",
        "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"/opt/cni/bin\"]\n\
         network_config_dir = \"/etc/cni/net.d\"\ndefault_network = \"n\"\n\
         [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
         [containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n",
    )?;
    let dir = stage.dir.path().display();
    let run = format!(
        "podman --runtime=runc --root {dir}/p/root --runroot {dir}/p/run --tmpdir {dir}/p/tmp --storage-driver vfs \
         run --rm --security-opt=apparmor=unconfined --ulimit nofile=1024:1024 \
         --ulimit nproc=1024:1024 -p 18082:80 --rootfs {dir}/rootfs"
    );
    let inside = "ip -o -4 addr show eth0; ip route; ping -c 1 -W 2 10.232.0.1";
    let run =
        Cmd::new(run).args(["/bin/sh", "-c", inside]).env("CONTAINERS_CONF", conf.display().to_string());
    let said = stage.wrap(run)?.ok()?.stdout;
    ensure!(said.contains("10.232.0.") && said.contains("1 packets received"), "{said}");
    stage.is_clean()
}

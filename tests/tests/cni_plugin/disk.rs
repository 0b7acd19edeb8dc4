//! Disks that take nothing: full ones and read-only ones.

use std::{fs, path::Path};

use anyhow::Result;
use serde_json::{Value, json};
use testkit::{Cmd, Netns};

use crate::bed::{Bed, Who, command, feed, with};

const FULL: [&str; 2] = ["head -c 1000000 /dev/zero > $DISK/fill 2> /dev/null", "rm $DISK/fill"];
const READ_ONLY: [&str; 2] = ["mount -o remount,ro $DISK", "mount -o remount,rw $DISK"];

/// ADD with a disk at `folder` that is made useless, ADD and DEL once it is mended. What the first ADD said and left,
/// and what the last DEL left on the disk.
fn attempt(
    bed: &Bed,
    who: &Who,
    config: &Value,
    folder: &str,
    [spoil, mend]: [&str; 2],
) -> Result<[String; 3]> {
    let disk = bed.path(folder);
    fs::create_dir_all(&disk)?;
    // The disk is there for this call alone.
    let script = format!(
        "DISK={}; cd {}; mount -t tmpfs -o size=32k none $DISK; cat > config; {spoil}
         timeout 15 {plugin} < config > said && exit 3
         {{ ip -br link show type veth; nft list ruleset | grep {}; find $DISK flannel networks state -type f; }} > left
         {mend}
         {plugin} < config > /dev/null || exit 4
         CNI_COMMAND=DEL {plugin} < config || exit 5
         find $DISK -type f > rest",
        disk.display(),
        bed.dir.path().display(),
        who.id,
        plugin = testkit::bin("flannel").display(),
    );
    let mut call = command(Path::new("/usr/bin/unshare"), "ADD", who);
    call.args(["-m", "--propagation", "private", "sh", "-c", &script]);
    let answer = feed(call, config.to_string().as_bytes());
    assert_eq!(answer.code, Some(0), "{folder}: {spoil}: {answer:?}");
    let read = |name: &str| fs::read_to_string(bed.path(name)).unwrap_or_default();
    Ok(["said", "left", "rest"].map(read))
}

#[test]
fn a_disk_that_takes_nothing_is_one_error_and_nothing_is_left() -> Result<()> {
    let Some(bed) = Bed::new("disk")? else { return Ok(()) };
    fs::create_dir_all(bed.path("networks"))?;
    let config = with(
        &bed.flannel()?,
        &json!({"capabilities": {"portMappings": true}, "runtimeConfig":
            {"portMappings": [{"hostPort": 18_080, "containerPort": 80, "protocol": "tcp"}]}}),
    );
    for folder in ["state", "networks", "flannel"] {
        for spoilt in [FULL, READ_ONLY] {
            let pod = Netns::new()?;
            let [said, left, rest] = attempt(&bed, &Who::new("c1", &pod), &config, folder, spoilt)?;
            let error: Value = serde_json::from_str(&said)?;
            let text = error["msg"].as_str().unwrap_or_default();
            let disk = bed.path(folder).display().to_string();
            let reason = if spoilt == FULL { "no space left on device" } else { "read-only file system" };
            assert!(error["code"] == 5 && text.contains(&disk) && text.contains(reason), "{error}");
            // Records, reservations and what was delegated are named by container or address.
            for (when, files) in [("the failure", left), ("DEL", rest)] {
                let strays = files.lines().filter(|line| {
                    ["c1", "/10.42.", ".boot_id.new"].iter().any(|stray| line.contains(stray))
                });
                assert_eq!(strays.collect::<Vec<_>>(), [""; 0], "after {when}, {folder}, {reason}");
            }
            assert!(bed.veths()?.is_empty());
            Cmd::new("ip link del cni0").run()?;
        }
    }
    Ok(())
}

//! The program itself: exit codes, and what it writes to its log.

use std::time::Duration;

use anyhow::Result;
use testkit::{Cmd, Space, TempDir, bin, require_or_skip};

fn flanneld(line: &str) -> Cmd {
    Cmd::new(bin("flanneld").display().to_string()).args(line.split_whitespace())
}

#[test]
fn a_wrong_command_line_ends_with_every_mistake_and_its_code() -> Result<()> {
    let ran = flanneld("-nope -healthz-port=x -ip-masq=maybe -subnet-lease-renew-margin=0")
        .env("FLANNELD_PUBLIC_IP", "maybe")
        .run()?;
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    for mistake in [
        "-nope: there is no such flag",
        "-healthz-port \"x\"",
        "-subnet-lease-renew-margin \"0\"",
        "-ip-masq \"maybe\"",
        "FLANNELD_PUBLIC_IP \"maybe\"",
    ] {
        assert!(ran.stderr.contains(mistake), "{mistake} is missing in\n{}", ran.stderr);
    }
    assert_eq!(flanneld("--subnet-lease-renew-margin 1440").run()?.code, Some(1));
    let version = flanneld("--version").run()?;
    assert_eq!((version.code, version.stdout.as_str()), (Some(0), ""));
    assert!(version.stderr.starts_with("flanneld 0."), "{}", version.stderr);
    let help = flanneld("-h").run()?;
    assert_eq!(help.code, Some(0));
    assert!(help.stdout.contains("-etcd-endpoints value  [FLANNELD_ETCD_ENDPOINTS]"), "{}", help.stdout);
    Ok(())
}

#[test]
fn trouble_with_etcd_is_one_line_and_the_password_is_in_none() -> Result<()> {
    let dir = TempDir::new("program")?;
    let Some(space) = require_or_skip("namespace", Space::new("lonely", dir.path(), false)) else {
        return Ok(());
    };
    space.cmd("ip link add up0 type veth peer name up1").ok()?;
    space.cmd("ip addr add 192.0.2.1/24 dev up0").ok()?;
    space.cmd("ip link set up0 up").ok()?;
    let words = "-etcd-username=flannel -etcd-password=hunter2 -healthz-ip=127.0.0.1 -healthz-port=8081 -v=10
        -etcd-endpoints=http://127.0.0.1:2379,http://127.0.0.2:2379 -iptables-resync=5 -iptables-resync=6";
    let mut flanneld = space.spawn(flanneld(words), dir.path().join("flanneld.log"))?;
    flanneld.wait_for_log("etcd does not answer", Duration::from_secs(10))?;
    std::thread::sleep(Duration::from_secs(5));
    let log = flanneld.log();
    let count = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!(count("etcd does not answer: http://127.0.0.1:2379: Connection refused"), 1, "{log}");
    assert_eq!(count("-iptables-resync has no effect"), 1, "{log}");
    assert!(!log.contains("hunter2"), "{log}");
    let health = get(&space, "/healthz")?;
    assert!(health.starts_with("HTTP/1.1 200 OK") && health.contains("\nflanneld is running\n"), "{health}");
    assert!(health.contains("etcd does not answer"), "{health}");
    let ready = get(&space, "/readyz")?;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("etcd does not answer"), "{ready}");
    assert_eq!(flanneld.terminate(Duration::from_secs(5))?, Some(0));
    Ok(())
}

/// An answer as it is on the wire.
fn get(space: &Space, path: &str) -> Result<String> {
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/8081; printf 'GET {path} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' >&3; cat <&3"
    );
    Ok(space.cmd("bash -c").arg(script).ok()?.stdout.replace('\r', ""))
}

//! Wiring pods: one process per ADD and DEL, ours beside Debian's plugins and the floor.
//!
//! All three get the same work (bridge, hairpin, MTU, address, default route; then also masquerading and one
//! port of the host) in nodes of their own; the two plugins get the same configuration. A floor process does
//! the kernel's part and nothing else.

mod side;

use std::{fmt::Write, fs, path::Path, time::Duration};

use anyhow::Result;
use linux::netns::Netns;
use testkit::{Cmd, TempDir};

use crate::report::{RUNS, Report, interleave};
use side::{Side, Work};

/// How many addresses are taken already; growth is part of the picture.
const TAKEN: [u32; 3] = [0, 5_000, 20_000];
/// Services of kube-proxy's shape that are in the kernel already.
const SERVICES: [u32; 2] = [0, 4_000];
/// Pods that come and go together.
const BURST: u32 = 100;

/// Measures the area.
pub(crate) fn run(report: &mut Report) -> Result<()> {
    start(report)?;
    for taken in TAKEN {
        let folder = TempDir::new("bench-pods")?;
        let sides = sides(folder.path(), Work::Plain)?;
        for name in ["ours", "debian"] {
            take(&folder.path().join(name).join(name), taken)?;
        }
        let at = if taken == 0 { String::new() } else { format!("-at-{taken}") };
        one_at_a_time(report, &sides, 4 * RUNS, &at)?;
        if taken == 0 {
            bursts(report, &sides, "")?;
        }
    }
    for services in SERVICES {
        let folder = TempDir::new("bench-pods")?;
        let sides = sides(folder.path(), Work::Full)?;
        for side in &sides {
            serve(side.node(), &folder, services)?;
        }
        // Debian's side takes seconds for each pod beside many Services.
        let (runs, beside) =
            if services == 0 { (4 * RUNS, String::new()) } else { (RUNS, format!("-beside-{services}")) };
        one_at_a_time(report, &sides, runs, &format!("-full{beside}"))?;
        if services == 0 {
            bursts(report, &sides, "-full")?;
        }
    }
    Ok(())
}

/// Ours, Debian's, the floor.
fn sides(folder: &Path, work: Work) -> Result<[Side; 3]> {
    Ok([Side::ours(folder, work)?, Side::debian(folder, work)?, Side::floor(work)?])
}

/// From start to exit of a process that has next to nothing to do.
fn start(report: &mut Report) -> Result<()> {
    let folder = TempDir::new("bench-start")?;
    let [ours, debian, floor] = sides(folder.path(), Work::Plain)?;
    let [ours, debian, floor] =
        interleave(16 * RUNS, [&mut || ours.version(), &mut || debian.version(), &mut || floor.version()])?;
    report.compare("plugin-start:debian", "ms", &ours, &debian);
    report.compare("plugin-start:floor", "ms", &ours, &floor);
    Ok(())
}

/// One pod after another comes and goes.
fn one_at_a_time(report: &mut Report, sides: &[Side; 3], runs: usize, at: &str) -> Result<()> {
    let (adds, dels) = measure(sides, runs, 1)?;
    compare(report, &format!("pod-add{at}"), &adds);
    compare(report, &format!("pod-del{at}"), &dels);
    Ok(())
}

/// Many pods come, 16 at a time, and go at once.
fn bursts(report: &mut Report, sides: &[Side; 3], work: &str) -> Result<()> {
    let (adds, dels) = measure(sides, RUNS, BURST)?;
    compare(report, &format!("pod-add-100-by-16{work}"), &adds);
    compare(report, &format!("pod-del-100-at-once{work}"), &dels);
    Ok(())
}

/// Samples in milliseconds of each side.
type Samples = [Vec<f64>; 3];

/// Samples of the coming and of the going of `count` pods.
fn measure([ours, debian, floor]: &[Side; 3], runs: usize, count: u32) -> Result<(Samples, Samples)> {
    let mut dels = [const { Vec::new() }; 3];
    let [our_dels, debian_dels, floor_dels] = &mut dels;
    let adds = interleave(
        runs,
        [&mut || ours.pods(count, our_dels), &mut || debian.pods(count, debian_dels), &mut || {
            floor.pods(count, floor_dels)
        }],
    )?;
    // The first of each was the warm-up.
    Ok((adds, dels.map(|samples| samples[1..].to_vec())))
}

fn compare(report: &mut Report, what: &str, [ours, debian, floor]: &[Vec<f64>; 3]) {
    report.compare(&format!("{what}:debian"), "ms", ours, debian);
    report.compare(&format!("{what}:floor"), "ms", ours, floor);
}

/// Takes the last addresses of the range, as host-local notes them.
fn take(folder: &Path, count: u32) -> Result<()> {
    fs::create_dir_all(folder)?;
    for number in 0..count {
        let address = std::net::Ipv4Addr::from(u32::from_be_bytes([10, 244, 255, 250]) - number);
        fs::write(folder.join(address.to_string()), format!("taken{number}\r\neth0"))?;
    }
    Ok(())
}

/// Fills the nat table as kube-proxy's iptables mode does: two chains and six rules a Service.
fn serve(node: &Netns, dir: &TempDir, services: u32) -> Result<()> {
    if services == 0 {
        return Ok(());
    }
    let (mut chains, mut rules) = (String::new(), String::new());
    for number in 0..services {
        let [_, _, high, low] = number.to_be_bytes();
        let (service, endpoint) = (format!("KUBE-SVC-{number:016}"), format!("KUBE-SEP-{number:016}"));
        write!(chains, ":{service} - [0:0]\n:{endpoint} - [0:0]\n")?;
        write!(
            rules,
            "-A KUBE-SERVICES -d 10.96.{high}.{low}/32 -p tcp -m tcp --dport 80 -j {service}\n\
             -A {service} ! -s 10.128.0.0/9 -d 10.96.{high}.{low}/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ\n\
             -A {service} -j {endpoint}\n\
             -A {endpoint} -s 10.128.{high}.{low}/32 -j KUBE-MARK-MASQ\n\
             -A {endpoint} -p tcp -m tcp -j DNAT --to-destination 10.128.{high}.{low}:8080\n"
        )?;
    }
    let text = format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n{chains}-A PREROUTING -j KUBE-SERVICES\n\
         -A OUTPUT -j KUBE-SERVICES\n-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n{rules}COMMIT\n"
    );
    let file = dir.write("services", text)?;
    let restore =
        Cmd::shell(format!("iptables-restore < {}", file.display())).limit(Duration::from_secs(120));
    node.enter(|| restore.ok().map(drop))?
}

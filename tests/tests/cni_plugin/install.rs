//! `flannel install`.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    thread,
};

use anyhow::Result;
use serde_json::Value;
use testkit::{Cmd, TempDir, bin};

const OTHERS: [&str; 6] = ["bandwidth", "bridge", "host-local", "loopback", "portmap", "tuning"];

fn install(dir: &TempDir, more: &str) -> Cmd {
    let (bins, confs) = (dir.path().join("a/bin"), dir.path().join("a/net.d"));
    Cmd::new(bin("flannel").display().to_string())
        .arg("install")
        .arg("--bin-dir")
        .arg(bins.display().to_string())
        .arg("--conf-dir")
        .arg(confs.display().to_string())
        .args(more.split_whitespace())
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = names.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// What the plugin says that it is without a verb.
fn about(program: &Path) -> Result<String> {
    Ok(Cmd::new(program.display().to_string()).ok()?.stderr)
}

#[test]
fn program_links_and_conflist_are_put_in_place() -> Result<()> {
    let dir = TempDir::new("install")?;
    let bins = dir.path().join("a/bin");
    for _ in 0..2 {
        install(&dir, "").ok()?;
        let mut all = OTHERS.to_vec();
        all.insert(2, "flannel");
        all.push("weft-cni");
        assert_eq!(names(&bins), all);
        assert_eq!(names(&dir.path().join("a/net.d")), ["10-flannel.conflist"]);
    }
    assert_eq!(fs::metadata(bins.join("flannel"))?.permissions().mode() & 0o7777, 0o755);
    for name in OTHERS {
        assert_eq!(fs::read_link(bins.join(name))?, Path::new("weft-cni"), "it may be mounted elsewhere");
        assert!(about(&bins.join(name))?.contains(&format!("plugin {name} ")));
    }
    let list: Value = serde_json::from_slice(&fs::read(dir.path().join("a/net.d/10-flannel.conflist"))?)?;
    assert_eq!(list["plugins"][0]["type"], "flannel");
    Ok(())
}

#[test]
fn a_flannel_that_is_copied_over_ours_is_none_of_the_others() -> Result<()> {
    let dir = TempDir::new("back")?;
    let bins = dir.path().join("a/bin");
    install(&dir, "").ok()?;
    let theirs = dir.write("flannel", "#!/bin/sh\n")?;
    // As the reference's DaemonSet does, also through a link.
    Cmd::new(format!("cp -f {} {}", theirs.display(), bins.join("flannel").display())).ok()?;
    for name in OTHERS {
        assert!(about(&bins.join(name))?.contains(&format!("plugin {name} ")));
    }
    install(&dir, "").ok()?;
    assert!(about(&bins.join("flannel"))?.contains("plugin flannel "));
    Ok(())
}

#[test]
fn another_packages_plugin_stays_unless_told_otherwise() -> Result<()> {
    let dir = TempDir::new("others")?;
    let theirs = dir.write("a/bin/portmap", "#!/bin/sh\n")?;
    dir.write("a/bin/flannel", "an earlier one")?;
    symlink("flannel", dir.path().join("a/bin/tuning"))?;
    let told = install(&dir, "").ok()?.stdout;
    assert!(told.contains("portmap: it is another package's"), "{told}");
    assert_eq!(fs::read_to_string(&theirs)?, "#!/bin/sh\n");
    assert!(about(&dir.path().join("a/bin/flannel"))?.contains("plugin flannel "));
    assert_eq!(
        fs::read_link(dir.path().join("a/bin/tuning"))?,
        Path::new("weft-cni"),
        "an earlier one's link"
    );
    install(&dir, "--replace").ok()?;
    assert_eq!(fs::read_link(&theirs)?, Path::new("weft-cni"));
    let refused = install(&dir, "--nonsense").run()?;
    assert!(refused.code == Some(1) && refused.stderr.contains("usage: flannel install"), "{refused}");
    Ok(())
}

#[test]
fn a_runtime_never_meets_half_a_file() -> Result<()> {
    let dir = TempDir::new("busy")?;
    install(&dir, "").ok()?;
    let program = dir.path().join("a/bin/bridge");
    let conflist = dir.path().join("a/net.d/10-flannel.conflist");
    thread::scope(|scope| {
        let writer = scope.spawn(|| (0..10).try_for_each(|_| install(&dir, "").ok().map(drop)));
        while !writer.is_finished() {
            let version = Cmd::shell(format!("CNI_COMMAND=VERSION exec {}", program.display()));
            version.ok()?;
            serde_json::from_slice::<Value>(&fs::read(&conflist)?)?;
        }
        writer.join().expect("no panic")
    })
}

#[test]
fn what_killed_installs_left_goes_and_several_at_once_are_one_after_another() -> Result<()> {
    let dir = TempDir::new("several")?;
    for left in ["bin/.flannel.new", "bin/.portmap.new", "net.d/.10-flannel.conflist.new"] {
        dir.write(&format!("a/{left}"), "half of it")?;
    }
    // Each with process numbers of its own, as containers have them.
    let several: Vec<_> = (0..8).map(|_| install(&dir, "").entering(["unshare", "-p", "-f"])).collect();
    thread::scope(|scope| {
        let all: Vec<_> = several.iter().map(|one| scope.spawn(|| one.ok().map(drop))).collect();
        all.into_iter().try_for_each(|one| one.join().expect("no panic"))
    })?;
    let all = [names(&dir.path().join("a/bin")), names(&dir.path().join("a/net.d"))].concat();
    assert!(all.len() == 9 && all.iter().all(|name| !name.starts_with('.')), "{all:?}");
    Ok(())
}

#[test]
fn who_asks_how_it_is_called_is_told() -> Result<()> {
    let dir = TempDir::new("usage")?;
    for asked in ["--help", "-h"] {
        let told = install(&dir, asked).ok()?.stdout;
        assert!(told.starts_with("usage: flannel install "), "{told}");
    }
    assert!(!dir.path().join("a").exists(), "nothing was done");
    Ok(())
}

#[test]
fn a_folder_in_the_way_is_told_before_anything_is_touched() -> Result<()> {
    for (taken, more) in [("bin/tuning", "--replace"), ("bin/flannel", ""), ("net.d/10-flannel.conflist", "")]
    {
        let dir = TempDir::new("folder")?;
        let before = dir.write(&format!("a/{taken}/file"), "")?;
        let theirs = dir.write("a/bin/portmap", "another's")?;
        let told = install(&dir, more).run()?;
        assert!(told.code == Some(1) && told.stderr.contains(&format!("{taken}: is a directory")), "{told}");
        assert!(before.exists() && fs::read(theirs)? == b"another's");
        let made = ["bin/flannel", "bin/bridge", "net.d/10-flannel.conflist"];
        let made = made.iter().filter(|name| **name != taken && dir.path().join("a").join(name).exists());
        assert_eq!(made.count(), 0, "{taken}");
    }
    let dir = TempDir::new("others")?;
    dir.write("a/bin/tuning/file", "")?;
    assert!(install(&dir, "").ok()?.stdout.contains("left alone"), "it is not to be replaced");
    Ok(())
}

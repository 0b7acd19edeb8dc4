//! Plugins of other packages that answer nothing, nonsense or never, or are not there any more.

use std::{
    fs,
    io::Write,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::{Netns, bin};

use crate::{
    bed::{Bed, Who, command, device, with},
    foreign::{ask, scripted, verbs},
};

#[test]
fn a_success_without_a_result_is_told_with_the_plugins_name_and_words() -> Result<()> {
    let Some(bed) = Bed::new("wordless")? else { return Ok(()) };
    let pod = Netns::new()?;
    let who = Who::new("c1", &pod);
    let ipam = with(&bed.bridge(), &json!({"ipam": {"type": "mine"}}));
    let delegate = with(&bed.flannel()?, &json!({"delegate": {"type": "mine"}}));
    for config in [ipam, delegate] {
        for (answer, said) in [
            ("exit 0", "it said nothing"),
            ("echo connected", "\"connected\""),
            ("echo 7", "\"7\""),
            ("printf '[]\\377'", "\"[]\u{fffd}\""),
        ] {
            scripted(&bed, "mine", answer)?;
            let wanted = format!("plugin mine succeeded but printed no result: {said}");
            assert_eq!(ask(&bed, "ADD", &who, &config).error(), (6, wanted));
        }
        for end in ["0", "3"] {
            let answer = format!("[ $CNI_COMMAND = ADD ] || exit 0; head -c 100000 /dev/zero; exit {end}");
            scripted(&bed, "mine", &answer)?;
            let (_, text) = ask(&bed, "ADD", &who, &config).error();
            assert!(
                text.starts_with("plugin mine ") && text.ends_with("\"...") && text.len() < 1000,
                "{text}"
            );
        }
        assert_eq!(device(&pod, "eth0")?, Value::Null);
        assert!(bed.records("net").is_empty() && bed.veths()?.is_empty());
        assert_eq!(verbs(&bed)[..2], ["ADD", "DEL"], "what it may have done is taken back");
    }
    scripted(&bed, "mine", "echo '{}'")?;
    let config = with(&bed.bridge(), &json!({"ipam": {"type": "mine"}}));
    let wanted = "plugin mine: IPAM plugin returned missing IP config";
    assert_eq!(ask(&bed, "ADD", &who, &config).error(), (999, wanted.into()));
    Ok(())
}

#[test]
fn a_plugin_that_hangs_ends_with_the_call_that_the_runtime_kills() -> Result<()> {
    let Some(bed) = Bed::new("hangs")? else { return Ok(()) };
    let (pod, number) = (Netns::new()?, bed.path("number"));
    scripted(&bed, "mine", &format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000", number.display()))?;
    let config = with(&bed.bridge(), &json!({"ipam": {"type": "mine"}}));
    let mut command = command(&bin("flannel"), "ADD", &Who::new("c1", &pod));
    command.env("CNI_PATH", bed.path("bin"));
    let mut child = command.spawn()?;
    child.stdin.take().context("a pipe")?.write_all(config.to_string().as_bytes())?;
    let start = Instant::now();
    while !number.exists() && start.elapsed() < Duration::from_secs(30) {
        sleep(Duration::from_millis(20));
    }
    let process = std::path::Path::new("/proc").join(fs::read_to_string(&number)?.trim()).join("cmdline");
    assert!(fs::read(&process)?.starts_with(b"sleep"));
    child.kill()?;
    child.wait()?;
    while fs::read(&process).is_ok_and(|line| line.starts_with(b"sleep")) {
        assert!(start.elapsed() < Duration::from_secs(60), "it is still there");
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn a_delegate_that_is_not_there_any_more_does_not_stop_del() -> Result<()> {
    let Some(bed) = Bed::new("unknown")? else { return Ok(()) };
    let config = bed.flannel()?;
    for kind in ["brigde", "flannel"] {
        let pod = Netns::new()?;
        let who = Who::new("c1", &pod);
        ask(&bed, "ADD", &who, &config).result();
        let garbled = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": kind,
            "dataDir": bed.path("flannel"), "subnetFile": bed.path("subnet.env")});
        bed.dir.write("flannel/c1", garbled.to_string())?;
        bed.program("flannel")?;
        ask(&bed, "DEL", &who, &config).silent();
        assert!(bed.veths()?.is_empty() && bed.reservations("cbr0").is_empty(), "{kind}");
        assert_eq!(fs::read_dir(bed.path("flannel"))?.count(), 0, "{kind}");
    }
    // What the configuration itself names has to be there.
    let gone = with(&config, &json!({"delegate": {"type": "brigde"}}));
    let scratch = bed.dir.write("flannel/c2", r#"{"cniVersion":"1.0.0","name":"cbr0","type":"brigde"}"#)?;
    let (code, text) = ask(&bed, "DEL", &Who::new("c2", &Netns::new()?), &gone).error();
    assert!(code == 999 && text.starts_with("failed to find plugin \"brigde\" in path ["), "{text}");
    assert!(scratch.exists());
    // ADD made nothing, so there is nothing that it would have to detach.
    let pod = Netns::new()?;
    let who = Who::new("c3", &pod);
    assert_eq!(ask(&bed, "ADD", &who, &gone).error(), (code, text));
    assert!(!bed.path("flannel/c3").exists());
    ask(&bed, "DEL", &who, &gone).silent();
    Ok(())
}

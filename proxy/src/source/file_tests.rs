use std::{fs, os::unix::fs::symlink, sync::mpsc};

use super::*;

/// A folder of its own that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("weft-proxy-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}}}\n"
    )
}

fn source(path: &Path) -> FileSource {
    FileSource::new(path.to_owned(), "n1".parse().unwrap())
}

fn names(source: &FileSource) -> Vec<String> {
    source.objects().keys().map(ToString::to_string).collect()
}

#[test]
fn a_folder_is_the_sum_of_its_manifests() {
    let folder = Folder::new("sum");
    folder.write("a.yaml", &service("a", "10.96.0.1"));
    folder.write("b.yml", &service("b", "10.96.0.2"));
    folder.write("c.json", r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"}}"#);
    folder.write("notes.txt", "not a manifest: [");
    folder.write(".draft.yaml", "not a manifest: [");
    let mut source = source(&folder.0);
    source.read(&Touched::All);
    assert_eq!(names(&source), ["Service default/a", "Service default/b", "Node default/n1"]);
    fs::remove_file(folder.0.join("b.yml")).unwrap();
    source.read(&Touched::Files([folder.0.join("a.yaml")].into()));
    assert_eq!(names(&source).len(), 3, "a file that went is gone once that is told");
    source.read(&Touched::All);
    assert_eq!(names(&source), ["Service default/a", "Node default/n1"]);
    assert_eq!(source.troubles().count(), 0);
}

#[test]
fn a_document_is_parsed_again_where_its_text_changed_or_something_is_wrong_with_it() {
    let folder = Folder::new("documents");
    let affine = service("c", "10.96.0.3").replace("spec: {", "spec: {sessionAffinity: ClientIP, ");
    let text = |ip| service("a", "10.96.0.1") + &service("b", ip) + &affine + &service("a", "10.96.0.1");
    folder.write("a.yaml", &text("10.96.0.2"));
    let mut source = source(&folder.0);
    for ip in ["10.96.0.2", "10.96.0.4", "10.96.0.5"] {
        folder.write("a.yaml", &text(ip));
        source.read(&Touched::All);
        assert_eq!(names(&source), ["Service default/a", "Service default/b", "Service default/c"]);
        let troubles: Vec<_> = source.troubles().collect();
        assert!(troubles.len() == 1 && troubles[0].contains("sessionAffinity ClientIP"), "{troubles:?}");
        let path = folder.0.join("a.yaml");
        let known = parse(&text(ip), source.files.get(&path)).unwrap();
        let known: Vec<_> = known.iter().map(|(_, parsed)| parsed.is_none()).collect();
        assert_eq!(known, [true, true, false, true]);
    }
    folder.write("a.yaml", &(text("10.96.0.5") + "---\napiVersion: [\n"));
    source.read(&Touched::All);
    let trouble = source.troubles().find(|trouble| trouble.contains("document 5"));
    assert!(trouble.as_ref().is_some_and(|trouble| trouble.contains("at line 11 ")), "{trouble:?}");
}

#[test]
fn a_file_that_does_not_parse_keeps_its_old_content() {
    let folder = Folder::new("broken");
    let path = folder.write("a.yaml", &service("a", "10.96.0.1"));
    let mut source = source(&folder.0);
    source.read(&Touched::All);
    folder.write("a.yaml", "apiVersion: [");
    folder.write("b.yaml", &service("b", "10.96.0.2"));
    source.read(&Touched::All);
    assert_eq!(names(&source), ["Service default/a", "Service default/b"]);
    let trouble = source.troubles().next().unwrap();
    assert!(
        trouble.starts_with(&format!("{}: document 1 is neither YAML nor JSON: ", path.display())),
        "{trouble}"
    );
    assert!(trouble.ends_with("; its last content stays in force"), "{trouble}");
    folder.write("a.yaml", &service("a", "10.96.0.1"));
    source.read(&Touched::All);
    assert_eq!(source.troubles().count(), 0);
}

#[test]
fn a_file_that_never_parsed_leaves_nothing_behind() {
    let folder = Folder::new("never");
    folder.write("a.yaml", &service("a", "10.96.0.1"));
    let path = folder.write("b.yaml", "a: [b");
    let mut source = source(&folder.0);
    source.read(&Touched::All);
    assert!(source.troubles().count() == 1 && !source.is_complete());
    fs::remove_file(&path).unwrap();
    source.read(&Touched::Files([path].into()));
    assert!(source.troubles().count() == 0 && source.is_complete());
    assert_eq!(names(&source), A);
}

/// Only reading a file tells that nothing is wrong with it any more.
#[test]
fn a_single_file_that_never_parsed_stays_unread_until_it_is_read() {
    let folder = Folder::new("single");
    let path = folder.write("a.yaml", "a: [b");
    let mut source = source(&path);
    source.read(&Touched::All);
    source.read(&Touched::Sweep); // somebody may be writing it
    source.read(&Touched::Files([folder.0.join("b.yaml")].into()));
    assert!(source.troubles().count() == 1 && !source.is_complete());
    fs::remove_file(&path).unwrap();
    source.read(&Touched::All);
    fs::write(&path, "a: [b").unwrap();
    source.read(&Touched::Sweep);
    assert!(source.troubles().count() == 1 && !source.is_complete());
    folder.write("a.yaml", &service("a", "10.96.0.1"));
    source.read(&Touched::All);
    assert!(source.troubles().count() == 0 && source.is_complete());
}

/// A clock that was wrong, or an archive, may have left such a time.
#[test]
fn a_file_from_the_future_is_read_by_the_second_sweep() {
    let folder = Folder::new("future");
    let path = folder.write("a.yaml", &service("a", "10.96.0.1"));
    let mut source = source(&folder.0);
    source.read(&Touched::All);
    source.read(&Touched::Sweep);
    folder.write("a.yaml", &service("b", "10.96.0.1"));
    let future = std::time::SystemTime::now() + Duration::from_secs(3600);
    fs::File::options().write(true).open(&path).unwrap().set_modified(future).unwrap();
    source.read(&Touched::Sweep);
    assert_eq!(names(&source), A, "somebody may be writing it");
    source.read(&Touched::Sweep);
    assert_eq!(names(&source), B);
}

#[test]
fn a_service_that_is_passed_over_says_nothing_about_others() {
    let folder = Folder::new("others");
    folder.write("a.yaml", &service("a", "127.0.0.1"));
    let mut source = source(&folder.0);
    source.read(&Touched::All);
    let about = |source: &FileSource, name: &str| source.is_complete_about(&ObjectName::new("", name));
    assert!(!source.is_complete() && !about(&source, "a") && about(&source, "b"));
    for unknown in ["a: [b", "{apiVersion: v1, kind: Service, spec: {}}"] {
        folder.write("b.yaml", unknown);
        source.read(&Touched::All);
        assert!(!about(&source, "b"), "{unknown}");
    }
}

#[test]
fn the_end_of_a_trouble_is_told_as_it_is() {
    let folder = Folder::new("end");
    let path = folder.write("a.yaml", &(service("a", "10.96.0.1") + &service("b", "127.0.0.1")));
    let mut source = source(&folder.0);
    source.read(&Touched::All);
    let file = path.display().to_string();
    let end = |source: &FileSource, of: &str| source.end_of(&format!("{file}{of}"));
    assert_eq!(end(&source, ""), None, "one of its objects is bad");
    assert_eq!(end(&source, ": Service default/a"), Some("fine now"));
    assert_eq!(end(&source, ": Service default/c"), Some("gone"));
    folder.write("a.yaml", &service("a", "10.96.0.1"));
    source.read(&Touched::All);
    assert_eq!(end(&source, ""), Some("fine now"));
    assert_eq!(end(&source, ": Service default/b"), Some("gone"));
    fs::remove_file(&path).unwrap();
    source.read(&Touched::All);
    assert_eq!(end(&source, ""), Some("gone"));
    assert_eq!(end(&source, ": Service default/a"), Some("gone"));
}

#[test]
fn an_object_that_turns_bad_stays_as_it_was_and_harms_no_other() {
    let folder = Folder::new("bad");
    let path = folder.write("a.yaml", &(service("a", "10.96.0.1") + &service("b", "10.96.0.2")));
    let mut source = source(&path);
    source.read(&Touched::All);
    let before = source.objects();
    folder.write(
        "a.yaml",
        &(service("a", "10.96.0.300") + &service("c", "10.96.0.3") + &service("d", "nonsense")),
    );
    source.read(&Touched::All);
    assert_eq!(names(&source), ["Service default/a", "Service default/c"]);
    let key = before.keys().next().unwrap();
    assert!(Arc::ptr_eq(&before[key], &source.objects()[key]));
    let troubles: Vec<_> = source.troubles().collect();
    assert!(
        troubles[0].ends_with("Service default/a: \"10.96.0.300\" is not an IP address; it stays as it was"),
        "{troubles:?}"
    );
    assert!(
        troubles[1].ends_with("Service default/d: \"nonsense\" is not an IP address; it is passed over"),
        "{troubles:?}"
    );
}

#[test]
fn a_service_that_asks_for_more_than_there_is_is_served_and_named() {
    let folder = Folder::new("unserved");
    folder.write("a.yaml", &service("a", "10.96.0.1").replace("ports:", "sessionAffinity: ClientIP, ports:"));
    let mut source = source(&folder.0);
    source.read(&Touched::All);
    assert_eq!(names(&source), A);
    let trouble = source.troubles().next().unwrap();
    assert!(
        trouble.ends_with(
            "a.yaml: Service default/a: sessionAffinity ClientIP: not in this version; it is served without"
        ),
        "{trouble}"
    );
}

#[test]
fn a_file_that_is_gone_or_not_there_yet_is_named() {
    let folder = Folder::new("gone");
    let path = folder.0.join("a.yaml");
    let mut source = source(&path);
    source.read(&Touched::All);
    assert!(source.troubles().next().unwrap().contains("failed to read it") && !source.was_seen());
    folder.write("a.yaml", &service("a", "10.96.0.1"));
    source.read(&Touched::All);
    assert!(source.troubles().count() == 0 && source.was_seen());
    fs::remove_file(&path).unwrap();
    source.read(&Touched::All);
    assert_eq!(names(&source), ["Service default/a"]);
    assert!(source.troubles().next().unwrap().ends_with("its last content stays in force"));
}

/// A watched source that is read whenever something is told.
struct Watched {
    source: FileSource,
    told: mpsc::Receiver<Touched>,
}

impl Watched {
    fn new(path: &Path) -> Self {
        let (tell, told) = mpsc::channel();
        watch(path.to_owned(), move |touched| drop(tell.send(touched))).unwrap();
        let mut source = source(path);
        source.read(&Touched::All);
        Self { source, told }
    }

    /// Reads what is told until the names are these; every state on the way must be one of `allowed`.
    fn becomes(&mut self, wanted: &[&str], allowed: &[&[&str]]) {
        let end = std::time::Instant::now() + Duration::from_secs(5);
        while names(&self.source) != wanted {
            let left = end.saturating_duration_since(std::time::Instant::now());
            let touched =
                self.told.recv_timeout(left).unwrap_or_else(|_| panic!("{:?}", names(&self.source)));
            self.source.read(&touched);
            let now = names(&self.source);
            assert!(now == wanted || allowed.iter().any(|allowed| now == *allowed), "{now:?} on the way");
        }
    }
}

const A: &[&str] = &["Service default/a"];
const B: &[&str] = &["Service default/b"];

#[test]
fn a_file_that_is_written_slowly_is_read_once_it_is_complete() {
    use std::io::Write;
    let folder = Folder::new("slow");
    let path = folder.write("a.yaml", &service("a", "10.96.0.1"));
    let mut watched = Watched::new(&path);
    let mut file = fs::File::create(&path).unwrap();
    for half in [&service("b", "10.96.0.1")[..30], &service("b", "10.96.0.1")[30..]] {
        std::thread::sleep(Duration::from_millis(60));
        file.write_all(half.as_bytes()).unwrap();
    }
    drop(file);
    watched.becomes(B, &[A]);
    assert_eq!(watched.source.troubles().count(), 0);
}

#[test]
fn a_file_that_an_editor_renames_and_writes_anew_is_never_absent() {
    let folder = Folder::new("editor");
    folder.write("a.yaml", &service("a", "10.96.0.1"));
    let mut watched = Watched::new(&folder.0);
    fs::rename(folder.0.join("a.yaml"), folder.0.join("a.yaml~")).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    folder.write("a.yaml", &service("b", "10.96.0.1"));
    watched.becomes(B, &[A]);
    folder.write("a.yaml.new", &service("a", "10.96.0.1"));
    fs::rename(folder.0.join("a.yaml.new"), folder.0.join("a.yaml")).unwrap();
    watched.becomes(A, &[B]);
    fs::remove_file(folder.0.join("a.yaml")).unwrap();
    watched.becomes(&[], &[A]);
}

#[test]
fn a_mounted_config_map_is_followed_through_its_links() {
    let folder = Folder::new("volume");
    let swap = |version: &str, text: &str| {
        fs::create_dir(folder.0.join(version)).unwrap();
        folder.write(&format!("{version}/a.yaml"), text);
        symlink(version, folder.0.join("..data_tmp")).unwrap();
        fs::rename(folder.0.join("..data_tmp"), folder.0.join("..data")).unwrap();
    };
    swap("..1", &service("a", "10.96.0.1"));
    symlink("..data/a.yaml", folder.0.join("a.yaml")).unwrap();
    let mut watched = Watched::new(&folder.0);
    let mut file = Watched::new(&folder.0.join("a.yaml"));
    assert_eq!(names(&file.source), A);
    swap("..2", &service("b", "10.96.0.1"));
    watched.becomes(B, &[A]);
    file.becomes(B, &[A]);
}

#[test]
fn a_link_to_a_file_elsewhere_is_followed() {
    let (folder, elsewhere) = (Folder::new("link"), Folder::new("elsewhere"));
    let target = elsewhere.write("real", &service("a", "10.96.0.1"));
    symlink(&target, folder.0.join("a.yaml")).unwrap();
    let mut watched = Watched::new(&folder.0);
    assert_eq!(names(&watched.source), A);
    elsewhere.write("draft", &service("b", "10.96.0.1"));
    fs::rename(elsewhere.0.join("draft"), &target).unwrap();
    watched.becomes(B, &[A]);
    elsewhere.write("real", &service("a", "10.96.0.1"));
    watched.becomes(A, &[B]);
}

#[test]
fn a_busy_folder_is_swept_all_the_same() {
    let folder = Folder::new("busy");
    let (tell, told) = mpsc::channel();
    let path = folder.write("a.yaml", &service("a", "10.96.0.1"));
    watch::sweeping(path, Duration::from_millis(200), move |touched| drop(tell.send(touched))).unwrap();
    let end = std::time::Instant::now() + Duration::from_secs(5);
    while told.try_recv().is_err() {
        assert!(std::time::Instant::now() < end);
        folder.write("other.yaml", "");
    }
}

#[test]
fn a_folder_that_appears_later_is_read() {
    let folder = Folder::new("later");
    let path = folder.0.join("manifests");
    let mut watched = Watched::new(&path);
    assert_eq!(watched.source.troubles().count(), 1);
    assert!(!watched.source.is_complete());
    fs::create_dir(&path).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    fs::write(path.join("a.yaml"), service("a", "10.96.0.1")).unwrap();
    watched.becomes(A, &[&[]]);
    assert!(watched.source.is_complete());
}

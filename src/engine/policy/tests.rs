//! Policies below FUSE: inheritance, the file, and what is wrong with it.

use super::*;
use crate::engine::io::HostFs;

fn pool() -> (tempfile::TempDir, Arc<dyn Fs>) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join(".clonefs/tmp")).unwrap();
    let fs: Arc<dyn Fs> = Arc::new(HostFs::open_dir(dir.path()).unwrap());
    (dir, fs)
}

fn set(policies: &Policies, path: &str, name: &str, value: impl Into<serde_json::Value>) -> Result<()> {
    let patch = Patch::from([(name.to_owned(), value.into())]);
    policies.change(Path::new(path), &patch, |_, _| Ok(()))
}

fn open(fs: &Arc<dyn Fs>) -> Policies {
    Policies::open(fs.clone(), false)
}

#[test]
fn settings_are_inherited_until_something_below_says_else() {
    let (_dir, fs) = pool();
    let policies = open(&fs);
    set(&policies, "", "deepen", "manual").unwrap();
    set(&policies, "vms/./lab/", "deepen", "idle").unwrap();
    set(&policies, "vms", "protect", true).unwrap();
    set(&policies, "vms/lab/free.img", "protect", false).unwrap();
    for policies in [&policies, &open(&fs)] {
        let deepen = |path: &str| policies.at(Path::new(path)).deepen;
        assert_eq!(deepen("other.img"), Some(When::Manual));
        assert_eq!(deepen("vms/lab"), Some(When::Idle));
        assert_eq!(deepen("vms/lab/deep/er.img"), Some(When::Idle));
        assert_eq!(deepen("vms/labx"), Some(When::Manual));
        assert!(policies.is_protected(Path::new("vms/lab/x")) && !policies.is_protected(Path::new("vms/lab/free.img")));
        assert!(
            !policies.is_protected(Path::new("vms/.x.clonefs-abcdef/y")) && policies.is_protected(Path::new("vms/.x"))
        );
        assert!(!policies.is_protected(Path::new("")) && policies.protects_below(Path::new("")));
        let explained = policies.explain(Path::new("vms/lab/free.img")).unwrap();
        assert_eq!(
            (explained["deepen"].from.as_str(), explained["protect"].from.as_str()),
            ("vms/lab", "vms/lab/free.img")
        );
    }
    set(&policies, "vms/lab", "deepen", serde_json::Value::Null).unwrap();
    assert_eq!(policies.at(Path::new("vms/lab")).deepen, Some(When::Manual));
    assert!(!policies.list().policies.contains_key("vms/lab"));
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let (dir, fs) = pool();
    let policies = open(&fs);
    set(&policies, "", "rate", "200M").unwrap();
    let before = std::fs::read(dir.path().join(PATH)).unwrap();
    let bad: [(&str, &str, serde_json::Value); 7] = [
        ("", "colour", "red".into()),
        ("", "deepen", "soon".into()),
        ("", "protect", "perhaps".into()),
        ("vms", "rate", "1M".into()),
        ("../x", "protect", true.into()),
        ("/x", "protect", true.into()),
        ("x", "snapshots", "hourly=0".into()),
    ];
    for (path, name, value) in bad {
        let error = set(&policies, path, name, value).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
    }
    let refuse = |_: &Policy, _: &Policy| Err(Error::new(Kind::Busy, "test"));
    let patch = Patch::from([("protect".to_owned(), true.into())]);
    assert_eq!(policies.change(Path::new("x"), &patch, refuse).unwrap_err().kind(), Kind::Busy);
    assert_eq!(std::fs::read(dir.path().join(PATH)).unwrap(), before);
    assert_eq!(policies.list().policies.len(), 1);
}

#[test]
fn a_bad_file_is_named_by_line_and_column_and_the_last_good_one_stays() {
    let (dir, fs) = pool();
    let policies = open(&fs);
    set(&policies, "gold", "protect", true).unwrap();
    let file = dir.path().join(PATH);
    let bad = "{\n  \"format\": 1,\n  \"policies\": {\n    \"gold\": { \"protct\": true }\n  }\n}\n";
    for (text, says) in [
        (bad, "line 4 column"),
        ("{\n\"format\": 1, \"policies\": {\".\": {\"deepen\": \"soon\"}}}", "line 2 column"),
        ("{\"format\": 2, \"policies\": {}}", "format is 2"),
        ("{\"format\": 1, \"policies\": {\"a/../b\": {}}}", "a/../b"),
        ("", "line 1 column 0"),
    ] {
        std::fs::write(&file, text).unwrap();
        policies.refresh(false);
        for policies in [&policies, &open(&fs)] {
            let trouble = policies.trouble().unwrap();
            assert!(trouble.contains(says) && trouble.contains(PATH), "{trouble}");
            assert!(policies.is_protected(Path::new("gold/base.img")));
            // What somebody has written by hand is not thrown away.
            assert_eq!(set(policies, "x", "protect", true).unwrap_err().kind(), Kind::Damaged);
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        }
    }
    std::fs::write(&file, "{\"format\": 1, \"policies\": {}}").unwrap();
    assert!(policies.refresh(false) && policies.trouble().is_none());
    assert!(!policies.is_protected(Path::new("gold/base.img")));
    assert!(!policies.refresh(false));
}

#[test]
fn a_pool_without_policies_gets_no_file() {
    let (dir, fs) = pool();
    let policies = open(&fs);
    assert_eq!(policies.at(Path::new("x")), Policy::default());
    assert_eq!(std::fs::read_dir(dir.path().join(".clonefs")).unwrap().count(), 1);
}

//! Rules about the source itself: imports run one way, files stay small, sources are ASCII.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Rank of each module: it may use modules of a lower rank only. `protocol`, `units`, `error` and `sync` are for all. The
/// rooms `engine` and `daemon` are looked at module by module.
const RANKS: &[(&str, u32)] = &[
    ("io", 1),
    ("note", 2),
    ("store", 2),
    ("layer", 3),
    ("events", 3),
    ("policy", 3),
    ("volume", 4),
    ("pool", 5),
    ("namespace", 6),
    ("compactor", 7),
    ("engine", 8),
    ("fuse", 9),
    ("mount", 10),
    ("daemon", 11),
    ("client", 12),
    ("vm", 13),
    ("cli", 14),
];
const ROOMS: &[&str] = &["engine", "daemon"];
const FOR_ALL: &[&str] = &["units", "error", "protocol", "sync"];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("the source directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn all() -> Vec<(PathBuf, String)> {
    all_below("src")
}

/// The sources below a directory of the project.
fn all_below(directory: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(directory), &mut found);
    assert!(found.len() > 3, "only {} sources found in {directory}", found.len());
    found.into_iter().map(|p| (p.clone(), std::fs::read_to_string(p).expect("a readable source"))).collect()
}

/// The module that a source file belongs to.
fn module_of(path: &Path) -> String {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let inside = path.strip_prefix(src).expect("below src").with_extension("");
    let mut names = inside.iter().map(|name| name.to_string_lossy().into_owned());
    let first = names.next().expect("a name");
    let room = ROOMS.contains(&first.as_str());
    names.next().filter(|second| room && second != "mod").unwrap_or(first)
}

/// Modules of this crate that a text names by `crate::NAME` or `crate::ROOM::NAME`.
fn uses(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for line in text.lines().filter(|l| !l.trim_start().starts_with("//")) {
        for part in line.split("crate::").skip(1) {
            let mut path = part.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).next();
            let mut path = path.take().unwrap_or_default().split("::").filter(|name| !name.is_empty());
            let first = path.next().unwrap_or_default();
            let second = path.next().filter(|_| ROOMS.contains(&first));
            names.push(second.unwrap_or(first).to_owned());
        }
    }
    names
}

#[test]
fn imports_run_one_way() {
    let ranks: BTreeMap<&str, u32> = RANKS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (path, text) in all() {
        let module = module_of(&path);
        if matches!(module.as_str(), "lib" | "main") {
            continue;
        }
        let rank = ranks.get(module.as_str()).copied();
        if rank.is_none() && !FOR_ALL.contains(&module.as_str()) {
            wrong.push(format!("{} is in no module with a rank", path.display()));
            continue;
        }
        for used in uses(&text) {
            let Some(other) = ranks.get(used.as_str()) else { continue };
            if used != module && *other >= rank.unwrap_or(0) {
                wrong.push(format!("{} uses {used}", path.display()));
            }
        }
    }
    wrong.dedup();
    assert!(wrong.is_empty(), "imports that run the wrong way:\n{}", wrong.join("\n"));
}

#[test]
fn sources_are_ascii() {
    for (path, text) in all() {
        let line = text.lines().position(|l| !l.is_ascii());
        assert_eq!(line, None, "{} has a character that is not ASCII (line counted from 0)", path.display());
    }
}

#[test]
fn files_stay_readable() {
    let mut long = Vec::new();
    for (directory, most) in [("src", 500), ("tests", 500), ("tools", 500), ("benches", 500)] {
        for (path, text) in all_below(directory) {
            let lines = text.lines().count();
            if lines > most {
                long.push(format!("{} has {lines} lines, more than {most}", path.display()));
            }
        }
    }
    assert!(long.is_empty(), "split by idea:\n{}", long.join("\n"));
}

#[test]
fn the_architecture_names_every_module() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let page = std::fs::read_to_string(page).expect("ARCHITECTURE.md");
    for (path, _) in all() {
        let module = module_of(&path);
        assert!(
            matches!(module.as_str(), "lib" | "main") || page.contains(&format!("`{module}`")),
            "{module} is missing"
        );
    }
}

/// Functions below the directories of tests.
fn tests_of(directory: &Path, names: &mut String) {
    for entry in std::fs::read_dir(directory).expect("directory").map(|entry| entry.expect("entry").path()) {
        if entry.is_dir() {
            tests_of(&entry, names);
        } else if entry.extension().is_some_and(|e| e == "rs") {
            names.push_str(&std::fs::read_to_string(&entry).expect("source"));
        }
    }
}

#[test]
fn every_promise_and_every_rule_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = String::new();
    for directory in ["tests", "src", "tools"] {
        tests_of(&root.join(directory), &mut sources);
    }
    for (page, least) in [("docs/guarantees.md", 40), ("docs/ordering.md", 30)] {
        names_tests_that_exist(page, least, &sources);
    }
}

fn names_tests_that_exist(name: &str, least: usize, sources: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join(name)).expect(name);
    let words = page.split('`').skip(1).step_by(2);
    // Functions of the sources have shorter names.
    let names: Vec<&str> = words
        .filter(|word| {
            let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            word.matches('_').count() >= 2 && word.chars().all(letter)
        })
        .collect();
    assert!(names.len() > least, "{} names in {name}", names.len());
    for test in names {
        assert!(sources.contains(&format!("fn {test}(")), "{name} names {test}, which is no test");
    }
}

/// Numbers of rules that a text cites: an R or an E and digits, not within a word.
fn rules_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let rule = |word: &&str| {
        let digits = word.strip_prefix(['R', 'E']).unwrap_or_default();
        (1..=2).contains(&digits.len()) && digits.chars().all(|c| c.is_ascii_digit())
    };
    words.filter(rule).map(str::to_owned).collect()
}

#[test]
fn every_rule_that_is_cited_is_defined() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ordering.md");
    let page = std::fs::read_to_string(page).expect("docs/ordering.md");
    let defined = |rule: &str| page.contains(&format!("\n### {rule}. ")) || page.contains(&format!("\n**{rule}. "));
    for number in 1..=16 {
        assert!(defined(&format!("R{number}")), "R{number} has no section in docs/ordering.md");
    }
    let mut cited = BTreeSet::new();
    for directory in ["src", "tests", "tools"] {
        for (path, text) in all_below(directory) {
            let comments = text.lines().filter_map(|line| line.split_once("//")).map(|(_, comment)| comment);
            for rule in comments.flat_map(rules_in) {
                assert!(defined(&rule), "{} cites {rule}, which docs/ordering.md does not define", path.display());
                cited.insert(rule);
            }
        }
    }
    assert!(cited.len() > 10, "only {cited:?}");
}

/// A layer that was made without its pool's environment would not note its changes, and a kill would cost them.
#[test]
fn layers_of_a_pool_are_made_through_its_environment() {
    for (path, text) in all() {
        let at_home = module_of(&path) == "layer" || path.ends_with("volume/env.rs");
        for call in ["Layer::fresh(", "Layer::open_frozen(", "Layer::open_top("] {
            assert!(at_home || !text.contains(call), "{}: {call}", path.display());
        }
    }
}

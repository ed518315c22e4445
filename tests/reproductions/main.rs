//! The table of faults that were found by use and attack (`table`, beside this file): every test that it names is there,
//! so that `scripts/test repro`, which runs them, runs what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A line of the table.
struct Fault {
    number: u32,
    name: String,
    /// Names of tests by what they stand behind: nothing, `root` or `user`.
    tests: BTreeMap<String, Vec<String>>,
}

impl Fault {
    fn read(line: &str) -> Fault {
        let mut words = line.split_whitespace();
        let number = words.next().and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no number: {line}"));
        let name = words.next().unwrap_or_else(|| panic!("no name: {line}")).to_owned();
        let mut tests = BTreeMap::new();
        for word in words {
            let (who, names) = word.split_once('=').unwrap_or(("", word));
            let names = names.split(',').filter(|name| *name != "-").map(str::to_owned).collect();
            assert!(tests.insert(who.to_owned(), names).is_none(), "twice: {line}");
        }
        Fault { number, name, tests }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn table() -> Vec<Fault> {
    let text = std::fs::read_to_string(root().join("tests/reproductions/table")).expect("the table");
    text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(Fault::read).collect()
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory of sources").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Names of all functions that are marked as tests.
fn tests() -> BTreeSet<String> {
    let mut files = Vec::new();
    ["src", "tests", "tools"].iter().for_each(|directory| sources(&root().join(directory), &mut files));
    let mut names = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a source");
        // Other attributes and comments can stand between the mark and the function, and proptest! has its own indentation.
        for part in text.split("#[test]").skip(1) {
            let name = part.split_once("fn ").map_or("", |(_, rest)| rest);
            names.extend(name.split(['(', '<']).next().map(str::to_owned));
        }
    }
    names
}

#[test]
fn every_test_that_the_table_names_is_there() {
    let there = tests();
    assert!(there.contains("every_test_that_the_table_names_is_there"));
    for fault in table() {
        for name in fault.tests.values().flatten() {
            assert!(there.contains(name), "{:02} {}: there is no test {name}", fault.number, fault.name);
        }
    }
}

#[test]
fn every_fault_stands_in_the_table_once_and_says_what_its_tests_need() {
    let table = table();
    let numbers: Vec<u32> = table.iter().map(|fault| fault.number).collect();
    assert!(numbers.is_sorted_by(|one, two| one < two), "{numbers:?}");
    assert_eq!(numbers.len(), 36);
    for fault in table {
        let who: Vec<&str> = fault.tests.keys().map(String::as_str).collect();
        let about_rights = [2, 36, 40, 41].contains(&fault.number);
        let expected: &[&str] = if about_rights { &["root", "user"] } else { &[""] };
        assert_eq!(who, expected, "{:02} {}", fault.number, fault.name);
    }
}

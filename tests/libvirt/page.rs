//! docs/domain.md, line by line: every command that it shows is run, on a host as the page has it.

use std::path::Path;

use crate::guest::{Tiny, disk};
use crate::host::{self, Host};
use crate::support::noise;

/// A file of the project.
fn text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("a file of the project")
}

/// The lines of the page's examples, without their comments.
fn lines() -> Vec<String> {
    let page = text("docs/domain.md");
    let blocks = page.split("\n```\n").skip(1).step_by(2);
    let lines = blocks.flat_map(str::lines).map(|line| line.split("  #").next().unwrap_or(line).trim().to_owned());
    lines.filter(|line| !line.is_empty()).collect()
}

#[test]
fn every_line_of_the_page_does_what_it_says() {
    if !host::ready() {
        return;
    }
    let host = Host::without_pool();
    let tiny = Tiny::new(&host);
    // The page's directory, in this namespace alone.
    let srv = host.outside("srv");
    host.shell(&format!("mkdir -p {srv}/vms; mount --bind {srv} /srv"));
    let programs = Path::new(env!("CARGO_BIN_EXE_clonefs")).parent().expect("a directory");
    let sh = |line: &str| host.shell(&format!("PATH={}:$PATH; {line}", programs.display()));
    let lines = lines();
    assert!(lines.len() >= 7 && lines.iter().any(|l| l.starts_with("clonefs domain clone")), "{lines:?}");
    for line in &lines {
        if line.starts_with("clonefs domain clone") && !host.domains().contains(&"golden".to_owned()) {
            for name in ["golden", "db"] {
                let image = format!("/srv/vms/{name}.img");
                host.write(&image, &noise(1, 1 << 20));
                host.define(&tiny.domain(name, "job=idle", &disk(&image, "raw", "vda")));
            }
            sh("virsh -q start db");
        }
        if line.starts_with("virsh pool-define-as") {
            // "Or by hand": instead of the line before.
            sh("virsh -q pool-destroy vms; virsh -q pool-undefine vms");
        }
        // Twenty machines are more than this one has room for.
        let line = line.replace("--count 20 --start", "--count 2 --start");
        let line = if line.ends_with("web1 --dry-run") { line.replace("web1", "web2") } else { line };
        sh(&line);
    }
    assert_eq!(host.domains(), ["db", "db-test", "golden", "vm1", "vm2", "web1", "web1-then"]);
    assert!(sh("virsh -q vol-list vms").contains("web1.img"));
    for name in ["vm1", "vm2"] {
        assert_eq!(sh(&format!("virsh -q domstate {name}")).trim(), "running");
    }
    sh("clonefs doctor /srv/vms; clonefs doctor web1");
}

/// The tables of the page name a test for each thing that they say of clonefs.
#[test]
fn every_test_that_the_page_names_is_there() {
    let page = text("docs/domain.md");
    let mut named = 0;
    let rows = page.split("\n\n").filter(|table| table.lines().next().is_some_and(|head| head.ends_with(" test |")));
    for row in rows.flat_map(|table| table.lines().skip(2)) {
        let cell = row.trim_end_matches(" |").rsplit("| ").next().expect("a cell");
        assert!(cell.starts_with('`') || cell.starts_with("the same"), "no test: {row}");
        // `file.rs`: `name_of_a_test`, `of_another`; without a file it is one of the table's own.
        let mut sources = text("src/vm/tests.rs");
        for word in cell.split('`').skip(1).step_by(2) {
            match word.strip_suffix(".rs") {
                Some(_) => sources = text(Path::new("tests/libvirt").join(word)),
                None => {
                    // The first table names those of tests/libvirt/clone.rs without the file too.
                    let found = [&sources, &text("tests/libvirt/clone.rs"), &text("tests/libvirt/refused.rs")]
                        .iter()
                        .any(|source| source.contains(&format!("#[test]\nfn {word}() {{")));
                    assert!(found, "no test {word}: {row}");
                    named += 1;
                }
            }
        }
    }
    assert!(named > 40, "only {named} tests are named");
}

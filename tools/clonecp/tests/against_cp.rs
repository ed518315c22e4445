//! `clonecp` and GNU cp 9.1 on equal trees: many options, many operands, every combination.

mod support;

use support::{Call, compare_all, zoo};

/// Pairs and lists of operands that no option makes block.
const OPERANDS: &[&str] = &[
    "a new",
    "a b",
    "a t",
    "b a t",
    "a a t",
    "./a a t",
    "a ha",
    "a la",
    "la a",
    "la lla",
    "lla la",
    "la new",
    "dang new",
    "a dang",
    "a loop",
    "loop new",
    "missing new",
    "a missing/",
    "a missing/x",
    "a b/",
    "a b/x",
    "a b missing",
    "a b missing/",
    "a b x",
    "d new",
    "d new/",
    "d e",
    "d t",
    "d d",
    "d d/sub",
    "d d/new",
    "d d/sub/new",
    "d a",
    "d dang",
    "ld new",
    "ld e",
    "ld/ new",
    "ld d",
    "d ld",
    "d ld/x",
    ". e",
    "d/.. e",
    "d/. e",
    "d/./ new",
    "d d e",
    "d ./d e",
    "d ld e",
    "su new",
    "su b",
    "ro b",
    "ro t",
    "a ro",
    "a rodir",
    "rodir new",
    "x new",
    "x b",
    "y new",
    "y x",
    "x t",
    "holes new",
    "holes b",
    "exe t",
    "a ./a",
    "a a",
    "la la",
    "dang dang",
    "d/f d/sub/hf e",
    "d/f d/sub/hf",
    "t/a a",
    "a lt",
    "lt a",
    "lt t",
    "it's new",
    "empty new",
    "empty b",
    "t/a t/b a",
    "d/sub rodir e",
    "d/ls new",
    "d/l new",
    "t/ro~ t/ro",
    "-t t a b",
    "-t t d",
    "-t missing a",
    "-t a b",
    "-t t",
    "-T a t",
    "-T d t",
    "-T d e",
    "-T a b x",
    "-T d",
    "a d b e",
    "missing a e",
    "a missing d e",
    "",
    "a",
    "rodir/k new",
    "d/sub/deep new",
    "a it's",
    "-t e -- -x a",
];

/// Operands that would block when they are read: only with options that make a new pipe instead.
const PIPES: &[&str] = &["p new", "p a", "p t", "so new", "null new", "null a", "p so null e", "p b/x", "t/p p"];

/// Calls where `clonecp` differs on purpose: operands, and why.
const ON_PURPOSE: &[(&str, &str)] = &[
    ("d ld/x", "cp does not see that ld/x is in d, and says that it will not make a hard link to a directory"),
    ("ld d", "the same; and cp -L copies d/ld into itself until names are too long"),
];

/// The same, only with --update.
const ON_PURPOSE_UPDATING: &[(&str, &str)] = &[
    ("a a t", "cp makes one newer destination a hard link to another, without being asked to keep links"),
    ("./a a t", "the same"),
];

fn on_purpose(options: &str, operands: &str) -> bool {
    let among = |list: &[(&str, &str)]| list.iter().any(|(these, _)| *these == operands);
    among(ON_PURPOSE) || (options.contains("-u") && among(ON_PURPOSE_UPDATING))
}

fn compare(test: &str, options: &[&str], operands: &[&str]) {
    let lines: Vec<String> = options
        .iter()
        .flat_map(|o| operands.iter().filter(move |w| !on_purpose(o, w)).map(move |w| format!("{o} {w}")))
        .collect();
    let calls: Vec<Call> = lines.iter().map(|line| Call::line(line)).collect();
    compare_all(test, &calls, &|at| zoo::build(at));
}

#[test]
fn plain_files() {
    compare("plain", &["", "-v", "-f -v", "-n -v", "-u -v", "--remove-destination -v", "-d -v"], OPERANDS);
}

#[test]
fn links() {
    compare("links", &["-l -v", "-lf -v", "-s -v", "-sf -v", "-Pv", "-L -v", "-l -P -v", "-lH", "-l -u -v"], OPERANDS);
}

#[test]
fn trees() {
    compare("trees", &["-r", "-rv", "-R -L -v", "-rH", "-rfv", "-rn", "-ru -v", "-rx", "-rd -v"], OPERANDS);
}

#[test]
fn archives() {
    compare(
        "archives",
        &["-a", "-av", "-aL", "-af -v", "-a -u -v", "-a --remove-destination -v", "-al -v", "-as"],
        OPERANDS,
    );
}

#[test]
fn linked_trees() {
    compare("linked trees", &["-rl -v", "-rs", "-rsf -v", "-rlf -v", "-rlL -v", "-r -p -H", "-rPl"], OPERANDS);
}

#[test]
fn backups() {
    let options = [
        "-b -v",
        "--backup=numbered -v",
        "--backup=existing -v",
        "-S .old -v",
        "-bf -v",
        "-rb -v",
        "-ab -v",
        "-bl -v",
        "-bs",
        "--backup=none -v",
        "-b -u -v",
        "-bd -v",
        "-b --remove-destination -v",
        "-rbT -v",
    ];
    compare("backups", &options, OPERANDS);
}

#[test]
fn attributes() {
    let options = [
        "-p",
        "-rp",
        "--preserve=mode",
        "--preserve=ownership -r",
        "--preserve=timestamps",
        "--preserve=links -r",
        "--preserve=xattr -r",
        "--preserve=all -r",
        "-a --no-preserve=mode",
        "-r --no-preserve=mode",
        "-a --no-preserve=ownership,timestamps",
        "-a --no-preserve=all",
        "-a --no-preserve=links -v",
        "--attributes-only -v",
        "--attributes-only -a",
        "--preserve=mode,timestamps --no-preserve=timestamps",
    ];
    compare("attributes", &options, OPERANDS);
}

#[test]
fn parents() {
    let operands = [
        "d/sub/h e",
        "d/sub/h t",
        "d/sub/deep/i d/f e",
        "a e",
        "d e",
        "d/ e",
        "d/../a e",
        "d//sub/h e",
        "./d/sub/h e",
        "missing/x e",
        "a/x e",
        "d/missing e",
        "d/sub/h missing",
        "d/sub/h a",
        "d/ls/h e",
        "ld/f e",
        "rodir/k e",
        "d/f t",
        "t/d/f d",
        "d/sub e",
        "d/. e",
        "d/sub/.. e",
        "-t e d/sub/h rodir/k d/sub/deep/i",
        "d/sub/h d/sub/h e",
    ];
    let options = [
        "--parents",
        "--parents -v",
        "--parents -rv",
        "--parents -av",
        "--parents -p",
        "--parents -l",
        "--parents --preserve=mode -r",
        "--parents --no-preserve=mode -r",
        "--parents --preserve=timestamps",
        "--parents -ab -v",
        "--parents -s",
        "--parents -rL -v",
    ];
    compare("parents", &options, &operands);
}

#[test]
fn holes_and_clones() {
    let options = [
        "--sparse=always",
        "--sparse=never",
        "--sparse=auto -r",
        "--reflink=never -r",
        "--reflink=auto -a",
        "--reflink=never --sparse=always -r",
        "--reflink --sparse=never",
        "--strip-trailing-slashes -r",
        "--strip-trailing-slashes",
    ];
    compare("holes and clones", &options, OPERANDS);
}

#[test]
fn special_files() {
    let options = [
        "-r",
        "-rv",
        "-a",
        "-av",
        "-rn",
        "-ru",
        "-rb",
        "-rl -v",
        "-rs",
        "-r --remove-destination -v",
        "-rp",
        "-rf",
        "-r --no-preserve=mode",
        "-r --attributes-only",
        "-rT",
    ];
    compare("special files", &options, PIPES);
}

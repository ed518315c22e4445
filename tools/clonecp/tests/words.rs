//! The command line itself: mistakes, abbreviations, quoting, questions, the environment, users other than root.

mod support;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use support::{Call, compare_all, program, root, run, scratch, skipped, zoo};

fn compare(test: &str, calls: &[Call]) {
    compare_all(test, calls, &|at| zoo::build(at));
}

#[test]
fn mistakes_are_told_as_cp_tells_them() {
    let lines = [
        "",
        "a",
        "-r",
        "a b c d",
        "-T a b c",
        "-T a",
        "-t e",
        "-t e -T a",
        "-t e -t t a",
        "-t",
        "a -t",
        "a b -S",
        "-vS",
        "--suffix",
        "--target-directory",
        "--sparse",
        "--no-preserve",
        "--no-preserve a b",
        "-n -b a b",
        "-n --backup=none a b",
        "-ls a b",
        "--reflink --sparse=always a b",
        "--reflink=always --sparse=never a b",
        "--reflink=auto --sparse=never a b",
        "--sparse=foo a b",
        "--sparse=a a b",
        "--sparse=n a b",
        "--sparse= a b",
        "--reflink=foo a b",
        "--reflink=a a b",
        "--reflink=au a b",
        "--reflink= a b",
        "--preserve=foo a b",
        "--preserve=mode,foo a b",
        "--preserve= a b",
        "--preserve=mode, a b",
        "--preserve=m,o,t a b",
        "--preserve=l a b",
        "--no-preserve=x,all a b",
        "--no-preserve=foo a b",
        "--backup=foo a b",
        "--backup= a b",
        "--backup=n a b",
        "--backup=numb a b",
        "--backup=s a b",
        "--backup=t a b",
        "--bac a b",
        "--re a b",
        "--rec a new",
        "--s a b",
        "--su .x a b",
        "--su=.x a b",
        "--no a b",
        "--no-c a b",
        "--pre a b",
        "--p a b",
        "--ver",
        "--verb a b",
        "--foo a b",
        "--foo=bar a b",
        "--re=x a b",
        "-y a b",
        "-vy a b",
        "-c a b",
        "-h",
        "-V",
        "--recursive=x a b",
        "--verbose=yes a b",
        "--parents a b",
        "--parents a missing",
        "--help=x",
        "--context=foo a new",
        "--context a new",
        "-Z a new",
        "--preserve=context a new",
        "--no-preserve=context a new",
        "-a --preserve=context a new",
        "-- a new",
        "-- -v a",
        "-v -- a new",
        "a -v new",
        "a new -v",
        "a -- -v",
        "- new",
        "a -",
        "-b -S .x a b",
        "-bS.x a b",
        "-S / a b",
        "-S a/b a b",
        "-S -x a b",
        "-t e -- a",
        "-te a",
        "--target=e a",
        "-vt e a",
        "-Tv a new",
        "-fiv a new",
        "-in a b",
        "-ni a new",
        "-nf a b",
        "--sparse always a new",
        "-LP la new",
        "-PL la new",
        "-HP la new",
        "-dL la new",
        "-aL la new",
        "-La la new",
        "-rl la new",
        "-l la new",
        "--path a e",
        "-R a new",
        "-Rr d new",
        "--archive d new",
        "--reflink=always --reflink=never a new",
        "--sparse=always --sparse=auto holes new",
        "-p --no-preserve=mode su new",
        "--no-preserve=mode -p su new",
        "--preserve=mode --no-preserve=all --preserve=timestamps su new",
        "-u -u a new",
        "--copy-contents a new",
        "-s a e",
        "-s d new",
        "-s missing new",
        "-l missing new",
        "-l d new",
        "-s a e/b/c",
        "-s a ./new",
        "-s a e/../new",
        "-st e a",
        "--strip-trailing-slashes a/ new",
        "--strip-trailing-slashes a/ e",
        "a/ new",
        "a/ e",
        "-a la/ new",
        "-r d/ e",
        "-r d// e/",
        "--remove-destination a a",
        "-f a a",
        "-fb a a",
        "-b a a",
        "-fb a ./a",
        "-b --force a ha",
        "-fb la la",
        "-fb d d",
        "--force --backup=numbered a a",
        "-fbv a a",
        "-fbS.x a a",
        "-b t/ro~ t/ro",
        "--backup=simple ro~ ro",
        "-bv t/ro~ t/ro",
        "-T t/ro~ t/ro",
        "-T a e/",
        "-rT d e/",
        "-rT d missing/",
        "-rT rodir new/",
    ];
    compare("mistakes", &lines.map(Call::line));
}

#[test]
fn names_are_quoted_as_cp_quotes_them() {
    let names: Vec<&[u8]> = vec![
        b"",
        b"plain",
        b"it's",
        b"\"",
        b"a b",
        b"$x",
        b"`x`",
        b"a\\b",
        b"a\nb",
        b"a'\nb",
        b"\t",
        b"\x1b[31mred",
        b"\x7f",
        b"it's \"",
        b"it's $",
        b"#'",
        b"~'",
        b"a#'",
        b"{'",
        b"a=b",
        b"?",
        b"*'",
        b"!'",
        b"a'b:c@d%e+f,g]h_i",
        b"\r\n\x0b\x0c\x07\x08",
        "\u{e4}".as_bytes(),
        "\u{e4}'".as_bytes(),
        "\u{3042} \u{1f600}".as_bytes(),
        "\u{85}x".as_bytes(),
        "\u{2028}".as_bytes(),
        "\u{200b}".as_bytes(),
        "e\u{301}".as_bytes(),
        "\u{e000}".as_bytes(),
        b"\xff",
        b"a\xffb",
        b"\xe3\x81",
        b"\xe3\x81x",
        b"\xc3\xa4\xff\xc3\xa4",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xc0\xaf",
        b"\n5",
        b"--",
        b"-x'",
    ];
    let locales = ["C", "C.UTF-8", "POSIX"];
    let environments = locales.map(|locale| [("LC_ALL", locale)]);
    let dashes = OsStr::new("--");
    let mut calls = Vec::new();
    for environment in &environments {
        for name in &names {
            let name = OsStr::from_bytes(name);
            let forms: [Vec<&OsStr>; 5] = [
                vec![dashes, name, OsStr::new("/missing/x")],
                vec![OsStr::new("-v"), dashes, OsStr::new("a"), name],
                vec![OsStr::new("-s"), OsStr::new("-T"), dashes, OsStr::new("a"), name],
                vec![OsStr::new("--backup"), OsStr::new("-S"), name, OsStr::new("a"), OsStr::new("b")],
                vec![dashes, name],
            ];
            calls.extend(forms.map(|words| Call { words, environment, ..Call::default() }));
        }
    }
    let words = ["fo'o", "\u{2019}", "a\\b", "\n", "\u{e4}", ""].map(|word| format!("--sparse={word}"));
    for environment in &environments {
        for word in &words {
            let words = vec![OsStr::new(word.as_str()), OsStr::new("a"), OsStr::new("b")];
            calls.push(Call { words, environment, ..Call::default() });
        }
    }
    compare("quoting", &calls);
}

#[test]
fn names_that_need_quotes_elsewhere_than_in_names() {
    // The one message that quotes only where it must.
    let names: Vec<String> = (0x20u8..0x7f)
        .filter(|b| *b != b'/')
        .flat_map(|b| [format!("t/{}", b as char), format!("t/x{}y", b as char), format!("t/{}'", b as char)])
        .collect();
    let calls = names
        .iter()
        .map(|name| Call { words: vec![OsStr::new("-sT"), OsStr::new("a"), OsStr::new(name)], ..Call::default() });
    compare("quotes where needed", &calls.collect::<Vec<_>>());
}

#[test]
fn questions_are_asked_and_answered() {
    let lines = [
        "-i a b",
        "-iv a b",
        "-i a new",
        "-i b a t",
        "-ir d t",
        "-irv d t",
        "-i a d",
        "-i a a",
        "-if a ro",
        "-i a ro",
        "-ib a b",
        "-iu a t",
        "-iu t/a a",
        "-il a b",
        "-is a b",
        "-isf a b",
        "-ilf a b",
        "-i a dang",
        "-i a la",
        "-iP la lla",
        "-i --remove-destination a ro",
        "-ni a b",
        "-in a b",
        "-iT a b",
        "-i a ha",
        "-i it's b",
        "-ia d t",
        "-ira d t",
        "-i ro t/b",
        "-i --attributes-only a b",
    ];
    let inputs =
        ["", "y\n", "n\n", "Y\n", "yes\nyes\nyes\nyes\n", "y\nn\ny\nn\n", "ny\n", "\n", " y\n", "y", "maybe\n", "1\n"];
    let calls: Vec<Call> =
        lines.iter().flat_map(|line| inputs.iter().map(|input| Call { input, ..Call::line(line) })).collect();
    compare("questions", &calls);
    if root() {
        let calls: Vec<Call> = calls.into_iter().map(|call| Call { as_nobody: true, ..call }).collect();
        compare("questions to a user", &calls);
    }
}

#[test]
fn the_environment_counts() {
    let environments: [&[(&str, &str)]; 12] = [
        &[("VERSION_CONTROL", "numbered")],
        &[("VERSION_CONTROL", "simple")],
        &[("VERSION_CONTROL", "none")],
        &[("VERSION_CONTROL", "foo")],
        &[("VERSION_CONTROL", "")],
        &[("VERSION_CONTROL", "n")],
        &[("SIMPLE_BACKUP_SUFFIX", ".was")],
        &[("SIMPLE_BACKUP_SUFFIX", "")],
        &[("SIMPLE_BACKUP_SUFFIX", "x/y")],
        &[("POSIXLY_CORRECT", "1")],
        &[("POSIXLY_CORRECT", "")],
        &[("VERSION_CONTROL", "numbered"), ("SIMPLE_BACKUP_SUFFIX", ".was")],
    ];
    // Not into a directory: cp 9.1 puts simple backups of those into the current directory.
    let lines = ["-bv a b", "--backup -v a b", "--backup=simple a b", "-bS.x -v a b", "a dang", "-v a b", "-r d new"];
    let calls: Vec<Call> = lines
        .iter()
        .flat_map(|line| environments.iter().map(|e| Call { environment: e, ..Call::line(line) }))
        .collect();
    compare("environment", &calls);
}

#[test]
fn the_umask_counts() {
    let lines = [
        "a new",
        "-r d new",
        "-a d new",
        "-rp d new",
        "-r --no-preserve=mode d new",
        "-a --no-preserve=mode . e",
        "su new",
        "--parents d/sub/h e",
        "--parents --no-preserve=mode d/sub/h e",
        "--preserve=timestamps -r d new",
        "-r rodir new",
        "--preserve=ownership -r d new",
        "-r p so null new2 e",
        "-r --no-preserve=mode p so null e",
        "--parents --preserve=timestamps d/sub/h e",
    ];
    let masks = [0, 0o027, 0o077, 0o777, 0o333, 0o002];
    let calls: Vec<Call> = lines
        .iter()
        .flat_map(|line| masks.iter().map(|mask| Call { umask: Some(*mask), ..Call::line(line) }))
        .collect();
    compare("umask", &calls);
    if root() {
        let calls: Vec<Call> = calls.into_iter().map(|call| Call { as_nobody: true, ..call }).collect();
        compare("umask of a user", &calls);
    }
}

#[test]
fn a_user_is_told_what_he_may_not() {
    if !root() {
        skipped("a_user_is_told_what_he_may_not", "needs root to be somebody else");
        return;
    }
    let operands = [
        "a new",
        "b new",
        "a b",
        "a ro",
        "a t",
        "b a t",
        "ro t",
        "su new",
        "su b",
        "x new",
        "y new",
        "d new",
        "d e",
        "rodir new",
        "rodir e",
        "a rodir",
        "a rodir/k",
        "holes new",
        "t new",
        "t e",
        "t d",
        "d t",
        "d/sub/deep new",
        "a ha",
        "la new",
        "a exe",
        "a su",
        "exe t/exe",
        "d/sub/deep/i new",
        "a d/sub/new",
        "-T d t",
        "a lt",
        "null e",
    ];
    let options = [
        "",
        "-v",
        "-r",
        "-f -v",
        "-rf",
        "-p",
        "-a",
        "-rp",
        "-u",
        "-b -v",
        "-l",
        "-s",
        "-lf",
        "-rl",
        "--remove-destination -v",
        "-r --preserve=ownership",
        "-r --preserve=xattr",
        "--preserve=mode",
        "-a --no-preserve=mode",
        "--attributes-only -p",
        "-rL",
        "-abv",
        "-r --preserve=all",
        "--reflink=never -a",
    ];
    let lines: Vec<String> = options
        .iter()
        .flat_map(|o| operands.iter().map(move |w| format!("{o} {w}")))
        .filter(|line| !line.ends_with("null e") || line.contains("-r") || line.contains("-a"))
        // cp leaves the destination's set-user-id bit although it was told to give it the source's mode.
        .filter(|line| line != "--attributes-only -p a su")
        .collect();
    let calls: Vec<Call> = lines.iter().map(|line| Call { as_nobody: true, ..Call::line(line) }).collect();
    compare("as a user", &calls);
}

#[test]
fn help_and_version_are_printed_and_succeed() {
    let directory = scratch();
    for (line, begins) in
        [("--help", "Copy SOURCE to DEST"), ("--version", "clonecp "), ("a b --hel -v", "Copy SOURCE")]
    {
        let result = run(program(), directory.path(), &Call::line(line));
        assert_eq!(result.status, Some(0), "{line}: {result:?}");
        assert!(result.stdout.starts_with(begins) && result.stderr.is_empty(), "{line}: {result:?}");
    }
}

//! A copy that takes more than a second shows how far it is, on a terminal and nowhere else.

mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use support::{program, scratch};

/// A terminal of 80 columns: our end and the program's.
fn terminal() -> (OwnedFd, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("openpt");
    grantpt(&ours).and_then(|()| unlockpt(&ours)).expect("unlock");
    let name = ptsname(&ours, Vec::new()).expect("name");
    let theirs = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("open terminal");
    tcsetwinsize(&theirs, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }).expect("size");
    (ours, theirs)
}

/// Starts a copy from a pipe and feeds it, slowly or at once.
fn copy(directory: &Path, stderr: Stdio, slowly: bool) -> Child {
    let child = Command::new(program())
        .args(["pipe", "copy"])
        .current_dir(directory)
        .env("TERM", "xterm")
        .env("LC_ALL", "C")
        .stderr(stderr)
        .spawn()
        .expect("start");
    let mut pipe = File::options().write(true).open(directory.join("pipe")).expect("pipe");
    for _ in 0..3 {
        pipe.write_all(&[7; 1 << 20]).expect("write");
        if slowly {
            std::thread::sleep(Duration::from_millis(700));
        }
    }
    child
}

#[test]
fn a_long_copy_shows_its_progress_on_a_terminal_only() {
    let directory = scratch();
    let at = directory.path();
    mknodat(CWD, at.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("pipe");
    for (slowly, shown) in [(true, true), (false, false)] {
        let (ours, theirs) = terminal();
        let mut child = copy(at, Stdio::from(theirs), slowly);
        assert!(child.wait().expect("wait").success());
        let mut text = Vec::new();
        // The terminal ends with an error when nobody has the other end any more.
        let _ = File::from(ours).read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text);
        assert_eq!(text.contains("'pipe'") && text.contains("MiB"), shown, "{text:?}");
        assert_eq!(fs::metadata(at.join("copy")).expect("copy").len(), 3 << 20);
    }
    let child = copy(at, Stdio::piped(), true);
    let output = child.wait_with_output().expect("wait");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

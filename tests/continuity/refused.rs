//! What a mount that is kept does not take, and what ends it.

use std::fs;
use std::os::unix::net::UnixStream;

use crate::fixture::{Kept, kill, server_of};
use crate::support::{Backing, Pool, clonefs, is_running, ready, wait_until};

#[test]
fn options_that_do_not_go_together_are_refused() {
    if !ready() {
        return;
    }
    let pool = Pool::unmounted(Backing::Ext4);
    for (options, word) in [
        ("continuity=on,passthrough=writable", "passthrough"),
        ("continuity=perhaps", "continuity"),
        ("continuity=on,queue=0", "queue"),
    ] {
        let done = clonefs([std::ffi::OsStr::new("mount"), "-o".as_ref(), options.as_ref(), pool.root().as_os_str()]);
        assert!(!done.status.success() && done.stderr.contains(word), "{done:?}");
    }
}

#[test]
fn a_holder_listens_to_nobody_but_its_own_server() {
    if !ready() {
        return;
    }
    let kept = Kept::dying("");
    let sockets = |pid: u32| -> Vec<String> {
        let all = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let links = all.filter_map(|fd| fs::read_link(fd.path()).ok()).map(|to| to.to_string_lossy().into_owned());
        links.filter_map(|to| to.strip_prefix("socket:[").map(|rest| rest.trim_end_matches(']').to_owned())).collect()
    };
    // Every socket that it has is one of a pair without a name, and listens to no address.
    let table = fs::read_to_string("/proc/net/unix").unwrap();
    for inode in sockets(kept.holder()) {
        let line = table.lines().find(|line| line.split_whitespace().nth(6) == Some(&*inode)).unwrap_or_default();
        assert!(line.split_whitespace().nth(7).is_none(), "{line}");
    }
    assert!(UnixStream::connect(kept.at("socket")).is_err());
    // Without rights nobody gets at its memory or descriptors by other ways either.
    let stranger = std::process::Command::new("setpriv")
        .args(["--reuid", "64201", "--regid", "64201", "--clear-groups", "ls"])
        .arg(format!("/proc/{}/fd", kept.holder()))
        .output()
        .expect("setpriv");
    assert!(!stranger.status.success());
    kept.end();
}

#[test]
fn a_mount_in_the_background_leaves_nothing_of_its_caller_open() {
    if !ready() {
        return;
    }
    let mut pool = Pool::unmounted(Backing::Ext4);
    // Returns once nobody has the pipes of the command open any more.
    pool.mount("continuity=on");
    let kept = pool.mounted().status().continuity.expect("a holder");
    fs::write(pool.at("f"), b"bytes").unwrap();
    kill(server_of(kept.holder).unwrap(), libc::SIGKILL);
    assert_eq!(fs::read(pool.at("f")).unwrap(), b"bytes");
    // Both get it, as all processes of a service do: that is one signal, not two.
    let server = server_of(kept.holder).unwrap();
    let open = fs::File::open(pool.at("f")).unwrap();
    [kept.holder, server].iter().for_each(|pid| assert_eq!(kill(*pid, libc::SIGTERM), *pid));
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(std::io::read_to_string(open).unwrap(), "bytes");
    wait_until(|| !is_running(server) && !is_running(kept.holder));
    pool.forget_mount();
}

#[test]
fn a_signal_to_the_holder_ends_the_mount_in_order() {
    if !ready() {
        return;
    }
    let kept = Kept::dying("");
    fs::write(kept.at("f"), b"bytes").unwrap();
    let (holder, server) = (kept.holder(), server_of(kept.holder()).unwrap());
    kill(holder, libc::SIGTERM);
    wait_until(|| !is_running(server) && !is_running(holder));
    assert!(!crate::fixture::is_mounted(kept.pool.root()));
    assert_eq!(fs::read(kept.at("f")).unwrap(), b"bytes");
}

#[test]
fn an_unmount_between_two_servers_ends_the_holder() {
    if !ready() {
        return;
    }
    for _ in 0..5 {
        let kept = Kept::dying("");
        fs::write(kept.at("f"), b"bytes").unwrap();
        let (holder, root) = (kept.holder(), kept.pool.root().to_owned());
        kept.kill();
        let done = std::process::Command::new("umount").arg(&root).status().unwrap();
        assert!(done.success());
        wait_until(|| !is_running(holder) && server_of(holder).is_none());
        assert_eq!(fs::read(kept.at("f")).unwrap(), b"bytes");
    }
}

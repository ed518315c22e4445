//! Programs find a mount to be like any directory: locks, programs that lie there, repositories and builds.

use std::fs;
use std::os::fd::AsRawFd;
use std::process::Command;

use crate::set_mode;
use crate::support::{self, Backing, errno, on, result};

#[test]
fn locks_of_all_kinds_work() {
    on(&[Backing::Ext4], |pool| {
        let path = pool.write("file", b"x");
        let lock = |file: &fs::File, command: i32, kind: i32| {
            // SAFETY: all zeros is a valid flock.
            let mut lock: libc::flock = unsafe { std::mem::zeroed() };
            lock.l_type = kind as i16;
            lock.l_len = 10;
            // SAFETY: the descriptor is open and lock a valid flock.
            result(unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) }).map(drop)
        };
        let open = || fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let (one, two) = (open(), open());
        lock(&one, libc::F_OFD_SETLK, libc::F_WRLCK).unwrap();
        assert_eq!(errno(lock(&two, libc::F_OFD_SETLK, libc::F_WRLCK)), libc::EAGAIN);
        lock(&one, libc::F_OFD_SETLK, libc::F_UNLCK).unwrap();
        lock(&two, libc::F_OFD_SETLK, libc::F_WRLCK).unwrap();
        drop(two);
        one.lock().unwrap();
        assert!(matches!(open().try_lock(), Err(fs::TryLockError::WouldBlock)));
        // A POSIX lock excludes another process.
        lock(&one, libc::F_SETLK, libc::F_WRLCK).unwrap();
        let script = "import fcntl,sys\nf=open(sys.argv[1],'r+')\ntry: fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB,10)\n\
                      except OSError: sys.exit(7)";
        support::run(Command::new("python3").args(["-c", script]).arg(&path)).code(7);
    });
}

#[test]
fn programs_run_from_a_mount() {
    on(&[Backing::Ext4, Backing::Tmpfs], |pool| {
        fs::copy("/bin/sh", pool.at("sh")).unwrap();
        set_mode(&pool.at("sh"), 0o755);
        let done = support::run(Command::new(pool.at("sh")).args(["-c", "echo ran"])).success();
        assert_eq!(done.stdout, "ran\n");
    });
}

#[test]
fn repositories_and_builds_work() {
    let script = r#"
set -eu
cd "$1"
export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git init -q source
cd source
for i in $(seq 60); do mkdir -p d$((i % 7)); printf 'int f%d(void) { return %d; }\n' $i $i > d$((i % 7))/f$i.c; done
git add . && git commit -qm one
cd ..
git clone -q source copy
git clone -q --no-local source copy2
cd copy
printf 'all: $(patsubst %%.c,%%.o,$(wildcard d*/*.c))\n\tar rcs all.a $^\n' > Makefile
make -s -j4
test "$(ar t all.a | wc -l)" = 60
sed -i s/return/return\ 1+/ d1/*.c
git add . && git commit -qm two && git gc -q && git fsck --strict
tar cf - . | (mkdir ../unpacked && cd ../unpacked && tar xf -)
diff -r . ../unpacked
"#;
    on(&[Backing::Ext4, Backing::Xfs], |pool| {
        support::run(Command::new("sh").args(["-c", script, "sh"]).arg(pool.root())).success();
    });
}

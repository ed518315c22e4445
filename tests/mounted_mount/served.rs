//! Pools that an ordinary user serves, whose daemon has no more rights than that user.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::support;
use tempfile::TempDir;

/// In a mount namespace of its own, where every user may open the FUSE device: `$DISK` is made by `$MKFS`, the user `daemon`
/// (fusermount3 wants one that has a name) has a pool in it and serves it.
const PRELUDE: &str = r#"
set -eux
cd "$PLACE"
mknod -m 666 device c 10 229
mount --bind device /dev/fuse
user() { setpriv --reuid 1 --regid 1 --clear-groups "$@"; }
truncate -s "$SIZE" disk.img
$MKFS disk.img
mkdir disk
mount -o loop disk.img disk
mkdir disk/pool disk/mnt
chown 1:1 disk/pool disk/mnt
trap 'cd "$PLACE"; umount -l disk/mnt || true; umount -l disk || true' EXIT
cd disk
ln -s ../clonefs clonefs
up() { user ./clonefs mount pool mnt; }
"#;

/// Runs `script` after the prelude.
fn served(size: &str, mkfs: &str, script: &str) {
    if !support::ready() {
        return;
    }
    let place = TempDir::new().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The program may lie where that user cannot go.
    fs::copy(env!("CARGO_BIN_EXE_clonefs"), place.path().join("clonefs")).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-c", &format!("{PRELUDE}{script}")]);
    support::run(command.env("PLACE", place.path()).env("SIZE", size).env("MKFS", mkfs)).success();
}

/// The names of the user's own file and of one of root's are exchanged beside the mount, all the time.
#[test]
fn names_that_are_exchanged_below_a_users_daemon_give_nothing_of_roots() {
    let script = r#"
cp /bin/true pool/g
chmod 666 pool/g
user cp /bin/true pool/x
up
cat >race.pl <<'PL'
my $end = time + 3;
my $exchanged = 0;
my ($one, $other) = ("pool/x", "pool/g");
# renameat2(AT_FDCWD, .., AT_FDCWD, .., RENAME_EXCHANGE)
while (time < $end) { $exchanged++ if syscall(316, -100, $one, -100, $other, 2) == 0 }
open my $f, ">", "pool/exchanged"; print $f $exchanged;
PL
user perl race.pl &
while kill -0 $!; do user chmod 4777 mnt/x || true; user mkdir mnt/d && user rmdir mnt/d; done
wait
for name in x g; do
    [ "$(stat -c %u pool/$name)" != 0 ] || [ "$(stat -c %a pool/$name)" = 666 ]
done
[ "$(cat pool/exchanged)" -gt 100 ]
stat -c %u pool/x pool/g | sort | paste -sd ' ' | grep -x '0 1'
"#;
    served("64M", "mkfs.ext4 -q -F", script);
}

#[test]
fn a_users_daemon_leaves_what_is_kept_for_root() {
    let script = r#"
up
kept=$(($(stat -f -c '%f - %a' .)))
[ "$kept" -gt 1000 ]
user dd if=/dev/zero of=mnt/big bs=1M 2>said || grep 'No space' said
[ "$(stat -f -c %f .)" -ge "$kept" ]
"#;
    served("64M", "mkfs.ext4 -q -F -m 20", script);
}

#[test]
fn a_users_daemon_clones_in_a_directory_with_a_project() {
    let script = r#"
user mkdir pool/d
chattr -p 7 pool/d
chattr +P pool/d
up
user dd if=/dev/urandom of=mnt/d/base bs=64k count=20
user cp mnt/d/base before
user ./clonefs clone mnt/d/base mnt/d/clone
echo changed | user dd of=mnt/d/base conv=notrunc
cmp before mnt/d/clone 2>/dev/null || user cmp before mnt/d/clone
user ./clonefs deepen --wait mnt/d/clone
user head -c 7 mnt/d/base | grep -x changed
user ./clonefs unmount mnt
cmp before pool/d/clone
"#;
    served("400M", "mkfs.xfs -q -f", &format!("chown 1:1 .\n{script}"));
}

#[test]
fn a_program_loses_its_privileges_at_once_below_a_users_daemon() {
    let script = r#"
user cp /bin/true pool/program
user chmod 6777 pool/program
up
for _ in $(seq 20); do
    user chmod 6777 mnt/program
    [ "$(user stat -c %a mnt/program)" = 6777 ]
    printf '#' | user dd of=mnt/program bs=1 conv=notrunc
    [ "$(user stat -c %a mnt/program)" = 777 ]
done
"#;
    served("64M", "mkfs.ext4 -q -F", script);
}

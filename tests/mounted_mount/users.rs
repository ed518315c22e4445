//! Mounts that others use, or make.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use crate::support::{self, as_user, errno, on_each_filesystem};
use tempfile::TempDir;

#[test]
fn all_users_have_the_rights_that_modes_give() {
    on_each_filesystem(|pool| {
        pool.write("open", b"for all");
        let secret = pool.write("secret", b"for root");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        as_user(1234, 1234, || {
            assert_eq!(fs::read(pool.at("open")).unwrap(), b"for all");
            assert_eq!(errno(fs::read(pool.at("secret"))), libc::EACCES);
            assert_eq!(errno(fs::write(pool.at("open"), "x")), libc::EACCES);
            fs::write(pool.at("mine"), "x").unwrap();
        });
        assert_eq!(fs::metadata(pool.at("mine")).unwrap().uid(), 1234);
    });
}

/// Done by the user `daemon` (fusermount3 wants one that has a name) in a mount namespace of its own, where every user may open the FUSE device, as on most machines.
const AS_A_USER: &str = r#"
set -eux
cd "$PLACE"
mknod -m 666 device c 10 229
mount --bind device /dev/fuse
user() { setpriv --reuid 1 --regid 1 --clear-groups "$@" 2>&1; }
user ./clonefs mount pool
trap 'umount -l pool' EXIT
grep " $PLACE/pool .* - fuse.clonefs clonefs:$PLACE/pool " /proc/self/mountinfo
user cp noise pool/base
user ./clonefs clone pool/base pool/clone
user cmp noise pool/clone
user stat -c %u:%g pool/clone | grep -x 1:1
user ./clonefs mount pool && exit 1
grep -q ^user_allow_other /etc/fuse.conf || user ./clonefs mount -o allow_other elsewhere | grep user_allow_other
cat pool/base && exit 1
user ./clonefs deepen --wait pool/clone
user ./clonefs unmount pool
trap - EXIT
cmp noise pool/clone
grep "fuse.clonefs clonefs:$PLACE/pool" /proc/self/mountinfo && exit 1
true
"#;

#[test]
fn an_ordinary_user_mounts_with_fusermount() {
    if !support::ready() {
        return;
    }
    let place = TempDir::new().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for directory in ["pool", "elsewhere"] {
        fs::create_dir(place.path().join(directory)).unwrap();
        std::os::unix::fs::chown(place.path().join(directory), Some(1), Some(1)).unwrap();
    }
    fs::write(place.path().join("noise"), support::noise(5, 100_000)).unwrap();
    // The program may lie where that user cannot go.
    fs::copy(env!("CARGO_BIN_EXE_clonefs"), place.path().join("clonefs")).unwrap();
    let mut command = Command::new("unshare");
    support::run(command.args(["--mount", "bash", "-c", AS_A_USER]).env("PLACE", place.path())).success();
}

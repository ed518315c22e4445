//! What mount(8), umount(8) and a line of fstab do with a pool: the helper that the installation puts into /sbin.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use support::{Backing, noise, on_each_filesystem, run};

/// Done in a mount namespace of its own, in which the helper lies where mount(8) looks for it. `$PLACE` has the
/// programs, `$POOL` is a pool with the files `base` and `tool`.
const BY_MOUNT: &str = r#"
set -eux
overlay() { mount -t overlay -o "lowerdir=$PLACE/sbin:/sbin" overlay /sbin; }
overlay
state() { getfattr --only-values -n user.clonefs.state "$1"; }
options() { findmnt -n -o OPTIONS "$1"; }
gone() { ! findmnt -n -t fuse.clonefs "$1"; }
mkdir -p "$PLACE/mnt"

# At another place, by both names of the type, with options of mount and of clonefs.
for type in clonefs fuse.clonefs; do
    mount -t $type -o noatime,deepen=manual "$POOL" "$PLACE/mnt"
    test "$(findmnt -n -o FSTYPE,SOURCE "$PLACE/mnt" | tr -s ' ')" = "fuse.clonefs $POOL"
    options "$PLACE/mnt" | grep -w noatime
    # As root mounts any other filesystem: set-user-ID programs and devices work.
    ! options "$PLACE/mnt" | grep -E 'nosuid|nodev'
    cmp "$PLACE/mnt/base" "$PLACE/base"
    clonefs clone "$PLACE/mnt/base" "$PLACE/mnt/vm-$type"
    test "$(state "$PLACE/mnt/vm-$type")" = overlay
    umount "$PLACE/mnt"
    gone "$PLACE/mnt"
done

# The mount table shows what it is told to.
mount -t clonefs -o fsname=images "$POOL" "$PLACE/mnt"
test "$(findmnt -n -o SOURCE "$PLACE/mnt")" = images
umount "$PLACE/mnt"

# What is asked for is granted: nothing but reading, and no privileges from the files.
mount -t clonefs -o ro,nosuid,nodev "$POOL" "$PLACE/mnt"
options "$PLACE/mnt" | grep -w ro
options "$PLACE/mnt" | grep -w nosuid
options "$PLACE/mnt" | grep -w nodev
! touch "$PLACE/mnt/new"
umount "$PLACE/mnt"

# A line of fstab, over the pool itself, found by the mount point alone; the pool's earlier clones are there.
echo "$POOL $POOL clonefs rw,noatime,deepen=auto,rate=200M,nofail,x-systemd.automount 0 0" > "$PLACE/fstab"
mount -T "$PLACE/fstab" "$POOL"
findmnt -n -t fuse.clonefs "$POOL"
for type in clonefs fuse.clonefs; do
    clonefs wait "$POOL/vm-$type"
    cmp "$POOL/vm-$type" "$PLACE/base"
done
! mount -T "$PLACE/fstab" "$POOL"
# What is mounted is left alone.
mount -a -T "$PLACE/fstab"
umount "$POOL"
gone "$POOL"

# The same with a source that is no path.
echo "clonefs:$POOL $POOL clonefs noatime 0 0" > "$PLACE/fstab"
mount -a -T "$PLACE/fstab"
mount -a -T "$PLACE/fstab"
test "$(findmnt -n -o SOURCE "$POOL")" = "clonefs:$POOL"
mount -o remount,ro "$POOL"
options "$POOL" | grep -w ro
cmp "$POOL/base" "$PLACE/base"
umount "$POOL"
gone "$POOL"
clonefs mount "clonefs:$POOL"
clonefs unmount "clonefs:$POOL"
gone "$POOL"
for type in clonefs fuse.clonefs; do cmp "$POOL/vm-$type" "$PLACE/base"; rm "$POOL/vm-$type"; done

# A mount that fails says so, and a dry run does nothing.
! mount -t clonefs "$POOL/missing" "$PLACE/mnt"
! mount -t clonefs -o bogus "$POOL" "$PLACE/mnt"
# With the exit codes of mount(8).
code() { local code=0; "$@" || code=$?; echo $code; }
test "$(code /sbin/mount.clonefs "$POOL/missing" "$PLACE/mnt")" = 32
test "$(code /sbin/mount.clonefs "$POOL" "$PLACE/mnt" -o bogus)" = 1
test "$(code /sbin/mount.clonefs "$POOL")" = 1
mount -f -t clonefs "$POOL" "$PLACE/mnt"
gone "$PLACE/mnt"
"#;

#[test]
fn mount_and_fstab_mount_a_pool_like_any_filesystem() {
    on_each_filesystem(|pool| {
        pool.unmount();
        let place = tempfile::TempDir::new().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for directory in ["sbin", "bin"] {
            fs::create_dir(place.path().join(directory)).unwrap();
        }
        let bin = place.path().join("bin");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_clonefs"), bin.join("clonefs")).unwrap();
        // As scripts/install does for a prefix of its own.
        let helper = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/mount.clonefs");
        let text = fs::read_to_string(helper).unwrap();
        let changed = text.replace("PATH=/usr/local/sbin:", &format!("PATH={}:/usr/local/sbin:", bin.display()));
        assert_ne!(changed, text);
        for name in ["mount.clonefs", "mount.fuse.clonefs"] {
            let path = place.path().join("sbin").join(name);
            fs::write(&path, &changed).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let bytes = noise(1, 3_000_000);
        fs::write(place.path().join("base"), &bytes).unwrap();
        pool.write("base", &bytes);
        let mut command = Command::new("unshare");
        command.args(["--mount", "bash", "-c", BY_MOUNT]).env("PLACE", place.path()).env("POOL", pool.root());
        let path = std::env::var("PATH").unwrap_or_default();
        run(command.env("PATH", format!("{}:{path}:/usr/sbin:/sbin", bin.display()))).success();
        // On the filesystem it is as if clonefs had never been there, but for its empty directory.
        let mut names: Vec<_> = fs::read_dir(pool.root()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".clonefs", "base"]);
        assert!(pool.disk.kind != Backing::Tmpfs || pool.read("base") == bytes);
        pool.mount("");
    });
}

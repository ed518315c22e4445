//! Machines that start together on clones of one image.

use crate::guest::{Tiny, disk};
use crate::host::{self, Host};
use crate::support::noise;

/// The filesystem below the pool: how its device is called, and what was read of it.
struct Below<'a> {
    host: &'a Host,
    image: String,
}

impl Below<'_> {
    /// Mounts it and the pool, with nothing of either in memory.
    fn mount_cold(&self) {
        let pool = self.host.pool("");
        self.host.shell(&format!("mount -o loop {} {pool}", self.image));
        self.host.mount("allow_other,deepen=manual");
    }

    fn unmount(&self) {
        let pool = self.host.pool("");
        self.host.clonefs_ok(&format!("unmount {pool}"));
        self.host.shell(&format!("umount {pool}"));
    }

    /// Bytes read of the device until now.
    fn read(&self) -> u64 {
        let line = format!("d=$(losetup -nO NAME -j {}); cat /sys/block/${{d##*/}}/stat", self.image);
        let stat = self.host.shell(&line);
        stat.split_whitespace().nth(2).expect("sectors").parse::<u64>().expect("a number") * 512
    }
}

/// As clouds give them, an image is a qcow2 file: imported, cloned, booted. Its clones read together hardly more of the
/// device than one machine alone.
#[test]
fn clones_of_an_imported_image_start_and_read_once_what_they_share() {
    if !host::ready() {
        return;
    }
    const MIB: usize = 8;
    let host = Host::without_pool();
    let tiny = Tiny::new(&host);
    let below = Below { host: &host, image: host.outside("below") };
    let (raw, cloud) = (host.outside("raw"), host.outside("cloud.qcow2"));
    host.write(&raw, &noise(6, MIB << 20));
    host.shell(&format!(
        "truncate -s 128M {0}; mkfs.ext4 -q {0}; qemu-img convert -f raw -O qcow2 {raw} {cloud}",
        below.image
    ));
    below.mount_cold();
    host.clonefs_ok(&format!("import {cloud} {}", host.pool("gold.img")));
    host.define(&tiny.domain("gold", &format!("job=head mib={MIB}"), &disk(&host.pool("gold.img"), "raw", "vda")));
    below.unmount();

    below.mount_cold();
    let before = below.read();
    host.virsh_ok("start gold");
    tiny.wait_ok("gold");
    let one = below.read() - before;
    assert!(one >= (MIB << 20) as u64, "one machine read {one} bytes");
    let sum = format!("SUM {}", &host.shell(&format!("md5sum <{raw}"))[..32]);
    assert_eq!(tiny.said("gold")[0], sum);
    below.unmount();

    below.mount_cold();
    let before = below.read();
    host.clonefs_ok("domain clone gold vm{} --count 3 --start");
    let names = ["vm1", "vm2", "vm3"];
    names.iter().for_each(|name| tiny.wait_ok(name));
    let three = below.read() - before;
    assert!(three * 10 <= one * 12, "three machines read {three} bytes, one {one}");
    for name in names {
        assert_eq!(tiny.said(name)[0], sum);
    }
    below.unmount();
}

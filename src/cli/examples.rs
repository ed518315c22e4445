//! What `--help` shows below the flags: examples that run as they stand, and the exit codes.

pub const CLONEFS: &str = "\
Examples:
  clonefs mount /srv/vms                   mount the directory over itself
  cd /srv/vms
  clonefs clone base.img vm1.img           a clone, usable at once
  clonefs clone base.img --count 20 'vm{}.img'
  clonefs status --watch                   watch the clones become ordinary files
  clonefs unmount /srv/vms

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted; clonefs check has those of fsck.";

pub const MOUNT: &str = "\
Examples:
  clonefs mount /srv/vms                   over the directory itself
  clonefs mount /srv/vms /mnt/vms          at another place
  clonefs mount /srv/vms -o allow_other    for virtual machines that run as another user
  clonefs mount /srv/vms --deepen manual   clones stay overlays until clonefs deepen
  clonefs mount /srv/vms --rate 200M       background copies take no more than 200 MiB/s
  clonefs mount /srv/vms -o warn=80%,stop-deepening=90%,refuse-clones=20G

The watermarks of the last example are shares in use or sizes left free; see docs/cli.md.

Returns when the mount answers. clonefs unmount, SIGTERM and SIGINT end it in good order.";

pub const UNMOUNT: &str = "\
Examples:
  clonefs unmount /srv/vms
  clonefs unmount --lazy /srv/vms          also while files in it are open";

pub const INIT: &str = "\
Examples:
  clonefs init /srv/vms

The first clone does the same by itself.";

pub const CLONE: &str = "\
Examples:
  clonefs clone base.img vm1.img           usable at once; independent later, in the background
  clonefs clone base.img vm1.img --size 40G
  clonefs clone base.img data.img vms/     several into a directory
  clonefs clone base.img --count 100 'vm{:03}.img'
  clonefs clone -r golden/ lab1            a directory tree, as of one moment
  clonefs clone --group os.img data.img snap1
                                           several files as of one moment, into the new directory snap1
  clonefs clone /elsewhere/base.img .      from outside of the pool: copied, with a progress bar
  clonefs clone base.img                   makes base.img-clone and prints that name

The clone has the size, mode, ACL and extended attributes of the source, and its owner as far as the caller may give
it (as cp -p does). It was modified now; the files of a tree (-r) keep their times, as with cp -a. When one clone of
a command fails, those that it made before are removed again.";

pub const SNAPSHOT: &str = "\
Examples:
  clonefs snapshot create vm1.img@before-upgrade
  clonefs snapshot list
  clonefs clone vm1.img@before-upgrade test.img
  clonefs snapshot rollback vm1.img@before-upgrade

A snapshot is a read-only file, .snapshots/VOL@NAME at the root of the mount, which is reached by name and not listed.";

pub const SNAPSHOT_CREATE: &str = "\
Examples:
  clonefs snapshot create vm1.img@monday           also while vm1.img is in use
  clonefs snapshot create os.img data.img@monday   both of one moment
  clonefs snapshot create -r lab@monday            all files below lab, of one moment

All snapshots of one command are of one moment, made all or none, and durable. They have the owner, mode and ACL that
the volume has at that moment. Names have no @ and no /.";

pub const SNAPSHOT_LIST: &str = "\
Examples:
  clonefs snapshot list vm1.img
  clonefs snapshot list --json /srv/vms | jq -r '.[].path'";

pub const SNAPSHOT_ROLLBACK: &str = "\
Examples:
  clonefs snapshot rollback vm1.img@monday

Nobody may have the volume open. What was written since is lost, unless another snapshot holds it; later snapshots stay.
Name, owner, mode and attributes of the volume stay as they are now.";

pub const SNAPSHOT_REMOVE: &str = "\
Examples:
  clonefs snapshot remove vm1.img@monday vm1.img@tuesday

The names are free at once, the space that nothing else needs comes back in the background.";

pub const SNAPSHOT_RENAME: &str = "\
Examples:
  clonefs snapshot rename vm1.img@monday before-upgrade";

pub const RESET: &str = "\
Examples:
  clonefs clone --no-deepen golden.img desk1.img
  clonefs reset desk1.img                          as if it had just been cloned

Nobody may have the volume open. Possible while the clone still reads from what it was cloned from: --no-deepen keeps it
so.";

pub const DIFF: &str = "\
Examples:
  clonefs diff vm1.img@monday vm1.img
  clonefs diff base.img vm1.img --json | jq .bytes

Each line has the offset and the length of what differs, in bytes. Only what the two do not share is read and compared,
so the time goes with what differs and not with their size. Snapshots stand still; a volume that is being written is seen
as it is at the moment of looking, piece by piece.";

pub const RESIZE: &str = "\
Examples:
  clonefs resize vm1.img 40G                       larger, also while it is in use; the rest reads as zeros
  clonefs resize vm1.img +10G
  clonefs resize vm1.img 20G --shrink              smaller: only while nobody has it open

Prints what a guest sees of it, and what is to be done there. For raw images: qcow2 has a size of its own.";

pub const DEEPEN: &str = "\
Examples:
  clonefs deepen vm1.img
  clonefs deepen --wait vm1.img vm2.img
  clonefs deepen --rate 200M .             everything below this directory, at 200 MiB/s";

pub const PATHS: &str = "\
Examples:
  clonefs pause vm1.img
  clonefs resume vm1.img
  clonefs wait vm1.img vm2.img             returns when both are ordinary files
  clonefs pause /srv/vms                   the mount point: the whole pool (root only)

wait fails when a volume cannot become independent by waiting: it is paused, it failed, or nothing deepens it.";

pub const LIST: &str = "\
Examples:
  clonefs list
  clonefs list /srv/vms/lab1
  clonefs list --json | jq -r '.[] | select(.state == \"overlay\") | .path'

UNIQUE and SHARED are bytes on disk; FREED is what comes free when the volume is deleted.";

pub const STATUS: &str = "\
Examples:
  clonefs status
  clonefs status /srv/vms --watch
  clonefs status --json | jq .job_count";

pub const TREE: &str = "\
Examples:
  clonefs tree /srv/vms

A volume stands below the one that it was cloned from, while they share blocks.";

pub const USAGE: &str = "\
Examples:
  clonefs usage /srv/vms
  clonefs usage /srv/vms --by uid          what each user's volumes take
  clonefs usage --by tree --json | jq -r '.groups[] | [.name, .own] | @tsv'

PRESENT counts blocks of the volume's own file, OWN and SHARED bytes on disk in files that no other volume reads and
that others read too; FREED is what comes free when it is deleted, TO COPY what deepening has still to copy at most.
In a group, OWN is what comes free when all of it is deleted, and DEMAND what its volumes take when they are written
in full. Every file on disk counts once.";

pub const POLICY: &str = "\
Examples:
  clonefs policy set /srv/vms/golden --protect
  clonefs policy get /srv/vms/golden/base.img      see clonefs policy set --help";

pub const POLICY_GET: &str = "\
Examples:
  clonefs policy get vm1.img
  clonefs policy get vm1.img --key deepen";

pub const POLICY_SET: &str = "\
Examples:
  clonefs policy set /srv/vms --deepen idle --rate 200M
  clonefs policy set golden --protect              a tree: nothing in it is deleted, overwritten or renamed
  clonefs policy set golden/test.img --protect=false
  clonefs policy set labs --keep-linked            clones stay overlays, which take the least space
  clonefs policy set vm1.img --deepen 'by 12h'
  clonefs policy set /srv/vms --snapshots hourly=24,daily=7,weekly=4
  clonefs policy set /srv/vms --clone-name '{stem}-clone{ext}' --names '*.img'

Settings hold for all that lies below and does not say else. They belong to paths: a file that is renamed has those of
its new place. Root and the user who mounted the pool may set them. docs/policy.md has the file that they are kept in.";

pub const POLICY_UNSET: &str = "\
Examples:
  clonefs policy unset golden protect
  clonefs policy unset vm1.img                     everything that was set for this path";

pub const POLICY_LIST: &str = "\
Examples:
  clonefs policy list
  clonefs policy list /srv/vms --json | jq .policies";

pub const EVENTS: &str = "\
Examples:
  clonefs events /srv/vms
  clonefs events --since 1h --json | jq -r 'select(.event == \"refused\") | [.path, .why] | @tsv'
  clonefs events --follow

Root and the user who mounted the pool see all events, others those of what they have asked for. The last 4 to 8 MiB of
them are kept in the pool.";

pub const METRICS: &str = "\
Examples:
  clonefs metrics /srv/vms
  clonefs metrics --usage --output /var/lib/prometheus/node-exporter/clonefs.prom

The second line is for a timer and the textfile collector of node_exporter; see docs/metrics.md.";

pub const EXPORT: &str = "\
Examples:
  clonefs export vm1.img /backup/vm1.qcow2 --format qcow2 --compress zstd
  clonefs export vm1.img /backup/vm1.raw --format raw

The image holds one moment of the volume, also while a virtual machine writes to it.";

pub const IMPORT: &str = "\
Examples:
  clonefs import debian-12.qcow2 /srv/vms/debian.img --format qcow2
  clonefs import disk.vmdk /srv/vms/disk.img";

pub const CHECK: &str = "\
Examples:
  clonefs check /srv/vms
  clonefs check /srv/vms --json
  clonefs check /srv/vms --repair
  clonefs check /srv/vms --repair --accept /srv/vms/web.img

A mounted pool is checked by its daemon, for root and the user who mounted it; clones that are being made meanwhile
can look like damage. Without --repair nothing is changed.

--repair needs a pool that is not mounted. It keeps the old metadata in .clonefs/lost and guesses nothing: a volume
whose record is lost or may be out of date reads as EIO until it is deleted, or taken as it is with --accept.

Exit codes, as fsck: 0 clean, 1 all damage was repaired, 4 damage was found and is still there, 8 the check could not be
made, 16 wrong usage.";

pub const SYNC: &str = "\
Examples:
  clonefs sync
  clonefs sync /srv/vms && sync
  clonefs sync vm1.img

The kernel does not tell a FUSE filesystem of sync(1): what was written to clones in the last seconds is not durable when
that returns. This makes it so, for all pools that are mounted, for those named, or for a file. Scripts that shut a machine
down call it before they call sync. For a whole pool one must be root or have mounted it; a file one must be able to read.";

pub const SCRUB: &str = "\
Examples:
  clonefs scrub /srv/vms
  clonefs scrub --json
  clonefs scrub /srv/vms --no-wait && clonefs status /srv/vms

Reads every frozen layer, which is what clones share, and compares it with a checksum for each MiB. Checksums are taken
in the background while the pool is at rest, or by the first scrub; what changed before that is not seen, nor are plain
files, and blocks that a volume has written itself. A damaged MiB gives EIO to all who would read it.

Exit codes, as fsck: 0 nothing is damaged, 4 damage was found, 8 the scrub could not be made, 16 wrong usage.";

pub const COMPLETIONS: &str = "\
Examples:
  clonefs completions bash > /etc/bash_completion.d/clonefs
  clonefs completions zsh > \"${fpath[1]}/_clonefs\"
  clonefs completions fish > ~/.config/fish/completions/clonefs.fish";

pub const MAN: &str = "\
Examples:
  clonefs man /usr/local/share/man/man1";

pub const DOMAIN_CLONE: &str = "\
Examples:
  clonefs domain clone golden web1                 shut off: usable at once, independent later
  clonefs domain clone db db-test --live           running: all disks as they are at one instant
  clonefs domain clone golden 'vm{}' --count 20 --start
  clonefs domain clone golden web1 --disk vdb=skip --disk vda=fast/web1.qcow2,size=40G
  clonefs domain clone golden web1 --hostname web1 --user-data user-data.yaml
  clonefs domain clone golden web1 --customize 'virt-sysprep -a \"$CLONEFS_DISK\"'
  clonefs domain clone golden web1 --dry-run       what would differ in the XML

The clone has a new name, UUID, network addresses (of the same maker) and free ports; docs/domain.md lists what is
kept and what is changed, and why. If anything fails, nothing of it is left behind.

A clone has the host name and the keys of its source until somebody changes them: --hostname, --user-data and
--meta-data give it a cloud-init seed with a new instance id; --customize runs a command on its disks before it is
defined, with CLONEFS_DOMAIN, CLONEFS_UUID, CLONEFS_DISK, CLONEFS_FORMAT and, for each disk, CLONEFS_DISK_vda set.";

pub const DOMAIN_SNAPSHOT_CREATE: &str = "\
Examples:
  clonefs domain snapshot create web1 before-upgrade
  clonefs domain snapshot create db --quiesce      its guest agent freezes its filesystems meanwhile

It holds all disks of the domain as they are at one moment, its definition, NVRAM and the state of its TPM; not its
memory. The disks must lie in one pool. `clonefs domain clone --snapshot` makes a new domain of it.";

pub const DOMAIN_SNAPSHOT_LIST: &str = "\
Examples:
  clonefs domain snapshot list web1
  clonefs domain snapshot list web1 --json";

pub const DOMAIN_SNAPSHOT_SHOW: &str = "\
Examples:
  clonefs domain snapshot show web1 before-upgrade
  clonefs domain snapshot show web1 before-upgrade --xml | diff - <(virsh dumpxml --inactive web1)";

pub const DOMAIN_SNAPSHOT_ROLLBACK: &str = "\
Examples:
  virsh shutdown web1
  clonefs domain snapshot rollback web1 before-upgrade

Disks, definition, NVRAM and TPM become what they were; what was written since is lost, unless another snapshot holds
it. If a step fails, the domain is what it was before.";

pub const DOMAIN_SNAPSHOT_REMOVE: &str = "\
Examples:
  clonefs domain snapshot remove web1 before-upgrade

Clones that were made of it stay as they are. Remove the snapshots of a domain before you undefine it.";

pub const POOL_DEFINE: &str = "\
Examples:
  clonefs pool define vms /srv/vms                 a libvirt directory pool over a mounted clonefs pool
  virsh vol-list vms

The same by hand: virsh pool-define-as vms dir --target /srv/vms; virsh pool-start vms";

pub const DOMAIN: &str = "\
Examples:
  clonefs domain clone golden web1                 see clonefs domain clone --help";

pub const POOL: &str = "\
Examples:
  clonefs pool define vms /srv/vms                 see clonefs pool define --help";

pub const DOCTOR: &str = "\
Examples:
  clonefs doctor                                   this host
  clonefs doctor /srv/vms                          and the pool that is mounted there
  clonefs doctor web1                              and the disks of this domain, with their pools

Nothing is changed. Exit codes: 0 nothing keeps machines from running, 1 something does.";

//! Import of images that are damaged, cut short, or made to do harm. Each must give a clear error, in bounded time and
//! memory, and leave nothing behind; one that is taken must give the right bytes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clonefs::error::{Error, Kind};
use clonefs::units::MAX_VOLUME;

use crate::support::{Dir, convert, import, import_options, noise, qemu_img};

/// A change of some bytes of a file.
fn patch(image: &Path, offset: u64, bytes: &[u8]) {
    File::options().write(true).open(image).unwrap().write_all_at(bytes, offset).unwrap();
}

/// Expects that an image is refused and nothing is left of the attempt.
#[track_caller]
fn refused(dir: &Dir, image: &Path) -> Error {
    let before = dir.names();
    let error = import(import_options(image, &dir.path("dst"))).expect_err("it was taken");
    assert_eq!(dir.names(), before, "left behind after: {error}");
    let text = error.to_string();
    assert!(text.contains(&format!("{image:?}")), "which image? {text}");
    assert!(!text.contains("\"nbd\"") && text.len() < 1000, "{text}");
    error
}

fn sound(dir: &Dir, name: &str, bytes: &[u8], extra: &[&str]) -> PathBuf {
    let (raw, image) = (dir.write("source", bytes), dir.path(name));
    convert(&raw, &image, extra);
    image
}

/// Images of a few hundred kilobytes of data that fill their files to the end.
const IMAGES: [(&str, &[&str]); 9] = [
    ("a.qcow2", &[]),
    ("small.qcow2", &["-o", "cluster_size=512"]),
    ("compressed.qcow2", &["-c"]),
    ("zstd.qcow2", &["-c", "-o", "compression_type=zstd"]),
    ("a.vmdk", &[]),
    ("stream.vmdk", &["-o", "subformat=streamOptimized"]),
    ("a.vhdx", &[]),
    ("a.vdi", &[]),
    ("static.vdi", &["-o", "static=on"]),
];

#[test]
fn an_image_that_is_cut_short_is_refused_or_nothing_of_it_was_lost() {
    for (name, extra) in IMAGES {
        let dir = Dir::new();
        // Text compresses, and not to nothing.
        let bytes: Vec<u8> = noise(300 << 10, 1).iter().map(|b| b'a' + b % 16).collect();
        let image = sound(&dir, name, &bytes, extra);
        let whole = fs::read(&image).unwrap();
        let len = whole.len();
        let from_end = [1, 2, 511, 512, 513, 1024, 4096, 5000, 20_000, 60_000, 65_536, 65_537, 100_000, 131_072];
        let lengths = from_end.iter().map(|cut| len.saturating_sub(*cut)).chain((0..16).map(|i| len * i / 16));
        let mut refused = 0;
        for shorter in lengths.chain([1, 4, 72, 104, 512]) {
            fs::write(&image, &whole[..shorter]).unwrap();
            match import(import_options(&image, &dir.path("dst"))) {
                Err(error) => {
                    assert!(matches!(error.kind(), Kind::Invalid | Kind::Io | Kind::Unsupported), "{error}");
                    assert!(!dir.path("dst").exists());
                    refused += 1;
                }
                Ok(_) => {
                    let imported = fs::read(dir.path("dst")).unwrap();
                    assert!(imported == bytes, "{name}: {shorter} of {len} bytes were taken and read wrongly");
                    fs::remove_file(dir.path("dst")).unwrap();
                }
            }
        }
        // Much of a vhdx or vdi file lies past the end of this disk and holds nothing.
        assert!(refused >= 12, "{name}: {refused}");
    }
}

#[test]
fn every_cluster_size_that_qcow2_does_not_have_is_refused() {
    let dir = Dir::new();
    let image = sound(&dir, "a.qcow2", &noise(100 << 10, 1), &[]);
    for bits in (0..64u32).filter(|b| *b != 16).chain([255, u32::MAX]) {
        patch(&image, 20, &bits.to_be_bytes());
        let error = refused(&dir, &image);
        assert_eq!(error.kind(), Kind::Invalid, "2^{bits}: {error}");
    }
}

#[test]
fn absurd_sizes_are_refused_before_anything_is_written() {
    let dir = Dir::new();
    let bytes = noise(100 << 10, 1);
    let image = sound(&dir, "a.qcow2", &bytes, &[]);
    for size in [u64::MAX, i64::MAX as u64, 1 << 62, MAX_VOLUME + 4096, MAX_VOLUME + 1] {
        patch(&image, 24, &size.to_be_bytes());
        assert_eq!(refused(&dir, &image).kind(), Kind::TooLarge);
    }
    // One that is allowed needs a larger L1 table than there is.
    patch(&image, 24, &MAX_VOLUME.to_be_bytes());
    assert_eq!(refused(&dir, &image).kind(), Kind::Invalid);

    let image = sound(&dir, "a.vmdk", &bytes, &[]);
    for sectors in [u64::MAX, 1 << 55, MAX_VOLUME / 512 + 1] {
        patch(&image, 12, &sectors.to_le_bytes());
        assert_eq!(refused(&dir, &image).kind(), Kind::TooLarge);
    }
    let image = sound(&dir, "a.vdi", &bytes, &[]);
    for size in [u64::MAX, 1 << 62, MAX_VOLUME + 1] {
        patch(&image, 0x170, &size.to_le_bytes());
        assert_eq!(refused(&dir, &image).kind(), Kind::TooLarge);
    }
    let image = dir.path("a.vhdx");
    qemu_img(&["create", "-q", "-f", "vhdx", image.to_str().unwrap(), "20T"]);
    assert_eq!(refused(&dir, &image).kind(), Kind::TooLarge);
    let image = dir.path("a.raw");
    if File::create(&image).unwrap().set_len(MAX_VOLUME + 4096).is_ok() {
        assert_eq!(refused(&dir, &image).kind(), Kind::TooLarge);
    }
}

#[test]
fn absurd_tables_are_refused() {
    let dir = Dir::new();
    let bytes = noise(100 << 10, 1);
    let image = sound(&dir, "a.qcow2", &bytes, &[]);
    let whole = fs::read(&image).unwrap();
    // Offset in the header, value: L1 entries, L1 offset, refcount table offset and clusters, snapshots and their offset.
    let fields: [(u64, &[u8]); 12] = [
        (36, &u32::MAX.to_be_bytes()),
        (36, &0u32.to_be_bytes()),
        (36, &(4u32 << 20).to_be_bytes()),
        (40, &u64::MAX.to_be_bytes()),
        (40, &0u64.to_be_bytes()),
        (40, &(1u64 << 62).to_be_bytes()),
        (48, &u64::MAX.to_be_bytes()),
        (56, &u32::MAX.to_be_bytes()),
        (60, &u32::MAX.to_be_bytes()),
        (64, &u64::MAX.to_be_bytes()),
        (96, &u32::MAX.to_be_bytes()),
        (100, &u32::MAX.to_be_bytes()),
    ];
    for (offset, value) in fields {
        patch(&image, 0, &whole);
        patch(&image, offset, value);
        if offset == 64 {
            patch(&image, 60, &1u32.to_be_bytes());
        }
        let error = refused(&dir, &image);
        assert_eq!(error.kind(), Kind::Invalid, "{offset}: {error}");
    }
}

#[test]
fn tables_that_overlap_are_refused() {
    let dir = Dir::new();
    let image = sound(&dir, "a.qcow2", &noise(1 << 20, 1), &[]);
    // All clusters of the disk are one cluster of the file.
    let l1 = u64::from_be_bytes(read(&image, 40));
    let l2 = u64::from_be_bytes(read(&image, l1)) & 0x00ff_ffff_ffff_fe00;
    let first: [u8; 8] = read(&image, l2);
    patch(&image, l2, &first.repeat(8192));
    assert_eq!(refused(&dir, &image).kind(), Kind::Invalid);
    // The L1 table is its own L2 table.
    let image = sound(&dir, "b.qcow2", &noise(1 << 20, 1), &[]);
    patch(&image, l1, &(l1 | 1 << 63).to_be_bytes());
    assert_eq!(refused(&dir, &image).kind(), Kind::Invalid);
    // All blocks of a vdi image are one.
    let image = sound(&dir, "a.vdi", &noise(4 << 20, 1), &[]);
    patch(&image, u32::from_le_bytes(read(&image, 0x154)).into(), &[0; 16]);
    assert_eq!(refused(&dir, &image).kind(), Kind::Invalid);
    // A block that is not there.
    let image = sound(&dir, "b.vdi", &noise(4 << 20, 1), &[]);
    patch(&image, u32::from_le_bytes(read(&image, 0x154)).into(), &4u32.to_le_bytes());
    assert_eq!(refused(&dir, &image).kind(), Kind::Invalid);
}

fn read<const N: usize>(image: &Path, offset: u64) -> [u8; N] {
    let mut bytes = [0; N];
    File::open(image).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

#[test]
fn a_flipped_byte_in_a_header_is_survived() {
    for (name, len) in [("a.qcow2", 112), ("a.vmdk", 80), ("a.vdi", 0x200)] {
        let dir = Dir::new();
        let image = sound(&dir, name, &noise(100 << 10, 1), &[]);
        let whole = fs::read(&image).unwrap();
        for at in 0..len {
            patch(&image, at, &[!whole[at as usize]]);
            if import(import_options(&image, &dir.path("dst"))).is_ok() {
                fs::remove_file(dir.path("dst")).unwrap();
            }
            assert_eq!(dir.names(), [name, "source"]);
            patch(&image, at, &whole[at as usize..=at as usize]);
        }
    }
}

/// Gives a qcow2 image without a backing file the name of one, as an attacker would.
fn name_backing(image: &Path, name: &[u8], format: Option<&[u8]>) {
    let mut extensions = Vec::new();
    if let Some(format) = format {
        extensions.extend(0xe279_2acau32.to_be_bytes());
        extensions.extend((format.len() as u32).to_be_bytes());
        extensions.extend(format);
        extensions.resize(extensions.len().next_multiple_of(8), 0);
    }
    extensions.extend([0; 8]);
    patch(image, 112, &extensions);
    patch(image, 1024, name);
    patch(image, 8, &1024u64.to_be_bytes());
    patch(image, 16, &(name.len() as u32).to_be_bytes());
}

#[test]
fn names_in_an_image_are_never_more_than_names() {
    let dir = Dir::new();
    let image = sound(&dir, "a.qcow2", &noise(100 << 10, 1), &[]);
    let secret = dir.write("secret", b"secret");
    let names: [&[u8]; 9] = [
        b"json:{\"driver\":\"file\",\"filename\":\"secret\"}",
        b"nbd://localhost/x",
        b"file:secret",
        b"fat:rw:/etc",
        b"ssh://host/x",
        b"\x1b[2J:x",
        b"/dev/zero",
        b"a.qcow2/../secret\0",
        b"/proc/self/fd/0",
    ];
    for name in names {
        name_backing(&image, name, Some(b"raw"));
        assert_eq!(refused(&dir, &image).kind(), Kind::Invalid);
        let mut options = import_options(&image, &dir.path("dst"));
        options.allow_backing = true;
        let error = import(options).unwrap_err();
        assert!(matches!(error.kind(), Kind::Invalid | Kind::NotFound), "{error}");
        assert!(!error.to_string().contains('\x1b'));
        assert!(!dir.path("dst").exists());
    }
    let formats: [Option<&[u8]>; 5] = [None, Some(b"json"), Some(b"vvfat"), Some(b""), Some(b"nbd")];
    for format in formats {
        name_backing(&image, secret.to_str().unwrap().as_bytes(), format);
        let mut options = import_options(&image, &dir.path("dst"));
        options.allow_backing = true;
        let error = import(options).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
    }
}

#[test]
fn a_chain_without_end_is_refused() {
    let dir = Dir::new();
    let image = sound(&dir, "a.qcow2", &noise(100 << 10, 1), &[]);
    name_backing(&image, b"a.qcow2", Some(b"qcow2"));
    let mut options = import_options(&image, &dir.path("dst"));
    options.allow_backing = true;
    let error = import(options).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("64"), "{error}");
}

#[test]
fn vmdk_images_of_several_files_are_refused() {
    let bytes = noise(100 << 10, 1);
    for subformat in ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let dir = Dir::new();
        let image = sound(&dir, "a.vmdk", &bytes, &["-o", &format!("subformat={subformat}")]);
        assert_eq!(refused(&dir, &image).kind(), Kind::Unsupported);
        // A part of the disk is no disk.
        for part in dir.names().iter().filter(|n| n.starts_with("a-s0")) {
            assert!(matches!(refused(&dir, &dir.path(part)).kind(), Kind::Unsupported));
        }
    }
    let dir = Dir::new();
    sound(&dir, "base.vmdk", &bytes, &[]);
    let (image, base) = (dir.path("a.vmdk"), dir.path("base.vmdk"));
    let (image_name, base_name) = (image.to_str().unwrap(), base.to_str().unwrap());
    qemu_img(&["create", "-q", "-f", "vmdk", "-b", base_name, "-F", "vmdk", image_name]);
    assert_eq!(refused(&dir, &image).kind(), Kind::Unsupported);
    let mut options = import_options(&image, &dir.path("dst"));
    options.allow_backing = true;
    assert_eq!(import(options).unwrap_err().kind(), Kind::Unsupported);
}

#[test]
fn what_cannot_be_read_says_so() {
    let dir = Dir::new();
    let image = sound(&dir, "a.qcow2", &noise(100 << 10, 1), &[]);
    patch(&image, 32, &1u32.to_be_bytes());
    assert_eq!(refused(&dir, &image).kind(), Kind::Unsupported);
    patch(&image, 32, &0u32.to_be_bytes());
    patch(&image, 72, &(1u64 << 1).to_be_bytes());
    let error = refused(&dir, &image);
    assert!(error.to_string().contains("corrupt"), "{error}");
    patch(&image, 72, &(1u64 << 40).to_be_bytes());
    assert_eq!(refused(&dir, &image).kind(), Kind::Unsupported);
    patch(&image, 72, &(1u64 << 2).to_be_bytes());
    let error = refused(&dir, &image);
    assert!(error.to_string().contains("another file"), "{error}");
    patch(&image, 72, &0u64.to_be_bytes());
    import(import_options(&image, &dir.path("dst"))).unwrap();
}

/// A small filesystem; `None` where this user cannot mount.
struct SmallDisk(Dir);

impl SmallDisk {
    fn new() -> Option<SmallDisk> {
        let disk = SmallDisk(Dir::new());
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=16M", "clonefs-test"]).arg(disk.0.path(""));
        let mounted = mount.output().unwrap().status.success();
        if !mounted {
            eprintln!("left out: mounting takes root");
        }
        mounted.then_some(disk)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path("")).status();
    }
}

#[test]
fn a_bomb_is_refused_before_it_fills_the_disk() {
    let Some(disk) = SmallDisk::new() else { return };
    let dir = Dir::new();
    let bytes = vec![b'x'; 64 << 20];
    for (name, extra) in [
        ("a.qcow2", &["-c"][..]),
        ("zstd.qcow2", &["-c", "-o", "compression_type=zstd"]),
        ("a.vmdk", &["-o", "subformat=streamOptimized"]),
    ] {
        let image = sound(&dir, name, &bytes, extra);
        assert!(fs::metadata(&image).unwrap().len() < 2 << 20);
        let error = import(import_options(&image, &disk.0.path("dst"))).unwrap_err();
        assert_eq!((error.kind(), error.errno()), (Kind::Io, libc::ENOSPC));
        assert!(error.to_string().contains("it needs 64"), "{error}");
        assert!(disk.0.names().is_empty());
    }
}

#[test]
fn a_full_disk_is_said_and_nothing_is_left_on_it() {
    use clonefs::client::transfer::ExportFormat;

    use crate::support::{export, export_options};
    let Some(disk) = SmallDisk::new() else { return };
    let dir = Dir::new();
    let source = dir.write("source.raw", &noise(20 << 20, 1));
    disk.0.write("dst", b"precious");
    for force in [false, true] {
        let out = disk.0.path(if force { "dst" } else { "new" });
        for format in [ExportFormat::Raw, ExportFormat::Qcow2, ExportFormat::Vmdk] {
            let mut options = export_options(&source, &out, format);
            options.force = force;
            let error = export(options).unwrap_err();
            assert_eq!((error.kind(), error.errno()), (Kind::Io, libc::ENOSPC), "{format}: {error}");
            assert_eq!(error.path(), Some(out.as_path()));
        }
        for name in ["source.raw", "a.qcow2", "a.vhdx"] {
            if name != "source.raw" && !dir.path(name).exists() {
                convert(&source, &dir.path(name), &[]);
            }
            let mut options = import_options(&dir.path(name), &out);
            options.force = force;
            let error = import(options).unwrap_err();
            assert_eq!((error.kind(), error.errno()), (Kind::Io, libc::ENOSPC), "{name}: {error}");
        }
        assert_eq!(disk.0.names(), ["dst"]);
        assert_eq!(fs::read(disk.0.path("dst")).unwrap(), b"precious");
    }
}

//! Import of sound images.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use clonefs::client::transfer::{self, ImportFormat};
use clonefs::error::Kind;

use crate::support::{Dir, allocated, assert_same_disk, convert, import, import_options, noise, qemu_img};

/// Image names, with what qemu-img is told to make them.
const IMAGES: [(&str, &[&str]); 12] = [
    ("a.raw", &[]),
    ("a.qcow2", &[]),
    ("old.qcow2", &["-o", "compat=0.10,cluster_size=4096"]),
    ("compressed.qcow2", &["-c"]),
    ("zstd.qcow2", &["-c", "-o", "compression_type=zstd"]),
    ("extended.qcow2", &["-o", "extended_l2=on,cluster_size=128k"]),
    ("full.qcow2", &["-o", "preallocation=full"]),
    ("a.vmdk", &[]),
    ("stream.vmdk", &["-o", "subformat=streamOptimized"]),
    ("a.vhdx", &[]),
    ("a.vdi", &[]),
    ("static.vdi", &["-o", "static=on"]),
];

/// Sizes in sectors' multiples: what the formats can hold.
const SIZES: [usize; 5] = [512, 65536, 65536 + 512, (3 << 20) + 1024, 9 << 20];

#[test]
fn every_format_is_imported_byte_for_byte() {
    for size in SIZES {
        let dir = Dir::new();
        // Data, zeros in the middle, data up to the last byte.
        let mut bytes = noise(size, 1);
        bytes[size / 3..size / 2].fill(0);
        let raw = dir.write("source", &bytes);
        for (name, extra) in IMAGES {
            let image = dir.path(name);
            convert(&raw, &image, extra);
            let dst = dir.path("dst");
            let report = import(import_options(&image, &dst)).unwrap();
            let expected = ImportFormat::from_path(&image).unwrap();
            assert_eq!((report.size, report.format, report.in_pool), (size as u64, expected, false));
            assert!(fs::read(&dst).unwrap() == bytes, "{name}, {size} bytes");
            fs::remove_file(&dst).unwrap();
        }
    }
}

#[test]
fn an_empty_image_becomes_an_empty_file() {
    for name in ["a.raw", "a.qcow2", "a.vdi"] {
        let dir = Dir::new();
        let raw = dir.write("source", b"");
        convert(&raw, &dir.path(name), &[]);
        assert_eq!(import(import_options(&dir.path(name), &dir.path("dst"))).unwrap().size, 0);
        assert_eq!(fs::metadata(dir.path("dst")).unwrap().len(), 0);
    }
}

#[test]
fn what_is_sparse_stays_sparse() {
    let dir = Dir::new();
    for (name, size) in
        [("a.raw", 1 << 40), ("a.qcow2", 1 << 40), ("a.vmdk", 1 << 38), ("a.vdi", 1 << 38), ("a.vhdx", 1 << 32)]
    {
        let raw = dir.sparse("source", size, &[0, size / 2 + 512, size - 5000]);
        let (image, dst) = (dir.path(name), dir.path("dst"));
        convert(&raw, &image, &[]);
        let report = import(import_options(&image, &dst)).unwrap();
        assert_eq!((report.size, report.allocated), (size, allocated(&dst)));
        assert!(report.allocated <= 4 << 20, "{name}: {} bytes", report.allocated);
        assert_same_disk(&dst, "raw", &raw);
        fs::remove_file(&dst).unwrap();
        fs::remove_file(&image).unwrap();
    }
}

#[test]
fn the_format_comes_from_the_name_or_the_option_and_never_from_the_content() {
    let dir = Dir::new();
    let raw = dir.write("source", &noise(1 << 20, 1));
    convert(&raw, &dir.path("a.qcow2"), &[]);
    let bytes = fs::read(dir.path("a.qcow2")).unwrap();
    // What a guest can do: write a header of an image into its raw disk.
    for name in ["guest.img", "guest.RAW"] {
        let image = dir.write(name, &bytes);
        let dst = dir.path("dst");
        assert_eq!(import(import_options(&image, &dst)).unwrap().format, ImportFormat::Raw);
        assert!(fs::read(&dst).unwrap() == bytes);
        fs::remove_file(dst).unwrap();
    }
    for name in ["image", "image.iso", "qcow2"] {
        let image = dir.write(name, &bytes);
        let error = import(import_options(&image, &dir.path("dst"))).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains("--format"), "{error}");
        let mut options = import_options(&image, &dir.path("dst"));
        (options.format, options.force) = (Some(ImportFormat::Qcow2), true);
        import(options).unwrap();
        assert_same_disk(&dir.path("dst"), "raw", &raw);
        fs::remove_file(dir.path("dst")).unwrap();
    }
    for format in [ImportFormat::Qcow2, ImportFormat::Vmdk, ImportFormat::Vhdx, ImportFormat::Vdi] {
        let mut options = import_options(&raw, &dir.path("dst"));
        options.format = Some(format);
        let error = import(options).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert!(!dir.path("dst").exists());
    }
}

#[test]
fn a_name_with_a_protocol_is_a_name() {
    let dir = Dir::new();
    let raw = dir.write("source", &noise(100 << 10, 1));
    convert(&raw, &dir.path("a.qcow2"), &[]);
    for name in
        ["json:{\"driver\":\"null-co\"}.qcow2", "nbd:localhost:1.qcow2", "file:x.qcow2", "fat:.qcow2", "-c.qcow2"]
    {
        fs::rename(dir.path("a.qcow2"), dir.path(name)).unwrap();
        let error = import(import_options(Path::new(name), &dir.path("dst"))).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "it is a name in the working directory: {error}");
        import(import_options(&dir.path(name), &dir.path("json:dst"))).unwrap();
        assert_same_disk(&dir.path("json:dst"), "raw", &raw);
        fs::remove_file(dir.path("json:dst")).unwrap();
        fs::rename(dir.path(name), dir.path("a.qcow2")).unwrap();
    }
}

/// Makes `top` over `base`, with some data of its own.
fn overlay(dir: &Dir, top: &str, base: &str, base_format: &str, at: &str) {
    let (path, size) = (dir.path(top), "2M");
    let path = path.to_str().unwrap();
    qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", base_format, path, size]);
    let command = format!("write -q -P 0x{} {at} 64k", &at[..2]);
    let status = Command::new("qemu-io").args(["-f", "qcow2", "-c", &command, path]).status().unwrap();
    assert!(status.success());
}

#[test]
fn backing_files_are_read_only_with_leave() {
    let dir = Dir::new();
    let raw = dir.write("base.raw", &noise(2 << 20, 1));
    convert(&raw, &dir.path("base.qcow2"), &[]);
    for (base, format) in [("base.raw", "raw"), ("base.qcow2", "qcow2"), (raw.to_str().unwrap(), "raw")] {
        overlay(&dir, "middle.qcow2", base, format, "64k");
        overlay(&dir, "top.qcow2", "./middle.qcow2", "qcow2", "192k");
        let (top, dst) = (dir.path("top.qcow2"), dir.path("dst"));
        let mut options = import_options(&top, &dst);
        let error = import(options.clone()).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains("--allow-backing") && error.to_string().contains("middle"), "{error}");
        assert!(!dst.exists());
        options.allow_backing = true;
        import(options).unwrap();
        qemu_img(&["compare", "-f", "qcow2", "-F", "raw", top.to_str().unwrap(), dst.to_str().unwrap()]);
        let imported = fs::read(&dst).unwrap();
        assert!(imported[64 << 10..128 << 10].iter().all(|&b| b == 0x64));
        assert!(imported[192 << 10..256 << 10].iter().all(|&b| b == 0x19));
        fs::remove_file(dst).unwrap();
    }
}

#[test]
fn data_files_are_read_only_with_leave() {
    let dir = Dir::new();
    let raw = dir.write("source", &noise(2 << 20, 1));
    let image = dir.path("a.qcow2");
    convert(&raw, &image, &["-o", &format!("data_file={}", dir.path("data").display())]);
    let mut options = import_options(&image, &dir.path("dst"));
    let error = import(options.clone()).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("data file"), "{error}");
    options.allow_backing = true;
    import(options).unwrap();
    assert_same_disk(&dir.path("dst"), "raw", &raw);
}

#[test]
fn a_destination_is_treated_like_that_of_an_export() {
    let dir = Dir::new();
    let raw = dir.write("source.raw", &noise(1 << 20, 1));
    convert(&raw, &dir.path("a.qcow2"), &[]);
    for image in ["source.raw", "a.qcow2"] {
        let dst = dir.write("dst", b"precious");
        std::os::unix::fs::symlink(&dst, dir.path("link")).unwrap();
        let mut options = import_options(&dir.path(image), &dst);
        assert_eq!(import(options.clone()).unwrap_err().kind(), Kind::Exists);
        options.dst = dir.path("link");
        options.force = true;
        assert_eq!(import(options.clone()).unwrap_err().kind(), Kind::Invalid);
        options.dst = dir.path(image);
        assert_eq!(import(options.clone()).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(fs::read(&dst).unwrap(), b"precious");
        options.dst = dst.clone();
        import(options.clone()).unwrap();
        assert_same_disk(&dst, "raw", &raw);
        fs::remove_file(dir.path("link")).unwrap();
        fs::remove_file(&dst).unwrap();
        let cancel = options.cancel.clone();
        let error = transfer::import(options, &mut |_: u64, _: u64| cancel.set()).unwrap_err();
        assert_eq!(error.kind(), Kind::Interrupted);
        assert_eq!(dir.names(), ["a.qcow2", "source.raw"]);
    }
}

#[test]
fn a_missing_image_is_named() {
    let dir = Dir::new();
    for name in ["none.raw", "none.qcow2"] {
        let error = import(import_options(&dir.path(name), &dir.path("dst"))).unwrap_err();
        assert_eq!((error.kind(), error.path()), (Kind::NotFound, Some(dir.path(name).as_path())));
    }
}

/// qemu-io with an image open for writing, until it is dropped.
struct Writer(Child);

impl Writer {
    fn open(path: &Path, format: &str) -> Option<Writer> {
        let mut child = Command::new("qemu-io")
            .args(["-f", format, path.to_str().unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // It answers once the image is open; otherwise it ends.
        let _ = child.stdin.as_mut().unwrap().write_all(b"length\n");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let writer = Writer(child);
        (!line.is_empty()).then_some(writer)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_image_that_a_machine_writes_is_refused_and_the_other_way_round() {
    let dir = Dir::new();
    let raw = dir.write("a.raw", &noise(1 << 20, 1));
    convert(&raw, &dir.path("a.qcow2"), &[]);
    for format in ["raw", "qcow2"] {
        let image = dir.path(&format!("a.{format}"));
        let options = import_options(&image, &dir.path("dst"));
        let writer = Writer::open(&image, format).unwrap();
        let error = import(options.clone()).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy, "{error}");
        assert!(!dir.path("dst").exists());
        drop(writer);
        let mut try_to_write = |_: u64, _: u64| assert!(Writer::open(&image, format).is_none(), "{format}");
        transfer::import(options, &mut try_to_write).unwrap();
        assert!(Writer::open(&image, format).is_some());
        fs::remove_file(dir.path("dst")).unwrap();
    }
}

#[test]
fn an_image_that_changes_under_way_never_writes_past_its_size() {
    let dir = Dir::new();
    let raw = dir.write("source", &noise(1 << 20, 1));
    let image = dir.path("a.qcow2");
    convert(&raw, &image, &[]);
    // The header is made to claim a terabyte after it was checked.
    let mut change = |_: u64, _: u64| {
        File::options().write(true).open(&image).unwrap().write_all_at(&(1u64 << 40).to_be_bytes(), 24).unwrap()
    };
    let report = transfer::import(import_options(&image, &dir.path("dst")), &mut change).unwrap();
    assert_eq!(report.size, 1 << 20, "the header that counts is the one that was checked");
    assert_same_disk(&dir.path("dst"), "raw", &raw);
}

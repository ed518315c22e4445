//! Export of plain files.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use clonefs::client::transfer::{self, Compression, ExportFormat, PointInTime};
use clonefs::error::Kind;

use crate::support::{Dir, allocated, assert_same_disk, export, export_options, noise, qemu_img};

const FORMATS: [ExportFormat; 3] = [ExportFormat::Raw, ExportFormat::Qcow2, ExportFormat::Vmdk];

/// Around sectors, blocks, clusters and pieces of copying.
const SIZES: [usize; 12] = [0, 1, 511, 512, 513, 4095, 65536, 65537, 1 << 20, (1 << 20) + 1, (3 << 20) + 1000, 5 << 20];

#[test]
fn every_size_is_exported_byte_for_byte() {
    for size in SIZES {
        for format in FORMATS {
            let dir = Dir::new();
            let source = dir.write("vol", &noise(size, 1));
            let out = dir.path("out");
            if size == 0 && format == ExportFormat::Vmdk {
                assert_eq!(export(export_options(&source, &out, format)).unwrap_err().kind(), Kind::Invalid);
                continue;
            }
            let report = export(export_options(&source, &out, format)).unwrap();
            assert_eq!((report.size, report.point_in_time), (size as u64, PointInTime::NotGuaranteed));
            if format == ExportFormat::Raw {
                assert!(fs::read(&out).unwrap() == fs::read(&source).unwrap(), "{size} bytes differ");
            }
            assert_same_disk(&out, &format.to_string(), &source);
            assert_eq!(dir.names(), ["out", "vol"]);
        }
    }
}

#[test]
fn clusters_and_compression_are_as_asked() {
    let dir = Dir::new();
    let mut bytes = noise(700_000, 2);
    bytes.extend(vec![b'x'; 2 << 20]);
    let source = dir.write("vol", &bytes);
    for (cluster, shown) in [(512, "512"), (4096, "4096"), (2 << 20, "2097152")] {
        for (compress, kind) in [(None, "zlib"), (Some(Compression::Zlib), "zlib"), (Some(Compression::Zstd), "zstd")] {
            let out = dir.path("out");
            let mut options = export_options(&source, &out, ExportFormat::Qcow2);
            (options.cluster_size, options.compress, options.force) = (Some(cluster), compress, true);
            let report = export(options).unwrap();
            assert_same_disk(&out, "qcow2", &source);
            let info = qemu_img(&["info", "--output=json", out.to_str().unwrap()]).stdout;
            let info = String::from_utf8(info).unwrap();
            assert!(info.contains(&format!("\"cluster-size\": {shown}")), "{info}");
            assert!(info.contains(&format!("\"compression-type\": \"{kind}\"")), "{info}");
            assert!(info.contains("\"compat\": \"1.1\""), "{info}");
            if compress.is_some() && cluster == 4096 {
                assert!(report.allocated < 2 << 20, "{kind}, {cluster}: {} bytes", report.allocated);
            }
        }
    }
}

#[test]
fn options_that_do_not_go_together_are_refused() {
    let dir = Dir::new();
    let source = dir.write("vol", b"data");
    let options = |format| export_options(&source, &dir.path("out"), format);
    let refused = [
        transfer::ExportOptions { compress: Some(Compression::Zstd), ..options(ExportFormat::Raw) },
        transfer::ExportOptions { cluster_size: Some(65536), ..options(ExportFormat::Raw) },
        transfer::ExportOptions { cluster_size: Some(65536), ..options(ExportFormat::Vmdk) },
        transfer::ExportOptions { cluster_size: Some(256), ..options(ExportFormat::Qcow2) },
        transfer::ExportOptions { cluster_size: Some(4 << 20), ..options(ExportFormat::Qcow2) },
        transfer::ExportOptions { cluster_size: Some(65535), ..options(ExportFormat::Qcow2) },
    ];
    for options in refused {
        assert_eq!(export(options).unwrap_err().kind(), Kind::Invalid);
    }
    assert_eq!(dir.names(), ["vol"]);
}

#[test]
fn holes_stay_holes_and_zeros_become_holes() {
    let dir = Dir::new();
    let source = dir.sparse("vol", 64 << 20, &[0, 10 << 20, (64 << 20) - 5000]);
    File::options().write(true).open(&source).unwrap().write_all_at(&vec![0; 8 << 20], 30 << 20).unwrap();
    assert!(allocated(&source) >= 8 << 20);
    for format in FORMATS {
        let out = dir.path("out");
        let mut options = export_options(&source, &out, format);
        options.force = true;
        let report = export(options).unwrap();
        assert_eq!(report.allocated, allocated(&out));
        assert!(report.allocated < 1 << 20, "{format}: {} bytes", report.allocated);
        assert_same_disk(&out, &format.to_string(), &source);
    }
}

#[test]
fn a_sparse_terabyte_is_exported_without_reading_its_holes() {
    let dir = Dir::new();
    let size = 1 << 40;
    let source = dir.sparse("vol", size, &[4096, size / 2 + 1, size - 5000]);
    for format in FORMATS {
        let out = dir.path("out");
        let report = export(export_options(&source, &out, format)).unwrap();
        assert_eq!(report.size, size);
        // The metadata of a vmdk image is the largest: tables for each 32 MiB.
        assert!(report.allocated < 64 << 20, "{format}: {} bytes", report.allocated);
        assert_same_disk(&out, &format.to_string(), &source);
        fs::remove_file(out).unwrap();
    }
}

#[test]
fn an_existing_file_is_replaced_only_when_told() {
    for format in FORMATS {
        let dir = Dir::new();
        let (source, out) = (dir.write("vol", &noise(100_000, 3)), dir.write("out", b"precious"));
        let mut options = export_options(&source, &out, format);
        let error = export(options.clone()).unwrap_err();
        assert_eq!(error.kind(), Kind::Exists);
        assert!(error.to_string().contains("--force"), "{error}");
        assert_eq!(fs::read(&out).unwrap(), b"precious");
        options.force = true;
        export(options).unwrap();
        assert_same_disk(&out, &format.to_string(), &source);
        assert_eq!(dir.names(), ["out", "vol"]);
    }
}

#[test]
fn a_file_that_appears_meanwhile_is_not_replaced() {
    for format in FORMATS {
        let dir = Dir::new();
        let (source, out) = (dir.write("vol", &noise(100_000, 3)), dir.path("out"));
        let mut appear = |_: u64, _: u64| fs::write(&out, b"precious").unwrap();
        let error = transfer::export(export_options(&source, &out, format), &mut appear).unwrap_err();
        assert_eq!(error.kind(), Kind::Exists);
        assert_eq!(fs::read(&out).unwrap(), b"precious");
        assert_eq!(dir.names(), ["out", "vol"]);
    }
}

#[test]
fn a_link_is_never_written_through() {
    for format in FORMATS {
        for force in [false, true] {
            let dir = Dir::new();
            let (source, target) = (dir.write("vol", &noise(100_000, 3)), dir.write("target", b"precious"));
            for to in [target.as_path(), Path::new("nowhere")] {
                let out = dir.path("out");
                symlink(to, &out).unwrap();
                let mut options = export_options(&source, &out, format);
                options.force = force;
                let error = export(options).unwrap_err();
                assert_eq!(error.kind(), Kind::Invalid);
                assert!(error.to_string().contains("symbolic link"), "{error}");
                fs::remove_file(out).unwrap();
            }
            assert_eq!(fs::read(&target).unwrap(), b"precious");
            assert_eq!(dir.names(), ["target", "vol"]);
        }
    }
}

#[test]
fn a_link_that_appears_meanwhile_is_replaced_and_its_target_is_not() {
    let dir = Dir::new();
    let (source, target) = (dir.write("vol", &noise(100_000, 3)), dir.write("target", b"precious"));
    let out = dir.path("out");
    let mut options = export_options(&source, &out, ExportFormat::Raw);
    options.force = true;
    let mut appear = |_: u64, _: u64| drop(symlink(&target, &out));
    transfer::export(options, &mut appear).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    assert!(fs::symlink_metadata(&out).unwrap().is_file());
}

#[test]
fn what_is_no_file_is_refused_with_force_too() {
    let dir = Dir::new();
    let source = dir.write("vol", b"data");
    fs::create_dir(dir.path("directory")).unwrap();
    fs::hard_link(&source, dir.path("hard-link")).unwrap();
    assert!(Command::new("mkfifo").arg(dir.path("fifo")).status().unwrap().success());
    let before = dir.names();
    for name in ["directory", "fifo", "vol", "hard-link", "new/", "directory/..", ".", ""] {
        let mut options = export_options(&source, &dir.path(name), ExportFormat::Raw);
        options.force = true;
        assert_eq!(export(options).unwrap_err().kind(), Kind::Invalid, "{name:?}");
    }
    let error = export(export_options(&source, &dir.path("none/out"), ExportFormat::Raw)).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    let error = export(export_options(&source, &dir.path(&"x".repeat(256)), ExportFormat::Raw)).unwrap_err();
    assert_eq!(error.errno(), libc::ENAMETOOLONG);
    assert_eq!(dir.names(), before);
    assert_eq!(fs::read(&source).unwrap(), b"data");
}

#[test]
fn a_source_that_is_no_volume_is_refused() {
    let dir = Dir::new();
    assert!(Command::new("mkfifo").arg(dir.path("fifo")).status().unwrap().success());
    fs::create_dir(dir.path("directory")).unwrap();
    for (name, kind) in [("none", Kind::NotFound), ("fifo", Kind::Invalid), ("directory", Kind::Invalid)] {
        let error = export(export_options(&dir.path(name), &dir.path("out"), ExportFormat::Raw)).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    let error = export(export_options(Path::new("/dev/null"), &dir.path("out"), ExportFormat::Raw)).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert_eq!(dir.names(), ["directory", "fifo"]);
}

#[test]
fn a_cancelled_export_leaves_nothing() {
    for format in FORMATS {
        for force in [false, true] {
            let dir = Dir::new();
            let (source, out) = (dir.write("vol", &noise(20 << 20, 3)), dir.path("out"));
            if force {
                fs::write(&out, b"precious").unwrap();
            }
            let before = dir.names();
            let mut options = export_options(&source, &out, format);
            options.force = force;
            let cancel = options.cancel.clone();
            let error = transfer::export(options, &mut |_: u64, _: u64| cancel.set()).unwrap_err();
            assert_eq!(error.kind(), Kind::Interrupted, "{format}");
            assert_eq!(dir.names(), before);
            assert!(!force || fs::read(&out).unwrap() == b"precious");
        }
    }
}

#[test]
fn a_source_that_becomes_shorter_is_an_error_and_no_zeros() {
    for format in FORMATS {
        let dir = Dir::new();
        let (source, out) = (dir.write("vol", &noise(20 << 20, 3)), dir.path("out"));
        let mut shrink = |_: u64, _: u64| File::options().write(true).open(&source).unwrap().set_len(5000).unwrap();
        let error = match transfer::export(export_options(&source, &out, format), &mut shrink) {
            Err(error) => error,
            Ok(report) => {
                // A reflink is the file as it is at that moment, with the size that it has then.
                assert!(report.reflinked && report.size == 5000, "{format}: {report:?}");
                continue;
            }
        };
        assert!(error.to_string().contains("the file ended at byte 5000"), "{error}");
        assert_eq!(error.path(), Some(source.as_path()));
        assert_eq!(dir.names(), ["vol"]);
    }
}

#[test]
fn progress_goes_from_nothing_to_all() {
    for format in FORMATS {
        let dir = Dir::new();
        let source = dir.sparse("vol", 30 << 20, &[0, 10 << 20, 20 << 20]);
        let mut seen = Vec::new();
        let mut progress = |done: u64, total: u64| seen.push((done, total));
        transfer::export(export_options(&source, &dir.path("out"), format), &mut progress).unwrap();
        assert_eq!((seen.first(), seen.last()), (Some(&(0, 30 << 20)), Some(&(30 << 20, 30 << 20))));
        assert!(seen.is_sorted(), "{seen:?}");
    }
}

#[test]
fn the_new_file_is_no_more_open_than_the_volume() {
    let dir = Dir::new();
    for (mode, expected) in [(0o600, 0o600), (0o640, 0o640), (0o4755, 0o644), (0o444, 0o644), (0o400, 0o600)] {
        let source = dir.write("vol", b"data");
        fs::set_permissions(&source, fs::Permissions::from_mode(mode)).unwrap();
        for format in FORMATS {
            let mut options = export_options(&source, &dir.path("out"), format);
            options.force = true;
            export(options).unwrap();
            let got = fs::metadata(dir.path("out")).unwrap().permissions().mode() & 0o7777;
            // The umask of whoever runs this can only take away.
            assert_eq!(got & !expected, 0, "{format}: {mode:o} became {got:o}");
            assert_eq!(got & 0o600, 0o600);
        }
        fs::remove_file(source).unwrap();
    }
}

/// Not a test by itself: the process that the next test starts and kills. It stops for ever in the middle of an export.
#[test]
fn child_that_is_killed() {
    let Ok(dir) = std::env::var("CLONEFS_TEST_DIR") else { return };
    let format = std::env::var("CLONEFS_TEST_FORMAT").unwrap().parse().unwrap();
    let dir = Path::new(&dir);
    let mut calls = 0;
    let mut stop = |_: u64, _: u64| {
        calls += 1;
        if calls == 2 {
            fs::write(dir.join("reached"), b"").unwrap();
            std::thread::sleep(Duration::from_secs(600));
        }
    };
    transfer::export(export_options(&dir.join("vol"), &dir.join("out"), format), &mut stop).unwrap();
}

#[test]
fn a_killed_export_leaves_nothing() {
    for format in FORMATS {
        let dir = Dir::new();
        dir.write("vol", &noise(256 << 20, 3));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "export::child_that_is_killed"])
            .env("CLONEFS_TEST_DIR", dir.path(""))
            .env("CLONEFS_TEST_FORMAT", format.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while !dir.path("reached").exists() {
            assert!(child.try_wait().unwrap().is_none(), "the export ended before it could be killed");
            std::thread::sleep(Duration::from_millis(10));
        }
        let helpers = children(child.id());
        assert_eq!(helpers.is_empty(), format == ExportFormat::Raw, "{format}: {helpers:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(dir.names(), ["reached", "vol"]);
        for helper in helpers {
            // A zombie that nobody waits for yet has no command line.
            while fs::read(format!("/proc/{helper}/cmdline")).is_ok_and(|c| !c.is_empty()) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Processes that any thread of `pid` has started.
fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let lists = threads.map(|t| fs::read_to_string(t.unwrap().path().join("children")).unwrap_or_default());
    lists.flat_map(|l| l.split_whitespace().map(|p| p.parse().unwrap()).collect::<Vec<_>>()).collect()
}

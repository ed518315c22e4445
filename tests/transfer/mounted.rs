//! Export from and import into a mounted pool.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use clonefs::client::transfer::{self, ExportFormat, PointInTime};
use clonefs::error::Kind;

use crate::fixtures::Backing;
use crate::support::{
    Dir, Pool, assert_same_disk, clonefs, convert, export, export_options, import, import_options, noise, on_each,
};

const FORMATS: [ExportFormat; 3] = [ExportFormat::Raw, ExportFormat::Qcow2, ExportFormat::Vmdk];
const SIZE: usize = (5 << 20) + 1536;

/// Something that happens to a volume, with a name.
type Event = (&'static str, fn(&Path));

/// What happens to a volume while it is exported.
const EVENTS: [Event; 7] = [
    ("nothing", |_| ()),
    ("overwritten", |vol| writable(vol).write_all_at(&noise(SIZE, 99), 0).unwrap()),
    ("shrunk", |vol| writable(vol).set_len(5000).unwrap()),
    ("grown", |vol| writable(vol).write_all_at(b"more", SIZE as u64 + 70_000).unwrap()),
    ("shrunk, then grown", |vol| {
        writable(vol).set_len(0).unwrap();
        writable(vol).set_len(SIZE as u64).unwrap();
    }),
    ("deleted", |vol| fs::remove_file(vol).unwrap()),
    ("replaced", |vol| {
        fs::write(vol.with_extension("new"), b"another").unwrap();
        fs::rename(vol.with_extension("new"), vol).unwrap();
    }),
];

fn writable(path: &Path) -> File {
    File::options().write(true).open(path).unwrap()
}

/// A volume of `bytes` of each nature: a plain file, a clone that has some blocks of its own, the source of a clone.
fn volumes(pool: &Pool, bytes: &[u8], event: &str) -> Vec<std::path::PathBuf> {
    let tag = event.replace([' ', ','], "-");
    let plain = pool.dir.write(&format!("plain-{tag}"), bytes);
    let source = pool.dir.write(&format!("source-{tag}"), bytes);
    let overlay = pool.dir.path(&format!("overlay-{tag}"));
    // Half of the overlay's bytes are its own, half of them are the source's.
    writable(&source).write_all_at(&noise(bytes.len() / 2, 50), 0).unwrap();
    clonefs(&["clone", "--no-deepen"], &[&source, &overlay]);
    for path in [&source, &overlay] {
        writable(path).write_all_at(&bytes[..bytes.len() / 2], 0).unwrap();
    }
    vec![plain, source, overlay]
}

#[test]
fn an_export_is_the_volume_at_one_moment_whatever_happens_to_it() {
    on_each(&[], |pool| {
        let bytes = noise(SIZE, 1);
        let outside = Dir::new();
        let expected = outside.write("expected", &bytes);
        for (number, (event, happen)) in EVENTS.into_iter().enumerate() {
            // All of it on one filesystem; on the others the formats take turns.
            let formats = match pool.disk.kind {
                Backing::Ext4 => &FORMATS[..],
                _ => &FORMATS[number % FORMATS.len()..][..1],
            };
            for &format in formats {
                for volume in volumes(&pool, &bytes, event) {
                    let out = outside.path("out");
                    let mut happened = false;
                    let mut once = |_: u64, _: u64| {
                        if !std::mem::replace(&mut happened, true) {
                            happen(&volume);
                        }
                    };
                    let report = transfer::export(export_options(&volume, &out, format), &mut once);
                    let report = report.unwrap_or_else(|e| panic!("{event}, {format}, {volume:?}: {e}"));
                    assert_eq!((report.size, report.point_in_time), (SIZE as u64, PointInTime::Exact));
                    if format == ExportFormat::Raw {
                        assert!(fs::read(&out).unwrap() == bytes, "{event}, {volume:?}");
                    }
                    assert_same_disk(&out, &format.to_string(), &expected);
                    fs::remove_file(&out).unwrap();
                    let _ = fs::remove_file(&volume);
                }
            }
        }
        assert_eq!(outside.names(), ["expected"]);
    });
}

#[test]
fn the_moment_is_one_for_all_blocks() {
    const BLOCKS: u64 = 512;
    on_each(&[], |pool| {
        let outside = Dir::new();
        let volume = pool.dir.write("vol", &[0; BLOCKS as usize * 4096]);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Block after block gets the number of the round: at any moment those of one round are followed by those of
            // the round before.
            scope.spawn(|| {
                let file = writable(&volume);
                for round in 1u64.. {
                    for block in 0..BLOCKS {
                        file.write_all_at(&round.to_le_bytes().repeat(512), block * 4096).unwrap();
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                }
            });
            let mut seen = 0;
            for _ in 0..40 {
                let out = outside.path("out");
                let mut options = export_options(&volume, &out, ExportFormat::Raw);
                options.force = true;
                export(options).unwrap();
                let bytes = fs::read(&out).unwrap();
                let rounds: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect();
                let (first, last) = (rounds[0], rounds[rounds.len() - 1]);
                assert!(rounds.is_sorted_by(|a, b| a >= b) && first - last <= 1, "of rounds {first} to {last}");
                seen = first;
            }
            stop.store(true, Ordering::Relaxed);
            assert!(seen > 0, "nothing was written meanwhile");
        });
    });
}

#[test]
fn a_volume_is_exported_while_it_is_deepened_and_after() {
    on_each(&["--deepen=manual"], |pool| {
        let outside = Dir::new();
        let bytes = noise(SIZE, 1);
        let expected = outside.write("expected", &bytes);
        let (source, clone) = (pool.dir.write("source", &bytes), pool.dir.path("clone"));
        clonefs(&["clone"], &[&source, &clone]);
        writable(&source).write_all_at(&noise(SIZE, 7), 0).unwrap();
        let mut deepen = |_: u64, _: u64| clonefs(&["deepen", "--wait"], &[&clone]);
        for format in FORMATS {
            let out = outside.path(&format!("out.{format}"));
            transfer::export(export_options(&clone, &out, format), &mut deepen).unwrap();
            assert_same_disk(&out, &format.to_string(), &expected);
        }
    });
}

#[test]
fn an_export_into_the_pool_is_like_any_other() {
    on_each(&[], |pool| {
        let outside = Dir::new();
        let bytes = noise(SIZE, 1);
        let expected = outside.write("expected", &bytes);
        let mut volumes = (0..).map(|number| pool.dir.write(&format!("vol{number}"), &bytes));
        let mut options = |format| export_options(&volumes.next().unwrap(), &pool.dir.path("out"), format);
        for format in FORMATS {
            export(options(format)).unwrap();
            assert_eq!(export(options(format)).unwrap_err().kind(), Kind::Exists);
            let out = pool.dir.write("out", b"precious");
            let replace = transfer::ExportOptions { force: true, ..options(format) };
            let cancel = replace.cancel.clone();
            let error = transfer::export(replace, &mut |_: u64, _: u64| cancel.set()).unwrap_err();
            assert_eq!(error.kind(), Kind::Interrupted, "{error}");
            assert_eq!(fs::read(&out).unwrap(), b"precious");
            export(transfer::ExportOptions { force: true, ..options(format) }).unwrap();
            assert_same_disk(&out, &format.to_string(), &expected);
            fs::remove_file(out).unwrap();
        }
        assert!(pool.dir.names().iter().all(|n| n.starts_with("vol")), "{:?}", pool.dir.names());
    });
}

#[test]
fn a_volume_can_be_opened_right_after_its_export() {
    on_each(&[], |pool| {
        let outside = Dir::new();
        let bytes = noise(SIZE, 1);
        let volume = pool.dir.write("vol", &bytes);
        for _ in 0..40 {
            let mut options = export_options(&volume, &outside.path("out"), ExportFormat::Raw);
            options.force = true;
            export(options).unwrap();
            assert!(fs::read(&volume).unwrap() == bytes);
        }
    });
}

#[test]
fn an_imported_image_is_a_volume_that_can_be_cloned() {
    on_each(&[], |pool| {
        let outside = Dir::new();
        let raw = outside.write("source.raw", &noise(SIZE, 1));
        for name in ["source.raw", "a.qcow2", "a.vmdk", "a.vhdx", "a.vdi"] {
            if name != "source.raw" {
                convert(&raw, &outside.path(name), &[]);
            }
            let (volume, clone) = (pool.dir.path("vol"), pool.dir.path("clone"));
            let report = import(import_options(&outside.path(name), &volume)).unwrap();
            assert!(report.in_pool);
            clonefs(&["clone"], &[&volume, &clone]);
            fs::write(&volume, b"other").unwrap();
            assert_same_disk(&clone, "raw", &raw);
            fs::remove_file(volume).unwrap();
            fs::remove_file(clone).unwrap();
        }
        assert!(pool.dir.names().is_empty());
    });
}

#[test]
fn an_image_in_the_pool_is_imported_as_it_is_at_one_moment() {
    on_each(&[], |pool| {
        let raw = pool.dir.write("source.raw", &noise(SIZE, 1));
        convert(&raw, &pool.dir.path("a.qcow2"), &[]);
        let expected = Dir::new();
        let expected = (expected.write("expected", &noise(SIZE, 1)), expected);
        for name in ["source.raw", "a.qcow2"] {
            let image = pool.dir.path(name);
            let mut spoil = |_: u64, _: u64| writable(&image).write_all_at(&noise(SIZE, 3), 0).unwrap();
            transfer::import(import_options(&image, &pool.dir.path("dst")), &mut spoil).unwrap();
            assert_same_disk(&pool.dir.path("dst"), "raw", &expected.0);
            fs::remove_file(pool.dir.path("dst")).unwrap();
        }
    });
}

#[test]
fn a_volume_of_two_names_is_exported_by_way_of_a_clone() {
    on_each(&[], |pool| {
        let outside = Dir::new();
        let volume = pool.dir.write("vol", &noise(SIZE, 1));
        fs::hard_link(&volume, pool.dir.path("link")).unwrap();
        let error = export(export_options(&volume, &outside.path("out"), ExportFormat::Qcow2)).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("clone it"), "{error}");
        clonefs(&["clone"], &[&volume, &pool.dir.path("clone")]);
        export(export_options(&pool.dir.path("clone"), &outside.path("out"), ExportFormat::Qcow2)).unwrap();
        assert_same_disk(&outside.path("out"), "qcow2", &outside.write("expected", &noise(SIZE, 1)));
    });
}

#[test]
fn a_pool_that_is_mounted_read_only_can_be_exported_from() {
    on_each(&[], |pool| {
        let bytes = noise(SIZE, 1);
        let names: Vec<_> =
            volumes(&pool, &bytes, "x").iter().map(|v| v.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        pool.mount_again(&["-o", "ro"]);
        let outside = Dir::new();
        for name in names {
            let out = outside.path(&name);
            let report = export(export_options(&pool.dir.path(&name), &out, ExportFormat::Raw)).unwrap();
            assert_eq!(report.point_in_time, PointInTime::Exact);
            assert!(fs::read(&out).unwrap() == bytes, "{name}");
        }
    });
}

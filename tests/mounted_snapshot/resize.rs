//! Another size for a volume.

use std::fs::File;
use std::io::Write;

use crate::fixture::{BLOCK, clean, ok, refused};
use crate::support::{clonefs, noise, on_each_filesystem};

#[test]
fn a_volume_is_resized_while_it_is_in_use() {
    on_each_filesystem(|pool| {
        let bytes = noise(1, 10 * BLOCK + 100);
        for name in ["plain", "shared", "source"] {
            pool.write(name, &bytes);
        }
        pool.clone("shared", "other");
        pool.clone("source", "clone");
        let mut grown = bytes.clone();
        grown.resize(1 << 20, 0);
        for name in ["plain", "shared", "clone"] {
            let open = File::options().read(true).append(true).open(pool.at(name)).unwrap();
            let told = ok(pool, &["resize", name, "1M"]);
            assert!(told.contains("blockresize") && told.contains("growpart"), "{told}");
            // Whoever has it open sees the new size, and appends there.
            assert_eq!(open.metadata().unwrap().len(), 1 << 20);
            assert!(pool.read(name) == grown, "{name}");
            (&open).write_all(b"end").unwrap();
            assert_eq!(pool.read(name)[1 << 20..], *b"end");
            refused(pool, &["resize", name, "1M"], "--shrink");
            refused(pool, &["resize", name, "1M", "--shrink"], "it is open");
            drop(open);
            assert!(ok(pool, &["resize", name, "5000", "--shrink"]).contains("is gone"));
            assert!(pool.read(name) == bytes[..5000], "{name}");
            // What was cut off does not come back.
            ok(pool, &["resize", name, "+3000"]);
            let mut expect = bytes[..5000].to_vec();
            expect.resize(8000, 0);
            assert!(pool.read(name) == expect, "{name}");
        }
        assert!(pool.read("other") == bytes && pool.read("source") == bytes);
        refused(pool, &["resize", "missing", "1M"], "No such file");
        clonefs(["resize", "x", "17P"]).code(2);
        pool.write("q.qcow2", b"QFI\xfb and more");
        refused(pool, &["resize", "q.qcow2", "1M"], "qemu-img resize");
        clean(pool);
    });
}

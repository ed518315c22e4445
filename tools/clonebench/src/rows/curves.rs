//! What a clone costs against the size of the image, its fragmentation, its depth, and the number of its clones.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::clone::{Image, disks};
use crate::bench::Bench;
use crate::curve::Curve;
use crate::disk::Disk;
use crate::failure::{During, Outcome};
use crate::file;
use crate::fio::Job;
use crate::pool::{Pool, reflink};
use crate::report::Found;
use crate::rounds::{Series, rounds};
use crate::run;
use crate::work::Work;

/// One of each kind: all would be too many lines.
const METHODS: &[&str] =
    &["clonefs", "clonefs-command", "cp", "cp-sparse", "qemu-create", "reflink-xfs", "reflink-btrfs"];

pub fn run(bench: &Bench) -> Outcome<Found> {
    let settings = bench.settings;
    let area = bench.work.area()?;
    let pool = Pool::new(bench, area.path())?;
    let room = settings.size * 2 + settings.extents * 8192 * 2 + (1 << 30);
    let disks = disks(bench, area.path(), room)?;
    let here = Here { bench, area: &area, pool: &pool, disks: &disks };
    let mut curves = vec![here.by_size()?, here.by_extents()?];
    curves.extend(here.by_depth()?);
    curves.push(here.by_number()?);
    Ok(Found { tables: Vec::new(), curves })
}

struct Here<'a> {
    bench: &'a Bench,
    area: &'a Work,
    pool: &'a Pool<'a>,
    disks: &'a [(&'static str, Disk)],
}

impl Here<'_> {
    fn by_size(&self) -> Outcome<Curve> {
        let how = "images full of data; each point is the median of the rounds, with the least and the greatest";
        let mut curve = Curve::new("a clone, by the size of the image", how, "MiB of data", "ms");
        for mib in up_to(self.bench.settings.size >> 20, 4, 4) {
            let name = format!("size-{mib}");
            let native = self.area.at(&name);
            let make = |path: &std::path::Path| file::full(path, mib << 20, mib);
            self.bench.step(&format!("curves: making an image of {mib} MiB"))?;
            let image = Image::new(self.pool, self.disks, native, &name, make)?;
            curve.add(mib as f64, image.times(self.bench, &format!("clones of {mib} MiB"), METHODS)?);
            image.remove()?;
        }
        Ok(curve)
    }

    fn by_extents(&self) -> Outcome<Curve> {
        let how = "blocks of 4 KiB with holes between them; each point is the median of the rounds";
        let mut curve = Curve::new("a clone, by fragmentation of the image", how, "extents", "ms");
        for extents in up_to(self.bench.settings.extents, 10, 6) {
            let name = format!("extents-{extents}");
            let native = self.area.at(&name);
            let make = |path: &std::path::Path| file::fragmented(path, extents);
            self.bench.step(&format!("curves: making an image of {extents} extents"))?;
            let image = Image::new(self.pool, self.disks, native, &name, make)?;
            curve.add(extents as f64, image.times(self.bench, &format!("clones of {extents} extents"), METHODS)?);
            image.remove()?;
        }
        Ok(curve)
    }

    /// Reads and clones at some depths of one chain.
    fn by_depth(&self) -> Outcome<[Curve; 2]> {
        let Here { bench, pool, .. } = *self;
        let (size, depth) = (bench.settings.size, u64::from(bench.settings.depth));
        bench.step("curves: making a chain")?;
        file::full(&pool.at("level-0"), size, 4)?;
        let mut random = fastrand::Rng::with_seed(5);
        for level in 1..=depth {
            run::check()?;
            let path = pool.at(&format!("level-{level}"));
            pool.clone(&format!("level-{}", level - 1), &format!("level-{level}"))?;
            // A block of its own, so that every layer is there.
            let block = random.u64(0..size / 4096);
            file::open(&path)?.write_all_at(&[7; 4096], block * 4096).during("write", &path)?;
        }
        let job = Job::random("randread", 32, bench.settings.seconds);
        let mut reads = Curve::new("reads of a clone, by its depth", job.words(), "layers", "IOPS");
        let mut clones = Curve::new("a clone of a clone, by its depth", "one clone after another", "layers", "ms");
        for level in up_to(depth, 10, 4) {
            let name = format!("level-{level}");
            let read = || {
                pool.make_cold()?;
                Ok(job.run(&pool.at(&name), size)?.iops)
            };
            let what = format!("reads through {level} layers");
            reads.add(level as f64, rounds(bench, &what, vec![("clonefs", Box::new(read))])?);
            let figures = self.often(|to| pool.clone(&name, to), |to| file::remove(&pool.at(to)))?;
            clones.add(level as f64, vec![Series { name: "clonefs".to_owned(), figures }]);
        }
        Ok([reads, clones])
    }

    /// One more clone where there are many already.
    fn by_number(&self) -> Outcome<Curve> {
        let Here { bench, pool, .. } = *self;
        let size = bench.settings.size.min(64 << 20);
        let how = "one more clone of an image that has so many; the least, the median and the greatest of several";
        let mut curve = Curve::new("a clone, by the number of clones that there are", how, "clones", "ms");
        file::full(&pool.at("many"), size, 6)?;
        for (_, disk) in self.disks {
            file::full(&disk.root().join("many"), size, 6)?;
        }
        let mut there = 0;
        for count in up_to(u64::from(bench.settings.clones), 10, 5) {
            bench.step(&format!("curves: {count} clones"))?;
            for clone in there..count {
                run::check()?;
                pool.clone("many", &format!("many-{clone}"))?;
                for (_, disk) in self.disks {
                    reflink(&disk.root().join("many"), &disk.root().join(format!("many-{clone}")))?;
                }
            }
            there = count;
            let figures = self.often(|to| pool.clone("many", to), |to| file::remove(&pool.at(to)))?;
            let mut series = vec![Series { name: "clonefs".to_owned(), figures }];
            for (kind, disk) in self.disks {
                let at = |to: &str| disk.root().join(to);
                let figures = self.often(|to| reflink(&at("many"), &at(to)), |to| file::remove(&at(to)))?;
                series.push(Series { name: format!("reflink-{kind}"), figures });
            }
            curve.add(count as f64, series);
        }
        Ok(curve)
    }

    /// Times of several clones in milliseconds; each is removed again.
    fn often(
        &self,
        clone: impl Fn(&str) -> Outcome<Duration>,
        remove: impl Fn(&str) -> Outcome<()>,
    ) -> Outcome<Vec<f64>> {
        let mut figures = Vec::new();
        for _ in 0..self.bench.settings.repeats.min(20) {
            run::check()?;
            figures.push(clone("once-more")?.as_secs_f64() * 1e3);
            remove("once-more")?;
        }
        Ok(figures)
    }
}

/// At most `count` numbers that end with `most`, each `factor` times the one before it.
fn up_to(most: u64, factor: u64, count: u32) -> Vec<u64> {
    let mut numbers: Vec<u64> = (0..count).rev().map(|power| most / factor.pow(power)).filter(|n| *n > 0).collect();
    numbers.dedup();
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_a_curve_grow_by_a_factor_up_to_the_most() {
        assert_eq!(up_to(1000, 10, 4), [1, 10, 100, 1000]);
        assert_eq!(up_to(5, 10, 4), [5]);
        assert_eq!(up_to(16, 4, 4), [1, 4, 16]);
    }
}

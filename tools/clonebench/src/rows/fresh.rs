//! A new clone: first writes, and reads of the parent.

use std::cell::Cell;

use crate::bench::Bench;
use crate::failure::Outcome;
use crate::file;
use crate::fio::Job;
use crate::pool::Pool;
use crate::qsd::Export;
use crate::report::{Bar, Table};
use crate::rounds::{Contender, rounds};
use crate::work::Work;

pub fn run(bench: &Bench) -> Outcome<Vec<Table>> {
    let area = bench.work.area()?;
    let pool = Pool::new(bench, area.path())?;
    let size = bench.settings.size;
    bench.step("fresh: making images")?;
    file::full(&pool.at("base"), size, 2)?;
    file::full(&pool.at("independent"), size, 3)?;
    file::full(&area.at("base.raw"), size, 2)?;
    let peer = Export::missing();
    if let Some(why) = &peer {
        bench.say(&format!("fresh: without qcow2: {why}"));
    }
    let place = Place { bench, area: &area, pool: &pool, qcow2: peer.is_none(), next: Cell::new(0) };
    Ok(vec![place.first_writes(false)?, place.first_writes(true)?, place.reads()?, place.rereads()?])
}

struct Place<'a> {
    bench: &'a Bench,
    area: &'a Work,
    pool: &'a Pool<'a>,
    qcow2: bool,
    next: Cell<u32>,
}

impl Place<'_> {
    /// A name that was not used yet.
    fn name(&self, what: &str) -> String {
        self.next.set(self.next.get() + 1);
        format!("{what}-{}", self.next.get())
    }

    fn clone(&self) -> Outcome<String> {
        let name = self.name("clone");
        self.pool.clone("base", &name)?;
        Ok(name)
    }

    fn export(&self) -> Outcome<Export> {
        Export::new(&self.area.at("base.raw"), self.area.path(), &self.name("linked"))
    }

    /// What `job` does on a clone that nothing was written to; it is removed again.
    fn on_clone(&self, job: &Job) -> Outcome<f64> {
        let size = self.bench.settings.size;
        self.pool.make_cold()?;
        let clone = self.clone()?;
        let found = job.run(&self.pool.at(&clone), size)?;
        file::remove(&self.pool.at(&clone))?;
        Ok(found.iops)
    }

    fn on_qcow2(&self, job: &Job) -> Outcome<f64> {
        file::make_cold(&self.area.at("base.raw"))?;
        let export = self.export()?;
        let found = job.run(&export.file, self.bench.settings.size)?;
        let overlay = export.file.with_extension("qcow2");
        drop(export);
        file::remove(&overlay)?;
        Ok(found.iops)
    }

    /// Each block is written at most once.
    fn first_writes(&self, durable: bool) -> Outcome<Table> {
        let seconds = self.bench.settings.seconds;
        let more: &[&str] = if durable { &["--end_fsync=1"] } else { &[] };
        let job = &Job { once: true, more, ..Job::random("randwrite", 32, seconds) };
        let mut contenders: Vec<Contender> = vec![
            (
                "native sparse file",
                Box::new(|| {
                    let path = self.area.at(&self.name("sparse"));
                    file::sparse(&path, self.bench.settings.size)?;
                    let found = job.run(&path, self.bench.settings.size)?;
                    file::remove(&path)?;
                    Ok(found.iops)
                }),
            ),
            ("clonefs", Box::new(|| self.on_clone(job))),
        ];
        if self.qcow2 {
            contenders.push(("qcow2 over FUSE", Box::new(|| self.on_qcow2(job))));
        }
        let name = if durable { "first writes to a new clone, and one fsync" } else { "first writes to a new clone" };
        let bar = |bar| if durable { Bar::None } else { Bar::AtLeast(bar) };
        let table = Table::new(name, "IOPS", job.words(), rounds(self.bench, name, contenders)?);
        let table = table.compare("clonefs", "native sparse file", bar(0.70));
        Ok(table.compare("clonefs", "qcow2 over FUSE", bar(3.0)))
    }

    /// Reads of what a new clone has from its parent, nothing of it in memory at first.
    fn reads(&self) -> Outcome<Table> {
        let job = &Job::random("randread", 32, self.bench.settings.seconds);
        let mut contenders: Vec<Contender> = vec![
            (
                "independent volume",
                Box::new(|| {
                    self.pool.make_cold()?;
                    Ok(job.run(&self.pool.at("independent"), self.bench.settings.size)?.iops)
                }),
            ),
            ("clonefs", Box::new(|| self.on_clone(job))),
        ];
        if self.qcow2 {
            contenders.push(("qcow2 over FUSE", Box::new(|| self.on_qcow2(job))));
        }
        let name = "reads of the parent through a new clone";
        let table = Table::new(name, "IOPS", job.words(), rounds(self.bench, name, contenders)?);
        let table = table.compare("clonefs", "independent volume", Bar::AtLeast(0.95));
        Ok(table.compare("clonefs", "qcow2 over FUSE", Bar::AtLeast(2.0)))
    }

    /// The same where another clone has read everything before: what is shared is in memory once, for all.
    fn rereads(&self) -> Outcome<Table> {
        let (size, seconds) = (self.bench.settings.size, self.bench.settings.seconds);
        let job = &Job::random("randread", 32, seconds);
        let warm = self.clone()?;
        let all = Job { once: true, ..Job::sequential("read", 600.0) };
        let independent = || {
            all.run(&self.pool.at("independent"), size)?;
            Ok(job.run(&self.pool.at("independent"), size)?.iops)
        };
        let clone = || {
            all.run(&self.pool.at(&warm), size)?;
            let name = self.clone()?;
            let found = job.run(&self.pool.at(&name), size)?;
            file::remove(&self.pool.at(&name))?;
            Ok(found.iops)
        };
        let contenders: Vec<Contender> =
            vec![("independent volume", Box::new(independent)), ("clonefs", Box::new(clone))];
        let name = "reads of a parent that another clone has read";
        let table = Table::new(name, "IOPS", job.words(), rounds(self.bench, name, contenders)?);
        Ok(table.compare("clonefs", "independent volume", Bar::AtLeast(0.95)))
    }
}

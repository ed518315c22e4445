//! What runs at the same time. Each test says what could go wrong.

use std::sync::Arc;

use clonefs::units::BLOCK;
use shuttle::rand::{Rng as _, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

use crate::history::Edit;
use crate::scene::{ADOPTED, FINISHED, SIZE, Scene, Subject, join, start};

/// Runs a program under many schedules: random ones, and ones with few changes of thread.
fn search(program: fn()) {
    let times = std::env::var("CLONEFS_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
    let config = || {
        let mut config = Config::new();
        config.stack_size = 1 << 20;
        config
    };
    if let Ok(schedule) = std::env::var("CLONEFS_SCHEDULE") {
        return shuttle::replay(program, &schedule);
    }
    Runner::new(RandomScheduler::new(times), config()).run(program);
    Runner::new(PctScheduler::new(3, times / 2 + 1), config()).run(program);
    println!("{} schedules, {} adoptions, {} finished", times + times / 2 + 1, ADOPTED.get(), FINISHED.get());
}

/// Partial and whole blocks, over what is absent and what was written, past the end.
fn some_edits(subject: &Subject) {
    subject.edit(Edit::Write(3000, 3000));
    subject.edit(Edit::Write(4 * BLOCK, BLOCK as usize));
    subject.edit(Edit::Write(SIZE as u64 - 100, 1000));
}

/// A clone with half a write in it, a deepening that writes over a guest's bytes, a clone that is filled with what was
/// written later.
#[test]
fn a_write_a_clone_and_a_deepening_of_one_volume() {
    search(|| {
        let (scene, base) = Scene::new();
        let heir = scene.overlay(&base, 1);
        let (writer, cloner, volume) = (heir.clone(), heir.clone(), heir.volume.clone());
        let (here, there) = (scene.clone(), scene.clone());
        join([
            start(move || some_edits(&writer)),
            start(move || drop(here.take(&cloner, 2, false))),
            start(move || there.deepen(&volume, 5)),
        ]);
        drop((base, heir));
        scene.judge();
    });
    assert!(FINISHED.get() > 0);
}

/// The first write to a plain file that is being cloned by two at once: it is frozen once, or twice, and each clone is a
/// moment of it.
#[test]
fn two_clones_of_one_source_at_once() {
    search(|| {
        let (scene, base) = Scene::new();
        let threads = [1, 2].map(|name| {
            let (scene, base) = (scene.clone(), base.clone());
            start(move || drop(scene.take(&base, name, name == 2)))
        });
        let writer = base.clone();
        join(threads.into_iter().chain([start(move || some_edits(&writer))]));
        drop(base);
        scene.judge();
    });
}

/// An heir that has written something, whose parent nobody else has.
fn last_heir() -> (Arc<Scene>, Subject) {
    let (scene, base) = Scene::new();
    let heir = scene.overlay(&base, 1);
    heir.edit(Edit::Write(5000, 5000));
    drop(base);
    scene.remove(0);
    (scene, heir)
}

/// Blocks of the heir are copied down while they are written, and what was written meanwhile must follow.
#[test]
fn an_adoption_and_a_write() {
    search(|| {
        let (scene, heir) = last_heir();
        let (writer, volume, there) = (heir.clone(), heir.volume.clone(), scene.clone());
        join([
            start(move || {
                some_edits(&writer);
                writer.edit(Edit::Punch(BLOCK, BLOCK));
                writer.sync();
            }),
            start(move || there.adopt(&volume)),
        ]);
        drop(heir);
        scene.judge();
    });
    assert!(ADOPTED.get() > 0);
}

/// Blocks of the heir are copied down into a file that a clone may come to see, while they are written, cut off, and
/// grown again.
#[test]
fn an_adoption_a_shrink_and_a_clone() {
    search(|| {
        let (scene, heir) = last_heir();
        let (writer, cloner, volume) = (heir.clone(), heir.clone(), heir.volume.clone());
        let (here, there) = (scene.clone(), scene.clone());
        join([
            start(move || {
                writer.edit(Edit::Write(3000, 3000));
                writer.edit(Edit::Resize(BLOCK + 10));
                writer.edit(Edit::Resize(SIZE as u64));
                writer.sync();
            }),
            start(move || there.adopt(&volume)),
            start(move || drop(here.take(&cloner, 2, false))),
        ]);
        drop(heir);
        scene.judge();
    });
    assert!(ADOPTED.get() > 0);
}

/// The file is put in the stub's place while it is written and synced.
#[test]
fn a_finish_a_write_and_a_read() {
    search(|| {
        let (scene, base) = Scene::new();
        let heir = scene.overlay(&base, 1);
        let (writer, reader, volume) = (heir.clone(), heir.clone(), heir.volume.clone());
        let there = scene.clone();
        join([
            start(move || {
                writer.edit(Edit::Write(3000, 3000));
                writer.sync();
                writer.edit(Edit::Punch(BLOCK, 2 * BLOCK));
            }),
            start(move || there.deepen(&volume, 5)),
            start(move || reader.read()),
        ]);
        drop((base, heir));
        scene.judge();
    });
    assert!(FINISHED.get() > 0);
}

/// What a flush makes durable while a clone freezes it.
#[test]
fn a_flush_a_clone_and_a_write() {
    search(|| {
        let (scene, base) = Scene::new();
        let heir = scene.overlay(&base, 1);
        heir.edit(Edit::Write(100, 9000));
        let (writer, cloner) = (heir.clone(), heir.clone());
        let (here, there) = (scene.clone(), scene.clone());
        join([
            start(move || {
                writer.edit(Edit::Write(3000, 3000));
                writer.sync();
            }),
            start(move || drop(here.take(&cloner, 2, true))),
            start(move || there.pool.flush().unwrap()),
        ]);
        drop((base, heir));
        scene.judge();
    });
}

/// A file goes, with the last reader of a layer, while others read that layer and take it over.
#[test]
fn a_deletion_a_clone_and_an_adoption() {
    search(|| {
        let (scene, base) = Scene::new();
        let heir = scene.overlay(&base, 1);
        let other = scene.overlay(&base, 2);
        heir.edit(Edit::Write(5000, 5000));
        other.edit(Edit::Write(0, 100));
        drop(base);
        scene.remove(0);
        drop(other);
        let (cloner, volume) = (heir.clone(), heir.volume.clone());
        let (here, there, gone) = (scene.clone(), scene.clone(), scene.clone());
        join([
            start(move || gone.remove(2)),
            start(move || there.adopt(&volume)),
            start(move || drop(here.take(&cloner, 3, false))),
        ]);
        drop(heir);
        scene.judge();
    });
    assert!(ADOPTED.get() > 0);
}

/// Anything at the same time as anything else.
#[test]
fn random_programs() {
    search(|| {
        let (scene, base) = Scene::new();
        let heir = scene.overlay(&base, 1);
        if thread_rng().gen_bool(0.5) {
            heir.edit(Edit::Write(5000, 5000));
        }
        let subjects = if thread_rng().gen_bool(0.5) {
            vec![base, heir]
        } else {
            drop(base);
            scene.remove(0);
            vec![heir]
        };
        let mut threads: Vec<_> = subjects.iter().map(|s| (s.clone(), scene.clone())).map(writer).collect();
        for name in 2..4 {
            let subject = subjects[thread_rng().gen_range(0..subjects.len())].clone();
            threads.push(other(subject, scene.clone(), name));
        }
        drop(subjects);
        join(threads);
        scene.judge();
    });
    assert!(ADOPTED.get() > 0 && FINISHED.get() > 0);
}

/// The only writer of a file.
fn writer((subject, _scene): (Subject, Arc<Scene>)) -> shuttle::thread::JoinHandle<()> {
    start(move || {
        for _ in 0..3 {
            let mut random = thread_rng();
            let (at, len) = (random.gen_range(0..SIZE as u64), random.gen_range(1..9000));
            match random.gen_range(0..6) {
                0 => subject.edit(Edit::Punch(at, len)),
                1 => subject.edit(Edit::Resize(at)),
                2 => subject.edit(Edit::Write(at / BLOCK * BLOCK, BLOCK as usize)),
                3 => subject.sync(),
                _ => subject.edit(Edit::Write(at, len as usize)),
            }
        }
    })
}

/// Somebody else who has to do with it.
fn other(subject: Subject, scene: Arc<Scene>, name: u8) -> shuttle::thread::JoinHandle<()> {
    let what = thread_rng().gen_range(0..6);
    start(move || match what {
        0 => scene.pool.flush().unwrap(),
        1 => scene.deepen(&subject.volume, 4),
        2 => scene.adopt(&subject.volume),
        3 => {
            let clone = scene.take(&subject, name, false);
            scene.deepen(&clone, 2);
        }
        4 => {
            drop(scene.take(&subject, name, true));
            scene.remove(name);
        }
        _ => drop(scene.take(&subject, name, false)),
    })
}

/// Several writers of one file, each with bytes of its own: what one writes is not lost because another one has to do
/// with the same block, or with the end of the file.
#[test]
fn neighbours_in_one_block() {
    search(|| {
        let (scene, base) = Scene::new();
        let heir = scene.overlay(&base, 1);
        if thread_rng().gen_bool(0.5) {
            heir.edit(Edit::Write(SIZE as u64 - 3000, 3000));
        }
        let subject = if thread_rng().gen_bool(0.5) {
            drop(base);
            scene.remove(0);
            heir
        } else if thread_rng().gen_bool(0.3) {
            base
        } else {
            heir
        };
        let cut = match thread_rng().gen_range(0..3) {
            0 => SIZE as u64,
            1 => thread_rng().gen_range(1..SIZE as u64),
            _ => SIZE as u64 / BLOCK * BLOCK + thread_rng().gen_range(0..BLOCK),
        };
        let next = cut + thread_rng().gen_range(1..3000);
        let places = [cut.saturating_sub(6000)..cut, cut..next, next..next + 5000];
        let mut threads: Vec<_> = places.map(|place| neighbour(subject.clone(), place)).into_iter().collect();
        threads.push(bystander(subject.clone(), scene.clone()));
        drop(subject);
        join(threads);
        scene.judge_contents();
    });
    assert!(ADOPTED.get() > 0 && FINISHED.get() > 0);
}

/// The only writer of these bytes.
fn neighbour(subject: Subject, place: std::ops::Range<u64>) -> shuttle::thread::JoinHandle<()> {
    start(move || {
        for _ in 0..2 {
            let mut random = thread_rng();
            let at = if random.gen_bool(0.5) { place.start } else { random.gen_range(place.clone()) };
            let len = if random.gen_bool(0.5) { place.end - at } else { random.gen_range(1..=place.end - at) };
            subject.edit(match random.gen_range(0..5) {
                0 => Edit::Punch(at, len),
                1 => Edit::Zero(at, len),
                _ => Edit::Write(at, len as usize),
            });
        }
    })
}

/// What goes on in the background, and a clone that goes again.
fn bystander(subject: Subject, scene: Arc<Scene>) -> shuttle::thread::JoinHandle<()> {
    let what = thread_rng().gen_range(0..5);
    start(move || match what {
        0 => scene.pool.flush().unwrap(),
        1 => scene.deepen(&subject.volume, 5),
        2 => scene.adopt(&subject.volume),
        3 => {
            drop(scene.take(&subject, 2, false));
            scene.remove(2);
        }
        _ => {}
    })
}

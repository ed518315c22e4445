//! Crashes below FUSE: a simulated disk, every sequence of a few operations, a crash before every call that changes
//! something, and recovery judged by what was acknowledged.

#[path = "../common/mod.rs"]
mod common;

mod around;
mod policy;
mod run;

use common::ops;
use common::simfs::{Lie, Options};
use run::{Plan, Tally};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn report(name: &str, tally: &Tally) {
    println!("{name}: {tally}");
    for violation in tally.violations.iter().take(number("CLONEFS_SIM_SHOW", 1) as usize) {
        println!("{violation}");
    }
    assert!(tally.violations.is_empty(), "{} violations", tally.violations.len());
}

#[test]
fn what_went_wrong_once_stays_right() {
    let mut sum = Tally::default();
    for (prefix, ops, what) in ops::REGRESSIONS {
        for sync_names in [true, false] {
            let options = Options { sync_names, ..Options::default() };
            let tally = run::regression(&Plan { seed: 1, options, each: 12, share: 1 }, prefix, ops);
            assert!(tally.violations.is_empty(), "{what}:\n{}", tally.violations[0]);
            sum.add(tally);
        }
    }
    report("regressions", &sum);
}

#[test]
fn every_crash_of_every_short_sequence_recovers() {
    let seed = number("CLONEFS_SIM_SEED", 1);
    let depth = number("CLONEFS_SIM_DEPTH", 2) as usize;
    let mut tally = Tally::default();
    for sync_names in [true, false] {
        let options = Options { sync_names, ..Options::default() };
        let plan = Plan { seed, options, each: 2, share: number("CLONEFS_SIM_SHARE", 1) };
        tally.add(run::exhaustive(&plan, depth));
    }
    report("exhaustive", &tally);
}

#[test]
fn crashes_of_long_random_sequences_recover() {
    let seed = number("CLONEFS_SIM_SEED", 1);
    let rounds = number("CLONEFS_SIM_ROUNDS", 60);
    let tally = run::random(seed, rounds, number("CLONEFS_SIM_LENGTH", 25));
    report("random", &tally);
}

/// A disk that lies must be found out, or the tests above would prove nothing.
#[test]
fn planted_bugs_are_seen() {
    for lie in [
        Lie::NoFileSync,
        Lie::NoDataSync,
        Lie::NoMapSync,
        Lie::NoJournalSync,
        Lie::NoDirSync,
        Lie::NoTemporarySync,
        Lie::DelayedPunch,
        Lie::MisplacedWrite,
    ] {
        let options = Options { sync_names: lie != Lie::NoDirSync, lie, ..Options::default() };
        let tally = run::exhaustive(&Plan { seed: 1, options, each: 2, share: 3 }, 2);
        println!("{lie:?}: {} of {} states wrong", tally.violations.len(), tally.states);
        assert!(!tally.violations.is_empty(), "{lie:?} went unseen in {} states", tally.states);
    }
}

/// An adoption without one of its steps must be found out as well.
#[test]
fn bugs_planted_into_adoption_are_seen() {
    for lie in [Lie::None, Lie::UnmarkedAdoption, Lie::UnsyncedHeir, Lie::UnsyncedAdoption] {
        let options = Options { lie, ..Options::default() };
        let tally = run::adoptions(&Plan { seed: 1, options, each: 8, share: 1 });
        println!("{lie:?}: {} of {} states wrong", tally.violations.len(), tally.states);
        let seen = !tally.violations.is_empty();
        assert_eq!(seen, lie != Lie::None, "{lie:?} in {} states: {:?}", tally.states, tally.violations.first());
    }
}

/// What was synced, and what was acknowledged before a kill, is there whatever an adoption comes between.
#[test]
fn crashes_around_adoptions_recover() {
    let rounds = number("CLONEFS_SIM_ADOPTIONS", 100);
    report("around adoptions", &around::adoptions(number("CLONEFS_SIM_SEED", 1), rounds, Options::default()));
}

/// Blocks that an adoption leaves beyond the end of a volume, and that are not noted when they are written to again.
#[test]
fn a_growth_that_is_not_noted_after_an_adoption_is_seen() {
    let options = Options { lie: Lie::UnnotedGrowth, ..Options::default() };
    let tally = around::adoptions(1, 60, options);
    println!("{:?}: {} of {} sequences wrong", options.lie, tally.violations.len(), tally.sequences);
    assert!(!tally.violations.is_empty(), "it went unseen in {} states", tally.states);
}

/// A disk on which a sync of a file makes the names of that file durable and nothing else.
#[test]
fn what_takes_the_place_of_a_renamed_file_leaves_one_name() {
    use ops::Op::{Clone, Finish, Fsync, Keep, Rename, Rollback, Snapshot, SyncDir, Write};
    let sequences: [&[ops::Op]; 4] = [
        &[Clone(0, 1), Keep, Rename(1, 2), Finish(2)],
        &[Clone(0, 1), Fsync(1), Rename(1, 2), Write(2), Finish(2), Fsync(2)],
        &[Clone(0, 1), SyncDir, Rename(0, 2), Write(2), Fsync(2)],
        &[Snapshot(0), Rename(0, 2), Snapshot(2), Rollback(2), Finish(2)],
    ];
    let options = Options { lone_names: true, ..Options::default() };
    let mut sum = Tally::default();
    for ops in sequences {
        sum.add(run::regression(&Plan { seed: 1, options, each: 24, share: 1 }, 0, ops));
    }
    report("one name", &sum);
}

#[test]
fn what_the_keeper_has_written_out_survives_a_power_cut() {
    let tally = run::kept(number("CLONEFS_SIM_SEED", 1));
    report("kept", &tally);
    assert!(tally.states >= 40);
}

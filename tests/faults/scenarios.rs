//! The operations, each after what makes it take another path through the pool.

use crate::common::ops::{Op, Op::*};

/// What is done while a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// An operation on a pool that is served.
    Do(Op),
    /// The start, after an orderly end.
    Mount,
    /// The start after the daemon was killed.
    Recover,
    /// The end.
    Unmount,
}

use Work::{Do, Mount, Recover, Unmount};

/// What there was before, and what is done.
pub type Scenario = (&'static str, &'static [Op], Work);

/// A plain file with a clone.
const CLONED: &[Op] = &[CloneDurably(0, 1)];
/// Source and clone both written to; all of it durable.
const BOTH: &[Op] = &[CloneDurably(0, 1), Write(0), Write(1), Fsync(0), Fsync(1)];
/// The same, with writes that are not.
const DIRTY: &[Op] =
    &[CloneDurably(0, 1), Write(0), Write(1), Fsync(0), Fsync(1), Write(0), Append(1), Clone(1, 2), Write(1)];
/// A clone of an overlay whose other heirs are gone.
const CHAIN: &[Op] =
    &[CloneDurably(0, 1), Write(1), CloneDurably(1, 4), Write(1), Fsync(1), Unlink(4), Unlink(0), SyncDir];
/// A source that cannot be frozen, with readers of several kinds.
const STUCK: &[Op] = &[CloneDurably(0, 1), Write(1), Clone(1, 2), Clone(0, 3), Stick];
/// A frozen layer over another, with one heir.
const FROZEN: &[Op] = &[
    CloneDurably(0, 1),
    Write(1),
    CloneDurably(1, 2),
    Punch(1),
    CloneDurably(1, 3),
    Append(1),
    Fsync(1),
    Unlink(2),
    SyncDir,
    Keep,
];

/// All of them.
pub const ALL: &[Scenario] = &[
    ("clone a plain file", &[], Do(Clone(0, 1))),
    ("clone a plain file in a pool that has clones", CLONED, Do(Clone(0, 2))),
    ("clone a file that is being written, and sync", &[Write(0)], Do(CloneDurably(0, 1))),
    ("clone a file that is being written", &[Write(0), Fsync(0), Append(0)], Do(Clone(0, 1))),
    ("clone an overlay", BOTH, Do(CloneDurably(1, 2))),
    ("clone an overlay that is being written", DIRTY, Do(Clone(1, 3))),
    ("clone an overlay that is untouched", CLONED, Do(Clone(1, 2))),
    ("clone a group", CLONED, Do(Group)),
    ("clone a group that is being written", DIRTY, Do(Group)),
    ("copy a clone by ranges", BOTH, Do(CopyRange(1, 2))),
    ("clone over an overlay", BOTH, Do(CloneOver(0, 1))),
    ("clone over a file that is being written", DIRTY, Do(CloneOver(2, 0))),
    ("copy a plain file by ranges", &[], Do(CopyRange(0, 2))),
    ("copy a plain file by ranges into a file of zeros", &[Zeros(2), Fsync(2), SyncDir], Do(CopyInto(0, 2))),
    (
        "copy a clone by ranges into a file of zeros",
        &[CloneDurably(0, 1), Write(1), Fsync(1), Zeros(2), Fsync(2)],
        Do(CopyInto(1, 2)),
    ),
    ("a long write to a plain file", &[], Do(Span(0))),
    ("a long write to an untouched clone", CLONED, Do(Span(1))),
    ("a long write over blocks that are there and blocks that are not", BOTH, Do(Span(1))),
    ("a long write over blocks that were punched", &[CloneDurably(0, 1), Punch(1), Fsync(1)], Do(Span(1))),
    ("first write to a source", CLONED, Do(Write(0))),
    ("first append to a source of an open clone", &[Clone(0, 1), Write(1)], Do(Append(0))),
    ("first punch of a source", CLONED, Do(Punch(0))),
    ("first shrink of a source", CLONED, Do(Shrink(0))),
    ("first write to a source that cannot be frozen", &[CloneDurably(0, 1), Stick], Do(Write(0))),
    ("first write to a source of clones of clones that cannot be frozen", STUCK, Do(Write(0))),
    ("first shrink of a source that cannot be frozen", &[Append(0), Clone(0, 1), Write(1), Stick], Do(Shrink(0))),
    ("write to a plain file", &[], Do(Write(0))),
    ("first write to a clone", CLONED, Do(Write(1))),
    ("write to a clone again", BOTH, Do(Write(1))),
    ("append to a clone", BOTH, Do(Append(1))),
    ("punch a clone", BOTH, Do(Punch(1))),
    ("shrink a clone", BOTH, Do(Shrink(1))),
    ("shrink an untouched clone", CLONED, Do(Shrink(1))),
    ("grow a clone", BOTH, Do(Grow(1))),
    ("fsync of a plain file", &[Write(0)], Do(Fsync(0))),
    ("fsync of a new clone", &[Clone(0, 1)], Do(Fsync(1))),
    ("fsync of a new clone of an unsynced file", &[Append(0), Clone(0, 1), Write(1)], Do(Fsync(1))),
    ("fsync of a source after its first write", &[Append(0), Clone(0, 1), Write(0)], Do(Fsync(0))),
    ("fsync of a clone", DIRTY, Do(Fsync(1))),
    ("fsync of a chain", &[Clone(0, 1), Write(1), Clone(1, 2), Write(1), Clone(1, 3), Write(2)], Do(Fsync(2))),
    ("fsync after a punch and an append", &[CloneDurably(0, 1), Write(1), Fsync(1), Punch(1), Append(1)], Do(Fsync(1))),
    ("deepen a step", CLONED, Do(Fill(1))),
    ("deepen a step of what is being written", DIRTY, Do(Fill(1))),
    ("deepen to the end", CLONED, Do(Finish(1))),
    ("deepen what is being written to the end", DIRTY, Do(Finish(1))),
    ("deepen a chain to the end", CHAIN, Do(Finish(1))),
    ("adopt a plain file", &[CloneDurably(0, 1), Write(1), Fsync(1), Append(1), Unlink(0), SyncDir], Do(Adopt(1))),
    ("adopt a layer", CHAIN, Do(Adopt(1))),
    ("adopt a layer under a frozen one", FROZEN, Do(AdoptFrozen)),
    ("unlink a clone", BOTH, Do(Unlink(1))),
    ("unlink a source", CLONED, Do(Unlink(0))),
    ("unlink the last clone", CLONED, Do(Unlink(1))),
    ("rename a clone over its source", BOTH, Do(Rename(1, 0))),
    ("rename a plain source over its clone", &[CloneDurably(0, 1), Write(1)], Do(Rename(0, 1))),
    ("export a plain file", &[], Do(Export(0))),
    ("export a source", CLONED, Do(Export(0))),
    ("export a clone", CLONED, Do(Export(1))),
    ("export what is being written", DIRTY, Do(Export(1))),
    ("read a chain", FROZEN, Do(Read(1))),
    ("read a chain after a start", &[CloneDurably(0, 1), Write(1), CloneDurably(1, 2), Append(1), Kill], Do(Read(1))),
    ("write after a start", &[CloneDurably(0, 1), Write(1), Fsync(1), Kill], Do(Append(1))),
    ("checkpoint", DIRTY, Do(Checkpoint)),
    ("what the keeper does", DIRTY, Do(Keep)),
    ("mount", DIRTY, Mount),
    ("mount what was never cloned in", &[Write(0)], Mount),
    ("mount after a kill", DIRTY, Recover),
    ("mount with files to remove after a kill", &[CloneDurably(0, 1), Write(1), Fsync(1), Unlink(1)], Recover),
    ("unmount", DIRTY, Unmount),
    ("unmount after a checkpoint", &[Clone(0, 1), Write(1), Checkpoint, Append(1)], Unmount),
];

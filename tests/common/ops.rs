//! The operations whose crashes are tried.

/// Volumes are called by number: 0 is the base, 1 its clone, the others come and go.
pub type Name = u8;

/// What a user or background work does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes parts of blocks and whole ones.
    Write(Name),
    /// Writes over many blocks in one call.
    Span(Name),
    /// Writes past the end.
    Append(Name),
    Fsync(Name),
    Clone(Name, Name),
    /// As with `sync` in the request.
    CloneDurably(Name, Name),
    /// One step of deepening.
    Fill(Name),
    Adopt(Name),
    /// Merges frozen layers with one heir.
    AdoptFrozen,
    /// All the steps of deepening, then the switch to a plain file.
    Finish(Name),
    Punch(Name),
    Shrink(Name),
    Grow(Name),
    Unlink(Name),
    Rename(Name, Name),
    /// Copies into a new file in pieces, as qemu-img and cp do.
    CopyRange(Name, Name),
    /// Makes a new file that has a size and no data.
    Zeros(Name),
    /// What the keeper does every few seconds.
    Keep,
    /// Syncs the directory.
    SyncDir,
    /// Writes the catalogue out.
    Checkpoint,
    /// All handles of a volume are closed.
    Close(Name),
    /// From now on no stub can take the place of a file.
    Stick,
    /// The daemon is killed and started again; the machine lives on.
    Kill,
    /// Reads all of it, and compares.
    Read(Name),
    /// Cuts a volume to nothing and clones into it, as `cp` over an existing file does.
    CloneOver(Name, Name),
    /// Holds a point in time and reads it, as an export does.
    Export(Name),
    /// Clones 0 and 1 as 6 and 7, as of one moment.
    Group,
    /// Makes the one snapshot that a volume can have here.
    Snapshot(Name),
    /// Makes snapshots of 0 and 1, of one moment.
    SnapshotGroup,
    RemoveSnapshot(Name),
    Rollback(Name),
    /// Back to what it was when it was made as a clone.
    Reset(Name),
    /// Writes past the end, with a hole before it.
    Extend(Name),
    /// Gives a clone one more name.
    Link(Name, Name),
    /// Cuts a file to nothing and makes it longer again: zeros.
    Blank(Name),
    /// Copies into a file that is there, as it is, in pieces.
    CopyInto(Name, Name),
}

use Op::*;

/// The operations of the exhaustive run.
pub const ALL: [Op; 30] = [
    Write(0),
    Write(1),
    Append(1),
    Fsync(0),
    Fsync(1),
    Clone(0, 1),
    Clone(0, 2),
    Clone(1, 2),
    CloneDurably(0, 3),
    Close(0),
    Kill,
    Fill(0),
    Fill(1),
    Adopt(0),
    Adopt(1),
    AdoptFrozen,
    Finish(0),
    Finish(1),
    Punch(0),
    Punch(1),
    Shrink(1),
    Grow(1),
    Unlink(0),
    Unlink(1),
    Rename(1, 0),
    Rename(0, 1),
    CopyRange(0, 2),
    Group,
    Snapshot(1),
    Rollback(1),
];

/// More, for long random sequences.
pub const MORE: [Op; 55] = [
    Span(0),
    Span(1),
    Zeros(2),
    Zeros(3),
    CopyInto(0, 2),
    CloneOver(0, 1),
    CloneOver(1, 0),
    CloneOver(1, 2),
    Write(2),
    Write(3),
    Fsync(2),
    Fsync(3),
    Clone(2, 3),
    Clone(3, 2),
    Clone(2, 0),
    Clone(3, 1),
    CopyRange(1, 3),
    Rename(2, 1),
    Rename(3, 2),
    Unlink(2),
    Unlink(3),
    Finish(2),
    Shrink(0),
    Close(1),
    Close(2),
    Keep,
    SyncDir,
    Checkpoint,
    Write(6),
    Fsync(7),
    Unlink(7),
    Unlink(6),
    Snapshot(0),
    Rollback(0),
    Reset(1),
    SnapshotGroup,
    RemoveSnapshot(0),
    RemoveSnapshot(1),
    Snapshot(2),
    Rollback(2),
    Reset(2),
    Reset(7),
    Extend(0),
    Extend(1),
    Extend(2),
    Append(0),
    Append(2),
    Shrink(2),
    Adopt(2),
    Link(1, 8),
    Unlink(8),
    Link(2, 9),
    Blank(2),
    CopyInto(0, 2),
    CopyInto(1, 2),
];

/// What is there before a sequence begins; all of it is synced.
pub const PREFIXES: [(&str, &[Op]); 8] = [
    ("a plain file in a pool that was never cloned in", &[]),
    ("a plain file with a clone", &[CloneDurably(0, 1)]),
    ("a clone that was written to", &[CloneDurably(0, 1), Write(1), Fsync(1)]),
    ("source and clone both written to", &[CloneDurably(0, 1), Write(0), Write(1), Fsync(0), Fsync(1)]),
    (
        "a clone of an overlay, the source deleted",
        &[CloneDurably(0, 1), Write(1), CloneDurably(1, 4), Write(1), Fsync(1), Unlink(4), Unlink(0), SyncDir],
    ),
    ("a clone whose source is deleted", &[CloneDurably(0, 1), Unlink(0), SyncDir]),
    ("a clone that has adopted its source", &[CloneDurably(0, 1), Unlink(0), SyncDir, Adopt(1)]),
    (
        "volumes that were written to after a snapshot",
        &[CloneDurably(0, 1), SnapshotGroup, Write(0), Write(1), Fsync(0), Fsync(1)],
    ),
];

/// Sequences that went wrong once: the prefix, the operations, and what happened.
pub const REGRESSIONS: [(usize, &[Op], &str); 20] = [
    (
        0,
        &[Zeros(2), Fsync(2), CopyInto(0, 2), Keep],
        "a copy into a synced file of zeros made an empty file of it on the way",
    ),
    (
        1,
        &[Zeros(2), Fsync(2), CopyInto(1, 2), Write(2), Fsync(2)],
        "a copy into a synced file of zeros made an empty file of it on the way",
    ),
    (
        2,
        &[Zeros(2), Fsync(2), CopyInto(1, 2), Shrink(2), Kill],
        "a copy into a synced file of zeros made an empty file of it on the way",
    ),
    (0, &[Clone(0, 2)], "the mark of a stub stayed on an empty file, whose first bytes were then taken for a stub's"),
    (0, &[Clone(0, 1), Fsync(1)], "the link of the source into layers/ was not synced with the clone"),
    (1, &[Write(0)], "the first write took the user's name away before the link into layers/ was durable"),
    (0, &[CopyRange(0, 2), CloneDurably(0, 3)], "two records of the journal reached the disk in the other order"),
    (0, &[CopyRange(0, 2), CloneDurably(0, 3), Write(2)], "the mark of a stub was lost, and check called it replaced"),
    (0, &[Clone(0, 1), Shrink(1)], "the map was durable before the stub, and the volume without a name was kept"),
    (2, &[Unlink(0), Adopt(1)], "a deleted name came back over the blocks of the heir that had adopted the file"),
    (6, &[Append(1), Fsync(1), Kill], "the size of a volume that had adopted a whole file was recorded nowhere"),
    (6, &[Shrink(1), Fsync(1), Kill], "the size of a volume that had adopted a whole file was recorded nowhere"),
    (0, &[Clone(0, 1), Kill, Fsync(1)], "after a kill, a sync found nothing to do that the killed daemon had left"),
    (1, &[Write(0), Close(0), Clone(0, 2), Fsync(2)], "the modification time that a stamp remembers was not durable"),
    (1, &[Finish(1), Write(0), Write(1)], "check called a file changed that nobody reads through the layer any more"),
    (
        0,
        &[Write(0), Clone(0, 2), CopyRange(0, 1), Snapshot(1)],
        "the data of a new volume was durable with its snapshot, and its stub was not",
    ),
    (0, &[CopyRange(0, 1), Group], "the data of a new volume was durable with a group, and its stub was not"),
    (0, &[Append(0), Close(0), Clone(0, 2), Punch(0)], "check called a file damaged whose growth was never durable"),
    (
        5,
        &[Shrink(1), Adopt(1), Append(1), Fsync(1), Kill],
        "blocks beyond the end stayed present in an adoption, and that they were written to again was not noted",
    ),
    (
        3,
        &[Snapshot(1), Shrink(1), RemoveSnapshot(1), Adopt(1), Append(1), Fsync(1), Kill],
        "the same, after a snapshot",
    ),
];

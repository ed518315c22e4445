//! The operations, and how they are drawn.

use proptest::prelude::*;

/// Volumes are called by number.
pub type Name = u8;

#[derive(Clone, Debug)]
pub enum Op {
    Create(Name),
    Write {
        name: Name,
        offset: u64,
        len: u64,
        byte: u8,
    },
    Sync(Name),
    SetSize {
        name: Name,
        size: u64,
    },
    Punch {
        name: Name,
        offset: u64,
        len: u64,
    },
    Zero {
        name: Name,
        offset: u64,
        len: u64,
        keep_size: bool,
    },
    Reserve {
        name: Name,
        offset: u64,
        len: u64,
        keep_size: bool,
    },
    /// With the source open for writing, or not.
    Clone {
        from: Name,
        to: Name,
        grow: u64,
        live: bool,
    },
    CopyRange {
        from: Name,
        to: Name,
        offset: u64,
        to_offset: u64,
        len: u64,
    },
    /// Copies as qemu-img and cp do: into a new file, by pieces at equal offsets.
    CopyByPieces {
        from: Name,
        to: Name,
        piece: u64,
        skip: u64,
        preset_size: bool,
    },
    Pin(Name),
    Unpin,
    Fill {
        name: Name,
        bytes: u64,
    },
    Adopt(Name),
    AdoptFrozen,
    Finish(Name),
    Remove(Name),
    Rename {
        from: Name,
        to: Name,
    },
    Link {
        from: Name,
        to: Name,
    },
    /// As of one moment.
    Group {
        from: [Name; 2],
        to: [Name; 2],
    },
    /// Of one moment, if there are two; a volume has one snapshot at most.
    Snapshot(Vec<Name>),
    RemoveSnapshot(Name),
    Rollback(Name),
    /// Back to what it was when it was made as a clone.
    Reset(Name),
    Flush,
    Reap,
    Remount,
    KillAndRemount,
}

/// Most bytes of a volume: enough for some blocks, a few hundred for shared ranges, and odd ends.
const LIMIT: u64 = 400 << 10;

fn name() -> impl Strategy<Value = Name> {
    0u8..6
}

/// Offsets and lengths at block bounds and off them.
fn bytes(limit: u64) -> impl Strategy<Value = u64> {
    prop_oneof![(0..=limit / 4096).prop_map(|n| n * 4096), 0..=limit, Just(0), Just(limit)]
}

pub fn any() -> impl Strategy<Value = Op> {
    let len = || bytes(70_000);
    let offset = || bytes(LIMIT);
    prop_oneof![
        3 => name().prop_map(Op::Create),
        12 => (name(), offset(), len(), 1u8..255).prop_map(|(name, offset, len, byte)| Op::Write { name, offset, len, byte }),
        2 => (name(), Just(0u64), Just(200u64 << 10), 1u8..255)
            .prop_map(|(name, offset, len, byte)| Op::Write { name, offset, len, byte }),
        2 => name().prop_map(Op::Sync),
        4 => (name(), offset()).prop_map(|(name, size)| Op::SetSize { name, size }),
        3 => (name(), offset(), len()).prop_map(|(name, offset, len)| Op::Punch { name, offset, len }),
        2 => (name(), offset(), len(), any_bool()).prop_map(|(name, offset, len, keep_size)| Op::Zero { name, offset, len, keep_size }),
        1 => (name(), offset(), len(), any_bool()).prop_map(|(name, offset, len, keep_size)| Op::Reserve { name, offset, len, keep_size }),
        10 => (name(), name(), prop_oneof![3 => Just(0u64), 1 => bytes(50_000)], any_bool())
            .prop_map(|(from, to, grow, live)| Op::Clone { from, to, grow, live }),
        2 => (name(), name(), offset(), offset(), bytes(300 << 10))
            .prop_map(|(from, to, offset, to_offset, len)| Op::CopyRange { from, to, offset, to_offset, len }),
        3 => (name(), name(), prop_oneof![Just(128u64 << 10), Just(192u64 << 10), Just(400u64 << 10)], 0u64..4, any_bool())
            .prop_map(|(from, to, piece, skip, preset_size)| Op::CopyByPieces { from, to, piece, skip, preset_size }),
        1 => name().prop_map(Op::Pin),
        1 => Just(Op::Unpin),
        6 => (name(), 1u64..200_000).prop_map(|(name, bytes)| Op::Fill { name, bytes }),
        4 => name().prop_map(Op::Adopt),
        2 => Just(Op::AdoptFrozen),
        4 => name().prop_map(Op::Finish),
        4 => name().prop_map(Op::Remove),
        3 => (name(), name()).prop_map(|(from, to)| Op::Rename { from, to }),
        1 => (name(), name()).prop_map(|(from, to)| Op::Link { from, to }),
        2 => ([name(), name()], [name(), name()]).prop_map(|(from, to)| Op::Group { from, to }),
        5 => prop::collection::vec(name(), 1..3).prop_map(Op::Snapshot),
        3 => name().prop_map(Op::RemoveSnapshot),
        4 => name().prop_map(Op::Rollback),
        4 => name().prop_map(Op::Reset),
        1 => Just(Op::Flush),
        2 => Just(Op::Reap),
        2 => Just(Op::Remount),
        3 => Just(Op::KillAndRemount),
    ]
}

/// One operation, or now and then some that belong together.
pub fn some() -> impl Strategy<Value = Vec<Op>> {
    prop_oneof![24 => any().prop_map(|op| vec![op]), 1 => around_an_adoption()]
}

/// A volume is cut, then adopts what it reads, as nobody else does any more, and grows into the same blocks again. Drawn
/// one by one, operations come to this once in many thousands.
fn around_an_adoption() -> impl Strategy<Value = Vec<Op>> {
    let write = |offset: u64, len: u64, byte| Op::Write { name: 0, offset, len, byte };
    let size = || bytes(200 << 10);
    (0..4, size(), size(), 1u64..70_000, 1u8..255, any_bool(), any_bool()).prop_map(
        move |(way, cut, to, len, byte, sync, flush)| {
            let clone = |from, to| Op::Clone { from, to, grow: 0, live: true };
            let mut ops =
                vec![Op::Remove(0), Op::Remove(1), Op::Remove(2), Op::Reap, Op::Create(0), write(0, 200 << 10, byte)];
            let set_size = Op::SetSize { name: 0, size: cut };
            ops.extend(match way {
                0 => vec![clone(0, 1), set_size, Op::Remove(1)],
                1 => vec![
                    clone(0, 1),
                    Op::Rename { from: 0, to: 2 },
                    Op::Rename { from: 1, to: 0 },
                    set_size,
                    Op::Remove(2),
                ],
                2 => vec![
                    clone(0, 1),
                    write(0, 200 << 10, 1),
                    Op::RemoveSnapshot(0),
                    Op::Snapshot(vec![0]),
                    set_size,
                    Op::RemoveSnapshot(0),
                ],
                _ => vec![
                    clone(0, 1),
                    write(0, 100 << 10, 1),
                    clone(0, 2),
                    set_size,
                    Op::Link { from: 0, to: 3 },
                    Op::Remove(2),
                ],
            });
            ops.extend([Op::Reap, Op::Adopt(0), write(to, len, byte)]);
            ops.extend(sync.then_some(Op::Sync(0)));
            ops.extend(flush.then_some(Op::Flush));
            ops.push(Op::KillAndRemount);
            ops
        },
    )
}

fn any_bool() -> impl Strategy<Value = bool> {
    prop::bool::ANY
}

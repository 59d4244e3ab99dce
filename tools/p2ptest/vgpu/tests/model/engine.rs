// SPDX-License-Identifier: GPL-2.0

//! Copy, fill and checksum against their naive selves, with pages in slots and out of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use vgpu::regs;
use vgpu::state::Mode;

use crate::machine::{Cmd, DATA, Machine, Seg, entry};

/// Both memories have this size: several chunks.
const SIZE: u64 = 320 << 10;

#[derive(Clone, Copy, Debug)]
struct Piece {
    src: (u32, u64),
    dst: (u32, u64),
    len: u64,
}

impl Piece {
    /// Whether source and destination meet: then the contract leaves the result open.
    fn overlaps(&self) -> bool {
        self.src.0 == self.dst.0 && self.src.1.abs_diff(self.dst.1) < self.len
    }

    fn segment(&self) -> Seg {
        let place = |(space, at): (u32, u64)| (space, if space == 1 { DATA + at } else { at });
        Seg {
            src: place(self.src),
            dst: place(self.dst),
            len: self.len,
        }
    }
}

fn piece() -> impl Strategy<Value = Piece> {
    let len = prop_oneof![3 => 1..64u64, 3 => 1..9000u64, 1 => 1..SIZE];
    (len, 0..2u32, 0..2u32).prop_flat_map(|(len, a, b)| {
        (0..=SIZE - len, 0..=SIZE - len).prop_map(move |(src, dst)| Piece {
            src: (a, src),
            dst: (b, dst),
            len,
        })
    })
}

/// A machine whose memories hold noise, with some pages in slots; and the naive memories.
fn noisy(mapped: bool, slots: &[u64], seed: u8) -> (Machine, [Vec<u8>; 2]) {
    let mode = if mapped { Mode::Mapped } else { Mode::Trapped };
    let mut machine = Machine::new(mode, SIZE, 1 << 18);
    let noise = |salt: u64| -> Vec<u8> {
        (0..SIZE)
            .map(|n| ((n * 2_654_435_761 + salt) >> 11) as u8 ^ seed)
            .collect()
    };
    let memories = [noise(1), noise(77)];
    machine.core.aperture.vram_write(0, &memories[0]).unwrap();
    machine.poke(DATA, &memories[1]);
    for (slot, page) in (0..).zip(slots) {
        machine.pte(slot, entry(*page));
    }
    assert_eq!(machine.flush(1, &[(0, 64)]), 0);
    (machine, memories)
}

fn slots() -> impl Strategy<Value = Vec<u64>> {
    vec(0..SIZE >> 12, 0..20)
}

fn check(machine: &Machine, naive: &[Vec<u8>; 2]) -> Result<(), TestCaseError> {
    prop_assert!(machine.vram(0, SIZE as usize) == naive[0], "VRAM differs");
    prop_assert!(
        machine.peek(DATA, SIZE as usize) == naive[1],
        "memory differs"
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn copies_are_naive_copies(
        pieces in vec(piece(), 1..20), slots in slots(), mapped in any::<bool>(),
    ) {
        let (mut machine, mut naive) = noisy(mapped, &slots, 0);
        let pieces: Vec<Piece> = pieces.into_iter().filter(|piece| !piece.overlaps()).collect();
        let list: Vec<Seg> = pieces.iter().map(Piece::segment).collect();
        prop_assert_eq!(machine.list(0, regs::OP_COPY, &list, 0), 0);
        for Piece { src, dst, len } in pieces {
            let range = src.1 as usize..(src.1 + len) as usize;
            let bytes = naive[src.0 as usize][range].to_vec();
            naive[dst.0 as usize][dst.1 as usize..][..len as usize].copy_from_slice(&bytes);
        }
        check(&machine, &naive)?;
    }

    #[test]
    fn fills_begin_with_the_low_byte_at_each_destination(
        pieces in vec(piece(), 1..8), slots in slots(), mapped in any::<bool>(), value in any::<u32>(),
    ) {
        let (mut machine, mut naive) = noisy(mapped, &slots, 1);
        let pieces: Vec<Piece> = pieces.into_iter()
            .map(|piece| Piece { src: (0, 0), len: piece.len & !3, ..piece })
            .filter(|piece| piece.len > 0).collect();
        let list: Vec<Seg> =
            pieces.iter().map(|piece| Seg { src: (0, 0), ..piece.segment() }).collect();
        prop_assert_eq!(machine.list(0, regs::OP_FILL, &list, value.into()), 0);
        for Piece { dst, len, .. } in pieces {
            for (n, byte) in naive[dst.0 as usize][dst.1 as usize..][..len as usize].iter_mut().enumerate() {
                *byte = value.to_le_bytes()[n % 4];
            }
        }
        check(&machine, &naive)?;
    }

    #[test]
    fn sums_are_naive_sums(
        pieces in vec(piece(), 1..12), slots in slots(), mapped in any::<bool>(), float in any::<bool>(),
    ) {
        let (mut machine, mut naive) = noisy(mapped, &slots, 2);
        let pieces: Vec<Piece> = pieces.into_iter()
            .map(|piece| Piece { len: piece.len & !3, ..piece })
            .filter(|piece| piece.len > 0 && !piece.overlaps()).collect();
        let list: Vec<Seg> = pieces.iter().map(Piece::segment).collect();
        let value = if float { regs::ADD_F32 } else { regs::ADD_U32 };
        prop_assert_eq!(machine.list(0, regs::OP_ADD, &list, value), 0);
        for Piece { src, dst, len } in pieces {
            let range = src.1 as usize..(src.1 + len) as usize;
            let addends = naive[src.0 as usize][range].to_vec();
            let sums = &mut naive[dst.0 as usize][dst.1 as usize..][..len as usize];
            for (sum, addend) in sums.chunks_exact_mut(4).zip(addends.chunks_exact(4)) {
                let (a, b): ([u8; 4], [u8; 4]) = (sum.try_into().unwrap(), addend.try_into().unwrap());
                let bytes = match float {
                    true => (f32::from_le_bytes(a) + f32::from_le_bytes(b)).to_le_bytes(),
                    false => u32::from_le_bytes(a).wrapping_add(u32::from_le_bytes(b)).to_le_bytes(),
                };
                sum.copy_from_slice(&bytes);
            }
        }
        check(&machine, &naive)?;
    }

    #[test]
    fn checksums_are_sha256_of_all_sources(
        pieces in vec(piece(), 0..12), slots in slots(), mapped in any::<bool>(), seed in any::<u8>(),
    ) {
        let (mut machine, naive) = noisy(mapped, &slots, seed);
        let list: Vec<Seg> =
            pieces.iter().map(|piece| Seg { dst: (0, 0), ..piece.segment() }).collect();
        let at = DATA - 33;
        prop_assert_eq!(machine.list(0, regs::OP_CHECKSUM, &list, at), 0);
        let mut hash = Sha256::new();
        for Piece { src, len, .. } in pieces {
            hash.update(&naive[src.0 as usize][src.1 as usize..][..len as usize]);
        }
        prop_assert_eq!(machine.peek(at, 32), hash.finalize().to_vec());
        check(&machine, &naive)?;
    }
}

#[test]
fn sums_wrap_around_and_round_to_the_nearest() {
    let sum = |value: u64, a: [u8; 4], b: [u8; 4]| {
        let mut machine = Machine::new(Mode::Trapped, 4096, 4096);
        machine.core.aperture.vram_write(0, &a).unwrap();
        machine.poke(DATA, &b);
        let seg = Seg {
            src: (1, DATA),
            dst: (0, 0),
            len: 4,
        };
        assert_eq!(machine.list(0, regs::OP_ADD, &[seg], value), 0);
        <[u8; 4]>::try_from(machine.vram(0, 4)).unwrap()
    };
    let whole =
        |a: u32, b: u32| u32::from_le_bytes(sum(regs::ADD_U32, a.to_le_bytes(), b.to_le_bytes()));
    assert_eq!(whole(u32::MAX, 3), 2);
    let float =
        |a: f32, b: f32| f32::from_le_bytes(sum(regs::ADD_F32, a.to_le_bytes(), b.to_le_bytes()));
    assert!((float(1.5, 2.25) - 3.75).abs() < f32::EPSILON);
    // Half of the last place: to the even neighbour.
    let even = float(16_777_216.0, 1.0);
    assert_eq!(even.to_bits(), 16_777_216.0_f32.to_bits());
    assert!(float(f32::MAX, f32::MAX).is_infinite());
    assert!(float(f32::INFINITY, f32::NEG_INFINITY).is_nan());
}

#[test]
fn sums_that_cannot_be_are_refused_and_change_nothing() {
    const VRAM: u64 = 8192;
    let seg = |src, dst, len| Seg { src, dst, len };
    for (segment, value, error) in [
        (seg((0, 0), (0, 4096), 8), 2, regs::Error::BadCommand),
        (seg((0, 0), (0, 4096), 8), 1 << 32, regs::Error::BadCommand),
        (seg((0, 0), (0, 4096), 6), 0, regs::Error::BadSegment),
        (seg((0, 0), (0, 4096), 0), 0, regs::Error::BadSegment),
        (seg((0, 0), (0, VRAM - 4), 8), 0, regs::Error::BadSegment),
        (seg((0, VRAM), (0, 0), 4), 1, regs::Error::BadSegment),
        (
            seg((0, u64::MAX - 3), (0, 0), 8),
            1,
            regs::Error::BadSegment,
        ),
        (seg((2, 0), (0, 0), 8), 0, regs::Error::BadSegment),
        (seg((0, 0), (2, 0), 8), 0, regs::Error::BadSegment),
        (seg((1, 0), (0, 0), 8), 0, regs::Error::Dma),
    ] {
        let mut machine = Machine::new(Mode::Trapped, VRAM, 4096);
        let noise: Vec<u8> = (0..VRAM).map(|n| n as u8).collect();
        machine.core.aperture.vram_write(0, &noise).unwrap();
        let found = machine.list(0, regs::OP_ADD, &[segment], value);
        assert_eq!(found, error as u32, "{segment:?} {value}");
        assert_eq!(machine.vram(0, noise.len()), noise);
    }
}

/// An engine stores and looks while a flush moves the same pages into slots and out.
#[test]
fn a_page_that_a_flush_moves_takes_the_engines_stores_along() {
    const PAGES: u32 = 16;
    let mut machine = Machine::new(Mode::Mapped, u64::from(PAGES) << 12, 1 << 18);
    let core = Arc::clone(&machine.core);
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let engine = scope.spawn(|| {
            let mut lost = 0;
            for round in 1.. {
                let stored = vec![round as u8; (PAGES as usize) << 12];
                let mut found = vec![0; stored.len()];
                core.aperture.vram_write(0, &stored).unwrap();
                core.aperture.vram_read(0, &mut found).unwrap();
                lost += u32::from(stored != found);
                if end.load(Ordering::Relaxed) {
                    break;
                }
            }
            lost
        });
        for round in 0..400u32 {
            for slot in 0..PAGES {
                let page = u64::from((slot + round) % PAGES);
                machine.pte(slot, if round % 3 == 0 { 0 } else { entry(page) });
            }
            assert_eq!(machine.flush(1, &[(0, PAGES)]), 0);
        }
        end.store(true, Ordering::Relaxed);
        assert_eq!(engine.join().unwrap(), 0, "stores were lost");
    });
    assert_eq!(
        machine.run(
            0,
            Cmd {
                op: regs::OP_CHECK,
                ..Cmd::default()
            }
        ),
        0
    );
    assert_eq!(machine.faults(), []);
}

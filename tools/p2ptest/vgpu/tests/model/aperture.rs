// SPDX-License-Identifier: GPL-2.0

//! The aperture against a naive model, through registers, rings and the page table in memory.

use proptest::collection::vec;
use proptest::prelude::*;
use vgpu::regs;
use vgpu::state::Mode;

use crate::machine::{Cmd, LEAVES, Machine, ROOT, entry, until};

const SLOTS: u32 = 8;
const PAGES: u64 = 12;
const PAGE: usize = 4096;

const INVALID_SLOT: u8 = 1;
const STALE_WRITE: u8 = 2;
const BAD_PTE: u8 = 3;
const ALIAS: u8 = 4;

#[derive(Clone, Debug)]
enum Act {
    Pte(u32, u64),
    Flush(Vec<(u32, u32)>),
    Store(u32, usize, u8),
    Engine(u64, usize, u8),
    Check,
    Reset,
}

fn act() -> impl Strategy<Value = Act> {
    let pte = prop_oneof![
        8 => (0..PAGES).prop_map(entry),
        2 => Just(0),
        1 => Just(entry(PAGES)),
        1 => (0..PAGES).prop_map(|page| page << 12),
        1 => (1..12u32, 0..PAGES).prop_map(|(bit, page)| entry(page) | 1 << bit),
        1 => (52..64u32, 0..PAGES).prop_map(|(bit, page)| entry(page) | 1 << bit),
        1 => Just(u64::MAX),
    ];
    let range = (0..SLOTS).prop_flat_map(|first| (Just(first), 1..=SLOTS - first));
    prop_oneof![
        8 => (0..SLOTS, pte).prop_map(|(slot, pte)| Act::Pte(slot, pte)),
        5 => vec(range, 1..4).prop_map(Act::Flush),
        5 => (0..SLOTS, 0..PAGE, any::<u8>()).prop_map(|(slot, at, byte)| Act::Store(slot, at, byte)),
        3 => (0..PAGES, 0..PAGE, any::<u8>()).prop_map(|(page, at, byte)| Act::Engine(page, at, byte)),
        1 => Just(Act::Check),
        1 => Just(Act::Reset),
    ]
}

/// What the contract says, in its simplest words: a page's bytes are its own wherever it is shown.
struct Naive {
    mapped: bool,
    pages: Vec<Vec<u8>>,
    table: Vec<u64>,
    shown: Vec<Option<u64>>,
    /// The bytes of a slot that shows nothing (mapped mode).
    poison: Vec<Vec<u8>>,
    faults: Vec<(u8, u32, u64)>,
}

impl Naive {
    fn new(mapped: bool) -> Self {
        Self {
            mapped,
            pages: vec![vec![0; PAGE]; PAGES as usize],
            table: vec![0; SLOTS as usize],
            shown: vec![None; SLOTS as usize],
            poison: vec![vec![0xa5; PAGE]; SLOTS as usize],
            faults: Vec::new(),
        }
    }

    fn check_poison(&mut self, slot: u32) {
        let first = self.poison[slot as usize]
            .iter()
            .position(|byte| *byte != 0xa5);
        if let Some(first) = first.filter(|_| self.mapped) {
            self.faults.push((
                STALE_WRITE,
                slot,
                u64::from(slot) * PAGE as u64 + first as u64,
            ));
            self.poison[slot as usize].fill(0xa5);
        }
    }

    fn flush(&mut self, ranges: &[(u32, u32)]) {
        let named = |slot: &u32| ranges.iter().any(|(a, n)| (*a..a + n).contains(slot));
        let slots: Vec<u32> = (0..SLOTS).filter(named).collect();
        let page = |entry: u64| {
            (entry & 1 == 1 && entry >> 12 < PAGES && entry & 0xffe == 0).then_some(entry >> 12)
        };
        let changed: Vec<u32> = slots
            .into_iter()
            .filter(|slot| {
                let slot = *slot as usize;
                self.shown[slot].is_none() || self.shown[slot] != page(self.table[slot])
            })
            .collect();
        for slot in &changed {
            self.shown[*slot as usize] = None;
        }
        for slot in changed {
            let entry = self.table[slot as usize];
            match page(entry) {
                _ if entry == 0 => {}
                None => self.faults.push((BAD_PTE, slot, entry)),
                shown if self.shown.contains(&shown) => self.faults.push((ALIAS, slot, entry)),
                shown => {
                    self.check_poison(slot);
                    self.shown[slot as usize] = shown;
                }
            }
        }
    }

    fn perform(&mut self, act: &Act) {
        match act {
            Act::Pte(slot, entry) => self.table[*slot as usize] = *entry,
            Act::Flush(ranges) => self.flush(ranges),
            Act::Store(slot, at, byte) => match self.shown[*slot as usize] {
                Some(page) => self.pages[page as usize][*at] = *byte,
                None if self.mapped => self.poison[*slot as usize][*at] = *byte,
                None => {
                    let addr = u64::from(*slot) * PAGE as u64 + *at as u64;
                    self.faults.push((INVALID_SLOT, *slot, addr));
                }
            },
            Act::Engine(page, at, byte) => self.pages[*page as usize][*at] = *byte,
            Act::Check => {
                for slot in 0..SLOTS {
                    if self.shown[slot as usize].is_none() {
                        self.check_poison(slot);
                    }
                }
            }
            Act::Reset => {
                self.shown.fill(None);
                self.faults.clear();
            }
        }
    }
}

fn perform(machine: &mut Machine, act: &Act) {
    match act {
        Act::Pte(slot, entry) => machine.pte(*slot, *entry),
        Act::Flush(ranges) => assert_eq!(machine.flush(1, ranges), 0),
        Act::Store(slot, at, byte) => {
            machine
                .core
                .aperture
                .bar_write(u64::from(*slot) * PAGE as u64 + *at as u64, &[*byte]);
        }
        Act::Engine(page, at, byte) => {
            machine
                .core
                .aperture
                .vram_write(page * PAGE as u64 + *at as u64, &[*byte])
                .unwrap();
        }
        Act::Check => {
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
        }
        Act::Reset => {
            machine.reset();
            machine.start();
        }
    }
}

fn compare(machine: &Machine, naive: &mut Naive) -> Result<(), TestCaseError> {
    prop_assert_eq!(machine.faults(), std::mem::take(&mut naive.faults));
    let (runs, installed) = machine.core.aperture.map(usize::MAX);
    let mut shown = vec![None; SLOTS as usize];
    for (slot, page, n) in runs {
        for k in 0..n {
            shown[(slot + k) as usize] = Some(u64::from(page + k));
        }
    }
    prop_assert_eq!(installed, shown.iter().flatten().count());
    prop_assert_eq!(&shown, &naive.shown);
    for (page, bytes) in (0u64..).zip(&naive.pages) {
        prop_assert!(
            machine.vram(page * PAGE as u64, PAGE) == *bytes,
            "page {}",
            page
        );
    }
    for slot in 0..SLOTS as usize {
        if let Some(page) = naive.shown[slot] {
            let bytes = machine.bar((slot * PAGE) as u64, PAGE);
            prop_assert!(bytes == naive.pages[page as usize], "slot {}", slot);
        } else if naive.mapped {
            let bytes = machine.bar((slot * PAGE) as u64, PAGE);
            prop_assert!(bytes == naive.poison[slot], "poison of slot {}", slot);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_aperture_does_what_the_contract_says(
        acts in vec(act(), 1..60), mapped in any::<bool>(),
    ) {
        let mode = if mapped { Mode::Mapped } else { Mode::Trapped };
        let mut machine = Machine::new(mode, PAGES << 12, u64::from(SLOTS) << 12);
        let mut naive = Naive::new(mapped);
        for act in &acts {
            perform(&mut machine, act);
            naive.perform(act);
            compare(&machine, &mut naive)?;
        }
    }
}

fn both(test: impl Fn(Machine)) {
    for mode in [Mode::Trapped, Mode::Mapped] {
        test(Machine::new(mode, 64 << 12, 1 << 22));
    }
}

#[test]
fn an_entry_without_a_flush_has_no_effect() {
    both(|mut machine| {
        machine.core.aperture.vram_write(3 << 12, b"three").unwrap();
        machine.core.aperture.vram_write(4 << 12, b"four!").unwrap();
        machine.pte(600, entry(3));
        assert_eq!(machine.core.aperture.map(9).1, 0);
        assert_eq!(machine.flush(1, &[(600, 1)]), 0);
        assert_eq!(machine.bar(600 << 12, 5), b"three");
        machine.pte(600, entry(4));
        assert_eq!(machine.flush(1, &[(0, 600), (601, 100)]), 0);
        assert_eq!(machine.bar(600 << 12, 5), b"three");
        machine.pte(600, 0);
        assert_eq!(machine.bar(600 << 12, 5), b"three");
        assert_eq!(machine.flush(1, &[(0, 1024)]), 0);
        assert_eq!(machine.core.aperture.map(9).1, 0);
    });
}

#[test]
fn a_page_moves_between_slots_in_one_flush() {
    both(|mut machine| {
        machine.core.aperture.vram_write(3 << 12, b"three").unwrap();
        machine.core.aperture.vram_write(4 << 12, b"four!").unwrap();
        machine.pte(0, entry(3));
        machine.pte(511, entry(4));
        assert_eq!(machine.flush(1, &[(0, 512)]), 0);
        machine.pte(0, entry(4));
        machine.pte(511, 0);
        machine.pte(512, entry(3));
        assert_eq!(machine.flush(1, &[(511, 2), (0, 1)]), 0);
        assert_eq!(machine.bar(0, 5), b"four!");
        assert_eq!(machine.bar(512 << 12, 5), b"three");
        assert_eq!(machine.faults(), []);
        let changed = machine.get(regs::Register::Counter(regs::Counter::PtesChanged));
        assert_eq!(changed, 2 + 3);
    });
}

#[test]
fn a_slot_whose_entry_did_not_change_stays_installed_while_it_is_flushed() {
    both(|mut machine| {
        machine.pte(7, entry(7));
        assert_eq!(machine.flush(1, &[(7, 1)]), 0);
        let changed = machine.get(regs::Register::Counter(regs::Counter::PtesChanged));
        assert_eq!(machine.flush(1, &[(0, 1024)]), 0);
        let now = machine.get(regs::Register::Counter(regs::Counter::PtesChanged));
        assert_eq!((changed, now), (1, 1));
    });
}

#[test]
fn a_malformed_upper_entry_empties_its_slots() {
    both(|mut machine| {
        machine.pte(512, entry(1));
        assert_eq!(machine.flush(1, &[(512, 1)]), 0);
        let bad = LEAVES + 4096 + 8;
        machine.poke(ROOT + 8, &bad.to_le_bytes());
        assert_eq!(machine.flush(1, &[(512, 2)]), 0);
        assert_eq!(machine.faults(), [(BAD_PTE, 512, bad), (BAD_PTE, 513, bad)]);
        assert_eq!(machine.core.aperture.map(9).1, 0);
    });
}

#[test]
fn trapped_accesses_out_of_their_slot_fault_and_read_all_ones() {
    let mut machine = Machine::new(Mode::Trapped, 64 << 12, 1 << 16);
    machine.pte(1, entry(1));
    machine.pte(2, entry(2));
    assert_eq!(machine.flush(1, &[(0, 16)]), 0);
    assert_eq!(machine.bar(0x2ffc, 8), [0xff; 8]);
    assert_eq!(machine.bar(0x10, 4), [0xff; 4]);
    assert_eq!(machine.bar(0x1ff8, 8), [0; 8]);
    machine.core.aperture.bar_write(0x5000, &[1; 2]);
    let infos: Vec<u64> = machine
        .core
        .faults
        .entries()
        .iter()
        .map(|f| f.info())
        .collect();
    assert_eq!(infos, [0x2_0008_0001, 0x0_0004_0001, 0x5_0002_0101]);
    until(|| machine.raised(2) > 0);
    assert_eq!(machine.bar(0x1_0000, 4), [0xff; 4]);
    assert_eq!(machine.bar(u64::MAX, 4), [0xff; 4]);
    assert_eq!(
        machine.faults().len(),
        3,
        "past the BAR there is no slot to fault"
    );
}

#[test]
fn a_stale_write_is_found_at_check_and_at_install_once_each() {
    let mut machine = Machine::new(Mode::Mapped, 64 << 12, 1 << 16);
    let window = machine.core.aperture.window().unwrap().clone();
    let check = Cmd {
        op: regs::OP_CHECK,
        ..Cmd::default()
    };
    assert_eq!(machine.run(0, check), 0);
    assert_eq!(machine.faults(), []);

    window.write(0x3456, &[0, 1]).unwrap();
    assert_eq!(machine.run(0, check), 0);
    assert_eq!(machine.run(0, check), 0);
    assert_eq!(machine.faults(), [(STALE_WRITE, 3, 0x3456)]);

    window.write(0x4fff, &[0]).unwrap();
    machine.pte(4, entry(9));
    assert_eq!(machine.flush(1, &[(4, 1)]), 0);
    assert_eq!(machine.faults(), [(STALE_WRITE, 4, 0x4fff)]);
    assert_eq!(machine.vram(9 << 12, PAGE), [0; PAGE]);

    window.write(0x4000, b"guest").unwrap();
    assert_eq!(
        machine.vram(9 << 12, 5),
        b"guest",
        "the engine follows the page"
    );
    machine.pte(4, 0);
    assert_eq!(machine.flush(1, &[(4, 1)]), 0);
    assert_eq!(machine.vram(9 << 12, 5), b"guest");
    assert_eq!(machine.bar(0x4000, 5), [0xa5; 5]);
    until(|| machine.raised(2) > 0);
}

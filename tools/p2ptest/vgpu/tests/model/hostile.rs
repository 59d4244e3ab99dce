// SPDX-License-Identifier: GPL-2.0

//! A guest that means harm: the device survives, and works again after a reset.

use proptest::collection::vec;
use proptest::prelude::*;
use vgpu::regs;
use vgpu::state::Mode;

use crate::act::{Act, perform};
use crate::machine::{Cmd, DATA, LISTS, Machine, RAM, RAM_SIZE, RING};

fn odd_address() -> impl Strategy<Value = u64> {
    prop_oneof![
        RAM..RAM + RAM_SIZE,
        Just(LISTS[0]),
        Just(DATA),
        Just(RAM + RAM_SIZE - 16),
        Just(u64::MAX - 7),
        Just(0),
        any::<u64>(),
    ]
}

fn odd_value() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..20u64,
        odd_address(),
        odd_address().prop_map(|address| address & !0xfff),
        (0..64u32).prop_map(|bit| 1 << bit),
        Just(u64::MAX),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let size = prop_oneof![Just(1usize), Just(2), Just(4), Just(8)];
    let register = prop_oneof![(0..0x30u64).prop_map(|n| n * 4), 0..4096u64];
    prop_oneof![
        6 => (register.clone(), size.clone(), odd_value())
            .prop_map(|(offset, size, value)| Act::Store { offset, size, value }),
        2 => Just(Act::Store { offset: 0x94, size: 4, value: 1 }),
        2 => Just(Act::Store { offset: 0x90, size: 4, value: 4 }),
        2 => Just(Act::Store { offset: 0x80, size: 8, value: RING[0] }),
        3 => (0..20u64).prop_map(|value| Act::Store { offset: 0x98, size: 4, value }),
        2 => (register, size).prop_map(|(offset, size)| Act::Load { offset, size }),
        2 => (odd_value(), vec(any::<u8>(), 0..100), any::<bool>())
            .prop_map(|(offset, data, write)| Act::Bar { offset: offset % (1 << 20), data, write }),
        2 => (0..RAM_SIZE - 64, vec(any::<u8>(), 0..64))
            .prop_map(|(offset, data)| Act::Memory { offset, data }),
        4 => (0..16u64, (0..8u16, 0..3u16, prop_oneof![0..4u32, Just(65536), any::<u32>()],
                odd_address(), prop_oneof![Just(0), odd_value()]))
            .prop_map(|(place, cmd)| Act::Command { place, cmd }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..Default::default() })]

    #[test]
    fn whatever_the_guest_does_a_reset_brings_the_device_back(
        acts in vec(act(), 1..150),
        mapped in any::<bool>(),
    ) {
        let mode = if mapped { Mode::Mapped } else { Mode::Trapped };
        let mut machine = Machine::new(mode, 1 << 20, 1 << 18);
        for act in &acts {
            perform(&machine, act);
        }
        // A store among them may have begun a reset already: both end.
        machine.reset();
        machine.start();
        prop_assert_eq!(machine.run(0, Cmd::default()), 0);
        prop_assert_eq!(machine.run(1, Cmd::default()), 0);
    }
}

#[test]
fn two_guests_threads_at_once_do_no_more_harm() {
    let mut machine = Machine::new(Mode::Mapped, 1 << 20, 1 << 18);
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut acts = || {
        let tree = vec(act(), 3000).new_tree(&mut runner).unwrap();
        proptest::strategy::ValueTree::current(&tree)
    };
    let (one, two) = (acts(), acts());
    std::thread::scope(|scope| {
        for acts in [&one, &two] {
            let machine = &machine;
            scope.spawn(move || acts.iter().for_each(|act| perform(machine, act)));
        }
    });
    machine.reset();
    machine.start();
    assert_eq!(machine.run(0, Cmd::default()), 0);
}

#[test]
fn the_longest_list_of_whole_apertures_costs_one_pass() {
    let mut machine = Machine::new(Mode::Trapped, 1 << 20, 1 << 21);
    let ranges = vec![(0, 512); regs::MAX_COUNT as usize];
    let before = machine.get(regs::Register::Counter(regs::Counter::DmaReadBytes));
    assert_eq!(machine.flush(0, &ranges), 0);
    let read = machine.get(regs::Register::Counter(regs::Counter::DmaReadBytes)) - before;
    assert_eq!(read, 64 + 8 * 65536 + 8 + 4096);
}

// SPDX-License-Identifier: GPL-2.0

//! What BAR0 answers.

use vgpu::regs::{Counter, Global, Register, RingReg};
use vgpu::state::{BuildError, Core, Mode, Parameters};

use crate::machine::Machine;

fn read(machine: &Machine, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    machine.regions.register_read(offset, &mut data);
    data
}

#[test]
fn identity_and_sizes_are_what_was_asked_for() {
    for (mode, features) in [(Mode::Trapped, 0), (Mode::Mapped, 1)] {
        let machine = Machine::new(mode, 0x30_0000, 0x10_0000);
        let get = |register| machine.get(Register::Global(register));
        assert_eq!(get(Global::Id), 0x4750_3250);
        assert_eq!(get(Global::Version), 0x1_0000);
        assert_eq!(get(Global::Features), features);
        assert_eq!(get(Global::Status), 1);
        assert_eq!(
            (get(Global::VramSize), get(Global::ApertureSize)),
            (0x30_0000, 0x10_0000)
        );
    }
}

#[test]
fn sizes_out_of_the_contract_are_refused() {
    let build = |vram, aperture| {
        Core::new(&Parameters {
            vram,
            aperture,
            mode: Mode::Trapped,
        })
        .map(|_| ())
    };
    for vram in [0, 4095, 4097, (1 << 40) + 4096] {
        assert!(
            matches!(build(vram, 1 << 20), Err(BuildError::Vram)),
            "{vram}"
        );
    }
    for aperture in [0, 2048, 3 << 20, 1 << 33] {
        assert!(
            matches!(build(1 << 20, aperture), Err(BuildError::Aperture)),
            "{aperture}"
        );
    }
    assert!(build(1 << 40, 4096).is_ok());
}

#[test]
fn accesses_of_another_size_or_place_read_all_ones_and_store_nothing() {
    let machine = Machine::new(Mode::Trapped, 1 << 20, 1 << 20);
    for (offset, len) in [
        (0, 1),
        (0, 2),
        (0, 8),
        (2, 4),
        (0x10, 4),
        (0x14, 4),
        (0x24, 4),
        (0xc0, 4),
        (0x158, 8),
    ] {
        assert_eq!(
            read(&machine, offset, len),
            vec![0xff; len],
            "{offset:#x} {len}"
        );
    }
    for (offset, data) in [(0x28u64, &[0u8; 4][..]), (0x94, &[0; 1]), (0x94, &[0; 8])] {
        machine.regions.register_write(offset, data);
    }
    assert_eq!(machine.state(0), 1);
    assert_ne!(machine.get(Register::Global(Global::PtRoot)), 0);
    assert_eq!(read(&machine, 0x98, 4), [0; 4], "DOORBELL reads 0");
}

#[test]
fn registers_of_an_enabled_device_do_not_move() {
    let machine = Machine::new(Mode::Trapped, 1 << 20, 1 << 20);
    let root = machine.get(Register::Global(Global::PtRoot));
    machine.set(Register::Global(Global::PtRoot), 0x7000);
    machine.set(Register::Ring(0, RingReg::Base), 0x7000);
    assert_eq!(machine.get(Register::Global(Global::PtRoot)), root);
    assert_ne!(machine.get(Register::Ring(0, RingReg::Base)), 0x7000);
    machine.set(Register::Ring(0, RingReg::Control), 0);
    machine.set(Register::Global(Global::PtRoot), 0x7000);
    assert_eq!(
        machine.get(Register::Global(Global::PtRoot)),
        root,
        "ring 1 is enabled"
    );
    machine.set(Register::Ring(1, RingReg::Control), 0);
    machine.set(Register::Global(Global::PtRoot), 0x7001);
    assert_eq!(
        machine.get(Register::Global(Global::PtRoot)),
        root,
        "unaligned"
    );
    machine.set(Register::Global(Global::PtRoot), 0x7000);
    assert_eq!(machine.get(Register::Global(Global::PtRoot)), 0x7000);
}

#[test]
fn register_accesses_are_counted_and_those_of_counters_are_not() {
    let machine = Machine::new(Mode::Trapped, 1 << 20, 1 << 20);
    let reads = machine.get(Register::Counter(Counter::RegReads));
    let writes = machine.get(Register::Counter(Counter::RegWrites));
    machine.get(Register::Global(Global::Id));
    machine.get(Register::Global(Global::Status));
    machine.set(Register::Global(Global::FaultAck), 0);
    assert_eq!(machine.get(Register::Counter(Counter::RegReads)), reads + 2);
    assert_eq!(
        machine.get(Register::Counter(Counter::RegWrites)),
        writes + 1
    );
}

// SPDX-License-Identifier: GPL-2.0

//! Rings: completion, each error, stop, reset, injection.

use std::time::Duration;

use vgpu::inject::Rule;
use vgpu::regs::{self, Counter, Global, Register, RingReg};
use vgpu::state::Mode;

use crate::machine::{Cmd, DATA, LISTS, Machine, PEER, RAM, RAM_SIZE, Seg, entry, until};

const VRAM: u64 = 1 << 20;

fn machine() -> Machine {
    Machine::new(Mode::Trapped, VRAM, 1 << 18)
}

fn inject(machine: &Machine, rule: &str) {
    let rule: Rule = serde_json::from_str(rule).unwrap();
    machine.core.injections.add(rule).unwrap();
}

fn seg(src: (u32, u64), dst: (u32, u64), len: u64) -> Seg {
    Seg { src, dst, len }
}

/// Runs a command that must fail, checks how the failure is told, and that the ring recovers.
fn fails(machine: &mut Machine, cmd: Cmd, error: u32) {
    let raised = machine.raised(0);
    let fence = machine.post(0, cmd);
    assert_eq!(machine.wait(0, fence), error, "{cmd:x?}");
    until(|| machine.raised(0) == raised + 1);
    assert_eq!(machine.error(0), (error, fence));
    assert_ne!(machine.done(0), fence);
    machine.set(Register::Ring(0, RingReg::Doorbell), 2);
    assert_eq!(machine.state(0), 2, "a halted ring takes no doorbell");
    machine.set(Register::Ring(0, RingReg::Control), 0);
    until(|| machine.state(0) == 0);
    machine.enable(0);
    assert_eq!(machine.run(0, Cmd::default()), 0, "the ring recovers");
    machine.set(Register::Ring(0, RingReg::Control), 0);
    until(|| machine.state(0) == 0);
    machine.enable(0);
}

#[test]
fn commands_complete_in_order_over_many_turns_of_the_ring() {
    let mut machine = machine();
    for n in 0..100 {
        let fence = machine.post(
            0,
            Cmd {
                flags: regs::FLAG_IRQ * (n % 2),
                ..Cmd::default()
            },
        );
        assert_eq!(machine.wait(0, fence), 0);
    }
    until(|| machine.raised(0) == 50);
    assert_eq!((machine.state(0), machine.raised(1)), (1, 0));
}

#[test]
fn malformed_commands_halt_with_their_own_error() {
    let mut machine = machine();
    let list = LISTS[0];
    let none = Cmd::default();
    for (cmd, error) in [
        (Cmd { op: 7, ..none }, 1),
        (
            Cmd {
                op: u16::MAX,
                ..none
            },
            1,
        ),
        (Cmd { flags: 2, ..none }, 2),
        (Cmd { value: 1, ..none }, 2),
        (
            Cmd {
                op: regs::OP_COPY,
                list,
                value: 1,
                ..none
            },
            2,
        ),
        (
            Cmd {
                op: regs::OP_FILL,
                list,
                value: 1 << 32,
                ..none
            },
            2,
        ),
        (Cmd { count: 1, ..none }, 3),
        (Cmd { list, ..none }, 3),
        (
            Cmd {
                op: regs::OP_CHECK,
                count: 1,
                ..none
            },
            3,
        ),
        (
            Cmd {
                op: regs::OP_COPY,
                count: 65537,
                list,
                ..none
            },
            3,
        ),
        (
            Cmd {
                op: regs::OP_COPY,
                count: u32::MAX,
                list,
                ..none
            },
            3,
        ),
        (
            Cmd {
                op: regs::OP_FLUSH,
                count: 1,
                list: list + 4,
                ..none
            },
            3,
        ),
        (
            Cmd {
                op: regs::OP_COPY,
                count: 1,
                list: 0,
                ..none
            },
            6,
        ),
        (
            Cmd {
                op: regs::OP_COPY,
                count: 65536,
                list: u64::MAX - 7,
                ..none
            },
            6,
        ),
        (
            Cmd {
                op: regs::OP_CHECKSUM,
                list,
                value: u64::MAX,
                ..none
            },
            6,
        ),
    ] {
        fails(&mut machine, cmd, error);
    }
}

#[test]
fn a_reserved_byte_is_refused_wherever_it_is() {
    let mut machine = machine();
    for at in [0x20u64, 0x3f] {
        machine.poke(crate::machine::RING[0] + at, &[1]);
        machine.set(Register::Ring(0, RingReg::Doorbell), 1);
        until(|| machine.state(0) == 2);
        assert_eq!(machine.error(0).0, 2);
        machine.reset();
        machine.poke(crate::machine::RING[0], &[0; 64]);
        machine.start();
    }
}

#[test]
fn impossible_segments_halt_the_ring() {
    let mut machine = machine();
    let (vram, memory) = ((0, 0), (1, DATA));
    for (op, seg, error) in [
        (regs::OP_COPY, seg(vram, memory, 0), 4),
        (regs::OP_COPY, seg((0, VRAM - 1), memory, 2), 4),
        (regs::OP_COPY, seg(memory, (0, VRAM), 1), 4),
        (regs::OP_COPY, seg(memory, (0, u64::MAX), 1 << 63), 4),
        (regs::OP_COPY, seg((2, 0), memory, 4), 4),
        (regs::OP_COPY, seg(vram, (u32::MAX, DATA), 4), 4),
        (regs::OP_COPY, seg(vram, (1, RAM + RAM_SIZE), 4), 6),
        (regs::OP_COPY, seg((1, u64::MAX - 2), vram, 8), 6),
        (regs::OP_COPY, seg(memory, (1, 0), 1 << 63), 6),
        (regs::OP_FILL, seg((0, 0), (0, 0), 6), 4),
        (regs::OP_FILL, seg((0, 8), (0, 0), 8), 4),
        (regs::OP_FILL, seg((1, 0), (0, 0), 8), 4),
        (regs::OP_CHECKSUM, seg(vram, (0, 8), 8), 4),
        (regs::OP_CHECKSUM, seg(vram, (1, 0), 8), 4),
        (regs::OP_CHECKSUM, seg((0, VRAM), (0, 0), 1), 4),
    ] {
        let value = if op == regs::OP_CHECKSUM { DATA } else { 0 };
        let cmd = machine.list_command(0, op, &[seg], value);
        fails(&mut machine, cmd, error);
    }
}

#[test]
fn impossible_slot_ranges_halt_the_ring_and_change_nothing() {
    let mut machine = machine();
    machine.pte(0, entry(3));
    for range in [(0, 0), (64, 1), (0, 65), (u32::MAX, 2)] {
        let cmd = machine.flush_command(0, &[(0, 1), range]);
        fails(&mut machine, cmd, 5);
    }
    assert_eq!(machine.core.aperture.map(9).1, 0);
}

#[test]
fn a_table_that_is_not_readable_changes_nothing() {
    let mut machine = machine();
    machine.pte(0, entry(3));
    assert_eq!(machine.flush(0, &[(0, 1)]), 0);
    machine.pte(0, entry(4));
    machine.poke(crate::machine::ROOT, &0x1000u64.to_le_bytes());
    let cmd = machine.flush_command(0, &[(0, 1)]);
    fails(&mut machine, cmd, 6);
    assert_eq!(machine.core.aperture.map(9).0, [(0, 3, 1)]);
}

#[test]
fn a_tail_too_far_ahead_halts_the_ring() {
    let machine = machine();
    machine.set(Register::Ring(0, RingReg::Doorbell), 17);
    until(|| machine.state(0) == 2 && machine.raised(0) == 1);
    assert_eq!(machine.error(0), (7, 0));
    assert_eq!(machine.done(0), 0, "nothing was executed");
}

#[test]
fn a_ring_outside_of_memory_halts_and_says_so() {
    let mut machine = machine();
    machine.set(Register::Ring(0, RingReg::Control), 0);
    machine.set(Register::Ring(0, RingReg::Base), RAM + RAM_SIZE);
    machine.set(Register::Ring(0, RingReg::Control), 1);
    assert_eq!(machine.run(0, Cmd::default()), 6);
}

#[test]
fn a_status_block_outside_of_memory_halts_and_interrupts() {
    let mut machine = machine();
    machine.set(Register::Ring(0, RingReg::Control), 0);
    machine.set(Register::Ring(0, RingReg::StatusAddr), 0);
    machine.set(Register::Ring(0, RingReg::Control), 1);
    machine.post(0, Cmd::default());
    until(|| machine.state(0) == 2 && machine.raised(0) == 1);
}

#[test]
fn the_rings_run_in_parallel() {
    let mut machine = machine();
    inject(&machine, r#"{"what":"stall","ring":0}"#);
    let stalled = machine.post(0, Cmd::default());
    until(|| machine.core.injections.waiting() == 0);
    assert_eq!(machine.run(1, Cmd::default()), 0);
    assert_eq!(machine.done(0), 0);
    machine.core.rings[0].release();
    assert_eq!(machine.wait(0, stalled), 0);
}

#[test]
fn stopping_abandons_a_command_at_a_chunk_boundary() {
    let mut machine = machine();
    inject(&machine, r#"{"what":"slow","ms":60000}"#);
    let cmd = machine.list_command(0, regs::OP_FILL, &[seg((0, 0), (0, 0), VRAM)], 0x55);
    let fence = machine.post(0, cmd);
    until(|| machine.core.injections.waiting() == 0);
    machine.set(Register::Ring(0, RingReg::Control), 0);
    until(|| machine.state(0) == 0);
    assert_eq!((machine.error(0), machine.raised(0)), ((0, 0), 0));
    assert_ne!(machine.done(0), fence);
    machine.enable(0);
    assert_eq!(machine.run(0, Cmd::default()), 0);
}

#[test]
fn an_absurdly_long_command_is_stopped_too() {
    let mut machine = Machine::new(Mode::Trapped, regs::MAX_VRAM, 1 << 18);
    let whole = seg((0, 0), (0, 0), regs::MAX_VRAM);
    let cmd = machine.list_command(0, regs::OP_CHECKSUM, &[whole], DATA);
    machine.post(0, cmd);
    until(|| machine.get(Register::Counter(Counter::EngineBytes)) > 0);
    machine.set(Register::Ring(0, RingReg::Control), 0);
    until(|| machine.state(0) == 0);
}

#[test]
fn a_ring_is_stopping_while_its_dma_is_in_flight_and_handlers_do_not_wait() {
    let mut machine = machine();
    machine.bus.close();
    machine.post(0, Cmd::default());
    machine.bus.await_dma();
    machine.set(Register::Ring(0, RingReg::Control), 0);
    assert_eq!(machine.state(0), 3);
    machine.set(Register::Ring(0, RingReg::Control), 1);
    machine.set(Register::Ring(0, RingReg::Base), 0);
    assert_eq!(machine.state(0), 3);
    assert_ne!(machine.get(Register::Ring(0, RingReg::Base)), 0);
    machine.bus.open();
    until(|| machine.state(0) == 0);
}

#[test]
fn a_reset_waits_for_dma_and_keeps_other_writes_out() {
    for mode in [Mode::Trapped, Mode::Mapped] {
        let mut machine = Machine::new(mode, VRAM, 1 << 18);
        machine.core.aperture.vram_write(5 << 12, b"kept").unwrap();
        machine.pte(1, entry(5));
        machine.pte(2, 1 << 60);
        assert_eq!(machine.flush(1, &[(0, 64)]), 0);
        assert_eq!(machine.bar(4096, 4), b"kept");

        machine.bus.close();
        machine.post(0, Cmd::default());
        machine.bus.await_dma();
        machine.set(Register::Global(Global::Control), 1);
        let status = machine.get(Register::Global(Global::Status));
        assert_eq!(status & 3, 2, "resetting and not ready");
        machine.set(Register::Global(Global::PtRoot), 0x9000);
        machine.set(Register::Ring(1, RingReg::Control), 1);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(machine.get(Register::Global(Global::Status)) & 3, 2);
        machine.bus.open();
        until(|| machine.get(Register::Global(Global::Status)) == 1);

        assert_eq!(machine.get(Register::Global(Global::PtRoot)), 0);
        assert_eq!((machine.state(0), machine.state(1)), (0, 0));
        for register in [RingReg::Base, RingReg::StatusAddr, RingReg::Size] {
            assert_eq!(machine.get(Register::Ring(0, register)), 0);
        }
        assert_eq!(machine.get(Register::Global(Global::FaultCount)), 1);
        assert_eq!(machine.core.aperture.map(9).1, 0);
        assert_eq!(machine.vram(5 << 12, 4), b"kept");
        machine.start();
        assert_eq!(machine.run(0, Cmd::default()), 0);
    }
}

#[test]
fn a_reset_ends_a_stalled_command() {
    let mut machine = machine();
    inject(&machine, r#"{"what":"stall","ring":1}"#);
    machine.post(1, Cmd::default());
    until(|| machine.core.injections.waiting() == 0);
    machine.reset();
    assert_eq!(machine.state(1), 0);
}

#[test]
fn a_reset_that_hangs_ends_when_the_rules_are_cleared() {
    let mut machine = machine();
    inject(&machine, r#"{"what":"hang-reset"}"#);
    assert_eq!(machine.run(0, Cmd::default()), 0, "only resets hang");
    // Asking again does not help.
    for _ in 0..2 {
        machine.set(Register::Global(Global::Control), 1);
        until(|| machine.state(0) == 0);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(machine.get(Register::Global(Global::Status)) & 3, 2);
    }
    machine.set(Register::Global(Global::PtRoot), 0x9000);
    machine.core.clear_injections();
    until(|| machine.get(Register::Global(Global::Status)) == 1);
    assert_eq!(machine.get(Register::Global(Global::PtRoot)), 0);
    machine.start();
    assert_eq!(machine.run(0, Cmd::default()), 0);
}

#[test]
fn an_injected_error_fails_the_command_that_it_names() {
    let mut machine = machine();
    inject(&machine, r#"{"what":"error","after":1}"#);
    assert_eq!(machine.run(0, Cmd::default()), 0);
    assert_eq!(machine.run(0, Cmd::default()), 8);
}

#[test]
fn a_dropped_interrupt_leaves_the_fence() {
    let mut machine = machine();
    let cmd = Cmd {
        flags: regs::FLAG_IRQ,
        ..Cmd::default()
    };
    inject(&machine, r#"{"what":"drop-interrupt"}"#);
    assert_eq!(machine.run(0, cmd), 0);
    assert_eq!(machine.run(0, cmd), 0);
    until(|| machine.raised(0) == 1);
    assert_eq!(machine.core.injections.waiting(), 0);
}

#[test]
fn writes_to_a_peer_are_pushed_home_before_the_fence() {
    let mut machine = machine();
    let peer = RAM + RAM_SIZE - PEER;
    assert_eq!(
        machine.list(0, regs::OP_COPY, &[seg((0, 0), (1, peer), 64)], 0),
        0
    );
    assert_eq!(*machine.bus.reads.lock().unwrap(), [(peer + 63, 1, 0)]);
    assert_eq!(
        machine.list(0, regs::OP_COPY, &[seg((0, 0), (1, DATA), 64)], 0),
        0
    );
    assert_eq!(machine.bus.reads.lock().unwrap().len(), 1);
}

#[test]
fn what_the_engine_moves_is_counted() {
    let mut machine = machine();
    let counter = |machine: &Machine, counter| machine.get(Register::Counter(counter));
    let read = counter(&machine, Counter::DmaReadBytes);
    let written = counter(&machine, Counter::DmaWriteBytes);
    assert_eq!(
        machine.list(0, regs::OP_COPY, &[seg((1, DATA), (0, 0), 100_000)], 0),
        0
    );
    assert_eq!(counter(&machine, Counter::EngineBytes), 100_000);
    assert_eq!(
        counter(&machine, Counter::DmaReadBytes),
        read + 64 + 32 + 100_000
    );
    assert_eq!(counter(&machine, Counter::DmaWriteBytes), written + 8);
}

#[test]
fn power_off_ends_everything_and_power_on_forgets() {
    let mut machine = machine();
    assert_eq!(
        machine.list(0, regs::OP_FILL, &[seg((0, 0), (0, 0), VRAM)], 7),
        0
    );
    inject(&machine, r#"{"what":"stall"}"#);
    inject(&machine, r#"{"what":"hang-reset"}"#);
    machine.post(0, Cmd::default());
    machine.core.power_off();
    assert!(!machine.core.resetting());
    assert_eq!(machine.get(Register::Counter(Counter::EngineBytes)), VRAM);
    machine.core.power_on();
    assert_eq!(machine.get(Register::Counter(Counter::EngineBytes)), 0);
    assert_eq!(machine.vram(4096, 4), [0; 4]);
}

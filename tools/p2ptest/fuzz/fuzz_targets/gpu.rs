// SPDX-License-Identifier: GPL-2.0

//! A guest that means harm drives the GPU's registers, memory and aperture. A reset must bring the
//! device back, whatever it was.

#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use p2p_fuzz::{bytes, number};
use vgpu::state::Mode;

#[path = "../../vgpu/tests/model/act.rs"]
mod act;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../vgpu/tests/model/machine.rs"]
mod machine;

use act::{Act, perform};
use machine::{Cmd, DATA, LEAVES, LISTS, Machine, RAM, RAM_SIZE, RING, ROOT, STATUS};

/// Where something lies in the machine's memory.
const PLACES: [u64; 9] = [
    RAM,
    RING[0],
    STATUS[0],
    ROOT,
    LEAVES,
    LISTS[0],
    DATA,
    RAM + RAM_SIZE - machine::PEER,
    RAM + RAM_SIZE,
];

fn next(u: &mut Unstructured<'_>) -> Result<Act> {
    let size = [1, 2, 4, 8][usize::from(u8::arbitrary(u)?) % 4];
    Ok(match u8::arbitrary(u)? % 10 {
        0 | 1 => Act::Store {
            offset: u64::from(u8::arbitrary(u)? % 0x60) * 4,
            size,
            value: number(u, &PLACES)?,
        },
        2 => Act::Store {
            offset: u64::from(u16::arbitrary(u)? % 4096),
            size,
            value: number(u, &PLACES)?,
        },
        // Ring 0's BASE, SIZE, CONTROL and DOORBELL: without them nothing runs.
        3 => {
            let (offset, size, value) = *u.choose(&[
                (0x80, 8, RING[0]),
                (0x88, 8, STATUS[0]),
                (0x90, 4, 4),
                (0x94, 4, 1),
                (0x94, 4, 0),
            ])?;
            Act::Store {
                offset,
                size,
                value,
            }
        }
        4 => Act::Store {
            offset: 0x98,
            size: 4,
            value: u64::from(u8::arbitrary(u)? % 20),
        },
        5 => Act::Load {
            offset: u64::from(u16::arbitrary(u)? % 4096),
            size,
        },
        6 => Act::Bar {
            offset: number(u, &[])? % (1 << 20),
            data: bytes(u, 100)?,
            write: bool::arbitrary(u)?,
        },
        7 => {
            // A table's entry or a list's, as likely as anything else.
            let place = number(u, &PLACES)?.wrapping_sub(RAM) % (RAM_SIZE - 64);
            let data = match bool::arbitrary(u)? {
                true => number(u, &PLACES)?.to_le_bytes().to_vec(),
                false => bytes(u, 64)?,
            };
            Act::Memory {
                offset: place,
                data,
            }
        }
        _ => Act::Command {
            place: u64::from(u8::arbitrary(u)? % 16),
            cmd: (
                u16::from(u8::arbitrary(u)? % 8),
                u16::from(u8::arbitrary(u)? % 4),
                number(u, &[65536])? as u32,
                number(u, &PLACES)?,
                number(u, &PLACES)?,
            ),
        },
    })
}

fuzz_target!(|data: &[u8]| {
    let mut input = Unstructured::new(data);
    let mode = match input.arbitrary() {
        Ok(true) => Mode::Mapped,
        _ => Mode::Trapped,
    };
    let mut machine = Machine::new(mode, 1 << 20, 1 << 18);
    while !input.is_empty() {
        let Ok(act) = next(&mut input) else { break };
        perform(&machine, &act);
    }
    machine.reset();
    machine.start();
    assert_eq!(machine.run(0, Cmd::default()), 0);
    assert_eq!(machine.run(1, Cmd::default()), 0);
});

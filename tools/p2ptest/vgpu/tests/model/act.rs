// SPDX-License-Identifier: GPL-2.0

//! What a guest can do to the device, as data: for tests and fuzzers that mean harm.

use crate::machine::{Cmd, Machine, RAM, RING};

#[derive(Clone, Debug)]
pub enum Act {
    Store {
        offset: u64,
        size: usize,
        value: u64,
    },
    Load {
        offset: u64,
        size: usize,
    },
    Bar {
        offset: u64,
        data: Vec<u8>,
        write: bool,
    },
    Memory {
        offset: u64,
        data: Vec<u8>,
    },
    /// Operation, flags, COUNT, LIST and VALUE, at this place of ring 0.
    Command {
        place: u64,
        cmd: (u16, u16, u32, u64, u64),
    },
}

pub fn perform(machine: &Machine, act: &Act) {
    match act {
        Act::Store {
            offset,
            size,
            value,
        } => {
            machine
                .regions
                .register_write(*offset, &value.to_le_bytes()[..*size]);
        }
        Act::Load { offset, size } => {
            machine.regions.register_read(*offset, &mut vec![0; *size]);
        }
        Act::Bar {
            offset,
            data,
            write: true,
        } => machine.core.aperture.bar_write(*offset, data),
        Act::Bar {
            offset,
            data,
            write: false,
        } => {
            machine.core.aperture.bar_read(*offset, &mut data.clone());
        }
        Act::Memory { offset, data } => machine.poke(RAM + offset, data),
        Act::Command {
            place,
            cmd: (op, flags, count, list, value),
        } => {
            let cmd = Cmd {
                op: *op,
                flags: *flags,
                count: *count,
                list: *list,
                value: *value,
            };
            machine.poke(RING[0] + place * 64, &cmd.bytes(1));
        }
    }
}

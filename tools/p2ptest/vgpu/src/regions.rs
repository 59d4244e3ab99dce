// SPDX-License-Identifier: GPL-2.0

//! The region handlers: what a guest's access to BAR0 and BAR2 does.
//!
//! They run while a virtual CPU waits with its machine's lock held, so they hold no bus, start work
//! by waking a thread, and wait for none.

use std::sync::Arc;

use p2p_vfio_user::Device;

use crate::ratelimit::warn_limited;
use crate::regs::{self, Access, Counter, Global, Register};
use crate::state::{Core, Mode};

/// The registers and the aperture, as the guest sees them.
#[derive(Debug)]
pub struct Regions {
    core: Arc<Core>,
}

impl Regions {
    /// The regions of a device.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Loads from BAR0.
    pub fn register_read(&self, offset: u64, data: &mut [u8]) {
        if !(regs::COUNTERS_START..regs::COUNTERS_END).contains(&offset) {
            self.core.counters.add(Counter::RegReads, 1);
        }
        data.fill(0xff);
        let Some((register, access)) = regs::decode(offset, data.len()) else {
            warn_limited!("read of no register: {offset:#x}, {} bytes", data.len());
            return;
        };
        let value = match access {
            Access::Wo => 0,
            Access::Ro | Access::Rw => self.load(register),
        };
        // Registers have 4 or 8 bytes, and `data` as many.
        let len = data.len();
        data.copy_from_slice(&value.to_le_bytes()[..len]);
    }

    /// Stores to BAR0.
    pub fn register_write(&self, offset: u64, data: &[u8]) {
        if !(regs::COUNTERS_START..regs::COUNTERS_END).contains(&offset) {
            self.core.counters.add(Counter::RegWrites, 1);
        }
        let Some((register, access)) = regs::decode(offset, data.len()) else {
            warn_limited!("write of no register: {offset:#x}, {} bytes", data.len());
            return;
        };
        if access == Access::Ro {
            return;
        }
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(value);
        if let Err(why) = self.store(register, value) {
            warn_limited!("write of {value:#x} to {register:?} ignored: {why}");
        }
    }

    fn load(&self, register: Register) -> u64 {
        let core = &self.core;
        match register {
            Register::Ring(ring, register) => core.rings[ring].read(register),
            Register::Counter(counter) => core.counters.get(counter),
            Register::Global(register) => match register {
                Global::Id => regs::ID,
                Global::Version => regs::VERSION,
                Global::Features => match core.mode() {
                    Mode::Mapped => regs::FEATURE_MAPPED,
                    Mode::Trapped => 0,
                },
                Global::Status => self.status(),
                Global::VramSize => core.aperture.vram_size(),
                Global::ApertureSize => u64::from(core.aperture.slots()) << regs::PAGE_SHIFT,
                Global::PtRoot => core.pt_root(),
                Global::FaultCount => core.faults.count().into(),
                Global::FaultInfo => core.faults.oldest().map_or(0, |fault| fault.info()),
                Global::FaultAddr => core.faults.oldest().map_or(0, |fault| fault.addr),
                Global::Control | Global::FaultAck => 0,
            },
        }
    }

    fn status(&self) -> u64 {
        let state = match self.core.resetting() {
            true => regs::STATUS_RESETTING,
            false => regs::STATUS_READY,
        };
        match self.core.faults.oldest() {
            Some(_) => state | regs::STATUS_FAULT_PENDING,
            None => state,
        }
    }

    fn store(&self, register: Register, value: u64) -> Result<(), &'static str> {
        let core = &self.core;
        match register {
            Register::Ring(ring, register) => {
                core.unless_resetting(|| core.rings[ring].write(register, value))
            }
            Register::Global(Global::Control) => match value {
                0 => Ok(()),
                regs::CONTROL_RESET => {
                    core.begin_reset();
                    Ok(())
                }
                _ => Err("reserved bits are set"),
            },
            Register::Global(Global::PtRoot) if value.is_multiple_of(regs::BASE_ALIGN) => {
                core.set_pt_root(value)
            }
            Register::Global(Global::PtRoot) => Err("the address is not aligned"),
            Register::Global(Global::FaultAck) => core.unless_resetting(|| {
                core.faults.ack();
                Ok(())
            }),
            Register::Global(_) | Register::Counter(_) => Ok(()),
        }
    }
}

impl Device for Regions {
    fn read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        match bar {
            regs::REGISTER_BAR => self.register_read(offset, data),
            regs::APERTURE_BAR => self.core.aperture.bar_read(offset, data),
            _ => warn_limited!("read of BAR{bar}, which has no handler"),
        }
    }

    fn write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        match bar {
            regs::REGISTER_BAR => self.register_write(offset, data),
            regs::APERTURE_BAR => self.core.aperture.bar_write(offset, data),
            _ => warn_limited!("write of BAR{bar}, which has no handler"),
        }
    }

    fn reset(&mut self) {
        self.core.begin_reset();
    }

    fn connected(&mut self) {
        self.core.power_on();
    }

    fn disconnected(&mut self) {
        // The counters and the log stay readable by the control socket until the next client.
        self.core.power_off();
    }
}

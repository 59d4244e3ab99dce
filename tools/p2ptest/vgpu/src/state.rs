// SPDX-License-Identifier: GPL-2.0

//! The device's state, shared by region handlers, workers and the control socket.
//!
//! Nothing in here can do a DMA or raise an interrupt.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use p2p_vfio_user::SharedMemory;

use crate::aperture::Aperture;
use crate::counters::Counters;
use crate::faults::Faults;
use crate::inject::Injections;
use crate::regs::{MAX_APERTURE, MAX_VRAM, PAGE_SHIFT, PAGE_SIZE, RINGS};
use crate::ring::Ring;
use crate::sync::{Bell, lock};
use crate::vram::Memory;

/// How long engines may take to come to rest without a client: their DMA fails at once.
const REST: Duration = Duration::from_secs(10);

/// How BAR2 is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Each access is a message, translated and checked.
    Trapped,
    /// The client maps the slots' memory.
    Mapped,
}

/// What the device is made of.
#[derive(Clone, Copy, Debug)]
pub struct Parameters {
    /// Bytes of VRAM.
    pub vram: u64,
    /// Bytes of the aperture.
    pub aperture: u64,
    /// How BAR2 is served.
    pub mode: Mode,
}

/// Why a device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// VRAM is not a multiple of a page, or too large.
    #[error("VRAM must be a multiple of 4 KiB, at most 1 TiB")]
    Vram,
    /// The aperture is no power of two, or too small or large.
    #[error("the aperture must be a power of two from 4 KiB to 4 GiB")]
    Aperture,
    /// The host refused the memory.
    #[error("memory: {0}")]
    Host(#[from] io::Error),
}

#[derive(Debug, Default)]
struct Global {
    pt_root: u64,
    resetting: bool,
}

/// The device's state.
#[derive(Debug)]
pub struct Core {
    /// VRAM and what BAR2 shows of it.
    pub aperture: Aperture,
    /// The fault log.
    pub faults: Arc<Faults>,
    /// The counters.
    pub counters: Arc<Counters>,
    /// The rings.
    pub rings: [Ring; RINGS],
    /// Fault injection.
    pub injections: Injections,
    /// Wakes the service thread.
    pub bell: Arc<Bell>,
    global: Mutex<Global>,
    reset_ended: Condvar,
}

impl Core {
    /// A device as at power on.
    pub fn new(parameters: &Parameters) -> Result<Arc<Self>, BuildError> {
        let Parameters {
            vram,
            aperture,
            mode,
        } = *parameters;
        if vram == 0 || vram > MAX_VRAM || !vram.is_multiple_of(PAGE_SIZE) {
            return Err(BuildError::Vram);
        }
        if !aperture.is_power_of_two() || !(PAGE_SIZE..=MAX_APERTURE).contains(&aperture) {
            return Err(BuildError::Aperture);
        }
        let window = match mode {
            Mode::Trapped => None,
            Mode::Mapped => Some(Arc::new(SharedMemory::new(aperture)?)),
        };
        // At most 2^20.
        let slots = (aperture >> PAGE_SHIFT) as u32;
        let bell = Arc::new(Bell::default());
        let faults = Arc::new(Faults::new(Arc::clone(&bell)));
        let counters = Arc::new(Counters::default());
        let memory = Memory::new("vram", vram)?;
        Ok(Arc::new(Self {
            aperture: Aperture::new(
                memory,
                window,
                slots,
                Arc::clone(&faults),
                Arc::clone(&counters),
            ),
            faults,
            counters,
            rings: [Ring::new(Arc::clone(&bell)), Ring::new(Arc::clone(&bell))],
            injections: Injections::default(),
            bell,
            global: Mutex::default(),
            reset_ended: Condvar::new(),
        }))
    }

    /// How BAR2 is served.
    pub fn mode(&self) -> Mode {
        if self.aperture.window().is_some() {
            Mode::Mapped
        } else {
            Mode::Trapped
        }
    }

    /// PT_ROOT.
    pub fn pt_root(&self) -> u64 {
        lock(&self.global).pt_root
    }

    /// Whether a reset is under way.
    pub fn resetting(&self) -> bool {
        lock(&self.global).resetting
    }

    /// Writes PT_ROOT, which is aligned, unless a ring is enabled or a reset is under way.
    pub fn set_pt_root(&self, value: u64) -> Result<(), &'static str> {
        let mut global = lock(&self.global);
        if !self.rings.iter().all(Ring::is_disabled) {
            return Err("a ring is enabled");
        }
        if global.resetting {
            return Err("a reset is under way");
        }
        global.pt_root = value;
        Ok(())
    }

    /// Runs a register write that a reset keeps out.
    pub fn unless_resetting<T>(
        &self,
        write: impl FnOnce() -> Result<T, &'static str>,
    ) -> Result<T, &'static str> {
        // Held so that a reset does not begin between the look and the write.
        let global = lock(&self.global);
        if global.resetting {
            return Err("a reset is under way");
        }
        write()
    }

    /// Starts a reset and returns; [`finish_reset`](Self::finish_reset) ends it.
    pub fn begin_reset(&self) {
        let mut global = lock(&self.global);
        global.resetting = true;
        for ring in &self.rings {
            ring.stop();
        }
        drop(global);
        self.bell.reset();
    }

    /// Drops the rules of fault injection, and lets go what they hold up.
    pub fn clear_injections(&self) {
        self.injections.clear();
        self.rings.iter().for_each(Ring::release);
        self.bell.reset();
    }

    /// Ends a reset that is under way, if no DMA is in flight any more.
    pub fn finish_reset(&self) {
        if !self.resetting() || !self.rings.iter().all(Ring::is_disabled) {
            return;
        }
        if self.injections.hang_resets() {
            log::info!("a reset hangs by injection");
            return;
        }
        // No ring is enabled and no register is written before `resetting` falls.
        self.aperture.reset();
        self.rings.iter().for_each(Ring::clear);
        self.faults.clear();
        let mut global = lock(&self.global);
        global.pt_root = 0;
        global.resetting = false;
        drop(global);
        self.reset_ended.notify_all();
    }

    /// The machine goes off: resets, and waits for the end of it. The counters and FAULT_COUNT stay
    /// readable from outside until the next power on.
    pub fn power_off(&self) {
        self.injections.clear_resets();
        self.begin_reset();
        let global = lock(&self.global);
        let waited = self
            .reset_ended
            .wait_timeout_while(global, REST, |global| global.resetting);
        if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            log::error!("the engines do not come to rest");
        }
    }

    /// The machine goes on.
    pub fn power_on(&self) {
        self.aperture.clear_vram();
        self.counters.clear();
        self.faults.power_on();
    }

    /// Ends all threads that wait on this device.
    pub fn quit(&self) {
        self.rings.iter().for_each(Ring::quit);
        self.bell.quit();
    }
}

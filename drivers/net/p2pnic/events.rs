// SPDX-License-Identifier: GPL-2.0

//! Events: the device asks for a region's addresses, and the driver maps it.
//!
//! This runs in the interrupt's own thread, which unbinding waits for, and, in case an interrupt was
//! lost, in tasks that have waited for completions for long. Mapping may sleep for as
//! long as the exporter takes, and may fail for now: then it is tried again, less and less often,
//! until [`Pending::GIVE_UP`].

use crate::{
    nic::{
        Bind,
        Nic, //
    },
    regs::{
        self,
        Bar, //
    },
};
use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma::Coherent,
    io::{
        io_project,
        io_read,
        Io, //
    },
    prelude::*,
    sync::barrier::{
        dma_mb,
        Read, //
    },
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    },
};

/// A region that waits to be mapped.
struct Pending {
    key: u32,
    asked: Instant<Monotonic>,
    /// When it was last tried.
    tried: Option<Instant<Monotonic>>,
    /// Wait this long before it is tried again.
    delay: Delta,
}

impl Pending {
    const FIRST_DELAY: Delta = Delta::from_millis(1);
    const LONGEST_DELAY: Delta = Delta::from_millis(64);
    /// After this time a failure that could pass is taken for one that does not.
    const GIVE_UP: Delta = Delta::from_secs(5);

    fn new(key: u32) -> Self {
        Self {
            key,
            asked: Instant::now(),
            tried: None,
            delay: Self::FIRST_DELAY,
        }
    }

    fn is_due(&self) -> bool {
        self.tried.is_none_or(|tried| tried.elapsed() >= self.delay)
    }

    /// Tries to map the region. Returns whether it is to be tried again.
    fn attempt(&mut self, nic: &Bind<'_>) -> bool {
        let Some(region) = nic.region(self.key) else {
            return false;
        };
        let Err(error) = region.map(nic.device(), nic.limits().segments) else {
            return false;
        };
        if can_pass(error) && self.asked.elapsed() < Self::GIVE_UP {
            if self.tried.is_some() {
                self.delay = (self.delay + self.delay).min(Self::LONGEST_DELAY);
            }
            self.tried = Some(Instant::now());
            return true;
        }
        dev_dbg!(
            nic.pdev(),
            "region {:#x} cannot be mapped: {:?}\n",
            self.key,
            error
        );
        region.revoke();
        false
    }
}

/// Whether trying again later can help.
fn can_pass(error: Error) -> bool {
    [EAGAIN, EBUSY, EINTR, ENOMEM, ENOSPC, ERESTARTSYS, ETIMEDOUT].contains(&error)
}

/// The event queue, and the regions that it asked for.
pub(crate) struct EventQueue {
    memory: Coherent<[[u32; 8]]>,
    /// Events consumed, free running.
    head: u32,
    /// Room for all regions, so that no event is lost because memory ran out.
    pending: KVVec<Pending>,
}

impl EventQueue {
    const LOG2: u32 = 10;
    const SIZE: u32 = 1 << Self::LOG2;
    /// Words of an event.
    const TYPE: usize = 0;
    const KEY: usize = 1;
    const GENERATION: usize = 7;

    /// A queue for a device with `regions` regions.
    pub(crate) fn new(dev: &Device<Bound>, regions: usize) -> Result<Self> {
        Ok(Self {
            memory: Coherent::zeroed_slice(dev, usize::try_from(Self::SIZE)?, GFP_KERNEL)?,
            head: 0,
            pending: KVVec::with_capacity(regions, GFP_KERNEL)?,
        })
    }

    /// Tells the device, which has been reset, where the queue is.
    pub(crate) fn start(&self, bar: &Bar<'_>) -> Result {
        bar.try_write_reg(regs::EVENT_ADDR::from(self.memory.dma_address()))?;
        bar.write_reg(regs::EVENT_SIZE::from(Self::LOG2));
        Ok(())
    }

    /// The key that the next event names, if there is an event.
    fn next(&mut self) -> Result<Option<u32>> {
        let place = usize::try_from(self.head & (Self::SIZE - 1))?;
        let entry = io_project!(self.memory, [try: place]);
        let generation = u32::from_le(io_read!(entry, [build: Self::GENERATION]));
        if generation != 1 + self.head / Self::SIZE {
            return Ok(None);
        }
        // GENERATION was written last.
        dma_mb(Read);
        self.head = self.head.wrapping_add(1);
        let kind = u32::from_le(io_read!(entry, [build: Self::TYPE]));
        let key = u32::from_le(io_read!(entry, [build: Self::KEY]));
        // A key of 0 names no region.
        Ok(Some(if kind == regs::REGION_NEEDED { key } else { 0 }))
    }

    /// Takes what the device asks for, at most one queue full at a time.
    fn collect(&mut self, nic: &Bind<'_>) -> Result {
        let before = self.head;
        for _ in 0..Self::SIZE {
            let Some(key) = self.next()? else {
                break;
            };
            let known = self.pending.iter().any(|pending| pending.key == key);
            if !known && nic.region(key).is_some() {
                // No room: the device made keys up, as there is room for all that are true.
                let _ = self.pending.push_within_capacity(Pending::new(key));
            }
        }
        if self.head != before {
            nic.bar()?.write_reg(regs::EVENT_HEAD::from(self.head));
        }
        Ok(())
    }

    /// Collects events and tries to map what is due. Returns whether something is left to do.
    fn step(&mut self, nic: &Bind<'_>) -> bool {
        if let Err(error) = self.collect(nic) {
            dev_err!(nic.pdev(), "event queue: {:?}\n", error);
            return false;
        }
        let mut index = 0;
        while let Some(pending) = self.pending.get_mut(index) {
            if !pending.is_due() || pending.attempt(nic) {
                index += 1;
            } else {
                let _ = self.pending.remove(index);
            }
        }
        // An event that came after `collect` raises the interrupt again.
        !self.pending.is_empty()
    }
}

/// Maps what the device asks for, until nothing is left to do.
pub(crate) fn serve(nic: &Nic) {
    let Ok(nic) = nic.enter() else {
        return;
    };
    let mut events = nic.events.lock();
    let Some(events) = &mut *events else {
        return;
    };
    while !nic.is_closing() && events.step(&nic) {
        fsleep(Pending::FIRST_DELAY);
    }
}

/// Maps what the device asks for, without waiting for what cannot be mapped yet, unless somebody
/// is at it.
pub(crate) fn look(nic: &Nic) {
    let Ok(nic) = nic.enter() else {
        return;
    };
    let Some(mut events) = nic.events.try_lock() else {
        return;
    };
    if let Some(events) = &mut *events {
        events.step(&nic);
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Events: the device asks for a region's addresses, and the driver maps it.
//!
//! A work item, the *server*, runs for as long as the device is bound: an interrupt wakes it, and
//! while there are regions it looks by itself now and then, in case an interrupt was lost. It never
//! waits for a region: each is mapped in a work item of its own, which may sleep for as long as the
//! exporter takes. Mapping may fail for now; then it is tried again, less and less often, until
//! `map_timeout`.

use crate::{
    nic::{
        Bind,
        Nic, //
    },
    region::Region,
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
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        barrier::{
            dma_mb,
            Read, //
        },
        Arc, //
    },
    time::{
        Delta,
        Instant,
        Monotonic,
        Msecs, //
    },
    workqueue::OwnedQueue, //
};

/// Regions that are mapped at a time, and the server.
const WORKERS: u16 = 65;
/// How often the server looks without an interrupt while there are regions.
const LOOK_MS: Msecs = 100;
/// How often it looks for regions.
const IDLE_MS: Msecs = 1000;

/// How far the work item of a region is.
struct Progress(Atomic<u32>);

impl Progress {
    /// Nobody is at it: it is to be tried, again if it was tried before.
    const WAITING: u32 = 0;
    const RUNNING: u32 = 1;
    /// It is mapped, or given up.
    const DONE: u32 = 2;

    fn get(&self) -> u32 {
        self.0.load(Acquire)
    }

    fn set(&self, progress: u32) {
        self.0.store(progress, Release);
    }
}

/// A region that waits to be mapped.
struct Pending {
    key: u32,
    region: Arc<Region>,
    progress: Arc<Progress>,
    asked: Instant<Monotonic>,
    /// When it was last tried.
    tried: Option<Instant<Monotonic>>,
    /// Wait this long before it is tried again.
    delay: Delta,
    /// The device asked once more while it was tried.
    again: bool,
}

impl Pending {
    const FIRST_DELAY: Delta = Delta::from_millis(1);
    const LONGEST_DELAY: Delta = Delta::from_millis(64);

    fn new(key: u32, region: Arc<Region>) -> Result<Self> {
        let progress = Arc::new(Progress(Atomic::new(Progress::WAITING)), GFP_KERNEL)?;
        Ok(Self {
            key,
            region,
            progress,
            asked: Instant::now(),
            tried: None,
            delay: Self::FIRST_DELAY,
            again: false,
        })
    }

    /// From the start again.
    fn renew(&mut self) {
        self.asked = Instant::now();
        self.tried = None;
        self.delay = Self::FIRST_DELAY;
        self.again = false;
        self.progress.set(Progress::WAITING);
    }

    fn is_due(&self) -> bool {
        self.tried.is_none_or(|tried| tried.elapsed() >= self.delay)
    }

    /// Moves on. Returns whether something is left to do.
    fn step(&mut self, nic: &Arc<Nic>) -> bool {
        match self.progress.get() {
            Progress::RUNNING => return true,
            Progress::WAITING => (),
            _ if self.again => self.renew(),
            _ => return false,
        }
        if self.is_due() {
            if self.tried.is_some() {
                self.delay = (self.delay + self.delay).min(Self::LONGEST_DELAY);
            }
            self.tried = Some(Instant::now());
            self.progress.set(Progress::RUNNING);
            let (job, region, progress) = (nic.clone(), self.region.clone(), self.progress.clone());
            let last_try = self.asked.elapsed() >= nic.map_timeout.get();
            let queued = nic.spawn(move || {
                progress.set(attempt(&job, &region, last_try));
                job.needed.raise();
            });
            if queued.is_err() {
                self.progress.set(Progress::WAITING);
            }
        }
        true
    }
}

/// Tries to map a region. Returns how far it is.
fn attempt(nic: &Nic, region: &Region, last_try: bool) -> u32 {
    let Ok(nic) = nic.enter() else {
        return Progress::DONE;
    };
    let Err(error) = region.map(nic.device(), nic.limits().segments) else {
        return Progress::DONE;
    };
    if can_pass(error) && !last_try {
        return Progress::WAITING;
    }
    dev_dbg!(
        nic.pdev(),
        "region {:#x} cannot be mapped: {:?}\n",
        region.shape().key,
        error
    );
    region.revoke();
    Progress::DONE
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
    fn peek(&self) -> Result<Option<u32>> {
        let place = usize::try_from(self.head & (Self::SIZE - 1))?;
        let entry = io_project!(self.memory, [try: place]);
        let generation = u32::from_le(io_read!(entry, [build: Self::GENERATION]));
        if generation != 1 + self.head / Self::SIZE {
            return Ok(None);
        }
        // GENERATION was written last.
        dma_mb(Read);
        let kind = u32::from_le(io_read!(entry, [build: Self::TYPE]));
        let key = u32::from_le(io_read!(entry, [build: Self::KEY]));
        // A key of 0 names no region.
        Ok(Some(if kind == regs::REGION_NEEDED { key } else { 0 }))
    }

    /// Notes what the device asks for, at most one queue full at a time.
    fn collect(&mut self, nic: &Bind<'_>) -> Result {
        let before = self.head;
        for _ in 0..Self::SIZE {
            let Some(key) = self.peek()? else {
                break;
            };
            if let Some(known) = self.pending.iter_mut().find(|pending| pending.key == key) {
                // It may have been mapped, and taken back, since we looked.
                known.again = true;
            } else if let Some(region) = nic.region(key) {
                let Ok(pending) = Pending::new(key, region) else {
                    // The event stays: there may be memory the next time.
                    break;
                };
                // No room: the device made keys up, as there is room for all that are true.
                let _ = self.pending.push_within_capacity(pending);
            }
            self.head = self.head.wrapping_add(1);
        }
        if self.head != before {
            nic.bar()?.write_reg(regs::EVENT_HEAD::from(self.head));
        }
        Ok(())
    }

    /// Collects events and has what is due mapped. Returns for how long nothing is due.
    fn step(&mut self, nic: &Arc<Nic>, inside: &Bind<'_>) -> Msecs {
        if let Err(error) = self.collect(inside) {
            kernel::pr_err_once!("event queue: {:?}\n", error);
        }
        let mut index = 0;
        while let Some(pending) = self.pending.get_mut(index) {
            if pending.step(nic) {
                index += 1;
            } else {
                let _ = self.pending.remove(index);
            }
        }
        let waiting = |pending: &Pending| pending.progress.get() == Progress::WAITING;
        if self.pending.iter().any(waiting) {
            1
        } else if nic.region_count() != 0 {
            LOOK_MS
        } else {
            IDLE_MS
        }
    }
}

/// Makes the queue for the work items of a NIC.
pub(crate) fn workers() -> Result<OwnedQueue> {
    OwnedQueue::new_unbound(c"p2pnic", WORKERS)
}

/// Has mapped what the device asks for, until the driver is unbound.
pub(crate) fn serve(nic: &Arc<Nic>) {
    loop {
        let seen = nic.needed.count();
        let pause = {
            let Ok(inside) = nic.enter() else {
                return;
            };
            let mut events = nic.events.lock();
            let Some(events) = &mut *events else {
                return;
            };
            events.step(nic, &inside)
        };
        nic.needed.wait(seen, pause);
    }
}

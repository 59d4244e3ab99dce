// SPDX-License-Identifier: GPL-2.0

//! One NIC: what its open files, its interrupts and its binding share.

use crate::{
    events::{
        self,
        EventQueue, //
    },
    gate::Gate,
    mailbox::Mailbox,
    queue::QueuePair,
    region::Region,
    regs::{
        self,
        Bar,
        DevresBar, //
    },
    settings::Time,
    signal::Signal,
    slots::Slots, //
};
use kernel::{
    device::{
        Bound,
        Core, //
    },
    io::Io,
    new_mutex,
    pci,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex, //
    },
    workqueue::OwnedQueue, //
};

mod bind;

pub(crate) use bind::{
    Bind,
    Range, //
};

/// What the device says it has, cut to what the driver can number.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) regions: u32,
    pub(crate) queue_pairs: u32,
    pub(crate) segments: u32,
}

impl Limits {
    /// The driver keeps a table; a device that asks for more gets no more.
    const MOST_REGIONS: u32 = 1 << 16;
    /// Doorbells in the BAR.
    const MOST_QUEUE_PAIRS: u32 = 64;
    const MOST_SEGMENTS: u32 = 1 << 16;

    fn read(bar: &Bar<'_>) -> Self {
        let cut = |value: u32, most: u32| value.min(most);
        Self {
            regions: cut(bar.read(regs::MAX_REGIONS).into(), Self::MOST_REGIONS),
            queue_pairs: cut(
                bar.read(regs::MAX_QUEUE_PAIRS).into(),
                Self::MOST_QUEUE_PAIRS,
            ),
            segments: cut(bar.read(regs::MAX_SEGMENTS).into(), Self::MOST_SEGMENTS),
        }
    }
}

/// See the module's documentation.
#[pin_data]
pub(crate) struct Nic {
    bar: Arc<DevresBar>,
    /// Commands to the device.
    pub(crate) mailbox: Arc<Mailbox>,
    /// Raised for the completions of any queue pair.
    #[pin]
    pub(crate) completed: Signal,
    /// Raised when a region may have to be mapped.
    #[pin]
    pub(crate) needed: Signal,
    limits: Limits,
    /// How long the exporter of a region may fail to map it.
    pub(crate) map_timeout: Time,
    #[pin]
    regions: Mutex<Slots<Region>>,
    #[pin]
    queue_pairs: Mutex<Slots<QueuePair>>,
    /// `None` once the driver is unbound.
    #[pin]
    pub(crate) events: Mutex<Option<EventQueue>>,
    /// Runs the server of events, and what it has mapped. `None` once the driver is unbound.
    #[pin]
    workers: Mutex<Option<OwnedQueue>>,
    /// Numbers of open files and queue pairs.
    serials: Atomic<u64>,
    #[pin]
    gate: Gate,
}

impl Nic {
    /// Finds out what the device has; [`Self::start`] sets it up.
    ///
    /// # Safety
    ///
    /// [`Self::shut_down`] is called before the driver of `pdev` is unbound.
    pub(crate) unsafe fn new(pdev: &pci::Device<Bound>) -> Result<Arc<Self>> {
        let dev = pdev.as_ref();
        let bar = pdev
            .iomap_region_sized::<{ regs::BAR_SIZE }>(0, c"p2pnic")?
            .into_devres()?;
        let bar = Arc::new(bar, GFP_KERNEL)?;

        let limits = {
            let bar = bar.access(dev)?;
            let (id, version) = (bar.read(regs::ID), bar.read(regs::VERSION));
            if u32::from(id) != regs::ID_VALUE || version.major().get() != regs::VERSION_MAJOR {
                dev_err!(
                    pdev,
                    "not a device that this driver knows: {:#x}, version {:#x}\n",
                    u32::from(id),
                    u32::from(version)
                );
                return Err(ENODEV);
            }
            Limits::read(bar)
        };
        let mailbox = Arc::pin_init(Mailbox::new(pdev, bar.clone()), GFP_KERNEL)?;
        let regions = Slots::new(usize::try_from(limits.regions)?)?;
        let queue_pairs = Slots::new(usize::try_from(limits.queue_pairs)?)?;
        // SAFETY: The caller promises that `shut_down` is called, which closes the gate.
        let gate = unsafe { Gate::new(pdev) };

        Arc::pin_init(
            try_pin_init!(Self {
                bar,
                mailbox,
                completed <- Signal::new(),
                needed <- Signal::new(),
                limits,
                map_timeout: Time::from_millis(5_000),
                regions <- new_mutex!(regions, "p2pnic::Nic::regions"),
                queue_pairs <- new_mutex!(queue_pairs, "p2pnic::Nic::queue_pairs"),
                events <- new_mutex!(None, "p2pnic::Nic::events"),
                workers <- new_mutex!(None, "p2pnic::Nic::workers"),
                serials: Atomic::new(0),
                gate <- gate,
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Resets the device and gives it its mailbox and event queue; the interrupt handlers are
    /// there.
    pub(crate) fn start(self: &Arc<Self>, pdev: &pci::Device<Core<'_>>) -> Result {
        let inside = self.enter()?;
        self.mailbox.start(pdev)?;
        let capacity = self.regions.lock().capacity();
        let events = EventQueue::new(inside.device(), capacity)?;
        events.start(inside.bar()?)?;
        *self.events.lock() = Some(events);
        *self.workers.lock() = Some(events::workers()?);
        let server = self.clone();
        self.spawn(move || events::serve(&server))
    }

    /// Has a worker run `job`, which ends soon once the gate is closed. `ENODEV`: it is.
    pub(crate) fn spawn(&self, job: impl FnOnce() + Send + 'static) -> Result {
        let workers = self.workers.lock();
        Ok(workers.as_ref().ok_or(ENODEV)?.try_spawn(GFP_KERNEL, job)?)
    }

    /// Stops the device, waits for all users, and takes regions and queues away. Open files find
    /// the device gone. May be called again.
    pub(crate) fn shut_down(&self, pdev: &pci::Device<Bound>) {
        let wake = || {
            self.completed.raise();
            self.needed.raise();
        };
        if !self.gate.close(wake) {
            return;
        }
        // Its items find the gate closed. Not dropped under the lock, which they take.
        let workers = self.workers.lock().take();
        drop(workers);
        // Invalidations can still come, from exporters, until each region is detached. Those
        // that come before the device has stopped wait for it.
        self.mailbox.stop(pdev);
        while let Some((index, queue_pair)) = self.take_queue_pair(|_| true) {
            queue_pair.destroy();
            self.queue_pairs.lock().free(index);
        }
        while let Some((index, region)) = self.take_region(|_| true) {
            region.destroy();
            self.regions.lock().free(index);
        }
        let events = self.events.lock().take();
        drop(events);
    }

    /// Starts again after [`Self::shut_down`]: the device has been reset. Files that are open find
    /// none of what they had made.
    pub(crate) fn restart(self: &Arc<Self>, pdev: &pci::Device<Core<'_>>) -> Result {
        // SAFETY: The device is bound, and its data shuts the NIC down before that ends.
        unsafe { self.gate.open() };
        self.start(pdev).inspect_err(|_| self.shut_down(pdev))
    }

    /// Goes where the device is bound. `ENODEV`: it is not.
    pub(crate) fn enter(&self) -> Result<Bind<'_>> {
        let inside = self.gate.enter().ok_or(ENODEV)?;
        Ok(Bind { nic: self, inside })
    }

    /// Whether the driver is being unbound.
    pub(crate) fn is_closing(&self) -> bool {
        self.gate.is_closed()
    }

    /// The device, bound or not.
    pub(crate) fn pdev(&self) -> &pci::Device {
        self.gate.pdev()
    }

    /// What the device has.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A number for a new open file or queue pair.
    pub(crate) fn serial(&self) -> u64 {
        self.serials.fetch_add(1, Relaxed)
    }

    /// Regions that exist.
    pub(crate) fn region_count(&self) -> u32 {
        self.regions.lock().used()
    }

    /// Queue pairs that exist.
    pub(crate) fn queue_pair_count(&self) -> u32 {
        self.queue_pairs.lock().used()
    }

    /// Takes a region out of the table, with its number.
    fn take_region(&self, wanted: impl Fn(&Region) -> bool) -> Option<(usize, Arc<Region>)> {
        self.regions.lock().take(wanted)
    }

    /// Takes a queue pair out of the table, with its number.
    fn take_queue_pair(
        &self,
        wanted: impl Fn(&QueuePair) -> bool,
    ) -> Option<(usize, Arc<QueuePair>)> {
        self.queue_pairs.lock().take(wanted)
    }

    /// The region with this key.
    pub(crate) fn region(&self, key: u32) -> Option<Arc<Region>> {
        let regions = self.regions.lock();
        let region = regions.get(key_index(key)?)?;
        (region.shape().key == key).then(|| region.clone())
    }

    /// The queue pair with this number.
    pub(crate) fn queue_pair(&self, number: u32) -> Option<Arc<QueuePair>> {
        let queue_pairs = self.queue_pairs.lock();
        queue_pairs.get(usize::try_from(number).ok()?).cloned()
    }
}

/// The place of a key's region in the table.
fn key_index(key: u32) -> Option<usize> {
    usize::try_from(key & ((1 << regs::KEY_GENERATION_SHIFT) - 1)).ok()
}

// SPDX-License-Identifier: GPL-2.0

//! One importer: what it is, what it does when it is told to let go, and what became of it.

use crate::{
    ioctl,
    target::Target, //
};
use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma::DataDirection,
    dma_buf::{
        fence::{
            FenceMemory,
            Names,
            PendingFence,
            Timeline, //
        },
        importer::{
            physical,
            AfterInvalidate,
            Attachment,
            Importer as ImporterOps, //
        },
        resv::{
            Held,
            Usage, //
        },
        vmap::KernelMapping,
        DmaBuf, //
    },
    impl_has_delayed_work,
    new_condvar,
    new_mutex,
    prelude::*,
    scatterlist::SGTable,
    sync::{
        aref::ARef,
        Arc,
        CondVar,
        Mutex, //
    },
    time::{
        Instant,
        Jiffies,
        Monotonic, //
    },
    uapi,
    workqueue::{
        self,
        new_delayed_work,
        DelayedWork,
        WorkItem, //
    }, //
};

/// How an importer attaches.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Static,
    Dynamic,
    Deaf,
}

/// What a dynamic importer does when it is told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Unmap,
    Keep,
    UnmapLater,
    Remap,
}

/// The names of the fences that stand for accesses.
pub(crate) struct AccessNames;

impl Names for AccessNames {
    const DRIVER: &'static CStr = c"p2p_importer_test";
    const TIMELINE: &'static CStr = c"access";
}

/// What became of the importer: see `struct p2p_importer_info`.
#[derive(Clone, Copy, Default)]
struct Record {
    invalidations: u32,
    unlocked: u32,
    late_unmaps: u32,
    remaps: u32,
    remap_error: u32,
    accesses: u32,
    /// Direction of the last map.
    direction: Option<DataDirection>,
    /// Work items that are queued or run.
    pending: u32,
    /// The importer goes: nothing is queued any more.
    closing: bool,
    /// Nanoseconds that it took to attach.
    attach_ns: u64,
    /// When it was told, until it is mapped again.
    told: Option<Instant<Monotonic>>,
    /// See `struct p2p_importer_info`.
    remap_ns: u64,
}

/// What an importer's file, its callback and its work share.
#[pin_data]
pub(crate) struct Importer {
    target: Target,
    answer: Answer,
    delay: Jiffies,
    #[pin]
    attachment: Mutex<Option<Attached>>,
    #[pin]
    record: Mutex<Record>,
    #[pin]
    access: Mutex<Option<PendingFence>>,
    /// What the kernel's CPU reaches the buffer by.
    #[pin]
    kernel: Mutex<Option<KernelMapping>>,
    /// A work item has ended.
    #[pin]
    idle: CondVar,
    #[pin]
    work: DelayedWork<Importer>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for Importer { self.work }
}

/// What the exporter calls.
struct Callbacks<const PEER: bool, const TOLD: bool>(Arc<Importer>);

impl<const PEER: bool, const TOLD: bool> ImporterOps for Callbacks<PEER, TOLD> {
    const ALLOW_PEER_TO_PEER: bool = PEER;
    const CAN_BE_INVALIDATED: bool = TOLD;

    fn invalidate(&self, held: Held<'_>) -> AfterInvalidate {
        self.0.told(held)
    }
}

/// An attachment of any kind.
enum Attached {
    Told(Attachment<Callbacks<false, true>>),
    ToldPeer(Attachment<Callbacks<true, true>>),
    Untold(Attachment<Callbacks<false, false>>),
    UntoldPeer(Attachment<Callbacks<true, false>>),
}

/// Does the same with an attachment of any kind.
macro_rules! each {
    ($attached:expr, $attachment:ident => $do:expr) => {
        match $attached {
            Attached::Told($attachment) => $do,
            Attached::ToldPeer($attachment) => $do,
            Attached::Untold($attachment) => $do,
            Attached::UntoldPeer($attachment) => $do,
        }
    };
}

impl Attached {
    fn new(kind: Kind, peer: bool, dmabuf: ARef<DmaBuf>, importer: Arc<Importer>) -> Result<Self> {
        let shared = importer.clone();
        let dev = shared.target.device();
        // SAFETY: `Target::device` argues that its devices stay good for an importer.
        Ok(unsafe {
            match (kind, peer) {
                (Kind::Static, _) => Self::Untold(Attachment::new_static(
                    dev,
                    dmabuf,
                    Ok(Callbacks(importer)),
                )?),
                (Kind::Dynamic, false) => {
                    Self::Told(Attachment::new(dev, dmabuf, Ok(Callbacks(importer)))?)
                }
                (Kind::Dynamic, true) => {
                    Self::ToldPeer(Attachment::new(dev, dmabuf, Ok(Callbacks(importer)))?)
                }
                (Kind::Deaf, false) => {
                    Self::Untold(Attachment::new(dev, dmabuf, Ok(Callbacks(importer)))?)
                }
                (Kind::Deaf, true) => {
                    Self::UntoldPeer(Attachment::new(dev, dmabuf, Ok(Callbacks(importer)))?)
                }
            }
        })
    }

    fn dmabuf(&self) -> &DmaBuf {
        each!(self, attachment => attachment.dmabuf())
    }

    /// Maps once more and returns the index of the mapping.
    fn map(&self, dev: &Device<Bound>, held: Held<'_>, dir: DataDirection) -> Result<usize> {
        let count = each!(self, attachment => attachment.map_again(dev, held, dir))?;
        count.checked_sub(1).ok_or(ENOENT)
    }
}

fn nanoseconds_since(start: Instant<Monotonic>) -> u64 {
    // Time does not go backwards.
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(0)
}

/// The ranges of a table.
fn ranges(dev: &Device, table: &SGTable) -> Result<KVVec<ioctl::Range>> {
    let mut list = KVVec::new();
    for entry in table.iter() {
        let range = uapi::p2p_importer_range {
            dma: entry.dma_address(),
            size: entry.dma_len(),
            physical: physical(dev, entry.dma_address()).unwrap_or(u64::MAX),
        };
        list.push(range.into(), GFP_KERNEL)?;
    }
    Ok(list)
}

impl Importer {
    /// An importer that is not attached yet.
    pub(crate) fn new(target: Target, answer: Answer, delay: Jiffies) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                target,
                answer,
                delay,
                attachment <- new_mutex!(None, "p2p_importer_test::attachment"),
                record <- new_mutex!(Record::default(), "p2p_importer_test::record"),
                access <- new_mutex!(None, "p2p_importer_test::access"),
                kernel <- new_mutex!(None, "p2p_importer_test::kernel"),
                idle <- new_condvar!("p2p_importer_test::idle"),
                work <- new_delayed_work!("p2p_importer_test::work"),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Attaches; [`Self::close`] is called in the end. Errors are the exporter's.
    pub(crate) fn attach(self: &Arc<Self>, kind: Kind, peer: bool, dmabuf: ARef<DmaBuf>) -> Result {
        let start = Instant::now();
        let attached = Attached::new(kind, peer, dmabuf, self.clone())?;
        self.record.lock().attach_ns = nanoseconds_since(start);
        *self.attachment.lock() = Some(attached);
        Ok(())
    }

    /// Ends mappings, pins, the access and the attachment, and waits for the work.
    pub(crate) fn close(&self) {
        self.record.lock().closing = true;
        self.end_access();
        let mut attachment = self.attachment.lock();
        *self.kernel.lock() = None;
        let attached = attachment.take();
        drop(attachment);
        drop(attached);
        let mut record = self.record.lock();
        while record.pending != 0 {
            self.idle.wait(&mut record);
        }
    }

    /// Runs `f` with the attachment and its buffer's lock. `ENOTCONN`: it is not attached.
    fn locked<R>(&self, f: impl FnOnce(&Attached, Held<'_>) -> Result<R>) -> Result<R> {
        let attachment = self.attachment.lock();
        let attached = attachment.as_ref().ok_or(ENOTCONN)?;
        let guard = attached.dmabuf().resv().lock_interruptible()?;
        f(attached, guard.held())
    }

    /// See `P2P_IMPORTER_IOCTL_PIN`.
    pub(crate) fn pin(&self) -> Result {
        self.locked(|attached, held| each!(attached, attachment => attachment.pin(held)))
    }

    /// See `P2P_IMPORTER_IOCTL_UNPIN`.
    pub(crate) fn unpin(&self) -> Result {
        self.locked(|attached, held| each!(attached, attachment => attachment.unpin(held)))
    }

    /// Maps once more. Returns the index of the mapping and how many ranges it has.
    pub(crate) fn map(&self, dir: DataDirection) -> Result<(usize, usize)> {
        self.locked(|attached, held| {
            self.record.lock().direction = Some(dir);
            let index = self.map_once(attached, held, dir)?;
            let count = each!(attached, attachment => {
                attachment.with_mapping(held, index, |table| Ok(table.iter().count()))
            })?;
            Ok((index, count))
        })
    }

    /// Maps once more and returns the index of the mapping.
    fn map_once(&self, attached: &Attached, held: Held<'_>, dir: DataDirection) -> Result<usize> {
        let index = attached.map(self.target.device(), held, dir)?;
        let mut record = self.record.lock();
        if let Some(told) = record.told.take() {
            record.remap_ns = nanoseconds_since(told);
        }
        Ok(index)
    }

    /// Undoes a mapping.
    pub(crate) fn unmap(&self, index: usize) -> Result {
        self.locked(
            |attached, held| each!(attached, attachment => attachment.unmap_one(held, index)),
        )
    }

    /// The addresses of a mapping.
    pub(crate) fn ranges(&self, index: usize) -> Result<KVVec<ioctl::Range>> {
        let dev = self.target.device();
        self.locked(|attached, held| {
            each!(attached, attachment => {
                attachment.with_mapping(held, index, |table| ranges(dev, table))
            })
        })
    }

    /// Maps and unmaps.
    pub(crate) fn cycle(&self, dir: DataDirection) -> Result {
        self.locked(|attached, held| {
            let index = attached.map(self.target.device(), held, dir)?;
            each!(attached, attachment => attachment.unmap_one(held, index))
        })
    }

    /// Maps and unmaps `count` times. The lock is let go in between.
    pub(crate) fn time(&self, dir: DataDirection, count: usize) -> Result<KVVec<ioctl::Sample>> {
        let mut samples = KVVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            let sample = self.locked(|attached, held| {
                let start = Instant::now();
                let index = self.map_once(attached, held, dir)?;
                let map_ns = nanoseconds_since(start);
                let start = Instant::now();
                each!(attached, attachment => attachment.unmap_one(held, index))?;
                let unmap_ns = nanoseconds_since(start);
                Ok(uapi::p2p_importer_sample { map_ns, unmap_ns })
            })?;
            samples.push(sample.into(), GFP_KERNEL)?;
        }
        Ok(samples)
    }

    /// See `P2P_IMPORTER_IOCTL_VMAP`.
    pub(crate) fn vmap(&self) -> Result {
        let attachment = self.attachment.lock();
        let attached = attachment.as_ref().ok_or(ENOTCONN)?;
        let mut kernel = self.kernel.lock();
        if kernel.is_some() {
            return Err(EBUSY);
        }
        let guard = attached.dmabuf().resv().lock_interruptible()?;
        *kernel = Some(attached.dmabuf().vmap(guard.held())?);
        Ok(())
    }

    /// See `P2P_IMPORTER_IOCTL_VUNMAP`.
    pub(crate) fn vunmap(&self) -> Result {
        self.kernel.lock().take().map(drop).ok_or(EINVAL)
    }

    /// See `P2P_IMPORTER_IOCTL_VREAD`.
    pub(crate) fn vread(&self, offset: usize, to: &mut [u8]) -> Result {
        self.kernel.lock().as_ref().ok_or(EINVAL)?.read(offset, to)
    }

    /// See `P2P_IMPORTER_IOCTL_VWRITE`.
    pub(crate) fn vwrite(&self, offset: usize, from: &[u8]) -> Result {
        match &mut *self.kernel.lock() {
            Some(mapping) => mapping.write(offset, from),
            None => Err(EINVAL),
        }
    }

    /// See `P2P_IMPORTER_IOCTL_START_ACCESS`.
    pub(crate) fn start_access(&self) -> Result {
        self.locked(|_, held| {
            let mut access = self.access.lock();
            if access.is_some() {
                return Err(EBUSY);
            }
            let mut room = held.reserve_fences(1)?;
            let memory = FenceMemory::new(GFP_KERNEL)?;
            let fence = Timeline::<AccessNames>::new().fence(memory);
            room.add(fence.fence(), Usage::Bookkeep)?;
            *access = Some(fence);
            Ok(())
        })
    }

    fn end_access(&self) {
        let access = self.access.lock().take();
        if let Some(access) = access {
            // Counted first: who has seen the fence signal sees the count.
            self.record.lock().accesses += 1;
            access.signal(Ok(()));
        }
    }

    /// What became of it.
    pub(crate) fn info(&self) -> Result<ioctl::Info> {
        let (is_peer, mappings) = {
            let attachment = self.attachment.lock();
            let attached = attachment.as_ref().ok_or(ENOTCONN)?;
            each!(attached, attachment => (attachment.is_peer(), attachment.mappings()))
        };
        let record = *self.record.lock();
        Ok(uapi::p2p_importer_info {
            is_peer: is_peer.into(),
            mappings: u32::try_from(mappings)?,
            invalidations: record.invalidations,
            unlocked: record.unlocked,
            late_unmaps: record.late_unmaps,
            remaps: record.remaps,
            remap_error: record.remap_error,
            accesses: record.accesses,
            attach_ns: record.attach_ns,
            remap_ns: record.remap_ns,
        }
        .into())
    }

    /// The exporter takes the mappings back.
    fn told(self: &Arc<Self>, held: Held<'_>) -> AfterInvalidate {
        let unlocked = held.resv().try_lock().is_some();
        let mut record = self.record.lock();
        if record.closing {
            return AfterInvalidate::Unmap;
        }
        record.invalidations += 1;
        record.told = Some(Instant::now());
        record.unlocked += u32::from(unlocked);
        match self.answer {
            Answer::Unmap => {
                drop(record);
                self.end_access();
                AfterInvalidate::Unmap
            }
            Answer::Keep => AfterInvalidate::Later,
            Answer::UnmapLater | Answer::Remap => {
                let work = workqueue::system_unbound();
                if work.enqueue_delayed(self.clone(), self.delay).is_ok() {
                    record.pending += 1;
                }
                AfterInvalidate::Later
            }
        }
    }

    /// What the work item does.
    fn answer_late(&self) -> Result {
        // First of all: the exporter may wait for it with the lock that we need.
        self.end_access();
        let attachment = self.attachment.lock();
        let Some(attached) = attachment.as_ref() else {
            return Ok(());
        };
        let guard = attached.dmabuf().resv().lock();
        each!(attached, attachment => attachment.unmap(guard.held()))?;
        let direction = {
            let mut record = self.record.lock();
            record.late_unmaps += 1;
            record.direction
        };
        if let (Answer::Remap, Some(direction)) = (self.answer, direction) {
            self.map_once(attached, guard.held(), direction)?;
            self.record.lock().remaps += 1;
        }
        Ok(())
    }
}

impl WorkItem for Importer {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let result = this.answer_late();
        let mut record = this.record.lock();
        if let Err(error) = result {
            record.remap_error = error.to_errno().unsigned_abs();
        }
        record.pending = record.pending.saturating_sub(1);
        this.idle.notify_all();
    }
}

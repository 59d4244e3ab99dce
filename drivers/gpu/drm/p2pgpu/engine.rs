// SPDX-License-Identifier: GPL-2.0

//! The copy engine: copies, fills and checksums of page-wise scattered memory.

use crate::{
    driver::Gpu,
    gem::Object,
    job::{
        self,
        Command,
        Track, //
    },
    kick::LOOK_MS,
    regs::{
        self,
        Operation,
        Place,
        RawSegment, //
    }, //
};
use core::ops::Range;
use kernel::{
    device,
    dma::Coherent,
    dma_buf::{
        fence::{
            Fence,
            FenceMemory, //
        },
        pages::SharedMapping, //
    },
    io::io_write,
    prelude::*,
    sync::aref::ARef,
    time::msecs_to_jiffies, //
};

/// Segments in one list, which takes 32 bytes each of contiguous memory; more only if the lists
/// would be too many.
const LIST_SEGMENTS: usize = 1024;
/// Most commands of a job, half of what the ring holds.
const COMMANDS_MAX: usize = 128;

/// Contiguous memory: where it starts, and its length in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) place: Place,
    pub(crate) len: u64,
}

impl Extent {
    /// Some of the bytes; `None` if they are not all there, or have no addresses.
    pub(crate) fn part(mut self, range: Range<u64>) -> Option<Self> {
        let len = range.end.checked_sub(range.start)?;
        self.split_front(range.start).ok()?;
        (len <= self.len).then_some(Self { len, ..self })
    }

    /// Cuts `len` bytes off the front.
    fn split_front(&mut self, len: u64) -> Result<Place> {
        let front = self.place;
        self.place = match front {
            Place::Vram(offset) => Place::Vram(offset.checked_add(len).ok_or(EOVERFLOW)?),
            Place::Memory(address) => Place::Memory(address.checked_add(len).ok_or(EOVERFLOW)?),
            Place::Unused => Place::Unused,
        };
        self.len = self.len.checked_sub(len).ok_or(EINVAL)?;
        Ok(front)
    }
}

/// Copies segments to memory that the device reads.
pub(crate) fn upload(
    dev: &device::Device<device::Bound>,
    segments: &[RawSegment],
) -> Result<Coherent<[RawSegment]>> {
    let list = Coherent::zeroed_slice(dev, segments.len(), GFP_KERNEL)?;
    for (index, segment) in segments.iter().enumerate() {
        for (word, &value) in segment.iter().enumerate() {
            io_write!(list, [try: index][try: word], value);
        }
    }
    Ok(list)
}

/// Commands of one operation.
pub(crate) struct Plan {
    lists: KVec<Coherent<[RawSegment]>>,
    commands: KVec<Command>,
}

impl Plan {
    /// `E2BIG`: the segments are more than the commands of a job take.
    fn new(gpu: &Gpu<'_>, op: Operation, segments: &[RawSegment]) -> Result<Self> {
        let size = segments.len().div_ceil(COMMANDS_MAX).max(LIST_SEGMENTS);
        Self::with_lists(gpu, op, segments, size)
    }

    /// With lists of so many segments.
    fn with_lists(
        gpu: &Gpu<'_>,
        op: Operation,
        segments: &[RawSegment],
        size: usize,
    ) -> Result<Self> {
        if size > regs::LIST_MAX {
            return Err(E2BIG);
        }
        let mut plan = Self {
            lists: KVec::new(),
            commands: KVec::new(),
        };
        let mut at = 0;
        while at < segments.len() {
            let end = at.saturating_add(size).min(segments.len());
            let list = upload(gpu.dev(), segments.get(at..end).ok_or(EINVAL)?)?;
            let command = (op, end - at, list.dma_address());
            plan.commands.push(command, GFP_KERNEL)?;
            plan.lists.push(list, GFP_KERNEL)?;
            at = end;
        }
        Ok(plan)
    }

    /// A copy of the bytes of `src` to those of `dst`, in order, which are as many.
    pub(crate) fn copy(
        gpu: &Gpu<'_>,
        src: impl Iterator<Item = Extent>,
        dst: impl Iterator<Item = Extent>,
    ) -> Result<Self> {
        let mut segments = KVVec::new();
        pair(src, dst, |segment| Ok(segments.push(segment, GFP_KERNEL)?))?;
        Self::new(gpu, Operation::Copy, &segments)
    }

    /// Queues the commands, as a job of the driver's own that is tried again so many times when it
    /// fails. Such jobs run in their order.
    ///
    /// `maps`: what it is mapped by, if nobody else keeps that. `arriving`: the object whose bytes
    /// it brings. `ENODEV`: the device goes.
    pub(crate) fn queue<'drm>(
        self,
        gpu: &Gpu<'drm>,
        maps: KVec<SharedMapping<'drm>>,
        arriving: Option<ARef<Object>>,
        retries: u32,
    ) -> Result<ARef<Fence>> {
        let context = &gpu.scheduler.drivers;
        let memory = FenceMemory::new(GFP_KERNEL)?;
        let _order = context.order.lock();
        let pending = context.timeline.fence(memory);
        let fence: ARef<Fence> = pending.fence().into();
        let job = KBox::new(
            job::Job {
                context: context.clone(),
                track: Track::new(pending, context.kick.clone())?,
                waits: KVec::new(),
                wake: None,
                needs: KVec::new(),
                commands: self.commands,
                retries,
                since: None,
                next: None,
                arriving,
                _lists: self.lists,
                _digests: None,
                _maps: maps,
                _objects: KVec::new(),
            },
            GFP_KERNEL,
        )?;
        gpu.scheduler.push(gpu, job)?;
        Ok(fence)
    }

    /// As [`Plan::queue`], for a caller who waits, and keeps what is mapped until then.
    fn start<'a, 'drm>(self, gpu: &'a Gpu<'drm>) -> Result<Job<'a, 'drm>> {
        let fence = self.queue(gpu, KVec::new(), None, 0)?;
        Ok(Job {
            gpu,
            fence: Some(fence),
        })
    }
}

/// Waits for a job of the driver's own. `EIO`: it failed. `ENODEV`: the device has gone.
pub(crate) fn wait(gpu: &Gpu<'_>, fence: &Fence) -> Result {
    loop {
        match fence.wait(msecs_to_jiffies(LOOK_MS)) {
            // Should its interrupt be lost, or the engine hang.
            Err(ETIMEDOUT) => gpu.scheduler.poll(gpu),
            Err(ENODEV) => return Err(ENODEV),
            ended => return ended.map_err(|_| EIO),
        }
    }
}

/// Work that the engine has been given. Dropping it waits.
pub(crate) struct Job<'a, 'drm> {
    gpu: &'a Gpu<'drm>,
    fence: Option<ARef<Fence>>,
}

impl Job<'_, '_> {
    /// The fence that signals when it has ended.
    pub(crate) fn fence(&self) -> Option<&Fence> {
        self.fence.as_deref()
    }

    /// Waits for the job. `EIO`: it failed. `ENODEV`: the device has gone.
    pub(crate) fn wait(mut self) -> Result {
        self.finish()
    }

    fn finish(&mut self) -> Result {
        let fence = self.fence.take();
        fence.map_or(Ok(()), |fence| wait(self.gpu, &fence))
    }
}

impl Drop for Job<'_, '_> {
    fn drop(&mut self) {
        // An error has no one to go to; the wait is for what is mapped.
        let _ = self.finish();
    }
}

/// Passes the segments of an operation with as many bytes of `src` as of `dst` to `push`.
pub(crate) fn pair(
    src: impl Iterator<Item = Extent>,
    dst: impl Iterator<Item = Extent>,
    mut push: impl FnMut(RawSegment) -> Result,
) -> Result {
    let (mut src, mut dst) = (src.filter(|e| e.len != 0), dst.filter(|e| e.len != 0));
    let (mut from, mut to) = (src.next(), dst.next());
    while let (Some(a), Some(b)) = (from.as_mut(), to.as_mut()) {
        let len = a.len.min(b.len);
        push(regs::segment(a.split_front(len)?, b.split_front(len)?, len))?;
        if a.len == 0 {
            from = src.next();
        }
        if b.len == 0 {
            to = dst.next();
        }
    }
    if from.is_some() || to.is_some() {
        return Err(EINVAL);
    }
    Ok(())
}

/// Starts a copy of the bytes of `src` to those of `dst`, in order, which are as many.
pub(crate) fn copy<'a, 'drm>(
    gpu: &'a Gpu<'drm>,
    src: impl Iterator<Item = Extent>,
    dst: impl Iterator<Item = Extent>,
) -> Result<Job<'a, 'drm>> {
    Plan::copy(gpu, src, dst)?.start(gpu)
}

/// Starts to fill `dst` with zeros.
pub(crate) fn clear<'a, 'drm>(
    gpu: &'a Gpu<'drm>,
    dst: impl Iterator<Item = Extent>,
) -> Result<Job<'a, 'drm>> {
    let mut segments = KVVec::new();
    for extent in dst {
        let segment = regs::segment(Place::Unused, extent.place, extent.len);
        segments.push(segment, GFP_KERNEL)?;
    }
    Plan::new(gpu, Operation::Fill(0), &segments)?.start(gpu)
}

/// Has the device look for writes to slots that are not installed.
pub(crate) fn check(gpu: &Gpu<'_>) -> Result {
    let mut plan = Plan {
        lists: KVec::new(),
        commands: KVec::new(),
    };
    plan.commands.push((Operation::Check, 0, 0), GFP_KERNEL)?;
    plan.start(gpu)?.wait()
}

/// Bytes of a digest.
pub(crate) const DIGEST_SIZE: usize = 32;

/// A checksum that the engine has been told to compute. Dropping it waits.
pub(crate) struct Checksum<'a, 'drm> {
    // Field order: the work is over when the memory is freed.
    job: Job<'a, 'drm>,
    result: Coherent<[u8]>,
}

impl Checksum<'_, '_> {
    /// The fence that signals when it is there.
    pub(crate) fn fence(&self) -> Option<&Fence> {
        self.job.fence()
    }

    /// Waits for the digest. `EIO`: the engine failed.
    pub(crate) fn wait(self) -> Result<[u8; DIGEST_SIZE]> {
        self.job.wait()?;
        let mut digest = [0; DIGEST_SIZE];
        for (index, byte) in digest.iter_mut().enumerate() {
            *byte = kernel::io::io_read!(self.result, [try: index]);
        }
        Ok(digest)
    }
}

/// Starts to compute the SHA-256 of the bytes of `src`, in order.
///
/// `E2BIG`: they lie in more pieces than one command takes.
pub(crate) fn checksum<'a, 'drm>(
    gpu: &'a Gpu<'drm>,
    src: impl Iterator<Item = Extent>,
) -> Result<Checksum<'a, 'drm>> {
    let mut segments = KVVec::new();
    for extent in src {
        let segment = regs::segment(extent.place, Place::Unused, extent.len);
        segments.push(segment, GFP_KERNEL)?;
    }
    let result: Coherent<[u8]> = Coherent::zeroed_slice(gpu.dev(), DIGEST_SIZE, GFP_KERNEL)?;
    let op = Operation::Checksum(result.dma_address());
    // In one command, as it has one result.
    let plan = Plan::with_lists(gpu, op, &segments, segments.len())?;
    let job = plan.start(gpu)?;
    Ok(Checksum { job, result })
}

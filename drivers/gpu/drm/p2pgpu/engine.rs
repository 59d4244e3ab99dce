// SPDX-License-Identifier: GPL-2.0

//! The copy engine: copies, fills and checksums of page-wise scattered memory.

use crate::{
    regs::{
        self,
        Operation,
        Place,
        RawSegment, //
    },
    ring::Ring, //
};
use core::ops::Range;
use kernel::{
    device,
    dma::Coherent,
    dma_buf::fence::Fence,
    io::io_write,
    prelude::*,
    sync::aref::ARef, //
};

/// Most segments in one list, which takes 32 bytes each of contiguous memory.
const LIST_SEGMENTS: usize = 1024;

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

/// Segments under construction, and the lists that are full.
struct Lists<'a> {
    dev: &'a device::Device<device::Bound>,
    full: KVec<Coherent<[RawSegment]>>,
    current: KVec<RawSegment>,
}

impl<'a> Lists<'a> {
    fn new(dev: &'a device::Device<device::Bound>) -> Self {
        Self {
            dev,
            full: KVec::new(),
            current: KVec::new(),
        }
    }

    fn push(&mut self, segment: RawSegment) -> Result {
        self.current.push(segment, GFP_KERNEL)?;
        if self.current.len() == LIST_SEGMENTS {
            self.close()?;
        }
        Ok(())
    }

    /// Moves the segments collected so far to memory that the device reads.
    fn close(&mut self) -> Result {
        if !self.current.is_empty() {
            let list = upload(self.dev, &self.current)?;
            self.full.push(list, GFP_KERNEL)?;
            self.current.clear();
        }
        Ok(())
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

/// Work that the engine has been given. Dropping it waits.
pub(crate) struct Job<'a, 'drm> {
    ring: &'a Ring<'drm>,
    /// One a list, in order: any of them can fail.
    fences: KVec<ARef<Fence>>,
    /// Read by the device until the work is done.
    _lists: KVec<Coherent<[RawSegment]>>,
}

impl Job<'_, '_> {
    /// The fence that signals last.
    pub(crate) fn fence(&self) -> Option<&Fence> {
        self.fences.last().map(|fence| &**fence)
    }

    /// Waits for the job. `EIO`: it failed.
    pub(crate) fn wait(mut self) -> Result {
        self.finish()
    }

    fn finish(&mut self) -> Result {
        let mut result = Ok(());
        for fence in core::mem::take(&mut self.fences) {
            result = result.and(self.ring.wait(&fence));
        }
        result
    }
}

impl Drop for Job<'_, '_> {
    fn drop(&mut self) {
        // An error has no one to go to; the wait is for the lists.
        let _ = self.finish();
    }
}

/// Submits the lists, in order.
fn submit<'a, 'drm>(
    ring: &'a Ring<'drm>,
    mut lists: Lists<'_>,
    op: Operation,
) -> Result<Job<'a, 'drm>> {
    lists.close()?;
    let mut job = Job {
        ring,
        fences: KVec::with_capacity(lists.full.len(), GFP_KERNEL)?,
        _lists: lists.full,
    };
    for list in &job._lists {
        let fence = ring.submit(op, list.len(), list.dma_address())?;
        job.fences.push(fence, GFP_KERNEL)?;
    }
    Ok(job)
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
    dev: &device::Device<device::Bound>,
    ring: &'a Ring<'drm>,
    src: impl Iterator<Item = Extent>,
    dst: impl Iterator<Item = Extent>,
) -> Result<Job<'a, 'drm>> {
    let mut lists = Lists::new(dev);
    pair(src, dst, |segment| lists.push(segment))?;
    submit(ring, lists, Operation::Copy)
}

/// Starts to fill `dst` with zeros.
pub(crate) fn clear<'a, 'drm>(
    dev: &device::Device<device::Bound>,
    ring: &'a Ring<'drm>,
    dst: impl Iterator<Item = Extent>,
) -> Result<Job<'a, 'drm>> {
    let mut lists = Lists::new(dev);
    for extent in dst {
        lists.push(regs::segment(Place::Unused, extent.place, extent.len))?;
    }
    submit(ring, lists, Operation::Fill(0))
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
    dev: &device::Device<device::Bound>,
    ring: &'a Ring<'drm>,
    src: impl Iterator<Item = Extent>,
) -> Result<Checksum<'a, 'drm>> {
    let mut segments = KVVec::new();
    for extent in src {
        segments.push(
            regs::segment(extent.place, Place::Unused, extent.len),
            GFP_KERNEL,
        )?;
    }
    if segments.len() > regs::LIST_MAX {
        return Err(E2BIG);
    }
    let result: Coherent<[u8]> = Coherent::zeroed_slice(dev, DIGEST_SIZE, GFP_KERNEL)?;
    let mut lists = Lists::new(dev);
    lists.full.push(upload(dev, &segments)?, GFP_KERNEL)?;
    let job = submit(ring, lists, Operation::Checksum(result.dma_address()))?;
    Ok(Checksum { job, result })
}

// SPDX-License-Identifier: GPL-2.0

//! From the operations of a submission to a job.
//!
//! All that can fail is done before the job is queued; from then on its fence signals, whatever
//! happens.

use crate::{
    access::{
        Purpose,
        View, //
    },
    context::Context,
    driver::{
        DrmDevice,
        Gpu, //
    },
    engine::{
        self,
        Extent,
        DIGEST_SIZE, //
    },
    evict,
    gem::{
        self,
        Object,
        Placement, //
    },
    job::{
        Command,
        Job,
        Track,
        Wake, //
    },
    regs::{
        self,
        Operation,
        Place,
        RawSegment, //
    },
    trace, //
};
use core::ops::Range;
use kernel::{
    dma::{
        Coherent,
        DataDirection, //
    },
    dma_buf::{
        fence::{
            Callback,
            Fence,
            FenceMemory, //
        },
        pages::SharedMapping,
        resv::{
            FenceRoom,
            Locks,
            Resv, //
        }, //
    },
    drm::{
        self,
        syncobj::Slot, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    },
    uapi, //
};

/// Most operations of a job.
pub(crate) const OPS_MAX: usize = 64;
/// Most syncobjs that a job waits for, and that it signals.
pub(crate) const SYNCS_MAX: usize = 64;

/// A range of the object with this index.
struct Part {
    object: usize,
    range: Range<u64>,
}

/// An operation that is checked.
struct Op {
    operation: Operation,
    src: Option<Part>,
    dst: Part,
}

/// An object of a job.
struct Used {
    obj: ARef<Object>,
    handle: u32,
    writes: bool,
}

impl Used {
    fn purpose(&self) -> Purpose {
        match self.writes {
            true => Purpose::Write,
            false => Purpose::Read,
        }
    }
}

/// The operations of a job, and the objects that they are on.
pub(crate) struct Request {
    ops: KVec<Op>,
    objects: KVec<Used>,
}

/// Bytes of the elements that FILL and ADD work on.
const UNIT: u64 = 4;

impl Request {
    pub(crate) fn new() -> Self {
        Self {
            ops: KVec::new(),
            objects: KVec::new(),
        }
    }

    fn part(
        &mut self,
        file: &drm::File<crate::file::File>,
        handle: u32,
        (offset, size): (u64, u64),
        writes: bool,
    ) -> Result<Part> {
        let known = self.objects.iter().position(|used| used.handle == handle);
        let object = match known {
            Some(object) => object,
            None => {
                let obj = gem::lookup(file, handle)?;
                let used = Used {
                    obj,
                    handle,
                    writes: false,
                };
                self.objects.push(used, GFP_KERNEL)?;
                self.objects.len() - 1
            }
        };
        let used = self.objects.get_mut(object).ok_or(EINVAL)?;
        used.writes |= writes;
        let range = gem::byte_range(&used.obj, offset, size)?;
        Ok(Part { object, range })
    }

    /// Checks an operation, and adds it.
    pub(crate) fn add(
        &mut self,
        file: &drm::File<crate::file::File>,
        raw: &uapi::drm_p2pgpu_op,
    ) -> Result {
        let operation = match raw.op {
            uapi::P2PGPU_OP_COPY => Operation::Copy,
            uapi::P2PGPU_OP_FILL => Operation::Fill(raw.value),
            // The address comes when there is one.
            uapi::P2PGPU_OP_CHECKSUM => Operation::Checksum(0),
            uapi::P2PGPU_OP_ADD_U32 => Operation::Add { float: false },
            uapi::P2PGPU_OP_ADD_F32 => Operation::Add { float: true },
            _ => return Err(EINVAL),
        };
        let is_fill = matches!(operation, Operation::Fill(_));
        if !is_fill && raw.value != 0 || is_fill && (raw.src_handle != 0 || raw.src_offset != 0) {
            return Err(EINVAL);
        }
        let dst_size = match operation {
            Operation::Checksum(_) => DIGEST_SIZE as u64,
            _ => raw.size,
        };
        let src = match is_fill {
            true => None,
            false => {
                let range = (raw.src_offset, raw.size);
                Some(self.part(file, raw.src_handle, range, false)?)
            }
        };
        let dst = self.part(file, raw.dst_handle, (raw.dst_offset, dst_size), true)?;
        let in_units = matches!(operation, Operation::Fill(_) | Operation::Add { .. });
        if in_units
            && [raw.src_offset, raw.dst_offset, raw.size]
                .iter()
                .any(|n| !n.is_multiple_of(UNIT))
        {
            return Err(EINVAL);
        }
        if let Some(src) = &src {
            // What a checksum reads it has read when it writes.
            let overlap = src.object == dst.object
                && src.range.start < dst.range.end
                && dst.range.start < src.range.end;
            if overlap && !matches!(operation, Operation::Checksum(_)) {
                return Err(EINVAL);
            }
        }
        let op = Op {
            operation,
            src,
            dst,
        };
        Ok(self.ops.push(op, GFP_KERNEL)?)
    }
}

/// Segments of all commands of a job.
struct Program {
    segments: KVVec<RawSegment>,
    /// With the index of the first segment in the place of its address.
    commands: KVec<Command>,
    /// Where digests are put, until they are copied.
    digests: u64,
}

impl Program {
    /// Adds a command of the segments that `add` pushes. `E2BIG`: they are too many.
    fn command(
        &mut self,
        operation: Operation,
        add: impl FnOnce(&mut KVVec<RawSegment>) -> Result,
    ) -> Result {
        let first = self.segments.len();
        add(&mut self.segments)?;
        let count = self.segments.len() - first;
        if count > regs::LIST_MAX {
            return Err(E2BIG);
        }
        let command = (operation, count, u64::try_from(first)?);
        Ok(self.commands.push(command, GFP_KERNEL)?)
    }

    fn add(&mut self, op: &Op, views: &[View<'_>]) -> Result {
        let extents = |part: &Part| {
            let view = views.get(part.object).ok_or(EINVAL)?;
            Ok::<_, Error>(view.extents(part.range.clone()))
        };
        let dst = extents(&op.dst)?;
        let Some(src) = &op.src else {
            return self.command(op.operation, |segments| {
                for extent in dst {
                    segments.push(
                        regs::segment(Place::Unused, extent.place, extent.len),
                        GFP_KERNEL,
                    )?;
                }
                Ok(())
            });
        };
        let src = extents(src)?;
        if !matches!(op.operation, Operation::Checksum(_)) {
            return self.command(op.operation, |segments| {
                engine::pair(src, dst, |segment| Ok(segments.push(segment, GFP_KERNEL)?))
            });
        }
        let digest = self.digests;
        let len = DIGEST_SIZE as u64;
        self.digests = digest.checked_add(len).ok_or(EOVERFLOW)?;
        self.command(Operation::Checksum(digest), |segments| {
            for extent in src {
                segments.push(
                    regs::segment(extent.place, Place::Unused, extent.len),
                    GFP_KERNEL,
                )?;
            }
            Ok(())
        })?;
        let from = core::iter::once(Extent {
            place: Place::Memory(digest),
            len,
        });
        self.command(Operation::Copy, |segments| {
            engine::pair(from, dst, |segment| Ok(segments.push(segment, GFP_KERNEL)?))
        })
    }
}

/// Times that objects are mapped, each of which may take another's mapping back where both are
/// ranges of one dma-buf.
const MAP_TRIES: u32 = 3;

/// The reservation objects of `objects`, each once, and whether one of its objects is written.
fn resvs(objects: &[Used]) -> Result<KVec<(&Resv, Purpose)>> {
    let mut list: KVec<(&Resv, Purpose)> = KVec::with_capacity(objects.len(), GFP_KERNEL)?;
    for used in objects {
        let resv = used.obj.resv();
        match list
            .iter_mut()
            .find(|(other, _)| core::ptr::eq(*other, resv))
        {
            Some((_, purpose)) if used.writes => *purpose = Purpose::Write,
            Some(_) => {}
            None => list.push((resv, used.purpose()), GFP_KERNEL)?,
        }
    }
    Ok(list)
}

/// Queues a job that waits for `waits`, and whose fence goes to `slots`.
pub(crate) fn submit<'drm>(
    dev: &DrmDevice,
    gpu: &Gpu<'drm>,
    context: &Arc<Context>,
    request: Request,
    mut waits: KVec<ARef<Fence>>,
    slots: KVec<Slot>,
) -> Result {
    let Request { ops, objects } = request;
    let mut keep = KVec::with_capacity(objects.len(), GFP_KERNEL)?;
    for used in &objects {
        keep.push(used.obj.clone(), GFP_KERNEL)?;
    }
    let resvs = resvs(&objects)?;
    let mut plain = KVec::with_capacity(resvs.len(), GFP_KERNEL)?;
    for (resv, _) in &resvs {
        plain.push(*resv, GFP_KERNEL)?;
    }
    let locks = Locks::lock_interruptible(&plain)?;

    let mut needs = KVec::new();
    let mut placements = KVec::with_capacity(objects.len(), GFP_KERNEL)?;
    let mut maps: KVec<SharedMapping<'drm>> = KVec::with_capacity(objects.len(), GFP_KERNEL)?;
    for used in &objects {
        evict::call_back(&used.obj, gpu, locks.held(used.obj.resv())?);
        if let Some(fence) = evict::arriving(&used.obj) {
            needs.push(fence, GFP_KERNEL)?;
        }
        let placement = used.obj.placement();
        if let Placement::System(pages) = &placement {
            let map = SharedMapping::new(pages.clone(), gpu.bound(), DataDirection::Bidirectional)?;
            maps.push(map, GFP_KERNEL)?;
        }
        placements.push(placement, GFP_KERNEL)?;
    }
    let mut tries = MAP_TRIES;
    let views = loop {
        let mut views = KVec::with_capacity(objects.len(), GFP_KERNEL)?;
        let mut mapped = maps.iter();
        for (used, placement) in objects.iter().zip(&placements) {
            let view = match placement {
                Placement::System(_) => View::Table(mapped.next().ok_or(EINVAL)?.table()),
                _ => {
                    let held = locks.held(used.obj.resv())?;
                    View::new(gpu, placement, held, used.purpose())?
                }
            };
            views.push(view, GFP_KERNEL)?;
        }
        if views.iter().all(View::is_valid) {
            break views;
        }
        tries = tries.checked_sub(1).ok_or(ENOSPC)?;
    };

    let digest_bytes = ops.len().checked_mul(DIGEST_SIZE).ok_or(EOVERFLOW)?;
    let digests: Coherent<[u8]> = Coherent::zeroed_slice(gpu.dev(), digest_bytes, GFP_KERNEL)?;
    let mut program = Program {
        segments: KVVec::new(),
        commands: KVec::new(),
        digests: digests.dma_address(),
    };
    for op in &ops {
        program.add(op, &views)?;
    }
    let mut lists = KVec::with_capacity(1, GFP_KERNEL)?;
    let list = engine::upload(gpu.dev(), &program.segments)?;
    for (_, _, at) in &mut program.commands {
        let offset = at.checked_mul(size_of::<RawSegment>() as u64);
        *at = offset
            .and_then(|offset| list.dma_address().checked_add(offset))
            .ok_or(EOVERFLOW)?;
    }
    lists.push(list, GFP_KERNEL)?;

    for (resv, purpose) in &resvs {
        if let Some(fence) = locks.held(resv)?.fence(purpose.waits_for())? {
            // The job comes after those of its context anyway.
            if fence.context() != context.timeline.context() {
                waits.push(fence, GFP_KERNEL)?;
            }
        }
    }
    for view in &views {
        view.reserve_work()?;
    }
    drop(views);
    let mut rooms: KVec<(FenceRoom<'_>, Purpose)> = KVec::with_capacity(resvs.len(), GFP_KERNEL)?;
    for (resv, purpose) in &resvs {
        rooms.push((locks.held(resv)?.reserve_fences(1)?, *purpose), GFP_KERNEL)?;
    }
    let wake = KBox::pin_init(Callback::new(Wake(context.kick.clone())), GFP_KERNEL)?;

    let fence_memory = FenceMemory::new(GFP_KERNEL)?;
    let order = context.order.lock();
    let pending = context.timeline.fence(fence_memory);
    let fence: ARef<Fence> = pending.fence().into();
    let job = KBox::new(
        Job {
            context: context.clone(),
            track: Track::new(pending, context.kick.clone())?,
            waits,
            wake: Some(wake),
            needs,
            commands: program.commands,
            retries: 0,
            since: None,
            next: None,
            arriving: None,
            _lists: lists,
            _digests: Some(digests),
            _maps: maps,
            _objects: keep,
        },
        GFP_KERNEL,
    )?;
    let counts = (job.commands.len(), job.waits.len());
    gpu.scheduler.push(gpu, job)?;
    trace::submit(dev, context.timeline.context(), counts.0, counts.1);
    drop(order);

    for placement in &placements {
        if let Placement::Imported(import) = placement {
            import.add_work(&fence);
        }
    }
    for (room, purpose) in &mut rooms {
        // There is room for one.
        let _ = room.add(&fence, purpose.usage());
    }
    for slot in slots {
        slot.fill(&fence);
    }
    Ok(())
}

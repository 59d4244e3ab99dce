// SPDX-License-Identifier: GPL-2.0

//! What ioctls have the copy engine do with objects.
//!
//! The reservation locks are held until the work is submitted. Then its fence is among those of the
//! objects, which stay where they are, and mapped for the engine, until it signals: who moves an
//! object waits for all fences. The caller waits without a lock.

use crate::{
    driver::Gpu,
    engine::{
        self,
        Extent, //
    },
    evict,
    gem::{
        Object,
        Placement, //
    },
    import::Import,
    regs::Place,
    vram::VramPages, //
};
use core::ops::Range;
use kernel::{
    dma::DataDirection,
    dma_buf::{
        fence::Fence,
        pages::MappedPages,
        resv::{
            FenceRoom,
            Guard,
            Held,
            Locks,
            Resv,
            Usage, //
        }, //
    },
    prelude::*,
    scatterlist::SGTable,
    time::Jiffies, //
};

/// What the engine does with bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Read,
    Write,
}

impl Purpose {
    /// Those whose fences are waited for.
    pub(crate) fn waits_for(self) -> Usage {
        match self {
            Self::Read => Usage::Write,
            Self::Write => Usage::Read,
        }
    }

    /// What the work's fence tells others.
    pub(crate) fn usage(self) -> Usage {
        match self {
            Self::Read => Usage::Read,
            Self::Write => Usage::Write,
        }
    }
}

/// A placement as the engine reaches it.
pub(crate) enum View<'a> {
    System(MappedPages<'a>),
    Vram(&'a VramPages),
    Imported(&'a Import, KVVec<Extent>),
    /// System memory that somebody else keeps mapped.
    Table(&'a SGTable),
}

impl<'a> View<'a> {
    /// Makes the bytes reachable. Under the reservation lock of the object that has them.
    pub(crate) fn new(
        gpu: &'a Gpu<'_>,
        placement: &'a Placement,
        held: Held<'_>,
        purpose: Purpose,
    ) -> Result<Self> {
        let (dir, writes) = match purpose {
            Purpose::Read => (DataDirection::ToDevice, false),
            Purpose::Write => (DataDirection::FromDevice, true),
        };
        Ok(match placement {
            Placement::System(pages) => Self::System(pages.map(gpu.dev(), dir)?),
            Placement::Vram(vram) => Self::Vram(vram),
            Placement::Imported(import) => {
                Self::Imported(import, import.extents(gpu.dev(), held, writes)?)
            }
        })
    }

    /// Whether the addresses are still those of the object, whose reservation lock is held.
    pub(crate) fn is_valid(&self) -> bool {
        match self {
            Self::Imported(import, _) => import.is_mapped(),
            Self::System(_) | Self::Vram(_) | Self::Table(_) => true,
        }
    }

    /// Where the bytes `range` lie, which is not past the end.
    pub(crate) fn extents(&self, range: Range<u64>) -> impl Iterator<Item = Extent> + '_ {
        let (vram, system, imported) = match self {
            Self::Vram(vram) => (Some(vram.extents(range.clone())), None, None),
            Self::System(pages) => (None, Some(pages.table().iter()), None),
            Self::Table(table) => (None, Some(table.iter()), None),
            Self::Imported(_, list) => (None, None, Some(list.iter().copied())),
        };
        let system = system.into_iter().flatten().map(|entry| Extent {
            place: Place::Memory(entry.dma_address()),
            len: entry.dma_len(),
        });
        let memory = Iterator::chain(system, imported.into_iter().flatten());
        Iterator::chain(vram.into_iter().flatten(), clip(memory, range))
    }

    /// Makes room for the fence of work on the bytes.
    pub(crate) fn reserve_work(&self) -> Result {
        match self {
            Self::Imported(import, _) => import.reserve_work(),
            Self::System(_) | Self::Vram(_) | Self::Table(_) => Ok(()),
        }
    }

    /// The engine uses the bytes until `fence` signals.
    fn add_work(&self, fence: &Fence) {
        if let Self::Imported(import, _) = self {
            import.add_work(fence);
        }
    }
}

/// The part of memory in pieces that lies in `range`, an offset of 0 being the first piece's start.
fn clip(pieces: impl Iterator<Item = Extent>, range: Range<u64>) -> impl Iterator<Item = Extent> {
    let mut at = 0u64;
    let parts = pieces.filter_map(move |piece| {
        let start = at;
        at = at.saturating_add(piece.len);
        let skip = range.start.saturating_sub(start).min(piece.len);
        let end = range.end.saturating_sub(start).min(piece.len);
        piece.part(skip..end)
    });
    parts.filter(|part| part.len != 0)
}

/// Bytes of an object that the engine is to use.
struct Side<'a> {
    obj: &'a Object,
    range: Range<u64>,
    purpose: Purpose,
}

impl<'a> Side<'a> {
    fn new((obj, range): (&'a Object, Range<u64>), purpose: Purpose) -> Self {
        Self {
            obj,
            range,
            purpose,
        }
    }

    fn resv(&self) -> &'a Resv {
        self.obj.resv()
    }

    /// Takes the lock when nobody else uses the bytes in a way that stands against this one.
    fn lock(&self) -> Result<Guard<'a>> {
        loop {
            self.wait()?;
            let guard = self.resv().lock_interruptible()?;
            if self.is_ready() {
                return Ok(guard);
            }
        }
    }

    fn is_ready(&self) -> bool {
        self.resv().is_idle(self.purpose.waits_for())
    }

    fn wait(&self) -> Result {
        self.resv()
            .wait_interruptible(self.purpose.waits_for(), Jiffies::MAX)
    }
}

/// Takes the locks of two objects, or the one that they share, as [`Side::lock`] does.
fn lock_both<'a>(first: &Side<'a>, second: &Side<'a>) -> Result<Locks<'a>> {
    loop {
        first.wait()?;
        second.wait()?;
        let locks = Locks::lock_interruptible(&[first.resv(), second.resv()])?;
        if first.is_ready() && second.is_ready() {
            return Ok(locks);
        }
    }
}

/// Adds the fence of work to an object, for others to see.
fn announce(
    view: &View<'_>,
    room: &mut FenceRoom<'_>,
    fence: Option<&Fence>,
    usage: Usage,
) -> Result {
    if let Some(fence) = fence {
        view.add_work(fence);
        room.add(fence, usage)?;
    }
    Ok(())
}

/// Times that the two sides of a copy are mapped, each of which may take the other's mapping back
/// where both are ranges of one object.
const MAP_TRIES: u32 = 3;

/// Copies the bytes of one range to another, which is as long, and does not overlap it. Returns when
/// they are there.
///
/// `ENOSPC`: an exporter cannot show both ranges at once. `EIO`: the engine failed. Others are those
/// of exporters.
pub(crate) fn copy(
    gpu: &Gpu<'_>,
    src: (&Object, Range<u64>),
    dst: (&Object, Range<u64>),
) -> Result {
    let (src, dst) = (
        Side::new(src, Purpose::Read),
        Side::new(dst, Purpose::Write),
    );
    let locks = lock_both(&src, &dst)?;
    let (from, to) = (locks.held(src.resv())?, locks.held(dst.resv())?);
    evict::bring_back(src.obj, gpu, from);
    evict::bring_back(dst.obj, gpu, to);
    let (src_place, dst_place) = (src.obj.placement(), dst.obj.placement());

    let mut tries = MAP_TRIES;
    let (src_view, dst_view) = loop {
        // In this order: to write may need a new mapping, and the object may be one.
        let dst_view = View::new(gpu, &dst_place, to, dst.purpose)?;
        let src_view = View::new(gpu, &src_place, from, src.purpose)?;
        if dst_view.is_valid() {
            break (src_view, dst_view);
        }
        tries = tries.checked_sub(1).ok_or(ENOSPC)?;
    };

    // Not earlier: importers that are told may add fences, and would use up the room.
    src_view.reserve_work()?;
    dst_view.reserve_work()?;
    let shared = core::ptr::eq(src.resv(), dst.resv());
    let mut src_room = from.reserve_fences(2)?;
    let mut dst_room = (!shared).then(|| to.reserve_fences(1)).transpose()?;
    let job = engine::copy(
        gpu,
        src_view.extents(src.range),
        dst_view.extents(dst.range),
    )?;
    announce(&src_view, &mut src_room, job.fence(), src.purpose.usage())?;
    let dst_room = dst_room.as_mut().unwrap_or(&mut src_room);
    announce(&dst_view, dst_room, job.fence(), dst.purpose.usage())?;
    drop(locks);
    job.wait()
}

/// The SHA-256 of bytes of an object.
///
/// `E2BIG`: they lie in more pieces than one command takes. `EIO`: the engine failed. Others are
/// those of an exporter.
pub(crate) fn checksum(
    gpu: &Gpu<'_>,
    obj: &Object,
    range: Range<u64>,
) -> Result<[u8; engine::DIGEST_SIZE]> {
    let side = Side::new((obj, range), Purpose::Read);
    let guard = side.lock()?;
    evict::bring_back(obj, gpu, guard.held());
    let placement = obj.placement();
    let view = View::new(gpu, &placement, guard.held(), side.purpose)?;
    view.reserve_work()?;
    let mut room = guard.held().reserve_fences(1)?;
    let work = engine::checksum(gpu, view.extents(side.range))?;
    announce(&view, &mut room, work.fence(), side.purpose.usage())?;
    drop(guard);
    work.wait()
}

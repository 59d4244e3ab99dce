// SPDX-License-Identifier: GPL-2.0

//! VRAM as a cache: objects that may leave it make room for others, and come back when they are
//! used.
//!
//! Who asks for VRAM that is not free has the coldest objects moved to system memory, by the time
//! of their last use. An object may leave if its creator said so, and only while nobody relies on
//! its being in VRAM: not if importers pin it, slots are promised to it, or it is strict. Importers
//! are told as at any move.
//!
//! Objects whose owner has no use for their bytes leave first, and their bytes are dropped.
//!
//! One at a time makes room: two could take each other's. Who needs the room may hold the
//! reservation lock of an object; those of the objects that leave are only tried. Objects that the
//! engine is still to work on neither leave nor come back: the work may have to wait for long.

use crate::{
    cgroup,
    driver::{
        DrmDevice,
        Gpu, //
    },
    engine,
    gem::{
        self,
        Object,
        Placement,
        PlacementKind,
        State, //
    },
    migrate::{
        self,
        Arrive, //
    },
    pressure::CONTENTION,
    regs::SLOT_SHIFT,
    trace,
    vram::VramPages, //
};
use kernel::{
    dma_buf::{
        fence::Fence,
        resv::{
            Held,
            Usage, //
        }, //
    },
    drm::gem::BaseObject,
    new_mutex,
    prelude::*,
    rbtree::RBTree,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Mutex, //
    },
    time::delay::fsleep,
    uapi, //
};

/// Times that who needs room waits for objects that others use.
const ROUNDS: usize = 1000;

/// The objects of a device that may leave VRAM.
#[pin_data]
pub(crate) struct Evictables {
    /// By their mmap offsets: a reference would keep them from being freed.
    offsets: Pin<KBox<Mutex<RBTree<u64, ()>>>>,
    /// Held while room is made.
    #[pin]
    making_room: Mutex<()>,
    /// Uses of objects so far.
    uses: Atomic<u64>,
}

impl Evictables {
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            offsets: KBox::pin_init(
                new_mutex!(RBTree::new(), "p2pgpu::evict::offsets"),
                GFP_KERNEL,
            )?,
            making_room <- new_mutex!((), "p2pgpu::evict::making_room"),
            // An object that was never used is not the last one that was.
            uses: Atomic::new(1),
        }? Error)
    }

    /// The offsets of this moment.
    fn offsets(&self) -> Result<KVVec<u64>> {
        let mut copy = KVVec::new();
        for &offset in self.offsets.lock().keys() {
            copy.push(offset, GFP_KERNEL)?;
        }
        Ok(copy)
    }
}

/// What an object remembers of its being evicted.
#[derive(Clone, Copy, Default)]
pub(crate) struct Eviction {
    /// It may leave VRAM.
    allowed: bool,
    /// It has left, and comes back when it is used.
    pub(crate) is_away: bool,
    /// Times that it has left.
    pub(crate) count: u32,
    /// Its bytes are not needed, and may be dropped.
    is_unneeded: bool,
    /// They were, since they were last needed.
    is_purged: bool,
}

/// Lets a new object leave VRAM.
pub(crate) fn allow(obj: &Object) -> Result {
    let offset = gem::mmap_offset(obj)?;
    let mut offsets = obj.dev().evictables.offsets.lock();
    offsets.try_create_and_insert(offset, (), GFP_KERNEL)?;
    drop(offsets);
    obj.state.lock().eviction.allowed = true;
    used(obj);
    Ok(())
}

/// The object is being freed.
pub(crate) fn forget(obj: &Object) {
    if !obj.state.lock().eviction.allowed {
        return;
    }
    if let Ok(offset) = gem::mmap_offset(obj) {
        obj.dev().evictables.offsets.lock().remove(&offset);
    }
}

/// Remembers whether the object's bytes are needed, and returns whether they are still there.
///
/// `EINVAL`: the object does not leave VRAM.
pub(crate) fn advise(obj: &Object, held: Held<'_>, needed: bool) -> Result<bool> {
    held.check(obj.resv())?;
    let eviction = &mut obj.state.lock().eviction;
    if !eviction.allowed {
        return Err(EINVAL);
    }
    let retained = !eviction.is_purged;
    eviction.is_unneeded = !needed;
    eviction.is_purged &= !needed;
    Ok(retained)
}

/// Whether the object's bytes would be dropped if others needed its room in VRAM.
pub(crate) fn is_purgeable(state: &State) -> bool {
    can_leave(state) && state.eviction.is_unneeded
}

/// The object is where somebody wants it to be.
pub(crate) fn stay(obj: &Object) {
    obj.state.lock().eviction.is_away = false;
}

/// Remembers that the object is being used.
pub(crate) fn used(obj: &Object) {
    let uses = &obj.dev().evictables.uses;
    if obj.last_use.load(Relaxed) == uses.load(Relaxed) {
        // It is the last that was used.
        return;
    }
    let turn = uses.fetch_add(1, Relaxed).saturating_add(1);
    obj.last_use.store(turn, Relaxed);
}

/// Where the bytes of an object are while they are copied to where it is.
pub(crate) struct Arrival {
    /// Of the copy.
    fence: ARef<Fence>,
    /// Where the object was, if it can be there again.
    from: Option<Placement>,
}

impl Arrival {
    /// From `old`: VRAM is somebody else's at once, system memory is kept until the copy has ended.
    pub(crate) fn new(fence: ARef<Fence>, old: &Placement) -> Self {
        let from = match old {
            Placement::System(_) => Some(old.clone()),
            Placement::Vram(_) | Placement::Imported(_) => None,
        };
        Self { fence, from }
    }
}

/// Takes note of a copy that has ended. Under the object's reservation lock.
///
/// If it has failed, the object is where it was; after an eviction its bytes are lost, and it is
/// zero.
pub(crate) fn settle(obj: &Object) {
    let mut state = obj.state.lock();
    let ended = state.arrival.as_ref().and_then(|a| a.fence.status());
    let Some(ended) = ended else {
        return;
    };
    let from = state.arrival.take().and_then(|arrival| arrival.from);
    // Freed without the lock.
    let _unused = match (ended, from) {
        (Ok(()), from) => from,
        (Err(_), Some(from)) => {
            state.eviction.is_away = true;
            Some(core::mem::replace(&mut state.placement, from))
        }
        (Err(_), None) => {
            // They may still hold what others had. Nobody has seen them, as all wait for this; the
            // engine has let go of them.
            if let Placement::System(pages) = &state.placement {
                pages.clear();
            }
            state.losses += 1;
            kernel::pr_err_once!("the bytes of an object are lost\n");
            None
        }
    };
    drop(state);
}

/// The fence of the copy that is to bring the object's bytes, if it has not ended. Under its
/// reservation lock.
pub(crate) fn arriving(obj: &Object) -> Option<ARef<Fence>> {
    settle(obj);
    let state = obj.state.lock();
    state.arrival.as_ref().map(|arrival| arrival.fence.clone())
}

/// Waits until the object's bytes are where it is. Under its reservation lock. `ENODEV`: the device
/// goes.
pub(crate) fn arrive(obj: &Object, gpu: &Gpu<'_>) -> Result {
    if let Some(fence) = arriving(obj) {
        match engine::wait(gpu, &fence) {
            Err(ENODEV) => return Err(ENODEV),
            // What has failed is settled.
            _ => settle(obj),
        }
    }
    Ok(())
}

/// Has an object that is about to be used come back to VRAM, and waits for it. Without room there it
/// is used where it is. Under its reservation lock.
pub(crate) fn bring_back(obj: &Object, gpu: &Gpu<'_>, held: Held<'_>) {
    // An error is for who uses it.
    let _ = arrive(obj, gpu);
    come_back(obj, gpu, held, Arrive::Now);
}

/// As [`bring_back`], but who uses the object waits for it.
pub(crate) fn call_back(obj: &Object, gpu: &Gpu<'_>, held: Held<'_>) {
    come_back(obj, gpu, held, Arrive::Later);
}

fn come_back(obj: &Object, gpu: &Gpu<'_>, held: Held<'_>, arrive: Arrive) {
    used(obj);
    // Work on it that is still to come may wait for what its user does next.
    if !obj.state.lock().eviction.is_away || !is_idle(obj) {
        return;
    }
    if migrate::migrate(obj, gpu, held, PlacementKind::Vram, arrive).is_ok() {
        stay(obj);
    }
}

/// Pages of VRAM for `obj`, whose reservation lock is held, or for an object that is to be made.
/// They hold what was there before.
///
/// `ENOSPC`: there are too few, also if all that may leave did, or the cgroup may not have them.
/// `ERESTARTSYS`: a signal arrived.
pub(crate) fn alloc(
    dev: &DrmDevice,
    gpu: &Gpu<'_>,
    obj: Option<&Object>,
    size: usize,
) -> Result<VramPages> {
    // `None`: it is not free.
    let take = || {
        let charge = cgroup::charge_vram(dev, gpu, obj, size)?;
        match dev.vram.alloc(size >> SLOT_SHIFT, charge) {
            Err(ENOSPC) => Ok(None),
            allocated => allocated.map(Some),
        }
    };
    if let Some(pages) = take()? {
        return Ok(pages);
    }

    let _making_room = dev.evictables.making_room.lock();
    for _ in 0..ROUNDS {
        // Before the candidates, as it may become one's.
        let in_transit = dev.vram.in_transit();
        let candidates = candidates(dev)?;
        let rest = dev.vram.free().saturating_add(in_transit);
        let most = candidates
            .values()
            .fold(rest, |most, &bytes| most.saturating_add(bytes));
        if most < u64::try_from(size)? {
            break;
        }
        let mut is_used = in_transit != 0;
        for candidate in candidates.keys() {
            if let Some(pages) = take()? {
                return Ok(pages);
            }
            if kernel::current!().signal_pending() {
                return Err(ERESTARTSYS);
            }
            is_used |= evict(dev, gpu, candidate.offset) == Left::Used;
        }
        if let Some(pages) = take()? {
            return Ok(pages);
        }
        // Who holds a lock and needs room itself cannot wait for what others use.
        if !is_used || obj.is_some() {
            break;
        }
        fsleep(CONTENTION);
    }
    Err(ENOSPC)
}

/// An object that can leave VRAM now. Those whose bytes are not needed come first, and of both kinds
/// those that were not used for longer.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    is_needed: bool,
    last_use: u64,
    offset: u64,
}

/// The objects that can leave, with their sizes in bytes.
fn candidates(dev: &DrmDevice) -> Result<RBTree<Candidate, u64>> {
    let mut found = RBTree::new();
    // Not under the lock of the offsets: the last reference may be ours.
    for &offset in &dev.evictables.offsets()? {
        let Some(obj) = Object::at_offset(dev, offset) else {
            continue;
        };
        let (can_leave, is_purgeable) = {
            let state = obj.state.lock();
            (can_leave(&state), is_purgeable(&state))
        };
        if can_leave {
            let candidate = Candidate {
                is_needed: !is_purgeable,
                last_use: obj.last_use.load(Relaxed),
                offset,
            };
            found.try_create_and_insert(candidate, u64::try_from(obj.size())?, GFP_KERNEL)?;
        }
    }
    Ok(found)
}

fn can_leave(state: &State) -> bool {
    state.eviction.allowed
        && state.placement.kind() == Some(PlacementKind::Vram)
        && state.pins == 0
        && !state.is_promised()
        && !state.has_flag(uapi::P2PGPU_PEER_STRICT)
}

/// Whether no work on the object is under way. That of importers ends when they are told.
fn is_idle(obj: &Object) -> bool {
    obj.resv().is_idle(Usage::Read)
}

/// What came of asking an object to leave.
#[derive(PartialEq, Eq)]
enum Left {
    Yes,
    /// Somebody uses it at this moment.
    Used,
    No,
}

fn evict(dev: &DrmDevice, gpu: &Gpu<'_>, offset: u64) -> Left {
    let Some(obj) = Object::at_offset(dev, offset) else {
        return Left::Yes;
    };
    let Some(guard) = obj.resv().try_lock() else {
        return Left::Used;
    };
    let arrive = {
        let state = obj.state.lock();
        if !can_leave(&state) {
            return Left::No;
        }
        match is_purgeable(&state) {
            true => Arrive::Never,
            false => Arrive::Later,
        }
    };
    if !is_idle(&obj) {
        return Left::Used;
    }
    // One that cannot leave just yields nothing: the next one is asked.
    let moved = migrate::migrate(&obj, gpu, guard.held(), PlacementKind::System, arrive);
    if moved.is_err() {
        return Left::No;
    }
    trace::evict(&obj);
    let eviction = &mut obj.state.lock().eviction;
    eviction.is_away = true;
    eviction.count = eviction.count.saturating_add(1);
    eviction.is_purged |= arrive == Arrive::Never;
    Left::Yes
}

// SPDX-License-Identifier: GPL-2.0

//! GEM objects: their placement, and what CPUs see of it.

use crate::{
    aperture::{
        NamedPages,
        Names,
        NotShown, //
    },
    driver::{
        DrmDevice,
        DrmDriver,
        Gpu, //
    },
    engine,
    evict::{
        self,
        Arrival,
        Eviction, //
    },
    import::{
        self,
        Import, //
    },
    kick::LOOK_MS,
    mapping::Mapping,
    peer,
    pressure::{
        LastMap,
        Patience,
        Told,
        Victims,
        CONTENTION, //
    },
    refusal::{
        refuse,
        Reason, //
    },
    regs::{
        SLOT_SHIFT,
        SLOT_SIZE, //
    },
    vram::VramPages, //
};
use core::ops::Range;
use kernel::{
    cgroup::{
        dmem::Charge,
        memory::Payer, //
    },
    device,
    dma_buf::{
        fence::Fence,
        pages::Pages,
        DmaBuf, //
    },
    drm::{
        self,
        gem::{
            self,
            managed,
            BaseObject, //
        },
        Registered, //
    },
    mm::fault::{
        Fault,
        Outcome, //
    },
    new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex, //
    },
    task::Task,
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta, //
    },
    uapi, //
};

/// A GEM object of this driver.
pub(crate) type Object = managed::Object<Bo>;

/// Where an object's bytes are. Cloning it keeps them from being freed, not from moving.
#[derive(Clone)]
pub(crate) enum Placement {
    System(Arc<Pages>),
    Vram(Arc<VramPages>),
    /// Where somebody else has them. An object that is so stays so.
    Imported(Arc<Import>),
}

/// Where this driver can place an object.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlacementKind {
    System,
    Vram,
}

impl TryFrom<u32> for PlacementKind {
    type Error = Error;

    fn try_from(value: u32) -> Result<Self> {
        match value {
            uapi::P2PGPU_PLACEMENT_SYSTEM => Ok(Self::System),
            uapi::P2PGPU_PLACEMENT_VRAM => Ok(Self::Vram),
            _ => Err(EINVAL),
        }
    }
}

impl From<PlacementKind> for u32 {
    fn from(kind: PlacementKind) -> Self {
        match kind {
            PlacementKind::System => uapi::P2PGPU_PLACEMENT_SYSTEM,
            PlacementKind::Vram => uapi::P2PGPU_PLACEMENT_VRAM,
        }
    }
}

impl Placement {
    /// Allocates `size` bytes, not 0, for `obj`, or for an object that is to be made, which are not
    /// cleared. What is in VRAM is charged to the cgroup of the current task, other memory to that of
    /// who made the object. If need be others leave VRAM.
    pub(crate) fn alloc(
        dev: &DrmDevice,
        gpu: &Gpu<'_>,
        obj: Option<&Object>,
        kind: PlacementKind,
        size: usize,
    ) -> Result<Self> {
        Ok(match kind {
            PlacementKind::System => {
                let alloc = || Pages::unclean(size >> SLOT_SHIFT);
                let pages = match obj {
                    Some(obj) => obj.payer.charge(alloc)?,
                    None => alloc()?,
                };
                Self::System(Arc::new(pages, GFP_KERNEL)?)
            }
            PlacementKind::Vram => {
                Self::Vram(Arc::new(evict::alloc(dev, gpu, obj, size)?, GFP_KERNEL)?)
            }
        })
    }

    /// As [`Placement::alloc`], filled with zeros, for a new object.
    pub(crate) fn alloc_zeroed(
        dev: &DrmDevice,
        gpu: &Gpu<'_>,
        kind: PlacementKind,
        size: usize,
    ) -> Result<Self> {
        if kind == PlacementKind::System {
            let pages = Pages::zeroed(size >> SLOT_SHIFT)?;
            return Ok(Self::System(Arc::new(pages, GFP_KERNEL)?));
        }
        let this = Self::alloc(dev, gpu, None, kind, size)?;
        if let Self::Vram(vram) = &this {
            let all = 0..u64::try_from(size)?;
            engine::clear(gpu, vram.extents(all))?.wait()?;
        }
        Ok(this)
    }

    /// `None`: it is somebody else's.
    pub(crate) fn kind(&self) -> Option<PlacementKind> {
        match self {
            Self::System(_) => Some(PlacementKind::System),
            Self::Vram(_) => Some(PlacementKind::Vram),
            Self::Imported(_) => None,
        }
    }
}

/// What changes about an object, under its reservation lock.
pub(crate) struct State {
    pub(crate) placement: Placement,
    /// `P2PGPU_PEER_*`.
    pub(crate) peer_flags: u32,
    /// The process that made it exportable: what is reserved and pinned counts for it.
    pub(crate) owner: Option<ARef<Task>>,
    /// What a cgroup is charged for the slots that are promised to it.
    pub(crate) charge: Option<Charge>,
    /// Importers that pin the object where it is.
    pub(crate) pins: u32,
    /// Mappings that importers hold.
    pub(crate) mappings: u32,
    /// Those of them that hold slots.
    pub(crate) aperture_mappings: u32,
    /// Those of them that were made by user address. Such importers are told by a zap.
    pub(crate) vma_mappings: u32,
    /// While importers are told: what they have given back meanwhile.
    pub(crate) given_back: Option<KVec<Mapping>>,
    /// When the newest of those was made, of all that there were.
    pub(crate) last_map: Option<LastMap>,
    /// Times that importers were told to let go of a mapping.
    pub(crate) invalidations: u64,
    /// Mappings given to importers through the aperture.
    pub(crate) peer_maps: u64,
    /// Mappings given to importers in system memory.
    pub(crate) system_maps: u64,
    /// Times that the object was moved to system memory because an importer got no slots.
    pub(crate) fall_backs: u64,
    /// Times that an importer was refused.
    pub(crate) refusals: u64,
    /// Whether it may leave VRAM, and has.
    pub(crate) eviction: Eviction,
    /// Times that its bytes were lost, as the engine failed.
    pub(crate) losses: u64,
    /// Its bytes are still to come to where it is.
    pub(crate) arrival: Option<Arrival>,
}

impl State {
    pub(crate) fn has_flag(&self, flag: u32) -> bool {
        self.peer_flags & flag != 0
    }

    /// Whether importers keep the object in VRAM.
    pub(crate) fn is_pinned_in_vram(&self) -> bool {
        self.pins != 0 && self.placement.kind() == Some(PlacementKind::Vram)
    }

    /// Whether the object is promised slots for all its pages.
    pub(crate) fn is_promised(&self) -> bool {
        self.has_flag(uapi::P2PGPU_PEER_RESERVE) || self.is_pinned_in_vram()
    }
}

/// The importers that are attached to an object.
#[derive(Default)]
pub(crate) struct Importers {
    /// The dma-bufs of the object that have importers: that of the whole, and those of ranges. The
    /// core forgets that of an object that has lost its last handle, but importers still have to
    /// be told.
    dmabufs: KVec<Imported>,
    last_id: u64,
    /// The devices of the importers, one for each attachment and each mapping by user address.
    pub(crate) devices: KVec<ARef<device::Device>>,
    /// Attachments that can be given system memory only.
    pub(crate) without_slots: u32,
}

struct Imported {
    /// Names the dma-buf, in the order of their coming.
    id: u64,
    dmabuf: ARef<DmaBuf>,
    /// How many importers are attached to it.
    count: u32,
}

impl Importers {
    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        self.dmabufs.iter().map(|imported| imported.count).sum()
    }

    /// Adds one, whose device `device` is attached to `dmabuf`, and returns what names that.
    /// `is_peer`: it can be given slots.
    pub(crate) fn add(
        &mut self,
        dmabuf: &DmaBuf,
        device: &device::Device,
        is_peer: bool,
    ) -> Result<u64> {
        self.add_device(device)?;
        let id = self
            .add_dmabuf(dmabuf)
            .inspect_err(|_| self.remove_device(device))?;
        self.without_slots += u32::from(!is_peer);
        Ok(id)
    }

    fn add_dmabuf(&mut self, dmabuf: &DmaBuf) -> Result<u64> {
        for imported in &mut self.dmabufs {
            if core::ptr::eq(&*imported.dmabuf, dmabuf) {
                imported.count = imported.count.checked_add(1).ok_or(EOVERFLOW)?;
                return Ok(imported.id);
            }
        }
        self.last_id += 1;
        let imported = Imported {
            id: self.last_id,
            dmabuf: dmabuf.into(),
            count: 1,
        };
        self.dmabufs.push(imported, GFP_KERNEL)?;
        Ok(self.last_id)
    }

    /// Takes one away, whose device `device` was attached to dma-buf `id`, which is returned if it
    /// was the last.
    pub(crate) fn remove(
        &mut self,
        id: u64,
        device: &device::Device,
        is_peer: bool,
    ) -> Option<ARef<DmaBuf>> {
        self.without_slots = self.without_slots.saturating_sub(u32::from(!is_peer));
        self.remove_device(device);
        let index = self.dmabufs.iter().position(|imported| imported.id == id)?;
        let imported = self.dmabufs.get_mut(index)?;
        imported.count = imported.count.saturating_sub(1);
        if imported.count != 0 {
            return None;
        }
        let imported = self.dmabufs.remove(index).ok()?;
        Some(imported.dmabuf)
    }

    /// Adds the device of an importer.
    pub(crate) fn add_device(&mut self, device: &device::Device) -> Result {
        Ok(self.devices.push(device.into(), GFP_KERNEL)?)
    }

    /// Takes the device of an importer away; others may keep it.
    pub(crate) fn remove_device(&mut self, device: &device::Device) {
        let place = self
            .devices
            .iter()
            .position(|d| core::ptr::eq(&**d, device));
        let _device = place.and_then(|place| self.devices.remove(place).ok());
    }

    /// The first dma-buf after `id`.
    pub(crate) fn after(&self, id: u64) -> Option<(u64, ARef<DmaBuf>)> {
        // They are in the order of their ids.
        let next = self.dmabufs.iter().find(|imported| imported.id > id)?;
        Some((next.id, next.dmabuf.clone()))
    }
}

/// How a fault ended.
enum Faulted {
    As(Outcome),
    /// Peers hold the slots that are to let go of them: try again after this time.
    NotYet(Delta),
    /// The bytes are not there yet: try again when this has signalled.
    Arriving(ARef<Fence>),
}

/// The driver's part of a GEM object.
#[pin_data]
pub(crate) struct Bo {
    /// Changed with the reservation lock held; the mutex is never held over a call to importers.
    #[pin]
    pub(crate) state: Mutex<State>,
    #[pin]
    pub(crate) importers: Mutex<Importers>,
    /// Orders the objects of a device by their last use.
    pub(crate) last_use: Atomic<u64>,
    /// See [`mmap_offset`]; 0 until it is asked for.
    mmap_offset: Atomic<u64>,
    /// Who pays for its memory outside VRAM, whoever moves it there: the cgroup of its creator.
    payer: Payer,
}

impl Bo {
    /// The placement of this moment.
    pub(crate) fn placement(&self) -> Placement {
        self.state.lock().placement.clone()
    }
}

/// The object's first mmap offset, which names it: never 0, and always the same.
pub(crate) fn mmap_offset(obj: &Object) -> Result<u64> {
    match obj.mmap_offset.load(Relaxed) {
        0 => {
            let offset = obj.create_mmap_offset()?;
            obj.mmap_offset.store(offset, Relaxed);
            Ok(offset)
        }
        offset => Ok(offset),
    }
}

/// The pages of `vram`, which are the object's, with their names in the aperture.
pub(crate) fn named<'a>(obj: &Object, vram: &'a VramPages) -> Result<NamedPages<'a>> {
    let first = u32::try_from(mmap_offset(obj)? >> SLOT_SHIFT)?;
    Ok(NamedPages {
        names: Names(first),
        vram,
    })
}

/// Number of pages of the object.
pub(crate) fn page_count(obj: &Object) -> Result<u32> {
    Ok(u32::try_from(obj.size() >> SLOT_SHIFT)?)
}

/// Bytes of so many slots.
pub(crate) fn slot_bytes(count: u32) -> u64 {
    u64::from(count) << SLOT_SHIFT
}

impl gem::DriverObject for Bo {
    type Driver = DrmDriver;
    type Args = Placement;

    fn new(dev: &DrmDevice, _size: usize, placement: Placement) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            state <- new_mutex!(State {
                placement,
                peer_flags: 0,
                owner: None,
                charge: None,
                pins: 0,
                mappings: 0,
                aperture_mappings: 0,
                vma_mappings: 0,
                given_back: None,
                last_map: None,
                invalidations: 0,
                peer_maps: 0,
                system_maps: 0,
                fall_backs: 0,
                refusals: 0,
                eviction: Eviction::default(),
                losses: 0,
                arrival: None,
            }, "p2pgpu::gem::state"),
            importers <- new_mutex!(Importers::default(), "p2pgpu::gem::importers"),
            last_use: Atomic::new(0),
            mmap_offset: Atomic::new(0),
            payer: Payer::current(),
        }? Error)
        .pin_chain(|_| {
            // An object without memory is none: `free` is not called for it.
            dev.object_count(1);
            Ok(())
        })
    }
}

impl managed::Backing for Bo {
    type VmaExporter = Self;

    fn fault(obj: &Object, dev: &DrmDevice<Registered>, page: usize, fault: &Fault<'_>) -> Outcome {
        let handle = || {
            let guard = obj.resv().lock_interruptible()?;
            if let Some(fence) = evict::arriving(obj) {
                return Ok(Faulted::Arriving(fence));
            }
            match obj.placement() {
                Placement::System(pages) => {
                    let pfn = pages.pfn(page).ok_or(EINVAL)?;
                    // SAFETY: The page is the object's, to which the mapping holds a reference,
                    // until migration zaps it under the lock that we hold.
                    Ok(Faulted::As(unsafe { fault.insert_pfn(pfn) }))
                }
                // The exporter's mappings do not come here.
                Placement::Imported(_) => Err(EINVAL),
                Placement::Vram(vram) => {
                    dev.activity.cpu_faults.up();
                    evict::used(obj);
                    let pages = named(obj, &vram)?;
                    let mut victims = Victims::new(obj, Some(guard.held()), Patience::Grace);
                    dev.registration_data_with(|gpu| loop {
                        match dev.aperture.fault(dev, gpu, pages, page, fault) {
                            Ok(outcome) => return Ok(Faulted::As(outcome)),
                            Err(NotShown::Failed(error)) => return Err(error),
                            Err(NotShown::Lent) => {}
                        }
                        match victims.tell_next() {
                            Told::One => {}
                            // Those who hold them map or unmap at this moment, or unmap late.
                            Told::Nobody | Told::Contended => {
                                return Ok(Faulted::NotYet(CONTENTION));
                            }
                            Told::Wait(time) => return Ok(Faulted::NotYet(time)),
                        }
                    })
                }
            }
        };
        match handle() {
            Ok(Faulted::As(outcome)) => outcome,
            Ok(Faulted::NotYet(time)) => {
                // The task comes back, unless a signal ends it.
                fsleep(time);
                Outcome::Retry
            }
            Ok(Faulted::Arriving(fence)) => {
                // As above; not for long, as the lock of the mappings is held.
                let _ = fence.wait_interruptible(msecs_to_jiffies(LOOK_MS));
                Outcome::Retry
            }
            Err(error) => error.into(),
        }
    }

    fn export(obj: &Object) -> Result {
        if !obj.state.lock().has_flag(uapi::P2PGPU_PEER_EXPORTABLE) {
            return Err(refuse(obj, Reason::NotFlagged));
        }
        Ok(())
    }

    fn import(dev: &DrmDevice<Registered>, dmabuf: &DmaBuf) -> Result<ARef<Object>> {
        dev.check_open()?;
        dev.registration_data_with(|gpu| {
            let import = import::attach(gpu, dmabuf)?;
            let placement = Placement::Imported(import.clone());
            Object::imported(dev, dmabuf.into(), placement)
                .inspect_err(|_| import::detach(gpu, &import))
        })
    }

    fn free(obj: &Object) {
        evict::forget(obj);
        let reserved = obj.state.lock().has_flag(uapi::P2PGPU_PEER_RESERVE);
        // Nobody pins it any more.
        if reserved {
            // It fails only for a size that no object has.
            let _ = peer::unreserve(obj);
        }
        match obj.placement() {
            Placement::System(_) => {}
            Placement::Vram(vram) => release_slots(obj, &vram),
            // Without the device it is detached already, or is just being.
            Placement::Imported(import) => with_gpu(obj, |gpu| {
                if let Some(gpu) = gpu {
                    import::detach(gpu, &import);
                }
            }),
        }
        obj.dev().object_count(-1);
    }
}

/// The pages of `vram` no longer belong to the object: so do their slots.
///
/// An error is one of the device: its slots are lost then, until it is bound again.
pub(crate) fn release_slots(obj: &Object, vram: &VramPages) {
    let released = with_gpu(obj, |gpu| {
        obj.dev().aperture.release(gpu, named(obj, vram)?)
    });
    report_lost_slots(released);
}

/// Says once that slots are lost, if `released` is an error.
pub(crate) fn report_lost_slots(released: Result) {
    if let Err(error) = released {
        kernel::pr_err_once!("slots are lost: {error:?}\n");
    }
}

/// Runs `f` with the hardware, or without when the device is gone.
pub(crate) fn with_gpu<R>(obj: &Object, f: impl FnOnce(Option<&Gpu<'_>>) -> R) -> R {
    match obj.ioctl_dev().registration_guard() {
        Some(dev) => dev.registration_data_with(|gpu| f(Some(gpu))),
        None => f(None),
    }
}

/// The bytes `offset` to `offset + size` of an object; `EINVAL` if they are none, or past its end.
pub(crate) fn byte_range(obj: &Object, offset: u64, size: u64) -> Result<Range<u64>> {
    let end = offset.checked_add(size).ok_or(EINVAL)?;
    if size == 0 || end > u64::try_from(obj.size())? {
        return Err(EINVAL);
    }
    Ok(offset..end)
}

const _: () = assert!(SLOT_SIZE == kernel::page::PAGE_SIZE);

/// The object behind a handle, if it is one of this driver's own. `EOPNOTSUPP`: it is imported.
pub(crate) fn lookup_own(file: &drm::File<crate::file::File>, handle: u32) -> Result<ARef<Object>> {
    let obj = lookup(file, handle)?;
    match obj.placement() {
        Placement::Imported(_) => Err(EOPNOTSUPP),
        Placement::System(_) | Placement::Vram(_) => Ok(obj),
    }
}

/// The object behind a handle.
pub(crate) fn lookup(file: &drm::File<crate::file::File>, handle: u32) -> Result<ARef<Object>> {
    Object::lookup_handle(file, handle)
}

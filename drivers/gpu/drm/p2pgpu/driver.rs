// SPDX-License-Identifier: GPL-2.0

//! Probe and unbind: what belongs to the DRM device, and what to the bound PCI device.

use crate::{
    activity::Activity,
    aperture::Aperture,
    cgroup::Regions,
    debugfs::DebugFiles,
    evict::Evictables,
    file::File,
    gem::{
        self,
        Object, //
    },
    import::Imports,
    kick::Kick,
    limits::Limits,
    mapping::{
        self,
        Mapping, //
    },
    patience::Patience,
    policy::SharedPolicy,
    pressure::{
        Grace,
        LastMap, //
    },
    refusal::Refusals,
    regs::{
        self,
        Bar, //
    },
    removal,
    ring::{
        Completions,
        Handler,
        Ring,
        RingId, //
    },
    scheduler::Scheduler,
    settings::Settings,
    slots::SlotId,
    table::PageTable,
    vram::Vram, //
};
use kernel::{
    device,
    dma::{
        Device as _,
        DmaMask, //
    },
    drm::{
        self,
        ioctl,
        RegisteredRef, //
    },
    io::{
        poll::read_poll_timeout,
        Io,
        PhysAddr, //
    },
    new_mutex,
    pci::{
        self,
        p2pdma::Provider,
        MsixHandlers, //
    },
    prelude::*,
    sizes::SizeConstants,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Arc,
        Mutex, //
    },
    time::Delta, //
};

/// The DRM driver.
pub(crate) struct DrmDriver;

/// A DRM device of this driver.
pub(crate) type DrmDevice<Ctx = drm::Normal> = drm::Device<DrmDriver, Ctx>;

/// What lives as long as the DRM device: files, objects and importers can outlive the hardware.
#[pin_data]
pub(crate) struct DrmData {
    #[pin]
    pub(crate) aperture: Aperture,
    pub(crate) vram: Vram,
    objects: Atomic<usize>,
    /// Mappings in system memory that importers hold, of all objects.
    system_mappings: Atomic<u64>,
    /// Pages of the objects flagged for a reservation.
    reserved: Atomic<u32>,
    /// Peer mappings made through the aperture.
    turn: Atomic<u64>,
    /// Those of them that importers have undone.
    peer_unmaps: Atomic<u64>,
    /// How often peers were refused.
    pub(crate) refusals: Refusals,
    /// What has happened so far.
    pub(crate) activity: Activity,
    /// What importers pin, and may pin.
    #[pin]
    pub(crate) pins: Limits,
    /// What is reserved, and may be.
    #[pin]
    pub(crate) reservations: Limits,
    /// Which devices may be importers.
    #[pin]
    pub(crate) policy: SharedPolicy,
    /// How long peers are left alone with what they mapped.
    pub(crate) grace: Grace,
    /// How long the device may take for its answers.
    pub(crate) patience: Arc<Patience>,
    /// Objects that may leave VRAM.
    #[pin]
    pub(crate) evictables: Evictables,
    /// Held while slots for a promise are found.
    #[pin]
    pub(crate) promising: Mutex<()>,
    /// Whether importers are given anything: one of [`DrmData::OPEN`] and so on.
    door: Atomic<u32>,
    /// Objects with importers, once for each attachment and each mapping by user address.
    attached: Pin<KBox<Mutex<KVec<ARef<Object>>>>>,
    /// Mappings that were undone while accesses through them went on.
    #[pin]
    lost: Mutex<KVec<Mapping>>,
}

impl DrmData {
    const OPEN: u32 = 0;
    const RESETTING: u32 = 1;
    const GIVEN_UP: u32 = 2;
    const LEFT: u32 = 3;

    /// Objects that exist.
    pub(crate) fn objects(&self) -> usize {
        self.objects.load(Relaxed)
    }

    /// Counts an object that is made (1) or freed (-1).
    pub(crate) fn object_count(&self, change: isize) {
        self.objects.fetch_add(change.cast_unsigned(), Relaxed);
    }

    /// Counts a mapping in system memory that an importer is given (1) or has given back (-1).
    pub(crate) fn system_mapping_count(&self, change: i64) {
        self.system_mappings
            .fetch_add(change.cast_unsigned(), Release);
    }

    /// Pages of the objects flagged for a reservation.
    pub(crate) fn reserved(&self) -> u32 {
        self.reserved.load(Relaxed)
    }

    /// Counts an object that is flagged for a reservation, or no longer.
    pub(crate) fn reserved_count(&self, obj: &Object, is: bool) {
        // Objects are never larger than this counts.
        let pages = gem::page_count(obj).unwrap_or(0);
        let change = if is { pages } else { pages.wrapping_neg() };
        self.reserved.fetch_add(change, Relaxed);
    }

    /// Peer mappings made through the aperture so far.
    pub(crate) fn peer_maps(&self) -> u64 {
        self.turn.load(Relaxed)
    }

    /// Those of them that importers have undone.
    pub(crate) fn peer_unmaps(&self) -> u64 {
        self.peer_unmaps.load(Relaxed)
    }

    /// Counts a peer mapping, and marks it as made now.
    pub(crate) fn peer_mapped(&self) -> LastMap {
        // From 1.
        LastMap::now(self.turn.fetch_add(1, Relaxed).saturating_add(1))
    }

    /// Counts a peer mapping that was undone: its slots have been given back.
    pub(crate) fn peer_unmapped(&self) {
        self.peer_unmaps.fetch_add(1, Release);
    }

    /// Mappings that importers hold.
    pub(crate) fn mappings(&self) -> u64 {
        // What is made between the two looks counts, what is undone may.
        let unmaps = self.peer_unmaps.load(Acquire);
        let peers = self.peer_maps().saturating_sub(unmaps);
        peers.saturating_add(self.system_mappings.load(Acquire))
    }

    /// From now on importers are not given anything any more.
    pub(crate) fn leave(&self) {
        self.door.store(Self::LEFT, Release);
    }

    /// A reset begins: importers are not given anything for as long as it takes.
    pub(crate) fn reset_begins(&self) {
        self.change_door(Self::OPEN, Self::RESETTING);
        // It may mend what one before has not.
        self.change_door(Self::GIVEN_UP, Self::RESETTING);
    }

    /// A reset is over. If the device has not come back, importers are not given anything until
    /// another one has ended better.
    pub(crate) fn reset_ends(&self, came_back: bool) {
        let to = match came_back {
            true => Self::OPEN,
            false => Self::GIVEN_UP,
        };
        self.change_door(Self::RESETTING, to);
    }

    fn change_door(&self, from: u32, to: u32) {
        // Who leaves does not come back.
        let _ = self.door.cmpxchg(from, to, Full);
    }

    /// `ENODEV`: the device is being unbound. `EAGAIN`: it is being reset. `EIO`: it did not come
    /// back from a reset.
    pub(crate) fn check_open(&self) -> Result {
        match self.door.load(Acquire) {
            Self::OPEN => Ok(()),
            Self::RESETTING => Err(EAGAIN),
            Self::GIVEN_UP => Err(EIO),
            _ => Err(ENODEV),
        }
    }

    /// An importer has attached to `obj`, or mapped it by user address.
    pub(crate) fn attached(&self, obj: &Object) -> Result {
        Ok(self.attached.lock().push(obj.into(), GFP_KERNEL)?)
    }

    /// Calls `each` with the objects that have importers, some more than once. None of them is
    /// freed meanwhile.
    pub(crate) fn for_each_attached(&self, mut each: impl FnMut(&ARef<Object>)) {
        for obj in &*self.attached.lock() {
            each(obj);
        }
    }

    /// Keeps the slots of a mapping, and the pages that they show, from everybody else for as long
    /// as the DRM device lives.
    pub(crate) fn lose(&self, mapping: Mapping) {
        // Memory may leak, but not be shown to somebody else.
        if let Some(mapping) = mapping::keep(&mut self.lost.lock(), mapping) {
            core::mem::forget(mapping);
        }
    }

    /// As [`DrmData::for_each_attached`], but `each` may sleep for long, and importers come and go
    /// meanwhile: those that were there and stay are seen.
    pub(crate) fn for_each_attached_unlocked(&self, mut each: impl FnMut(&Object)) {
        // From the end: importers that detach meanwhile move others towards the start only.
        let mut left = self.attached.lock().len();
        while let Some(index) = left.checked_sub(1) {
            left = index;
            let obj = self.attached.lock().get(index).cloned();
            if let Some(obj) = obj {
                each(&obj);
            }
        }
    }

    /// An importer has detached from `obj`, or undone such a mapping.
    pub(crate) fn detached(&self, obj: &Object) {
        let mut attached = self.attached.lock();
        let found = attached
            .iter()
            .position(|other| core::ptr::eq(&**other, obj));
        let removed = found.and_then(|index| attached.remove(index).ok());
        drop(attached);
        drop(removed);
    }
}

/// The hardware, while the device is bound and registered.
#[pin_data]
pub(crate) struct Gpu<'drm> {
    pdev: &'drm pci::Device<device::Bound>,
    // Dropped before the ring whose work uses them.
    #[pin]
    pub(crate) imports: Imports,
    /// Copies, fills and checksums.
    #[pin]
    pub(crate) engine_ring: Ring<'drm>,
    /// Flushes.
    #[pin]
    pub(crate) aperture_ring: Ring<'drm>,
    // Dropped after the ring, which uses the memory of its jobs.
    #[pin]
    pub(crate) scheduler: Scheduler<'drm>,
    pub(crate) table: PageTable,
    pub(crate) provider: Provider<'drm>,
    /// What is charged to cgroups.
    pub(crate) cgroups: Regions,
    /// The aperture is in mapped mode.
    pub(crate) mapped: bool,
    pub(crate) bar: Arc<Bar<'drm>>,
    /// Interrupts for the device's fault log.
    pub(crate) fault_interrupts: Arc<Atomic<u64>>,
    // Dropped after the rings, whose commands end with an interrupt.
    _irqs: MsixHandlers<'drm, Handler>,
}

impl<'drm> Gpu<'drm> {
    /// The device that does DMA.
    pub(crate) fn dev(&self) -> &device::Device<device::Bound> {
        self.pdev.as_ref()
    }

    /// As [`Gpu::dev`], for what is mapped until the device goes.
    pub(crate) fn bound(&self) -> &'drm device::Device<device::Bound> {
        self.pdev.as_ref()
    }

    /// Brings the device, which has been reset by others, to where [`Gpu::new`] had it.
    pub(crate) fn start_again(&self, dev: &DrmDevice) -> Result {
        reset(self.pdev, &self.bar, dev.patience.reset())?;
        self.bar
            .try_write_reg(regs::PT_ROOT::zeroed().with_address(self.table.root()))?;
        self.engine_ring.resume()?;
        self.aperture_ring.resume()?;
        // Last: whoever waits for it flushes.
        dev.aperture.resume(self)
    }

    /// After a reset that has failed: the device is kept off the bus, and `EIO` for whoever asks,
    /// until another reset ends or the device is bound again.
    pub(crate) fn give_up(&self, aperture: &Aperture) {
        cut_off(self.pdev);
        aperture.give_up();
        self.engine_ring.give_up();
        self.aperture_ring.give_up();
    }

    /// Physical address of a slot.
    pub(crate) fn aperture_phys(&self, slot: SlotId) -> Result<PhysAddr> {
        self.provider.phys(u64::from(slot) << regs::SLOT_SHIFT)
    }

    fn new(
        pdev: &'drm pci::Device<device::Bound>,
        bar: Arc<Bar<'drm>>,
        vram: u64,
        slots: usize,
        patience: Arc<Patience>,
        kick: Arc<Kick>,
    ) -> impl PinInit<Self, Error> + use<'drm> {
        pin_init::pin_init_scope(move || {
            let dev: &'drm device::Device<device::Bound> = pdev.as_ref();
            let job_patience = patience.clone();
            let table = PageTable::new(dev, slots)?;
            bar.try_write_reg(regs::PT_ROOT::zeroed().with_address(table.root()))?;

            let engine = Completions::new(dev)?;
            let aperture = Completions::new(dev)?;
            let fault_interrupts = Arc::new(Atomic::new(0), GFP_KERNEL)?;
            let mut handlers = KVec::with_capacity(3, GFP_KERNEL)?;
            handlers.push(Handler::Ring(engine.clone()), GFP_KERNEL)?;
            handlers.push(Handler::Ring(aperture.clone()), GFP_KERNEL)?;
            handlers.push(Handler::Fault(fault_interrupts.clone()), GFP_KERNEL)?;
            // SAFETY: The handlers are a field of the data of the registration, which is dropped
            // at unbind.
            let irqs = unsafe { MsixHandlers::new(pdev, c"p2pgpu", handlers)? };

            Ok(try_pin_init!(Self {
                pdev,
                imports <- Imports::new(),
                engine_ring <- Ring::new(
                    pdev,
                    bar.clone(),
                    RingId::Engine,
                    engine,
                    patience.clone(),
                ),
                aperture_ring <- Ring::new(
                    pdev,
                    bar.clone(),
                    RingId::Aperture,
                    aperture,
                    patience,
                ),
                scheduler <- Scheduler::new(kick, job_patience)?,
                table,
                provider: Provider::new(pdev, regs::BAR_APERTURE)?,
                cgroups: Regions::new(
                    dev.name(),
                    vram,
                    u64::try_from(slots)? << regs::SLOT_SHIFT,
                )?,
                mapped: bar.read(regs::FEATURES).mapped(),
                fault_interrupts,
                _irqs: irqs,
                bar,
            }? Error))
        })
    }
}

/// The PCI driver.
pub(crate) struct P2pGpu;

/// What belongs to the binding.
pub(crate) struct BoundData<'bound> {
    // Dropped first: these files use the device.
    _debugfs: DebugFiles,
    _settings: Settings<'bound>,
    registration: drm::Registration<'bound, DrmDriver>,
    _entry: removal::Entry,
}

kernel::pci_device_table!(
    PCI_TABLE,
    <P2pGpu as pci::Driver>::IdInfo,
    [(
        pci::DeviceId::from_id(pci::Vendor::from_raw(regs::VENDOR_ID), regs::DEVICE_ID),
        ()
    )]
);

/// Keeps a device that does not stop from the bus: it reaches no memory any more.
pub(crate) fn cut_off(pdev: &pci::Device<device::Bound>) {
    pdev.config_space()
        .update(regs::PCI_COMMAND, |command| command.with_bus_master(false));
}

/// Checks that this is our device, and brings it into a known state.
fn reset(pdev: &pci::Device<device::Bound>, bar: &Bar<'_>, most: Delta) -> Result {
    let id = u32::from(bar.read(regs::ID).magic());
    let version = bar.read(regs::VERSION);
    if id != regs::ID_MAGIC || u32::from(version.major()) != regs::VERSION_MAJOR {
        dev_err!(
            pdev,
            "unknown device: id {id:#x}, version {}\n",
            u32::from(version.major())
        );
        return Err(ENODEV);
    }
    bar.write_reg(regs::CONTROL::zeroed().with_reset(true));
    read_poll_timeout(
        || Ok(bar.read(regs::STATUS)),
        |status| status.ready() && !status.resetting(),
        Delta::from_micros(500),
        most,
    )
    .inspect_err(|_| dev_err!(pdev, "reset does not end\n"))?;
    Ok(())
}

/// The sizes that the device states: VRAM in bytes, and slots of the aperture.
fn sizes(pdev: &pci::Device<device::Bound>, bar: &Bar<'_>) -> Result<(u64, usize)> {
    let vram: u64 = bar.try_read(regs::VRAM_SIZE)?.bytes().into();
    let aperture: u64 = bar.try_read(regs::APERTURE_SIZE)?.bytes().into();
    let bar_size = pdev.resource_len(regs::BAR_APERTURE)?;
    let whole_pages = vram.is_multiple_of(u64::try_from(regs::SLOT_SIZE)?);
    let sane = whole_pages
        && (1..=1024 * u64::SZ_1G).contains(&vram)
        && aperture.is_power_of_two()
        && (u64::SZ_4K..=4 * u64::SZ_1G).contains(&aperture)
        && aperture == bar_size;
    if !sane {
        dev_err!(
            pdev,
            "bad sizes: VRAM {vram:#x}, aperture {aperture:#x}, BAR {bar_size:#x}\n"
        );
        return Err(ENODEV);
    }
    Ok((vram, usize::try_from(aperture)? >> regs::SLOT_SHIFT))
}

impl pci::Driver for P2pGpu {
    type IdInfo = ();
    type Data<'bound> = BoundData<'bound>;
    const ID_TABLE: pci::IdTable<Self::IdInfo> = &PCI_TABLE;

    fn probe<'bound>(
        pdev: &'bound pci::Device<device::Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        removal::check(pdev)?;
        pdev.enable_device_mem()?;
        // SAFETY: Nobody does DMA yet: the device is being probed.
        unsafe { pdev.dma_set_mask_and_coherent(DmaMask::new::<64>())? };
        // SAFETY: As above.
        unsafe { pdev.dma_set_max_seg_size(u32::MAX) };

        let bound: &'bound pci::Device<device::Bound> = pdev;
        let bar = bound.iomap_region_sized(regs::BAR_REGS, c"p2pgpu")?;
        let bar = Arc::new(bar, GFP_KERNEL)?;
        let patience = Patience::new()?;
        reset(bound, &bar, patience.reset())?;
        // Not before: what the device was at has ended.
        pdev.set_master();
        let (vram_size, slots) = sizes(bound, &bar)?;

        let shared_patience = patience.clone();
        let data = try_pin_init!(DrmData {
            aperture <- Aperture::new(slots),
            vram: Vram::new(vram_size)?,
            objects: Atomic::new(0),
            system_mappings: Atomic::new(0),
            reserved: Atomic::new(0),
            turn: Atomic::new(0),
            peer_unmaps: Atomic::new(0),
            refusals: Refusals::new(),
            activity: Activity::new(),
            pins <- Limits::of_pins(u32::try_from(slots)?),
            reservations <- Limits::of_reservations(),
            policy <- SharedPolicy::new(),
            grace: Grace::new(),
            patience: shared_patience,
            evictables <- Evictables::new(),
            promising <- new_mutex!((), "p2pgpu::driver::promising"),
            door: Atomic::new(DrmData::OPEN),
            attached: KBox::pin_init(
                new_mutex!(KVec::new(), "p2pgpu::driver::attached"),
                GFP_KERNEL,
            )?,
            lost <- new_mutex!(KVec::new(), "p2pgpu::driver::lost"),
        }? Error);
        let drm = drm::UnregisteredDevice::<DrmDriver>::new(pdev, data)?;
        let entry = removal::Entry::new(bound, &drm)?;
        let kick = Kick::new()?;
        let gpu = Gpu::new(bound, bar, vram_size, slots, patience, kick.clone());
        // SAFETY: The registration is a field of the data of the binding, which is dropped at
        // unbind.
        let registration = unsafe { drm::Registration::new(bound.as_ref(), drm, gpu, 0)? };

        let dev: &'bound device::Device<device::Bound> = bound.as_ref();
        let drm = || RegisteredRef::new(&registration);
        kick.connect(drm())?;
        Ok(BoundData {
            _debugfs: DebugFiles::new(bound, drm)?,
            _settings: Settings::new(dev, drm)?,
            registration,
            _entry: entry,
        })
    }

    /// Takes back what importers have, while the hardware still answers.
    fn unbind<'bound>(pdev: &'bound pci::Device<device::Core<'_>>, this: Pin<&Self::Data<'bound>>) {
        let dev = RegisteredRef::new(&this.registration);
        removal::unbind(pdev, &dev);
    }

    fn reset_prepare<'bound>(
        pdev: &'bound pci::Device<device::Core<'_>>,
        this: Pin<&Self::Data<'bound>>,
    ) {
        removal::before_reset(pdev, &RegisteredRef::new(&this.registration));
    }

    fn reset_done<'bound>(
        pdev: &'bound pci::Device<device::Core<'_>>,
        this: Pin<&Self::Data<'bound>>,
    ) {
        removal::after_reset(pdev, &RegisteredRef::new(&this.registration));
    }
}

#[vtable]
impl drm::Driver for DrmDriver {
    type Data = DrmData;
    type RegistrationData<'drm> = Gpu<'drm>;
    type File = File;
    type Object = Object;
    type ParentDevice<Ctx: device::DeviceContext> = pci::Device<Ctx>;

    const INFO: drm::DriverInfo = drm::DriverInfo {
        major: 1,
        minor: 0,
        patchlevel: 0,
        name: c"p2pgpu",
        desc: c"Virtual GPU with a paged PCI aperture",
    };
    const FEAT_RENDER: bool = true;
    const FEAT_SYNCOBJ: bool = true;

    kernel::declare_drm_ioctls! {
        (P2PGPU_GETPARAM, drm_p2pgpu_getparam, ioctl::RENDER_ALLOW, File::getparam),
        (P2PGPU_GEM_CREATE, drm_p2pgpu_gem_create, ioctl::RENDER_ALLOW, File::gem_create),
        (P2PGPU_GEM_MMAP_OFFSET, drm_p2pgpu_gem_mmap_offset, ioctl::RENDER_ALLOW, File::gem_mmap_offset),
        (P2PGPU_GEM_INFO, drm_p2pgpu_gem_info, ioctl::RENDER_ALLOW, File::gem_info),
        (P2PGPU_GEM_SET_PEER, drm_p2pgpu_gem_set_peer, ioctl::RENDER_ALLOW, File::gem_set_peer),
        (P2PGPU_PEER_QUERY, drm_p2pgpu_peer_query, ioctl::RENDER_ALLOW, File::peer_query),
        (P2PGPU_GEM_MOVE, drm_p2pgpu_gem_move, ioctl::RENDER_ALLOW, File::gem_move),
        (P2PGPU_GEM_COPY, drm_p2pgpu_gem_copy, ioctl::RENDER_ALLOW, File::gem_copy),
        (P2PGPU_GEM_CHECKSUM, drm_p2pgpu_gem_checksum, ioctl::RENDER_ALLOW, File::gem_checksum),
        (P2PGPU_GEM_EXPORT_RANGE, drm_p2pgpu_gem_export_range, ioctl::RENDER_ALLOW, File::gem_export_range),
        (P2PGPU_CONTEXT_CREATE, drm_p2pgpu_context_create, ioctl::RENDER_ALLOW, File::context_create),
        (P2PGPU_CONTEXT_DESTROY, drm_p2pgpu_context_destroy, ioctl::RENDER_ALLOW, File::context_destroy),
        (P2PGPU_CONTEXT_QUERY, drm_p2pgpu_context_query, ioctl::RENDER_ALLOW, File::context_query),
        (P2PGPU_SUBMIT, drm_p2pgpu_submit, ioctl::RENDER_ALLOW, File::submit),
        (P2PGPU_GEM_MADVISE, drm_p2pgpu_gem_madvise, ioctl::RENDER_ALLOW, File::gem_madvise),
    }
}

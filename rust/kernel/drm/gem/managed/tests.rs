// SPDX-License-Identifier: GPL-2.0 OR MIT

//! KUnit tests of managed GEM objects, with a driver that has no hardware: its objects count how
//! they are called.

use super::*;
use crate::{
    device::{
        self,
        Bound, //
    },
    dma::DataDirection,
    dma_buf::{
        exporter::{
            ImporterInfo,
            Table, //
        },
        pages::Pages,
        resv::Held,
        tests::faux_device,
        DmaBuf, //
    },
    drm::{
        RegisteredRef,
        Registration,
        UnregisteredDevice, //
    },
    error::from_err_ptr,
    faux,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

#[cfg(CONFIG_P2P_VMA)]
mod peers;
mod sharing;

/// How often something happened.
struct Count(Atomic<i32>);

impl Count {
    const fn new() -> Self {
        Self(Atomic::new(0))
    }

    fn up(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    fn get(&self) -> i32 {
        self.0.load(Relaxed)
    }

    #[cfg(CONFIG_P2P_VMA)]
    fn set(&self, count: usize) {
        self.0.store(i32::try_from(count).unwrap_or(-1), Relaxed);
    }
}

/// An error that a callback shall end with, once it is set.
struct Policy(Atomic<i32>);

impl Policy {
    const fn new() -> Self {
        Self(Atomic::new(0))
    }

    fn set(&self, result: Result) {
        self.0
            .store(result.err().map_or(0, Error::to_errno), Relaxed);
    }

    fn check(&self) -> Result {
        crate::error::to_result(self.0.load(Relaxed))
    }
}

/// What happens to an object, and what shall.
struct Events {
    export: Policy,
    attach: Policy,
    map: Policy,
    /// By user address: an error, and pages that are left out.
    vma_map: Policy,
    vma_short: Count,
    vma_mapped: Count,
    vma_unmapped: Count,
    /// Pages of the newest of those: the first, and how many.
    vma_first: Count,
    vma_pages: Count,
    attached: Count,
    detached: Count,
    pinned: Count,
    unpinned: Count,
    mapped: Count,
    unmapped: Count,
    freed: Count,
    /// The importers seen by `attach` that can be told to let go, and that use peer memory.
    dynamic: Count,
    peers: Count,
    /// Unmapped mappings that were not the last one made.
    strange: Count,
}

impl Events {
    fn new() -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                export: Policy::new(),
                attach: Policy::new(),
                map: Policy::new(),
                vma_map: Policy::new(),
                vma_short: Count::new(),
                vma_mapped: Count::new(),
                vma_unmapped: Count::new(),
                vma_first: Count::new(),
                vma_pages: Count::new(),
                attached: Count::new(),
                detached: Count::new(),
                pinned: Count::new(),
                unpinned: Count::new(),
                mapped: Count::new(),
                unmapped: Count::new(),
                freed: Count::new(),
                dynamic: Count::new(),
                peers: Count::new(),
                strange: Count::new(),
            },
            GFP_KERNEL,
        )?)
    }
}

struct KunitDriver;
struct KunitFile;

#[pin_data]
struct KunitObject {
    events: Arc<Events>,
    pages: Arc<Pages>,
}

impl drm::file::DriverFile for KunitFile {
    type Driver = KunitDriver;

    fn open(_dev: &Device<KunitDriver>) -> Result<Pin<KBox<Self>>> {
        Ok(KBox::new(Self, GFP_KERNEL)?.into())
    }
}

#[vtable]
impl drm::Driver for KunitDriver {
    type Data = ();
    type RegistrationData<'a> = ();
    type File = KunitFile;
    type Object = Object<KunitObject>;
    type ParentDevice<Ctx: device::DeviceContext> = faux::Device<Ctx>;

    const INFO: drm::DriverInfo = drm::DriverInfo {
        major: 0,
        minor: 0,
        patchlevel: 0,
        name: c"kunit",
        desc: c"KUnit",
    };
    const IOCTLS: &'static [drm::ioctl::DrmIoctlDescriptor] = &[];
}

impl DriverObject for KunitObject {
    type Driver = KunitDriver;
    /// How the object is called goes to the first; the second is its number of pages.
    type Args = (Arc<Events>, usize);

    fn new(
        _dev: &Device<KunitDriver>,
        _size: usize,
        (events, count): Self::Args,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            events,
            pages: Arc::new(Pages::zeroed(count)?, GFP_KERNEL)?,
        })
    }
}

impl Exporter for KunitObject {
    type Source = Object<Self>;
    type Attachment = ();
    /// Number of the mapping, from 1.
    type Mapping = i32;
    type Kept = ();

    fn attach(source: &Object<Self>, importer: &ImporterInfo<'_>) -> Result {
        source.events.attach.check()?;
        source.events.attached.up();
        if importer.is_dynamic() && importer.can_be_invalidated() {
            source.events.dynamic.up();
        }
        if importer.is_peer() {
            source.events.peers.up();
        }
        Ok(())
    }

    fn detach(source: &Object<Self>, _data: &()) {
        source.events.detached.up();
    }

    fn pin(source: &Object<Self>, _: &ImporterInfo<'_>, _data: &(), held: Held<'_>) -> Result {
        held.check(source.resv())?;
        source.events.pinned.up();
        Ok(())
    }

    fn unpin(source: &Object<Self>, _data: &(), _held: Held<'_>) {
        source.events.unpinned.up();
    }

    fn map<'a>(
        source: &Object<Self>,
        importer: &'a ImporterInfo<'a>,
        _data: &(),
        held: Held<'_>,
        dir: DataDirection,
    ) -> Result<(Table<'a>, i32)> {
        held.check(source.resv())?;
        source.events.map.check()?;
        let table = importer.map_pages(source.pages.clone(), 0..source.pages.count(), dir)?;
        source.events.mapped.up();
        Ok((table, source.events.mapped.get()))
    }

    fn unmap(source: &Object<Self>, _data: &(), _held: Held<'_>, mapping: i32) -> Option<()> {
        source.events.unmapped.up();
        if mapping != source.events.mapped.get() {
            source.events.strange.up();
        }
        None
    }
}

impl Backing for KunitObject {
    #[cfg(CONFIG_P2P_VMA)]
    type VmaExporter = Self;

    fn fault(
        _obj: &Object<Self>,
        _dev: &Device<KunitDriver, Registered>,
        _page: usize,
        _fault: &Fault<'_>,
    ) -> Outcome {
        Outcome::Sigbus
    }

    fn export(obj: &Object<Self>) -> Result {
        obj.events.export.check()
    }

    fn import(
        dev: &Device<KunitDriver, Registered>,
        dmabuf: &DmaBuf,
    ) -> Result<ARef<Object<Self>>> {
        Object::imported(dev, dmabuf.into(), (Events::new()?, 1))
    }

    fn free(obj: &Object<Self>) {
        obj.events.freed.up();
    }
}

/// Exports pages of an object, which nobody gets to map.
struct KunitWindow;

impl Exporter for KunitWindow {
    type Source = Window<KunitObject>;
    type Attachment = ();
    type Mapping = ();
    type Kept = ();

    fn attach(_source: &Window<KunitObject>, _importer: &ImporterInfo<'_>) -> Result {
        Err(EPERM)
    }

    fn detach(_source: &Window<KunitObject>, _data: &()) {}

    fn pin(
        _source: &Window<KunitObject>,
        _importer: &ImporterInfo<'_>,
        _data: &(),
        _held: Held<'_>,
    ) -> Result {
        Err(EPERM)
    }

    fn unpin(_source: &Window<KunitObject>, _data: &(), _held: Held<'_>) {}

    fn map<'a>(
        _source: &Window<KunitObject>,
        _importer: &'a ImporterInfo<'a>,
        _data: &(),
        _held: Held<'_>,
        _dir: DataDirection,
    ) -> Result<(Table<'a>, ())> {
        Err(EPERM)
    }

    fn unmap(
        _source: &Window<KunitObject>,
        _data: &(),
        _held: Held<'_>,
        _mapping: (),
    ) -> Option<()> {
        None
    }
}

/// A registered DRM device.
struct Rig<'a> {
    registration: Registration<'a, KunitDriver>,
}

impl<'a> Rig<'a> {
    fn new(parent: &'a faux::Registration) -> Result<Self> {
        let parent: &'a faux::Device<Bound> = parent.as_ref();
        let drm = UnregisteredDevice::<KunitDriver>::new(parent, Ok(()))?;
        // SAFETY: The registration is dropped when the rig is.
        let registration =
            unsafe { Registration::new(parent.as_ref(), drm, Ok::<(), Error>(()), 0)? };
        Ok(Self { registration })
    }

    fn dev(&self) -> &Device<KunitDriver> {
        self.registration.device()
    }

    /// Makes an object of `size` bytes that has `pages` pages.
    fn object(
        &self,
        size: usize,
        pages: usize,
        events: &Arc<Events>,
    ) -> Result<ARef<Object<KunitObject>>> {
        let dev = RegisteredRef::new(&self.registration);
        let guard = dev.registration_guard().ok_or(ENODEV)?;
        Object::new(&guard, size, (events.clone(), pages))
    }

    /// Makes an object of two pages.
    fn small(&self, events: &Arc<Events>) -> Result<ARef<Object<KunitObject>>> {
        self.object(2 * PAGE_SIZE, 2, events)
    }
}

fn export(obj: &Object<KunitObject>) -> Result<ARef<DmaBuf>> {
    let flags = c_int::try_from(bindings::O_RDWR | bindings::O_CLOEXEC)?;
    // SAFETY: The object is valid.
    let raw = from_err_ptr(unsafe { Object::<KunitObject>::export_callback(obj.as_raw(), flags) })?;
    // SAFETY: The function returned a dma-buf and a reference to it.
    Ok(unsafe { ARef::from_raw(NonNull::new(raw).ok_or(EINVAL)?.cast()) })
}

/// Imports a dma-buf, as the PRIME ioctl does.
fn import(dev: &Device<KunitDriver>, dmabuf: &DmaBuf) -> Result<*mut bindings::drm_gem_object> {
    // SAFETY: The device and the buffer are valid; the tests register a device before.
    from_err_ptr(unsafe { Object::<KunitObject>::import_callback(dev.as_raw(), dmabuf.as_raw()) })
}

/// Releases of files, and thus of dma-bufs, are put off in kernel threads.
fn flush_releases() {
    // SAFETY: There are no requirements.
    unsafe { bindings::flush_delayed_fput() };
}

#[macros::kunit_tests(rust_drm_gem_managed)]
mod suite {
    use super::*;

    #[test]
    fn sizes() -> Result {
        let parent = faux_device()?;
        let rig = Rig::new(&parent)?;
        let events = Events::new()?;
        for size in [0, 1, PAGE_SIZE - 1, PAGE_SIZE + 1, usize::MAX] {
            assert_eq!(rig.object(size, 1, &events).err(), Some(EINVAL));
        }
        assert_eq!(events.freed.get(), 0);
        // The driver's constructor fails: there was no object.
        assert_eq!(rig.object(PAGE_SIZE, 0, &events).err(), Some(EINVAL));
        assert_eq!(events.freed.get(), 0);
        // There are no mmap offsets for so much.
        let size = 1 << (usize::BITS - 1);
        assert!(rig.object(size, 1, &events).is_err());
        assert_eq!(events.freed.get(), 1);

        let obj = rig.small(&events)?;
        assert_eq!(obj.size(), 2 * PAGE_SIZE);
        assert!(core::ptr::eq(obj.dev(), rig.dev()));
        drop(obj.clone());
        assert_eq!(events.freed.get(), 1);
        drop(obj);
        assert_eq!(events.freed.get(), 2);
        Ok(())
    }

    #[test]
    fn zap_ranges() -> Result {
        let parent = faux_device()?;
        let rig = Rig::new(&parent)?;
        let obj = rig.small(&Events::new()?)?;
        for range in [0..0, 0..1, 1..2, 0..2, 2..2] {
            assert_eq!(obj.zap(range), Ok(()));
        }
        for range in [0..3, 2..3, 3..3, 0..usize::MAX, usize::MAX..usize::MAX] {
            assert_eq!(obj.zap(range), Err(EINVAL));
        }
        Ok(())
    }

    #[test]
    fn objects_are_found_by_their_offsets() -> Result {
        let parent = faux_device()?;
        let rig = Rig::new(&parent)?;
        let events = Events::new()?;
        let find = |offset| Object::<KunitObject>::at_offset(rig.dev(), offset);
        let is = |offset, obj: &Object<KunitObject>| {
            find(offset).is_some_and(|found| core::ptr::eq(&*found, obj))
        };
        let page = u64::try_from(PAGE_SIZE)?;
        let (first, second) = (rig.small(&events)?, rig.small(&events)?);
        for obj in [&first, &second] {
            let start = obj.create_mmap_offset()?;
            for offset in [start, start + 1, start + page, start + 2 * page - 1] {
                assert!(is(offset, obj));
            }
            assert!(!is(start - 1, obj));
            assert!(!is(start + 2 * page, obj));
        }
        assert!(find(0).is_none());
        assert!(find(u64::MAX).is_none());

        // What was found is a reference; what is gone is not found.
        let start = first.create_mmap_offset()?;
        let found = find(start);
        drop(first);
        assert_eq!(events.freed.get(), 0);
        drop(found);
        assert_eq!(events.freed.get(), 1);
        assert!(find(start).is_none());
        Ok(())
    }

    /// The functions behind the PRIME ioctls.
    #[test]
    fn export_is_asked_for_each_time() -> Result {
        let parent = faux_device()?;
        let rig = Rig::new(&parent)?;
        let events = Events::new()?;
        let obj = rig.small(&events)?;
        let dev = rig.dev().as_raw();
        // SAFETY: The device is registered and has a primary node.
        let file =
            from_err_ptr(unsafe { bindings::mock_drm_getfile((*dev).primary, bindings::O_RDWR) })?;
        let mut handle = 0;
        // SAFETY: The private data of a DRM device's file is its `drm_file`.
        let drm_file: *mut bindings::drm_file = unsafe { (*file).private_data }.cast();
        // SAFETY: The file and the object are valid.
        crate::error::to_result(unsafe {
            bindings::drm_gem_handle_create(drm_file, obj.as_raw(), &mut handle)
        })?;
        let to_fd = |handle| {
            let mut fd = -1;
            // SAFETY: The device is valid, and the file is one of it.
            let result = crate::error::to_result(unsafe {
                let flags = bindings::O_RDWR | bindings::O_CLOEXEC;
                Object::<KunitObject>::handle_to_fd_callback(dev, drm_file, handle, flags, &mut fd)
            });
            result.map(|()| fd)
        };

        assert_eq!(to_fd(handle + 1), Err(ENOENT));
        events.export.set(Err(EPERM));
        assert_eq!(to_fd(handle), Err(EPERM));
        events.export.set(Ok(()));
        let fd = to_fd(handle)?;
        let dmabuf = DmaBuf::from_fd(fd)?;
        assert_eq!(dmabuf.size(), obj.size());
        assert!(core::ptr::eq(dmabuf.resv(), obj.resv()));
        // Now there is a dma-buf, which the core would hand out again.
        events.export.set(Err(EPERM));
        assert_eq!(to_fd(handle), Err(EPERM));

        drop(dmabuf);
        // SAFETY: The descriptor and the file are ours.
        unsafe {
            bindings::close_fd(fd.unsigned_abs());
            bindings::fput(file);
        }
        flush_releases();
        assert_eq!(events.freed.get(), 0);
        drop(obj);
        assert_eq!(events.freed.get(), 1);
        Ok(())
    }

    #[test]
    fn import_of_own_object() -> Result {
        let parent = faux_device()?;
        let rig = Rig::new(&parent)?;
        let events = Events::new()?;
        let obj = rig.small(&events)?;
        let dmabuf = export(&obj)?;
        let home = import(rig.dev(), &dmabuf)?;
        assert!(core::ptr::eq(home, obj.as_raw()));
        assert_eq!(events.attached.get(), 0);

        // The import is a reference of its own.
        drop(obj);
        drop(dmabuf);
        flush_releases();
        assert_eq!(events.freed.get(), 0);
        // SAFETY: This is the reference that the import returned.
        unsafe { bindings::drm_gem_object_put(home) };
        assert_eq!(events.freed.get(), 1);
        Ok(())
    }

    #[test]
    fn import_of_others_object() -> Result {
        let parent = faux_device()?;
        let stranger = faux_device()?;
        let (rig, other) = (Rig::new(&parent)?, Rig::new(&stranger)?);
        let events = Events::new()?;
        let obj = rig.small(&events)?;
        let dmabuf = export(&obj)?;
        let raw = import(other.dev(), &dmabuf)?;
        // SAFETY: This is an object of the other device, and a reference to it.
        let imported: ARef<Object<KunitObject>> =
            unsafe { ARef::from_raw(Object::<KunitObject>::from_raw(raw).into()) };
        assert!(!core::ptr::eq(&*imported, &*obj));
        assert!(core::ptr::eq(imported.dev(), other.dev()));
        assert_eq!(imported.size(), obj.size());
        assert!(core::ptr::eq(imported.resv(), obj.resv()));
        // Only the core can hand on the dma-buf, which it knows.
        assert_eq!(export(&imported).err(), Some(EINVAL));

        // The import keeps the dma-buf, which keeps the object.
        let freed = imported.events.clone();
        drop(dmabuf);
        drop(obj);
        flush_releases();
        assert_eq!((freed.freed.get(), events.freed.get()), (0, 0));
        drop(imported);
        flush_releases();
        assert_eq!((freed.freed.get(), events.freed.get()), (1, 1));
        Ok(())
    }

    #[test]
    fn import_of_own_window_and_when_gone() -> Result {
        let parent = faux_device()?;
        let stranger = faux_device()?;
        let (rig, other) = (Rig::new(&parent)?, Rig::new(&stranger)?);
        let obj = rig.small(&Events::new()?)?;
        let flags = c_int::try_from(bindings::O_RDWR | bindings::O_CLOEXEC)?;
        let window = Window::export::<KunitWindow>(&obj, 1..2, flags)?;
        assert_eq!(import(rig.dev(), &window).err(), Some(EINVAL));

        let gone: ARef<Device<KunitDriver>> = other.dev().into();
        drop(other);
        assert_eq!(import(&gone, &window).err(), Some(ENODEV));
        Ok(())
    }
}

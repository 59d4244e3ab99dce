// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Dma-bufs of parts of an object, which share its reservation lock and its offsets.

use super::{
    Backing,
    Object, //
};
use crate::{
    bindings,
    dma_buf::{
        exporter::{
            Exporter,
            Ops,
            Source, //
        },
        DmaBuf, //
    },
    drm::{
        gem::{
            BaseObject,
            IntoGEMObject, //
        },
        Device, //
    },
    error::from_err_ptr,
    page::PAGE_SIZE,
    prelude::*,
    sync::aref::ARef, //
};
use core::{
    ffi::c_void,
    ops::Range,
    ptr::NonNull, //
};

/// Pages of an object that are exported as a dma-buf of their own.
///
/// Importing it by PRIME into the driver that exports it is refused with `EINVAL`: it is no object.
///
/// # Examples
///
/// A driver without hardware, whose objects are in system pages and stay there, and what it does with
/// one of them.
///
/// ```
/// use kernel::{
///     device,
///     dma::DataDirection,
///     dma_buf::{
///         exporter::{
///             Exporter,
///             ImporterInfo,
///             Table, //
///         },
///         importer::{
///             AfterInvalidate,
///             Attachment,
///             Importer, //
///         },
///         pages::Pages,
///         resv::Held,
///         software::SoftwareDevice, //
///     },
///     drm::{
///         self,
///         gem::{
///             managed::{
///                 Backing,
///                 Object,
///                 Window, //
///             },
///             BaseObject,
///             DriverObject, //
///         },
///         RegisteredRef,
///         Registered,
///         Registration,
///         UnregisteredDevice, //
///     },
///     faux,
///     fs::file::flags,
///     mm::{
///         fault::{
///             Fault,
///             Outcome, //
///         },
///         p2p, //
///     },
///     page::PAGE_SIZE,
///     sync::Arc, //
/// };
///
/// struct Driver;
///
/// #[vtable]
/// impl drm::Driver for Driver {
///     type Data = ();
///     type RegistrationData<'a> = ();
///     type File = File;
///     type Object = Object<Buffer>;
///     type ParentDevice<Ctx: device::DeviceContext> = faux::Device<Ctx>;
///
///     const INFO: drm::DriverInfo = drm::DriverInfo {
///         major: 0,
///         minor: 0,
///         patchlevel: 0,
///         name: c"example",
///         desc: c"Objects in system pages",
///     };
///     const IOCTLS: &'static [drm::ioctl::DrmIoctlDescriptor] = &[];
/// }
///
/// struct File;
///
/// impl drm::file::DriverFile for File {
///     type Driver = Driver;
///
///     fn open(_dev: &drm::Device<Driver>) -> Result<Pin<KBox<Self>>> {
///         Ok(KBox::new(Self, GFP_KERNEL)?.into())
///     }
/// }
///
/// /// The driver's part of an object.
/// #[pin_data]
/// struct Buffer {
///     pages: Arc<Pages>,
/// }
///
/// impl DriverObject for Buffer {
///     type Driver = Driver;
///     type Args = ();
///
///     fn new(_dev: &drm::Device<Driver>, size: usize, _args: ()) -> impl PinInit<Self, Error> {
///         try_pin_init!(Self {
///             pages: Arc::new(Pages::zeroed(size / PAGE_SIZE)?, GFP_KERNEL)?,
///         })
///     }
/// }
///
/// /// Exports pages of an object.
/// struct Part;
///
/// macro_rules! exporter {
///     ($exporter:ty, $source:ty, $pages:expr) => {
///         impl Exporter for $exporter {
///             type Source = $source;
///             type Attachment = ();
///             type Mapping = ();
///             type Kept = ();
///
///             fn attach(_source: &$source, _importer: &ImporterInfo<'_>) -> Result {
///                 Ok(())
///             }
///
///             fn detach(_source: &$source, _data: &()) {}
///
///             fn pin(
///                 _source: &$source,
///                 _importer: &ImporterInfo<'_>,
///                 _data: &(),
///                 _held: Held<'_>,
///             ) -> Result {
///                 Ok(())
///             }
///
///             fn unpin(_source: &$source, _data: &(), _held: Held<'_>) {}
///
///             fn map<'a>(
///                 source: &$source,
///                 importer: &'a ImporterInfo<'a>,
///                 _data: &(),
///                 _held: Held<'_>,
///                 dir: DataDirection,
///             ) -> Result<(Table<'a>, ())> {
///                 let (pages, range) = ($pages)(source);
///                 Ok((importer.map_pages(pages, range, dir)?, ()))
///             }
///
///             fn unmap(
///                 _source: &$source,
///                 _data: &(),
///                 _held: Held<'_>,
///                 (): (),
///             ) -> Option<()> {
///                 None
///             }
///         }
///     };
/// }
///
/// // For importers of dma-bufs: of whole objects, and of parts.
/// exporter!(Buffer, Object<Buffer>, |obj: &Object<Buffer>| {
///     (obj.pages.clone(), 0..obj.pages.count())
/// });
/// exporter!(Part, Window<Buffer>, |window: &Window<Buffer>| {
///     (window.obj().pages.clone(), window.pages())
/// });
///
/// /// For importers that have the user addresses of its mappings.
/// impl p2p::exporter::Exporter for Buffer {
///     type Source = Object<Self>;
///     type Mapping = ();
///
///     fn p2p_map<'a>(
///         obj: &Object<Self>,
///         request: p2p::exporter::Request<'a>,
///     ) -> Result<(p2p::exporter::Addresses<'a>, ())> {
///         let pages = request.pages();
///         Ok((request.map_pages(obj.pages.clone(), pages)?, ()))
///     }
///
///     fn p2p_unmap(_obj: &Object<Self>, _importer: &device::Device, _mapping: ()) {}
/// }
///
/// impl Backing for Buffer {
///     type VmaExporter = Self;
///
///     fn fault(
///         obj: &Object<Self>,
///         _dev: &drm::Device<Driver, Registered>,
///         page: usize,
///         fault: &Fault<'_>,
///     ) -> Outcome {
///         match obj.pages.pfn(page) {
///             // SAFETY: The page is the object's for ever, and mappings keep the object.
///             Some(pfn) => unsafe { fault.insert_pfn(pfn) },
///             None => Outcome::Sigbus,
///         }
///     }
///
///     fn export(_obj: &Object<Self>) -> Result {
///         Ok(())
///     }
///
///     fn free(_obj: &Object<Self>) {}
/// }
///
/// // What the driver's probe does, and then one of its ioctls.
/// let parent = faux::Registration::new(c"example-managed", None)?;
/// let parent: &faux::Device<device::Bound> = parent.as_ref();
/// let drm = UnregisteredDevice::<Driver>::new(parent, Ok(()))?;
/// // SAFETY: It is dropped before its parent.
/// let registration =
///     unsafe { Registration::new(parent.as_ref(), drm, Ok::<(), Error>(()), 0)? };
/// let dev = RegisteredRef::new(&registration);
/// let guard = dev.registration_guard().ok_or(ENODEV)?;
/// let obj = Object::<Buffer>::new(&guard, 2 * PAGE_SIZE, ())?;
/// assert_eq!(obj.size(), 2 * PAGE_SIZE);
///
/// /// The other side: a device that lets go at once.
/// struct Peer;
///
/// impl Importer for Peer {
///     const ALLOW_PEER_TO_PEER: bool = true;
///
///     fn invalidate(&self, _held: Held<'_>) -> AfterInvalidate {
///         AfterInvalidate::Unmap
///     }
/// }
///
/// let flags = (flags::O_RDWR | flags::O_CLOEXEC).try_into()?;
/// let dmabuf = Window::export::<Part>(&obj, 1..2, flags)?;
/// assert_eq!(dmabuf.size(), PAGE_SIZE);
/// let importer = SoftwareDevice::new(c"example-window")?;
/// let importer: &device::Device<device::Bound> = importer.as_ref();
/// // SAFETY: It is dropped before its device.
/// let attachment = unsafe { Attachment::new(importer, dmabuf.clone(), Ok::<_, Error>(Peer))? };
/// let lock = dmabuf.resv().lock();
/// let both = DataDirection::Bidirectional;
/// let size = attachment.map(importer, lock.held(), both, |table| {
///     Ok(table.iter().map(|entry| u64::from(entry.dma_len())).sum::<u64>())
/// })?;
/// assert_eq!(size, 4096);
///
/// // Before the pages may show or be something else:
/// dmabuf.invalidate(lock.held())?;
/// obj.zap(0..2)?;
/// assert!(!attachment.is_mapped());
/// drop(lock);
/// # Ok::<(), Error>(())
/// ```
pub struct Window<T: Backing> {
    // Field order: the object goes before its device.
    obj: ARef<Object<T>>,
    pages: Range<usize>,
    _dev: ARef<Device<T::Driver>>,
}

impl<T: Backing> Window<T> {
    /// Exports `pages` of `obj`, at least one, and none past its end (else `EINVAL`). `flags` are
    /// those of the file: `O_CLOEXEC` and the access mode.
    pub fn export<E: Exporter<Source = Self>>(
        obj: &Object<T>,
        pages: Range<usize>,
        flags: i32,
    ) -> Result<ARef<DmaBuf>> {
        if pages.is_empty() || pages.end > obj.size() / PAGE_SIZE {
            return Err(EINVAL);
        }
        let size = pages.len().checked_mul(PAGE_SIZE).ok_or(EOVERFLOW)?;
        let window = KBox::new(
            Self {
                obj: obj.into(),
                pages,
                _dev: obj.dev().into(),
            },
            GFP_KERNEL,
        )?;
        let raw = obj.as_raw();
        let window = KBox::into_raw(window);
        // SAFETY: The object, its device and its driver are valid; the window keeps them so.
        let dmabuf = from_err_ptr(unsafe {
            let dev = (*raw).dev;
            let info = bindings::dma_buf_export_info {
                exp_name: (*(*dev).driver).name,
                owner: (*(*(*dev).driver).fops).owner,
                ops: Self::ops::<E>(),
                size,
                flags,
                resv: (*raw).resv,
                priv_: window.cast(),
            };
            bindings::dma_buf_export(&info)
        });
        match dmabuf.and_then(|dmabuf| NonNull::new(dmabuf).ok_or(ENOMEM)) {
            Ok(dmabuf) => {
                // SAFETY: The dma-buf is new, nobody else uses its file; the window keeps the
                // object's device, whose inode that is. Zaps of the object's offsets reach
                // mappings of the file by this.
                unsafe {
                    (*(*dmabuf.as_ptr()).file).f_mapping = (*(*(*raw).dev).anon_inode).i_mapping;
                }
                // SAFETY: `dma_buf_export()` returned a dma-buf and a reference to it, ours now.
                Ok(unsafe { ARef::from_raw(dmabuf.cast()) })
            }
            Err(error) => {
                // SAFETY: Nobody took the box.
                drop(unsafe { KBox::from_raw(window) });
                Err(error)
            }
        }
    }

    /// The object.
    pub fn obj(&self) -> &Object<T> {
        &self.obj
    }

    /// The pages of the object that can be seen, in its numbers.
    pub fn pages(&self) -> Range<usize> {
        self.pages.clone()
    }

    fn ops<E: Exporter<Source = Self>>() -> &'static bindings::dma_buf_ops {
        const { &Ops::<E>::table(Self::release_callback, Some(Self::mmap_callback)) }
    }

    /// # Safety
    ///
    /// Called by the core with a dma-buf that `export` made, for the last time.
    unsafe extern "C" fn release_callback(dmabuf: *mut bindings::dma_buf) {
        // SAFETY: `export` put the box there, and nobody uses it any more.
        drop(unsafe { KBox::from_raw((*dmabuf).priv_.cast::<Self>()) });
    }

    /// # Safety
    ///
    /// Called by the core with a dma-buf that `export` made, and a mapping that is being made and
    /// that does not reach past its end.
    unsafe extern "C" fn mmap_callback(
        dmabuf: *mut bindings::dma_buf,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: The private pointer is a window, alive while its dma-buf is.
        let window = unsafe { Self::from_priv((*dmabuf).priv_) };
        // SAFETY: Nobody else sees the mapping yet. Its pages are some of the object's: the core
        // has checked that they are in the window, which is in the object.
        unsafe {
            (*vma).vm_pgoff += window.pages.start;
            bindings::drm_gem_prime_mmap(window.obj.as_raw(), vma)
        }
    }
}

// SAFETY: `Window::export` exports windows with the window as the private pointer.
unsafe impl<T: Backing> Source for Window<T> {
    unsafe fn from_priv<'a>(raw: *mut c_void) -> &'a Self {
        // SAFETY: The caller promises that this is the private pointer of an exported `Self`.
        unsafe { &*raw.cast_const().cast() }
    }
}

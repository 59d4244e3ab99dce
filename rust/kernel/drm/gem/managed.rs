// SPDX-License-Identifier: GPL-2.0 OR MIT

//! GEM objects whose driver manages the backing itself.
//!
//! The bytes of a [`managed::Object`](Object) are where the driver says, at any time: in device
//! memory, in system pages, or moving. The driver is called for each page that a CPU touches and
//! for each importer that wants to reach the object, and takes back what it gave out with
//! [`Object::zap`] and [`DmaBuf::invalidate`](crate::dma_buf::DmaBuf::invalidate).
//!
//! A small driver of such objects is the example of [`Window`].
//!
//! C header: [`include/drm/drm_gem.h`](srctree/include/drm/drm_gem.h)

#[cfg(CONFIG_P2P_VMA)]
use crate::mm::{
    p2p,
    virt::VmaRef, //
};
use crate::{
    bindings,
    dma_buf::{
        exporter::{
            Exporter,
            Ops,
            Source, //
        },
        resv::Resv,
        DmaBuf, //
    },
    drm::{
        self,
        driver,
        private::Sealed,
        Device,
        Ioctl,
        Registered, //
    },
    mm::fault::{
        Fault,
        Outcome, //
    },
    page::PAGE_SIZE,
    prelude::*,
    sync::aref::ARef,
    types::Opaque, //
};
use core::{
    ops::{
        Deref,
        Range, //
    },
    ptr::{
        self,
        NonNull, //
    }, //
};

use super::{
    BaseObject,
    BaseObjectPrivate,
    DriverObject,
    IntoGEMObject, //
};

mod import;
#[cfg(CONFIG_KUNIT = "y")]
mod tests;
mod window;

pub use self::window::Window;

/// What a driver does for its managed objects, beside exporting them.
pub trait Backing: DriverObject + Exporter<Source = Object<Self>> {
    /// Who gives pages of the object's mappings to other devices, which have their user addresses.
    #[cfg(CONFIG_P2P_VMA)]
    type VmaExporter: p2p::exporter::Exporter<Source = Object<Self>>;

    /// A CPU touched page `page`, below the number of pages: install its page-table entry.
    ///
    /// Called with `mmap_lock` or the mapping's own lock held. The object's reservation lock may
    /// be taken.
    fn fault(
        obj: &Object<Self>,
        dev: &Device<Self::Driver, Registered>,
        page: usize,
        fault: &Fault<'_>,
    ) -> Outcome;

    /// May the object be exported? Called each time that somebody asks for a dma-buf of it, be it
    /// a new one or one that exists.
    fn export(obj: &Object<Self>) -> Result;

    /// Somebody else's dma-buf comes by PRIME: attach to it, and make the object that stands for it
    /// with [`Object::imported`]. Without it all are refused with `EINVAL`.
    ///
    /// Never called for a dma-buf of the same device: one of an object is that object, and one of a
    /// [`Window`] is refused. Called under locks of the core, inside which reservation locks may be
    /// taken, as attaching does.
    fn import(
        _dev: &Device<Self::Driver, Registered>,
        _dmabuf: &DmaBuf,
    ) -> Result<ARef<Object<Self>>> {
        Err(EINVAL)
    }

    /// The last reference is gone: return what the object holds. May sleep.
    fn free(obj: &Object<Self>);
}

/// A GEM object with a backing of the driver's own.
///
/// Objects are made for registered devices only, so that the device of any object has been
/// registered.
///
/// # Invariants
///
/// - `obj` is a valid instance of a `struct drm_gem_object` with an mmap offset.
/// - Its device is a `Device<T::Driver>` that has been registered.
#[repr(C)]
#[pin_data]
pub struct Object<T: Backing> {
    obj: Opaque<bindings::drm_gem_object>,
    #[pin]
    data: T,
    /// What the object stands for, if it was imported: the reservation lock is that of this.
    // Field order: dropped after `data`, which may be attached to it.
    dmabuf: Option<ARef<DmaBuf>>,
}

super::impl_aref_for_gem_obj! {
    impl<T> for Object<T>
    where
        T: Backing
}

// SAFETY: All GEM objects are thread-safe, and `T` is `Send` and `Sync`.
unsafe impl<T: Backing> Send for Object<T> {}

// SAFETY: All GEM objects are thread-safe, and `T` is `Send` and `Sync`.
unsafe impl<T: Backing> Sync for Object<T> {}

impl<T: Backing> Object<T> {
    const OBJECT_FUNCS: bindings::drm_gem_object_funcs = bindings::drm_gem_object_funcs {
        free: Some(Self::free_callback),
        open: Some(super::open_callback::<T>),
        close: Some(super::close_callback::<T>),
        export: Some(Self::export_callback),
        mmap: Some(Self::mmap_callback),
        vm_ops: &Self::VM_OPS,
        ..pin_init::zeroed()
    };

    const VM_OPS: bindings::vm_operations_struct = bindings::vm_operations_struct {
        fault: Some(Self::fault_callback),
        open: Some(bindings::drm_gem_vm_open),
        close: Some(bindings::drm_gem_vm_close),
        #[cfg(CONFIG_P2P_VMA)]
        p2p_map: Some(Self::p2p_map_callback),
        #[cfg(CONFIG_P2P_VMA)]
        p2p_unmap: Some(p2p::exporter::Callbacks::<T::VmaExporter>::unmap),
        ..pin_init::zeroed()
    };

    /// Makes an object of `size` bytes, a multiple of the page size and not 0 (else `EINVAL`).
    pub fn new(
        dev: &Device<T::Driver, Registered>,
        size: usize,
        args: T::Args,
    ) -> Result<ARef<Self>> {
        Self::make(dev, size, args, None)
    }

    fn make(
        dev: &Device<T::Driver, Registered>,
        size: usize,
        args: T::Args,
        dmabuf: Option<ARef<DmaBuf>>,
    ) -> Result<ARef<Self>> {
        if size == 0 || !size.is_multiple_of(PAGE_SIZE) {
            return Err(EINVAL);
        }
        let resv = match &dmabuf {
            // SAFETY: The buffer is valid, and so is its reservation object, for as long.
            Some(dmabuf) => unsafe { (*dmabuf.as_raw()).resv },
            None => ptr::null_mut(),
        };
        let obj = KBox::pin_init(
            try_pin_init!(Self {
                obj: Opaque::new(bindings::drm_gem_object::default()),
                data <- T::new(dev, size, args),
                dmabuf,
            }),
            GFP_KERNEL,
        )?;

        // SAFETY: The object is ours alone; the device is valid. The reservation object is null, so
        // that the object has its own, or that of the buffer, which the object keeps.
        unsafe {
            (*obj.as_raw()).funcs = &const { Self::OBJECT_FUNCS };
            (*obj.as_raw()).resv = resv;
            bindings::drm_gem_private_object_init((**dev).as_raw(), obj.as_raw(), size);
        }

        // SAFETY: Nothing moves out of an `ARef`.
        let obj = KBox::into_raw(unsafe { Pin::into_inner_unchecked(obj) });
        // SAFETY: `KBox::into_raw()` returns no null pointer; `drm_gem_private_object_init()` gave
        // us the first reference.
        // INVARIANT: The mmap offset follows; before that the object is not shown to anybody.
        let obj = unsafe { ARef::from_raw(NonNull::new_unchecked(obj)) };
        // Mappings are zapped by this offset, those of the dma-buf too, which do not ask for one.
        obj.create_mmap_offset()?;
        Ok(obj)
    }

    /// The object that has `offset` among its mmap offsets, if one has.
    ///
    /// For who knows pages by their offset, as [`zap_offsets`] does. May be called in any context
    /// that can drop a reference to an object, which may sleep.
    pub fn at_offset(dev: &Device<T::Driver>, offset: u64) -> Option<ARef<Self>>
    where
        T::Driver: drm::Driver<Object = Self>,
    {
        let page = usize::try_from(offset).ok()? / PAGE_SIZE;
        // SAFETY: The device is valid.
        let obj = unsafe { bindings::drm_gem_object_get_at(dev.as_raw(), page) };
        let obj = NonNull::new(obj)?;
        // SAFETY: By the bound all objects of the device are `Self`; the function gave us a
        // reference.
        Some(unsafe { ARef::from_raw(Self::from_raw(obj.as_ptr()).into()) })
    }

    /// The device that owns the object.
    pub fn dev(&self) -> &Device<T::Driver> {
        self.ioctl_dev()
    }

    /// The device, for a [`RegistrationGuard`](crate::drm::RegistrationGuard) outside of ioctls.
    pub fn ioctl_dev(&self) -> &Device<T::Driver, Ioctl> {
        // SAFETY: By the type invariant; the device outlives its objects.
        unsafe { Device::from_raw((*self.as_raw()).dev) }
    }

    /// The lock that guards the object's placement and its importers' mappings.
    pub fn resv(&self) -> &Resv {
        // SAFETY: The reservation object is embedded in the GEM object, or in the dma-buf that it
        // stands for, to which it has a reference.
        unsafe { Resv::from_raw(self.raw_dma_resv()) }
    }

    /// Removes the CPU mappings of `pages`, of the object and of its dma-buf, in all processes.
    ///
    /// What is touched afterwards faults again; the caller holds the locks that make such a fault
    /// wait. May sleep.
    pub fn zap(&self, pages: Range<usize>) -> Result {
        let start = pages.start.checked_mul(PAGE_SIZE).ok_or(EINVAL)?;
        let length = pages.len().checked_mul(PAGE_SIZE).ok_or(EINVAL)?;
        if start
            .checked_add(length)
            .is_none_or(|end| end > self.size())
        {
            return Err(EINVAL);
        }
        let offset = self.create_mmap_offset()?;
        let start = offset.checked_add(u64::try_from(start)?).ok_or(EINVAL)?;
        zap_offsets(self.dev(), start..start + u64::try_from(length)?);
        Ok(())
    }

    /// The operations of the object's dma-bufs. One function for all users, so that their address
    /// is one.
    #[inline(never)]
    fn dmabuf_ops() -> &'static bindings::dma_buf_ops {
        const {
            &Ops::<T>::table(
                bindings::drm_gem_dmabuf_release,
                Some(bindings::drm_gem_dmabuf_mmap),
            )
        }
    }

    /// # Safety
    ///
    /// Called by the core with a `Self` without references.
    unsafe extern "C" fn free_callback(obj: *mut bindings::drm_gem_object) {
        // SAFETY: All objects with these functions are `Self`.
        let this = unsafe { crate::container_of!(Opaque::cast_from(obj), Self, obj) }.cast_mut();
        // SAFETY: The object is valid until we release it.
        T::free(unsafe { &*this });
        // SAFETY: There are no references left.
        unsafe { bindings::drm_gem_object_release(obj) };
        // SAFETY: `new` made the box.
        drop(unsafe { KBox::from_raw(this) });
    }

    /// The core keeps the dma-buf of an object and would hand it out again without asking.
    ///
    /// # Safety
    ///
    /// Called by the core with a device and an open file of `T::Driver`.
    unsafe extern "C" fn handle_to_fd_callback(
        dev: *mut bindings::drm_device,
        file: *mut bindings::drm_file,
        handle: u32,
        flags: u32,
        fd: *mut c_int,
    ) -> c_int {
        // SAFETY: The core passes a valid file of this driver.
        let obj = unsafe { bindings::drm_gem_object_lookup(file, handle) };
        let Some(obj) = NonNull::new(obj) else {
            return ENOENT.to_errno();
        };
        // SAFETY: All objects of this driver are `Self`; the look-up gave us a reference.
        let obj: ARef<Self> = unsafe { ARef::from_raw(Self::from_raw(obj.as_ptr()).into()) };
        // What was imported is handed on: the exporter has agreed to that.
        if obj.dmabuf.is_none() {
            if let Err(error) = T::export(&obj) {
                return error.to_errno();
            }
        }
        // SAFETY: These are the arguments that the core passed.
        unsafe { bindings::drm_gem_prime_handle_to_fd(dev, file, handle, flags, fd) }
    }

    /// # Safety
    ///
    /// Called by the core with a `Self`.
    unsafe extern "C" fn export_callback(
        obj: *mut bindings::drm_gem_object,
        flags: c_int,
    ) -> *mut bindings::dma_buf {
        // SAFETY: All objects with these functions are `Self`.
        let this = unsafe { Self::from_raw(obj) };
        if this.dmabuf.is_some() {
            // The core knows the dma-buf of an import for as long as there is a handle.
            return EINVAL.to_ptr();
        }
        // The handle may name another object than when `handle_to_fd_callback()` asked.
        if let Err(error) = T::export(this) {
            return error.to_ptr();
        }
        // SAFETY: The object's device and its driver are valid, as the object is.
        unsafe {
            let dev = (*obj).dev;
            let mut info = bindings::dma_buf_export_info {
                exp_name: (*(*dev).driver).name,
                owner: (*(*(*dev).driver).fops).owner,
                ops: Self::dmabuf_ops(),
                size: (*obj).size,
                flags,
                resv: (*obj).resv,
                priv_: obj.cast(),
            };
            bindings::drm_gem_dmabuf_export(dev, &mut info)
        }
    }

    /// # Safety
    ///
    /// Called by the core with a mapping that is being made.
    unsafe extern "C" fn mmap_callback(
        obj: *mut bindings::drm_gem_object,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: All objects with these functions are `Self`.
        let this = unsafe { Self::from_raw(obj) };
        if let Some(dmabuf) = &this.dmabuf {
            // SAFETY: The core passes a mapping that is being made, and that is no larger than the
            // object, which is as large as the buffer.
            return unsafe { Self::mmap_of_exporter(obj, dmabuf, vma) };
        }
        // SAFETY: The core passes a mapping that is being made, which nobody else sees yet.
        unsafe {
            if bindings::vma_is_cow_mapping(vma) {
                return EINVAL.to_errno();
            }
            bindings::vma_set_pfnmap(vma);
        }
        0
    }

    /// The page of the object at this offset of its file, in pages, if it has one there.
    fn page_at(&self, offset: usize) -> Option<usize> {
        // SAFETY: The object has a valid offset node.
        let start = unsafe { bindings::drm_vma_node_start(&(*self.as_raw()).vma_node) };
        let page = offset.checked_sub(start)?;
        (page < self.size() / PAGE_SIZE).then_some(page)
    }

    /// # Safety
    ///
    /// Called by the core with a mapping with these operations, which is locked, and a map of it
    /// that is being made.
    #[cfg(CONFIG_P2P_VMA)]
    unsafe extern "C" fn p2p_map_callback(
        vma: *mut bindings::vm_area_struct,
        map: *mut bindings::p2p_vma_map,
    ) -> c_int {
        // SAFETY: As in `fault_callback()`; the addresses of the map are in the mapping, and at
        // least one page.
        let (this, first, count) = unsafe {
            let skipped = ((*map).start - VmaRef::from_raw(vma).start()) / PAGE_SIZE;
            (
                Self::from_raw((*vma).vm_private_data.cast()),
                // A mapping that was split or moved has other addresses, but shows the same.
                (*vma).vm_pgoff.checked_add(skipped),
                ((*map).end - (*map).start) / PAGE_SIZE,
            )
        };
        crate::error::from_result(|| {
            let first = first.and_then(|first| this.page_at(first)).ok_or(EINVAL)?;
            let end = first.checked_add(count).ok_or(EINVAL)?;
            if end > this.size() / PAGE_SIZE {
                return Err(EINVAL);
            }
            // SAFETY: The core passes a map that is being made; its `p2p_unmap` is that of these
            // callbacks.
            unsafe { p2p::exporter::Callbacks::<T::VmaExporter>::map(map, this, first..end)? };
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// Called by the core with a fault in a mapping with these operations.
    unsafe extern "C" fn fault_callback(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: `drm_gem_mmap_obj()` and `drm_gem_prime_mmap()` store the object, with a
        // reference, in the mappings that get these operations.
        let this = unsafe {
            let vma = (*vmf).__bindgen_anon_1.vma;
            Self::from_raw((*vma).vm_private_data.cast())
        };
        // SAFETY: This is the fault; `mmap_callback()` made the mapping as it must be.
        let fault = unsafe { Fault::from_raw(vmf) };

        let Some(page) = this.page_at(fault.page_offset()) else {
            return Outcome::Sigbus.into_raw();
        };
        match this.ioctl_dev().registration_guard() {
            Some(dev) => T::fault(this, &dev, page, &fault),
            None => Outcome::Sigbus,
        }
        .into_raw()
    }
}

/// Removes the CPU mappings of a range of the device's mmap offsets, in all processes. May sleep.
///
/// For who knows pages by their offset, and not the object that they belong to.
pub fn zap_offsets<D: drm::Driver>(dev: &Device<D>, offsets: Range<u64>) {
    // For the VM a length of 0 would mean everything that follows.
    let (Ok(start), Some(length)) = (
        bindings::loff_t::try_from(offsets.start),
        offsets.end.checked_sub(offsets.start).filter(|&l| l != 0),
    ) else {
        return;
    };
    let length = bindings::loff_t::try_from(length).unwrap_or(bindings::loff_t::MAX - start);
    // SAFETY: The device and its inode are valid; removing mappings is always allowed.
    unsafe {
        bindings::unmap_mapping_range((*(*dev.as_raw()).anon_inode).i_mapping, start, length, 1)
    };
}

// SAFETY: `export_callback` exports objects with the GEM object as the private pointer.
unsafe impl<T: Backing> Source for Object<T> {
    unsafe fn from_priv<'a>(raw: *mut c_void) -> &'a Self {
        // SAFETY: The caller promises that this is the private pointer of an exported `Self`.
        unsafe { Self::from_raw(raw.cast()) }
    }
}

impl<T: Backing> Sealed for Object<T> {}

impl<T: Backing> IntoGEMObject for Object<T> {
    fn as_raw(&self) -> *mut bindings::drm_gem_object {
        self.obj.get()
    }

    unsafe fn from_raw<'a>(raw: *mut bindings::drm_gem_object) -> &'a Self {
        // SAFETY: The caller promises that `raw` is the `obj` of a `Self`.
        unsafe { &*crate::container_of!(Opaque::cast_from(raw), Self, obj) }
    }
}

impl<T: Backing> Deref for Object<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.data
    }
}

impl<T: Backing> driver::AllocImpl for Object<T> {
    type Driver = T::Driver;

    const ALLOC_OPS: driver::AllocOps = driver::AllocOps {
        gem_create_object: None,
        prime_handle_to_fd: Some(Self::handle_to_fd_callback),
        prime_fd_to_handle: None,
        gem_prime_import: Some(Self::import_callback),
        gem_prime_import_sg_table: None,
        dumb_create: None,
        dumb_map_offset: None,
    };
}

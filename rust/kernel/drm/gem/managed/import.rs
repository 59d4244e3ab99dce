// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Objects that stand for a dma-buf of somebody else.
//!
//! Such an object has the reservation lock of its dma-buf, and its CPU mappings are the exporter's
//! own, as if the dma-buf had been mapped. Exporting it gives that dma-buf. How the device reaches
//! the bytes is the driver's affair: it keeps an
//! [`Attachment`](crate::dma_buf::importer::Attachment) in its data.

use super::{
    Backing,
    Object, //
};
use crate::{
    bindings,
    dma_buf::DmaBuf,
    drm::{
        gem::IntoGEMObject,
        Device,
        Ioctl,
        Registered, //
    },
    prelude::*,
    sync::aref::ARef, //
};
use core::ptr;

impl<T: Backing> Object<T> {
    /// Makes an object that stands for `dmabuf`, as large as it. For [`Backing::import`].
    ///
    /// `EINVAL`: the dma-buf is not of whole pages, which those of the kernel are.
    pub fn imported(
        dev: &Device<T::Driver, Registered>,
        dmabuf: ARef<DmaBuf>,
        args: T::Args,
    ) -> Result<ARef<Self>> {
        Self::make(dev, dmabuf.size(), args, Some(dmabuf))
    }

    /// # Safety
    ///
    /// Called by the core with a device of `T::Driver`, of which a file is open, and a valid dma-buf.
    pub(super) unsafe extern "C" fn import_callback(
        dev: *mut bindings::drm_device,
        dmabuf: *mut bindings::dma_buf,
    ) -> *mut bindings::drm_gem_object {
        // SAFETY: The core passes a valid device and dma-buf. If the buffer has our operations,
        // its private pointer is one of our objects.
        unsafe {
            if ptr::eq((*dmabuf).ops, Self::dmabuf_ops()) {
                let obj: *mut bindings::drm_gem_object = (*dmabuf).priv_.cast();
                if (*obj).dev == dev {
                    // Our own object comes home: no attachment, another reference.
                    bindings::drm_gem_object_get(obj);
                    return obj;
                }
            }
            if (*(*dmabuf).file).f_mapping == (*(*dev).anon_inode).i_mapping {
                // A window of an object of this device.
                return EINVAL.to_ptr();
            }
        }
        // SAFETY: The device is valid. It has been registered, as a file of it is open.
        let dev: &Device<T::Driver, Ioctl> = unsafe { Device::from_raw(dev) };
        let Some(dev) = dev.registration_guard() else {
            return ENODEV.to_ptr();
        };
        // SAFETY: The core passes a valid dma-buf.
        match T::import(&dev, unsafe { DmaBuf::from_raw(dmabuf) }) {
            Ok(obj) => {
                let raw = obj.as_raw();
                // The reference is the core's now.
                let _ = ARef::into_raw(obj);
                raw
            }
            Err(error) => error.to_ptr(),
        }
    }

    /// Lets the exporter make a CPU mapping.
    ///
    /// # Safety
    ///
    /// `obj` is valid and stands for `dmabuf`, and `vma` is a mapping of it that the core is making,
    /// no larger than the object, with a reference to it.
    pub(super) unsafe fn mmap_of_exporter(
        obj: *mut bindings::drm_gem_object,
        dmabuf: &DmaBuf,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: Nobody else sees the mapping yet. It is no longer one of the object: it has the
        // exporter's operations and its file, and not our reference to the object. Nothing but the
        // exporter fills it, which does not expect it to grow.
        unsafe {
            (*vma).vm_private_data = ptr::null_mut();
            (*vma).vm_ops = ptr::null();
            let result = bindings::dma_buf_mmap(dmabuf.as_raw(), vma, 0);
            if result == 0 {
                bindings::vma_set_dontexpand(vma);
                bindings::drm_gem_object_put(obj);
            }
            result
        }
    }
}

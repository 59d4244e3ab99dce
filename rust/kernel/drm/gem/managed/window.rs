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

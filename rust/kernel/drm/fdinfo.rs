// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What an open file of a DRM device shows under `/proc/<pid>/fdinfo/`.
//!
//! The core shows the driver, the device and the client; a driver adds what it knows in
//! [`DriverFile::show_fdinfo`], by the rules of `Documentation/gpu/drm-usage-stats.rst`.
//!
//! C header: [`include/drm/drm_file.h`](srctree/include/drm/drm_file.h)

use crate::{
    bindings,
    drm::{
        file::DriverFile,
        gem::IntoGEMObject,
        Device,
        Driver,
        File,
        Ioctl, //
    },
    ffi::{
        c_int,
        c_void, //
    },
    fmt,
    prelude::*,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    },
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};
use core::ptr::{
    self,
    NonNull, //
};

/// Where the text goes.
///
/// # Examples
///
/// ```
/// use kernel::drm::{
///     fdinfo::{
///         MemoryStats,
///         Printer, //
///     }, //
/// };
///
/// /// What [`DriverFile::show_fdinfo`](kernel::drm::file::DriverFile::show_fdinfo) may do.
/// fn show(printer: &Printer, vram: u64, engine_ns: u64) {
///     let stats = MemoryStats {
///         private: vram,
///         resident: vram,
///         ..Default::default()
///     };
///     printer.memory(c"vram", &stats);
///     printer.print(fmt!("drm-engine-copy:\t{engine_ns} ns\n"));
/// }
/// ```
#[repr(transparent)]
pub struct Printer(Opaque<bindings::drm_printer>, NotThreadSafe);

/// Bytes that the objects of a file have in one kind of memory.
#[derive(Clone, Copy, Default)]
pub struct MemoryStats {
    /// Of objects that others have handles to, or that are exported; see [`is_shared`].
    pub shared: u64,
    /// Of all other objects.
    pub private: u64,
    /// Those of both that are there.
    pub resident: u64,
    /// Those of them that are in use at this moment.
    pub active: u64,
    /// Those of them that are dropped when memory is short; `None`: in memory of this kind none is.
    pub purgeable: Option<u64>,
}

impl Printer {
    /// Writes text: whole lines, a key, a colon, a tab and a value each.
    ///
    /// Keys that are not in the documentation begin with the driver's name and `-`.
    pub fn print(&self, args: fmt::Arguments<'_>) {
        // SAFETY: The printer is valid; `%pA` takes a pointer to `fmt::Arguments`.
        unsafe {
            bindings::drm_printf(
                self.0.get(),
                c"%pA".as_char_ptr(),
                ptr::from_ref(&args).cast::<c_void>(),
            )
        }
    }

    /// Writes the lines for one kind of memory, `region`, which has no space in its name.
    /// `memory` is the name of system memory.
    pub fn memory(&self, region: &CStr, stats: &MemoryStats) {
        let mut supported = bindings::drm_gem_object_status_DRM_GEM_OBJECT_RESIDENT
            | bindings::drm_gem_object_status_DRM_GEM_OBJECT_ACTIVE;
        if stats.purgeable.is_some() {
            supported |= bindings::drm_gem_object_status_DRM_GEM_OBJECT_PURGEABLE;
        }
        let stats = bindings::drm_memory_stats {
            shared: stats.shared,
            private: stats.private,
            resident: stats.resident,
            active: stats.active,
            purgeable: stats.purgeable.unwrap_or(0),
        };
        // SAFETY: All pointers are valid.
        unsafe {
            bindings::drm_print_memory_stats(self.0.get(), &stats, supported, region.as_char_ptr())
        }
    }
}

/// Whether the object counts as shared: more than one file has a handle, or it is exported.
pub fn is_shared<O: IntoGEMObject>(obj: &O) -> bool {
    // SAFETY: The object is valid. What is read may change at any time; it is only shown.
    unsafe { bindings::drm_gem_object_is_shared_for_memory_stats(obj.as_raw()) }
}

impl<T: DriverFile> File<T> {
    /// Calls `each` with the objects that the file has handles to, in the order of the handles.
    ///
    /// No lock is held: `each` may sleep. Handles that come and go meanwhile are seen or not.
    pub fn for_each_object(&self, mut each: impl FnMut(&<T::Driver as Driver>::Object))
    where
        <T::Driver as Driver>::Object: AlwaysRefCounted,
    {
        let mut next: c_int = 1;
        loop {
            // SAFETY: The file is valid by the type invariant.
            let obj = unsafe { bindings::drm_file_next_object(self.as_raw(), &mut next) };
            let Some(obj) = NonNull::new(obj) else {
                return;
            };
            // SAFETY: All objects of the driver are of its one type of objects; the function gave
            // us a reference.
            let obj = unsafe {
                ARef::from_raw(NonNull::from(<T::Driver as Driver>::Object::from_raw(
                    obj.as_ptr(),
                )))
            };
            each(&obj);
            let Some(following) = next.checked_add(1) else {
                return;
            };
            next = following;
        }
    }

    /// The callback of `struct drm_driver`.
    ///
    /// # Safety
    ///
    /// Called by the core with a valid printer and an open file of this driver.
    pub(crate) unsafe extern "C" fn show_fdinfo_callback(
        printer: *mut bindings::drm_printer,
        file: *mut bindings::drm_file,
    ) {
        // SAFETY: An open file has a minor, which belongs to a device of this driver. Files are
        // opened of devices that have been registered.
        let dev: &Device<T::Driver, Ioctl> = unsafe { Device::from_raw((*(*file).minor).dev) };
        let Some(dev) = dev.registration_guard() else {
            return;
        };
        // SAFETY: The core passes a valid file of this driver.
        let file = unsafe { Self::from_raw(file) };
        // SAFETY: The printer is valid for as long as this runs, and used by nobody else.
        // CAST: `Printer` is a transparent wrapper.
        let printer = unsafe { &*printer.cast::<Printer>() };
        T::show_fdinfo(&dev, file, printer);
    }
}

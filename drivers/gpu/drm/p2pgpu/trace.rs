// SPDX-License-Identifier: GPL-2.0

//! Trace events: what importers are given, what they are refused, and what is taken back.
//!
//! The events are defined in `include/trace/events/p2pgpu.h`. An object is known by its first mmap
//! offset, as in debugfs; 0 stands for one that does not exist yet.

use crate::{
    driver::DrmDevice,
    gem::{
        self,
        Object,
        PlacementKind, //
    },
    refusal::Reason, //
};
use core::{
    ops::Range,
    ptr, //
};
use kernel::{
    bindings,
    device,
    drm::gem::{
        BaseObject,
        IntoGEMObject, //
    },
    ffi::{
        c_char,
        c_int, //
    },
    pci,
    prelude::*,
    tracepoint::declare_trace, //
};

declare_trace! {
    /// # Safety
    ///
    /// The pointers are to strings.
    unsafe fn p2pgpu_refuse(
        dev: *const c_char,
        object: u64,
        reason: *const c_char,
        error: c_int,
    );
    /// # Safety
    ///
    /// The pointers are to strings.
    unsafe fn p2pgpu_fall_back(dev: *const c_char, object: u64, importer: *const c_char);
    /// # Safety
    ///
    /// The pointers are to devices and an object of one of them.
    unsafe fn p2pgpu_map(
        dev: *const bindings::device,
        obj: *mut bindings::drm_gem_object,
        importer: *const bindings::device,
        page: u64,
        pages: u64,
        aperture: bool,
    );
    /// # Safety
    ///
    /// The pointers are to devices and an object of one of them.
    unsafe fn p2pgpu_unmap(
        dev: *const bindings::device,
        obj: *mut bindings::drm_gem_object,
        importer: *const bindings::device,
        page: u64,
        pages: u64,
        aperture: bool,
    );
    /// # Safety
    ///
    /// The pointer is to a string.
    unsafe fn p2pgpu_invalidate(dev: *const c_char, object: u64, mappings: u32);
    /// # Safety
    ///
    /// The pointer is to a string.
    unsafe fn p2pgpu_migrate(dev: *const c_char, object: u64, vram: bool, error: c_int);
    /// # Safety
    ///
    /// The pointer is to a string.
    unsafe fn p2pgpu_evict(dev: *const c_char, object: u64, size: u64);
    /// # Safety
    ///
    /// The pointer is to a string.
    unsafe fn p2pgpu_submit(dev: *const c_char, context: u64, commands: u32, waits: u32);
    /// # Safety
    ///
    /// The pointer is to a string.
    unsafe fn p2pgpu_pressure(dev: *const c_char, object: u64, victim: u64);
}

/// The PCI address of the GPU.
fn address(dev: &DrmDevice) -> &CStr {
    let pdev: &pci::Device = dev.as_ref();
    pdev.as_ref().name()
}

fn id(obj: &Object) -> u64 {
    // It has one already.
    gem::mmap_offset(obj).unwrap_or(0)
}

/// A mapping that an importer is given, or gives back.
pub(crate) struct Mapping<'a> {
    pub(crate) obj: &'a Object,
    pub(crate) importer: &'a device::Device,
    pub(crate) pages: Range<usize>,
    /// It is of slots, not of system memory.
    pub(crate) aperture: bool,
}

impl Mapping<'_> {
    /// The GPU and the importer.
    fn devices(&self) -> (*const bindings::device, *const bindings::device) {
        let gpu: &pci::Device = self.obj.dev().as_ref();
        let gpu: &device::Device = gpu.as_ref();
        (
            ptr::from_ref(gpu).cast(),
            ptr::from_ref(self.importer).cast(),
        )
    }

    /// The importer is given it.
    #[inline]
    pub(crate) fn map(&self) {
        let (dev, importer) = self.devices();
        let (page, pages) = (self.pages.start as u64, self.pages.len() as u64);
        // SAFETY: The devices and the object live while there are references to them.
        unsafe { p2pgpu_map(dev, self.obj.as_raw(), importer, page, pages, self.aperture) }
    }

    /// The importer gives it back.
    #[inline]
    pub(crate) fn unmap(&self) {
        let (dev, importer) = self.devices();
        let (page, pages) = (self.pages.start as u64, self.pages.len() as u64);
        // SAFETY: The devices and the object live while there are references to them.
        unsafe { p2pgpu_unmap(dev, self.obj.as_raw(), importer, page, pages, self.aperture) }
    }
}

/// A peer is refused; `obj` is `None` if the object was only to be made.
pub(crate) fn refuse(dev: &DrmDevice, obj: Option<&Object>, reason: Reason, error: Error) {
    let (dev, object) = (address(dev), obj.map_or(0, id));
    // SAFETY: The one string lives as long as the device, the other for ever.
    unsafe {
        p2pgpu_refuse(
            dev.as_char_ptr(),
            object,
            reason.name().as_char_ptr(),
            error.to_errno(),
        )
    }
}

/// The object was moved to system memory, as the importer cannot be given slots.
pub(crate) fn fall_back(obj: &Object, importer: &device::Device) {
    let (dev, importer) = (address(obj.dev()), importer.name());
    // SAFETY: The strings live as long as the devices.
    unsafe { p2pgpu_fall_back(dev.as_char_ptr(), id(obj), importer.as_char_ptr()) }
}

/// Importers are told to let go of this many mappings of the object.
pub(crate) fn invalidate(obj: &Object, mappings: u32) {
    let dev = address(obj.dev());
    // SAFETY: The string lives as long as the device.
    unsafe { p2pgpu_invalidate(dev.as_char_ptr(), id(obj), mappings) }
}

/// The object has moved, or could not.
pub(crate) fn migrate(obj: &Object, target: PlacementKind, result: Result) {
    let dev = address(obj.dev());
    let error = result.map_or_else(|error| error.to_errno(), |()| 0);
    let vram = target == PlacementKind::Vram;
    // SAFETY: The string lives as long as the device.
    unsafe { p2pgpu_migrate(dev.as_char_ptr(), id(obj), vram, error) }
}

/// The object leaves VRAM to make room.
pub(crate) fn evict(obj: &Object) {
    let dev = address(obj.dev());
    // SAFETY: The string lives as long as the device.
    unsafe { p2pgpu_evict(dev.as_char_ptr(), id(obj), obj.size() as u64) }
}

/// The peers of `victim` are told to let go, as `obj` needs slots.
pub(crate) fn pressure(obj: &Object, victim: &Object) {
    let dev = address(obj.dev());
    // SAFETY: The string lives as long as the device.
    unsafe { p2pgpu_pressure(dev.as_char_ptr(), id(obj), id(victim)) }
}

/// A job is queued in the context whose fences have this number.
pub(crate) fn submit(dev: &DrmDevice, context: u64, commands: usize, waits: usize) {
    let [commands, waits] = [commands, waits].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    let dev = address(dev);
    // SAFETY: The string lives as long as the device.
    unsafe { p2pgpu_submit(dev.as_char_ptr(), context, commands, waits) }
}

// SPDX-License-Identifier: GPL-2.0

//! Access by the CPU, in the kernel: all bytes of a buffer side by side.

use super::{
    resv::Held,
    DmaBuf, //
};
use crate::{
    bindings,
    error::to_result,
    prelude::*,
    sync::aref::ARef, //
};

/// A buffer that is mapped for the kernel: it stays where it is meanwhile.
///
/// # Examples
///
/// ```
/// use kernel::dma_buf::DmaBuf;
///
/// /// The first bytes of a buffer, wherever it is.
/// fn magic(buffer: &DmaBuf) -> Result<[u8; 4]> {
///     let mapping = {
///         let guard = buffer.resv().lock_interruptible()?;
///         buffer.vmap(guard.held())?
///     };
///     let mut magic = [0; 4];
///     mapping.read(0, &mut magic)?;
///     Ok(magic)
/// }
/// ```
///
/// # Invariants
///
/// `map` is what `dma_buf_vmap()` gave for `dmabuf`, and is given back once, by `drop`.
pub struct KernelMapping {
    dmabuf: ARef<DmaBuf>,
    map: bindings::iosys_map,
}

// SAFETY: The mapping belongs to no task: it can be used and undone from any thread.
unsafe impl Send for KernelMapping {}

impl DmaBuf {
    /// Maps the buffer for the kernel. Its lock is taken when the mapping is dropped.
    ///
    /// `EINVAL`: the exporter offers no such mappings. Other errors are the exporter's.
    pub fn vmap(&self, held: Held<'_>) -> Result<KernelMapping> {
        held.check(self.resv())?;
        let mut map = bindings::iosys_map::default();
        // SAFETY: `self` is valid and its reservation lock is held.
        to_result(unsafe { bindings::dma_buf_vmap(self.as_raw(), &mut map) })?;
        // INVARIANT: It was just given to us.
        Ok(KernelMapping {
            dmabuf: self.into(),
            map,
        })
    }
}

impl KernelMapping {
    /// `EINVAL`: the bytes are not all the buffer's.
    fn check(&self, offset: usize, len: usize) -> Result {
        match offset.checked_add(len) {
            Some(end) if end <= self.dmabuf.size() => Ok(()),
            _ => Err(EINVAL),
        }
    }

    /// Copies bytes of the buffer to `to`. Others may change them meanwhile.
    ///
    /// `EINVAL`: they reach past its end.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result {
        self.check(offset, to.len())?;
        // SAFETY: The bytes are the buffer's, which is mapped; the C side copies them, and nothing
        // here takes them for what nobody changes.
        unsafe {
            bindings::iosys_map_memcpy_from(to.as_mut_ptr().cast(), &self.map, offset, to.len())
        };
        Ok(())
    }

    /// Copies `from` to the buffer. Others may read and change it meanwhile.
    ///
    /// `EINVAL`: it would reach past its end.
    pub fn write(&mut self, offset: usize, from: &[u8]) -> Result {
        self.check(offset, from.len())?;
        // SAFETY: As for `read`.
        unsafe {
            bindings::iosys_map_memcpy_to(&mut self.map, offset, from.as_ptr().cast(), from.len())
        };
        Ok(())
    }
}

impl Drop for KernelMapping {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. The lock is not held: it is taken for this.
        unsafe { bindings::dma_buf_vunmap_unlocked(self.dmabuf.as_raw(), &mut self.map) };
    }
}

// SPDX-License-Identifier: GPL-2.0

//! System pages that stand in for device memory: an object's backing while it is not in VRAM.

use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    dma::DataDirection,
    error::to_result,
    page::{
        Page,
        PAGE_SIZE, //
    },
    prelude::*,
    scatterlist::SGTable,
    sync::{
        aref::ARef,
        Arc, //
    },
};
use core::{
    ffi::c_void,
    marker::PhantomData,
    ops::Range,
    ptr::{
        self,
        NonNull, //
    }, //
};

/// A number of zeroed pages, accounted to the task that allocates them.
pub struct Pages(KVVec<Page>);

impl Pages {
    /// Allocates `count` pages, not 0.
    pub fn zeroed(count: usize) -> Result<Self> {
        if count == 0 {
            return Err(EINVAL);
        }
        // A rough look, so that a size that cannot be had does not call the OOM killer.
        // SAFETY: There are no requirements.
        let available = unsafe { bindings::si_mem_available() };
        if usize::try_from(available).map_or(true, |available| count > available) {
            return Err(ENOMEM);
        }
        let mut pages = KVVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            pages.push(
                Page::alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO)?,
                GFP_KERNEL,
            )?;
        }
        Ok(Self(pages))
    }

    /// Number of pages.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Page-frame number of page `index`.
    pub fn pfn(&self, index: usize) -> Option<usize> {
        let page = self.0.get(index)?;
        // SAFETY: `page` is a valid page.
        Some(unsafe { bindings::page_to_pfn(page.as_ptr()) })
    }

    /// Maps all pages for DMA by `dev`, for as long as the returned table lives.
    pub fn map<'a>(
        &'a self,
        dev: &'a Device<Bound>,
        dir: DataDirection,
    ) -> Result<MappedPages<'a>> {
        Ok(MappedPages {
            table: self.map_table(dev, 0..self.count(), dir)?,
            _pages: self,
        })
    }

    /// Pointers to some of the pages (`EINVAL`: none, or past the end).
    fn list(&self, range: Range<usize>) -> Result<KVVec<*mut bindings::page>> {
        let pages = self.0.get(range).filter(|pages| !pages.is_empty());
        let pages = pages.ok_or(EINVAL)?;
        let mut list = KVVec::with_capacity(pages.len(), GFP_KERNEL)?;
        for page in pages {
            list.push(page.as_ptr(), GFP_KERNEL)?;
        }
        Ok(list)
    }

    /// Maps some of the pages (`EINVAL`: none, or past the end) side by side for the kernel. They
    /// are not freed before `vfree()` of the address, which the caller owes.
    pub(super) fn vmap(&self, range: Range<usize>) -> Result<NonNull<c_void>> {
        let mut list = self.list(range)?;
        let count = u32::try_from(list.len())?;
        // SAFETY: The list holds `count` valid pages.
        let address = unsafe { bindings::vmap_get_pages(list.as_mut_ptr(), count) };
        let address = NonNull::new(address).ok_or(ENOMEM)?;
        // The mapping has the array now.
        let _ = list.into_raw_parts();
        Ok(address)
    }

    /// As [`Pages::map`] for some of the pages (`EINVAL`: none, or past the end), but leaves it to the caller to keep the pages and the device's driver
    /// bound until the table is dropped.
    pub(super) fn map_table(
        &self,
        dev: &Device,
        range: Range<usize>,
        dir: DataDirection,
    ) -> Result<KBox<PageTable>> {
        let mut list = self.list(range)?;
        let bytes = list.len().checked_mul(PAGE_SIZE).ok_or(EOVERFLOW)?;
        // SAFETY: `dev` is a valid device.
        let (max_mapping, max_segment) = unsafe {
            (
                bindings::dma_max_mapping_size(dev.as_raw()),
                bindings::dma_get_max_seg_size(dev.as_raw()),
            )
        };
        let max_segment = match u32::try_from(max_mapping) {
            Ok(0) | Err(_) => max_segment,
            Ok(max_mapping) => max_segment.min(max_mapping),
        };

        let mut table = KBox::new(
            PageTable {
                sgt: bindings::sg_table::default(),
                dev: dev.into(),
                dir,
                state: TableState::Empty,
            },
            GFP_KERNEL,
        )?;
        // SAFETY: `list` holds valid pages, at least one, of `bytes` bytes in all.
        to_result(unsafe {
            bindings::sg_alloc_table_from_pages_segment(
                &mut table.sgt,
                list.as_mut_ptr(),
                u32::try_from(list.len())?,
                0,
                bytes,
                max_segment,
                bindings::GFP_KERNEL,
            )
        })?;
        table.state = TableState::Allocated;
        // SAFETY: `dev` is a valid device and `table.sgt` a valid table of pages.
        to_result(unsafe {
            bindings::dma_map_sgtable(dev.as_raw(), &mut table.sgt, dir.into(), 0)
        })?;
        table.state = TableState::Mapped;
        Ok(table)
    }
}

/// Shared [`Pages`] mapped for DMA: for work that goes on when whoever began it has returned.
pub struct SharedMapping<'a> {
    table: KBox<PageTable>,
    _pages: Arc<Pages>,
    // The driver stays bound.
    _dev: PhantomData<&'a Device<Bound>>,
}

impl<'a> SharedMapping<'a> {
    /// Maps all of `pages` for DMA by `dev`, for as long as the value lives.
    pub fn new(pages: Arc<Pages>, dev: &'a Device<Bound>, dir: DataDirection) -> Result<Self> {
        Ok(Self {
            table: pages.map_table(dev, 0..pages.count(), dir)?,
            _pages: pages,
            _dev: PhantomData,
        })
    }

    /// The DMA addresses.
    pub fn table(&self) -> &SGTable {
        // SAFETY: The table is valid and not changed while `self` lives.
        unsafe { SGTable::from_raw(ptr::from_ref(&self.table.sgt).cast_mut()) }
    }
}

/// [`Pages`] mapped for DMA.
pub struct MappedPages<'a> {
    table: KBox<PageTable>,
    _pages: &'a Pages,
}

impl MappedPages<'_> {
    /// The DMA addresses.
    pub fn table(&self) -> &SGTable {
        // SAFETY: The table is valid and not changed while `self` lives.
        unsafe { SGTable::from_raw(ptr::from_ref(&self.table.sgt).cast_mut()) }
    }
}

enum TableState {
    Empty,
    Allocated,
    Mapped,
}

/// A scatter-gather table of pages, mapped for a device.
///
/// # Invariants
///
/// `state` says what `sgt` holds; `sgt` is mapped for `dev` in direction `dir` if it is `Mapped`.
pub(super) struct PageTable {
    pub(super) sgt: bindings::sg_table,
    dev: ARef<Device>,
    dir: DataDirection,
    state: TableState,
}

// SAFETY: The table is plain memory; mapping and unmapping work from any thread.
unsafe impl Send for PageTable {}
// SAFETY: A shared table is only read.
unsafe impl Sync for PageTable {}

impl Drop for PageTable {
    fn drop(&mut self) {
        if matches!(self.state, TableState::Mapped) {
            // SAFETY: By the type invariant the table is mapped so, and we unmap it once.
            unsafe {
                bindings::dma_unmap_sgtable(self.dev.as_raw(), &mut self.sgt, self.dir.into(), 0)
            };
        }
        if !matches!(self.state, TableState::Empty) {
            // SAFETY: By the type invariant the table is allocated, and we free it once.
            unsafe { bindings::sg_free_table(&mut self.sgt) };
        }
    }
}

#[macros::kunit_tests(rust_dma_buf_pages)]
mod tests {
    use super::*;
    use crate::dma_buf::tests::dma_device;

    #[test]
    fn counts() -> Result {
        assert_eq!(Pages::zeroed(0).err(), Some(EINVAL));
        assert_eq!(Pages::zeroed(usize::MAX).err(), Some(ENOMEM));
        let pages = Pages::zeroed(3)?;
        assert_eq!(pages.count(), 3);
        assert!(pages.pfn(3).is_none());
        assert!(pages.pfn(usize::MAX).is_none());
        Ok(())
    }

    #[test]
    fn each_is_another_and_zeroed() -> Result {
        // What is freed now is likely what is had next.
        let dirty = Pages::zeroed(3)?;
        for page in &dirty.0 {
            // SAFETY: There are 8 bytes to read, and nobody else uses the page.
            unsafe { page.write_raw([1; 8].as_ptr(), 0, 8)? };
        }
        drop(dirty);

        let pages = Pages::zeroed(3)?;
        for (index, page) in pages.0.iter().enumerate() {
            for offset in (0..PAGE_SIZE).step_by(8) {
                let mut bytes = [1; 8];
                // SAFETY: There is room for 8 bytes, and nobody writes the page.
                unsafe { page.read_raw(bytes.as_mut_ptr(), offset, 8)? };
                assert_eq!(bytes, [0; 8]);
            }
            assert!(pages.pfn(index).is_some());
            for other in 0..index {
                assert!(pages.pfn(other) != pages.pfn(index));
            }
        }
        Ok(())
    }

    #[test]
    fn map_all() -> Result {
        let reg = dma_device()?;
        let dev: &Device<Bound> = reg.as_ref();
        let pages = Pages::zeroed(5)?;
        let mapped = pages.map(dev, DataDirection::Bidirectional)?;
        let mut index = 0;
        for entry in mapped.table().iter() {
            // The device has no IOMMU: it sees physical addresses.
            let start = usize::try_from(entry.dma_address())?;
            for offset in (0..usize::try_from(entry.dma_len())?).step_by(PAGE_SIZE) {
                assert_eq!(pages.pfn(index), Some((start + offset) / PAGE_SIZE));
                index += 1;
            }
        }
        assert_eq!(index, 5);
        Ok(())
    }
}

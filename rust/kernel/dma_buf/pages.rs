// SPDX-License-Identifier: GPL-2.0

//! System pages that stand in for device memory: an object's backing while it is not in VRAM.

use crate::{
    alloc::{
        flags::__GFP_RETRY_MAYFAIL,
        Flags, //
    },
    bindings,
    device::{
        Bound,
        Device, //
    },
    dma::DataDirection,
    error::to_result,
    page::{
        BorrowedPage,
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
    ops::{
        Range,
        RangeInclusive, //
    },
    ptr::{
        self,
        NonNull, //
    }, //
};

/// Whoever has the pages mapped, process or device, sees them as they are at any time.
const ATTRS: usize = bindings::DMA_ATTR_REQUIRE_COHERENT as usize;

/// A number of pages, charged to the memory cgroup of the task that allocates them, or of who [pays]
/// for it, until they are freed. If there is not so much memory, or the cgroup may not have it, there
/// is an error (`ENOMEM`), and no task is killed.
///
/// [pays]: crate::cgroup::memory::Payer::charge
///
/// # Examples
///
/// ```
/// use kernel::{
///     device::{
///         Bound,
///         Device, //
///     },
///     dma::DataDirection,
///     dma_buf::{
///         pages::Pages,
///         software::SoftwareDevice, //
///     }, //
/// };
///
/// let registration = SoftwareDevice::new(c"example-pages")?;
/// let dev: &Device<Bound> = registration.as_ref();
/// let pages = Pages::zeroed(3)?;
/// let mapped = pages.map(dev, DataDirection::ToDevice)?;
/// let bytes: u64 = mapped.table().iter().map(|entry| u64::from(entry.dma_len())).sum();
/// assert_eq!(bytes, 3 * 4096);
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// Each is valid, of order 0, and ours to free.
pub struct Pages(KVVec<NonNull<bindings::page>>);

// SAFETY: Pages may be used and freed from any thread.
unsafe impl Send for Pages {}
// SAFETY: A shared reference gives the addresses of the pages only.
unsafe impl Sync for Pages {}

/// Log2 of the pages that are allocated at once where there are as many side by side: that costs
/// less than one after the other, here and for who maps or copies them.
const ORDERS: RangeInclusive<u32> = 4..=9;

impl Pages {
    /// Allocates `count` zeroed pages, not 0.
    pub fn zeroed(count: usize) -> Result<Self> {
        Self::alloc(count, GFP_KERNEL_ACCOUNT | __GFP_NOWARN | __GFP_ZERO)
    }

    /// As [`Pages::zeroed`], but they hold what was there before, whosever it was. They are filled
    /// as a whole, or cleared, before anybody is given access to them.
    pub fn unclean(count: usize) -> Result<Self> {
        Self::alloc(count, GFP_KERNEL_ACCOUNT | __GFP_NOWARN)
    }

    fn alloc(count: usize, flags: Flags) -> Result<Self> {
        if count == 0 {
            return Err(EINVAL);
        }
        // A rough look, so that others do not lose theirs for a size that cannot be had.
        // SAFETY: There are no requirements.
        let available = unsafe { bindings::si_mem_available() };
        if usize::try_from(available).map_or(true, |available| count > available) {
            return Err(ENOMEM);
        }
        let hard = flags | __GFP_RETRY_MAYFAIL;
        // Only what is free: nothing is moved or reclaimed for it.
        let easy = (flags & !GFP_KERNEL) | GFP_NOWAIT;
        let mut this = Self(KVVec::with_capacity(count, hard)?);
        for order in ORDERS.rev() {
            while count - this.0.len() >= 1 << order && this.push_block(order, easy)? {}
        }
        while this.0.len() < count {
            // SAFETY: There are no requirements.
            let page = unsafe { bindings::alloc_pages(hard.as_raw(), 0) };
            // INVARIANT: We have just allocated it.
            this.0.push(NonNull::new(page).ok_or(ENOMEM)?, GFP_KERNEL)?;
        }
        Ok(this)
    }

    /// Allocates pages that are side by side; `false` if there are none to be had so.
    fn push_block(&mut self, order: u32, flags: Flags) -> Result<bool> {
        self.0.reserve(1 << order, GFP_KERNEL)?;
        // SAFETY: There are no requirements.
        let first = NonNull::new(unsafe { bindings::alloc_pages(flags.as_raw(), order) });
        let Some(first) = first else {
            return Ok(false);
        };
        // SAFETY: The block was just allocated, in one piece that is not a compound page.
        unsafe { bindings::split_page(first.as_ptr(), order) };
        for index in 0..1 << order {
            // SAFETY: It is within the block.
            let page = unsafe { first.add(index) };
            // INVARIANT: It is of order 0 now. There is room.
            self.0.push(page, GFP_KERNEL)?;
        }
        Ok(true)
    }

    /// Fills all pages with zeros. Nobody has access to them.
    pub fn clear(&self) {
        for &page in &self.0 {
            // SAFETY: The page is valid and ours; the caller says that nobody else uses it.
            let cleared = unsafe { BorrowedPage::from_raw(page).fill_zero_raw(0, PAGE_SIZE) };
            // That is the size of a page.
            let _ = cleared;
        }
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

    /// Maps all pages for DMA by `dev`, for as long as the returned table lives. They may be mapped
    /// any number of times at once, while processes have them mapped too: all see the same bytes.
    ///
    /// `EIO` or `EOPNOTSUPP` where that would take bounce buffers or cache maintenance.
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

    /// Some of the pages (`EINVAL`: none, or past the end).
    fn some(&self, range: Range<usize>) -> Result<&[NonNull<bindings::page>]> {
        let pages = self.0.get(range).filter(|pages| !pages.is_empty());
        pages.ok_or(EINVAL)
    }

    /// Pointers to some of the pages (`EINVAL`: none, or past the end).
    fn list(&self, range: Range<usize>) -> Result<KVVec<*mut bindings::page>> {
        let pages = self.some(range)?;
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

    /// As [`Pages::map`] for some of the pages (`EINVAL`: none, or past the end), but leaves it to
    /// the caller to keep the pages and the device's driver bound until the table is dropped.
    pub(super) fn map_table(
        &self,
        dev: &Device,
        range: Range<usize>,
        dir: DataDirection,
    ) -> Result<KBox<PageTable>> {
        let pages = self.some(range)?;
        let bytes = pages.len().checked_mul(PAGE_SIZE).ok_or(EOVERFLOW)?;
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
        // SAFETY: `pages` are valid pages, at least one, of `bytes` bytes in all. The array of
        // pointers to them is only read.
        to_result(unsafe {
            bindings::sg_alloc_table_from_pages_segment(
                &mut table.sgt,
                pages.as_ptr().cast::<*mut bindings::page>().cast_mut(),
                u32::try_from(pages.len())?,
                0,
                bytes,
                max_segment,
                bindings::GFP_KERNEL,
            )
        })?;
        table.state = TableState::Allocated;
        // SAFETY: `dev` is a valid device and `table.sgt` a valid table of pages.
        to_result(unsafe {
            bindings::dma_map_sgtable(dev.as_raw(), &mut table.sgt, dir.into(), ATTRS)
        })?;
        table.state = TableState::Mapped;
        Ok(table)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        for page in &self.0 {
            // SAFETY: By the type invariant it is valid, of order 0 and ours.
            unsafe { bindings::__free_pages(page.as_ptr(), 0) };
        }
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
                bindings::dma_unmap_sgtable(
                    self.dev.as_raw(),
                    &mut self.sgt,
                    self.dir.into(),
                    ATTRS,
                )
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

    /// Blocks, and some more.
    const COUNT: usize = 37;

    impl Pages {
        fn stain(&self) -> Result {
            for &page in &self.0 {
                // SAFETY: The page is valid, there are 8 bytes to read, and nobody else uses it.
                unsafe { BorrowedPage::from_raw(page).write_raw([1; 8].as_ptr(), 0, 8)? };
            }
            Ok(())
        }

        fn check_zeroed(&self) -> Result {
            for &page in &self.0 {
                for offset in (0..PAGE_SIZE).step_by(8) {
                    let mut bytes = [1; 8];
                    // SAFETY: The page is valid, there is room for 8 bytes, and nobody writes it.
                    unsafe {
                        BorrowedPage::from_raw(page).read_raw(bytes.as_mut_ptr(), offset, 8)?
                    };
                    assert_eq!(bytes, [0; 8]);
                }
            }
            Ok(())
        }
    }

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
        let dirty = Pages::zeroed(COUNT)?;
        dirty.stain()?;
        drop(dirty);

        let pages = Pages::zeroed(COUNT)?;
        for index in 0..COUNT {
            assert!(pages.pfn(index).is_some());
            for other in 0..index {
                assert!(pages.pfn(other) != pages.pfn(index));
            }
        }
        pages.check_zeroed()
    }

    #[test]
    fn cleared() -> Result {
        let pages = Pages::unclean(COUNT)?;
        assert_eq!(pages.count(), COUNT);
        pages.stain()?;
        pages.clear();
        pages.check_zeroed()
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

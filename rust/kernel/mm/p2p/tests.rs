// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of importers of ordinary memory, and of what is refused.

#[macros::kunit_tests(rust_mm_p2p)]
mod region {
    use crate::{
        bindings,
        device::{
            Bound,
            Device, //
        },
        dma::DmaAddress,
        dma_buf::tests::dma_device,
        error::{
            from_err_ptr,
            to_result, //
        },
        mm::{
            p2p::{
                Importer,
                Region, //
            },
            Mm, //
        },
        page::PAGE_SIZE,
        prelude::*,
        sync::{
            atomic::{
                Atomic,
                Relaxed, //
            },
            Arc, //
        },
        time::{
            delay::fsleep,
            Delta, //
        }, //
    };
    use core::{
        ops::Range,
        ptr, //
    };

    const PAGES: usize = 8;

    // As in asm-generic/mman-common.h.
    const PROT_READ: usize = 1;
    const PROT_WRITE: usize = 2;
    const MAP_PRIVATE: usize = 2;
    const MAP_ANONYMOUS: usize = 0x20;
    const MAP_SHARED: usize = 1;
    const MAP_FIXED: usize = 0x10;
    const O_RDWR: c_int = 2;

    /// Pages that exporters have mapped, and those that were undone.
    static MAPPED: Atomic<u64> = Atomic::new(0);
    static UNMAPPED: Atomic<u64> = Atomic::new(0);

    /// Times that the exporter is to take long for a map, and to zap what it is asked for.
    static SLOW_MAPS: Atomic<u32> = Atomic::new(0);

    fn pages_of(map: &bindings::p2p_vma_map) -> u64 {
        u64::try_from((map.end - map.start) / PAGE_SIZE).unwrap_or(u64::MAX)
    }

    /// # Safety
    ///
    /// Called by the core with a map of a VMA that has [`VM_OPS`].
    unsafe extern "C" fn p2p_map(
        vma: *mut bindings::vm_area_struct,
        map: *mut bindings::p2p_vma_map,
    ) -> c_int {
        // SAFETY: The core passes a mapping, which is locked, and its own structure.
        let (denies, map) = unsafe { (!(*vma).vm_private_data.is_null(), &*map) };
        if denies {
            return EPERM.to_errno();
        }
        let slow = SLOW_MAPS.load(Relaxed);
        if slow != 0 {
            SLOW_MAPS.store(slow - 1, Relaxed);
            // Longer than the core has patience with ranges that change.
            fsleep(Delta::from_millis(1100));
            // SAFETY: The file is open; removing mappings is always allowed.
            unsafe { bindings::unmap_mapping_range((*map.file).f_mapping, 0, 1 << 20, 1) };
            return EAGAIN.to_errno();
        }
        MAPPED.fetch_add(pages_of(map), Relaxed);
        0
    }

    /// # Safety
    ///
    /// Called by the core with a map that `p2p_map` was called for.
    unsafe extern "C" fn p2p_unmap(map: *mut bindings::p2p_vma_map) {
        // SAFETY: The core passes its own structure.
        UNMAPPED.fetch_add(pages_of(unsafe { &*map }), Relaxed);
    }

    const VM_OPS: bindings::vm_operations_struct = bindings::vm_operations_struct {
        p2p_map: Some(p2p_map),
        p2p_unmap: Some(p2p_unmap),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// Called by the memory management with a VMA that is being made.
    unsafe extern "C" fn mmap(
        file: *mut bindings::file,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: The core passes a mapping that is being made, which nobody else sees yet.
        unsafe {
            bindings::vma_set_pfnmap(vma);
            (*vma).vm_ops = &const { VM_OPS };
            (*vma).vm_private_data = (*file).private_data;
        }
        0
    }

    const FILE_OPS: bindings::file_operations = bindings::file_operations {
        mmap: Some(mmap),
        ..pin_init::zeroed()
    };

    /// A file whose mappings are an exporter's; it refuses peers if `denies`.
    struct ExporterFile(*mut bindings::file);

    impl ExporterFile {
        fn new(denies: bool) -> Result<Self> {
            let private = match denies {
                true => ptr::dangling_mut::<c_void>(),
                false => ptr::null_mut(),
            };
            // SAFETY: The operations are constant.
            Ok(Self(from_err_ptr(unsafe {
                bindings::anon_inode_getfile(
                    c"p2p".as_char_ptr(),
                    &const { FILE_OPS },
                    private,
                    O_RDWR,
                )
            })?))
        }

        /// Maps it over `pages` pages at `start`, which are the test's own.
        fn map_over(&self, start: usize, pages: usize) -> Result {
            // SAFETY: The file is open; nothing refers to the addresses.
            let at = unsafe {
                bindings::vm_mmap(
                    self.0,
                    start,
                    pages * PAGE_SIZE,
                    PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_FIXED,
                    0,
                )
            };
            (at == start).then_some(()).ok_or(ENOMEM)
        }

        /// What an exporter does whose pages move.
        fn zap(&self) {
            // SAFETY: The file is open; removing mappings is always allowed.
            unsafe { bindings::unmap_mapping_range((*self.0).f_mapping, 0, 1 << 20, 1) };
        }
    }

    impl Drop for ExporterFile {
        fn drop(&mut self) {
            // SAFETY: The reference is ours.
            unsafe { bindings::fput(self.0) };
        }
    }

    fn exported() -> (u64, u64) {
        (MAPPED.load(Relaxed), UNMAPPED.load(Relaxed))
    }

    /// Counts what the core calls; refuses addresses if `fails`.
    struct Counter {
        published: Atomic<u32>,
        invalidated: Atomic<u32>,
        pages: Atomic<u64>,
        fails: bool,
    }

    impl Counter {
        fn new(fails: bool) -> Result<Arc<Self>> {
            let counter = Self {
                published: Atomic::new(0),
                invalidated: Atomic::new(0),
                pages: Atomic::new(0),
                fails,
            };
            Ok(Arc::new(counter, GFP_KERNEL)?)
        }

        fn counts(&self) -> (u32, u32) {
            (self.published.load(Relaxed), self.invalidated.load(Relaxed))
        }
    }

    impl Importer for Arc<Counter> {
        fn publish(&self, pages: &[DmaAddress]) -> Result {
            if self.fails {
                return Err(E2BIG);
            }
            let pages = u64::try_from(pages.len())?;
            self.pages.store(pages, Relaxed);
            self.published.fetch_add(1, Relaxed);
            Ok(())
        }

        fn invalidate(&self) {
            self.invalidated.fetch_add(1, Relaxed);
        }
    }

    /// User addresses of the test's own; they end with its process.
    fn user_pages(pages: usize, writable: bool) -> Result<usize> {
        let prot = if writable {
            PROT_READ | PROT_WRITE
        } else {
            PROT_READ
        };
        // SAFETY: A task of KUnit may be given an address space, and memory in it.
        let start = unsafe {
            to_result(bindings::kunit_attach_mm())?;
            bindings::vm_mmap(
                ptr::null_mut(),
                0,
                pages * PAGE_SIZE,
                prot,
                MAP_PRIVATE | MAP_ANONYMOUS,
                0,
            )
        };
        // Errors are the last addresses.
        if start.is_multiple_of(PAGE_SIZE) {
            Ok(start)
        } else {
            Err(ENOMEM)
        }
    }

    fn unmap_user(start: usize, pages: usize) -> Result {
        // SAFETY: The addresses are the test's own, and nothing refers to them.
        to_result(unsafe { bindings::vm_munmap(start, pages * PAGE_SIZE) })
    }

    fn region(
        dev: &Device<Bound>,
        range: Range<usize>,
        counter: &Arc<Counter>,
    ) -> Result<Pin<KBox<Region<Arc<Counter>>>>> {
        // SAFETY: `user_pages()` has given the task an address space, which it keeps.
        let mm = unsafe { &*(*bindings::get_current()).mm.cast::<Mm>() };
        // SAFETY: The tests' devices outlive their regions.
        unsafe { Region::new(dev, mm, range, true, counter.clone()) }
    }

    fn whole(start: usize) -> Range<usize> {
        start..start + PAGES * PAGE_SIZE
    }

    #[test]
    fn maps_ordinary_memory_once() -> Result {
        let dev = dma_device()?;
        let counter = Counter::new(false)?;
        let start = user_pages(PAGES, true)?;
        let region = region(dev.as_ref(), whole(start), &counter)?;
        assert_eq!(counter.counts(), (0, 0));
        region.map()?;
        region.map()?;
        assert_eq!(counter.counts(), (1, 0));
        assert_eq!(counter.pages.load(Relaxed), 8);
        region.unmap();
        region.unmap();
        assert_eq!(counter.counts(), (1, 1));
        region.map()?;
        drop(region);
        assert_eq!(counter.counts(), (2, 2));
        unmap_user(start, PAGES)
    }

    #[test]
    fn unmapping_a_page_invalidates_and_refuses() -> Result {
        let dev = dma_device()?;
        let counter = Counter::new(false)?;
        let start = user_pages(PAGES, true)?;
        let region = region(dev.as_ref(), whole(start), &counter)?;
        region.map()?;
        unmap_user(start + PAGE_SIZE, 1)?;
        assert_eq!(counter.counts(), (1, 1));
        assert_eq!(region.map(), Err(EFAULT));
        assert_eq!(counter.counts(), (1, 1));
        drop(region);
        assert_eq!(counter.counts(), (1, 1));
        unmap_user(start, PAGES)
    }

    #[test]
    fn other_addresses_do_not_invalidate() -> Result {
        let dev = dma_device()?;
        let counter = Counter::new(false)?;
        let start = user_pages(PAGES + 1, true)?;
        let region = region(dev.as_ref(), whole(start), &counter)?;
        region.map()?;
        unmap_user(start + PAGES * PAGE_SIZE, 1)?;
        assert_eq!(counter.counts(), (1, 0));
        drop(region);
        unmap_user(start, PAGES)
    }

    #[test]
    fn read_only_memory_is_not_for_writing() -> Result {
        let dev = dma_device()?;
        let counter = Counter::new(false)?;
        let start = user_pages(PAGES, false)?;
        let region = region(dev.as_ref(), whole(start), &counter)?;
        assert_eq!(region.map(), Err(EACCES));
        assert_eq!(counter.counts(), (0, 0));
        drop(region);
        unmap_user(start, PAGES)
    }

    #[test]
    fn an_error_of_the_importer_undoes_the_mapping() -> Result {
        let dev = dma_device()?;
        let counter = Counter::new(true)?;
        let start = user_pages(PAGES, true)?;
        let region = region(dev.as_ref(), whole(start), &counter)?;
        assert_eq!(region.map(), Err(E2BIG));
        drop(region);
        assert_eq!(counter.counts(), (0, 0));
        unmap_user(start, PAGES)
    }

    #[test]
    fn a_mixed_range_is_split_and_zapped() -> Result {
        let dev = dma_device()?;
        let counter = Counter::new(false)?;
        let start = user_pages(PAGES, true)?;
        let file = ExporterFile::new(false)?;
        file.map_over(start + 2 * PAGE_SIZE, 3)?;
        let region = region(dev.as_ref(), whole(start), &counter)?;
        let (mapped, unmapped) = exported();
        region.map()?;
        assert_eq!(exported(), (mapped + 3, unmapped));
        assert_eq!(counter.pages.load(Relaxed), 8);
        // No page-table entry of it was ever there.
        file.zap();
        assert_eq!(counter.counts(), (1, 1));
        region.map()?;
        assert_eq!(exported(), (mapped + 6, unmapped + 3));
        // The exporter outlives its mapping.
        drop(file);
        unmap_user(start, PAGES)?;
        assert_eq!(counter.counts(), (2, 2));
        drop(region);
        assert_eq!(exported(), (mapped + 6, unmapped + 6));
        Ok(())
    }

    #[test]
    fn an_exporter_may_move_memory_first() -> Result {
        let dev = dma_device()?;
        let counter = Counter::new(false)?;
        let start = user_pages(PAGES, true)?;
        let file = ExporterFile::new(false)?;
        file.map_over(start, PAGES)?;
        let region = region(dev.as_ref(), whole(start), &counter)?;
        let (mapped, unmapped) = exported();
        SLOW_MAPS.store(1, Relaxed);
        let result = region.map();
        SLOW_MAPS.store(0, Relaxed);
        assert_eq!(result, Ok(()));
        assert_eq!(exported(), (mapped + 8, unmapped));
        // Nobody was given what was not to stay.
        assert_eq!(counter.counts(), (1, 0));
        drop(region);
        unmap_user(start, PAGES)
    }

    #[test]
    fn one_refusal_undoes_all_parts() -> Result {
        let dev = dma_device()?;
        let counter = Counter::new(false)?;
        let start = user_pages(PAGES, true)?;
        let (allows, denies) = (ExporterFile::new(false)?, ExporterFile::new(true)?);
        allows.map_over(start + PAGE_SIZE, 2)?;
        denies.map_over(start + 5 * PAGE_SIZE, 1)?;
        let region = region(dev.as_ref(), whole(start), &counter)?;
        let (mapped, unmapped) = exported();
        assert_eq!(region.map(), Err(EPERM));
        assert_eq!(exported(), (mapped + 2, unmapped + 2));
        assert_eq!(counter.counts(), (0, 0));
        drop(region);
        unmap_user(start, PAGES)
    }

    #[test]
    fn bad_ranges_are_refused() -> Result {
        let dev = dma_device()?;
        let counter = Counter::new(false)?;
        let start = user_pages(PAGES, true)?;
        let bad = [
            start..start,
            start + 1..start + 1 + PAGE_SIZE,
            start..start + 1,
            Range {
                start: start + PAGE_SIZE,
                end: start,
            },
            start..0_usize.wrapping_sub(PAGE_SIZE),
        ];
        for range in bad {
            assert_eq!(region(dev.as_ref(), range, &counter).err(), Some(EINVAL));
        }
        unmap_user(start, PAGES)
    }
}

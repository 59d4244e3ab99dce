// SPDX-License-Identifier: GPL-2.0 OR MIT

//! KUnit tests of objects that are given to devices by user address.

use super::*;
use crate::{
    dma::DmaAddress,
    dma_buf::tests::dma_device,
    mm::{
        p2p::{
            exporter::{
                self,
                Addresses,
                Request, //
            },
            Importer,
            Region, //
        },
        Mm, //
    },
    new_mutex,
    sync::Mutex, //
};

// As in asm-generic/mman-common.h.
const PROT_READ: usize = 1;
const PROT_WRITE: usize = 2;
const MAP_SHARED: usize = 1;

/// Pages of the tests' objects.
const PAGES: usize = 8;

impl exporter::Exporter for KunitObject {
    type Source = Object<Self>;
    type Mapping = Arc<Events>;

    fn p2p_map<'a>(
        obj: &Object<Self>,
        request: Request<'a>,
    ) -> Result<(Addresses<'a>, Arc<Events>)> {
        obj.events.vma_map.check()?;
        let mut pages = request.pages();
        obj.events.vma_first.set(pages.start);
        obj.events.vma_pages.set(pages.len());
        pages.end -= usize::try_from(obj.events.vma_short.get())?;
        let addresses = request.map_pages(obj.pages.clone(), pages)?;
        obj.events.vma_mapped.up();
        Ok((addresses, obj.events.clone()))
    }

    fn p2p_unmap(obj: &Object<Self>, _: &device::Device, mapping: Arc<Events>) {
        // The object is there, even if nobody else has it.
        if core::ptr::eq(&*obj.events, &*mapping) && mapping.freed.get() == 0 {
            mapping.vma_unmapped.up();
        }
    }
}

/// The most pages that a test maps.
const MAX_PAGES: usize = 16;

/// Remembers what the device was given.
#[pin_data]
struct Importing {
    #[pin]
    pages: Mutex<KVec<DmaAddress>>,
    told: Count,
}

impl Importing {
    fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                pages <- new_mutex!(KVec::with_capacity(MAX_PAGES, GFP_KERNEL)?),
                told: Count::new(),
            }? Error),
            GFP_KERNEL,
        )
    }
}

impl Importer for Arc<Importing> {
    fn publish(&self, pages: &[DmaAddress]) -> Result {
        let mut list = self.pages.lock();
        list.clear();
        for &page in pages {
            // Nothing may be allocated here.
            list.push_within_capacity(page).map_err(|_| ENOMEM)?;
        }
        Ok(())
    }

    fn invalidate(&self) {
        self.told.up();
    }
}

/// Maps `count` pages of a dma-buf, from page `first` on, to the test's address space.
fn map_user(dmabuf: &DmaBuf, first: usize, count: usize) -> Result<usize> {
    // SAFETY: A task of KUnit may be given an address space, and mappings in it.
    let start = unsafe {
        crate::error::to_result(bindings::kunit_attach_mm())?;
        bindings::vm_mmap(
            (*dmabuf.as_raw()).file,
            0,
            count * PAGE_SIZE,
            PROT_READ | PROT_WRITE,
            MAP_SHARED,
            first * PAGE_SIZE,
        )
    };
    // Errors are the last addresses.
    start
        .is_multiple_of(PAGE_SIZE)
        .then_some(start)
        .ok_or(ENOMEM)
}

fn unmap_user(start: usize, count: usize) -> Result {
    // SAFETY: The addresses are the test's own, and nothing refers to them.
    crate::error::to_result(unsafe { bindings::vm_munmap(start, count * PAGE_SIZE) })
}

/// A region of `count` pages from `start` on.
fn region(
    dev: &device::Device<Bound>,
    start: usize,
    count: usize,
    importing: &Arc<Importing>,
) -> Result<Pin<KBox<Region<Arc<Importing>>>>> {
    // SAFETY: `map_user()` has given the task an address space, which it keeps.
    let mm = unsafe { &*(*bindings::get_current()).mm.cast::<Mm>() };
    // SAFETY: The tests' devices outlive their regions.
    unsafe {
        Region::new(
            dev,
            mm,
            start..start + count * PAGE_SIZE,
            true,
            importing.clone(),
        )
    }
}

/// Whether the device was given these pages of the object, which has no IOMMU.
fn assert_given(importing: &Importing, obj: &Object<KunitObject>, first: usize, count: usize) {
    let pages = importing.pages.lock();
    assert_eq!(pages.len(), count);
    for (page, &dma) in (first..).zip(pages.iter()) {
        let expected = obj
            .pages
            .pfn(page)
            .map(|pfn| (pfn * PAGE_SIZE) as DmaAddress);
        assert_eq!(Some(dma), expected);
    }
    assert_eq!(obj.events.vma_first.get(), first as i32);
    assert_eq!(obj.events.vma_pages.get(), count as i32);
}

#[macros::kunit_tests(rust_drm_gem_managed_peers)]
mod suite {
    use super::*;

    #[test]
    fn the_pages_behind_the_addresses_are_given() -> Result {
        let parent = faux_device()?;
        let rig = Rig::new(&parent)?;
        let reg = dma_device()?;
        let events = Events::new()?;
        let obj = rig.object(PAGES * PAGE_SIZE, PAGES, &events)?;
        let dmabuf = export(&obj)?;
        let importing = Importing::new()?;

        // Pages 2 to 7 are mapped; three of them are wanted.
        let start = map_user(&dmabuf, 2, 6)?;
        let wanted = region(reg.as_ref(), start + PAGE_SIZE, 3, &importing)?;
        wanted.map()?;
        assert_given(&importing, &obj, 3, 3);
        assert_eq!((events.vma_mapped.get(), events.vma_unmapped.get()), (1, 0));
        drop(wanted);
        assert_eq!((events.vma_mapped.get(), events.vma_unmapped.get()), (1, 1));

        // The mapping is split in two, neither of which starts where it did.
        unmap_user(start, 1)?;
        unmap_user(start + 3 * PAGE_SIZE, 1)?;
        for (at, count) in [(1, 2), (2, 1), (4, 2), (5, 1)] {
            let wanted = region(reg.as_ref(), start + at * PAGE_SIZE, count, &importing)?;
            wanted.map()?;
            assert_given(&importing, &obj, 2 + at, count);
        }
        assert_eq!(events.vma_mapped.get(), events.vma_unmapped.get());
        unmap_user(start, 6)
    }

    #[test]
    fn errors_leave_nothing() -> Result {
        let parent = faux_device()?;
        let rig = Rig::new(&parent)?;
        let reg = dma_device()?;
        let events = Events::new()?;
        let obj = rig.small(&events)?;
        let dmabuf = export(&obj)?;
        let importing = Importing::new()?;
        let start = map_user(&dmabuf, 0, 2)?;
        let wanted = region(reg.as_ref(), start, 2, &importing)?;
        events.vma_map.set(Err(EPERM));
        assert_eq!(wanted.map(), Err(EPERM));
        events.vma_map.set(Ok(()));
        // An exporter that does not say where all pages are.
        events.vma_short.set(1);
        assert_eq!(wanted.map(), Err(EINVAL));
        assert_eq!((events.vma_mapped.get(), events.vma_unmapped.get()), (0, 0));
        events.vma_short.set(0);
        wanted.map()?;
        assert_given(&importing, &obj, 0, 2);
        drop(wanted);
        assert_eq!((events.vma_mapped.get(), events.vma_unmapped.get()), (1, 1));
        unmap_user(start, 2)
    }

    #[test]
    fn zaps_tell_who_has_the_pages() -> Result {
        let parent = faux_device()?;
        let rig = Rig::new(&parent)?;
        let reg = dma_device()?;
        let events = Events::new()?;
        let obj = rig.object(PAGES * PAGE_SIZE, PAGES, &events)?;
        let dmabuf = export(&obj)?;
        let (first, second) = (Importing::new()?, Importing::new()?);
        let start = map_user(&dmabuf, 0, PAGES)?;
        let one = region(reg.as_ref(), start, 4, &first)?;
        let other = region(reg.as_ref(), start + 3 * PAGE_SIZE, 4, &second)?;
        one.map()?;
        other.map()?;
        let told = || (first.told.get(), second.told.get());
        obj.zap(7..8)?;
        assert_eq!(told(), (0, 0));
        obj.zap(5..7)?;
        assert_eq!(told(), (0, 1));
        obj.zap(3..4)?;
        assert_eq!(told(), (1, 1));
        other.map()?;
        assert_given(&second, &obj, 3, 4);
        drop((one, other));
        assert_eq!(events.vma_mapped.get(), 3);
        assert_eq!(events.vma_unmapped.get(), 3);
        unmap_user(start, PAGES)
    }

    #[test]
    fn a_mapping_keeps_the_object() -> Result {
        let parent = faux_device()?;
        let rig = Rig::new(&parent)?;
        let reg = dma_device()?;
        let events = Events::new()?;
        let obj = rig.small(&events)?;
        let dmabuf = export(&obj)?;
        let importing = Importing::new()?;
        let start = map_user(&dmabuf, 0, 2)?;
        let wanted = region(reg.as_ref(), start, 2, &importing)?;
        wanted.map()?;
        drop((obj, dmabuf));
        unmap_user(start, 2)?;
        assert_eq!(importing.told.get(), 1);
        assert_eq!(wanted.map(), Err(EFAULT));
        drop(wanted);
        flush_releases();
        assert_eq!(events.vma_unmapped.get(), 1);
        assert_eq!(events.freed.get(), 1);
        Ok(())
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Exporters: the owners of memory that VMAs show, who decide which devices may reach it, and how.
//!
//! The rules that the types do not enforce:
//!
//! - `p2p_map` decides at each call, and maps exactly the pages that it is asked for.
//! - When pages are to show or be something else, the exporter zaps their VMAs under the lock that
//!   `p2p_map` takes, so that a map after it sees the new state.
//! - What the addresses led to is not reused before `p2p_unmap`.

use crate::{
    bindings,
    device::Device,
    dma::DmaAddress,
    dma_buf::pages::Pages,
    io::PhysAddr,
    page::PAGE_SIZE,
    pci::p2pdma::{
        Provider,
        Ranges,
        Route, //
    },
    prelude::*,
    sync::{
        aref::{
            ARef,
            AlwaysRefCounted, //
        },
        Arc, //
    }, //
};
use core::{
    marker::PhantomData,
    ops::Range,
    ptr,
    slice, //
};

/// What an exporter does when a device is given pages of its VMAs, and when they are given back.
///
/// # Examples
///
/// A device whose objects have ranges of its BAR for as long as they live, so that a mapping holds
/// nothing but what the core keeps for it.
///
/// ```
/// use kernel::{
///     device::{
///         Bound,
///         Device, //
///     },
///     mm::p2p::exporter::{
///         Addresses,
///         Exporter,
///         Request, //
///     },
///     pci::{
///         self,
///         p2pdma::Provider, //
///     },
///     prelude::*,
///     sync::aref::AlwaysRefCounted, //
/// };
///
/// /// What the device's VMAs show.
/// trait Buffer: AlwaysRefCounted + 'static {
///     /// Runs something while the device is bound; `ENODEV` if it is not.
///     fn with_device<R>(
///         &self,
///         f: impl FnOnce(&pci::Device<Bound>) -> Result<R>,
///     ) -> Result<R>;
///
///     /// Where its first page is in BAR 2.
///     fn offset(&self) -> u64;
///
///     /// Whether devices may write.
///     fn is_writable(&self) -> bool;
/// }
///
/// struct Fixed<B>(core::marker::PhantomData<B>);
///
/// impl<B: Buffer> Exporter for Fixed<B> {
///     type Source = B;
///     type Mapping = ();
///
///     fn p2p_map<'a>(source: &B, request: Request<'a>) -> Result<(Addresses<'a>, ())> {
///         if request.is_write() && !source.is_writable() {
///             return Err(EACCES);
///         }
///         source.with_device(|pdev| {
///             let provider = Provider::new(pdev, 2)?;
///             let mut ranges = provider.ranges();
///             let pages = request.pages();
///             let first = source.offset() + u64::try_from(pages.start * 4096)?;
///             ranges.push(first, pages.len() * 4096)?;
///             // Finds the route; `EXDEV` if there is none.
///             Ok((request.map_bar(&provider, &ranges)?, ()))
///         })
///     }
///
///     fn p2p_unmap(_source: &B, _importer: &Device, (): ()) {}
/// }
/// ```
pub trait Exporter: Sized + 'static {
    /// What the VMAs show, a GEM object for example. Each mapping has a reference to it.
    type Source: AlwaysRefCounted;

    /// What one mapping holds until the importer undoes it: slots of an aperture for example.
    type Mapping: Send;

    /// May this device have these pages, and how does it reach them?
    ///
    /// Called with `mmap_lock` held for reading. May sleep, and may take the reservation locks that
    /// the fault handler may take.
    ///
    /// `EPERM`: the owner or the policy does not allow it. `EACCES`: not for writing. `EXDEV`: the
    /// device has no route to the memory. `ENOSPC`, `EAGAIN`: not now. `ENODEV`: the exporter's
    /// device is gone.
    fn p2p_map<'a>(
        source: &Self::Source,
        request: Request<'a>,
    ) -> Result<(Addresses<'a>, Self::Mapping)>;

    /// The device no longer uses a mapping; its addresses are undone.
    ///
    /// Called without `mmap_lock`, maybe long after the VMA is gone. Who moves the memory may wait
    /// for this with a reservation lock held, but not for long.
    fn p2p_unmap(source: &Self::Source, importer: &Device, mapping: Self::Mapping);
}

/// What an importer asks for: some pages, for a device.
///
/// # Invariants
///
/// `raw` is a map that is being made, for all of `'a`: its device is bound until it is undone, and
/// its array, which is ours, has room for an address of each of `pages`, of which there is one.
pub struct Request<'a> {
    raw: &'a bindings::p2p_vma_map,
    pages: Range<usize>,
}

impl<'a> Request<'a> {
    /// The device.
    pub fn importer(&self) -> &'a Device {
        // SAFETY: By the type invariant.
        unsafe { Device::from_raw(self.raw.importer) }
    }

    /// The name of the device's driver, if it has one.
    pub fn driver_name(&self) -> Option<&CStr> {
        // SAFETY: The device is valid, and is bound to the driver that it has.
        unsafe {
            let driver = (*self.raw.importer).driver;
            (!driver.is_null()).then(|| CStr::from_char_ptr((*driver).name))
        }
    }

    /// The pages, as the source counts them.
    pub fn pages(&self) -> Range<usize> {
        self.pages.clone()
    }

    /// Whether the device may write.
    pub fn is_write(&self) -> bool {
        self.raw.write
    }

    /// Gives the device ranges of a BAR, in the order of the pages.
    ///
    /// `EXDEV`: there is no route. `EINVAL`: the ranges are another provider's, or not as many pages
    /// as were asked for.
    pub fn map_bar(self, provider: &Provider<'_>, ranges: &Ranges) -> Result<Addresses<'a>> {
        if !ranges.is_of(provider) {
            return Err(EINVAL);
        }
        let pairs = ranges
            .as_slice()
            .iter()
            .map(|range| (range.paddr, range.len));
        match provider.route(self.importer()) {
            Route::None => Err(EXDEV),
            Route::Switch => {
                let mut at = 0;
                for (start, length) in pairs {
                    at = self.fill(at, provider.bus_address(start), length)?;
                }
                self.finish(at, Mapped::none(self.importer()))
            }
            Route::HostBridge | Route::Iommu => self.map(pairs, bindings::DMA_ATTR_MMIO, None),
        }
    }

    /// Gives the device some of `pages`, as many as were asked for (else `EINVAL`).
    ///
    /// `EIO`: the device cannot reach one without a bounce buffer, which nobody would copy.
    pub fn map_pages(self, pages: Arc<Pages>, range: Range<usize>) -> Result<Addresses<'a>> {
        if range.end > pages.count() {
            return Err(EINVAL);
        }
        let kept = pages.clone();
        let frames = range.map_while(|index| {
            let start = pages.pfn(index)?.checked_mul(PAGE_SIZE)?;
            Some((PhysAddr::try_from(start).ok()?, PAGE_SIZE))
        });
        self.map(frames, bindings::DMA_ATTR_REQUIRE_COHERENT, Some(kept))
    }

    /// Gives the device addresses of the exporter's own, by a link between the two for example.
    ///
    /// # Safety
    ///
    /// The device may use the addresses until [`Exporter::p2p_unmap`].
    pub unsafe fn fill_with(
        self,
        mut address: impl FnMut(usize) -> Result<DmaAddress>,
    ) -> Result<Addresses<'a>> {
        let mut at = 0;
        for page in self.pages.clone() {
            at = self.fill(at, address(page)?, PAGE_SIZE)?;
        }
        self.finish(at, Mapped::none(self.importer()))
    }

    /// Maps physical ranges for the device.
    fn map(
        self,
        ranges: impl Iterator<Item = (PhysAddr, usize)>,
        attrs: u32,
        pages: Option<Arc<Pages>>,
    ) -> Result<Addresses<'a>> {
        let dir = match self.raw.write {
            true => bindings::dma_data_direction::DMA_BIDIRECTIONAL,
            false => bindings::dma_data_direction::DMA_TO_DEVICE,
        };
        let mut mapped = Mapped::none(self.importer());
        mapped.dir = dir;
        mapped.attrs = usize::try_from(attrs)?;
        mapped.pages = pages;
        let mut at = 0;
        for (start, length) in ranges {
            // Room first: what has been mapped is not lost.
            mapped.ranges.reserve(1, GFP_KERNEL)?;
            // SAFETY: The device is bound, by the type invariant. The callers pass whole pages of
            // memory, or of a BAR, with the attributes for such.
            let dma = unsafe {
                bindings::dma_map_phys(self.raw.importer, start, length, dir, mapped.attrs)
            };
            // SAFETY: As above.
            if unsafe { bindings::dma_mapping_error(self.raw.importer, dma) } != 0 {
                return Err(EIO);
            }
            // There is room.
            // INVARIANT: It is mapped so.
            let _ = mapped.ranges.push_within_capacity((dma, length));
            at = self.fill(at, dma, length)?;
        }
        self.finish(at, mapped)
    }

    /// Fills in the addresses of `length` bytes from `start` on, from place `at` on. Returns the
    /// place after them.
    fn fill(&self, at: usize, start: DmaAddress, length: usize) -> Result<usize> {
        let end = at.checked_add(length / PAGE_SIZE).ok_or(EOVERFLOW)?;
        // SAFETY: By the type invariant.
        let all = unsafe { slice::from_raw_parts_mut(self.raw.dma, self.pages.len()) };
        let mut address = start;
        for place in all.get_mut(at..end).ok_or(EINVAL)? {
            *place = address;
            address = address.wrapping_add(PAGE_SIZE as DmaAddress);
        }
        Ok(end)
    }

    /// `EINVAL`: not all pages have been given an address.
    fn finish(&self, count: usize, mapped: Mapped) -> Result<Addresses<'a>> {
        if count != self.pages.len() {
            return Err(EINVAL);
        }
        Ok(Addresses(mapped, PhantomData))
    }
}

/// Addresses that a device is given, on their way from [`Exporter::p2p_map`] to it. They are undone
/// when this is dropped.
pub struct Addresses<'a>(Mapped, PhantomData<Request<'a>>);

/// What is mapped for a device.
///
/// # Invariants
///
/// `ranges` are mapped for `importer`, which is bound, in direction `dir` with `attrs`.
struct Mapped {
    importer: ARef<Device>,
    ranges: KVVec<(DmaAddress, usize)>,
    dir: bindings::dma_data_direction,
    attrs: usize,
    // Dropped when nothing leads to them any more.
    pages: Option<Arc<Pages>>,
}

impl Mapped {
    /// Nothing.
    fn none(importer: &Device) -> Self {
        // INVARIANT: There are no ranges.
        Self {
            importer: importer.into(),
            ranges: KVVec::new(),
            dir: bindings::dma_data_direction::DMA_NONE,
            attrs: 0,
            pages: None,
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        for &(dma, length) in &self.ranges {
            // SAFETY: By the type invariant; we undo it once.
            unsafe {
                bindings::dma_unmap_phys(self.importer.as_raw(), dma, length, self.dir, self.attrs)
            };
        }
    }
}

/// What is kept of a mapping.
struct Record<E: Exporter> {
    mapped: Mapped,
    mapping: E::Mapping,
    source: ARef<E::Source>,
}

/// The C operations of exporter `E`.
pub(crate) struct Callbacks<E>(PhantomData<E>);

impl<E: Exporter> Callbacks<E> {
    /// Does what `p2p_map` of a VMA is to do, which shows `pages` of `source` at the addresses that
    /// are asked for.
    ///
    /// # Safety
    ///
    /// `raw` is the argument of a `p2p_map` that is running, of operations whose `p2p_unmap` is
    /// [`Self::unmap`]. `pages` are as many as it names.
    pub(crate) unsafe fn map(
        raw: *mut bindings::p2p_vma_map,
        source: &E::Source,
        pages: Range<usize>,
    ) -> Result {
        // Room first: what has been mapped is not undone because memory ran out.
        let room = KBox::<Record<E>>::new_uninit(GFP_KERNEL)?;
        let request = Request {
            // INVARIANT: By the safety requirements. The core does not ask for nothing, and its
            // device is bound until all of it is undone.
            // SAFETY: As above.
            raw: unsafe { &*raw },
            pages,
        };
        let (addresses, mapping) = E::p2p_map(source, request)?;
        let record = Record::<E> {
            // The core undoes it before the importer's device is unbound.
            mapped: addresses.0,
            mapping,
            source: source.into(),
        };
        let record = KBox::write(room, record);
        // SAFETY: The map is being made; the field is the exporter's.
        unsafe { (*raw).private = KBox::into_raw(record).cast() };
        Ok(())
    }

    /// The `p2p_unmap` of a VMA.
    ///
    /// # Safety
    ///
    /// Called by the core with a map that [`Self::map`] has made.
    pub(crate) unsafe extern "C" fn unmap(raw: *mut bindings::p2p_vma_map) {
        // SAFETY: `map` has put the box there, and nobody else uses it.
        let record = unsafe {
            let private = ptr::replace(&raw mut (*raw).private, ptr::null_mut());
            KBox::from_raw(private.cast::<Record<E>>())
        };
        let Record {
            mapped,
            mapping,
            source,
        } = KBox::into_inner(record);
        let importer = mapped.importer.clone();
        // First: the device can no longer reach what the exporter reuses.
        drop(mapped);
        E::p2p_unmap(&source, &importer, mapping);
    }
}

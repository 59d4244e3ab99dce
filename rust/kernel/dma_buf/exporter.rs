// SPDX-License-Identifier: GPL-2.0

//! Exporters: the owners of a buffer's backing, who decide who may reach it, how and where.
//!
//! The rules that the types do not enforce:
//!
//! - `attach` runs without the reservation lock; what it found can have changed when `map` runs,
//!   which decides again.
//! - `pin` returns when moves and clears are done, and never fails with `EBUSY`.
//! - Backing that an importer had mapped is reused only after the fences of the reservation
//!   object *and* the importer's unmap.

use super::{
    pages::{
        PageTable,
        Pages, //
    },
    resv::Held,
    DmaBuf, //
};
use crate::{
    bindings,
    device::Device,
    dma::DataDirection,
    error::from_err_ptr,
    pci::p2pdma::{
        Provider,
        Ranges,
        Route, //
    },
    prelude::*,
    sync::Arc, //
};
use core::{
    cell::UnsafeCell,
    ffi::c_void,
    marker::PhantomData,
    ops::Range,
    ptr::NonNull, //
};

/// What a dma-buf's private pointer points to, a GEM object for example.
///
/// # Safety
///
/// `from_priv` returns the object that was exported with this private pointer.
pub unsafe trait Source: Sized {
    /// # Safety
    ///
    /// `raw` is the private pointer of a dma-buf that exports a `Self`, alive for all of `'a`.
    unsafe fn from_priv<'a>(raw: *mut c_void) -> &'a Self;
}

/// The callbacks of an exporter that moves its backing.
///
/// A whole exporter, of GEM objects, is in the example of [`Window`](crate::drm::gem::managed::Window).
pub trait Exporter: Sized + 'static {
    /// What is exported.
    type Source: Source;

    /// The exporter's data for one importer.
    type Attachment: Send + Sync;

    /// What one mapping holds until the importer undoes it: slots of an aperture for example.
    type Mapping: Send;

    /// What is left of a mapping that the importer has undone, and may have again: it keeps nothing
    /// from being used otherwise.
    type Kept: Send;

    /// May this importer attach? Called without the lock.
    fn attach(source: &Self::Source, importer: &ImporterInfo<'_>) -> Result<Self::Attachment>;

    /// The importer goes. Called without the lock; there are no mappings left.
    fn detach(source: &Self::Source, data: &Self::Attachment);

    /// Keep the backing where it is, where all importers that are attached can reach it.
    fn pin(
        source: &Self::Source,
        importer: &ImporterInfo<'_>,
        data: &Self::Attachment,
        held: Held<'_>,
    ) -> Result;

    /// Undoes one `pin`.
    fn unpin(source: &Self::Source, data: &Self::Attachment, held: Held<'_>);

    /// Map the backing for the importer: where it is, or where the exporter moves it first.
    fn map<'a>(
        source: &Self::Source,
        importer: &'a ImporterInfo<'a>,
        data: &Self::Attachment,
        held: Held<'_>,
        dir: DataDirection,
    ) -> Result<(Table<'a>, Self::Mapping)>;

    /// The importer maps again, in the same direction, what it has undone last. `None`, and nothing
    /// has changed: it cannot have just that, or perhaps nothing: [`Exporter::map`] is asked next.
    fn map_again(
        _source: &Self::Source,
        _importer: &ImporterInfo<'_>,
        _data: &Self::Attachment,
        _held: Held<'_>,
        _dir: DataDirection,
        _kept: Self::Kept,
    ) -> Option<Self::Mapping> {
        None
    }

    /// The importer no longer uses this mapping. If it is one of a BAR, and what is returned is
    /// `Some`, [`Exporter::map_again`] may be asked for it: the importer's table is kept so long,
    /// if there was nothing to undo in it.
    fn unmap(
        source: &Self::Source,
        data: &Self::Attachment,
        held: Held<'_>,
        mapping: Self::Mapping,
    ) -> Option<Self::Kept>;

    /// The kernel itself wants to reach all bytes by the CPU: keep the backing in system memory,
    /// and say in which pages, until [`Exporter::vunmap`]. Called for the first who wants a dma-buf
    /// so; those who come meanwhile share its mapping.
    ///
    /// Without it all are refused with `EOPNOTSUPP`.
    fn vmap(_source: &Self::Source, _held: Held<'_>) -> Result<(Arc<Pages>, Range<usize>)> {
        Err(EOPNOTSUPP)
    }

    /// Undoes a [`Exporter::vmap`] that succeeded.
    fn vunmap(_source: &Self::Source, _held: Held<'_>) {}
}

/// An importer as its exporter sees it.
///
/// # Invariants
///
/// `raw` is a valid attachment for all of `'a`.
pub struct ImporterInfo<'a> {
    raw: NonNull<bindings::dma_buf_attachment>,
    _attachment: PhantomData<&'a ()>,
}

impl ImporterInfo<'_> {
    fn raw(&self) -> &bindings::dma_buf_attachment {
        // SAFETY: By the type invariant.
        unsafe { self.raw.as_ref() }
    }

    /// The buffer.
    pub fn dmabuf(&self) -> &DmaBuf {
        // SAFETY: The buffer of a valid attachment is valid.
        unsafe { DmaBuf::from_raw(self.raw().dmabuf) }
    }

    /// The importing device.
    pub fn device(&self) -> &Device {
        // SAFETY: The device of an attachment is valid for as long as the attachment.
        unsafe { Device::from_raw(self.raw().dev) }
    }

    /// The name of the importing device's driver, if it has one.
    pub fn driver_name(&self) -> Option<&CStr> {
        // SAFETY: The device is valid. An importer detaches before its driver is unbound from the
        // device: the driver that is there is there for as long as the attachment.
        unsafe {
            let driver = (*self.raw().dev).driver;
            (!driver.is_null()).then(|| CStr::from_char_ptr((*driver).name))
        }
    }

    /// Whether the importer can use addresses of memory without `struct page`.
    pub fn is_peer(&self) -> bool {
        self.raw().peer2peer
    }

    /// Whether the importer pins before it maps (`false`), or may be told to let go.
    pub fn is_dynamic(&self) -> bool {
        !self.raw().importer_ops.is_null()
    }

    /// Whether the importer can be told that a mapping is taken back.
    pub fn can_be_invalidated(&self) -> bool {
        // SAFETY: The attachment is valid.
        unsafe { bindings::dma_buf_attach_revocable(self.raw.as_ptr()) }
    }

    /// Maps ranges of a BAR for the importer. Called from [`Exporter::map`].
    ///
    /// `EINVAL`: there is no route, or `ranges` is empty, or of another provider.
    pub fn map_bar<'a>(
        &'a self,
        provider: &Provider<'_>,
        ranges: &Ranges,
        held: Held<'_>,
        dir: DataDirection,
    ) -> Result<Table<'a>> {
        held.check(self.dmabuf().resv())?;
        if !ranges.is_of(provider) {
            return Err(EINVAL);
        }
        let vec = ranges.as_slice();
        // SAFETY: The attachment is valid and the reservation lock is held; `vec` holds ranges of
        // the provider's BAR, of so many bytes in all, and is only read.
        let sgt = from_err_ptr(unsafe {
            bindings::dma_buf_phys_vec_to_sgt(
                self.raw.as_ptr(),
                provider.as_raw(),
                vec.as_ptr().cast_mut(),
                vec.len(),
                ranges.size(),
                dir.into(),
            )
        })?;
        let sgt = NonNull::new(sgt).ok_or(ENOMEM)?;
        // INVARIANT: We made it so; the lifetime keeps it from leaving the callback but through
        // `Ops::map`, which keeps it until `Ops::unmap`.
        let table = BarTable {
            sgt,
            raw: self.raw,
            dir,
            is_list: provider.route(self.device()) == Route::Switch,
        };
        Ok(Table(Backing::Bar(table), PhantomData))
    }

    /// Maps the system pages `range` of `pages` for the importer, and keeps them until it unmaps.
    /// Called from [`Exporter::map`].
    ///
    /// `EINVAL`: the range is empty, or past the end.
    pub fn map_pages<'a>(
        &'a self,
        pages: Arc<Pages>,
        range: Range<usize>,
        dir: DataDirection,
    ) -> Result<Table<'a>> {
        let table = pages.map_table(self.device(), range, dir)?;
        Ok(Table(
            Backing::Pages {
                table,
                _pages: pages,
            },
            PhantomData,
        ))
    }
}

/// A table made by `dma_buf_phys_vec_to_sgt()`.
///
/// # Invariants
///
/// `sgt` was made for the attachment `raw` in direction `dir`. The value is dropped
/// while the attachment is valid and its reservation lock is held: in the callback that made it, in
/// one that maps or unmaps after that, or before the attachment ends.
struct BarTable {
    sgt: NonNull<bindings::sg_table>,
    raw: NonNull<bindings::dma_buf_attachment>,
    dir: DataDirection,
    /// It is a list of bus addresses and nothing else: nothing has to be undone when the importer
    /// gives it back.
    is_list: bool,
}

/// What is left of the mapping that an importer has undone last: a table that is a list.
struct Spare<K> {
    table: BarTable,
    kept: K,
}

/// What is used with the reservation lock held only.
struct ByResv<T>(UnsafeCell<T>);

// SAFETY: The lock gives it to one thread at a time.
unsafe impl<T: Send> Sync for ByResv<T> {}

impl<T> ByResv<T> {
    /// # Safety
    ///
    /// The reservation lock is held, and this is the only reference for as long as it lives.
    #[expect(clippy::mut_from_ref)]
    unsafe fn get(&self) -> &mut T {
        // SAFETY: By the safety requirements.
        unsafe { &mut *self.0.get() }
    }
}

// SAFETY: Tables are plain memory.
unsafe impl Send for BarTable {}

impl Drop for BarTable {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe {
            bindings::dma_buf_free_sgt(self.raw.as_ptr(), self.sgt.as_ptr(), self.dir.into())
        };
    }
}

enum Backing {
    Bar(BarTable),
    Pages {
        // Field order: the pages are unmapped before they can be freed.
        table: KBox<PageTable>,
        _pages: Arc<Pages>,
    },
}

impl Backing {
    fn sgt(&mut self) -> *mut bindings::sg_table {
        match self {
            Self::Bar(table) => table.sgt.as_ptr(),
            Self::Pages { table, .. } => &mut table.sgt,
        }
    }
}

/// DMA addresses for an importer, on their way from [`Exporter::map`] to it.
pub struct Table<'a>(Backing, PhantomData<&'a ImporterInfo<'a>>);

/// One mapping that an importer holds.
struct Record<M> {
    backing: Backing,
    mapping: M,
}

/// The private data of an attachment. What is used with the lock held is not while the exporter is
/// called.
struct Attached<E: Exporter> {
    records: ByResv<KVec<Record<E::Mapping>>>,
    spare: ByResv<Option<Spare<E::Kept>>>,
    data: E::Attachment,
}

/// The C operations of exporter `E`.
pub struct Ops<E>(PhantomData<E>);

impl<E: Exporter> Ops<E> {
    /// The table of operations; `release` and `mmap` are those of the kind of source.
    pub(crate) const fn table(
        release: unsafe extern "C" fn(*mut bindings::dma_buf),
        mmap: Option<
            unsafe extern "C" fn(*mut bindings::dma_buf, *mut bindings::vm_area_struct) -> c_int,
        >,
    ) -> bindings::dma_buf_ops {
        bindings::dma_buf_ops {
            attach: Some(Self::attach),
            detach: Some(Self::detach),
            pin: Some(Self::pin),
            unpin: Some(Self::unpin),
            map_dma_buf: Some(Self::map),
            unmap_dma_buf: Some(Self::unmap),
            vmap: Some(Self::vmap),
            vunmap: Some(Self::vunmap),
            release: Some(release),
            mmap,
            ..pin_init::zeroed()
        }
    }

    /// # Safety
    ///
    /// `raw` is a valid attachment of a buffer of exporter `E`, in a callback of the core.
    unsafe fn importer<'a>(
        raw: *mut bindings::dma_buf_attachment,
    ) -> (ImporterInfo<'a>, &'a E::Source) {
        // SAFETY: The caller promises a valid attachment; the buffer's private pointer is what it
        // was exported with.
        let source = unsafe { E::Source::from_priv((*(*raw).dmabuf).priv_) };
        // INVARIANT: The attachment is valid for the duration of the callback.
        let importer = ImporterInfo {
            // SAFETY: The core passes no null pointers.
            raw: unsafe { NonNull::new_unchecked(raw) },
            _attachment: PhantomData,
        };
        (importer, source)
    }

    /// # Safety
    ///
    /// As for `importer`, after `attach` and before `detach`.
    unsafe fn attached<'a>(raw: *mut bindings::dma_buf_attachment) -> &'a Attached<E> {
        // SAFETY: `attach` has set the private pointer.
        unsafe { &*(*raw).priv_.cast_const().cast::<Attached<E>>() }
    }

    /// # Safety
    ///
    /// As for `importer`, in a callback that the core makes with the reservation lock held.
    unsafe fn held<'a>(raw: *mut bindings::dma_buf_attachment) -> Held<'a> {
        // SAFETY: The caller promises so.
        unsafe { Held::assume((*(*raw).dmabuf).resv) }
    }

    /// # Safety
    ///
    /// Called by the core with a valid attachment of a buffer of exporter `E`, without its lock.
    unsafe extern "C" fn attach(
        _dmabuf: *mut bindings::dma_buf,
        raw: *mut bindings::dma_buf_attachment,
    ) -> c_int {
        // SAFETY: The core passes a valid attachment of our buffer.
        let (importer, source) = unsafe { Self::importer(raw) };
        // Room first: nothing can fail once the exporter has agreed.
        let attached = KBox::<Attached<E>>::new_uninit(GFP_KERNEL)
            .map_err(Error::from)
            .and_then(|room| {
                let data = E::attach(source, &importer)?;
                Ok(room.write(Attached {
                    records: ByResv(UnsafeCell::new(KVec::new())),
                    spare: ByResv(UnsafeCell::new(None)),
                    data,
                }))
            });
        match attached {
            Ok(attached) => {
                // SAFETY: The attachment is valid, and its private pointer is the exporter's.
                unsafe { (*raw).priv_ = KBox::into_raw(attached).cast() };
                0
            }
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// Called by the core with an attachment that `attach` was called for, for the last time.
    unsafe extern "C" fn detach(
        _dmabuf: *mut bindings::dma_buf,
        raw: *mut bindings::dma_buf_attachment,
    ) {
        // SAFETY: The core passes a valid attachment of our buffer, for the last time.
        let (importer, source) = unsafe { Self::importer(raw) };
        // SAFETY: `attach` put the box there, and nobody uses it any more.
        let attached = unsafe { KBox::from_raw((*raw).priv_.cast::<Attached<E>>()) };
        let Attached { spare, data, .. } = KBox::into_inner(attached);
        if let Some(spare) = spare.0.into_inner() {
            let _guard = importer.dmabuf().resv().lock();
            drop(spare);
        }
        E::detach(source, &data);
    }

    /// # Safety
    ///
    /// Called by the core with an attachment between `attach` and `detach`, with the lock held.
    unsafe extern "C" fn pin(raw: *mut bindings::dma_buf_attachment) -> c_int {
        // SAFETY: The core passes a valid attachment of our buffer, with the lock held.
        let ((importer, source), attached, held) =
            unsafe { (Self::importer(raw), Self::attached(raw), Self::held(raw)) };
        match E::pin(source, &importer, &attached.data, held) {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// Called by the core with an attachment between `attach` and `detach`, with the lock held.
    unsafe extern "C" fn unpin(raw: *mut bindings::dma_buf_attachment) {
        // SAFETY: The core passes a valid attachment of our buffer, with the lock held.
        let ((_, source), attached, held) =
            unsafe { (Self::importer(raw), Self::attached(raw), Self::held(raw)) };
        E::unpin(source, &attached.data, held);
    }

    /// # Safety
    ///
    /// Called by the core with an attachment between `attach` and `detach`, with the lock held.
    unsafe extern "C" fn map(
        raw: *mut bindings::dma_buf_attachment,
        dir: bindings::dma_data_direction,
    ) -> *mut bindings::sg_table {
        // SAFETY: The core passes a valid attachment of our buffer, with the lock held.
        let ((importer, source), attached, held) =
            unsafe { (Self::importer(raw), Self::attached(raw), Self::held(raw)) };
        let record = direction(dir).and_then(|dir| {
            // Room first: what has been mapped is not undone because memory ran out.
            // SAFETY: The lock is held, and the reference does not outlive the statement.
            unsafe { attached.records.get() }.reserve(1, GFP_KERNEL)?;
            // SAFETY: As above.
            let spare = unsafe { attached.spare.get() }.take();
            if let Some(Spare { table, kept }) = spare.filter(|spare| spare.table.dir == dir) {
                let data = &attached.data;
                if let Some(mapping) = E::map_again(source, &importer, data, held, dir, kept) {
                    let backing = Backing::Bar(table);
                    return Ok(Record { backing, mapping });
                }
            }
            let (table, mapping) = E::map(source, &importer, &attached.data, held, dir)?;
            Ok(Record {
                backing: table.0,
                mapping,
            })
        });
        match record {
            Ok(mut record) => {
                let sgt = record.backing.sgt();
                // The room was reserved under the reservation lock, which is still held.
                // SAFETY: As above.
                let pushed = unsafe { attached.records.get() }.push_within_capacity(record);
                match pushed {
                    Ok(()) => sgt,
                    Err(_) => ENOMEM.to_ptr(),
                }
            }
            Err(error) => error.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// Called by the core with an attachment between `attach` and `detach`, with the lock held.
    unsafe extern "C" fn unmap(
        raw: *mut bindings::dma_buf_attachment,
        sgt: *mut bindings::sg_table,
        _dir: bindings::dma_data_direction,
    ) {
        // SAFETY: The core passes a valid attachment of our buffer, with the lock held.
        let ((_, source), attached, held) =
            unsafe { (Self::importer(raw), Self::attached(raw), Self::held(raw)) };
        let record = {
            // SAFETY: The lock is held, and the exporter is called when the reference is gone.
            let records = unsafe { attached.records.get() };
            let found = records
                .iter_mut()
                .position(|record| core::ptr::eq(record.backing.sgt(), sgt));
            found.and_then(|index| records.remove(index).ok())
        };
        if let Some(Record { backing, mapping }) = record {
            let table = match backing {
                Backing::Bar(table) if table.is_list => Some(table),
                // The addresses are taken back before what they are of is used otherwise.
                backing => {
                    drop(backing);
                    None
                }
            };
            let kept = E::unmap(source, &attached.data, held, mapping);
            if let (Some(table), Some(kept)) = (table, kept) {
                // SAFETY: As above.
                drop(unsafe { attached.spare.get() }.replace(Spare { table, kept }));
            }
        }
    }

    /// # Safety
    ///
    /// `dmabuf` is a valid buffer of exporter `E`, in a callback that the core makes with the
    /// reservation lock held.
    unsafe fn buffer<'a>(dmabuf: *mut bindings::dma_buf) -> (&'a E::Source, Held<'a>) {
        // SAFETY: The caller promises so; the buffer's private pointer is what it was exported with.
        unsafe {
            (
                E::Source::from_priv((*dmabuf).priv_),
                Held::assume((*dmabuf).resv),
            )
        }
    }

    /// # Safety
    ///
    /// Called by the core with a buffer of exporter `E` that has no such mapping, with the lock
    /// held, and a place for the address.
    unsafe extern "C" fn vmap(
        dmabuf: *mut bindings::dma_buf,
        map: *mut bindings::iosys_map,
    ) -> c_int {
        // SAFETY: The core passes a valid buffer of ours, with the lock held.
        let (source, held) = unsafe { Self::buffer(dmabuf) };
        let address = E::vmap(source, held).and_then(|(pages, range)| {
            let address = pages.vmap(range);
            address.inspect_err(|_| E::vunmap(source, held))
        });
        match address {
            Ok(address) => {
                let mut to = bindings::iosys_map::default();
                to.__bindgen_anon_1.vaddr = address.as_ptr();
                // SAFETY: The core passes a place for it.
                unsafe { map.write(to) };
                0
            }
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// Called by the core with a buffer of exporter `E` and what `vmap` gave for it, for the last
    /// time, with the lock held.
    unsafe extern "C" fn vunmap(dmabuf: *mut bindings::dma_buf, map: *mut bindings::iosys_map) {
        // SAFETY: The core passes a valid buffer of ours, with the lock held.
        let (source, held) = unsafe { Self::buffer(dmabuf) };
        // SAFETY: `vmap` mapped pages there, with an address in system memory.
        unsafe { bindings::vfree((*map).__bindgen_anon_1.vaddr) };
        E::vunmap(source, held);
    }
}

fn direction(dir: bindings::dma_data_direction) -> Result<DataDirection> {
    match dir {
        bindings::dma_data_direction::DMA_BIDIRECTIONAL => Ok(DataDirection::Bidirectional),
        bindings::dma_data_direction::DMA_TO_DEVICE => Ok(DataDirection::ToDevice),
        bindings::dma_data_direction::DMA_FROM_DEVICE => Ok(DataDirection::FromDevice),
        _ => Err(EINVAL),
    }
}

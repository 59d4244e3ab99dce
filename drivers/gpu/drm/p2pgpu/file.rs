// SPDX-License-Identifier: GPL-2.0

//! Open files and their ioctls: arguments are checked here, and only here.

use crate::{
    access,
    context::{
        self,
        Context, //
    },
    driver::{
        DrmDevice,
        DrmDriver,
        Gpu, //
    },
    evict,
    export,
    fdinfo,
    gem::{
        self,
        Object,
        Placement,
        PlacementKind, //
    },
    limits,
    migrate::{
        self,
        Arrive, //
    },
    peer,
    settings::Number,
    submit::{
        self,
        Request, //
    }, //
};
use kernel::{
    dma_buf::DmaBuf,
    drm::{
        self,
        fdinfo::Printer,
        gem::{
            BaseObject,
            IntoGEMObject, //
        },
        syncobj::{
            self,
            Slot, //
        },
        Registered, //
    },
    new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    sizes::SizeConstants,
    sync::{
        atomic::Atomic,
        Arc,
        Mutex, //
    },
    uaccess::{
        UserPtr,
        UserSlice,
        UserSliceReader, //
    },
    uapi, //
};

type DrmFile = drm::File<File>;

/// Largest object that is created in system memory, in bytes.
const SYSTEM_SIZE_MAX: u64 = 4 * u64::SZ_1G;

/// The contexts of a file, by their ids.
struct Contexts {
    list: KVec<(u32, Arc<Context>)>,
    last_id: u32,
}

/// An open file.
#[pin_data(PinnedDrop)]
pub(crate) struct File {
    #[pin]
    contexts: Mutex<Contexts>,
    /// Time that the engine spent on its jobs.
    pub(crate) engine_ns: Arc<Atomic<u64>>,
}

#[pinned_drop]
impl PinnedDrop for File {
    fn drop(self: Pin<&mut Self>) {
        for (_, context) in &self.contexts.lock().list {
            context.close();
        }
    }
}

impl drm::file::DriverFile for File {
    type Driver = DrmDriver;

    fn open(_dev: &DrmDevice) -> Result<Pin<KBox<Self>>> {
        let engine_ns = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        KBox::pin_init(
            pin_init!(Self {
                contexts <- new_mutex!(Contexts {
                    list: KVec::new(),
                    last_id: 0,
                }, "p2pgpu::file::contexts"),
                engine_ns,
            }),
            GFP_KERNEL,
        )
    }

    fn show_fdinfo(dev: &DrmDevice<Registered>, file: &DrmFile, printer: &Printer) {
        fdinfo::show(dev, file, printer);
    }
}

/// `EINVAL`, unless a field that has no meaning yet is 0.
fn must_be_zero(value: u32) -> Result {
    if value == 0 {
        Ok(())
    } else {
        Err(EINVAL)
    }
}

/// The two numbers of 32 bits in a word of a structure, in their order in memory.
fn halves(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    let first = u32::from_ne_bytes([a, b, c, d]);
    (first, u32::from_ne_bytes([e, f, g, h]))
}

/// An array of `count` structures of `N` words each. `EINVAL`: more than `most`.
fn array<const N: usize>(at: u64, count: u32, most: usize) -> Result<(UserSliceReader, usize)> {
    let count = usize::try_from(count)?;
    if count > most {
        return Err(EINVAL);
    }
    let size = count.checked_mul(N * size_of::<u64>()).ok_or(EINVAL)?;
    let from = UserPtr::from_addr(usize::try_from(at).map_err(|_| EFAULT)?);
    Ok((UserSlice::new(from, size).reader(), count))
}

/// The places of syncobjs in an array: their handles and points.
fn syncs(at: u64, count: u32) -> Result<KVec<(u32, u64)>> {
    const WORDS: usize = size_of::<uapi::drm_p2pgpu_sync>() / size_of::<u64>();
    let (mut reader, count) = array::<WORDS>(at, count, submit::SYNCS_MAX)?;
    let mut list = KVec::with_capacity(count, GFP_KERNEL)?;
    for _ in 0..count {
        let [first, point] = reader.read::<[u64; WORDS]>()?;
        let (handle, flags) = halves(first);
        must_be_zero(flags)?;
        list.push((handle, point), GFP_KERNEL)?;
    }
    Ok(list)
}

impl File {
    fn context(&self, id: u32) -> Result<Arc<Context>> {
        let contexts = self.contexts.lock();
        let found = contexts.list.iter().find(|(other, _)| *other == id);
        found.map(|(_, context)| context.clone()).ok_or(ENOENT)
    }

    pub(crate) fn context_create(
        _dev: &DrmDevice<Registered>,
        gpu: &Gpu<'_>,
        args: &mut uapi::drm_p2pgpu_context_create,
        file: &DrmFile,
    ) -> Result<u32> {
        must_be_zero(args.flags)?;
        let this = file.inner();
        let context = Context::new(gpu.scheduler.kick.clone(), this.engine_ns.clone())?;
        let mut contexts = this.contexts.lock();
        if contexts.list.len() >= context::CONTEXTS_MAX {
            return Err(ENOSPC);
        }
        let id = contexts.last_id.checked_add(1).ok_or(ENOSPC)?;
        contexts.list.push((id, context.clone()), GFP_KERNEL)?;
        if let Err(error) = gpu.scheduler.open(context) {
            contexts.list.pop();
            return Err(error);
        }
        contexts.last_id = id;
        args.id = id;
        Ok(0)
    }

    pub(crate) fn context_destroy(
        _dev: &DrmDevice<Registered>,
        _gpu: &Gpu<'_>,
        args: &mut uapi::drm_p2pgpu_context_destroy,
        file: &DrmFile,
    ) -> Result<u32> {
        must_be_zero(args.pad)?;
        let (_, context) = {
            let this = file.inner();
            let list = &mut this.contexts.lock().list;
            let at = list.iter().position(|(id, _)| *id == args.id);
            list.remove(at.ok_or(ENOENT)?)?
        };
        context.close();
        Ok(0)
    }

    pub(crate) fn context_query(
        _dev: &DrmDevice<Registered>,
        _gpu: &Gpu<'_>,
        args: &mut uapi::drm_p2pgpu_context_query,
        file: &DrmFile,
    ) -> Result<u32> {
        must_be_zero(args.pad)?;
        let context = file.inner().context(args.id)?;
        args.state = context.state();
        args.jobs = context.jobs();
        args.engine_ns = context.engine_ns();
        Ok(0)
    }

    pub(crate) fn submit(
        dev: &DrmDevice<Registered>,
        gpu: &Gpu<'_>,
        args: &mut uapi::drm_p2pgpu_submit,
        file: &DrmFile,
    ) -> Result<u32> {
        const WORDS: usize = size_of::<uapi::drm_p2pgpu_op>() / size_of::<u64>();
        must_be_zero(args.flags | args.pad)?;
        if args.op_count == 0 {
            return Err(EINVAL);
        }
        let context = file.inner().context(args.context)?;
        let mut request = Request::new();
        let (mut reader, count) = array::<WORDS>(args.ops, args.op_count, submit::OPS_MAX)?;
        for _ in 0..count {
            let [first, handles, src_offset, dst_offset, size] = reader.read::<[u64; WORDS]>()?;
            let ((op, value), (src_handle, dst_handle)) = (halves(first), halves(handles));
            let op = uapi::drm_p2pgpu_op {
                op,
                value,
                src_handle,
                dst_handle,
                src_offset,
                dst_offset,
                size,
            };
            request.add(file, &op)?;
        }
        let mut waits = KVec::new();
        for (handle, point) in syncs(args.in_, args.in_count)? {
            waits.push(syncobj::find_fence(file, handle, point)?, GFP_KERNEL)?;
        }
        let mut slots = KVec::new();
        for (handle, point) in syncs(args.out, args.out_count)? {
            slots.push(Slot::new(file, handle, point)?, GFP_KERNEL)?;
        }
        submit::submit(dev, gpu, &context, request, waits, slots)?;
        Ok(0)
    }

    pub(crate) fn getparam(
        dev: &DrmDevice<Registered>,
        gpu: &Gpu<'_>,
        args: &mut uapi::drm_p2pgpu_getparam,
        _file: &DrmFile,
    ) -> Result<u32> {
        args.value = match u32::try_from(args.param).map_err(|_| EINVAL)? {
            uapi::P2PGPU_PARAM_VRAM_SIZE => dev.vram.size(),
            uapi::P2PGPU_PARAM_VRAM_FREE => dev.vram.free(),
            uapi::P2PGPU_PARAM_SLOTS_TOTAL => u64::try_from(dev.aperture.total())?,
            uapi::P2PGPU_PARAM_SLOTS_AVAILABLE => dev.aperture.available().into(),
            uapi::P2PGPU_PARAM_SLOT_SIZE => u64::try_from(PAGE_SIZE)?,
            uapi::P2PGPU_PARAM_MAPPED => gpu.mapped.into(),
            uapi::P2PGPU_PARAM_SLOTS_RESERVED => dev.reserved().into(),
            uapi::P2PGPU_PARAM_SLOTS_PINNED => {
                let promised = dev.aperture.counts().promised;
                promised.saturating_sub(dev.reserved()).into()
            }
            uapi::P2PGPU_PARAM_SLOTS_LENT => dev.aperture.counts().lent.into(),
            uapi::P2PGPU_PARAM_SLOTS_DRAINING => dev.aperture.counts().draining.into(),
            uapi::P2PGPU_PARAM_CONTEXTS_MAX => u64::try_from(context::CONTEXTS_MAX)?,
            uapi::P2PGPU_PARAM_JOBS_MAX => u64::try_from(context::JOBS_MAX)?,
            uapi::P2PGPU_PARAM_OPS_MAX => u64::try_from(submit::OPS_MAX)?,
            uapi::P2PGPU_PARAM_SYNCS_MAX => u64::try_from(submit::SYNCS_MAX)?,
            uapi::P2PGPU_PARAM_PIN_LIMIT => limits::Pins::get(dev).into(),
            uapi::P2PGPU_PARAM_PIN_LIMIT_PROCESS => limits::PinsOfProcess::get(dev).into(),
            uapi::P2PGPU_PARAM_RESERVE_LIMIT => limits::Reservations::get(dev).into(),
            uapi::P2PGPU_PARAM_RESERVE_LIMIT_PROCESS => {
                limits::ReservationsOfProcess::get(dev).into()
            }
            uapi::P2PGPU_PARAM_SYSTEM_SIZE_MAX => SYSTEM_SIZE_MAX,
            _ => return Err(EINVAL),
        };
        Ok(0)
    }

    pub(crate) fn gem_create(
        dev: &DrmDevice<Registered>,
        gpu: &Gpu<'_>,
        args: &mut uapi::drm_p2pgpu_gem_create,
        file: &DrmFile,
    ) -> Result<u32> {
        must_be_zero(args.flags & !uapi::P2PGPU_CREATE_EVICTABLE | args.pad)?;
        let kind = PlacementKind::try_from(args.placement)?;
        let evictable = args.flags & uapi::P2PGPU_CREATE_EVICTABLE != 0;
        if evictable && kind != PlacementKind::Vram {
            return Err(EINVAL);
        }
        let largest = match kind {
            PlacementKind::Vram => dev.vram.size(),
            PlacementKind::System => SYSTEM_SIZE_MAX,
        };
        let page = u64::try_from(PAGE_SIZE)?;
        if args.size == 0 || !args.size.is_multiple_of(page) {
            return Err(EINVAL);
        }
        if args.size > largest {
            return Err(E2BIG);
        }
        let size = usize::try_from(args.size)?;
        let placement = Placement::alloc_zeroed(dev, gpu, kind, size)?;
        let obj = Object::new(dev, size, placement)?;
        if evictable {
            evict::allow(&obj)?;
        }
        if let Placement::Vram(vram) = obj.placement() {
            vram.placed();
        }
        args.handle = obj.create_handle(file)?;
        Ok(0)
    }

    pub(crate) fn gem_mmap_offset(
        _dev: &DrmDevice<Registered>,
        _gpu: &Gpu<'_>,
        args: &mut uapi::drm_p2pgpu_gem_mmap_offset,
        file: &DrmFile,
    ) -> Result<u32> {
        must_be_zero(args.pad)?;
        args.offset = gem::mmap_offset(&*gem::lookup(file, args.handle)?)?;
        Ok(0)
    }

    pub(crate) fn gem_info(
        dev: &DrmDevice<Registered>,
        _gpu: &Gpu<'_>,
        args: &mut uapi::drm_p2pgpu_gem_info,
        file: &DrmFile,
    ) -> Result<u32> {
        must_be_zero(args.pad)?;
        let obj = gem::lookup(file, args.handle)?;
        let guard = obj.resv().lock_interruptible()?;
        let placement = obj.placement();
        (args.slots, args.peer_slots) = match &placement {
            Placement::Vram(vram) => dev.aperture.usage(gem::named(&obj, vram)?)?,
            Placement::System(_) | Placement::Imported(_) => (0, 0),
        };
        let importers = obj.importers.lock().count();
        let state = obj.state.lock();
        *args = uapi::drm_p2pgpu_gem_info {
            size: u64::try_from(obj.size())?,
            placement: placement
                .kind()
                .map_or(uapi::P2PGPU_PLACEMENT_IMPORTED, u32::from),
            peer_flags: state.peer_flags,
            importers,
            pins: state.pins,
            promised_slots: peer::promised_slots(&obj, &state)?,
            evictions: state.eviction.count,
            invalidations: state.invalidations,
            peer_maps: state.peer_maps,
            system_maps: state.system_maps,
            fall_backs: state.fall_backs,
            refusals: state.refusals,
            losses: state.losses,
            ..*args
        };
        drop(state);
        drop(guard);
        Ok(0)
    }

    pub(crate) fn gem_set_peer(
        _dev: &DrmDevice<Registered>,
        gpu: &Gpu<'_>,
        args: &mut uapi::drm_p2pgpu_gem_set_peer,
        file: &DrmFile,
    ) -> Result<u32> {
        peer::set_flags(gpu, &*gem::lookup_own(file, args.handle)?, args.flags)?;
        Ok(0)
    }

    pub(crate) fn peer_query(
        dev: &DrmDevice<Registered>,
        gpu: &Gpu<'_>,
        args: &mut uapi::drm_p2pgpu_peer_query,
        file: &DrmFile,
    ) -> Result<u32> {
        let obj = gem::lookup_own(file, args.handle)?;
        peer::query(dev, gpu, &obj, args)?;
        Ok(0)
    }

    pub(crate) fn gem_move(
        _dev: &DrmDevice<Registered>,
        gpu: &Gpu<'_>,
        args: &mut uapi::drm_p2pgpu_gem_move,
        file: &DrmFile,
    ) -> Result<u32> {
        must_be_zero(args.flags | args.pad)?;
        let kind = PlacementKind::try_from(args.placement)?;
        let obj = gem::lookup_own(file, args.handle)?;
        let guard = obj.resv().lock_interruptible()?;
        migrate::migrate(&obj, gpu, guard.held(), kind, Arrive::Now)?;
        evict::stay(&obj);
        Ok(0)
    }

    pub(crate) fn gem_madvise(
        _dev: &DrmDevice<Registered>,
        _gpu: &Gpu<'_>,
        args: &mut uapi::drm_p2pgpu_gem_madvise,
        file: &DrmFile,
    ) -> Result<u32> {
        must_be_zero(args.pad)?;
        let needed = match args.advice {
            uapi::P2PGPU_MADV_WILLNEED => true,
            uapi::P2PGPU_MADV_DONTNEED => false,
            _ => return Err(EINVAL),
        };
        let obj = gem::lookup_own(file, args.handle)?;
        let guard = obj.resv().lock_interruptible()?;
        args.retained = evict::advise(&obj, guard.held(), needed)?.into();
        Ok(0)
    }

    pub(crate) fn gem_export_range(
        _dev: &DrmDevice<Registered>,
        _gpu: &Gpu<'_>,
        args: &mut uapi::drm_p2pgpu_gem_export_range,
        file: &DrmFile,
    ) -> Result<u32> {
        must_be_zero(args.pad)?;
        if args.flags & !(uapi::P2PGPU_EXPORT_CLOEXEC | uapi::P2PGPU_EXPORT_RDWR) != 0 {
            return Err(EINVAL);
        }
        let flags = i32::try_from(args.flags)?;
        let obj = gem::lookup_own(file, args.handle)?;
        let range = gem::byte_range(&obj, args.offset, args.size)?;
        args.fd = DmaBuf::into_fd(export::export_range(&obj, range, flags)?, flags)?;
        Ok(0)
    }

    pub(crate) fn gem_copy(
        _dev: &DrmDevice<Registered>,
        gpu: &Gpu<'_>,
        args: &mut uapi::drm_p2pgpu_gem_copy,
        file: &DrmFile,
    ) -> Result<u32> {
        let src = gem::lookup(file, args.src_handle)?;
        let dst = gem::lookup(file, args.dst_handle)?;
        let from = gem::byte_range(&src, args.src_offset, args.size)?;
        let to = gem::byte_range(&dst, args.dst_offset, args.size)?;
        let same = core::ptr::eq(src.as_raw(), dst.as_raw());
        if same && from.start < to.end && to.start < from.end {
            return Err(EINVAL);
        }

        access::copy(gpu, (&src, from), (&dst, to))?;
        Ok(0)
    }

    pub(crate) fn gem_checksum(
        _dev: &DrmDevice<Registered>,
        gpu: &Gpu<'_>,
        args: &mut uapi::drm_p2pgpu_gem_checksum,
        file: &DrmFile,
    ) -> Result<u32> {
        must_be_zero(args.pad)?;
        let obj = gem::lookup(file, args.handle)?;
        let range = gem::byte_range(&obj, args.offset, args.size)?;
        args.digest = access::checksum(gpu, &obj, range)?;
        Ok(0)
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Open files and their ioctls: arguments are checked here, and only here.

use crate::{
    access,
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
    migrate,
    peer, //
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
        Registered, //
    },
    page::PAGE_SIZE,
    prelude::*,
    sizes::SizeConstants,
    uapi, //
};

type DrmFile = drm::File<File>;

/// An open file; it has no state of its own.
pub(crate) struct File;

impl drm::file::DriverFile for File {
    type Driver = DrmDriver;

    fn open(_dev: &DrmDevice) -> Result<Pin<KBox<Self>>> {
        Ok(KBox::new(Self, GFP_KERNEL)?.into())
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

impl File {
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
            PlacementKind::System => 4 * u64::SZ_1G,
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
        args.offset = gem::lookup(file, args.handle)?.create_mmap_offset()?;
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
        migrate::migrate(&obj, gpu, guard.held(), kind)?;
        evict::stay(&obj);
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

// SPDX-License-Identifier: GPL-2.0
//! The p2pgpu uapi: devices, and objects that are closed when dropped.

use crate::drm::{self, Node, PRIME_FLAGS, PciAddress};
use crate::map::Mapping;
use crate::pattern::{Pattern, assert_same};
use crate::sys::uapi::*;
use crate::{igt, must};
use nix::errno::Errno;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A structure that one ioctl of p2pgpu takes.
///
/// # Safety
///
/// `REQUEST` makes the kernel access that structure and nothing else.
pub unsafe trait Argument {
    /// The ioctl's number.
    const REQUEST: u32;
}

macro_rules! arguments {
    ($($type:ty = $request:ident),+ $(,)?) => {
        $(
            // SAFETY: the uapi header gives the ioctl this structure. What
            // it points to, if anything, the kernel only reads.
            unsafe impl Argument for $type {
                const REQUEST: u32 = $request;
            }
        )+
    };
}

arguments! {
    drm_p2pgpu_getparam = DRM_IOCTL_P2PGPU_GETPARAM,
    drm_p2pgpu_gem_create = DRM_IOCTL_P2PGPU_GEM_CREATE,
    drm_p2pgpu_gem_mmap_offset = DRM_IOCTL_P2PGPU_GEM_MMAP_OFFSET,
    drm_p2pgpu_gem_info = DRM_IOCTL_P2PGPU_GEM_INFO,
    drm_p2pgpu_gem_set_peer = DRM_IOCTL_P2PGPU_GEM_SET_PEER,
    drm_p2pgpu_peer_query = DRM_IOCTL_P2PGPU_PEER_QUERY,
    drm_p2pgpu_gem_move = DRM_IOCTL_P2PGPU_GEM_MOVE,
    drm_p2pgpu_gem_copy = DRM_IOCTL_P2PGPU_GEM_COPY,
    drm_p2pgpu_gem_checksum = DRM_IOCTL_P2PGPU_GEM_CHECKSUM,
    drm_p2pgpu_gem_export_range = DRM_IOCTL_P2PGPU_GEM_EXPORT_RANGE,
    drm_p2pgpu_context_create = DRM_IOCTL_P2PGPU_CONTEXT_CREATE,
    drm_p2pgpu_context_destroy = DRM_IOCTL_P2PGPU_CONTEXT_DESTROY,
    drm_p2pgpu_context_query = DRM_IOCTL_P2PGPU_CONTEXT_QUERY,
    drm_p2pgpu_submit = DRM_IOCTL_P2PGPU_SUBMIT,
    drm_p2pgpu_gem_madvise = DRM_IOCTL_P2PGPU_GEM_MADVISE,
}

/// Where an object's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Placement {
    /// In guest memory
    System = P2PGPU_PLACEMENT_SYSTEM,
    /// In the device's memory
    Vram = P2PGPU_PLACEMENT_VRAM,
}

impl Placement {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::System, Self::Vram];

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::System => Self::Vram,
            Self::Vram => Self::System,
        }
    }
}

/// An open render node of p2pgpu.
#[derive(Debug)]
pub struct Gpu {
    file: File,
    node: Node,
    /// Bytes of a slot, and of a page of VRAM
    pub page: u64,
    /// Bytes of VRAM
    pub vram: u64,
    /// Slots of the aperture
    pub slots: u64,
}

impl Gpu {
    /// All GPUs, in the order of their PCI addresses.
    pub fn nodes() -> std::io::Result<Vec<Node>> {
        drm::nodes("p2pgpu")
    }

    /// Opens a GPU's render node.
    pub fn __open(node: &Node) -> std::io::Result<Self> {
        let file = node.open()?;
        let mut gpu = Self {
            file,
            node: node.clone(),
            page: 0,
            vram: 0,
            slots: 0,
        };
        gpu.page = gpu.__param(P2PGPU_PARAM_SLOT_SIZE)?;
        gpu.vram = gpu.__param(P2PGPU_PARAM_VRAM_SIZE)?;
        gpu.slots = gpu.__param(P2PGPU_PARAM_SLOTS_TOTAL)?;
        Ok(gpu)
    }

    /// Opens the GPU with this number; skips the subtest if there are fewer.
    #[track_caller]
    pub fn open(index: usize) -> Self {
        let nodes = match Self::nodes() {
            Ok(nodes) => nodes,
            Err(error) => panic!("the GPUs could not be listed: {error}"),
        };
        let Some(node) = nodes.get(index) else {
            igt::skip(format!(
                "needs {} p2pgpu devices, found {}",
                index + 1,
                nodes.len()
            ));
        };
        match Self::__open(node) {
            Ok(gpu) => gpu,
            Err(error) => panic!("{} could not be opened: {error}", node.path.display()),
        }
    }

    /// Opens the same render node another time.
    #[track_caller]
    pub fn reopen(&self) -> Self {
        match Self::__open(&self.node) {
            Ok(gpu) => gpu,
            Err(error) => panic!("{} could not be opened: {error}", self.node.path.display()),
        }
    }

    /// The node that is open.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Where the device is.
    pub fn pci(&self) -> PciAddress {
        self.node.pci
    }

    /// Bytes that the aperture shows at once.
    pub fn aperture(&self) -> u64 {
        self.slots * self.page
    }

    /// Whether the aperture is in mapped mode, where accesses are fast.
    #[track_caller]
    pub fn is_mapped(&self) -> bool {
        self.param(P2PGPU_PARAM_MAPPED) == 1
    }

    /// A size for transfers through the aperture that take a moment and not
    /// minutes: in trapped mode each word is a message.
    #[track_caller]
    pub fn bulk_size(&self) -> u64 {
        let mode_limit = if self.is_mapped() { 4 << 20 } else { 128 << 10 };
        mode_limit.min(self.aperture() / 4)
    }

    /// Any ioctl, with any argument of its type.
    pub fn __ioctl<T: Argument>(&self, arg: &mut T) -> Result<(), Errno> {
        // SAFETY: the structure is the one that the request is for.
        unsafe { drm::ioctl(self, T::REQUEST, (&raw mut *arg).cast()) }
    }

    /// `GETPARAM`.
    pub fn __param(&self, param: u32) -> Result<u64, Errno> {
        let mut arg = drm_p2pgpu_getparam {
            param: param.into(),
            value: 0,
        };
        self.__ioctl(&mut arg)?;
        Ok(arg.value)
    }

    /// `GETPARAM`.
    #[track_caller]
    pub fn param(&self, param: u32) -> u64 {
        must(self.__param(param), format_args!("GETPARAM {param}"))
    }

    /// `GEM_CREATE`.
    pub fn __create(&self, size: u64, placement: Placement) -> Result<Bo<'_>, Errno> {
        self.__create_with(size, placement, 0)
    }

    /// `GEM_CREATE` of an object in VRAM that may be evicted.
    pub fn __create_evictable(&self, size: u64) -> Result<Bo<'_>, Errno> {
        self.__create_with(size, Placement::Vram, P2PGPU_CREATE_EVICTABLE)
    }

    /// `GEM_CREATE` of an object in VRAM that may be evicted.
    #[track_caller]
    pub fn create_evictable(&self, size: u64) -> Bo<'_> {
        must(
            self.__create_evictable(size),
            format_args!("GEM_CREATE {size:#x}, evictable"),
        )
    }

    fn __create_with(&self, size: u64, placement: Placement, flags: u32) -> Result<Bo<'_>, Errno> {
        let mut arg = drm_p2pgpu_gem_create {
            size,
            placement: placement as u32,
            flags,
            ..Default::default()
        };
        self.__ioctl(&mut arg)?;
        Ok(Bo {
            gpu: self,
            handle: arg.handle,
            size,
        })
    }

    /// An object that takes all VRAM that is free but `left` bytes, and stays.
    #[track_caller]
    pub fn fill_all_but(&self, left: u64) -> Bo<'_> {
        self.create(self.param(P2PGPU_PARAM_VRAM_FREE) - left, Placement::Vram)
    }

    /// `GEM_CREATE`.
    #[track_caller]
    pub fn create(&self, size: u64, placement: Placement) -> Bo<'_> {
        must(
            self.__create(size, placement),
            format_args!("GEM_CREATE {size:#x} {placement:?}"),
        )
    }

    /// PRIME import. The same object gives the same handle; dropping any of
    /// the [`Bo`]s then closes it for all.
    pub fn __import(&self, fd: i32) -> Result<Bo<'_>, Errno> {
        let handle = drm::prime_fd_to_handle(self, fd)?;
        let mut bo = Bo {
            gpu: self,
            handle,
            size: 0,
        };
        bo.size = bo.__info()?.size;
        Ok(bo)
    }

    /// PRIME import.
    #[track_caller]
    pub fn import(&self, fd: &impl AsRawFd) -> Bo<'_> {
        must(self.__import(fd.as_raw_fd()), format_args!("PRIME import"))
    }

    /// Closes a handle by number.
    pub fn __close(&self, handle: u32) -> Result<(), Errno> {
        drm::close_handle(self, handle)
    }

    /// `GEM_COPY`, by handles.
    pub fn __copy(&self, mut arg: drm_p2pgpu_gem_copy) -> Result<(), Errno> {
        self.__ioctl(&mut arg)
    }

    /// `PEER_QUERY` for the device at an address, by handle.
    pub fn __query(&self, handle: u32, peer: PciAddress) -> Result<drm_p2pgpu_peer_query, Errno> {
        let mut arg = drm_p2pgpu_peer_query {
            handle,
            pci_domain: peer.domain,
            pci_bus: peer.bus,
            pci_device: peer.device,
            pci_function: peer.function,
            ..Default::default()
        };
        self.__ioctl(&mut arg)?;
        Ok(arg)
    }
}

impl AsFd for Gpu {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A handle of an object, closed when dropped.
#[derive(Debug)]
pub struct Bo<'g> {
    gpu: &'g Gpu,
    /// The handle, in the GPU's open file
    pub handle: u32,
    /// Bytes
    pub size: u64,
}

impl<'g> Bo<'g> {
    /// The open file that the handle is of.
    pub fn gpu(&self) -> &'g Gpu {
        self.gpu
    }

    /// Pages of the object.
    pub fn pages(&self) -> u64 {
        self.size / self.gpu.page
    }

    /// The handle, which is now the caller's to close.
    pub fn into_handle(self) -> u32 {
        let handle = self.handle;
        std::mem::forget(self);
        handle
    }

    /// Closes the handle.
    #[track_caller]
    pub fn close(self) {
        let gpu = self.gpu;
        must(gpu.__close(self.into_handle()), format_args!("GEM_CLOSE"));
    }

    /// `GEM_INFO`.
    pub fn __info(&self) -> Result<drm_p2pgpu_gem_info, Errno> {
        let mut arg = drm_p2pgpu_gem_info {
            handle: self.handle,
            ..Default::default()
        };
        self.gpu.__ioctl(&mut arg)?;
        Ok(arg)
    }

    /// `GEM_INFO`.
    #[track_caller]
    pub fn info(&self) -> drm_p2pgpu_gem_info {
        must(self.__info(), format_args!("GEM_INFO"))
    }

    /// `GEM_SET_PEER`.
    pub fn __set_peer(&self, flags: u32) -> Result<(), Errno> {
        self.gpu.__ioctl(&mut drm_p2pgpu_gem_set_peer {
            handle: self.handle,
            flags,
        })
    }

    /// `GEM_SET_PEER`.
    #[track_caller]
    pub fn set_peer(&self, flags: u32) {
        must(
            self.__set_peer(flags),
            format_args!("GEM_SET_PEER {flags:#x}"),
        );
    }

    /// Flags the object for peers, or takes the flag back.
    #[track_caller]
    pub fn set_exportable(&self, exportable: bool) {
        self.set_peer(if exportable {
            P2PGPU_PEER_EXPORTABLE
        } else {
            0
        });
    }

    /// PRIME export.
    pub fn __export(&self) -> Result<OwnedFd, Errno> {
        drm::prime_handle_to_fd(self.gpu, self.handle, PRIME_FLAGS)
    }

    /// PRIME export.
    #[track_caller]
    pub fn export(&self) -> OwnedFd {
        must(self.__export(), format_args!("PRIME export"))
    }

    /// `GEM_EXPORT_RANGE`.
    pub fn __export_range(&self, offset: u64, size: u64, flags: u32) -> Result<OwnedFd, Errno> {
        let mut arg = drm_p2pgpu_gem_export_range {
            handle: self.handle,
            flags,
            offset,
            size,
            ..Default::default()
        };
        self.gpu.__ioctl(&mut arg)?;
        // SAFETY: the kernel has just made it, for us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(arg.fd) })
    }

    /// `GEM_EXPORT_RANGE`, of whole pages.
    #[track_caller]
    pub fn export_range(&self, pages: Range<u64>) -> OwnedFd {
        let page = self.gpu.page;
        let (offset, size) = (pages.start * page, (pages.end - pages.start) * page);
        let flags = P2PGPU_EXPORT_CLOEXEC | P2PGPU_EXPORT_RDWR;
        must(
            self.__export_range(offset, size, flags),
            format_args!("GEM_EXPORT_RANGE {offset:#x}+{size:#x}"),
        )
    }

    /// `PEER_QUERY` for the device at an address.
    #[track_caller]
    pub fn query(&self, peer: PciAddress) -> drm_p2pgpu_peer_query {
        must(
            self.gpu.__query(self.handle, peer),
            format_args!("PEER_QUERY {peer}"),
        )
    }

    /// `GEM_MOVE`.
    pub fn __move_to(&self, placement: Placement) -> Result<(), Errno> {
        let mut arg = drm_p2pgpu_gem_move {
            handle: self.handle,
            placement: placement as u32,
            ..Default::default()
        };
        self.gpu.__ioctl(&mut arg)
    }

    /// `GEM_MOVE`.
    #[track_caller]
    pub fn move_to(&self, placement: Placement) {
        must(
            self.__move_to(placement),
            format_args!("GEM_MOVE {placement:?}"),
        );
    }

    /// `GEM_MADVISE`; whether the bytes are still there.
    pub fn __advise(&self, advice: u32) -> Result<bool, Errno> {
        let mut arg = drm_p2pgpu_gem_madvise {
            handle: self.handle,
            advice,
            ..Default::default()
        };
        self.gpu.__ioctl(&mut arg)?;
        Ok(arg.retained != 0)
    }

    /// `GEM_MADVISE`; whether the bytes are still there.
    #[track_caller]
    pub fn advise(&self, advice: u32) -> bool {
        must(self.__advise(advice), format_args!("GEM_MADVISE {advice}"))
    }

    /// `GEM_MMAP_OFFSET`.
    pub fn __mmap_offset(&self) -> Result<u64, Errno> {
        let mut arg = drm_p2pgpu_gem_mmap_offset {
            handle: self.handle,
            ..Default::default()
        };
        self.gpu.__ioctl(&mut arg)?;
        Ok(arg.offset)
    }

    /// Maps the whole object.
    pub fn __map(&self) -> Result<Mapping, Errno> {
        let len = usize::try_from(self.size).map_err(|_| Errno::EOVERFLOW)?;
        Mapping::__new(self.gpu, self.__mmap_offset()?, len)
    }

    /// Maps the whole object.
    #[track_caller]
    pub fn map(&self) -> Mapping {
        must(self.__map(), format_args!("mmap of an object"))
    }

    /// `GEM_COPY` from the start of this object to the start of another.
    pub fn __copy_to(&self, to: &Bo<'_>, size: u64) -> Result<(), Errno> {
        self.gpu.__copy(drm_p2pgpu_gem_copy {
            src_handle: self.handle,
            dst_handle: to.handle,
            src_offset: 0,
            dst_offset: 0,
            size,
        })
    }

    /// `GEM_CHECKSUM`.
    pub fn __checksum(&self, offset: u64, size: u64) -> Result<[u8; 32], Errno> {
        let mut arg = drm_p2pgpu_gem_checksum {
            handle: self.handle,
            offset,
            size,
            ..Default::default()
        };
        self.gpu.__ioctl(&mut arg)?;
        Ok(arg.digest)
    }

    /// `GEM_CHECKSUM`.
    #[track_caller]
    pub fn checksum(&self, offset: u64, size: u64) -> [u8; 32] {
        must(
            self.__checksum(offset, size),
            format_args!("GEM_CHECKSUM {offset:#x}+{size:#x}"),
        )
    }

    /// Stores bytes with the copy engine: through no slot of the aperture.
    #[track_caller]
    pub fn upload(&self, offset: u64, bytes: &[u8]) {
        let size = bytes.len() as u64;
        let staging = self
            .gpu
            .create(size.next_multiple_of(self.gpu.page), Placement::System);
        staging.map().write(0, bytes);
        let copy = drm_p2pgpu_gem_copy {
            src_handle: staging.handle,
            dst_handle: self.handle,
            src_offset: 0,
            dst_offset: offset,
            size,
        };
        must(
            self.gpu.__copy(copy),
            format_args!("GEM_COPY into {offset:#x}+{size:#x}"),
        );
    }

    /// Loads bytes with the copy engine: through no slot of the aperture.
    #[track_caller]
    pub fn download(&self, offset: u64, len: usize) -> Vec<u8> {
        let size = len as u64;
        let staging = self
            .gpu
            .create(size.next_multiple_of(self.gpu.page), Placement::System);
        let copy = drm_p2pgpu_gem_copy {
            src_handle: self.handle,
            dst_handle: staging.handle,
            src_offset: offset,
            dst_offset: 0,
            size,
        };
        must(
            self.gpu.__copy(copy),
            format_args!("GEM_COPY from {offset:#x}+{size:#x}"),
        );
        let mut bytes = vec![0; len];
        staging.map().read(0, &mut bytes);
        bytes
    }

    /// Fills the object with a pattern, by the copy engine.
    #[track_caller]
    pub fn fill(&self, pattern: Pattern) {
        for (offset, len) in self.parts() {
            self.upload(offset, &pattern.bytes(offset, len));
        }
    }

    /// Asserts that the object holds a pattern, by the copy engine.
    #[track_caller]
    pub fn assert_holds(&self, pattern: Pattern) {
        for (offset, len) in self.parts() {
            let what = format!("object from {offset:#x}");
            assert_same(
                &self.download(offset, len),
                &pattern.bytes(offset, len),
                &what,
            );
        }
    }

    /// The object in parts that fit a staging buffer.
    fn parts(&self) -> impl Iterator<Item = (u64, usize)> + use<> {
        const PART: u64 = 4 << 20;
        let size = self.size;
        (0..size)
            .step_by(PART as usize)
            .map(move |offset| (offset, (size - offset).min(PART) as usize))
    }
}

impl Drop for Bo<'_> {
    fn drop(&mut self) {
        // Another `Bo` of the same handle may have closed it, or the device
        // may be gone; a handle that stays open shows as a leak.
        let _ = self.gpu.__close(self.handle);
    }
}

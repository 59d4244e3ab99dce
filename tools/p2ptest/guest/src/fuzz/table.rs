// SPDX-License-Identifier: GPL-2.0
//! The uapi as data: each ioctl of both drivers, its fields, and what each field is.
//! Numbers, sizes and offsets are the headers' own; what a field means, and which
//! errors a call may end with, is said here as the headers' comments say it.

use crate::sys::uapi::*;
use nix::errno::Errno;
use std::collections::BTreeSet;
use std::mem::offset_of;

/// Whose ioctl it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// p2pgpu
    Gpu,
    /// p2pnic
    Nic,
}

/// What names a thing that an earlier call made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// A GEM handle, of an open file
    Handle,
    /// Where an object is mapped, of an open file
    Place,
    /// A dma-buf's file descriptor
    Buffer,
    /// A region, of an open file
    Key,
    /// A queue pair, of an open file
    Pair,
    /// A mapping of this process
    Mapping,
    /// A context, of an open file
    Context,
}

/// What a field is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Must be 0
    Zero,
    /// Written by the kernel, which does not look at it before
    Out,
    /// Written by the kernel: names what the call made
    Made(Name),
    /// Names something that exists in this file (a buffer: in this process)
    Of(Name),
    /// Names something at the other end: nothing is checked when the call is made
    Far(Name),
    /// One of these
    OneOf(&'static [u32]),
    /// Any of these bits
    Flags(u32),
    /// Where something starts, in bytes
    Offset,
    /// How long it is, in bytes
    Size,
    /// Entries of a queue: a power of two from 4 to 2048
    Entries,
    /// Entries of an array: 1 to 4096
    Capacity,
    /// A time to wait, in ns
    Wait,
    /// The address of an array that the kernel writes
    Array,
    /// The address of the array of elements, which the kernel reads
    Elements,
    /// How many elements there are
    Count,
    /// Usually one of these; others may be there too
    Usually(&'static [u32]),
    /// A number that the driver does not look at
    Free,
}

/// A field of an ioctl's structure.
#[derive(Debug)]
pub struct Field {
    /// Its name
    pub name: &'static str,
    /// Where it is
    pub offset: usize,
    /// Its bytes
    pub width: usize,
    /// What it is
    pub kind: Kind,
}

/// What must lie within an object: the fields that name the object, and where the range
/// in it starts and how long it is.
pub type Range = (&'static str, &'static str, &'static str);

/// An ioctl.
#[derive(Debug)]
pub struct Call {
    /// The number's name in the header
    pub name: &'static str,
    /// Whose it is
    pub driver: Driver,
    /// The number
    pub request: u32,
    /// Bytes of its structure
    pub size: usize,
    /// All fields of the structure
    pub fields: &'static [Field],
    /// The errors that its comment names
    pub errors: &'static [Errno],
    /// The ranges that its comment bounds
    pub ranges: &'static [Range],
    /// The fields of an element, if it takes an array of elements
    pub elements: &'static [Field],
}

impl Call {
    /// The field of this name.
    pub fn field(&self, name: &str) -> Option<(usize, &'static Field)> {
        self.fields
            .iter()
            .enumerate()
            .find(|(_, field)| field.name == name)
    }
}

/// The calls of a driver that its header has, described or not: the low byte of their
/// numbers.
pub fn listed(driver: Driver) -> BTreeSet<u32> {
    let (text, tag) = match driver {
        Driver::Gpu => (GPU_HEADER, "#define DRM_P2PGPU_"),
        Driver::Nic => (NIC_HEADER, "_IO"),
    };
    let number = |line: &str| u32::from_str_radix(line.split("0x").nth(1)?.get(..2)?, 16).ok();
    text.lines()
        .filter(|line| line.contains(tag))
        .filter_map(number)
        .map(|number| match driver {
            // DRM_COMMAND_BASE
            Driver::Gpu => 0x40 + number,
            Driver::Nic => number,
        })
        .collect()
}

const GPU_HEADER: &str = include_str!("../../../../../include/uapi/drm/p2pgpu_drm.h");
const NIC_HEADER: &str = include_str!("../../../../../include/uapi/linux/p2pnic.h");

/// Errors that any call may end with while the device works, whatever its argument.
pub const COMMON: &[Errno] = &[Errno::ENOMEM, Errno::EINTR];

const fn width<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! fields {
    ($type:ty { $($field:ident: $kind:expr),+ $(,)? }) => {
        &[$(Field {
            name: stringify!($field),
            offset: offset_of!($type, $field),
            width: width(|s: &$type| &s.$field),
            kind: $kind,
        }),+]
    };
}

macro_rules! call {
    ($driver:ident $request:ident($type:ty) {
        $($field:ident: $kind:expr),+ $(,)?
    } errors $($error:ident)*; ranges $(($object:ident, $offset:ident, $size:ident))*) => {
        Call {
            name: stringify!($request),
            driver: Driver::$driver,
            request: $request,
            size: size_of::<$type>(),
            fields: fields!($type { $($field: $kind),+ }),
            errors: &[$(Errno::$error),*],
            ranges: &[$((stringify!($object), stringify!($offset), stringify!($size))),*],
            elements: &[],
        }
    };
}

use Kind::{
    Array, Capacity, Count, Elements, Entries, Far, Flags, Free, Made, Of, Offset, OneOf, Out,
    Size, Usually, Wait, Zero,
};
use Name::{Buffer, Context, Handle, Key, Mapping, Pair, Place};

/// The flags of a new object, and an unknown one.
const CREATE_FLAGS: u32 = P2PGPU_CREATE_EVICTABLE | 1 << 1;

const PLACEMENTS: &[u32] = &[P2PGPU_PLACEMENT_SYSTEM, P2PGPU_PLACEMENT_VRAM];
const ADVICE: &[u32] = &[P2PGPU_MADV_WILLNEED, P2PGPU_MADV_DONTNEED];
const PEER_FLAGS: u32 =
    P2PGPU_PEER_EXPORTABLE | P2PGPU_PEER_RESERVE | P2PGPU_PEER_STRICT | P2PGPU_PEER_READ_ONLY;

/// Where the rig's devices are, and a bridge.
const BUSES: &[u32] = &[2, 3, 4, 5, 6];

const OPERATIONS: &[u32] = &[
    P2PGPU_OP_COPY,
    P2PGPU_OP_FILL,
    P2PGPU_OP_CHECKSUM,
    P2PGPU_OP_ADD_U32,
    P2PGPU_OP_ADD_F32,
];

/// Index of the call that makes objects; [`tests`] knows.
pub const CREATE: usize = 1;

/// All ioctls of both drivers.
pub const CALLS: &[Call] = &[
    call!(Gpu DRM_IOCTL_P2PGPU_GETPARAM(drm_p2pgpu_getparam) {
        param: Usually(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]), value: Out,
    } errors EINVAL; ranges),
    call!(Gpu DRM_IOCTL_P2PGPU_GEM_CREATE(drm_p2pgpu_gem_create) {
        size: Size, placement: OneOf(PLACEMENTS), flags: Flags(CREATE_FLAGS), handle: Made(Handle), pad: Zero,
    } errors EINVAL E2BIG ENOSPC; ranges),
    call!(Gpu DRM_IOCTL_P2PGPU_GEM_MMAP_OFFSET(drm_p2pgpu_gem_mmap_offset) {
        handle: Of(Handle), pad: Zero, offset: Made(Place),
    } errors EINVAL ENOENT; ranges),
    call!(Gpu DRM_IOCTL_P2PGPU_GEM_INFO(drm_p2pgpu_gem_info) {
        handle: Of(Handle), pad: Zero, size: Out, placement: Out, peer_flags: Out, slots: Out,
        peer_slots: Out, importers: Out, pins: Out, promised_slots: Out, evictions: Out,
        invalidations: Out, peer_maps: Out, system_maps: Out, fall_backs: Out, refusals: Out,
        losses: Out,
    } errors EINVAL ENOENT; ranges),
    call!(Gpu DRM_IOCTL_P2PGPU_GEM_SET_PEER(drm_p2pgpu_gem_set_peer) {
        handle: Of(Handle), flags: Flags(PEER_FLAGS),
    } errors EINVAL ENOENT ENOSPC EBUSY EOPNOTSUPP; ranges),
    call!(Gpu DRM_IOCTL_P2PGPU_PEER_QUERY(drm_p2pgpu_peer_query) {
        handle: Of(Handle), pci_domain: Usually(&[0]), pci_bus: Usually(BUSES), pci_device: Usually(&[0]),
        pci_function: Usually(&[0]), verdict: Out, route: Out, flags: Out, slots_needed: Out, slots_free: Out,
        slots_reclaimable: Out, slots_reserved: Out, slots_pinned: Out, slots_total: Out,
    } errors ENOENT ENXIO EINVAL EAGAIN EOPNOTSUPP; ranges),
    call!(Gpu DRM_IOCTL_P2PGPU_GEM_MOVE(drm_p2pgpu_gem_move) {
        handle: Of(Handle), placement: OneOf(PLACEMENTS), flags: Zero, pad: Zero,
    } errors EINVAL ENOENT EBUSY ENOSPC EOPNOTSUPP; ranges),
    call!(Gpu DRM_IOCTL_P2PGPU_GEM_COPY(drm_p2pgpu_gem_copy) {
        src_handle: Of(Handle), dst_handle: Of(Handle), src_offset: Offset, dst_offset: Offset,
        size: Size,
    } errors EINVAL ENOENT ENOSPC EPERM EACCES EXDEV EBUSY EAGAIN;
    ranges (src_handle, src_offset, size) (dst_handle, dst_offset, size)),
    call!(Gpu DRM_IOCTL_P2PGPU_GEM_CHECKSUM(drm_p2pgpu_gem_checksum) {
        handle: Of(Handle), pad: Zero, offset: Offset, size: Size, digest: Out,
    } errors EINVAL ENOENT E2BIG ENOSPC EPERM EACCES EXDEV EBUSY EAGAIN;
    ranges (handle, offset, size)),
    call!(Gpu DRM_IOCTL_P2PGPU_GEM_EXPORT_RANGE(drm_p2pgpu_gem_export_range) {
        handle: Of(Handle), flags: Flags(P2PGPU_EXPORT_RDWR | P2PGPU_EXPORT_CLOEXEC),
        offset: Offset, size: Size, fd: Made(Buffer), pad: Zero,
    } errors EINVAL ENOENT EPERM EMFILE EOPNOTSUPP; ranges (handle, offset, size)),
    call!(Gpu DRM_IOCTL_P2PGPU_CONTEXT_CREATE(drm_p2pgpu_context_create) {
        flags: Zero, id: Made(Context),
    } errors EINVAL ENOSPC; ranges),
    call!(Gpu DRM_IOCTL_P2PGPU_CONTEXT_DESTROY(drm_p2pgpu_context_destroy) {
        id: Of(Context), pad: Zero,
    } errors EINVAL ENOENT; ranges),
    call!(Gpu DRM_IOCTL_P2PGPU_CONTEXT_QUERY(drm_p2pgpu_context_query) {
        id: Of(Context), pad: Zero, state: Out, jobs: Out, engine_ns: Out,
    } errors EINVAL ENOENT; ranges),
    Call {
        elements: fields!(drm_p2pgpu_op {
            op: OneOf(OPERATIONS),
            value: Usually(&[0]),
            src_handle: Of(Handle),
            dst_handle: Of(Handle),
            src_offset: Offset,
            dst_offset: Offset,
            size: Size,
        }),
        ..call!(Gpu DRM_IOCTL_P2PGPU_SUBMIT(drm_p2pgpu_submit) {
            context: Of(Context), flags: Zero, ops: Elements, in_: Array, out: Array,
            op_count: Count, in_count: Usually(&[0]), out_count: Usually(&[0]), pad: Zero,
        } errors EINVAL ENOENT ECANCELED EBUSY E2BIG ENOSPC EPERM EACCES EXDEV EAGAIN; ranges)
    },
    call!(Gpu DRM_IOCTL_P2PGPU_GEM_MADVISE(drm_p2pgpu_gem_madvise) {
        handle: Of(Handle), advice: OneOf(ADVICE), retained: Out, pad: Zero,
    } errors EINVAL ENOENT EOPNOTSUPP; ranges),
    call!(Nic P2PNIC_IOCTL_QUERY(p2pnic_query) {
        pci_domain: Out, pci_bus: Out, pci_device: Out, pci_function: Out, flags: Out,
        max_regions: Out, max_queue_pairs: Out, regions: Out, peer_read_bytes: Out,
        peer_write_bytes: Out, ram_read_bytes: Out, ram_write_bytes: Out, parked: Out,
        resumed: Out, invalidations: Out, invalidations_busy: Out,
    } errors; ranges),
    call!(Nic P2PNIC_IOCTL_REG_REGION(p2pnic_reg_region) {
        fd: Of(Buffer),
        access: Flags(P2PNIC_ACCESS_LOCAL_WRITE | P2PNIC_ACCESS_REMOTE_READ
            | P2PNIC_ACCESS_REMOTE_WRITE),
        offset: Offset, size: Size, key: Made(Key), pad: Zero,
    } errors EBADF EINVAL ENOSPC EPERM EXDEV; ranges (fd, offset, size)),
    call!(Nic P2PNIC_IOCTL_DEREG_REGION(p2pnic_dereg_region) {
        key: Of(Key), pad: Zero,
    } errors EINVAL ENOENT; ranges),
    call!(Nic P2PNIC_IOCTL_REGION_INFO(p2pnic_region_info) {
        key: Of(Key), mapped: Out, segments: Out, last_error: Out, maps: Out, invalidations: Out,
    } errors ENOENT; ranges),
    call!(Nic P2PNIC_IOCTL_CREATE_QP(p2pnic_create_qp) {
        send_entries: Entries, recv_entries: Entries, qp: Made(Pair), pad: Zero,
    } errors EINVAL ENOSPC; ranges),
    call!(Nic P2PNIC_IOCTL_CONNECT_QP(p2pnic_connect_qp) {
        qp: Of(Pair), remote_qp: Far(Pair),
    } errors ENOENT EINVAL EISCONN; ranges),
    call!(Nic P2PNIC_IOCTL_DESTROY_QP(p2pnic_destroy_qp) {
        qp: Of(Pair), pad: Zero,
    } errors EINVAL ENOENT; ranges),
    call!(Nic P2PNIC_IOCTL_POST_SEND(p2pnic_post_send) {
        qp: Of(Pair), opcode: OneOf(&[P2PNIC_OP_WRITE, P2PNIC_OP_READ, P2PNIC_OP_SEND]), id: Free,
        local_key: Far(Key), remote_key: Far(Key), local_offset: Offset, remote_offset: Offset,
        size: Size,
    } errors ENOENT EAGAIN EINVAL; ranges),
    call!(Nic P2PNIC_IOCTL_POST_RECV(p2pnic_post_recv) {
        qp: Of(Pair), local_key: Far(Key), id: Free, local_offset: Offset, size: Size,
    } errors ENOENT EAGAIN EINVAL; ranges),
    call!(Nic P2PNIC_IOCTL_POLL(p2pnic_poll) {
        qp: Of(Pair), capacity: Capacity, timeout_ns: Wait, completions: Array, count: Out,
        pad: Zero,
    } errors ENOENT EINVAL ETIMEDOUT; ranges),
    call!(Nic P2PNIC_IOCTL_REG_USER(p2pnic_reg_user) {
        address: Of(Mapping), size: Size,
        access: Flags(P2PNIC_ACCESS_LOCAL_WRITE | P2PNIC_ACCESS_REMOTE_READ
            | P2PNIC_ACCESS_REMOTE_WRITE),
        key: Made(Key),
    } errors EINVAL EFAULT EACCES EOPNOTSUPP EIO E2BIG EBUSY ENOSPC EPERM EXDEV EAGAIN; ranges),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_every_structure_is_described() {
        for call in CALLS {
            let mut at = 0;
            for field in call.fields {
                assert_eq!(field.offset, at, "{} {}", call.name, field.name);
                at += field.width;
            }
            assert_eq!(at, call.size, "{}", call.name);
            let mut at = 0;
            for field in call.elements {
                assert_eq!(field.offset, at, "{} {}", call.name, field.name);
                at += field.width;
            }
            assert_eq!(call.size, (call.request >> 16 & 0x3fff) as usize);
        }
    }

    #[test]
    fn what_is_described_is_in_the_headers() {
        for driver in [Driver::Gpu, Driver::Nic] {
            let listed = listed(driver);
            let described = CALLS.iter().filter(|call| call.driver == driver);
            for call in described.clone() {
                assert!(listed.contains(&(call.request & 0xff)), "{}", call.name);
            }
            assert!(listed.len() >= described.count());
        }
        assert!(!listed(Driver::Gpu).contains(&0x3f) && !listed(Driver::Nic).contains(&0xbf));
        assert!(CALLS[CREATE].name.ends_with("GEM_CREATE"));
        // Nothing of a header is left out.
        assert_eq!(
            listed(Driver::Gpu).len(),
            CALLS
                .iter()
                .filter(|call| call.driver == Driver::Gpu)
                .count()
        );
    }

    #[test]
    fn ranges_name_fields() {
        for call in CALLS {
            for (object, offset, size) in call.ranges {
                let kind = |name: &str| call.field(name).map(|(_, field)| field.kind);
                assert!(matches!(kind(object), Some(Kind::Of(_))));
                assert_eq!(
                    (kind(offset), kind(size)),
                    (Some(Kind::Offset), Some(Kind::Size))
                );
            }
        }
    }
}

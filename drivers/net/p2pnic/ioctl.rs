// SPDX-License-Identifier: GPL-2.0

//! The structures of the ioctls as values that cross to and from user memory.

use core::ops::{
    Deref,
    DerefMut, //
};
use kernel::{
    prelude::*,
    transmute::{
        AsBytes,
        FromBytes, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    },
    uapi, //
};

/// Wraps a structure of the uapi header; the sizes of its fields have to add up to its own.
macro_rules! argument {
    ($name:ident, $uapi:ty, [$($field:ident: $kind:ty),+ $(,)?]) => {
        #[derive(Clone, Copy, Default)]
        #[repr(transparent)]
        pub(crate) struct $name($uapi);

        const _: () = assert!(
            0 $(+ size_of::<$kind>())+ == size_of::<$uapi>(),
            "padding that nobody initializes"
        );

        // Names all fields with their types, so that the sum above is that of the fields.
        const _: fn(&$uapi) = |argument| {
            $(let _: $kind = argument.$field;)+
        };

        // SAFETY: All fields are integers.
        unsafe impl FromBytes for $name {}
        // SAFETY: All fields are integers and, as asserted above, there is no padding.
        unsafe impl AsBytes for $name {}

        impl From<$uapi> for $name {
            fn from(argument: $uapi) -> Self {
                Self(argument)
            }
        }

        impl Deref for $name {
            type Target = $uapi;

            fn deref(&self) -> &$uapi {
                &self.0
            }
        }

        impl DerefMut for $name {
            fn deref_mut(&mut self) -> &mut $uapi {
                &mut self.0
            }
        }
    };
}

argument!(Query, uapi::p2pnic_query, [
    pci_domain: u32, pci_bus: u32, pci_device: u32, pci_function: u32,
    flags: u32, max_regions: u32, max_queue_pairs: u32, regions: u32,
    peer_read_bytes: u64, peer_write_bytes: u64, ram_read_bytes: u64, ram_write_bytes: u64,
    parked: u64, resumed: u64, invalidations: u64, invalidations_busy: u64,
]);
argument!(RegRegion, uapi::p2pnic_reg_region, [
    fd: i32, access: u32, offset: u64, size: u64, key: u32, pad: u32,
]);
argument!(DeregRegion, uapi::p2pnic_dereg_region, [key: u32, pad: u32]);
argument!(RegionInfo, uapi::p2pnic_region_info, [
    key: u32, mapped: u32, segments: u32, last_error: u32, maps: u64, invalidations: u64,
]);
argument!(CreateQp, uapi::p2pnic_create_qp, [
    send_entries: u32, recv_entries: u32, qp: u32, pad: u32,
]);
argument!(ConnectQp, uapi::p2pnic_connect_qp, [qp: u32, remote_qp: u32]);
argument!(DestroyQp, uapi::p2pnic_destroy_qp, [qp: u32, pad: u32]);
argument!(PostSend, uapi::p2pnic_post_send, [
    qp: u32, opcode: u32, id: u64, local_key: u32, remote_key: u32,
    local_offset: u64, remote_offset: u64, size: u64,
]);
argument!(PostRecv, uapi::p2pnic_post_recv, [
    qp: u32, local_key: u32, id: u64, local_offset: u64, size: u64,
]);
argument!(Poll, uapi::p2pnic_poll, [
    qp: u32, capacity: u32, timeout_ns: u64, completions: u64, count: u32, pad: u32,
]);
argument!(Completion, uapi::p2pnic_completion, [id: u64, size: u64, status: u32, opcode: u32]);

/// Reads an ioctl's argument.
pub(crate) fn read<T: FromBytes>(arg: UserPtr) -> Result<T> {
    UserSlice::new(arg, size_of::<T>()).reader().read()
}

/// Writes an ioctl's argument back.
pub(crate) fn write<T: AsBytes>(arg: UserPtr, value: &T) -> Result {
    UserSlice::new(arg, size_of::<T>()).writer().write(value)
}

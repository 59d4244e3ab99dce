// SPDX-License-Identifier: GPL-2.0
//! Tests of what bad input gets: each ioctl, argument by argument; then all of
//! it at once. That nothing leaks is seen around each subtest.

mod gpu;
mod nic;
mod together;

use gpu::*;
use nic::*;
use p2pguest::igt::{self, Subtest};
use p2pguest::subtests;
use std::process::ExitCode;
use together::*;

const SUBTESTS: &[Subtest] = subtests![
    /// GETPARAM of a parameter that does not exist: EINVAL.
    bad_getparam,
    /// GEM_CREATE of size 0, 2^63 and unaligned sizes: EINVAL, E2BIG.
    bad_create_size,
    /// GEM_CREATE with unknown placement, flags, padding: EINVAL.
    bad_create_fields,
    /// GEM_MMAP_OFFSET with a wrong handle, padding: ENOENT, EINVAL.
    bad_mmap_offset,
    /// mmap at offsets that are no object's, and past an object's end: EINVAL.
    bad_mmap_range,
    /// GEM_INFO with a wrong handle, padding: ENOENT, EINVAL.
    bad_info,
    /// GEM_SET_PEER with a wrong handle, unknown flags: ENOENT, EINVAL.
    bad_set_peer,
    /// PEER_QUERY with a wrong handle: ENOENT.
    bad_query,
    /// GEM_MOVE with a wrong handle, placement, flags, padding.
    bad_move,
    /// GEM_MADVISE with a wrong handle, advice, padding, of an object that is not evicted.
    bad_advice,
    /// GEM_COPY with wrong handles: ENOENT.
    bad_copy_handle,
    /// GEM_COPY of nothing, past the end, overlapping: EINVAL.
    bad_copy_range,
    /// GEM_CHECKSUM with a wrong handle, padding, range.
    bad_checksum,
    /// PRIME export of a wrong handle, with unknown flags: ENOENT, EINVAL.
    bad_export,
    /// PRIME import of what is not open, or no dma-buf: EBADF, EINVAL.
    bad_import,
    /// Closing a handle twice, or one that never was: EINVAL.
    bad_close,
    /// Arguments that are not memory of the process: EFAULT.
    bad_gpu_pointer,
    /// Ioctls that the GPU's driver does not have: EINVAL.
    bad_gpu_ioctl,
    /// A closed file: EBADF.
    bad_gpu_file,
    /// REG_REGION of what is not open, or no dma-buf: EBADF, EINVAL.
    bad_register_fd,
    /// REG_REGION of empty, unaligned ranges and past the end: EINVAL.
    bad_register_range,
    /// REG_REGION with unknown access, padding: EINVAL.
    bad_register_fields,
    /// REG_USER of empty, unaligned and overflowing ranges, with unknown access: EINVAL.
    bad_register_user,
    /// DEREG_REGION of a wrong key, twice, with padding: ENOENT, EINVAL.
    bad_deregister,
    /// REGION_INFO of a wrong key, of one that is gone, of another NIC's: ENOENT.
    bad_region_info,
    /// CREATE_QP with counts that are no powers of two, too small, too large.
    bad_create_qp,
    /// CONNECT_QP of a wrong queue pair, to a wrong one, twice.
    bad_connect,
    /// DESTROY_QP of a wrong number, twice, with padding: ENOENT, EINVAL.
    bad_destroy_qp,
    /// POST_SEND with a wrong queue pair, opcode, size, remote end of SEND.
    bad_post_send,
    /// POST_RECV with a wrong queue pair, size.
    bad_post_recv,
    /// POLL with a wrong queue pair, capacity, padding, pointer.
    bad_poll,
    /// Arguments that are not memory of the process: EFAULT.
    bad_nic_pointer,
    /// Ioctls that the NIC's driver does not have: ENOTTY.
    bad_nic_ioctl,
    /// A dma-buf of another driver, registered with the NIC.
    foreign_dma_buf,
    /// Two threads send random arguments to all ioctls at once.
    bad_all_at_once,
    /// Two threads close, deregister and destroy the same things.
    bad_races,
];

fn main() -> ExitCode {
    igt::main(SUBTESTS)
}

/// Handles and keys that no object has here.
pub const WRONG: [u32; 4] = [0, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];

/// An address that no process has.
pub fn nowhere() -> *mut std::ffi::c_void {
    std::ptr::without_provenance_mut(8)
}

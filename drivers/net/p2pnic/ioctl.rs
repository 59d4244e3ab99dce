// SPDX-License-Identifier: GPL-2.0

//! The structures of the ioctls as values that cross to and from user memory.

pub(crate) use kernel::ioctl_argument::{
    read,
    write, //
};
use kernel::{
    ioctl_argument,
    uapi, //
};

ioctl_argument!(Query, uapi::p2pnic_query, [
    pci_domain: u32, pci_bus: u32, pci_device: u32, pci_function: u32,
    flags: u32, max_regions: u32, max_queue_pairs: u32, regions: u32,
    peer_read_bytes: u64, peer_write_bytes: u64, ram_read_bytes: u64, ram_write_bytes: u64,
    parked: u64, resumed: u64, invalidations: u64, invalidations_busy: u64,
]);
ioctl_argument!(RegRegion, uapi::p2pnic_reg_region, [
    fd: i32, access: u32, offset: u64, size: u64, key: u32, pad: u32,
]);
ioctl_argument!(RegUser, uapi::p2pnic_reg_user, [address: u64, size: u64, access: u32, key: u32]);
ioctl_argument!(DeregRegion, uapi::p2pnic_dereg_region, [key: u32, pad: u32]);
ioctl_argument!(RegionInfo, uapi::p2pnic_region_info, [
    key: u32, mapped: u32, segments: u32, last_error: u32, maps: u64, invalidations: u64,
]);
ioctl_argument!(CreateQp, uapi::p2pnic_create_qp, [
    send_entries: u32, recv_entries: u32, qp: u32, pad: u32,
]);
ioctl_argument!(ConnectQp, uapi::p2pnic_connect_qp, [qp: u32, remote_qp: u32]);
ioctl_argument!(DestroyQp, uapi::p2pnic_destroy_qp, [qp: u32, pad: u32]);
ioctl_argument!(PostSend, uapi::p2pnic_post_send, [
    qp: u32, opcode: u32, id: u64, local_key: u32, remote_key: u32,
    local_offset: u64, remote_offset: u64, size: u64,
]);
ioctl_argument!(PostRecv, uapi::p2pnic_post_recv, [
    qp: u32, local_key: u32, id: u64, local_offset: u64, size: u64,
]);
ioctl_argument!(Poll, uapi::p2pnic_poll, [
    qp: u32, capacity: u32, timeout_ns: u64, completions: u64, count: u32, pad: u32,
]);
ioctl_argument!(Completion, uapi::p2pnic_completion, [id: u64, size: u64, status: u32, opcode: u32]);

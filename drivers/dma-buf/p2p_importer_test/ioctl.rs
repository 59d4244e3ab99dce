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

ioctl_argument!(Attach, uapi::p2p_importer_attach, [
    fd: i32, kind: u32, answer: u32, flags: u32, delay_ms: u32,
    pci_domain: u32, pci_bus: u32, pci_device: u32, pci_function: u32, pad: u32,
]);
ioctl_argument!(Map, uapi::p2p_importer_map, [
    direction: u32, index: u32, ranges: u32, pad: u32,
]);
ioctl_argument!(Unmap, uapi::p2p_importer_unmap, [index: u32, pad: u32]);
ioctl_argument!(Range, uapi::p2p_importer_range, [dma: u64, size: u64, physical: u64]);
ioctl_argument!(Ranges, uapi::p2p_importer_ranges, [
    index: u32, capacity: u32, ranges: u64, count: u32, pad: u32,
]);
ioctl_argument!(Cycle, uapi::p2p_importer_cycle, [direction: u32, count: u32]);
ioctl_argument!(Access, uapi::p2p_importer_access, [offset: u64, size: u64, data: u64]);
ioctl_argument!(Info, uapi::p2p_importer_info, [
    is_peer: u32, mappings: u32, invalidations: u32, unlocked: u32,
    late_unmaps: u32, remaps: u32, remap_error: u32, accesses: u32,
    attach_ns: u64, remap_ns: u64,
]);
ioctl_argument!(Sample, uapi::p2p_importer_sample, [map_ns: u64, unmap_ns: u64]);
ioctl_argument!(Time, uapi::p2p_importer_time, [direction: u32, count: u32, samples: u64]);
ioctl_argument!(Register, uapi::p2p_importer_register, [
    start: u64, length: u64, flags: u32,
    pci_domain: u32, pci_bus: u32, pci_device: u32, pci_function: u32, pad: u32,
]);
ioctl_argument!(Region, uapi::p2p_importer_region, [
    pages: u64, capacity: u32, count: u32, maps: u32, invalidations: u32,
]);

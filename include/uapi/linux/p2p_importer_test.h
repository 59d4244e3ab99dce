/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * Userspace interface of /dev/p2p_importer_test: importers of dma-bufs that
 * behave as a test wants, for exporters to be tested against.
 *
 * An open file is one importer, of a dma-buf, or of a range of user addresses, or
 * of one of each. All structures are the same for 32 and 64 bit processes.
 * Padding that is not zero is refused with EINVAL. Errors that every ioctl can
 * return: EFAULT (the argument is not readable or writable), ENOMEM, EINTR (a
 * signal came while it waited, whose handler is not SA_RESTART), ENOTTY (no such
 * ioctl); all but ATTACH and REGISTER: ENOTCONN (the file is not attached to a
 * dma-buf; of what is for regions: it has none).
 */
#ifndef _UAPI_LINUX_P2P_IMPORTER_TEST_H
#define _UAPI_LINUX_P2P_IMPORTER_TEST_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Knows of no move: the core pins while it is mapped. */
#define P2P_IMPORTER_STATIC		0
/* Lets go when it is told. */
#define P2P_IMPORTER_DYNAMIC		1
/* Dynamic, but cannot be told. */
#define P2P_IMPORTER_DEAF		2

/* What a dynamic importer does when it is told: it unmaps at once. */
#define P2P_IMPORTER_UNMAP		0
/* Keeps the mapping until it is told to unmap by ioctl. */
#define P2P_IMPORTER_KEEP		1
/* Unmaps from a work item, delay_ms later. */
#define P2P_IMPORTER_UNMAP_LATER	2
/* As UNMAP_LATER, and maps again at once, in the direction of the last MAP. */
#define P2P_IMPORTER_REMAP		3

/* Can use memory without struct page, a BAR for example. */
#define P2P_IMPORTER_PEER2PEER		(1 << 0)
/* A device without hardware takes the place of a PCI device. */
#define P2P_IMPORTER_SOFTWARE		(1 << 1)

/**
 * struct p2p_importer_attach - become an importer of a dma-buf
 *
 * EBADF: fd is not open. EINVAL: fd is not a dma-buf; unknown kind, answer or
 * flag; an answer of what is not dynamic, or a peer that is static; a delay
 * over P2P_IMPORTER_MAX_DELAY_MS; a malformed PCI address. EISCONN: the file
 * is attached already. ENXIO: no PCI device at the address. Errors of the
 * exporter's attach.
 */
struct p2p_importer_attach {
	/** @fd: in: a dma-buf */
	__s32 fd;
	/** @kind: in: P2P_IMPORTER_STATIC, DYNAMIC or DEAF */
	__u32 kind;
	/** @answer: in: P2P_IMPORTER_UNMAP, KEEP, UNMAP_LATER or REMAP */
	__u32 answer;
	/** @flags: in: any of P2P_IMPORTER_PEER2PEER, SOFTWARE */
	__u32 flags;
	/** @delay_ms: in: of UNMAP_LATER and REMAP, else 0 */
	__u32 delay_ms;
	/** @pci_domain: in: the device for which to import; 0 with SOFTWARE */
	__u32 pci_domain;
	/** @pci_bus: in */
	__u32 pci_bus;
	/** @pci_device: in */
	__u32 pci_device;
	/** @pci_function: in */
	__u32 pci_function;
	/** @pad: 0 */
	__u32 pad;
};

#define P2P_IMPORTER_MAX_DELAY_MS	5000

#define P2P_IMPORTER_BIDIRECTIONAL	0
/* The device reads. */
#define P2P_IMPORTER_TO_DEVICE		1
/* The device writes. */
#define P2P_IMPORTER_FROM_DEVICE	2

/**
 * struct p2p_importer_map - map the dma-buf, once more if it is mapped
 *
 * EINVAL: unknown direction. Errors of the exporter's map.
 */
struct p2p_importer_map {
	/** @direction: in: P2P_IMPORTER_BIDIRECTIONAL, TO_DEVICE or FROM_DEVICE */
	__u32 direction;
	/** @index: out: of the mapping, the oldest being 0 */
	__u32 index;
	/** @ranges: out: DMA address ranges of the mapping */
	__u32 ranges;
	/** @pad: 0 */
	__u32 pad;
};

/**
 * struct p2p_importer_unmap - undo a mapping; those after it move up
 *
 * ENOENT: there is no such mapping.
 */
struct p2p_importer_unmap {
	/** @index: in */
	__u32 index;
	/** @pad: 0 */
	__u32 pad;
};

/**
 * struct p2p_importer_range - a range of DMA addresses
 */
struct p2p_importer_range {
	/** @dma: address for the device */
	__u64 dma;
	/** @size: bytes */
	__u64 size;
	/** @physical: address of the memory there; all ones if there is none */
	__u64 physical;
};

/**
 * struct p2p_importer_ranges - the addresses of a mapping
 *
 * ENOENT: there is no such mapping.
 */
struct p2p_importer_ranges {
	/** @index: in: the mapping */
	__u32 index;
	/** @capacity: in: entries that @ranges has room for */
	__u32 capacity;
	/** @ranges: in: pointer to an array of struct p2p_importer_range */
	__u64 ranges;
	/** @count: out: ranges that there are; no more than @capacity are written */
	__u32 count;
	/** @pad: 0 */
	__u32 pad;
};

/**
 * struct p2p_importer_cycle - map and unmap, again and again
 *
 * EINVAL: unknown direction. Errors of the exporter's map end it.
 */
struct p2p_importer_cycle {
	/** @direction: in: as for MAP */
	__u32 direction;
	/** @count: in: how often */
	__u32 count;
};

/**
 * struct p2p_importer_sample - how long one round of TIME took
 */
struct p2p_importer_sample {
	/** @map_ns: nanoseconds to map */
	__u64 map_ns;
	/** @unmap_ns: nanoseconds to unmap */
	__u64 unmap_ns;
};

#define P2P_IMPORTER_MAX_SAMPLES	4096

/**
 * struct p2p_importer_time - map and unmap, again and again, and tell the times
 *
 * What is timed is the work, under the reservation lock, and not the ioctl.
 *
 * EINVAL: unknown direction; a count of 0, or over P2P_IMPORTER_MAX_SAMPLES.
 * Errors of the exporter's map end it.
 */
struct p2p_importer_time {
	/** @direction: in: as for MAP */
	__u32 direction;
	/** @count: in: how often */
	__u32 count;
	/** @samples: in: pointer to an array of @count struct p2p_importer_sample */
	__u64 samples;
};

/**
 * struct p2p_importer_access - the kernel's CPU reads or writes the buffer
 *
 * Needs a mapping of VMAP. EINVAL: there is none, or the bytes reach past the
 * buffer's end.
 */
struct p2p_importer_access {
	/** @offset: in: first byte in the buffer */
	__u64 offset;
	/** @size: in: number of bytes */
	__u64 size;
	/** @data: in: pointer to where they go to or come from */
	__u64 data;
};

/**
 * struct p2p_importer_info - what became of the importer
 */
struct p2p_importer_info {
	/** @is_peer: out: 1 if the exporter let it be one */
	__u32 is_peer;
	/** @mappings: out: that there are now, taken back or not */
	__u32 mappings;
	/** @invalidations: out: times that it was told while it had a mapping */
	__u32 invalidations;
	/** @unlocked: out: those without the reservation lock held */
	__u32 unlocked;
	/** @late_unmaps: out: work items that unmapped */
	__u32 late_unmaps;
	/** @remaps: out: work items that mapped again */
	__u32 remaps;
	/** @remap_error: out: errno of the last one that could not, 0 if none */
	__u32 remap_error;
	/** @accesses: out: accesses that have ended, see START_ACCESS */
	__u32 accesses;
	/** @attach_ns: out: nanoseconds that it took to attach */
	__u64 attach_ns;
	/**
	 * @remap_ns: out: nanoseconds from when it was told to let go until it
	 * was mapped again, the last time that it was; 0 if it never was
	 */
	__u64 remap_ns;
};

/* The device will write. */
#define P2P_IMPORTER_WRITE		(1 << 0)

#define P2P_IMPORTER_MAX_LENGTH		(1 << 30)

/**
 * struct p2p_importer_register - become an importer of a range of user addresses
 *
 * Of the calling process, whose memory may be there or not. It is mapped by
 * MAP_REGION, and taken back by whatever changes the range.
 *
 * EINVAL: unknown flag; the range is empty, not of whole pages, longer than
 * P2P_IMPORTER_MAX_LENGTH, or past the end of the address space; a malformed PCI
 * address. EISCONN: the file has a range already. ENXIO: no PCI device at the
 * address.
 */
struct p2p_importer_register {
	/** @start: in: first address */
	__u64 start;
	/** @length: in: bytes */
	__u64 length;
	/** @flags: in: P2P_IMPORTER_WRITE or 0 */
	__u32 flags;
	/** @pci_domain: in: the device for which to import */
	__u32 pci_domain;
	/** @pci_bus: in */
	__u32 pci_bus;
	/** @pci_device: in */
	__u32 pci_device;
	/** @pci_function: in */
	__u32 pci_function;
	/** @pad: 0 */
	__u32 pad;
};

/**
 * struct p2p_importer_region - what the device has of the range
 */
struct p2p_importer_region {
	/** @pages: in: pointer to an array of struct p2p_importer_range */
	__u64 pages;
	/** @capacity: in: entries that @pages has room for */
	__u32 capacity;
	/**
	 * @count: out: pages that are mapped now, all or none; no more than
	 * @capacity are written, one an entry
	 */
	__u32 count;
	/** @maps: out: times that the range was mapped */
	__u32 maps;
	/** @invalidations: out: times that it was taken back, or unmapped */
	__u32 invalidations;
};

/* An enum, so that Rust's bindgen evaluates the values. */
enum {
	P2P_IMPORTER_IOCTL_ATTACH = _IOW('I', 0xc0, struct p2p_importer_attach),
	/* Ends the mappings, the pins and the attachment. */
	P2P_IMPORTER_IOCTL_DETACH = _IO('I', 0xc1),
	/* EINVAL: it is static. Errors of the exporter's pin. */
	P2P_IMPORTER_IOCTL_PIN = _IO('I', 0xc2),
	/* EINVAL: it is not pinned. */
	P2P_IMPORTER_IOCTL_UNPIN = _IO('I', 0xc3),
	P2P_IMPORTER_IOCTL_MAP = _IOWR('I', 0xc4, struct p2p_importer_map),
	P2P_IMPORTER_IOCTL_UNMAP = _IOW('I', 0xc5, struct p2p_importer_unmap),
	P2P_IMPORTER_IOCTL_RANGES = _IOWR('I', 0xc6, struct p2p_importer_ranges),
	P2P_IMPORTER_IOCTL_CYCLE = _IOW('I', 0xc7, struct p2p_importer_cycle),
	P2P_IMPORTER_IOCTL_INFO = _IOR('I', 0xc8, struct p2p_importer_info),
	/*
	 * Pretends that a DMA is under way: puts a fence of usage BOOKKEEP on
	 * the dma-buf, which signals when the importer answers, or goes.
	 * EBUSY: one is under way.
	 */
	P2P_IMPORTER_IOCTL_START_ACCESS = _IO('I', 0xc9),
	P2P_IMPORTER_IOCTL_TIME = _IOW('I', 0xca, struct p2p_importer_time),
	/*
	 * Maps the buffer for the kernel, until VUNMAP or DETACH. EBUSY: it is
	 * mapped. Errors of the exporter's vmap.
	 */
	P2P_IMPORTER_IOCTL_VMAP = _IO('I', 0xcb),
	/* EINVAL: it is not mapped. */
	P2P_IMPORTER_IOCTL_VUNMAP = _IO('I', 0xcc),
	P2P_IMPORTER_IOCTL_VREAD = _IOW('I', 0xcd, struct p2p_importer_access),
	P2P_IMPORTER_IOCTL_VWRITE = _IOW('I', 0xce, struct p2p_importer_access),
	P2P_IMPORTER_IOCTL_REGISTER = _IOW('I', 0xcf, struct p2p_importer_register),
	/* Ends the mapping and the use of the range. */
	P2P_IMPORTER_IOCTL_UNREGISTER = _IO('I', 0xd0),
	/* Nothing if it is mapped. Errors of p2p_vma_map() and of exporters. */
	P2P_IMPORTER_IOCTL_MAP_REGION = _IO('I', 0xd1),
	P2P_IMPORTER_IOCTL_UNMAP_REGION = _IO('I', 0xd2),
	P2P_IMPORTER_IOCTL_REGION = _IOWR('I', 0xd3, struct p2p_importer_region),
};

#endif /* _UAPI_LINUX_P2P_IMPORTER_TEST_H */

/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * Userspace interface of the p2pgpu DRM driver.
 *
 * All structures are the same for 32 and 64 bit processes. Unknown flags and
 * padding that is not zero are refused with EINVAL. Errors that every ioctl
 * can return: EFAULT (the argument is not readable or writable), ENODEV (the
 * device is gone), ENOMEM, EINTR (a signal came while it waited, whose
 * handler is not SA_RESTART; nothing was done).
 *
 * Dma-bufs of other exporters, another device of this driver among them, can be
 * imported by PRIME. The object that stands for one belongs to its exporter:
 *
 * - CPU mappings are the exporter's, as if the dma-buf had been mapped. They do
 *   not need this device: they stay when it goes, and go when the exporter says.
 * - GEM_COPY and GEM_CHECKSUM work. The engine reaches the bytes where the
 *   exporter keeps them, through the aperture if that is another device's VRAM
 *   and there is a route. The errors of the exporter are returned: EPERM, EACCES,
 *   EXDEV, ENOSPC, EBUSY and ENODEV if it is a device of this driver.
 * - GEM_INFO says P2PGPU_PLACEMENT_IMPORTED; all but handle and size is 0.
 * - Export by PRIME gives the dma-buf that was imported, whatever the flags.
 * - GEM_SET_PEER, PEER_QUERY, GEM_MOVE, GEM_MADVISE and GEM_EXPORT_RANGE are the
 *   exporter's: EOPNOTSUPP.
 *
 * A dma-buf of an object of this device gives the object itself; one of a range
 * of it is refused (EINVAL).
 */
#ifndef _UAPI_P2PGPU_DRM_H_
#define _UAPI_P2PGPU_DRM_H_

#include "drm.h"

#if defined(__cplusplus)
extern "C" {
#endif

/* Size of VRAM in bytes. */
#define P2PGPU_PARAM_VRAM_SIZE		0
/* VRAM that no object holds, in bytes. */
#define P2PGPU_PARAM_VRAM_FREE		1
/* Slots of the aperture; a slot is one page of P2PGPU_PARAM_SLOT_SIZE bytes. */
#define P2PGPU_PARAM_SLOTS_TOTAL	2
/*
 * Slots that peers of an object without a promise could be given now, without
 * taking any from other peers: free or used by CPU mappings only, and not
 * promised.
 */
#define P2PGPU_PARAM_SLOTS_AVAILABLE	3
/* Size of a slot in bytes. */
#define P2PGPU_PARAM_SLOT_SIZE		4
/* 1 if the aperture is in mapped mode, 0 if it is in trapped mode. */
#define P2PGPU_PARAM_MAPPED		5
/* Slots promised to objects flagged P2PGPU_PEER_RESERVE. */
#define P2PGPU_PARAM_SLOTS_RESERVED	6
/* Slots promised to objects that importers pin, and that are not reserved. */
#define P2PGPU_PARAM_SLOTS_PINNED	7
/*
 * Slots lent: held by peers of objects without a promise, which can be told to
 * let go.
 */
#define P2PGPU_PARAM_SLOTS_LENT		8
/* Slots whose page is gone, but which a peer has not unmapped yet. */
#define P2PGPU_PARAM_SLOTS_DRAINING	9
/* Most contexts of an open file. */
#define P2PGPU_PARAM_CONTEXTS_MAX	10
/* Most jobs of a context that have not ended. */
#define P2PGPU_PARAM_JOBS_MAX		11
/* Most operations of a job. */
#define P2PGPU_PARAM_OPS_MAX		12
/* Most synchronization objects that a job waits for, and that it signals. */
#define P2PGPU_PARAM_SYNCS_MAX		13
/*
 * Most slots of objects that importers pin: of all together, and of those that one
 * process has flagged. An administrator can change them.
 */
#define P2PGPU_PARAM_PIN_LIMIT		14
#define P2PGPU_PARAM_PIN_LIMIT_PROCESS	15
/* The same of objects flagged P2PGPU_PEER_RESERVE; 4294967295 if there is none. */
#define P2PGPU_PARAM_RESERVE_LIMIT	16
#define P2PGPU_PARAM_RESERVE_LIMIT_PROCESS	17
/* Size of the largest object that can be created in system memory, in bytes. */
#define P2PGPU_PARAM_SYSTEM_SIZE_MAX	18

/**
 * struct drm_p2pgpu_getparam - read a property of the device
 *
 * EINVAL: no such parameter.
 */
struct drm_p2pgpu_getparam {
	/** @param: in: one of P2PGPU_PARAM_* */
	__u64 param;
	/** @value: out */
	__u64 value;
};

/* Where an object's bytes are. */
#define P2PGPU_PLACEMENT_SYSTEM		0
#define P2PGPU_PLACEMENT_VRAM		1
/* Where the exporter has them: only GEM_INFO says so. */
#define P2PGPU_PLACEMENT_IMPORTED	2

/*
 * When VRAM is short the object may be evicted, to system memory: the one that
 * was not used for the longest time first. It comes back by itself when it is
 * used: by the engine, or by a peer that maps it. CPUs use it where it is, and
 * do not bring it back.
 *
 * An object that importers pin, or that is flagged P2PGPU_PEER_RESERVE or
 * P2PGPU_PEER_STRICT, is not evicted; nor is one for whose pages in system
 * memory its creator's cgroup has no room. Importers are invalidated as by
 * GEM_MOVE, which also ends an eviction: the object is then where it was moved to.
 */
#define P2PGPU_CREATE_EVICTABLE		(1 << 0)

/**
 * struct drm_p2pgpu_gem_create - create an object, filled with zeros
 *
 * Others that may be evicted make room for an object in VRAM.
 *
 * EINVAL: size is 0 or not a multiple of the slot size, unknown placement,
 * unknown flag, P2PGPU_CREATE_EVICTABLE for a system object. E2BIG: size is more
 * than VRAM can ever hold, or P2PGPU_PARAM_SYSTEM_SIZE_MAX. ENOSPC: not enough VRAM,
 * also when all others that may be evicted are counted as free, in which case
 * none is evicted, or more than the cgroup may have. EIO: the engine did not
 * clear it.
 */
struct drm_p2pgpu_gem_create {
	/** @size: in: bytes */
	__u64 size;
	/** @placement: in: one of P2PGPU_PLACEMENT_* */
	__u32 placement;
	/** @flags: in: any of P2PGPU_CREATE_* */
	__u32 flags;
	/** @handle: out */
	__u32 handle;
	/** @pad: 0 */
	__u32 pad;
};

/**
 * struct drm_p2pgpu_gem_mmap_offset - where to mmap an object
 *
 * The mapping must be shared. Its pages are faulted in when they are touched,
 * those around them too, in VRAM through slots of the aperture. Slots are taken
 * from peers if need be; an access raises SIGBUS when peers with a promise hold
 * them all, or when the device is gone.
 *
 * ENOENT: no such handle.
 */
struct drm_p2pgpu_gem_mmap_offset {
	/** @handle: in */
	__u32 handle;
	/** @pad: 0 */
	__u32 pad;
	/** @offset: out: the offset to pass to mmap on this file */
	__u64 offset;
};

/* The object may be mapped by peers. */
#define P2PGPU_PEER_EXPORTABLE		(1 << 0)
/*
 * Slots for all pages of the object are promised to its peers: whenever the
 * object is in VRAM they can map it, for as long as it has the flag.
 */
#define P2PGPU_PEER_RESERVE		(1 << 1)
/*
 * The object is never moved to system memory for the sake of a peer, which is
 * refused instead: EXDEV if it has no route to the aperture, ENOSPC if there
 * are too few slots.
 */
#define P2PGPU_PEER_STRICT		(1 << 2)
/* Peers may only read: a mapping that may write is refused with EACCES. */
#define P2PGPU_PEER_READ_ONLY		(1 << 3)

/**
 * struct drm_p2pgpu_gem_set_peer - say whether and how peers may map an object
 *
 * Without P2PGPU_PEER_EXPORTABLE an object cannot be exported (EPERM from the
 * PRIME ioctl) and no peer maps it. Clearing any flag, and setting
 * P2PGPU_PEER_READ_ONLY, invalidates the importers: they map again by the new
 * rules. After an error the flags and the promises are as they were, though
 * importers may have been invalidated.
 *
 * P2PGPU_PEER_RESERVE is granted if all promises together fit in the aperture.
 * Peers of other objects are invalidated if they are in the way.
 *
 * EINVAL: unknown flag, or a flag without P2PGPU_PEER_EXPORTABLE. ENOENT: no
 * such handle. ENOSPC: the promises would not fit, or are more than the process,
 * all of them together, or the cgroup may have. EBUSY: an importer that would
 * have to let go pins the object, or does not let go in time; or the promises
 * would fit, but peers do not let go of the slots. EOPNOTSUPP: the object is
 * imported.
 */
struct drm_p2pgpu_gem_set_peer {
	/** @handle: in */
	__u32 handle;
	/** @flags: in: any of P2PGPU_PEER_* */
	__u32 flags;
};

/**
 * struct drm_p2pgpu_gem_info - the state of an object
 *
 * ENOENT: no such handle.
 */
struct drm_p2pgpu_gem_info {
	/** @handle: in */
	__u32 handle;
	/** @pad: 0 */
	__u32 pad;
	/** @size: out: bytes */
	__u64 size;
	/** @placement: out: one of P2PGPU_PLACEMENT_* */
	__u32 placement;
	/** @peer_flags: out: any of P2PGPU_PEER_* */
	__u32 peer_flags;
	/** @slots: out: slots that show pages of the object */
	__u32 slots;
	/** @peer_slots: out: those that peers hold */
	__u32 peer_slots;
	/** @importers: out: attached importers */
	__u32 importers;
	/**
	 * @pins: out: importers that pin the object where it is, and mappings
	 * of its dma-bufs for the kernel's own CPU accesses, which do so too
	 */
	__u32 pins;
	/** @promised_slots: out: slots promised to the object */
	__u32 promised_slots;
	/** @evictions: out: times that the object was evicted from VRAM */
	__u32 evictions;
	/** @invalidations: out: times that importers had a mapping taken back */
	__u64 invalidations;
	/** @peer_maps: out: mappings given to importers through the aperture */
	__u64 peer_maps;
	/** @system_maps: out: mappings given to importers in system memory */
	__u64 system_maps;
	/**
	 * @fall_backs: out: times that the object was moved to system memory
	 * because an importer could not be given slots
	 */
	__u64 fall_backs;
	/** @refusals: out: times that an importer was refused */
	__u64 refusals;
	/**
	 * @losses: out: times that its bytes were lost, as the engine failed,
	 * also when it was asked again, to copy them out of VRAM for others
	 */
	__u64 losses;
};

/* The object can be mapped by the peer. */
#define P2PGPU_PEER_YES			0
/* The object is not flagged P2PGPU_PEER_EXPORTABLE. */
#define P2PGPU_PEER_NOT_FLAGGED		1
/* There is no route for peer-to-peer DMA between the two devices. */
#define P2PGPU_PEER_NO_ROUTE		2
/* Too few slots can be had now. */
#define P2PGPU_PEER_NO_SLOTS		3
/* The object has more pages than the aperture has slots. */
#define P2PGPU_PEER_TOO_LARGE		4
/* The device's policy denies this peer. */
#define P2PGPU_PEER_DENIED		5

/* How the peer reaches the aperture. */
#define P2PGPU_ROUTE_NONE		0
/* Through PCIe switches only, by bus address. */
#define P2PGPU_ROUTE_SWITCH		1
/* Through the host bridge, by physical address. */
#define P2PGPU_ROUTE_HOST_BRIDGE	2
/* Through the host bridge, by an address that the peer's IOMMU translates. */
#define P2PGPU_ROUTE_IOMMU		3

/*
 * The answer YES holds: slots for the object are promised, so that the peer can
 * map it at any time while it is in VRAM, whatever others do. Without this bit
 * the answer is that of this moment.
 */
#define P2PGPU_PEER_QUERY_HOLDS		(1 << 0)

/**
 * struct drm_p2pgpu_peer_query - can a peer map this object?
 *
 * Says what the object would need if it were in VRAM, and whether that can be
 * had. It promises nothing: P2PGPU_PEER_RESERVE does. Whether an importer may
 * write is not asked.
 *
 * ENOENT: no such handle. ENXIO: no such PCI device. EINVAL: the address is
 * malformed. EAGAIN: the device is just being bound to a driver or unbound.
 * EOPNOTSUPP: the object is imported.
 */
struct drm_p2pgpu_peer_query {
	/** @handle: in */
	__u32 handle;
	/** @pci_domain: in: PCI segment of the peer */
	__u32 pci_domain;
	/** @pci_bus: in: 0 to 255 */
	__u32 pci_bus;
	/** @pci_device: in: 0 to 31 */
	__u32 pci_device;
	/** @pci_function: in: 0 to 7 */
	__u32 pci_function;
	/** @verdict: out: P2PGPU_PEER_YES, or why not */
	__u32 verdict;
	/** @route: out: one of P2PGPU_ROUTE_* */
	__u32 route;
	/** @flags: out: any of P2PGPU_PEER_QUERY_* */
	__u32 flags;
	/** @slots_needed: out: slots that the object lacks for a peer mapping */
	__u32 slots_needed;
	/** @slots_free: out: slots that show nothing */
	__u32 slots_free;
	/**
	 * @slots_reclaimable: out: slots of other objects that no peer holds,
	 * or that are lent to peers
	 */
	__u32 slots_reclaimable;
	/** @slots_reserved: out: as P2PGPU_PARAM_SLOTS_RESERVED */
	__u32 slots_reserved;
	/** @slots_pinned: out: as P2PGPU_PARAM_SLOTS_PINNED */
	__u32 slots_pinned;
	/** @slots_total: out: as P2PGPU_PARAM_SLOTS_TOTAL */
	__u32 slots_total;
};

/**
 * struct drm_p2pgpu_gem_move - migrate an object
 *
 * Importers are invalidated and CPU mappings zapped; both come back by
 * themselves. Returns when the bytes are in their new place. Moving an object
 * to where it is does nothing.
 *
 * EBUSY: an importer pins the object, does not let go, or lets go so late that
 * the promises could not be kept. ENOSPC: not enough VRAM, as for GEM_CREATE, or more than the
 * cgroup may have. EINVAL: unknown placement or flag. ENOENT: no such handle.
 * EIO: the copy failed and the object is where it was. EOPNOTSUPP: the object is
 * imported.
 */
struct drm_p2pgpu_gem_move {
	/** @handle: in */
	__u32 handle;
	/** @placement: in: one of P2PGPU_PLACEMENT_* */
	__u32 placement;
	/** @flags: in: 0 */
	__u32 flags;
	/** @pad: 0 */
	__u32 pad;
};

/* The bytes are needed; so it is with a new object. */
#define P2PGPU_MADV_WILLNEED		0
/*
 * They are not, for now: when VRAM is short such objects leave first, and without
 * a copy. Until they are needed again the object holds what it held, or zeros
 * from some moment on.
 */
#define P2PGPU_MADV_DONTNEED		1

/**
 * struct drm_p2pgpu_gem_madvise - say whether an object's bytes are needed
 *
 * For caches: an object that is likely, but not sure, to be used again need not
 * be copied out of VRAM for others. It is used like any other meanwhile.
 *
 * EINVAL: unknown advice, or the object was made without
 * P2PGPU_CREATE_EVICTABLE. ENOENT: no such handle. EOPNOTSUPP: the object is
 * imported.
 */
struct drm_p2pgpu_gem_madvise {
	/** @handle: in */
	__u32 handle;
	/** @advice: in: one of P2PGPU_MADV_* */
	__u32 advice;
	/**
	 * @retained: out: 1 if the object has kept its bytes since they were last
	 * needed, 0 if they are gone
	 */
	__u32 retained;
	/** @pad: 0 */
	__u32 pad;
};

/**
 * struct drm_p2pgpu_gem_copy - copy between objects with the copy engine
 *
 * Returns when the copy is done. The objects may be in any placement and may
 * be one object, if the ranges do not overlap.
 *
 * Waits for those who use the objects and say so by fences: for who writes the
 * source, and for all who use the destination. Its own fence is among those of
 * both objects, and of their dma-bufs, until the copy is done.
 *
 * EINVAL: a range is empty, past the end of its object, or overlaps the other.
 * ENOENT: no such handle. EIO: the engine failed. ENOSPC: the ranges are of
 * dma-bufs that their exporter cannot show at once. Errors of exporters.
 */
struct drm_p2pgpu_gem_copy {
	/** @src_handle: in */
	__u32 src_handle;
	/** @dst_handle: in */
	__u32 dst_handle;
	/** @src_offset: in: bytes */
	__u64 src_offset;
	/** @dst_offset: in: bytes */
	__u64 dst_offset;
	/** @size: in: bytes */
	__u64 size;
};

#define P2PGPU_DIGEST_SIZE		32

/**
 * struct drm_p2pgpu_gem_checksum - SHA-256 of a range, by the copy engine
 *
 * Reads the object as GEM_COPY does.
 *
 * EINVAL: the range is empty or past the end of the object. ENOENT: no such
 * handle. E2BIG: the range lies in more pieces than one command takes (65536).
 * EIO: the engine failed. Errors of exporters.
 */
struct drm_p2pgpu_gem_checksum {
	/** @handle: in */
	__u32 handle;
	/** @pad: 0 */
	__u32 pad;
	/** @offset: in: bytes */
	__u64 offset;
	/** @size: in: bytes */
	__u64 size;
	/** @digest: out */
	__u8 digest[P2PGPU_DIGEST_SIZE];
};

/* The values are those of the access mode and of O_CLOEXEC in open(2). */
#define P2PGPU_EXPORT_RDWR		0x00000002
#define P2PGPU_EXPORT_CLOEXEC		0x00080000

/**
 * struct drm_p2pgpu_gem_export_range - export a range of an object
 *
 * Makes a dma-buf of its own, which shows the range only. Importers of ranges
 * and of the whole object share the slots of the pages that they share, and are
 * invalidated together. A reservation is one of the whole object.
 *
 * The file descriptor cannot be imported by PRIME into the same device (EINVAL
 * from the PRIME ioctl).
 *
 * EINVAL: the range is empty, not of whole pages or past the end of the object;
 * unknown flag. ENOENT: no such handle. EPERM: the object is not flagged
 * P2PGPU_PEER_EXPORTABLE. EMFILE: no file descriptor is left. EOPNOTSUPP: the
 * object is imported.
 */
struct drm_p2pgpu_gem_export_range {
	/** @handle: in */
	__u32 handle;
	/** @flags: in: any of P2PGPU_EXPORT_* */
	__u32 flags;
	/** @offset: in: bytes, a multiple of the slot size */
	__u64 offset;
	/** @size: in: bytes, a multiple of the slot size */
	__u64 size;
	/** @fd: out: the dma-buf */
	__s32 fd;
	/** @pad: 0 */
	__u32 pad;
};

/**
 * struct drm_p2pgpu_context_create - make a queue for jobs
 *
 * The jobs of one context run in their order, those of several contexts in
 * turn. Contexts go with their file; jobs that are queued run all the same.
 *
 * EINVAL: unknown flag. ENOSPC: the file, or the device, has as many as it can
 * have.
 */
struct drm_p2pgpu_context_create {
	/** @flags: in: 0 */
	__u32 flags;
	/** @id: out: names the context in this file, not 0 */
	__u32 id;
};

/**
 * struct drm_p2pgpu_context_destroy - give up a context
 *
 * Jobs that are queued run all the same.
 *
 * ENOENT: no such context. EINVAL: pad is not 0.
 */
struct drm_p2pgpu_context_destroy {
	/** @id: in */
	__u32 id;
	/** @pad: 0 */
	__u32 pad;
};

/* The context takes jobs. */
#define P2PGPU_CONTEXT_OK		0
/* It is lost: a job did not end in time (sysfs: job_timeout_ms). */
#define P2PGPU_CONTEXT_TIMEOUT		1
/* It is lost: the engine reported an error, or the device went. */
#define P2PGPU_CONTEXT_ERROR		2

/**
 * struct drm_p2pgpu_context_query - the state of a context
 *
 * ENOENT: no such context. EINVAL: pad is not 0.
 */
struct drm_p2pgpu_context_query {
	/** @id: in */
	__u32 id;
	/** @pad: 0 */
	__u32 pad;
	/** @state: out: one of P2PGPU_CONTEXT_* */
	__u32 state;
	/** @jobs: out: those that have not ended */
	__u32 jobs;
	/** @engine_ns: out: time that the engine spent on its jobs */
	__u64 engine_ns;
};

/* Copies @size bytes of the source to the destination. */
#define P2PGPU_OP_COPY			1
/* Stores @value, 32 bits, over @size bytes of the destination. */
#define P2PGPU_OP_FILL			2
/*
 * Writes the SHA-256 of @size bytes of the source to the 32 bytes at
 * @dst_offset of the destination.
 */
#define P2PGPU_OP_CHECKSUM		3
/* Adds numbers of 32 bits, modulo 2^32, to those of the destination. */
#define P2PGPU_OP_ADD_U32		4
/* Adds numbers of IEEE 754 binary32 to those of the destination. */
#define P2PGPU_OP_ADD_F32		5

/**
 * struct drm_p2pgpu_op - an operation of a job
 *
 * The ranges of a copy or of an addition do not overlap. Offsets and sizes of
 * FILL and ADD are multiples of 4. What an operation does not use is 0.
 */
struct drm_p2pgpu_op {
	/** @op: one of P2PGPU_OP_* */
	__u32 op;
	/** @value: of FILL */
	__u32 value;
	/** @src_handle: the source; not of FILL */
	__u32 src_handle;
	/** @dst_handle: the destination */
	__u32 dst_handle;
	/** @src_offset: bytes; not of FILL */
	__u64 src_offset;
	/** @dst_offset: bytes */
	__u64 dst_offset;
	/** @size: bytes */
	__u64 size;
};

/**
 * struct drm_p2pgpu_sync - a place of a synchronization object
 */
struct drm_p2pgpu_sync {
	/** @handle: a syncobj of this file */
	__u32 handle;
	/** @flags: 0 */
	__u32 flags;
	/** @point: of a timeline, or 0: the only one of a binary one */
	__u64 point;
};

/**
 * struct drm_p2pgpu_submit - queue a job for the engine
 *
 * Returns when the job is queued. It starts when those before it in its context
 * have ended, the fences of @in have signalled, well or not, and those who use
 * the objects and say so by fences have ended: who writes an object that is
 * read, and all who use one that is written. Its own fence is among those of
 * the objects, and is put in the places of @out. Operations run in their order,
 * each after what the one before has written is there.
 *
 * A job that fails has a fence with an error: ETIME, it did not end in time
 * (the engine is reset); EIO, the engine failed, or did not bring the bytes of
 * an object; ECANCELED, a job before it in its context did; ENODEV, the device
 * went. The context is lost then, what is
 * queued in it fails, and it takes no more jobs (ECANCELED). What a job that
 * failed has written is undefined. Objects and peers are left as they are, and
 * jobs of other contexts go on.
 *
 * EINVAL: @flags or a padding is not 0, no operation, a number of them or of
 * syncs above P2PGPU_PARAM_OPS_MAX and P2PGPU_PARAM_SYNCS_MAX, an operation
 * that is none, a field that it does not use is not 0, a range that is empty,
 * past the end of its object, unaligned or overlaps the other, or a place of
 * @in that holds no fence. ENOENT: no such context, object or syncobj.
 * ECANCELED: the context is lost. EBUSY: it has P2PGPU_PARAM_JOBS_MAX jobs that
 * have not ended. E2BIG: the ranges lie in more pieces than one command takes
 * (65536). ENOSPC: an exporter cannot show all ranges at once. Errors of
 * exporters.
 */
struct drm_p2pgpu_submit {
	/** @context: in */
	__u32 context;
	/** @flags: in: 0 */
	__u32 flags;
	/** @ops: in: address of struct drm_p2pgpu_op */
	__u64 ops;
	/** @in: in: address of struct drm_p2pgpu_sync: what is waited for */
	__u64 in;
	/** @out: in: address of struct drm_p2pgpu_sync: what is signalled */
	__u64 out;
	/** @op_count: in */
	__u32 op_count;
	/** @in_count: in */
	__u32 in_count;
	/** @out_count: in */
	__u32 out_count;
	/** @pad: 0 */
	__u32 pad;
};

#define DRM_P2PGPU_GETPARAM		0x00
#define DRM_P2PGPU_GEM_CREATE		0x01
#define DRM_P2PGPU_GEM_MMAP_OFFSET	0x02
#define DRM_P2PGPU_GEM_INFO		0x03
#define DRM_P2PGPU_GEM_SET_PEER		0x04
#define DRM_P2PGPU_PEER_QUERY		0x05
#define DRM_P2PGPU_GEM_MOVE		0x06
#define DRM_P2PGPU_GEM_COPY		0x07
#define DRM_P2PGPU_GEM_CHECKSUM		0x08
#define DRM_P2PGPU_GEM_EXPORT_RANGE	0x09
#define DRM_P2PGPU_CONTEXT_CREATE	0x0a
#define DRM_P2PGPU_CONTEXT_DESTROY	0x0b
#define DRM_P2PGPU_CONTEXT_QUERY	0x0c
#define DRM_P2PGPU_SUBMIT		0x0d
#define DRM_P2PGPU_GEM_MADVISE		0x0e

/* An enum, so that Rust's bindgen evaluates the values. */
enum {
	DRM_IOCTL_P2PGPU_GETPARAM = DRM_IOWR(DRM_COMMAND_BASE + DRM_P2PGPU_GETPARAM,
					     struct drm_p2pgpu_getparam),
	DRM_IOCTL_P2PGPU_GEM_CREATE = DRM_IOWR(DRM_COMMAND_BASE + DRM_P2PGPU_GEM_CREATE,
					       struct drm_p2pgpu_gem_create),
	DRM_IOCTL_P2PGPU_GEM_MMAP_OFFSET = DRM_IOWR(DRM_COMMAND_BASE + DRM_P2PGPU_GEM_MMAP_OFFSET,
						    struct drm_p2pgpu_gem_mmap_offset),
	DRM_IOCTL_P2PGPU_GEM_INFO = DRM_IOWR(DRM_COMMAND_BASE + DRM_P2PGPU_GEM_INFO,
					     struct drm_p2pgpu_gem_info),
	DRM_IOCTL_P2PGPU_GEM_SET_PEER = DRM_IOW(DRM_COMMAND_BASE + DRM_P2PGPU_GEM_SET_PEER,
						 struct drm_p2pgpu_gem_set_peer),
	DRM_IOCTL_P2PGPU_PEER_QUERY = DRM_IOWR(DRM_COMMAND_BASE + DRM_P2PGPU_PEER_QUERY,
					       struct drm_p2pgpu_peer_query),
	DRM_IOCTL_P2PGPU_GEM_MOVE = DRM_IOW(DRM_COMMAND_BASE + DRM_P2PGPU_GEM_MOVE,
					     struct drm_p2pgpu_gem_move),
	DRM_IOCTL_P2PGPU_GEM_COPY = DRM_IOW(DRM_COMMAND_BASE + DRM_P2PGPU_GEM_COPY,
					     struct drm_p2pgpu_gem_copy),
	DRM_IOCTL_P2PGPU_GEM_CHECKSUM = DRM_IOWR(DRM_COMMAND_BASE + DRM_P2PGPU_GEM_CHECKSUM,
						 struct drm_p2pgpu_gem_checksum),
	DRM_IOCTL_P2PGPU_GEM_EXPORT_RANGE = DRM_IOWR(DRM_COMMAND_BASE + DRM_P2PGPU_GEM_EXPORT_RANGE,
						     struct drm_p2pgpu_gem_export_range),
	DRM_IOCTL_P2PGPU_CONTEXT_CREATE = DRM_IOWR(DRM_COMMAND_BASE + DRM_P2PGPU_CONTEXT_CREATE,
						   struct drm_p2pgpu_context_create),
	DRM_IOCTL_P2PGPU_CONTEXT_DESTROY = DRM_IOW(DRM_COMMAND_BASE + DRM_P2PGPU_CONTEXT_DESTROY,
						   struct drm_p2pgpu_context_destroy),
	DRM_IOCTL_P2PGPU_CONTEXT_QUERY = DRM_IOWR(DRM_COMMAND_BASE + DRM_P2PGPU_CONTEXT_QUERY,
						  struct drm_p2pgpu_context_query),
	DRM_IOCTL_P2PGPU_SUBMIT = DRM_IOW(DRM_COMMAND_BASE + DRM_P2PGPU_SUBMIT,
					  struct drm_p2pgpu_submit),
	DRM_IOCTL_P2PGPU_GEM_MADVISE = DRM_IOWR(DRM_COMMAND_BASE + DRM_P2PGPU_GEM_MADVISE,
						struct drm_p2pgpu_gem_madvise),
};

#if defined(__cplusplus)
}
#endif

#endif /* _UAPI_P2PGPU_DRM_H_ */

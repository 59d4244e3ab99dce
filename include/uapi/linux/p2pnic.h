/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * Userspace interface of the p2pnic driver: /dev/p2pnic0, /dev/p2pnic1, ...
 *
 * Regions and queue pairs belong to the open file that made them; closing it
 * destroys them. All structures are the same for 32 and 64 bit processes.
 * Unknown flags and padding that is not zero are refused with EINVAL. Errors
 * that every ioctl can return: EFAULT (the argument is not readable or
 * writable), ENODEV (the device is gone), ENOMEM, EINTR (a signal came while it
 * waited, whose handler is not SA_RESTART; nothing was done), EIO (the device
 * refused a command), ETIMEDOUT (the device did not answer), ENOTTY (no such
 * ioctl).
 */
#ifndef _UAPI_LINUX_P2PNIC_H
#define _UAPI_LINUX_P2PNIC_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* The wire is connected. */
#define P2PNIC_LINK_UP			(1 << 0)

/**
 * struct p2pnic_query - the device and what it did
 *
 * The counters are those of the whole device, since power on.
 */
struct p2pnic_query {
	/** @pci_domain: out: PCI segment */
	__u32 pci_domain;
	/** @pci_bus: out */
	__u32 pci_bus;
	/** @pci_device: out */
	__u32 pci_device;
	/** @pci_function: out */
	__u32 pci_function;
	/** @flags: out: any of P2PNIC_LINK_UP */
	__u32 flags;
	/** @max_regions: out */
	__u32 max_regions;
	/** @max_queue_pairs: out */
	__u32 max_queue_pairs;
	/** @regions: out: regions of all files that exist now */
	__u32 regions;
	/** @peer_read_bytes: out: payload read from BARs of other devices */
	__u64 peer_read_bytes;
	/** @peer_write_bytes: out: payload written to BARs of other devices */
	__u64 peer_write_bytes;
	/** @ram_read_bytes: out: payload read from guest memory */
	__u64 ram_read_bytes;
	/** @ram_write_bytes: out: payload written to guest memory */
	__u64 ram_write_bytes;
	/** @parked: out: requests that met an invalid region */
	__u64 parked;
	/** @resumed: out: parked requests that went on */
	__u64 resumed;
	/** @invalidations: out: invalidations of valid regions */
	__u64 invalidations;
	/** @invalidations_busy: out: those that met a transfer in flight */
	__u64 invalidations_busy;
};

/* Rights to a region; local reading is always allowed. */
#define P2PNIC_ACCESS_LOCAL_WRITE	(1 << 0)
#define P2PNIC_ACCESS_REMOTE_READ	(1 << 1)
#define P2PNIC_ACCESS_REMOTE_WRITE	(1 << 2)

/**
 * struct p2pnic_reg_region - make a range of a dma-buf a memory region
 *
 * The dma-buf is imported dynamically: it can move while it is registered. It
 * is mapped when a request first needs it, and again when one needs it after
 * the exporter took the mapping back; requests wait meanwhile.
 *
 * If the exporter refuses to map it for good (EPERM, ENODEV, EXDEV, ...), or
 * for now (EAGAIN, EBUSY, ENOMEM, ENOSPC, ...) over more than 5 seconds
 * (map_timeout_ms in sysfs), the region is revoked: requests that wait for it complete with
 * P2PNIC_STATUS_REVOKED, here or at the other end of the wire, and later ones
 * with P2PNIC_STATUS_LOCAL_ACCESS or P2PNIC_STATUS_REMOTE_ACCESS. It stays
 * revoked, even if the exporter would allow it again, and stays attached to
 * the dma-buf, until it is deregistered; last_error of struct
 * p2pnic_region_info says why.
 *
 * EBADF: fd is not open. EINVAL: fd is not a dma-buf; offset or size is 0 or
 * not a multiple of 4096 (offset may be 0), or past the end; unknown access.
 * ENOSPC: no region is left. Errors of the exporter's attach: EPERM, EXDEV, …
 */
struct p2pnic_reg_region {
	/** @fd: in: a dma-buf */
	__s32 fd;
	/** @access: in: any of P2PNIC_ACCESS_* */
	__u32 access;
	/** @offset: in: bytes */
	__u64 offset;
	/** @size: in: bytes */
	__u64 size;
	/** @key: out: names the region in requests, here and at the other end */
	__u32 key;
	/** @pad: 0 */
	__u32 pad;
};

/**
 * struct p2pnic_reg_user - make a range of user addresses a memory region
 *
 * The range may show ordinary memory, memory of other devices whose drivers map
 * it for the NIC, or both, in as many mappings as there are. It is mapped here,
 * so that what cannot be is refused; no CPU needs to have touched it.
 *
 * It stays in the control of the process and of the drivers: whatever changes
 * what the addresses show (munmap, mremap, madvise, a write after fork, a
 * buffer that moves, exit) takes the mapping back, and requests that need it
 * wait until it is mapped again. So the region is of the addresses, of the
 * process that registered it, and not of the memory. If it cannot be mapped
 * again it is revoked, as in struct p2pnic_reg_region; EFAULT and ESRCH (the
 * process has ended) are for good as well.
 *
 * EINVAL: address or size is not a multiple of 4096, size is 0, or the range
 * is past the end of the address space; unknown access. EFAULT: nothing is
 * mapped at some of the addresses. EACCES: they, or their driver, do not allow
 * writing, or reading. EOPNOTSUPP: some are of a device whose driver does not
 * map them for others. EIO: the NIC cannot reach the memory. E2BIG: it lies in
 * too many pieces. EBUSY: it changes too fast. ENOMEM: or the range is too
 * large. ENOSPC: no region is left, or the driver has no room for the NIC.
 * Other errors of the driver of the memory: EPERM, EXDEV, EAGAIN, ENODEV.
 */
struct p2pnic_reg_user {
	/** @address: in: first user address */
	__u64 address;
	/** @size: in: bytes */
	__u64 size;
	/** @access: in: any of P2PNIC_ACCESS_* */
	__u32 access;
	/** @key: out: names the region in requests, here and at the other end */
	__u32 key;
};

/**
 * struct p2pnic_dereg_region - destroy a region
 *
 * Returns when no DMA of it is in flight. Requests that were waiting for it
 * complete with P2PNIC_STATUS_REVOKED.
 *
 * ENOENT: this file has no such region.
 */
struct p2pnic_dereg_region {
	/** @key: in */
	__u32 key;
	/** @pad: 0 */
	__u32 pad;
};

/**
 * struct p2pnic_region_info - the state of a region
 *
 * ENOENT: this file has no such region.
 */
struct p2pnic_region_info {
	/** @key: in */
	__u32 key;
	/** @mapped: out: 1 if the region has addresses now */
	__u32 mapped;
	/** @segments: out: DMA address ranges of the newest mapping */
	__u32 segments;
	/**
	 * @last_error: out: errno of the newest attempt to map, 0 if it worked;
	 * of a region that is revoked, the errno that revoked it
	 */
	__u32 last_error;
	/** @maps: out: times that the region was mapped */
	__u64 maps;
	/** @invalidations: out: times that the exporter took the mapping back */
	__u64 invalidations;
};

/**
 * struct p2pnic_create_qp - create a queue pair
 *
 * EINVAL: an entry count is not a power of two from 4 to 2048. ENOSPC: no
 * queue pair is left.
 */
struct p2pnic_create_qp {
	/** @send_entries: in */
	__u32 send_entries;
	/** @recv_entries: in */
	__u32 recv_entries;
	/** @qp: out: number of the queue pair */
	__u32 qp;
	/** @pad: 0 */
	__u32 pad;
};

/**
 * struct p2pnic_connect_qp - name the queue pair at the other end
 *
 * ENOENT: this file has no such queue pair. EINVAL: remote_qp is out of range.
 * EISCONN: it is connected already.
 */
struct p2pnic_connect_qp {
	/** @qp: in */
	__u32 qp;
	/** @remote_qp: in */
	__u32 remote_qp;
};

/**
 * struct p2pnic_destroy_qp - destroy a queue pair
 *
 * ENOENT: this file has no such queue pair.
 */
struct p2pnic_destroy_qp {
	/** @qp: in */
	__u32 qp;
	/** @pad: 0 */
	__u32 pad;
};

#define P2PNIC_OP_WRITE			1
#define P2PNIC_OP_READ			2
#define P2PNIC_OP_SEND			3
/* In completions only. */
#define P2PNIC_OP_RECV			4

/**
 * struct p2pnic_post_send - post a request
 *
 * Each request has one completion. Bad keys and ranges are reported there.
 *
 * Returns when the request is queued. Before, those who use the dma-buf of the
 * local region and say so by fences have ended: who writes it, or all if the
 * request writes it (READ). A signal ends the wait (EINTR). Nobody waits so for
 * the remote region, nor for a request: that is for who posts it, by its
 * completion, as a request may wait for its other end for ever.
 *
 * ENOENT: this file has no such queue pair. EAGAIN: the queue is full; poll.
 * EINVAL: unknown opcode, size over 2^31, remote key or offset with SEND.
 */
struct p2pnic_post_send {
	/** @qp: in */
	__u32 qp;
	/** @opcode: in: P2PNIC_OP_WRITE, READ or SEND */
	__u32 opcode;
	/** @id: in: returned in the completion */
	__u64 id;
	/** @local_key: in */
	__u32 local_key;
	/** @remote_key: in: 0 for SEND */
	__u32 remote_key;
	/** @local_offset: in: bytes from the start of the region */
	__u64 local_offset;
	/** @remote_offset: in: 0 for SEND */
	__u64 remote_offset;
	/** @size: in: bytes, at most 2^31 */
	__u64 size;
};

/**
 * struct p2pnic_post_recv - post room for a message
 *
 * Waits for all who use the dma-buf, as a request that writes it does.
 *
 * ENOENT, EAGAIN, EINVAL: as for posting a request.
 */
struct p2pnic_post_recv {
	/** @qp: in */
	__u32 qp;
	/** @local_key: in */
	__u32 local_key;
	/** @id: in: returned in the completion */
	__u64 id;
	/** @local_offset: in */
	__u64 local_offset;
	/** @size: in: bytes, at most 2^31 */
	__u64 size;
};

#define P2PNIC_STATUS_OK		0
/* Unknown local key, range or rights. */
#define P2PNIC_STATUS_LOCAL_ACCESS	1
/* Unknown remote key, range or rights. */
#define P2PNIC_STATUS_REMOTE_ACCESS	2
/* The message is longer than the receive entry. */
#define P2PNIC_STATUS_LENGTH		3
/* The region was deregistered or revoked while the request waited for it. */
#define P2PNIC_STATUS_REVOKED		4
/* An earlier request on the queue pair failed. */
#define P2PNIC_STATUS_FLUSHED		5
/* The wire broke. */
#define P2PNIC_STATUS_LINK_DOWN		6
/* A DMA was refused. */
#define P2PNIC_STATUS_DMA_ERROR		7
/* The device found the request malformed. */
#define P2PNIC_STATUS_BAD_REQUEST	8

/**
 * struct p2pnic_completion - the end of a request
 */
struct p2pnic_completion {
	/** @id: that of the request */
	__u64 id;
	/** @size: bytes moved */
	__u64 size;
	/** @status: one of P2PNIC_STATUS_* */
	__u32 status;
	/** @opcode: one of P2PNIC_OP_* */
	__u32 opcode;
};

/**
 * struct p2pnic_poll - take completions of a queue pair
 *
 * Waits until there is at least one, or the time is over. On EINTR timeout_ns is
 * what is left of it: the call can be made again as it is.
 *
 * ENOENT: this file has no such queue pair. EINVAL: capacity is 0 or over 4096.
 * ETIMEDOUT: there was none within a timeout that is not 0; with a timeout of
 * 0, count is 0 and the ioctl succeeds.
 */
struct p2pnic_poll {
	/** @qp: in */
	__u32 qp;
	/** @capacity: in: entries that @completions has room for */
	__u32 capacity;
	/** @timeout_ns: in, out: longest wait; 0 does not wait */
	__u64 timeout_ns;
	/** @completions: in: pointer to an array of struct p2pnic_completion */
	__u64 completions;
	/** @count: out: entries written */
	__u32 count;
	/** @pad: 0 */
	__u32 pad;
};

/* An enum, so that Rust's bindgen evaluates the values. */
enum {
	P2PNIC_IOCTL_QUERY = _IOR('N', 0xc0, struct p2pnic_query),
	P2PNIC_IOCTL_REG_REGION = _IOWR('N', 0xc1, struct p2pnic_reg_region),
	P2PNIC_IOCTL_DEREG_REGION = _IOW('N', 0xc2, struct p2pnic_dereg_region),
	P2PNIC_IOCTL_REGION_INFO = _IOWR('N', 0xc3, struct p2pnic_region_info),
	P2PNIC_IOCTL_CREATE_QP = _IOWR('N', 0xc4, struct p2pnic_create_qp),
	P2PNIC_IOCTL_CONNECT_QP = _IOW('N', 0xc5, struct p2pnic_connect_qp),
	P2PNIC_IOCTL_DESTROY_QP = _IOW('N', 0xc6, struct p2pnic_destroy_qp),
	P2PNIC_IOCTL_POST_SEND = _IOW('N', 0xc7, struct p2pnic_post_send),
	P2PNIC_IOCTL_POST_RECV = _IOW('N', 0xc8, struct p2pnic_post_recv),
	P2PNIC_IOCTL_POLL = _IOWR('N', 0xc9, struct p2pnic_poll),
	P2PNIC_IOCTL_REG_USER = _IOWR('N', 0xca, struct p2pnic_reg_user),
};

#endif /* _UAPI_LINUX_P2PNIC_H */

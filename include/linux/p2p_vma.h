/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_P2P_VMA_H
#define _LINUX_P2P_VMA_H

#include <linux/list.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/types.h>
#include <linux/workqueue.h>

struct device;
struct file;
struct p2p_vma_region;
struct vm_operations_struct;

/**
 * DOC: Peer mapping by user address
 *
 * An importer, the driver of a device that does DMA, is given a range of user
 * addresses and wants DMA addresses for it. The range may show ordinary memory,
 * memory of other devices whose drivers, the exporters, say by
 * &vm_operations_struct.p2p_map how a device reaches it, or both.
 *
 * The importer registers the range once, and maps it as often as it likes.
 * Nothing is pinned: what is mapped can be taken back at any time, by whatever
 * changes the CPU's view of the range (munmap, mremap, MADV_DONTNEED, a write
 * after fork, reclaim, exit), and by an exporter, who zaps its VMAs, with
 * unmap_mapping_range() for example, whether or not they have page-table
 * entries. The importer is told, stops its device, and maps again when it needs
 * to.
 *
 * Ranges of several VMAs are split at their borders, and each part is mapped by
 * its own kind. If one cannot be, nothing is: what has been mapped of the others
 * is undone. All VMAs are looked at before the first one is mapped.
 *
 * What the exporter does:
 *
 * - &vm_operations_struct.p2p_map is called with mmap_lock held for reading. It
 *   may sleep, and may take the reservation locks that its fault handler may
 *   take. It decides at each call whether this device may have these pages,
 *   maps exactly them, and fills in a DMA address for each. On an error nothing
 *   is mapped. If it zaps the VMA meanwhile it is called again, whatever it
 *   returns.
 * - When the pages are to show or be something else, it zaps the VMAs under the
 *   lock that p2p_map takes, so that a map after it sees the new state. When
 *   the zap returns, the device has stopped. Addresses stay the importer's
 *   until &vm_operations_struct.p2p_unmap: they must not lead to other memory
 *   before.
 * - &vm_operations_struct.p2p_unmap is called without mmap_lock, once for each
 *   p2p_map that succeeded, from process context, maybe long after the VMA is
 *   gone; the VMA's file is kept open until then. It may take the same locks.
 *
 * Errors of the exporter: -EPERM, the owner or the policy does not allow it;
 * -EACCES, not for writing; -EXDEV, the device has no route to the memory;
 * -ENOSPC and -EAGAIN, not now; -ENODEV, the exporter's device is gone.
 */

/**
 * struct p2p_vma_map - a part of a VMA that is mapped for a device
 * @importer: the device that accesses it
 * @start: first user address, page aligned
 * @end: end of the range of user addresses, page aligned
 * @write: whether the device may write
 * @dma: an address for each page, filled in by the exporter
 * @file: the VMA's file, kept open until the part is unmapped
 * @ops: the VMA's operations
 * @private: for the exporter
 */
struct p2p_vma_map {
	struct device *importer;
	unsigned long start;
	unsigned long end;
	bool write;
	dma_addr_t *dma;
	struct file *file;
	const struct vm_operations_struct *ops;
	void *private;
};

/**
 * struct p2p_vma_ops - what an importer does
 */
struct p2p_vma_ops {
	/**
	 * @publish: Gives the device the addresses in &p2p_vma_region.dma, one a
	 * page. No invalidation is under way, none is lost: one that comes now
	 * waits for the return. An error undoes the mapping.
	 *
	 * Context: As @invalidate.
	 */
	int (*publish)(struct p2p_vma_region *region);
	/**
	 * @invalidate: Stops the device: on return it does no DMA by the
	 * addresses that were published. Called once for each @publish that
	 * succeeded, unless the importer unmaps first.
	 *
	 * Context: May sleep. Called with any lock of the memory management, and
	 * with the exporter's, and while memory is reclaimed: must not take
	 * mmap_lock or a reservation lock, not allocate memory by reclaim, not
	 * wait for who does, and not call functions of this interface.
	 */
	void (*invalidate)(struct p2p_vma_region *region);
};

/**
 * struct p2p_vma_region - a range of user addresses that a device uses
 * @dma: while it is mapped, an address for each page
 * @pages: the number of pages
 *
 * The other members are private.
 */
struct p2p_vma_region {
	dma_addr_t *dma;
	unsigned long pages;

	/* private: */
	struct mmu_interval_notifier notifier;
	const struct p2p_vma_ops *ops;
	struct device *importer;
	unsigned long start;
	unsigned long end;
	bool write;
	/* Held while parts are mapped and unmapped; outside mmap_lock. */
	struct mutex lock;
	struct list_head parts;
	/* Orders publishing and invalidation; inside everything. */
	struct mutex publish_lock;
	bool published;
	/* Unmaps what was invalidated. */
	struct work_struct unmap_work;
};

int p2p_vma_register(struct p2p_vma_region *region, struct device *importer,
		     struct mm_struct *mm, unsigned long start,
		     unsigned long length, bool write,
		     const struct p2p_vma_ops *ops);
void p2p_vma_unregister(struct p2p_vma_region *region);
int p2p_vma_map(struct p2p_vma_region *region);
void p2p_vma_unmap(struct p2p_vma_region *region);

#endif /* _LINUX_P2P_VMA_H */

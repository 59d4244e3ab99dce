// SPDX-License-Identifier: GPL-2.0
/*
 * Peer mapping by user address.
 *
 * Locks, from the outermost: the region's lock; mmap_lock; what exporters take;
 * the region's publish_lock, which invalidations take.
 */

#include <linux/dma-mapping.h>
#include <linux/export.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hmm.h>
#include <linux/jiffies.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/overflow.h>
#include <linux/p2p_vma.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

/* Page frames that are looked up at a time. */
#define P2P_VMA_BATCH	256UL

/*
 * Times that a region is mapped at least before its range changes too fast. An
 * exporter that has to move memory first takes back what it was about to give,
 * and may have needed long for it.
 */
#define P2P_VMA_ATTEMPTS	4

/* A part of a region that is mapped: of one VMA. */
struct p2p_vma_part {
	struct list_head node;
	struct p2p_vma_map map;
	/* Of ordinary memory: pages that are mapped. */
	unsigned long mapped;
};

static enum dma_data_direction p2p_vma_direction(const struct p2p_vma_map *map)
{
	return map->write ? DMA_BIDIRECTIONAL : DMA_TO_DEVICE;
}

static bool p2p_vma_is_peer(const struct vm_area_struct *vma)
{
	return vma->vm_ops && vma->vm_ops->p2p_map && vma->vm_ops->p2p_unmap &&
	       vma->vm_file;
}

static int p2p_vma_check(const struct p2p_vma_region *region,
			 const struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & (region->write ? VM_WRITE : VM_READ)))
		return -EACCES;
	if (p2p_vma_is_peer(vma))
		return 0;
	if (vma->vm_flags & (VM_IO | VM_PFNMAP | VM_MIXEDMAP))
		return -EOPNOTSUPP;
	return 0;
}

/* Of a part that may be mapped in part. */
static void p2p_vma_unmap_pages(struct p2p_vma_part *part)
{
	struct p2p_vma_map *map = &part->map;

	while (part->mapped)
		dma_unmap_phys(map->importer, map->dma[--part->mapped],
			       PAGE_SIZE, p2p_vma_direction(map),
			       DMA_ATTR_REQUIRE_COHERENT);
}

static int p2p_vma_map_page(struct p2p_vma_part *part, unsigned long pfn)
{
	struct p2p_vma_map *map = &part->map;
	struct page *page = hmm_pfn_to_page(pfn);
	dma_addr_t dma;

	/* Without a driver that says how the device reaches it. */
	if (is_zone_device_page(page))
		return -EOPNOTSUPP;
	/* A bounce buffer would go stale: nobody syncs it. */
	dma = dma_map_phys(map->importer, page_to_phys(page), PAGE_SIZE,
			   p2p_vma_direction(map), DMA_ATTR_REQUIRE_COHERENT);
	if (dma_mapping_error(map->importer, dma))
		return -EIO;
	map->dma[part->mapped++] = dma;
	return 0;
}

/* Ordinary memory. The pages are not pinned: the notifier says when they go. */
static int p2p_vma_map_pages(struct p2p_vma_region *region,
			     struct p2p_vma_part *part, unsigned long seq)
{
	struct p2p_vma_map *map = &part->map;
	struct hmm_range range = {
		.notifier = &region->notifier,
		.notifier_seq = seq,
		.start = map->start,
		.default_flags = HMM_PFN_REQ_FAULT |
				 (map->write ? HMM_PFN_REQ_WRITE : 0),
	};
	unsigned long i, count;
	int ret = 0;

	range.hmm_pfns = kmalloc_array(P2P_VMA_BATCH, sizeof(*range.hmm_pfns),
				       GFP_KERNEL);
	if (!range.hmm_pfns)
		return -ENOMEM;
	while (!ret && range.start < map->end) {
		count = min((map->end - range.start) >> PAGE_SHIFT,
			    P2P_VMA_BATCH);
		memset(range.hmm_pfns, 0, count * sizeof(*range.hmm_pfns));
		range.end = range.start + (count << PAGE_SHIFT);
		ret = hmm_range_fault(&range);
		for (i = 0; !ret && i < count; i++)
			ret = p2p_vma_map_page(part, range.hmm_pfns[i]);
		if (!ret && fatal_signal_pending(current))
			ret = -EINTR;
		range.start = range.end;
		cond_resched();
	}
	kfree(range.hmm_pfns);
	if (ret)
		p2p_vma_unmap_pages(part);
	return ret;
}

static int p2p_vma_map_part(struct p2p_vma_region *region,
			    struct vm_area_struct *vma, unsigned long seq)
{
	struct p2p_vma_part *part;
	int ret;

	part = kzalloc_obj(*part);
	if (!part)
		return -ENOMEM;
	part->map.importer = region->importer;
	part->map.start = max(vma->vm_start, region->start);
	part->map.end = min(vma->vm_end, region->end);
	part->map.write = region->write;
	part->map.dma = region->dma +
			((part->map.start - region->start) >> PAGE_SHIFT);

	if (p2p_vma_is_peer(vma)) {
		part->map.ops = vma->vm_ops;
		part->map.file = get_file(vma->vm_file);
		ret = vma->vm_ops->p2p_map(vma, &part->map);
		if (ret)
			fput(part->map.file);
	} else {
		ret = p2p_vma_map_pages(region, part, seq);
	}
	if (ret) {
		kfree(part);
		return ret;
	}
	list_add_tail(&part->node, &region->parts);
	return 0;
}

static void p2p_vma_unmap_parts(struct p2p_vma_region *region)
{
	struct p2p_vma_part *part, *next;

	lockdep_assert_held(&region->lock);
	list_for_each_entry_safe(part, next, &region->parts, node) {
		list_del(&part->node);
		if (part->map.ops) {
			part->map.ops->p2p_unmap(&part->map);
			fput(part->map.file);
		} else {
			p2p_vma_unmap_pages(part);
		}
		kfree(part);
	}
}

/* With mmap_lock held. On an error some parts may be mapped. */
static int p2p_vma_map_parts(struct p2p_vma_region *region,
			     struct mm_struct *mm, unsigned long seq)
{
	struct vm_area_struct *vma;
	unsigned long address;
	int ret;

	/* Refuse before the first exporter gives anything. */
	for (address = region->start; address < region->end;
	     address = vma->vm_end) {
		vma = vma_lookup(mm, address);
		if (!vma)
			return -EFAULT;
		ret = p2p_vma_check(region, vma);
		if (ret)
			return ret;
	}
	for (address = region->start; address < region->end;
	     address = vma->vm_end) {
		vma = vma_lookup(mm, address);
		if (!vma)
			return -EFAULT;
		ret = p2p_vma_map_part(region, vma, seq);
		if (ret)
			return ret;
	}
	return 0;
}

/* Stops the device if it has addresses. Returns whether it had. */
static bool p2p_vma_stop(struct p2p_vma_region *region)
{
	lockdep_assert_held(&region->publish_lock);
	if (!region->published)
		return false;
	region->published = false;
	region->ops->invalidate(region);
	return true;
}

/*
 * Whether the device has addresses. Waits for an invalidation that is under
 * way: if it has none, it has stopped, and what was mapped can be undone.
 */
static bool p2p_vma_is_published(struct p2p_vma_region *region)
{
	bool published;

	lockdep_assert_held(&region->lock);
	mutex_lock(&region->publish_lock);
	published = region->published;
	mutex_unlock(&region->publish_lock);
	return published;
}

static bool p2p_vma_invalidate(struct mmu_interval_notifier *notifier,
			       const struct mmu_notifier_range *range,
			       unsigned long seq)
{
	struct p2p_vma_region *region =
		container_of(notifier, struct p2p_vma_region, notifier);

	if (!mmu_notifier_range_blockable(range))
		return false;
	mutex_lock(&region->publish_lock);
	mmu_interval_set_seq(notifier, seq);
	if (p2p_vma_stop(region))
		queue_work(system_dfl_wq, &region->unmap_work);
	mutex_unlock(&region->publish_lock);
	return true;
}

static const struct mmu_interval_notifier_ops p2p_vma_notifier_ops = {
	.invalidate = p2p_vma_invalidate,
};

/* Exporters get back what was invalidated though nobody maps again. */
static void p2p_vma_unmap_work(struct work_struct *work)
{
	struct p2p_vma_region *region =
		container_of(work, struct p2p_vma_region, unmap_work);

	mutex_lock(&region->lock);
	/* Under the lock it is not published meanwhile. */
	if (!p2p_vma_is_published(region))
		p2p_vma_unmap_parts(region);
	mutex_unlock(&region->lock);
}

/**
 * p2p_vma_register - register a range of user addresses for a device
 * @region: the importer's, all zero; it does not move until it is unregistered
 * @importer: the device; it stays bound until then
 * @mm: the address space
 * @start: first address, page aligned
 * @length: bytes, whole pages, not 0
 * @write: whether the device will write
 * @ops: the importer's
 *
 * Nothing is mapped, and nothing has to be there yet.
 *
 * Context: May sleep; mmap_lock is not held.
 * Return: 0; -EINVAL: the range is empty, not of whole pages or past the end
 * of the address space; -ENOMEM.
 */
int p2p_vma_register(struct p2p_vma_region *region, struct device *importer,
		     struct mm_struct *mm, unsigned long start,
		     unsigned long length, bool write,
		     const struct p2p_vma_ops *ops)
{
	unsigned long end;
	int ret;

	if (!length || !PAGE_ALIGNED(start) || !PAGE_ALIGNED(length) ||
	    check_add_overflow(start, length, &end) || end > mm->task_size)
		return -EINVAL;

	region->ops = ops;
	region->importer = importer;
	region->start = start;
	region->end = end;
	region->write = write;
	region->pages = length >> PAGE_SHIFT;
	region->published = false;
	INIT_LIST_HEAD(&region->parts);
	INIT_WORK(&region->unmap_work, p2p_vma_unmap_work);
	mutex_init(&region->lock);
	mutex_init(&region->publish_lock);

	region->dma = kvmalloc_array(region->pages, sizeof(*region->dma),
				     GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!region->dma)
		return -ENOMEM;
	ret = mmu_interval_notifier_insert(&region->notifier, mm, start, length,
					   &p2p_vma_notifier_ops);
	if (ret)
		kvfree(region->dma);
	return ret;
}
EXPORT_SYMBOL_GPL(p2p_vma_register);

/**
 * p2p_vma_map - map a region for its device
 * @region: the region
 *
 * Maps all of the region, and calls &p2p_vma_ops.publish, unless it is mapped.
 *
 * Context: May sleep and wait for page faults; mmap_lock is not held.
 * Return: 0; -EFAULT: addresses show nothing; -ESRCH: the address space is gone;
 * -EACCES: a VMA does not allow it; -EOPNOTSUPP: a VMA, or a page, is a
 * device's whose driver does not support this; -EBUSY: it changes too fast;
 * -EIO: a page cannot be mapped for the device; -EINTR: the task is to die;
 * -ENOMEM; errors of exporters and of publish. On an error nothing is mapped.
 */
int p2p_vma_map(struct p2p_vma_region *region)
{
	unsigned long timeout = jiffies + msecs_to_jiffies(1000);
	struct mm_struct *mm = region->notifier.mm;
	unsigned int attempts = 0;
	unsigned long seq;
	int ret = 0;

	/* The notifier keeps the structure, not what it describes. */
	if (!mmget_not_zero(mm))
		return -ESRCH;
	mutex_lock(&region->lock);
	while (!p2p_vma_is_published(region)) {
		/* What was invalidated, or has just failed. */
		p2p_vma_unmap_parts(region);
		if (fatal_signal_pending(current))
			ret = -EINTR;
		else if (attempts >= P2P_VMA_ATTEMPTS &&
			 time_after(jiffies, timeout))
			ret = -EBUSY;
		if (ret)
			break;
		attempts++;

		seq = mmu_interval_read_begin(&region->notifier);
		mmap_read_lock(mm);
		ret = p2p_vma_map_parts(region, mm, seq);
		mmap_read_unlock(mm);

		mutex_lock(&region->publish_lock);
		if (mmu_interval_read_retry(&region->notifier, seq)) {
			/* Whatever came of it is out of date. */
			ret = 0;
		} else if (!ret) {
			ret = region->ops->publish(region);
			region->published = !ret;
		}
		mutex_unlock(&region->publish_lock);
		if (ret) {
			p2p_vma_unmap_parts(region);
			break;
		}
	}
	mutex_unlock(&region->lock);
	/* If we are the last user, all of it ends: not in the importer's context. */
	mmput_async(mm);
	return ret;
}
EXPORT_SYMBOL_GPL(p2p_vma_map);

/**
 * p2p_vma_unmap - undo a mapping
 * @region: the region
 *
 * Stops the device first, by &p2p_vma_ops.invalidate, if it has addresses.
 *
 * Context: May sleep; neither mmap_lock nor a lock of an exporter is held.
 */
void p2p_vma_unmap(struct p2p_vma_region *region)
{
	mutex_lock(&region->lock);
	mutex_lock(&region->publish_lock);
	p2p_vma_stop(region);
	mutex_unlock(&region->publish_lock);
	p2p_vma_unmap_parts(region);
	mutex_unlock(&region->lock);
}
EXPORT_SYMBOL_GPL(p2p_vma_unmap);

/**
 * p2p_vma_unregister - end the use of a region
 * @region: the region, which is the importer's alone on return
 *
 * Context: As p2p_vma_unmap(); nobody maps the region at the time.
 */
void p2p_vma_unregister(struct p2p_vma_region *region)
{
	p2p_vma_unmap(region);
	mmu_interval_notifier_remove(&region->notifier);
	cancel_work_sync(&region->unmap_work);
	kvfree(region->dma);
	region->dma = NULL;
}
EXPORT_SYMBOL_GPL(p2p_vma_unregister);

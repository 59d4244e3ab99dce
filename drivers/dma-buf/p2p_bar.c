// SPDX-License-Identifier: GPL-2.0
/*
 * A BAR for other devices, and the dma-bufs of its pages.
 *
 * Locks, from the outermost: mmap_lock; a dma-buf's reservation lock, which
 * guards the pages that it has, and orders mapping and revocation; the BAR's
 * lock, which guards what all of its dma-bufs share.
 */

#include <linux/bitmap.h>
#include <linux/dma-buf-mapping.h>
#include <linux/dma-resv.h>
#include <linux/export.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/jiffies.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/overflow.h>
#include <linux/p2p_bar.h>
#include <linux/pci-p2pdma.h>
#include <linux/slab.h>

#include "p2p_bar_priv.h"

/* How long revocation waits for importers, in all; at least a jiffy. */
static unsigned int p2p_bar_importer_timeout = 10000;
module_param_named(importer_timeout_ms, p2p_bar_importer_timeout, uint, 0644);
MODULE_PARM_DESC(importer_timeout_ms,
		 "Milliseconds that a device which leaves waits for importers");

/* It has one since a moment ago, that shows what others have left there. */
#define P2P_BAR_DIRTY		BIT(BITS_PER_LONG - 1)

/* All, to find who is not let go. */
static LIST_HEAD(p2p_bars);
static DEFINE_MUTEX(p2p_bars_lock);

static void p2p_bar_free(struct kref *kref)
{
	struct p2p_bar *bar = container_of(kref, struct p2p_bar, kref);

	mutex_lock(&p2p_bars_lock);
	list_del(&bar->node);
	mutex_unlock(&p2p_bars_lock);
	pci_dev_put(bar->pdev);
	kvfree(bar->used);
	kfree(bar);
}

/**
 * p2p_bar_get - take a reference
 * @bar: the BAR
 *
 * Only for who uses @bar after the device may have been unbound, an open file
 * for example: then it is there, but gives nothing.
 *
 * Return: @bar.
 */
struct p2p_bar *p2p_bar_get(struct p2p_bar *bar)
{
	kref_get(&bar->kref);
	return bar;
}
EXPORT_SYMBOL_GPL(p2p_bar_get);

/**
 * p2p_bar_put - let go of a reference
 * @bar: the BAR
 */
void p2p_bar_put(struct p2p_bar *bar)
{
	kref_put(&bar->kref, p2p_bar_free);
}
EXPORT_SYMBOL_GPL(p2p_bar_put);

/* While the BAR is not gone. */
static bool p2p_bar_has_route(struct p2p_bar *bar, struct device *importer)
{
	switch (pci_p2pdma_map_type(bar->provider, importer)) {
	case PCI_P2PDMA_MAP_BUS_ADDR:
	case PCI_P2PDMA_MAP_THRU_HOST_BRIDGE:
		return true;
	default:
		return false;
	}
}

static unsigned long p2p_bar_take_page(struct p2p_bar *bar)
{
	unsigned long page;

	lockdep_assert_held(&bar->lock);
	page = find_next_zero_bit(bar->used, bar->pages, bar->next);
	if (page >= bar->pages)
		page = find_first_zero_bit(bar->used, bar->pages);
	__set_bit(page, bar->used);
	bar->free--;
	bar->next = page + 1;
	return page;
}

/* Sees to it that pages of a lazy dma-buf have pages of the BAR: all or none. */
int p2p_bar_assign(struct p2p_bar_buf *buf, unsigned long first,
		   unsigned long count)
{
	struct p2p_bar *bar = buf->bar;
	unsigned long i, missing = 0;

	dma_resv_assert_held(buf->dmabuf->resv);
	if (!buf->pages)
		return 0;
	for (i = first; i < first + count; i++)
		missing += buf->pages[i] == P2P_BAR_NONE;
	if (!missing)
		return 0;

	mutex_lock(&bar->lock);
	if (missing > bar->free) {
		mutex_unlock(&bar->lock);
		return -ENOSPC;
	}
	for (i = first; i < first + count; i++)
		if (buf->pages[i] == P2P_BAR_NONE)
			buf->pages[i] = p2p_bar_take_page(bar) | P2P_BAR_DIRTY;
	mutex_unlock(&bar->lock);

	/* They are ours: others need not wait. */
	for (i = first; i < first + count; i++) {
		if (!(buf->pages[i] & P2P_BAR_DIRTY))
			continue;
		buf->pages[i] &= ~P2P_BAR_DIRTY;
		memset_io(bar->io + PFN_PHYS(buf->pages[i]), 0, PAGE_SIZE);
		cond_resched();
	}
	/* Before anybody can write there who does not go through this CPU. */
	wmb();
	return 0;
}

/* Whether a device may have these pages, now. If so they have some of the BAR. */
int p2p_bar_admit(struct p2p_bar_buf *buf, struct device *importer, bool write,
		  unsigned long first, unsigned long count)
{
	if (p2p_bar_is_gone(buf))
		return -ENODEV;
	if (!p2p_bar_has_route(buf->bar, importer))
		return -EXDEV;
	if (write && !p2p_bar_is_writable(buf->dmabuf))
		return -EACCES;
	return p2p_bar_assign(buf, first, count);
}

static int p2p_bar_attach(struct dma_buf *dmabuf,
			  struct dma_buf_attachment *attach)
{
	struct p2p_bar_buf *buf = dmabuf->priv;
	int ret;

	if (dma_resv_lock_interruptible(dmabuf->resv, NULL))
		return -ERESTARTSYS;
	if (p2p_bar_is_gone(buf))
		ret = -ENODEV;
	else if (!attach->peer2peer || !p2p_bar_has_route(buf->bar, attach->dev))
		ret = -EXDEV;
	else if (!dma_buf_attach_revocable(attach))
		ret = -EOPNOTSUPP;
	dma_resv_unlock(dmabuf->resv);
	return ret;
}

static struct sg_table *p2p_bar_map(struct dma_buf_attachment *attach,
				    enum dma_data_direction dir)
{
	struct p2p_bar_buf *buf = attach->dmabuf->priv;
	unsigned long i, run, runs = 0;
	struct phys_vec *vec;
	struct sg_table *sgt;
	int ret;

	ret = p2p_bar_admit(buf, attach->dev, dir != DMA_TO_DEVICE, 0,
			    buf->count);
	if (ret)
		return ERR_PTR(ret);

	for (i = 0; i < buf->count; i += p2p_bar_run(buf, i, buf->count))
		runs++;
	vec = kvmalloc_objs(*vec, runs);
	if (!vec)
		return ERR_PTR(-ENOMEM);
	for (i = 0, runs = 0; i < buf->count; i += run, runs++) {
		run = p2p_bar_run(buf, i, buf->count);
		vec[runs].paddr = p2p_bar_phys(buf, i);
		vec[runs].len = run << PAGE_SHIFT;
	}
	sgt = dma_buf_phys_vec_to_sgt(attach, buf->bar->provider, vec, runs,
				      attach->dmabuf->size, dir);
	kvfree(vec);
	if (!IS_ERR(sgt))
		atomic_inc(&buf->bar->mappings);
	return sgt;
}

static void p2p_bar_unmap(struct dma_buf_attachment *attach,
			  struct sg_table *sgt, enum dma_data_direction dir)
{
	struct p2p_bar_buf *buf = attach->dmabuf->priv;

	dma_buf_free_sgt(attach, sgt, dir);
	p2p_bar_unmapped(buf->bar);
}

/* Of a dma-buf that nobody knows. */
static void p2p_bar_free_buf(struct p2p_bar_buf *buf)
{
	struct p2p_bar *bar = buf->bar;
	unsigned long i;

	mutex_lock(&bar->lock);
	list_del(&buf->node);
	for (i = 0; i < buf->count; i++) {
		unsigned long page = p2p_bar_page(buf, i);

		if (page == P2P_BAR_NONE)
			continue;
		__clear_bit(page, bar->used);
		bar->free++;
	}
	mutex_unlock(&bar->lock);
	kvfree(buf->pages);
	kfree(buf);
	p2p_bar_put(bar);
}

static void p2p_bar_release(struct dma_buf *dmabuf)
{
	p2p_bar_free_buf(dmabuf->priv);
}

static const struct dma_buf_ops p2p_bar_dmabuf_ops = {
	.attach = p2p_bar_attach,
	.map_dma_buf = p2p_bar_map,
	.unmap_dma_buf = p2p_bar_unmap,
	.release = p2p_bar_release,
	.mmap = p2p_bar_mmap,
};

static unsigned long p2p_bar_time_left(unsigned long deadline)
{
	return time_before(jiffies, deadline) ? deadline - jiffies : 1;
}

/* With what it has mapped before it is told, an importer may do as before. */
static void p2p_bar_revoke_buf(struct dma_buf *dmabuf, unsigned long deadline)
{
	dma_resv_lock(dmabuf->resv, NULL);
	dma_buf_invalidate_mappings(dmabuf);
	unmap_mapping_range(dmabuf->file->f_mapping, 0, 0, 1);
	dma_resv_wait_timeout(dmabuf->resv, DMA_RESV_USAGE_BOOKKEEP, false,
			      p2p_bar_time_left(deadline));
	dma_resv_unlock(dmabuf->resv);
}

/**
 * p2p_bar_revoke - take back all that others have of a BAR, for ever
 * @bar: the BAR
 *
 * Tells importers to let go, removes what CPUs have mapped, and waits until the
 * importers have let go, for at most 10 seconds in all, or what the parameter
 * importer_timeout_ms says: then there is a message, and the memory that
 * describes the mappings stays for as long as they do.
 *
 * A driver calls this only if it has to be done before its remove() returns:
 * afterwards it is done in any case. The second time there is nothing to do,
 * nor to wait for.
 *
 * Context: May sleep; neither mmap_lock nor a reservation lock is held.
 */
void p2p_bar_revoke(struct p2p_bar *bar)
{
	unsigned int patience = READ_ONCE(p2p_bar_importer_timeout);
	unsigned long deadline = jiffies + msecs_to_jiffies(patience);
	struct p2p_bar_buf *buf;
	struct dma_buf *dmabuf;

	mutex_lock(&bar->lock);
	if (bar->gone) {
		mutex_unlock(&bar->lock);
		return;
	}
	WRITE_ONCE(bar->gone, true);
	while (!list_empty(&bar->bufs)) {
		buf = list_first_entry(&bar->bufs, struct p2p_bar_buf, node);
		list_del_init(&buf->node);
		/* If it is ending, it waits for the lock to say so. */
		dmabuf = buf->dmabuf;
		if (!get_file_active(&dmabuf->file))
			continue;
		mutex_unlock(&bar->lock);
		p2p_bar_revoke_buf(dmabuf, deadline);
		dma_buf_put(dmabuf);
		mutex_lock(&bar->lock);
	}
	mutex_unlock(&bar->lock);

	if (!wait_var_event_timeout(&bar->mappings,
				    !atomic_read(&bar->mappings),
				    p2p_bar_time_left(deadline)))
		pci_err(bar->pdev, "importers do not let go of the BAR: %d mappings are left\n",
			atomic_read(&bar->mappings));
}
EXPORT_SYMBOL_GPL(p2p_bar_revoke);

static void p2p_bar_end(void *data)
{
	struct p2p_bar *bar = data;

	p2p_bar_revoke(bar);
	iounmap(bar->io);
	p2p_bar_put(bar);
}

/* Enters a BAR; of a device that is bound anew importers may have some still. */
static int p2p_bar_enter(struct p2p_bar *bar)
{
	struct p2p_bar *other;
	int ret = 0;

	mutex_lock(&p2p_bars_lock);
	list_for_each_entry(other, &p2p_bars, node)
		if (other->start < bar->start + PFN_PHYS(bar->pages) &&
		    bar->start < other->start + PFN_PHYS(other->pages) &&
		    (!READ_ONCE(other->gone) || atomic_read(&other->mappings)))
			ret = -EBUSY;
	list_add(&bar->node, &p2p_bars);
	mutex_unlock(&p2p_bars_lock);
	return ret;
}

/**
 * pcim_p2p_bar - let other devices use a BAR
 * @pdev: the device, which is being probed, with its memory enabled
 * @nr: number of the BAR, which is of whole pages
 *
 * For a BAR, or the part of it that is exported, that nobody has other plans
 * with. Once for a BAR. When the device is unbound, after the driver's remove(),
 * all is revoked: see p2p_bar_revoke().
 *
 * Return: The BAR, valid until the device is unbound, or for as long as there is
 * a reference of p2p_bar_get(); an ERR_PTR. -EINVAL: no such BAR, or it is not
 * of memory, or not of whole pages. -EBUSY: importers have not let go of it since
 * the device was bound before; or it was handed over already. -ENOMEM.
 */
struct p2p_bar *pcim_p2p_bar(struct pci_dev *pdev, unsigned int nr)
{
	resource_size_t start, size;
	struct p2p_bar *bar;
	int ret;

	if (nr >= PCI_STD_NUM_BARS)
		return ERR_PTR(-EINVAL);
	start = pci_resource_start(pdev, nr);
	size = pci_resource_len(pdev, nr);
	/* Bitmaps are counted by int. */
	if (!(pci_resource_flags(pdev, nr) & IORESOURCE_MEM) || !size ||
	    !PAGE_ALIGNED(start) || !PAGE_ALIGNED(size) ||
	    size >> PAGE_SHIFT > INT_MAX)
		return ERR_PTR(-EINVAL);
	ret = pcim_p2pdma_init(pdev);
	if (ret)
		return ERR_PTR(ret);

	bar = kzalloc_obj(*bar);
	if (!bar)
		return ERR_PTR(-ENOMEM);
	kref_init(&bar->kref);
	mutex_init(&bar->lock);
	INIT_LIST_HEAD(&bar->bufs);
	bar->pdev = pci_dev_get(pdev);
	bar->provider = pcim_p2pdma_provider(pdev, nr);
	bar->start = start;
	bar->pages = size >> PAGE_SHIFT;
	bar->free = bar->pages;
	bar->write_combining = pci_resource_flags(pdev, nr) &
			       IORESOURCE_PREFETCH;
	ret = p2p_bar_enter(bar);
	if (ret)
		goto err_put;

	ret = -ENOMEM;
	bar->used = kvzalloc_objs(*bar->used, BITS_TO_LONGS(bar->pages));
	if (!bar->used)
		goto err_put;
	if (bar->write_combining)
		bar->io = ioremap_wc(start, size);
	else
		bar->io = ioremap(start, size);
	if (!bar->io)
		goto err_put;
	ret = devm_add_action_or_reset(&pdev->dev, p2p_bar_end, bar);
	return ret ? ERR_PTR(ret) : bar;

err_put:
	bar->gone = true;
	p2p_bar_put(bar);
	return ERR_PTR(ret);
}
EXPORT_SYMBOL_GPL(pcim_p2p_bar);

/* Of @size bytes, not 0. */
static struct p2p_bar_buf *p2p_bar_new_buf(struct p2p_bar *bar, u64 size,
					   unsigned int flags)
{
	struct p2p_bar_buf *buf;

	if (!size || !PAGE_ALIGNED(size) ||
	    (flags != O_RDONLY && flags != O_RDWR))
		return ERR_PTR(-EINVAL);
	buf = kzalloc_obj(*buf, GFP_KERNEL_ACCOUNT);
	if (!buf)
		return ERR_PTR(-ENOMEM);
	INIT_LIST_HEAD(&buf->node);
	buf->bar = p2p_bar_get(bar);
	return buf;
}

static struct dma_buf *p2p_bar_export_buf(struct p2p_bar_buf *buf,
					  unsigned int flags)
{
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct p2p_bar *bar = buf->bar;
	struct dma_buf *dmabuf;
	bool gone;

	info.ops = &p2p_bar_dmabuf_ops;
	info.size = buf->count << PAGE_SHIFT;
	info.flags = flags;
	info.priv = buf;
	dmabuf = dma_buf_export(&info);
	if (IS_ERR(dmabuf)) {
		p2p_bar_free_buf(buf);
		return dmabuf;
	}
	buf->dmabuf = dmabuf;

	mutex_lock(&bar->lock);
	gone = bar->gone;
	if (!gone)
		list_add(&buf->node, &bar->bufs);
	mutex_unlock(&bar->lock);
	if (gone) {
		dma_buf_put(dmabuf);
		return ERR_PTR(-ENODEV);
	}
	return dmabuf;
}

/**
 * p2p_bar_export - make a dma-buf of a range of a BAR
 * @bar: the BAR
 * @offset: in the BAR, of whole pages
 * @size: bytes, whole pages, not 0
 * @flags: O_RDWR; or O_RDONLY: neither CPUs nor devices write
 *
 * The range keeps the bytes that it has. Nobody else gets pages of it until the
 * dma-buf ends.
 *
 * Context: May sleep; no reservation lock is held.
 * Return: The dma-buf, for dma_buf_fd() or dma_buf_mmap(); an ERR_PTR. -EINVAL:
 * the range is empty, not of whole pages, or past the end of the BAR; other
 * flags. -EBUSY: a page of it belongs to another dma-buf. -ENODEV: the device is
 * gone. -ENOMEM.
 */
struct dma_buf *p2p_bar_export(struct p2p_bar *bar, u64 offset, u64 size,
			       unsigned int flags)
{
	struct p2p_bar_buf *buf;
	unsigned long first;
	int ret = 0;
	u64 end;

	if (!PAGE_ALIGNED(offset) || check_add_overflow(offset, size, &end) ||
	    end > PFN_PHYS(bar->pages))
		return ERR_PTR(-EINVAL);
	buf = p2p_bar_new_buf(bar, size, flags);
	if (IS_ERR(buf))
		return ERR_CAST(buf);

	first = offset >> PAGE_SHIFT;
	mutex_lock(&bar->lock);
	if (bar->gone) {
		ret = -ENODEV;
	} else if (find_next_bit(bar->used, end >> PAGE_SHIFT, first) <
		   end >> PAGE_SHIFT) {
		ret = -EBUSY;
	} else {
		buf->first = first;
		buf->count = size >> PAGE_SHIFT;
		bitmap_set(bar->used, buf->first, buf->count);
		bar->free -= buf->count;
	}
	mutex_unlock(&bar->lock);
	if (ret) {
		p2p_bar_free_buf(buf);
		return ERR_PTR(ret);
	}
	return p2p_bar_export_buf(buf, flags);
}
EXPORT_SYMBOL_GPL(p2p_bar_export);

/**
 * p2p_bar_export_lazy - make a dma-buf of pages of a BAR to come
 * @bar: the BAR, which is memory
 * @size: bytes, whole pages, not 0
 * @flags: as for p2p_bar_export()
 *
 * Each page of it gets a free one of the BAR, of zeros, when it is first needed:
 * a CPU touches it, or a device maps it. They are free again when the dma-buf
 * ends.
 *
 * Context: May sleep; no reservation lock is held.
 * Return: As p2p_bar_export(), but for -EBUSY. -ENOSPC: it is larger than the
 * BAR.
 */
struct dma_buf *p2p_bar_export_lazy(struct p2p_bar *bar, u64 size,
				    unsigned int flags)
{
	struct p2p_bar_buf *buf;

	buf = p2p_bar_new_buf(bar, size, flags);
	if (IS_ERR(buf))
		return ERR_CAST(buf);
	if (size > PFN_PHYS(bar->pages)) {
		p2p_bar_free_buf(buf);
		return ERR_PTR(-ENOSPC);
	}
	buf->pages = kvmalloc_objs(*buf->pages, size >> PAGE_SHIFT,
				   GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!buf->pages) {
		p2p_bar_free_buf(buf);
		return ERR_PTR(-ENOMEM);
	}
	buf->count = size >> PAGE_SHIFT;
	/* P2P_BAR_NONE */
	memset(buf->pages, 0xff, size_mul(buf->count, sizeof(*buf->pages)));
	return p2p_bar_export_buf(buf, flags);
}
EXPORT_SYMBOL_GPL(p2p_bar_export_lazy);

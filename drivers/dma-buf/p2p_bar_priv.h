/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the two ways to a BAR share: p2p_bar.c has the BAR and dma-bufs,
 * p2p_bar_vma.c what CPUs and importers get by VMAs.
 */
#ifndef _P2P_BAR_PRIV_H
#define _P2P_BAR_PRIV_H

#include <linux/dma-buf.h>
#include <linux/dma-resv.h>
#include <linux/fs.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/pfn.h>
#include <linux/wait_bit.h>

/* Of a lazy dma-buf's page: it has none of the BAR. */
#define P2P_BAR_NONE	ULONG_MAX

struct p2pdma_provider;

struct p2p_bar {
	struct kref kref;
	struct list_head node;
	struct pci_dev *pdev;
	struct p2pdma_provider *provider;
	phys_addr_t start;
	unsigned long pages;
	bool write_combining;
	/* To clear pages. */
	void __iomem *io;
	/* Of importers, by either way. */
	atomic_t mappings;

	struct mutex lock;
	/* Set once, before dma-bufs are revoked: their locks order it. */
	bool gone;
	/* Of the pages, which have an owner, how many do not, where to look. */
	unsigned long *used;
	unsigned long free;
	unsigned long next;
	struct list_head bufs;
};

/* Of a dma-buf. */
struct p2p_bar_buf {
	struct p2p_bar *bar;
	struct dma_buf *dmabuf;
	struct list_head node;
	unsigned long count;
	/* Eager: the first of its pages. */
	unsigned long first;
	/* Lazy: each of its pages. */
	unsigned long *pages;
};

static inline unsigned long p2p_bar_page(const struct p2p_bar_buf *buf,
					 unsigned long index)
{
	return buf->pages ? buf->pages[index] : buf->first + index;
}

static inline phys_addr_t p2p_bar_phys(const struct p2p_bar_buf *buf,
				       unsigned long index)
{
	return buf->bar->start + PFN_PHYS(p2p_bar_page(buf, index));
}

/* How many pages from @index on, and before @end, are adjacent in the BAR. */
static inline unsigned long p2p_bar_run(const struct p2p_bar_buf *buf,
					unsigned long index, unsigned long end)
{
	unsigned long count = 1;

	if (!buf->pages)
		return end - index;
	while (index + count < end &&
	       buf->pages[index + count] == buf->pages[index] + count)
		count++;
	return count;
}

static inline bool p2p_bar_is_gone(const struct p2p_bar_buf *buf)
{
	dma_resv_assert_held(buf->dmabuf->resv);
	return READ_ONCE(buf->bar->gone);
}

static inline bool p2p_bar_is_writable(const struct dma_buf *dmabuf)
{
	return dmabuf->file->f_mode & FMODE_WRITE;
}

static inline void p2p_bar_unmapped(struct p2p_bar *bar)
{
	if (atomic_dec_and_test(&bar->mappings))
		wake_up_var(&bar->mappings);
}

int p2p_bar_assign(struct p2p_bar_buf *buf, unsigned long first,
		   unsigned long count);
int p2p_bar_admit(struct p2p_bar_buf *buf, struct device *importer, bool write,
		  unsigned long first, unsigned long count);
int p2p_bar_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma);

#endif /* _P2P_BAR_PRIV_H */

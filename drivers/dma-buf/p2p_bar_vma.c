// SPDX-License-Identifier: GPL-2.0
/*
 * VMAs that show pages of a BAR: for the CPU, and for devices that are given
 * the addresses.
 */

#include <linux/align.h>
#include <linux/dma-mapping.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/p2p_vma.h>
#include <linux/pagemap.h>
#include <linux/pci-p2pdma.h>
#include <linux/slab.h>

#include "p2p_bar_priv.h"

/* Pages that are mapped at one fault: an aligned group. */
#define P2P_BAR_AROUND	16UL

/* What is mapped by VMA for a device that is not on the same bus. */
struct p2p_bar_bridged {
	struct dma_iova_state iova;
	size_t mapped;
};

/*
 * Maps the pages around one that was touched, as far as they have pages of the
 * BAR: none is assigned because another one is needed.
 */
static void p2p_bar_insert_around(const struct vm_fault *vmf,
				  const struct p2p_bar_buf *buf)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long group = ALIGN_DOWN(vmf->pgoff, P2P_BAR_AROUND);
	unsigned long index = max(group, vma->vm_pgoff);
	unsigned long end = min3(group + P2P_BAR_AROUND, buf->count,
				 vma->vm_pgoff + vma_pages(vma));

	for (; index < end; index++) {
		unsigned long page = p2p_bar_page(buf, index);
		unsigned long skipped = index - vma->vm_pgoff;

		/* One that cannot be mapped now will be when it is touched. */
		if (index != vmf->pgoff && page != P2P_BAR_NONE)
			vmf_insert_pfn(vma, vma->vm_start + PFN_PHYS(skipped),
				       PHYS_PFN(p2p_bar_phys(buf, index)));
	}
}

static vm_fault_t p2p_bar_fault(struct vm_fault *vmf)
{
	struct p2p_bar_buf *buf = vmf->vma->vm_private_data;
	struct dma_resv *resv = buf->dmabuf->resv;
	vm_fault_t result = VM_FAULT_SIGBUS;

	/* A signal: it is handled, and the access made again. */
	if (dma_resv_lock_interruptible(resv, NULL))
		return VM_FAULT_NOPAGE;
	if (!p2p_bar_is_gone(buf) && vmf->pgoff < buf->count &&
	    !p2p_bar_assign(buf, vmf->pgoff, 1))
		result = vmf_insert_pfn(vmf->vma, vmf->address,
					PHYS_PFN(p2p_bar_phys(buf, vmf->pgoff)));
	if (result == VM_FAULT_NOPAGE)
		p2p_bar_insert_around(vmf, buf);
	dma_resv_unlock(resv);
	return result;
}

static enum dma_data_direction p2p_bar_direction(const struct p2p_vma_map *map)
{
	return map->write ? DMA_BIDIRECTIONAL : DMA_TO_DEVICE;
}

/* Undoes as much of it as there is. */
static void p2p_bar_unmap_bridged(struct p2p_vma_map *map,
				  struct p2p_bar_bridged *bridged)
{
	enum dma_data_direction dir = p2p_bar_direction(map);
	unsigned long i;

	if (dma_use_iova(&bridged->iova))
		dma_iova_destroy(map->importer, &bridged->iova, bridged->mapped,
				 dir, DMA_ATTR_MMIO);
	else
		for (i = 0; i < bridged->mapped >> PAGE_SHIFT; i++)
			dma_unmap_phys(map->importer, map->dma[i], PAGE_SIZE,
				       dir, DMA_ATTR_MMIO);
	kfree(bridged);
}

static int p2p_bar_link(struct p2p_vma_map *map, struct p2p_bar_bridged *bridged,
			const struct p2p_bar_buf *buf, unsigned long first,
			unsigned long count)
{
	unsigned long i, run;
	int ret;

	for (i = 0; i < count; i += run) {
		run = p2p_bar_run(buf, first + i, first + count);
		ret = dma_iova_link(map->importer, &bridged->iova,
				    p2p_bar_phys(buf, first + i),
				    bridged->mapped, run << PAGE_SHIFT,
				    p2p_bar_direction(map), DMA_ATTR_MMIO);
		if (ret)
			return ret;
		bridged->mapped += run << PAGE_SHIFT;
	}
	for (i = 0; i < count; i++)
		map->dma[i] = bridged->iova.addr + (i << PAGE_SHIFT);
	return dma_iova_sync(map->importer, &bridged->iova, 0, bridged->mapped);
}

static int p2p_bar_map_bridged(struct p2p_vma_map *map,
			       const struct p2p_bar_buf *buf,
			       unsigned long first, unsigned long count)
{
	struct p2p_bar_bridged *bridged;
	unsigned long i;
	int ret = 0;

	bridged = kzalloc_obj(*bridged);
	if (!bridged)
		return -ENOMEM;
	if (dma_iova_try_alloc(map->importer, &bridged->iova, 0,
			       count << PAGE_SHIFT))
		ret = p2p_bar_link(map, bridged, buf, first, count);
	else
		for (i = 0; !ret && i < count; i++) {
			map->dma[i] = dma_map_phys(map->importer,
						   p2p_bar_phys(buf, first + i),
						   PAGE_SIZE,
						   p2p_bar_direction(map),
						   DMA_ATTR_MMIO);
			ret = dma_mapping_error(map->importer, map->dma[i]);
			if (!ret)
				bridged->mapped += PAGE_SIZE;
		}
	if (ret)
		p2p_bar_unmap_bridged(map, bridged);
	else
		map->private = bridged;
	return ret;
}

static int p2p_bar_vma_map(struct vm_area_struct *vma, struct p2p_vma_map *map)
{
	struct p2p_bar_buf *buf = vma->vm_private_data;
	unsigned long count = (map->end - map->start) >> PAGE_SHIFT;
	unsigned long i, first = linear_page_index(vma, map->start);
	struct p2pdma_provider *provider = buf->bar->provider;
	struct dma_resv *resv = buf->dmabuf->resv;
	int ret;

	if (dma_resv_lock_interruptible(resv, NULL))
		return -ERESTARTSYS;
	ret = p2p_bar_admit(buf, map->importer, map->write, first, count);
	if (!ret) {
		if (pci_p2pdma_map_type(provider, map->importer) !=
		    PCI_P2PDMA_MAP_BUS_ADDR)
			ret = p2p_bar_map_bridged(map, buf, first, count);
		else
			for (i = 0; i < count; i++)
				map->dma[i] = pci_p2pdma_bus_addr_map(provider,
						p2p_bar_phys(buf, first + i));
	}
	if (!ret)
		atomic_inc(&buf->bar->mappings);
	dma_resv_unlock(resv);
	return ret;
}

static void p2p_bar_vma_unmap(struct p2p_vma_map *map)
{
	struct dma_buf *dmabuf = map->file->private_data;
	struct p2p_bar_buf *buf = dmabuf->priv;

	if (map->private)
		p2p_bar_unmap_bridged(map, map->private);
	p2p_bar_unmapped(buf->bar);
}

static const struct vm_operations_struct p2p_bar_vm_ops = {
	.fault = p2p_bar_fault,
	.p2p_map = p2p_bar_vma_map,
	.p2p_unmap = p2p_bar_vma_unmap,
};

/* The VMA's file is the dma-buf's, and keeps it. */
int p2p_bar_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	struct p2p_bar_buf *buf = dmabuf->priv;

	if (READ_ONCE(buf->bar->gone))
		return -ENODEV;
	/* There are no copies of a BAR's pages. */
	if (vma_is_cow_mapping(vma))
		return -EINVAL;
	if (!p2p_bar_is_writable(dmabuf)) {
		if (vma->vm_flags & VM_WRITE)
			return -EACCES;
		vm_flags_clear(vma, VM_MAYWRITE);
	}
	vm_flags_set(vma, VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
	if (buf->bar->write_combining)
		vma->vm_page_prot = pgprot_writecombine(vma->vm_page_prot);
	else
		vma->vm_page_prot = pgprot_noncached(vma->vm_page_prot);
	vma->vm_private_data = buf;
	vma->vm_ops = &p2p_bar_vm_ops;
	return 0;
}

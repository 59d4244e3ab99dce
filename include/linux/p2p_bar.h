/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_P2P_BAR_H
#define _LINUX_P2P_BAR_H

#include <linux/types.h>

struct dma_buf;
struct p2p_bar;
struct pci_dev;

/**
 * DOC: A BAR for other devices
 *
 * A device whose BAR is plain memory, or plain registers, can be a peer of
 * others with a few lines in its driver. This is the exporter for it: the driver
 * hands over the BAR when it probes, and gets dma-bufs of ranges of it, which
 * userspace can pass to other devices, and map::
 *
 *	bar = pcim_p2p_bar(pdev, 2);
 *	...
 *	dmabuf = p2p_bar_export(bar, offset, size, O_RDWR);
 *	fd = dma_buf_fd(dmabuf, O_CLOEXEC);
 *
 * A dma-buf is eager, of a range that the driver names (p2p_bar_export()), or
 * lazy (p2p_bar_export_lazy()): each of its pages gets a free page of the BAR,
 * any one, filled with zeros, when the CPU first touches it, or a device first
 * maps it. A page of the BAR belongs to one dma-buf, until that ends. A CPU that
 * touches a page gets those around it mapped too, of those that are there: no
 * page is assigned before it is needed.
 *
 * Devices get at the pages in two ways, by which they see the same ones. They
 * import the dma-buf, or they are given user addresses at which it is mapped
 * (include/linux/p2p_vma.h). It can be mapped by its file descriptor, or by
 * dma_buf_mmap() in the driver's own mmap.
 *
 * Nothing is moved or pinned, and there is no system memory to fall back to.
 * Importers are told of one thing only: that the device goes. They have to be
 * dynamic, with &dma_buf_attach_ops.invalidate_mappings, as any mapping is
 * revoked then.
 *
 * What importers are told:
 *
 * ============ ================================================================
 * -EXDEV       the importer has no route to the BAR, or cannot use memory
 *              without struct page; at attach, and at &vm_operations_struct.p2p_map
 * -EOPNOTSUPP  the importer cannot be told to let go; at attach
 * -EACCES      the dma-buf is read-only, and the device might write; at map
 * -ENOSPC      no page of the BAR is free for one that has none yet; at map
 * -ENODEV      the device is gone
 * ============ ================================================================
 *
 * A CPU access raises SIGBUS where a device would get -ENOSPC or -ENODEV.
 */

struct p2p_bar *pcim_p2p_bar(struct pci_dev *pdev, unsigned int nr);
struct p2p_bar *p2p_bar_get(struct p2p_bar *bar);
void p2p_bar_put(struct p2p_bar *bar);
void p2p_bar_revoke(struct p2p_bar *bar);
struct dma_buf *p2p_bar_export(struct p2p_bar *bar, u64 offset, u64 size,
			       unsigned int flags);
struct dma_buf *p2p_bar_export_lazy(struct p2p_bar *bar, u64 size,
				    unsigned int flags);

#endif /* _LINUX_P2P_BAR_H */

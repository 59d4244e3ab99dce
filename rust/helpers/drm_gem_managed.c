// SPDX-License-Identifier: GPL-2.0

#include <drm/drm_device.h>
#include <drm/drm_gem.h>
#include <drm/drm_vma_manager.h>
#include <linux/mm.h>

#ifdef CONFIG_DRM

__rust_helper unsigned long rust_helper_drm_vma_node_start(const struct drm_vma_offset_node *node)
{
	return drm_vma_node_start(node);
}

__rust_helper bool rust_helper_vma_is_cow_mapping(const struct vm_area_struct *vma)
{
	return vma_is_cow_mapping(vma);
}

/* A mapping of pages that have no struct page, or whose struct page is none of the VM's business. */
__rust_helper void rust_helper_vma_set_pfnmap(struct vm_area_struct *vma)
{
	vm_flags_set(vma, VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_page_prot = pgprot_writecombine(vm_get_page_prot(vma->vm_flags));
	vma->vm_page_prot = pgprot_decrypted(vma->vm_page_prot);
}

#endif /* CONFIG_DRM */

// SPDX-License-Identifier: GPL-2.0

#include <drm/drm_device.h>
#include <drm/drm_gem.h>
#include <drm/drm_vma_manager.h>
#include <linux/kref.h>
#include <linux/mm.h>

#ifdef CONFIG_DRM

__rust_helper unsigned long rust_helper_drm_vma_node_start(const struct drm_vma_offset_node *node)
{
	return drm_vma_node_start(node);
}

/* The object that has this page of the device's mmap offsets, with a reference; NULL if none has. */
__rust_helper struct drm_gem_object *
rust_helper_drm_gem_object_get_at(struct drm_device *dev, unsigned long page)
{
	struct drm_vma_offset_manager *mgr = dev->vma_offset_manager;
	struct drm_vma_offset_node *node;
	struct drm_gem_object *obj = NULL;

	drm_vma_offset_lock_lookup(mgr);
	node = drm_vma_offset_lookup_locked(mgr, page, 1);
	if (node) {
		obj = container_of(node, struct drm_gem_object, vma_node);
		/* An object without references is being freed, which waits for the lock. */
		if (!kref_get_unless_zero(&obj->refcount))
			obj = NULL;
	}
	drm_vma_offset_unlock_lookup(mgr);

	return obj;
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

__rust_helper void rust_helper_vma_set_dontexpand(struct vm_area_struct *vma)
{
	vm_flags_set(vma, VM_DONTEXPAND);
}

#endif /* CONFIG_DRM */

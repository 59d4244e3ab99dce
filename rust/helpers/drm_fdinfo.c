// SPDX-License-Identifier: GPL-2.0

#include <drm/drm_file.h>
#include <drm/drm_gem.h>

#ifdef CONFIG_DRM

__rust_helper bool
rust_helper_drm_gem_object_is_shared_for_memory_stats(struct drm_gem_object *obj)
{
	return drm_gem_object_is_shared_for_memory_stats(obj);
}

/*
 * The first object that the file has from *handle on, with a reference; its
 * handle is *handle then. NULL if there is none.
 */
__rust_helper struct drm_gem_object *
rust_helper_drm_file_next_object(struct drm_file *file, int *handle)
{
	struct drm_gem_object *obj;

	spin_lock(&file->table_lock);
	obj = idr_get_next(&file->object_idr, handle);
	if (obj)
		drm_gem_object_get(obj);
	spin_unlock(&file->table_lock);

	return obj;
}

#endif /* CONFIG_DRM */

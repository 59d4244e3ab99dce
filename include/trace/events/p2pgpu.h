/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Tracepoints of the p2pgpu driver: what it gives to importers, refuses them,
 * and takes back. See Documentation/gpu/p2pgpu/driver.rst.
 */

#undef TRACE_SYSTEM
#define TRACE_SYSTEM p2pgpu

#if !defined(_TRACE_P2PGPU_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_P2PGPU_H

#include <linux/device.h>
#include <linux/tracepoint.h>
#include <drm/drm_gem.h>

TRACE_EVENT(p2pgpu_refuse,
	TP_PROTO(const char *dev, u64 object, const char *reason, int error),
	TP_ARGS(dev, object, reason, error),
	TP_STRUCT__entry(
		__string(dev, dev)
		__field(u64, object)
		__string(reason, reason)
		__field(int, error)
	),
	TP_fast_assign(
		__assign_str(dev);
		__entry->object = object;
		__assign_str(reason);
		__entry->error = error;
	),
	TP_printk("dev=%s object=%#llx reason=%s error=%d",
		  __get_str(dev), __entry->object, __get_str(reason), __entry->error)
);

TRACE_EVENT(p2pgpu_fall_back,
	TP_PROTO(const char *dev, u64 object, const char *importer),
	TP_ARGS(dev, object, importer),
	TP_STRUCT__entry(
		__string(dev, dev)
		__field(u64, object)
		__string(importer, importer)
	),
	TP_fast_assign(
		__assign_str(dev);
		__entry->object = object;
		__assign_str(importer);
	),
	TP_printk("dev=%s object=%#llx importer=%s",
		  __get_str(dev), __entry->object, __get_str(importer))
);

DECLARE_EVENT_CLASS(p2pgpu_mapping,
	TP_PROTO(const struct device *dev, struct drm_gem_object *obj,
		 const struct device *importer, u64 page, u64 pages, bool aperture),
	TP_ARGS(dev, obj, importer, page, pages, aperture),
	TP_STRUCT__entry(
		__string(dev, dev_name(dev))
		__field(u64, object)
		__string(importer, dev_name(importer))
		__field(u64, page)
		__field(u64, pages)
		__field(bool, aperture)
	),
	TP_fast_assign(
		__assign_str(dev);
		__entry->object = drm_vma_node_offset_addr(&obj->vma_node);
		__assign_str(importer);
		__entry->page = page;
		__entry->pages = pages;
		__entry->aperture = aperture;
	),
	TP_printk("dev=%s object=%#llx importer=%s page=%llu pages=%llu aperture=%d",
		  __get_str(dev), __entry->object, __get_str(importer), __entry->page,
		  __entry->pages, __entry->aperture)
);

DEFINE_EVENT(p2pgpu_mapping, p2pgpu_map,
	TP_PROTO(const struct device *dev, struct drm_gem_object *obj,
		 const struct device *importer, u64 page, u64 pages, bool aperture),
	TP_ARGS(dev, obj, importer, page, pages, aperture)
);

DEFINE_EVENT(p2pgpu_mapping, p2pgpu_unmap,
	TP_PROTO(const struct device *dev, struct drm_gem_object *obj,
		 const struct device *importer, u64 page, u64 pages, bool aperture),
	TP_ARGS(dev, obj, importer, page, pages, aperture)
);

TRACE_EVENT(p2pgpu_invalidate,
	TP_PROTO(const char *dev, u64 object, u32 mappings),
	TP_ARGS(dev, object, mappings),
	TP_STRUCT__entry(
		__string(dev, dev)
		__field(u64, object)
		__field(u32, mappings)
	),
	TP_fast_assign(
		__assign_str(dev);
		__entry->object = object;
		__entry->mappings = mappings;
	),
	TP_printk("dev=%s object=%#llx mappings=%u",
		  __get_str(dev), __entry->object, __entry->mappings)
);

TRACE_EVENT(p2pgpu_migrate,
	TP_PROTO(const char *dev, u64 object, bool vram, int error),
	TP_ARGS(dev, object, vram, error),
	TP_STRUCT__entry(
		__string(dev, dev)
		__field(u64, object)
		__field(bool, vram)
		__field(int, error)
	),
	TP_fast_assign(
		__assign_str(dev);
		__entry->object = object;
		__entry->vram = vram;
		__entry->error = error;
	),
	TP_printk("dev=%s object=%#llx to=%s error=%d",
		  __get_str(dev), __entry->object, __entry->vram ? "vram" : "system",
		  __entry->error)
);

TRACE_EVENT(p2pgpu_evict,
	TP_PROTO(const char *dev, u64 object, u64 size),
	TP_ARGS(dev, object, size),
	TP_STRUCT__entry(
		__string(dev, dev)
		__field(u64, object)
		__field(u64, size)
	),
	TP_fast_assign(
		__assign_str(dev);
		__entry->object = object;
		__entry->size = size;
	),
	TP_printk("dev=%s object=%#llx size=%llu",
		  __get_str(dev), __entry->object, __entry->size)
);

TRACE_EVENT(p2pgpu_pressure,
	TP_PROTO(const char *dev, u64 object, u64 victim),
	TP_ARGS(dev, object, victim),
	TP_STRUCT__entry(
		__string(dev, dev)
		__field(u64, object)
		__field(u64, victim)
	),
	TP_fast_assign(
		__assign_str(dev);
		__entry->object = object;
		__entry->victim = victim;
	),
	TP_printk("dev=%s object=%#llx victim=%#llx",
		  __get_str(dev), __entry->object, __entry->victim)
);

TRACE_EVENT(p2pgpu_submit,
	TP_PROTO(const char *dev, u64 context, u32 commands, u32 waits),
	TP_ARGS(dev, context, commands, waits),
	TP_STRUCT__entry(
		__string(dev, dev)
		__field(u64, context)
		__field(u32, commands)
		__field(u32, waits)
	),
	TP_fast_assign(
		__assign_str(dev);
		__entry->context = context;
		__entry->commands = commands;
		__entry->waits = waits;
	),
	TP_printk("dev=%s context=%llu commands=%u waits=%u",
		  __get_str(dev), __entry->context, __entry->commands,
		  __entry->waits)
);

#endif /* _TRACE_P2PGPU_H */

/* This part must be outside protection */
#include <trace/define_trace.h>

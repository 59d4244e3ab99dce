// SPDX-License-Identifier: GPL-2.0

#include <linux/memcontrol.h>
#include <linux/sched/mm.h>

#ifdef CONFIG_MEMCG
__rust_helper struct obj_cgroup *rust_helper_get_obj_cgroup_from_current(void)
{
	return get_obj_cgroup_from_current();
}

__rust_helper void rust_helper_obj_cgroup_put(struct obj_cgroup *objcg)
{
	obj_cgroup_put(objcg);
}

__rust_helper struct mem_cgroup *
rust_helper_get_mem_cgroup_from_objcg(struct obj_cgroup *objcg)
{
	return get_mem_cgroup_from_objcg(objcg);
}

__rust_helper void rust_helper_mem_cgroup_put(struct mem_cgroup *memcg)
{
	mem_cgroup_put(memcg);
}

__rust_helper struct mem_cgroup *
rust_helper_set_active_memcg(struct mem_cgroup *memcg)
{
	return set_active_memcg(memcg);
}
#endif

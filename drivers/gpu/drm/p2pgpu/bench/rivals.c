// SPDX-License-Identifier: GPL-2.0
/*
 * What the slots are measured against: drm_mm and the GPU buddy allocator, each
 * with a space of which some pages are in use.
 *
 * drm_mm gets its nodes for nothing: they are allocated beforehand.
 */

#include <linux/bitmap.h>
#include <linux/gpu_buddy.h>
#include <linux/list.h>
#include <linux/sched.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include <drm/drm_mm.h>

#include "rivals.h"

struct p2pgpu_rival {
	enum p2pgpu_rival_kind kind;
	bool ready;
	u32 count;

	struct drm_mm mm;
	/* One for each page in use, then those to take. */
	struct drm_mm_node *nodes;
	u32 used;
	u32 taken;

	struct gpu_buddy buddy;
	struct list_head used_blocks;
	struct list_head taken_blocks;
};

static int fill_mm(struct p2pgpu_rival *rival, const unsigned long *filled,
		   u32 pages)
{
	u32 used = bitmap_weight(filled, pages);
	u32 page;
	int ret;

	rival->nodes = kvcalloc(used + rival->count, sizeof(*rival->nodes),
				GFP_KERNEL);
	if (!rival->nodes)
		return -ENOMEM;

	drm_mm_init(&rival->mm, 0, (u64)pages * SZ_4K);
	rival->ready = true;
	for_each_set_bit(page, filled, pages) {
		struct drm_mm_node *node = &rival->nodes[rival->used];

		node->start = (u64)page * SZ_4K;
		node->size = SZ_4K;
		ret = drm_mm_reserve_node(&rival->mm, node);
		if (ret)
			return ret;
		rival->used++;
		cond_resched();
	}
	return 0;
}

static int fill_buddy(struct p2pgpu_rival *rival, const unsigned long *filled,
		      u32 pages)
{
	u32 page;
	int ret;

	ret = gpu_buddy_init(&rival->buddy, (u64)pages * SZ_4K, SZ_4K);
	if (ret)
		return ret;
	rival->ready = true;

	for_each_set_bit(page, filled, pages) {
		u64 start = (u64)page * SZ_4K;

		ret = gpu_buddy_alloc_blocks(&rival->buddy, start,
					     start + SZ_4K, SZ_4K, SZ_4K,
					     &rival->used_blocks,
					     GPU_BUDDY_RANGE_ALLOCATION);
		if (ret)
			return ret;
		cond_resched();
	}
	return 0;
}

/*
 * An allocator of @pages pages of which those in @filled are in use, to take
 * @count more from. NULL if there is too little memory.
 */
struct p2pgpu_rival *p2pgpu_rival_new(enum p2pgpu_rival_kind kind,
				      const unsigned long *filled, u32 pages,
				      u32 count)
{
	struct p2pgpu_rival *rival;
	int ret;

	rival = kzalloc_obj(*rival);
	if (!rival)
		return NULL;
	rival->kind = kind;
	rival->count = count;
	INIT_LIST_HEAD(&rival->used_blocks);
	INIT_LIST_HEAD(&rival->taken_blocks);

	ret = kind == P2PGPU_RIVAL_MM ? fill_mm(rival, filled, pages) :
					fill_buddy(rival, filled, pages);
	if (!ret)
		return rival;
	p2pgpu_rival_free(rival);
	return NULL;
}

static bool take_mm(struct p2pgpu_rival *rival, u32 nodes, u64 size)
{
	while (rival->taken < nodes) {
		struct drm_mm_node *node;

		node = &rival->nodes[rival->used + rival->taken];
		if (drm_mm_insert_node(&rival->mm, node, size))
			return false;
		rival->taken++;
	}
	return true;
}

static bool take_buddy(struct p2pgpu_rival *rival, u64 size, u64 min_size,
		       unsigned long flags)
{
	return !gpu_buddy_alloc_blocks(&rival->buddy, 0, 0, size, min_size,
				       &rival->taken_blocks, flags);
}

/*
 * Takes as many pages as were asked for, side by side or else anywhere.
 * False if there are not so many.
 */
bool p2pgpu_rival_take(struct p2pgpu_rival *rival, bool contiguous)
{
	u64 size = (u64)rival->count * SZ_4K;
	u32 page;

	if (contiguous && rival->kind == P2PGPU_RIVAL_MM)
		return take_mm(rival, 1, size);
	if (contiguous)
		return take_buddy(rival, size, size,
				  GPU_BUDDY_CONTIGUOUS_ALLOCATION);
	if (rival->kind == P2PGPU_RIVAL_MM)
		return take_mm(rival, rival->count, SZ_4K);
	if (rival->kind == P2PGPU_RIVAL_BUDDY)
		return take_buddy(rival, size, SZ_4K, 0);

	for (page = 0; page < rival->count; page++) {
		if (!take_buddy(rival, SZ_4K, SZ_4K, 0))
			return false;
	}
	return true;
}

/* Returns what was taken. */
void p2pgpu_rival_give_back(struct p2pgpu_rival *rival)
{
	if (rival->kind != P2PGPU_RIVAL_MM)
		gpu_buddy_free_list(&rival->buddy, &rival->taken_blocks, 0);

	while (rival->taken)
		drm_mm_remove_node(&rival->nodes[rival->used + --rival->taken]);
}

void p2pgpu_rival_free(struct p2pgpu_rival *rival)
{
	p2pgpu_rival_give_back(rival);
	while (rival->used) {
		drm_mm_remove_node(&rival->nodes[--rival->used]);
		cond_resched();
	}
	if (rival->ready && rival->kind == P2PGPU_RIVAL_MM) {
		drm_mm_takedown(&rival->mm);
	} else if (rival->ready) {
		gpu_buddy_free_list(&rival->buddy, &rival->used_blocks, 0);
		gpu_buddy_fini(&rival->buddy);
	}
	kvfree(rival->nodes);
	kfree(rival);
}

/* SPDX-License-Identifier: GPL-2.0 */
#ifndef P2PGPU_BENCH_RIVALS_H
#define P2PGPU_BENCH_RIVALS_H

#include <linux/types.h>

/* The same numbers as in rival.rs. */
enum p2pgpu_rival_kind {
	/* A node for each page. */
	P2PGPU_RIVAL_MM = 0,
	/* One request for all pages, to be had in blocks of any size. */
	P2PGPU_RIVAL_BUDDY = 1,
	/* A request for each page. */
	P2PGPU_RIVAL_BUDDY_PAGES = 2,
};

struct p2pgpu_rival;

struct p2pgpu_rival *p2pgpu_rival_new(enum p2pgpu_rival_kind kind,
				      const unsigned long *filled, u32 pages, u32 count);
bool p2pgpu_rival_take(struct p2pgpu_rival *rival, bool contiguous);
void p2pgpu_rival_give_back(struct p2pgpu_rival *rival);
void p2pgpu_rival_free(struct p2pgpu_rival *rival);

#endif

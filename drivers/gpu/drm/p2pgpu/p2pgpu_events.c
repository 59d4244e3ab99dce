// SPDX-License-Identifier: GPL-2.0
/*
 * The trace events of the p2pgpu driver.
 */

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/p2pgpu.h>

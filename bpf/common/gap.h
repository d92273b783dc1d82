// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Sampling at a fixed rate, for what happens so often that even the clock is dear: one in `one_in`, at random
 * distances from 1 to 2 × one_in − 1, so that what comes in a rhythm is sampled all the same. Each sample stands for
 * one_in. For rates that follow a budget see sample.h.
 */
#pragma once
#include "common/probe.h"

#define GAP(name) MAP(PERCPU_ARRAY, name, u32, u64, 1) /* until the next sample on this CPU */

static __always_inline bool is_sampled(void *table, u32 one_in)
{
	u32 zero = 0;
	u64 *gap = bpf_map_lookup_elem(table, &zero);
	if (!gap || (*gap)-- > 1)
		return false;
	*gap = 1 + bpf_get_prandom_u32() % (2 * one_in - 1);
	return true;
}

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Sampling under a budget: each event is taken with the chance 1/one_in, which follows the last second's rate, and
 * carries one_in as its weight, so that weights sum to what happened. A sudden flood doubles one_in as it comes.
 */
#pragma once
#include "common/probe.h"

#define SECOND 1000000000ULL

struct sampler {
	u64 since;
	u32 seen;
	u32 taken;
	u32 one_in;
};

/* The weight of this event, 0 when it is not taken; `budget` is events per second and CPU, at least 1. */
static __always_inline u32 sample(struct sampler *sampler, u64 budget, u64 now)
{
	u64 passed = now - sampler->since;
	if (passed >= SECOND) {
		u32 wanted = passed < 2 * SECOND ? (sampler->seen + budget - 1) / budget : 1;
		sampler->one_in = wanted ? wanted : 1;
		sampler->since = now;
		sampler->seen = sampler->taken = 0;
	}
	sampler->seen++;
	u32 weight = sampler->one_in;
	if (weight > 1 && bpf_get_prandom_u32() % weight)
		return 0;
	if (++sampler->taken > budget) {
		sampler->one_in *= 2;
		sampler->taken = budget / 2;
	}
	return weight;
}

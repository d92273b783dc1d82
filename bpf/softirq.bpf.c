// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Soft interrupts: each is counted; one in SAMPLED_ONE_IN is timed and stands for as many. One does not interrupt
 * another on the same CPU.
 */
#include "common/gap.h"
#include "common/near.h"

#define SAMPLED_ONE_IN 4

GAP(softirq_gap)
MAP(PERCPU_ARRAY, softirq_entered, u32, u64, 1) /* when it was entered; 0: not sampled */
NEAR(softirq)

TP_BTF(softirq_entry)
{
	u32 zero = 0;
	u64 *at = bpf_map_lookup_elem(map(softirq_entered), &zero);
	if (at)
		*at = is_sampled(map(softirq_gap), SAMPLED_ONE_IN) ? bpf_ktime_get_ns() : 0;
	return 0;
}

TP_BTF(softirq_exit)
{
	struct softirq_key key = {.vector = ARG(softirq_exit, vec_nr)};
	struct softirq_value *value = softirq_near_slot(&key);
	u32 zero = 0;
	u64 *at = bpf_map_lookup_elem(map(softirq_entered), &zero);
	if (!value || !at)
		return 0;
	value->count++;
	if (*at) {
		u64 took = bpf_ktime_get_ns() - *at;
		value->time_ns += took * SAMPLED_ONE_IN;
		value->times[log2_bucket(took / 1000, 27)] += SAMPLED_ONE_IN;
		*at = 0;
	}
	return 0;
}

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
#include "common/task.h"

KERNEL_STRUCT(task_struct, pid, sched_info.run_delay)

MAP(PERCPU_ARRAY, runq_latency_running, u32, u64, 1)

TP_BTF(sched_switch)
{
	struct task_struct *prev = (void *)ARG(sched_switch, prev);
	struct task_struct *next = (void *)ARG(sched_switch, next);
	u32 zero = 0;
	u64 *before = bpf_map_lookup_elem(map(runq_latency_running), &zero);
	if (!before)
		return 0;
	u64 waited = prev->sched_info.run_delay - *before;
	*before = next->sched_info.run_delay;
	if (!prev->pid)
		return 0;
	struct runq_latency_key key = {.cgroup = cgroup_of(prev)};
	struct runq_latency_value *value = runq_latency_slot(&key);
	if (!value)
		return 0;
	value->count++;
	value->sum_ns += waited;
	value->waits[log2_bucket(waited / 1000, 27)]++;
	return 0;
}

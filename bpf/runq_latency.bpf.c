// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The kernel already times every wait for a CPU: sched_info.run_delay of a task is the sum of all of them, and
 * what schedstat shows. One program suffices: whenever a task leaves its CPU, what its sum gained since it last
 * left one is how long it waited, on this CPU's queue or on another's before it was moved. No clock is read.
 *
 * What a task's sum was is kept in a table indexed by pid; two tasks whose pids share a place take it in turns
 * and then lose only the part of a wait that came before a move. An entry of another task, or a sum that shrank
 * (the pid was used again), is counted as runq_latency_sampled_out and starts afresh. Pairing a task's arrival
 * with its departure per CPU instead is not safe: a kernel may switch tasks without the tracepoint firing.
 */
#include "common/near.h"
#include "common/task.h"

KERNEL_STRUCT(task_struct, pid, sched_info.run_delay)

#define PLACES 65536 /* 1 MB; a power of two */

struct seen {
	u64 task;
	u64 run_delay;
};
MAP(ARRAY, runq_latency_seen, u32, struct seen, PLACES)
NEAR(runq_latency)

static __always_inline struct seen *seen_of(struct task_struct *task)
{
	u32 place = (u32)task->pid % PLACES;
	return bpf_map_lookup_elem(map(runq_latency_seen), &place);
}

static __always_inline void arrive(struct task_struct *task)
{
	struct seen *seen = seen_of(task);
	if (seen && seen->task != (u64)task) {
		seen->task = (u64)task;
		seen->run_delay = task->sched_info.run_delay;
	}
}

static __always_inline void leave(struct task_struct *task)
{
	struct seen *seen = seen_of(task);
	if (!seen)
		return;
	u64 sum = task->sched_info.run_delay;
	s64 waited = sum - seen->run_delay;
	seen->run_delay = sum;
	if (seen->task != (u64)task || waited < 0) {
		seen->task = (u64)task;
		runq_latency_sampled_out();
		return;
	}
	struct runq_latency_key key = {.cgroup = cgroup_of(task)};
	struct runq_latency_value *value = runq_latency_near_slot(&key);
	if (!value)
		return;
	value->count++;
	value->sum_ns += waited;
	value->waits[log2_bucket(waited / 1000, 27)]++;
}

TP_BTF(sched_switch)
{
	struct task_struct *prev = (void *)ARG(sched_switch, prev);
	struct task_struct *next = (void *)ARG(sched_switch, next);
	if (prev->pid)
		leave(prev);
	if (next->pid)
		arrive(next);
	return 0;
}

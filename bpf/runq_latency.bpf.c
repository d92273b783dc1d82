// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The kernel already times every wait for a CPU: sched_info.run_delay of a task is the sum of all of them, and
 * what schedstat shows. One program suffices: whenever a task leaves its CPU, what its sum gained since it last
 * left one is how long it waited, on this CPU's queue or on another's before it was moved. No clock is read.
 *
 * What a task's sum was is kept in a table indexed by pid; two tasks whose pids share a place take it in turns
 * and then lose only the part of a wait that came before a move. An entry of another task, or a sum that shrank
 * (the pid was used again), is counted as runq_latency_sampled_out and starts afresh. Pairing a task's arrival
 * with its departure per CPU instead is not safe: a kernel may switch tasks without the tracepoint firing.
 *
 * On the way the same program sees who had the CPU when a task got it or was driven from it (preemption), and what
 * the kernel's own counters of the task's page faults gained while it ran (page_fault): neither costs a program
 * of its own, nor anything at the fault.
 */
#include "common/near.h"
#include "common/task.h"

KERNEL_STRUCT(task_struct, pid, mm, sched_info.run_delay, min_flt, maj_flt)

#define PLACES 65536 /* 2 MB; a power of two */
#define LONG_WAIT_NS 50000
#define SYSTEM (~0ULL) /* stands for the cgroup of the kernel's own threads */

enum { SAME, OTHER, KERNEL, IDLE }; /* preemption.by */

struct seen {
	u64 task;
	u64 run_delay;
	u64 before; /* who had the CPU before it: a cgroup, SYSTEM, or 0 for nobody */
	u32 minor, major;
};
MAP(ARRAY, runq_latency_seen, u32, struct seen, PLACES)
NEAR(runq_latency)
NEAR(preemption)
NEAR(page_fault)

static __always_inline struct seen *seen_of(struct task_struct *task)
{
	u32 place = (u32)task->pid % PLACES;
	return bpf_map_lookup_elem(map(runq_latency_seen), &place);
}

static __always_inline void look(struct seen *seen, struct task_struct *task)
{
	seen->task = (u64)task;
	seen->run_delay = task->sched_info.run_delay;
	seen->minor = task->min_flt;
	seen->major = task->maj_flt;
}

static __always_inline void arrive(struct task_struct *task, u64 before)
{
	struct seen *seen = seen_of(task);
	if (!seen)
		return;
	if (seen->task != (u64)task)
		look(seen, task);
	seen->before = before;
}

static __always_inline struct preemption_value *kept_by(u64 cgroup, u64 other)
{
	struct preemption_key key = {.cgroup = cgroup};
	key.by = !other ? IDLE : other == SYSTEM ? KERNEL : other == cgroup ? SAME : OTHER;
	if (key.by == SAME || key.by == OTHER)
		key.by_cgroup = other;
	return preemption_near_slot(&key);
}

static __always_inline void count_wait(u64 cgroup, u64 waited, u64 before)
{
	struct runq_latency_key key = {.cgroup = cgroup};
	struct runq_latency_value *value = runq_latency_near_slot(&key);
	if (value) {
		value->count++;
		value->sum_ns += waited;
		value->waits[log2_bucket(waited / 1000, 27)]++;
	}
	if (waited < LONG_WAIT_NS)
		return;
	struct preemption_value *kept = kept_by(cgroup, before);
	if (kept) {
		kept->waits++;
		kept->waited_ns += waited;
	}
}

static __always_inline void count_faults(u64 cgroup, s32 minor, s32 major)
{
	struct page_fault_key key = {.cgroup = cgroup};
	struct page_fault_value *value = page_fault_near_slot(&key);
	if (value) {
		value->minor += minor;
		value->major += major;
	}
}

static __always_inline void leave(struct task_struct *task, u64 cgroup)
{
	struct seen *seen = seen_of(task);
	if (!seen)
		return;
	s64 waited = task->sched_info.run_delay - seen->run_delay;
	s32 minor = (u32)task->min_flt - seen->minor, major = (u32)task->maj_flt - seen->major;
	bool known = seen->task == (u64)task && waited >= 0 && minor >= 0 && major >= 0;
	look(seen, task);
	if (!known) {
		runq_latency_sampled_out();
		return;
	}
	count_wait(cgroup, waited, seen->before);
	if (minor | major)
		count_faults(cgroup, minor, major);
}

/* prev->__state when it stopped: 0 for a task that wants to go on. */
static __always_inline bool wants_on(u64 *ctx)
{
	if (ARG(sched_switch, preempt))
		return true;
#if HAS_ARG(sched_switch, prev_state)
	return !(u32)ARG(sched_switch, prev_state);
#else
	return false;
#endif
}

TP_BTF(sched_switch)
{
	struct task_struct *prev = (void *)ARG(sched_switch, prev);
	struct task_struct *next = (void *)ARG(sched_switch, next);
	u64 before = 0;
	if (prev->pid) {
		u64 cgroup = cgroup_of(prev);
		leave(prev, cgroup);
		before = prev->mm ? cgroup : SYSTEM;
		if (wants_on(ctx)) {
			struct preemption_value *kept =
				kept_by(cgroup, !next->pid ? 0 : next->mm ? cgroup_of(next) : SYSTEM);
			if (kept)
				kept->preempted++;
		}
	}
	if (next->pid)
		arrive(next, before);
	return 0;
}

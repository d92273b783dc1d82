// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Where threads wait. Taking two stacks at every switch would double the cost of a switch, so waits are sampled:
 * one of length d is taken with the chance d / T. It is drawn when it begins, by how long it is expected to be (a
 * little longer than the thread's last ones), and kept when it ends, by how long it was. T follows a budget of stacks a
 * second; each class of waits, by expected length, has its own, so that hundreds of idle threads do not crowd out
 * the few that wait a million times for microseconds.
 *
 * The time of all of a thread's waits is known without sampling. A sample is credited with what has gone by since
 * the thread's last one (`owed`): totals are exact, and chance only divides them among stacks, in proportion to time
 * since that is how samples are drawn. Waits certain to be taken stand for themselves alone. What is owed at a
 * thread's end is drawn by its length, too, and told without a stack. `weight` is one over the chance: sums of it
 * estimate how many waits there were.
 *
 * Where a thread that waited briefly so far waits long for once (a stall), the expectation was of no use: such
 * waits are drawn by their true length when they end. Then the kernel's stack can still be had; the program's only
 * if the wait had been drawn at its beginning.
 *
 * The time is the run queue's own clock, which the kernel has just set: reading it costs nothing. A thread's state
 * lies in a table indexed by pid as in runq_latency; a thread that meets another's entry starts afresh.
 */
#include "common/stack.h"
#include "common/task.h"

KERNEL_STRUCT(task_struct, pid, tgid, comm, se.cfs_rq)
KERNEL_STRUCT(cfs_rq, ?rq)
KERNEL_STRUCT(rq, clock)
SETTING(off_cpu_budget, 200)

#define PLACES 65536       /* a power of two */
#define UNIT 8             /* expectations and T count 256 ns each */
#define FIRST 4096         /* units, of a thread that is new: 1 ms */
#define SURPRISE 8         /* times as long as expected */
#define AMPLE 2            /* times what is expected, by which waits are drawn; what is too many is not kept */
#define T_START 15         /* log2 of units: 8 ms */
#define T_LEAST 8
#define T_MOST 28
#define CLASSES 4          /* expected to be shorter than 65 µs, 1 ms, 17 ms; longer */
#define WINDOW (SECOND / 4)
#define SECOND 1000000000ULL

struct wait {
	u64 task;
	u64 left; /* 0: it is not off its CPU, as far as we saw */
	u32 expected;
	u32 weight;   /* one over the chance it was drawn with; 0: not drawn */
	u64 lots;     /* state of a generator */
	u64 owed;     /* ns of its waits that no sample was credited with yet */
	u64 spare[3]; /* 64 bytes in all, a cache line */
};
MAP(ARRAY, off_cpu_waits, u32, struct wait, PLACES)
MAP(LRU_HASH, off_cpu_drawn, u64, struct off_cpu_key, 16384)

struct pace {
	u64 since;
	u32 taken;
	u32 shift; /* T is 1 << shift units; 0: not set yet */
};
MAP(ARRAY, off_cpu_pace, u32, struct pace, CLASSES)

enum { SLEEPING, BLOCKED, RUNNABLE, STOPPED };      /* names in the declaration */
enum { INTERRUPTIBLE = 1, UNINTERRUPTIBLE = 2, DEAD = 0xb0, NO_LOAD = 0x400 };

static __always_inline u64 clock_of(struct task_struct *running)
{
#if HAS(cfs_rq, rq)
	return running->se.cfs_rq->rq->clock;
#else
	return bpf_ktime_get_ns();
#endif
}

static __always_inline struct wait *wait_of(struct task_struct *task)
{
	u32 place = (u32)task->pid % PLACES;
	return bpf_map_lookup_elem(map(off_cpu_waits), &place);
}

static __always_inline u32 class_of(u64 units)
{
	return (u32)(units >= 1 << 8) + (u32)(units >= 1 << 12) + (u32)(units >= 1 << 16);
}

static __always_inline struct pace *pace_of(u64 units)
{
	u32 class = class_of(units);
	return bpf_map_lookup_elem(map(off_cpu_pace), &class);
}

static __always_inline u32 shift_of(u64 units)
{
	struct pace *pace = pace_of(units);
	return pace && pace->shift ? pace->shift & 31 : T_START;
}

/* After each pair of stacks: lengthen T when they come faster than the budget, shorten it when far below. */
static __always_inline void keep_pace(u64 units, u64 now)
{
	struct pace *pace = pace_of(units);
	if (!pace)
		return;
	/* An eighth of the budget for each class of short waits, a quarter and a half for the longer ones. */
	u32 class = class_of(units), part = class < 2 ? 3 : 4 - class;
	u64 passed = now - pace->since, budget = (setting(off_cpu_budget) * WINDOW / SECOND >> part) + 1;
	u32 shift = pace->shift ? pace->shift : T_START;
	u64 taken = ++pace->taken;
	if (taken > budget) {
		if (passed < WINDOW && shift < T_MOST)
			shift++;
	} else if (passed < WINDOW) {
		return;
	} else if (taken * 4 * WINDOW < budget * passed && shift > T_LEAST) {
		shift--;
	}
	pace->shift = shift;
	pace->since = now;
	pace->taken = 0;
}

/* A lot of 32 bits: a congruential generator a thread, stirred with the clock; the kernel's costs more. */
static __always_inline u64 lot_of(struct wait *wait, u64 now)
{
	wait->lots = (wait->lots ^ now) * 6364136223846793005ULL + 1442695040888963407ULL;
	return wait->lots >> 32;
}

/* The weight of something of so many units at T = 1 << shift: 0 when it is not drawn, else one over its chance. */
static __always_inline u32 draw(struct wait *wait, u64 units, u32 shift, u64 now)
{
	u64 lot = lot_of(wait, now);
	if (lot << shift >= units << 32)
		return 0;
	u64 weight = ((1ULL << shift) + units - 1) / units;
	return weight <= 1 ? 1 : lot < (1ULL << 32) / weight ? weight : 0;
}

static __always_inline u8 kind_of(u32 state, u32 preempted)
{
	if (preempted || !state)
		return RUNNABLE;
	if (state & (INTERRUPTIBLE | NO_LOAD))
		return SLEEPING;
	return state & UNINTERRUPTIBLE ? BLOCKED : STOPPED;
}

static __always_inline void describe(struct off_cpu_key *key, struct task_struct *task)
{
	key->cgroup = cgroup_of(task);
	key->pid = task->tgid;
	bpf_probe_read_kernel(key->comm, sizeof(key->comm), task->comm);
}

static __always_inline void record(struct off_cpu_key *key, u64 weight, u64 off_ns)
{
	struct off_cpu_value *value = off_cpu_slot(key);
	if (value) {
		value->samples++;
		value->weight += weight;
		value->off_ns += off_ns;
	}
}

static __always_inline void leave(void *ctx, struct task_struct *task, struct wait *wait, u8 state, u64 now)
{
	if (wait->task != (u64)task) {
		wait->task = (u64)task;
		wait->expected = FIRST;
		wait->owed = 0;
	}
	wait->left = now;
	wait->weight = draw(wait, (u64)wait->expected * AMPLE, shift_of(wait->expected), now);
	if (!wait->weight)
		return;
	u64 name = (u64)task, begun = bpf_ktime_get_ns();
	struct off_cpu_key key = {.state = state};
	describe(&key, task);
	key.user_stack = user_stack(ctx);
	key.kernel_stack = kernel_stack(ctx);
	bpf_map_update_elem(map(off_cpu_drawn), &name, &key, ANY);
	keep_pace(wait->expected, now);
	/* What this took is no part of the wait: drawn waits would look longer than the others they stand for. */
	wait->left += bpf_ktime_get_ns() - begun;
}

/* The thread's last switch: what it is still owed. */
static __always_inline void end(struct task_struct *task, struct wait *wait, u64 now)
{
	u64 units = wait->owed >> UNIT;
	if (wait->task != (u64)task || !units)
		return;
	u32 weight = draw(wait, units, shift_of(wait->expected), now);
	if (weight) {
		struct off_cpu_key key = {.state = SLEEPING};
		describe(&key, task);
		record(&key, weight, wait->owed * weight);
	}
	wait->task = 0;
}

/* A wait that was far longer than expected: drawn by its length, now that it is known. */
static __always_inline void stalled(struct task_struct *task, struct wait *wait, u32 expected, u64 waited, u64 now)
{
	u64 name = (u64)task, units = waited >> UNIT;
	struct off_cpu_key *early = wait->weight ? bpf_map_lookup_elem(map(off_cpu_drawn), &name) : 0;
	u64 weight = draw(wait, units > ~0U ? ~0U : units, shift_of(expected), now);
	if (weight != 1)
		wait->owed += waited;
	if (weight) {
		struct off_cpu_key key = {.state = SLEEPING};
		if (early) {
			key = *early;
		} else {
			describe(&key, task);
			key.kernel_stack = kernel_stack_of(task);
			keep_pace(expected, now);
		}
		record(&key, weight, weight == 1 ? waited : wait->owed);
		if (weight != 1)
			wait->owed = 0;
	}
	if (early)
		bpf_map_delete_elem(map(off_cpu_drawn), &name);
}

/* A wait that was drawn: kept with the chance that makes it proportional to its length. */
static __always_inline void finish(struct task_struct *task, struct wait *wait, u32 expected, u64 waited, u64 now)
{
	u64 name = (u64)task, drawn = wait->weight, units = (waited >> UNIT) + 1;
	u32 shift = shift_of(expected);
	struct off_cpu_key *early = bpf_map_lookup_elem(map(off_cpu_drawn), &name);
	if (!early) {
		wait->owed += waited;
		off_cpu_lost();
		return;
	}
	if (drawn == 1 && units >> shift) {
		record(early, 1, waited);
	} else {
		u64 proportion = units > ~0U ? ~0U : units * drawn, weight = (1ULL << shift) / units;
		wait->owed += waited;
		if (proportion >> shift || lot_of(wait, now) << shift < proportion << 32) {
			record(early, weight > drawn ? weight : drawn, wait->owed);
			wait->owed = 0;
		}
	}
	bpf_map_delete_elem(map(off_cpu_drawn), &name);
}

static __always_inline void arrive(struct task_struct *task, struct wait *wait, u64 now)
{
	if (wait->task != (u64)task || !wait->left)
		return;
	u64 waited = now > wait->left ? now - wait->left : 0, units = waited >> UNIT;
	u32 expected = wait->expected;
	wait->left = 0;
	u64 next = units > expected ? units : expected - (expected >> 4);
	wait->expected = next > ~0U ? ~0U : next + !next;
	if (wait->weight != 1 && units > (u64)expected * SURPRISE)
		stalled(task, wait, expected, waited, now);
	else if (wait->weight)
		finish(task, wait, expected, waited, now);
	else
		wait->owed += waited;
}

TP_BTF(sched_switch)
{
	struct task_struct *prev = (void *)ARG(sched_switch, prev);
	struct task_struct *next = (void *)ARG(sched_switch, next);
	struct wait *leaves = wait_of(prev), *comes = wait_of(next);
	u64 now = clock_of(next);
	u32 state = ARG(sched_switch, prev_state);
	if (prev->pid && leaves) {
		if (state & DEAD)
			end(prev, leaves, now);
		else
			leave(ctx, prev, leaves, kind_of(state, ARG(sched_switch, preempt) & 1), now);
	}
	if (next->pid && comes)
		arrive(next, comes, now);
	return 0;
}

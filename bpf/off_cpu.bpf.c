// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Where threads wait. Taking two stacks at every switch would double the cost of a switch, so waits are sampled,
 * and the long ones are what matters: a wait is taken with the chance expected / T, where `expected` follows how
 * long the thread's last waits were. One over the chance is a whole number and travels as the wait's weight, so
 * that sums estimate all waits, whatever T and the expectation did. T follows the budget of samples a second.
 *
 * Where a thread that waited briefly so far waits long for once (a stall), the expectation was of no use: such
 * waits are drawn by their true length when they end. Then the kernel's stack can still be had; the program's only
 * if the wait had been drawn at its start.
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
#define RATIO_BITS 10      /* a ratio of one is 1024 */
#define DRAWS_LEAST 8
#define DRAWS_MOST 1024
#define T_START 15         /* log2 of units: 8 ms */
#define T_LEAST 12
#define T_MOST 28
#define WINDOW (SECOND / 4)
#define SECOND 1000000000ULL

struct wait {
	u64 task;
	u64 left; /* 0: it is not off its CPU, as far as we saw */
	u32 expected;
	u32 weight; /* 0: not drawn */
	u64 lots; /* state of a generator */
	/* Of the waits that are drawn by chance: the time of all, which needs no drawing, and what the drawn ones
	 * claim that it is. Their ratio corrects the claim (see claim). 64 bytes in all, a cache line.
	 */
	u64 all_ns;
	u64 claimed_ns;
	u64 draws;
	u64 spare;
};
MAP(ARRAY, off_cpu_waits, u32, struct wait, PLACES)
MAP(LRU_HASH, off_cpu_drawn, u64, struct off_cpu_key, 16384)

struct pace {
	u64 since;
	u32 taken;
	u32 shift; /* T is 1 << shift units; 0: not set yet */
};
MAP(ARRAY, off_cpu_pace, u32, struct pace, 1)

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

static __always_inline u32 shift_now(void)
{
	u32 one = 0;
	struct pace *pace = bpf_map_lookup_elem(map(off_cpu_pace), &one);
	return pace && pace->shift ? pace->shift & 31 : T_START;
}

/* After each sample: lengthen T when they come faster than the budget, shorten it when far below. */
static __always_inline void keep_pace(u64 now)
{
	u32 one = 0;
	struct pace *pace = bpf_map_lookup_elem(map(off_cpu_pace), &one);
	if (!pace)
		return;
	u64 passed = now - pace->since, budget = setting(off_cpu_budget) * WINDOW / SECOND + 1;
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

/* The weight of a wait of so many units: 0 when it is not drawn, else exactly one over its chance. The lots are a
 * congruential generator a thread, stirred with the clock: a call of the kernel's costs more than all the rest.
 */
static __always_inline u32 draw(struct wait *wait, u64 units, u64 now)
{
	wait->lots = (wait->lots ^ now) * 6364136223846793005ULL + 1442695040888963407ULL;
	u64 lot = wait->lots >> 32;
	u32 shift = shift_now();
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

static __always_inline void leave(void *ctx, struct task_struct *task, u8 state, u64 now)
{
	struct wait *wait = wait_of(task);
	if (!wait)
		return;
	if (wait->task != (u64)task) {
		wait->task = (u64)task;
		wait->expected = FIRST;
		wait->all_ns = wait->claimed_ns = wait->draws = 0;
	}
	wait->left = now;
	wait->weight = draw(wait, wait->expected, now);
	if (!wait->weight)
		return;
	u64 name = (u64)task, begun = bpf_ktime_get_ns();
	struct off_cpu_key key = {.state = state};
	describe(&key, task);
	key.user_stack = user_stack(ctx);
	key.kernel_stack = kernel_stack(ctx);
	bpf_map_update_elem(map(off_cpu_drawn), &name, &key, ANY);
	/* What this took is no part of the wait: drawn waits would look longer than the others they stand for. */
	wait->left += bpf_ktime_get_ns() - begun;
}

static __always_inline void record(struct off_cpu_key *key, u64 weight, u64 off_ns, u64 now)
{
	struct off_cpu_value *value = off_cpu_slot(key);
	if (value) {
		value->samples++;
		value->weight += weight;
		value->off_ns += off_ns;
	}
	keep_pace(now);
}

/* The time that a drawn wait stands for: its own times its weight, and corrected by the ratio of the thread's known
 * total to what its draws claimed so far. Taking stacks leaves cold caches behind, so a drawn wait of a few µs is
 * longer than its like; and a known total takes most of the chance out of the estimate.
 */
static __always_inline u64 claim(struct wait *wait, u64 weight, u64 waited)
{
	u64 claimed = waited * weight;
	wait->claimed_ns += claimed;
	if (++wait->draws < DRAWS_LEAST || wait->claimed_ns >> RATIO_BITS == 0)
		return claimed;
	u64 ratio = wait->all_ns / (wait->claimed_ns >> RATIO_BITS);
	if (wait->draws > DRAWS_MOST) {
		wait->draws >>= 1;
		wait->all_ns >>= 1;
		wait->claimed_ns >>= 1;
	}
	return claimed >> 40 ? (claimed >> RATIO_BITS) * ratio : claimed * ratio >> RATIO_BITS;
}

static __always_inline void arrive(struct task_struct *task, u64 now)
{
	struct wait *wait = wait_of(task);
	if (!wait || wait->task != (u64)task || !wait->left)
		return;
	u64 waited = now > wait->left ? now - wait->left : 0, units = waited >> UNIT;
	u32 expected = wait->expected, weight = wait->weight;
	wait->left = 0;
	u64 next = units > expected ? units : expected - (expected >> 3);
	wait->expected = next > ~0U ? ~0U : next + !next;
	u64 name = (u64)task;
	struct off_cpu_key key = {.state = SLEEPING};
	if (weight != 1 && units > (u64)expected * SURPRISE) {
		u32 drawn = weight;
		weight = draw(wait, units, now);
		struct off_cpu_key *early = drawn ? bpf_map_lookup_elem(map(off_cpu_drawn), &name) : 0;
		if (early) {
			key = *early;
		} else if (weight) {
			describe(&key, task);
			key.kernel_stack = kernel_stack_of(task);
		}
		if (weight)
			record(&key, weight, waited * weight, now);
		if (drawn)
			bpf_map_delete_elem(map(off_cpu_drawn), &name);
		return;
	}
	if (weight != 1)
		wait->all_ns += waited;
	if (!weight)
		return;
	struct off_cpu_key *early = bpf_map_lookup_elem(map(off_cpu_drawn), &name);
	if (!early) {
		off_cpu_lost();
		return;
	}
	key = *early;
	record(&key, weight, weight == 1 ? waited : claim(wait, weight, waited), now);
	bpf_map_delete_elem(map(off_cpu_drawn), &name);
}

TP_BTF(sched_switch)
{
	struct task_struct *prev = (void *)ARG(sched_switch, prev);
	struct task_struct *next = (void *)ARG(sched_switch, next);
	u64 now = clock_of(next);
	if (prev->pid) {
		u32 state = ARG(sched_switch, prev_state);
		if (!(state & DEAD))
			leave(ctx, prev, kind_of(state, ARG(sched_switch, preempt) & 1), now);
	}
	if (next->pid)
		arrive(next, now);
	return 0;
}

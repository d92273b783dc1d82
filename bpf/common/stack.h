// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Stacks as 64-bit numbers: user_stack(ctx) and kernel_stack(ctx) of the current task, kernel_stack_of(task) of
 * one that waits. 0 where there is none.
 *
 * A number is a hash of the stack's addresses, of the process too where they are its own. The first time a number
 * comes up its addresses go out by the ring `stacks`; collector/stacks.py reads it and knows the number from then
 * on (schemas: fields with decode `stack`). Numbers that were told are kept in `stacks_told`; the oldest fall out
 * and are told again. No room in the ring: the number is not marked as told, and the next occurrence tells it.
 * User stacks are walked by frame pointers, which is what the kernel offers.
 */
#pragma once
#include "common/probe.h"

#define STACK_FRAMES 127       /* what the kernel takes at most, sysctl kernel.perf_event_max_stack */
#define STACK_SCRATCHES 4      /* programs that may interrupt each other in the middle of a stack */
#define STACK_MIX 0x9e3779b97f4a7c15ULL
enum { FROM_USER = 1 << 8 };   /* BPF_F_USER_STACK */

struct stack_record {
	u64 number;
	u32 pid; /* 0: a kernel stack */
	u32 frames;
	u64 addresses[STACK_FRAMES]; /* innermost first; those beyond `frames` mean nothing */
};
struct stack_scratch {
	u64 busy;
	struct stack_record record;
};
MAP(RINGBUF, stacks, none, none, 1 << 20)
MAP(LRU_HASH, stacks_told, u64, u64, 16384)
MAP(PERCPU_ARRAY, stacks_scratch, u32, struct stack_scratch, STACK_SCRATCHES)

static __always_inline struct stack_scratch *take_scratch(void)
{
	for (u32 place = 0; place < STACK_SCRATCHES; place++) {
		struct stack_scratch *scratch = bpf_map_lookup_elem(map(stacks_scratch), &place);
		if (scratch && __sync_val_compare_and_swap(&scratch->busy, 0, 1) == 0)
			return scratch;
	}
	return 0;
}

/* The number of the stack in `record`, which is told to the host if it is new. */
static __always_inline u64 tell_stack(struct stack_record *record, s64 bytes, u32 pid)
{
	if (bytes < 8 || bytes > (s64)sizeof(record->addresses))
		return 0;
	u64 frames = (u64)bytes / 8, number = (pid + 1) * STACK_MIX;
#pragma clang loop unroll(disable)
	for (u64 at = 0; at < STACK_FRAMES; at++) {
		if (at >= frames)
			break;
		number = (number ^ record->addresses[at]) * STACK_MIX;
		number ^= number >> 29;
	}
	number += !number;
	if (bpf_map_lookup_elem(map(stacks_told), &number))
		return number;
	record->number = number;
	record->pid = pid;
	record->frames = frames;
	u64 once = 1;
	if (!bpf_ringbuf_output(map(stacks), record, sizeof(*record), NO_WAKEUP))
		bpf_map_update_elem(map(stacks_told), &number, &once, ANY);
	return number;
}

static __always_inline u64 stack_of(void *ctx, void *task, u64 flags, u32 pid)
{
	struct stack_scratch *scratch = take_scratch();
	if (!scratch)
		return 0;
	struct stack_record *record = &scratch->record;
	s64 bytes = task ? bpf_get_task_stack(task, record->addresses, sizeof(record->addresses), flags)
			 : bpf_get_stack(ctx, record->addresses, sizeof(record->addresses), flags);
	u64 number = tell_stack(record, bytes, pid);
	scratch->busy = 0;
	return number;
}

static __always_inline u64 user_stack(void *ctx)
{
	return stack_of(ctx, 0, FROM_USER, bpf_get_current_pid_tgid() >> 32);
}

static __always_inline u64 kernel_stack(void *ctx)
{
	return stack_of(ctx, 0, 0, 0);
}

static __always_inline u64 kernel_stack_of(void *task)
{
	return stack_of(0, task, 0, 0);
}

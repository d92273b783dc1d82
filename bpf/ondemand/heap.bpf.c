// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Allocations that are alive, by address: what `outstanding heap:…` puts into a library of the malloc family.
 *
 * Only addresses whose hash falls into the sample are kept, so that an allocation and its end are in it together.
 * How old those became that ended is counted by call site, in steps of age_step_ns.
 * The host defines FIRST_ARGUMENT, SECOND_ARGUMENT and RESULT, by the machine's registers.
 */
#include "common/stack.h"

#define HEAP_MIX 0x9e3779b97f4a7c15ULL
#define HEAP_ENTRIES 131072
enum { HEAP_ALLOCATED, HEAP_FREED, HEAP_FULL, HEAP_COUNTERS };

struct heap_place {
	u64 address;
	u64 pid;
};
struct heap_allocation {
	u64 size;
	u64 stack;
	u64 at;
};
struct heap_age {
	u64 pid;
	u64 stack;
	u64 step;
};
struct heap_sum {
	u64 count;
	u64 bytes;
	u64 chunks; /* bytes, as glibc rounds them */
};
struct heap_call {
	u64 size;
	u64 old; /* realloc: what it was given */
};
#define HEAP_STEPS 64
SETTING(sample, 1) /* a power of two */
SETTING(age_step_ns, 0) /* 0: ages are not wanted */
MAP(PERCPU_HASH, ended, struct heap_age, struct heap_sum, 16384)
MAP_FLAGS(HASH, live, struct heap_place, struct heap_allocation, HEAP_ENTRIES, NO_PREALLOC)
MAP(LRU_HASH, calls, u64, struct heap_call, 8192)
MAP(PERCPU_ARRAY, heap_counters, u32, u64, HEAP_COUNTERS)

static __always_inline bool in_sample(u64 address)
{
	return (((address >> 4) * HEAP_MIX >> 32) & (setting(sample) - 1)) == 0;
}

static __always_inline void count_age(struct heap_place *place, struct heap_allocation *found, u64 step_ns)
{
	struct heap_age age = {place->pid, found->stack, (bpf_ktime_get_ns() - found->at) / step_ns};
	if (age.step >= HEAP_STEPS)
		age.step = HEAP_STEPS - 1;
	u64 chunk = (found->size + 23) & ~15ULL;
	struct heap_sum one = {1, found->size, chunk < 32 ? 32 : chunk};
	struct heap_sum *sum = bpf_map_lookup_elem(map(ended), &age);
	if (!sum) {
		bpf_map_update_elem(map(ended), &age, &one, NO_EXIST);
		return;
	}
	__sync_fetch_and_add(&sum->count, 1);
	__sync_fetch_and_add(&sum->bytes, one.bytes);
	__sync_fetch_and_add(&sum->chunks, one.chunks);
}

static __always_inline void forget(u64 address)
{
	struct heap_place place = {address, bpf_get_current_pid_tgid() >> 32};
	u64 step_ns = setting(age_step_ns);
	if (!address || !in_sample(address))
		return;
	struct heap_allocation *found = bpf_map_lookup_elem(map(live), &place);
	if (!found)
		return;
	if (step_ns)
		count_age(&place, found, step_ns);
	bpf_map_delete_elem(map(live), &place);
}

static __always_inline int called(u64 size, u64 old)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct heap_call call = {size, old};
	bpf_map_update_elem(map(calls), &thread, &call, ANY);
	return 0;
}

/* malloc, valloc · memalign, aligned_alloc · calloc · realloc · free: told by the cookie */
enum { HEAP_PLAIN, HEAP_ALIGNED, HEAP_CLEARED, HEAP_RESIZED, HEAP_GIVEN_BACK };
UPROBE_MULTI(called)
{
	switch (bpf_get_attach_cookie(ctx)) {
	case HEAP_PLAIN:
		return called(FIRST_ARGUMENT, 0);
	case HEAP_ALIGNED:
		return called(SECOND_ARGUMENT, 0);
	case HEAP_CLEARED:
		return called(FIRST_ARGUMENT * SECOND_ARGUMENT, 0);
	case HEAP_RESIZED:
		return called(SECOND_ARGUMENT, FIRST_ARGUMENT);
	}
	count_in(map(heap_counters), HEAP_FREED);
	forget(FIRST_ARGUMENT);
	return 0;
}

UPROBE_MULTI(given)
{
	u64 thread = bpf_get_current_pid_tgid(), address = RESULT;
	struct heap_call *call = bpf_map_lookup_elem(map(calls), &thread);
	if (!call)
		return 0;
	u64 size = call->size, old = call->old;
	bpf_map_delete_elem(map(calls), &thread);
	count_in(map(heap_counters), HEAP_ALLOCATED);
	if (old && (address || !size) && old != address)
		forget(old);
	if (!address || !in_sample(address))
		return 0;
	struct heap_place place = {address, thread >> 32};
	struct heap_allocation made = {size, user_stack(ctx), bpf_ktime_get_ns()};
	if (bpf_map_update_elem(map(live), &place, &made, ANY))
		count_in(map(heap_counters), HEAP_FULL);
	return 0;
}

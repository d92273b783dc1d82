// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Allocations that are alive, by address: what `outstanding heap:…` puts into a library of the malloc family.
 *
 * Only addresses whose hash falls into the sample are kept, so that an allocation and its end are in it together.
 * How old those became that ended is counted by call site, in steps of age_step_ns.
 * The host defines FIRST_ARGUMENT, SECOND_ARGUMENT, RESULT, CALLER (where the call returns to), STACK_POINTER and
 * FRAME_POINTER, by the machine's registers.
 */
#include "common/call_frames.h"

#define HEAP_MIX 0x9e3779b97f4a7c15ULL
#define HEAP_ENTRIES 131072
enum { HEAP_ALLOCATED, HEAP_FREED, HEAP_FULL, HEAP_COUNTERS };

struct heap_place {
	u64 address;
	u64 pid;
};
struct heap_allocation {
	u64 size;
	u64 chunk; /* bytes that glibc takes for it; only in windows */
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
	u64 old_chunk;
};
struct heap_gone {
	u64 pid;
	u64 chunk;
};
#define HEAP_STEPS 64
SETTING(sample, 1) /* a power of two */
SETTING(age_step_ns, 0) /* 0: ages are not wanted */
SETTING(open, 0)        /* between windows nothing is looked at: traps come and go one after the other */
SETTING(headers, 0)     /* whether sizes stand before allocations, as glibc has it */
MAP(PERCPU_HASH, ended, struct heap_age, struct heap_sum, 16384)
MAP(PERCPU_HASH, gone, struct heap_gone, u64, 8192)
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
	struct heap_sum one = {1, found->size, found->chunk};
	struct heap_sum *sum = bpf_map_lookup_elem(map(ended), &age);
	if (!sum) {
		bpf_map_update_elem(map(ended), &age, &one, NO_EXIST);
		return;
	}
	__sync_fetch_and_add(&sum->count, 1);
	__sync_fetch_and_add(&sum->bytes, one.bytes);
	__sync_fetch_and_add(&sum->chunks, one.chunks);
}

/* Bytes of the chunk at an address, 0 where that is not known. */
static __always_inline u64 chunk_at(u64 address)
{
	u64 size = 0;
	if (address && setting(headers) && setting(age_step_ns))
		bpf_probe_read_user(&size, sizeof(size), (void *)(address - 8));
	return size & ~15ULL;
}

/* Freed, and allocated before this window. */
static __always_inline void count_gone(u64 chunk)
{
	struct heap_gone gone = {bpf_get_current_pid_tgid() >> 32, chunk};
	u64 one = 1, *count = bpf_map_lookup_elem(map(gone), &gone);
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(map(gone), &gone, &one, NO_EXIST);
}

static __always_inline void forget(u64 address, u64 chunk)
{
	struct heap_place place = {address, bpf_get_current_pid_tgid() >> 32};
	u64 step_ns = setting(age_step_ns);
	if (!address || !in_sample(address))
		return;
	struct heap_allocation *found = bpf_map_lookup_elem(map(live), &place);
	if (!found) {
		if (chunk)
			count_gone(chunk);
		return;
	}
	if (step_ns)
		count_age(&place, found, step_ns);
	bpf_map_delete_elem(map(live), &place);
}

/* realloc gave the same address: its former size is gone. */
static __always_inline void grown_in_place(u64 address, u64 chunk)
{
	struct heap_place place = {address, bpf_get_current_pid_tgid() >> 32};
	if (chunk && in_sample(address) && !bpf_map_lookup_elem(map(live), &place))
		count_gone(chunk);
}

static __always_inline int called(u64 size, u64 old)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct heap_call call = {size, old, chunk_at(old)};
	bpf_map_update_elem(map(calls), &thread, &call, ANY);
	return 0;
}

/* malloc, valloc · memalign, aligned_alloc · calloc · realloc · free: told by the cookie */
enum { HEAP_PLAIN, HEAP_ALIGNED, HEAP_CLEARED, HEAP_RESIZED, HEAP_GIVEN_BACK };
UPROBE_MULTI(called)
{
	if (!setting(open))
		return 0;
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
	forget(FIRST_ARGUMENT, chunk_at(FIRST_ARGUMENT));
	return 0;
}

UPROBE_MULTI(given)
{
	u64 thread = bpf_get_current_pid_tgid(), address = RESULT;
	struct heap_call *call = bpf_map_lookup_elem(map(calls), &thread);
	if (!call || !setting(open))
		return 0;
	u64 size = call->size, old = call->old, old_chunk = call->old_chunk;
	bpf_map_delete_elem(map(calls), &thread);
	count_in(map(heap_counters), HEAP_ALLOCATED);
	if (old && (address || !size) && old != address)
		forget(old, old_chunk);
	else if (old && old == address)
		grown_in_place(old, old_chunk);
	if (!address || !in_sample(address))
		return 0;
	struct heap_place place = {address, thread >> 32};
	u64 chunk = chunk_at(address), least = (size + 23) & ~15ULL;
	struct heap_allocation made = {size, chunk ? chunk : least < 32 ? 32 : least, user_stack_from(CALLER, STACK_POINTER, FRAME_POINTER), bpf_ktime_get_ns()};
	if (bpf_map_update_elem(map(live), &place, &made, ANY))
		count_in(map(heap_counters), HEAP_FULL);
	return 0;
}

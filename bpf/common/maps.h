// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Maps: declared here, made by the loader, which puts their descriptors into the loaded instructions. */
#pragma once

typedef struct {
} none; /* the key and value of a ring buffer */

enum map_kind {
	MAP_HASH = 1,
	MAP_ARRAY = 2,
	MAP_PROG_ARRAY = 3,
	MAP_PERCPU_HASH = 5,
	MAP_PERCPU_ARRAY = 6,
	MAP_STACK_TRACE = 7,
	MAP_LRU_HASH = 9,
	MAP_LRU_PERCPU_HASH = 10,
	MAP_LPM_TRIE = 11,
	MAP_ARRAY_OF_MAPS = 12,
	MAP_HASH_OF_MAPS = 13,
	MAP_DEVMAP = 14,
	MAP_RINGBUF = 27,
};
enum { ANY = 0, NO_EXIST = 1, EXIST = 2 };                 /* flags of bpf_map_update_elem */
enum { NO_PREALLOC = 1, NO_COMMON_LRU = 2, MAP_RDONLY_PROG = 1 << 7 }; /* flags of MAP_FLAGS */
enum { NO_WAKEUP = 1, FORCE_WAKEUP = 2 };                  /* flags of bpf_ringbuf_submit */
enum { RING_AVAILABLE = 0, RING_SIZE = 1 };                /* flags of bpf_ringbuf_query */

#define MAP_FLAGS(kind, name, key, value, entries, flags)                                                      \
	typedef key map_key_of_##name;                                                                         \
	typedef value map_value_of_##name;                                                                     \
	enum { map_kind_of_##name = MAP_##kind, map_entries_of_##name = (entries), map_flags_of_##name = (flags) };
#define MAP(kind, name, key, value, entries) MAP_FLAGS(kind, name, key, value, entries, 0)

/* MAP_NUMBER_name is a number the loader gave the map; it replaces it by the descriptor. */
#define map(name) ((void *)bpf_pseudo_fd(1, MAP_NUMBER_##name))

/* What the loader asks of a compiled map: two constants a function. */
#define MAP_ANSWERS(number, name)                                                                              \
	u64 map_sizes_##number(void *ctx)                                                                      \
	{                                                                                                      \
		return (u64)sizeof(map_value_of_##name) << 32 | sizeof(map_key_of_##name);                     \
	}                                                                                                      \
	u64 map_kinds_##number(void *ctx)                                                                      \
	{                                                                                                      \
		return (u64)map_flags_of_##name << 32 | map_kind_of_##name;                                    \
	}                                                                                                      \
	u64 map_entries_##number(void *ctx)                                                                    \
	{                                                                                                      \
		return map_entries_of_##name;                                                                  \
	}

/* Add one to element `at` of a per-CPU array of u64. */
static __always_inline void count_in(void *table, u32 at)
{
	u64 *counter = bpf_map_lookup_elem(table, &at);
	if (counter)
		++*counter;
}

/* Readers look at a ring by time; only each quarter that fills wakes them, so that an event costs no wake-up.
 * Four records wide: of programs on several CPUs that cross the mark together, one sees it.
 */
static __always_inline u64 wake_reader(void *ring, u64 record)
{
	u64 quarter = bpf_ringbuf_query(ring, RING_SIZE) / 4;
	u64 available = bpf_ringbuf_query(ring, RING_AVAILABLE);
	return available >= quarter && (available & (quarter - 1)) < 4 * record ? FORCE_WAKEUP : NO_WAKEUP;
}

/* SETTING: one u64 in the array of the loader's `settings` map. */
#define SETTING(name, fallback) enum { setting_fallback_##name = (fallback) };
#define setting(name) read_setting(map(settings), SETTING_##name, setting_fallback_##name)
static __always_inline u64 read_setting(void *table, u32 at, u64 fallback)
{
	u64 *value = bpf_map_lookup_elem(table, &at);
	return value ? *value : fallback;
}

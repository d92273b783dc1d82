// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* NEAR(stream): a small per-CPU array in front of an aggregate's hash, for programs that run very often.
 *
 * Finding a key in a per-CPU hash costs several times what the rest of such a program does; here its place follows
 * from the key alone. stream_near_slot(&key) is the value of this CPU, in the array where the key has or gets one
 * of two places, otherwise in the hash (stream_slot). The reader (collector/near.py) sums both.
 */
#pragma once
#include "common/probe.h"

#define NEAR_PLACES 128 /* unless NEAR_SIZED says otherwise; a power of two */
#define NEAR_WAYS 2
enum { NEAR_FREE = 0, NEAR_CLAIMED = 1, NEAR_TAKEN = 2 }; /* claimed: its key is being written right now */

#define NEAR(stream) NEAR_SIZED(stream, NEAR_PLACES)
#define NEAR_SIZED(stream, places)                                                                             \
	struct stream##_near {                                                                                 \
		u64 state;                                                                                     \
		u64 key[(sizeof(struct stream##_key) + 7) / 8];                                                \
		struct stream##_value value;                                                                   \
	};                                                                                                     \
	MAP(PERCPU_ARRAY, stream##_near, u32, struct stream##_near, places)                                    \
	static __always_inline struct stream##_value *stream##_near_slot(struct stream##_key *key)             \
	{                                                                                                      \
		u64 words[(sizeof(*key) + 7) / 8] = {}, mixed = 0;                                             \
		__builtin_memcpy(words, key, sizeof(*key));                                                    \
		for (u32 n = 0; n < sizeof(words) / 8; n++)                                                    \
			mixed = (mixed ^ words[n]) * 0x9e3779b97f4a7c15ULL;                                    \
		for (u32 way = 0; way < NEAR_WAYS; way++) {                                                    \
			u32 place = ((mixed >> 32) + way) % (places);                                          \
			struct stream##_near *near = bpf_map_lookup_elem(map(stream##_near), &place);          \
			if (!near)                                                                             \
				break;                                                                         \
			if (near->state == NEAR_FREE &&                                                        \
			    __sync_val_compare_and_swap(&near->state, NEAR_FREE, NEAR_CLAIMED) == NEAR_FREE) { \
				__builtin_memcpy(near->key, words, sizeof(words));                             \
				near->state = NEAR_TAKEN;                                                      \
				return &near->value;                                                           \
			}                                                                                      \
			u64 other = near->state ^ NEAR_TAKEN;                                                  \
			for (u32 n = 0; n < sizeof(words) / 8; n++)                                            \
				other |= near->key[n] ^ words[n];                                              \
			if (!other)                                                                            \
				return &near->value;                                                           \
		}                                                                                              \
		return stream##_slot(key);                                                                     \
	}

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Maps of the filter. Pinned, so that they outlive the collector; `filter_order` belongs to one program.
#pragma once

#include "xdp/filter_connections.h"

#define FILTER_SHIFTS 24
// Parts of filter_bits: for each value that a field may have, which table rules it serves.
enum {
    BITS_CLASS = 0, // address family, fragment and what the frame has: see class_of()
    BITS_PROTOCOL = 64,
    BITS_TTL = BITS_PROTOCOL + 256,
    BITS_FLAGS = BITS_TTL + 256,
    BITS_DESTINATION = BITS_FLAGS + 256, // its last four bytes, one after the other
    BITS_DESTINATION_PORT = BITS_DESTINATION + 4 * 256,
    BITS_SOURCE_PORT = BITS_DESTINATION_PORT + 65536,
    BITS_LENGTH = BITS_SOURCE_PORT + 65536,
    FILTER_BITS = BITS_LENGTH + 65536,
};
#define FILTER_KNOWN 262144
#define FILTER_SEGMENTS_LOG2 18
#define FILTER_MAPPED (1 << 10) // BPF_F_MMAPABLE: the collector writes through shared memory

MAP(ARRAY, filter_config, u32, struct filter_config, 1)
MAP(PERCPU_ARRAY, filter_scratch, u32, struct filter_scratch, 1)
MAP(ARRAY, filter_rules, u32, struct filter_rule, FILTER_RULES)
MAP(PERCPU_ARRAY, filter_counters, u32, struct filter_counter, FILTER_RULES)
MAP(PERCPU_ARRAY, filter_samplers, u32, struct filter_sampler, FILTER_RULES)
MAP(ARRAY, filter_order, u32, u32, FILTER_RULES)
MAP_FLAGS(ARRAY, filter_chunks, u32, struct filter_chunk, 2 * 65536, FILTER_MAPPED)
MAP_FLAGS(ARRAY, filter_spans, u32, struct filter_span, 2 * 65536, FILTER_MAPPED)
MAP_FLAGS(ARRAY, filter_chunks6, u32, struct filter_chunk, 2 * 65536, FILTER_MAPPED)
MAP_FLAGS(ARRAY, filter_spans6, u32, struct filter_span6, 32768, FILTER_MAPPED)
MAP_FLAGS(ARRAY, filter_hints6, u32, u64, 2 * 1024, FILTER_MAPPED)
MAP_FLAGS(ARRAY, filter_bits, u32, u64, FILTER_BITS, FILTER_MAPPED)
MAP(ARRAY, filter_fields, u32, struct filter_fields, 64)
MAP(LRU_HASH, filter_known, struct filter_flow, u32, FILTER_KNOWN)
MAP(ARRAY, filter_segments, u32, struct filter_segment, 1 << FILTER_SEGMENTS_LOG2)
MAP(LRU_HASH, filter_buckets, struct filter_bucket_key, u64, 65536)
MAP(LRU_HASH, filter_top, struct filter_top_key, struct filter_top_value, 8192)
MAP(PROG_ARRAY, filter_next, u32, u32, 1) // of one program, too: collector/xdp_chain.py

#define FILTER_CONFIG ((const struct filter_config *)bpf_pseudo_fd(2, MAP_NUMBER_filter_config)) // no look-up

INLINE struct filter_scratch *own_scratch(void)
{
    u32 zero = 0;

    return bpf_map_lookup_elem(map(filter_scratch), &zero);
}

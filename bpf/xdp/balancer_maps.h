// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// The balancer's maps. Their sizes are defaults: collector/balancer makes them as large as its limits say,
// pins them, and lends them to the loader.
#pragma once

#include "balancer_structs.h"
#include "packet.h"

MAP(ARRAY_OF_MAPS, lb_vips, u32, u32, 1)
MAP_FLAGS(LPM_TRIE, lb_prefixes, struct lb_prefix_key, struct lb_prefix, 4096, NO_PREALLOC)
MAP(ARRAY, lb_settings, u32, struct lb_settings, 1)
MAP(ARRAY_OF_MAPS, lb_rings, u32, u32, 1024)
MAP(ARRAY, lb_backends, u32, struct lb_backend, 16384)
MAP(PERCPU_ARRAY, lb_counters, u32, struct lb_counters, 16384)
MAP(PERCPU_ARRAY, lb_reasons, u32, u64, 65536)
MAP(LRU_HASH, lb_flows, struct lb_flow_key, struct lb_flow_entry, 262144)
MAP(PERCPU_ARRAY, lb_budgets, u32, struct lb_budget, 1)
MAP(LRU_HASH, lb_fragments, struct lb_fragment_key, u32, 16384)
MAP_FLAGS(LPM_TRIE, lb_sources, struct lb_source_key, u32, 65536, NO_PREALLOC)
MAP(HASH, lb_quic_ids, struct lb_quic_key, u32, 65536)

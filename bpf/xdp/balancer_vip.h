// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Which VIP a packet is for, and the counters of reasons.
#pragma once

#include "balancer_parse.h"

#define HASH_A 0x9e3779b97f4a7c15ULL
#define HASH_B 0xd6e8feb86659fd93ULL

#define NO_VIP 0 // the number under which packets of no VIP are counted

INLINE void count_reason(u64 vip, u64 reason)
{
    u32 index = vip * LB_REASON_STRIDE + reason;
    u64 *count = bpf_map_lookup_elem(map(lb_reasons), &index);

    if (count)
        *count += 1;
}

INLINE int finish(u64 vip, u64 reason)
{
    count_reason(vip, reason);
    if (reason < LB_PASS_END)
        return XDP_PASS;
    return reason < LB_DROP_END ? XDP_DROP : XDP_TX;
}

INLINE struct lb_vip *vip_at(void *table, u64 place, const struct lb_vip_key *key)
{
    u32 index = place & ((1 << LB_VIP_PLACES_LOG2) - 1);
    struct lb_vip *vip = bpf_map_lookup_elem(table, &index);
    const u64 *wanted = (const void *)key, *found = (const void *)vip;

    if (!vip || found[1] != wanted[1] || found[0] != wanted[0])
        return 0;
    return *(const u32 *)(found + 2) == *(const u32 *)(wanted + 2) ? vip : 0;
}

// A table of our own instead of a hash map of the kernel's, which takes 25 ns longer: each key is in one of two
// places, nearly always the first.
INLINE struct lb_vip *find_exact(const struct lb_vip_key *key)
{
    const u64 *words = (const void *)key;
    u64 hash = words[1] + words[0] * HASH_B + *(const u32 *)(words + 2) * HASH_B;
    struct lb_vip *vip;
    u32 zero = 0;
    void *table = bpf_map_lookup_elem(map(lb_vips), &zero);

    if (!table)
        return 0;
    hash = (hash ^ hash >> 32) * HASH_A;
    vip = vip_at(table, hash >> (64 - LB_VIP_PLACES_LOG2), key);
    return LIKELY(vip != 0) ? vip : vip_at(table, hash >> (64 - 2 * LB_VIP_PLACES_LOG2), key);
}

// Perhaps a VIP that takes any port.
INLINE struct lb_vip *find_any_port(struct lb_vip_key *key, struct lb_settings *settings)
{
    u16 port = key->port;
    struct lb_vip *vip;

    if (!settings->any_port || !port)
        return 0;
    key->port = 0;
    vip = find_exact(key);
    key->port = port;
    return vip;
}

// Not an exact VIP: perhaps one that takes any port, or a prefix.
INLINE struct lb_vip *find_vip_slowly(const struct lb_vip_key *exact)
{
    struct lb_prefix_key where = {.length = 128};
    struct lb_vip_key ALIGNED key = *exact;
    struct lb_settings *settings;
    struct lb_prefix *prefix;
    struct lb_vip *vip;
    u32 zero = 0;

    settings = bpf_map_lookup_elem(map(lb_settings), &zero);
    if (!settings)
        return 0;
    vip = find_any_port(&key, settings);
    if (vip || !settings->prefixes)
        return vip;
    copy16_words(where.address, key.address);
    prefix = bpf_map_lookup_elem(map(lb_prefixes), &where);
    if (!prefix)
        return 0;
    copy16(key.address, prefix->address);
    vip = find_exact(&key);
    return vip ? vip : find_any_port(&key, settings);
}

INLINE struct lb_vip *find_vip(const struct lb_vip_key *key)
{
    struct lb_vip *vip = find_exact(key);

    return LIKELY(vip != 0) ? vip : find_vip_slowly(key);
}

// The VIP that owns an address, whatever the port.
INLINE struct lb_vip *find_address(struct packet *p)
{
    struct lb_vip_key ALIGNED key = p->key;

    key.port = 0;
    key.protocol = 0;
    key.used = 1;
    return find_vip(&key);
}

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Which VIP a packet is for, and the counters of reasons.
#pragma once

#include "balancer_parse.h"

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

INLINE struct lb_vip *find_exact_or_any_port(struct lb_vip_key *key, struct lb_settings *settings)
{
    struct lb_vip_key ALIGNED any = *key;
    struct lb_vip *vip = bpf_map_lookup_elem(map(lb_vips), key);

    if (vip || !settings->any_port)
        return vip;
    any.port = 0;
    return bpf_map_lookup_elem(map(lb_vips), &any);
}

// Not an exact VIP: perhaps one that takes any port, or a prefix.
INLINE struct lb_vip *find_vip_slowly(struct lb_vip_key *exact)
{
    struct lb_prefix_key where = {.length = 128};
    struct lb_vip_key ALIGNED key = *exact;
    struct lb_settings *settings;
    struct lb_prefix *prefix;
    struct lb_vip *vip = 0;
    u32 zero = 0;

    settings = bpf_map_lookup_elem(map(lb_settings), &zero);
    if (!settings)
        return 0;
    if (settings->any_port && key.port) {
        key.port = 0;
        vip = bpf_map_lookup_elem(map(lb_vips), &key);
        key.port = exact->port;
    }
    if (vip || !settings->prefixes)
        return vip;
    copy16_words(where.address, key.address);
    prefix = bpf_map_lookup_elem(map(lb_prefixes), &where);
    if (!prefix)
        return 0;
    copy16(key.address, prefix->address);
    return find_exact_or_any_port(&key, settings);
}

INLINE struct lb_vip *find_vip(struct lb_vip_key *key)
{
    struct lb_vip *vip = bpf_map_lookup_elem(map(lb_vips), key);

    return LIKELY(vip != 0) ? vip : find_vip_slowly(key);
}

// The VIP that owns an address, whatever the port.
INLINE struct lb_vip *find_address(struct packet *p)
{
    struct lb_vip_key ALIGNED key = p->key;

    key.port = 0;
    key.protocol = 0;
    return find_vip(&key);
}

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Which address sets an address is in: a bit for each, bit 0 for the allow-list.
// Its first 16 bits lead to the sets at once, or to sorted spans that are searched by halving. IPv6: behind a bitmap
// that rules out most addresses without a search.
#pragma once

#include "xdp/filter_maps.h"

#define FILTER_HALVINGS 17 // spans of one chunk: 65536 at most
#define FILTER_HALVINGS6 24

INLINE u32 sets_of_spans(u32 address, u32 low, u32 high)
{
    struct filter_span *span;
    u32 at;
    int i;

    for (i = 0; i < FILTER_HALVINGS; i++) { // the last span that starts at or before the address
        if (high - low <= 1)
            break;
        at = low + (high - low) / 2;
        span = bpf_map_lookup_elem(map(filter_spans), &at);
        if (!span)
            return 0;
        if (span->start <= address)
            low = at;
        else
            high = at;
    }
    span = bpf_map_lookup_elem(map(filter_spans), &low);
    return span ? span->sets : 0;
}

INLINE u32 sets_of_ipv4(const struct filter_config *config, u32 address)
{
    u32 at = (config->half & 1) << 16 | address >> 16;
    struct filter_chunk *chunk = bpf_map_lookup_elem(map(filter_chunks), &at);

    if (!chunk)
        return 0;
    if (LIKELY(!chunk->count))
        return chunk->first;
    return sets_of_spans(address, chunk->first, chunk->first + chunk->count);
}

INLINE u32 sets_of_spans6(u64 high, u64 low, u32 first, u32 end)
{
    struct filter_span6 *span;
    u32 at;
    int i;

    for (i = 0; i < FILTER_HALVINGS6; i++) { // as sets_of_spans
        if (end - first <= 1)
            break;
        at = first + (end - first) / 2;
        span = bpf_map_lookup_elem(map(filter_spans6), &at);
        if (!span)
            return 0;
        if (span->high < high || (span->high == high && span->low <= low))
            first = at;
        else
            end = at;
    }
    span = bpf_map_lookup_elem(map(filter_spans6), &first);
    return span ? span->sets : 0;
}

INLINE u32 sets_of_ipv6(const struct filter_config *config, const void *address)
{
    u64 high = (u64)BE32(*(u32 *)address) << 32 | BE32(*(u32 *)(address + 4));
    u32 start = (high >> 32 ^ high >> 48) & 0xffff, half = config->half6 & 1, at = half << 10 | start >> 6;
    u64 *hint = bpf_map_lookup_elem(map(filter_hints6), &at);
    struct filter_chunk *chunk;

    if (!hint || !(*hint >> (start & 63) & 1))
        return 0;
    at = half << 16 | high >> 48;
    chunk = bpf_map_lookup_elem(map(filter_chunks6), &at);
    if (!chunk)
        return 0;
    if (!chunk->count)
        return chunk->first;
    return sets_of_spans6(high, (u64)BE32(*(u32 *)(address + 8)) << 32 | BE32(*(u32 *)(address + 12)), chunk->first,
                          chunk->first + chunk->count);
}

// Behind VLAN tags. `direction` 0: source, 1: destination.
INLINE u32 sets_of_frame(struct xdp_md *ctx, const struct filter_config *config, u32 direction)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    u16 type;
    int tag;

    if (data + ETHERNET_BYTES > end)
        return 0;
    type = *(u16 *)(data + 12);
    for (tag = 0; tag < 2; tag++) {
        if (LIKELY(type == BE16(ETHERTYPE_IPV4)) || (type != BE16(ETHERTYPE_VLAN) && type != BE16(ETHERTYPE_QINQ)))
            break;
        data += VLAN_BYTES;
        if (data + ETHERNET_BYTES > end)
            return 0;
        type = *(u16 *)(data + 12);
    }
    data += ETHERNET_BYTES;
    if (LIKELY(type == BE16(ETHERTYPE_IPV4))) {
        if (!(config->flags & FILTER_SETS4) || data + IPV4_BYTES > end)
            return 0;
        return sets_of_ipv4(config, BE32(direction ? *(u32 *)(data + 16) : *(u32 *)(data + 12)));
    }
    if (type != BE16(ETHERTYPE_IPV6) || !(config->flags & FILTER_SETS6) || data + IPV6_BYTES > end)
        return 0;
    return sets_of_ipv6(config, direction ? data + 24 : data + 8);
}

// The answer is kept for the frame.
INLINE u64 filter_sets(struct xdp_md *ctx, struct filter_scratch *scratch, u64 direction)
{
    u32 sets;

    if (direction) {
        if (scratch->sets_known & 2)
            return scratch->sets[1];
    } else if (scratch->sets_known & 1) {
        return scratch->sets[0];
    }
    sets = sets_of_frame(ctx, FILTER_CONFIG, direction);
    scratch->sets[direction ? 1 : 0] = sets;
    scratch->sets_known |= direction ? 2 : 1;
    return sets;
}

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Rules of the table kind: up to 64 at once, matched from maps, changed without a new program. Each value that a
// field can have leads to the rules it serves, a bit for each; the rules that all fields of a frame serve are left.
// So the cost does not grow with the rules. What a value cannot tell (prefixes, sets, payload, state) is asked of
// those that are left, one by one.
#pragma once

#include "xdp/filter_act.h"

// What a frame must have at all: see collector/filter/table.py, which numbers alike.
INLINE u32 class_of(const struct filter_frame *frame)
{
    u32 family = frame->ip == 4 ? 1 : frame->ip == 6 ? 2 : 0, piece = 0;

    if (frame->ip == 4 && frame->fragment & (IPV4_FRAGMENT_OFFSET | IPV4_MORE_FRAGMENTS))
        piece = frame->fragment & IPV4_FRAGMENT_OFFSET ? 2 : 1;
    return family << 4 | piece << 2 | (frame->has & 3);
}

INLINE u64 bits_at(u32 at)
{
    u64 *bits = bpf_map_lookup_elem(map(filter_bits), &at);

    return bits ? *bits : 0;
}

INLINE u64 filter_table(struct xdp_md *ctx, struct filter_scratch *scratch)
{
    u32 length = ctx->data_end - ctx->data;
    struct filter_frame frame = {};
    u64 bits;
    int i;

    parse_frame(ctx, &frame);
    bits = FILTER_CONFIG->table & bits_at(BITS_CLASS + class_of(&frame));
    bits &= bits_at(BITS_PROTOCOL + frame.protocol);
    if (!bits)
        return 0;
    for (i = 0; i < 4; i++)
        bits &= bits_at(BITS_DESTINATION + 256 * i + frame.destination[12 + i]);
    if (!bits)
        return 0;
    bits &= bits_at(BITS_DESTINATION_PORT + BE16(frame.destination_port));
    bits &= bits_at(BITS_TTL + frame.ttl);
    bits &= bits_at(BITS_FLAGS + frame.tcp_flags);
    if (!bits)
        return 0;
    bits &= bits_at(BITS_SOURCE_PORT + BE16(frame.source_port));
    bits &= bits_at(BITS_LENGTH + (length > 0xffff ? 0xffff : length));
    if (!bits)
        return 0;
    scratch->candidates = bits;
    scratch->frame = frame;
    for (i = 0; i < 64; i++)
        if (call_fields(ctx, scratch))
            break;
    return scratch->summary;
}

INLINE int in_prefix(const u8 *address, const u8 *prefix, const u8 *mask)
{
    const u64 *a = (const void *)address, *p = (const void *)prefix, *m = (const void *)mask;

    return !(((a[0] ^ p[0]) & m[0]) | ((a[1] ^ p[1]) & m[1]));
}

INLINE int payload_fits(struct xdp_md *ctx, u32 at, const struct filter_fields *rule)
{
    u8 found[16] ALIGNED = {};
    u64 bytes = rule->payload_bytes;
    u32 start = at + rule->payload_at;

    if (!bytes)
        return 1;
    KEEP(bytes);
    if (bytes < 1 || bytes > 16 || start > 0xffff || bpf_xdp_load_bytes(ctx, start, found, bytes))
        return 0;
    return in_prefix(found, rule->payload, rule->payload_mask);
}

INLINE int sets_fit(struct xdp_md *ctx, struct filter_scratch *scratch, const struct filter_fields *rule)
{
    u32 sets;

    if (rule->source_sets | rule->not_source_sets) {
        sets = call_source_sets(ctx, scratch);
        if ((rule->source_sets && !(sets & rule->source_sets)) || sets & rule->not_source_sets)
            return 0;
    }
    if (rule->destination_sets | rule->not_destination_sets) {
        sets = call_destination_sets(ctx, scratch);
        if ((rule->destination_sets && !(sets & rule->destination_sets)) || sets & rule->not_destination_sets)
            return 0;
    }
    return 1;
}

// One candidate more is looked at. True: none is left.
INLINE u64 filter_fields_fit(struct xdp_md *ctx, struct filter_scratch *scratch)
{
    struct filter_frame *frame = &scratch->frame;
    struct filter_fields *rule;
    u64 candidates = scratch->candidates;
    u32 number;

    if (!candidates)
        return 1;
    number = lowest_bit(candidates) & 63;
    candidates &= candidates - 1;
    scratch->candidates = candidates;
    rule = bpf_map_lookup_elem(map(filter_fields), &number);
    if (rule && in_prefix(frame->source, rule->source, rule->source_mask) &&
        in_prefix(frame->destination, rule->destination, rule->destination_mask) && sets_fit(ctx, scratch, rule) &&
        (!rule->state || (call_established(ctx, scratch) != 0) == (rule->state == 2)) &&
        payload_fits(ctx, frame->payload, rule)) {
        scratch->hits[FILTER_WORDS - 1] |= 1ULL << number;
        scratch->summary |= 1ULL << (FILTER_WORDS - 1);
    }
    return !candidates;
}

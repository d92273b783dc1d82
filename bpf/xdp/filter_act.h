// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// What becomes of a frame that rules matched: the rules in their order, until one that is enforced decides.
#pragma once

#include "xdp/filter_sample.h"
#include "xdp/filter_sets.h"

// Other parts of the program; the linker puts calls of them where these numbers are.
#define FUNCTION(number) ((void *)(0x7f000000UL + (number)))
static u64 (*call_act)(struct xdp_md *, struct filter_scratch *) = FUNCTION(0);
static u64 (*call_record)(struct xdp_md *, struct filter_scratch *) = FUNCTION(1);
static u64 (*call_source_sets)(struct xdp_md *, struct filter_scratch *) = FUNCTION(2);
static u64 (*call_destination_sets)(struct xdp_md *, struct filter_scratch *) = FUNCTION(3);
static u64 (*call_step)(struct xdp_md *, struct filter_scratch *) = FUNCTION(4);
static u64 (*call_established)(struct xdp_md *, struct filter_scratch *) = FUNCTION(5);
static u64 (*call_table)(struct xdp_md *, struct filter_scratch *) = FUNCTION(6);
static u64 (*call_fields)(struct xdp_md *, struct filter_scratch *) = FUNCTION(7);
static u64 (*call_passed)(struct xdp_md *, struct filter_scratch *) = FUNCTION(8);
static u64 (*call_own)(struct xdp_md *, struct filter_scratch *) = FUNCTION(9);
static u64 (*call_follow)(struct xdp_md *, struct filter_scratch *) = FUNCTION(10);

// The number of the lowest bit set.
INLINE u64 lowest_bit(u64 bits)
{
    u64 at = 0;

#define HALVE(mask, by)                                                                                        \
    if (!(bits & (mask))) {                                                                                    \
        at += by;                                                                                              \
        bits >>= by;                                                                                           \
    }
    HALVE(0xffffffffULL, 32) HALVE(0xffff, 16) HALVE(0xff, 8) HALVE(0xf, 4) HALVE(3, 2) HALVE(1, 1)
#undef HALVE
    return at;
}

// Take the first rule from those that matched. Its place, or -1.
INLINE s64 next_match(struct filter_scratch *scratch)
{
    u64 word, bits, bit;

    if (!scratch->summary)
        return -1;
    word = LIKELY(scratch->summary & 1) ? 0 : lowest_bit(scratch->summary);
    if (word >= FILTER_WORDS)
        return -1;
    bits = scratch->hits[word];
    bit = lowest_bit(bits) & 63;
    bits &= bits - 1; // what is left
    scratch->hits[word] = bits;
    if (!bits)
        scratch->summary &= scratch->summary - 1;
    return (s64)(word << 6 | bit);
}

INLINE void forget_matches(struct filter_scratch *scratch)
{
    u64 word;
    int i;

    for (i = 0; i < FILTER_WORDS; i++) {
        if (!scratch->summary)
            return;
        word = lowest_bit(scratch->summary);
        if (word >= FILTER_WORDS)
            break;
        scratch->hits[word] = 0;
        scratch->summary &= scratch->summary - 1;
    }
}

// Whom a limit counts: the source address, or its /24 or /64.
INLINE void find_limited(struct xdp_md *ctx, struct filter_scratch *scratch)
{
    struct filter_frame frame = {};

    parse_frame(ctx, &frame);
    __builtin_memcpy(scratch->source, frame.source, 16);
    if (frame.ip == 6)
        *(u64 *)(scratch->source + 8) = 0;
    scratch->last = frame.ip == 4 ? frame.source[15] : 0;
}

// A packet's theoretical arrival time moves on by `interval` for each that passes (GCRA). Two CPUs that race for
// one source may let one packet too many through.
INLINE int over_limit(struct filter_scratch *scratch, const struct filter_rule *rule, u32 slot)
{
    struct filter_bucket_key key = {.slot = slot};
    u64 now = bpf_ktime_get_ns(), *due, next;

    __builtin_memcpy(key.source, scratch->source, 16);
    key.source[15] = rule->prefix < 32 ? 0 : scratch->last;
    due = bpf_map_lookup_elem(map(filter_buckets), &key);
    if (!due) {
        next = now + rule->interval;
        bpf_map_update_elem(map(filter_buckets), &key, &next, ANY);
        return 0;
    }
    next = *due > now ? *due : now;
    if (next - now > rule->burst)
        return 1;
    *due = next + rule->interval;
    return 0;
}

INLINE u32 verdict_of(struct filter_scratch *scratch, const struct filter_rule *rule, u32 slot)
{
    if (rule->action == FILTER_DROP || (rule->action == FILTER_LIMIT && over_limit(scratch, rule, slot)))
        return rule->mode == FILTER_ENFORCE ? FILTER_DROPPED : FILTER_WOULD_DROP;
    return FILTER_PASSED;
}

INLINE void count_and_sample(struct xdp_md *ctx, struct filter_scratch *scratch, u32 slot, u32 verdict,
                             u32 budget, u32 window)
{
    struct filter_counter *counter = bpf_map_lookup_elem(map(filter_counters), &slot);
    struct filter_sampler *sampler = bpf_map_lookup_elem(map(filter_samplers), &slot);
    u64 packets;
    u32 weight;

    if (!counter || !sampler)
        return;
    if (verdict >= FILTER_VERDICTS)
        return;
    counter->packets[verdict]++;
    counter->bytes[verdict] += ctx->data_end - ctx->data;
    if (verdict != FILTER_PASSED && scratch->followed)
        counter->established += call_own(ctx, scratch);
    packets = counter->packets[0] + counter->packets[1] + counter->packets[2];
    weight = sample_now(sampler, packets, budget, window);
    if (UNLIKELY(weight)) {
        scratch->sample = slot | verdict << 16;
        scratch->weight = weight;
        call_record(ctx, scratch);
    }
}

// One rule that matched. True: it decided.
INLINE int act_by_rule(struct xdp_md *ctx, struct filter_scratch *scratch, u32 slot)
{
    struct filter_rule *rule = bpf_map_lookup_elem(map(filter_rules), &slot);
    u32 verdict;

    if (!rule || rule->action == FILTER_NONE || rule->deadline <= scratch->now)
        return 0;
    verdict = verdict_of(scratch, rule, slot);
    count_and_sample(ctx, scratch, slot, verdict, rule->budget, scratch->window);
    if (verdict == FILTER_DROPPED)
        scratch->decided = FILTER_DECIDED_DROP;
    else if (rule->action == FILTER_PASS && rule->mode == FILTER_ENFORCE)
        scratch->decided = FILTER_DECIDED_PASS;
    return scratch->decided != 0;
}

// The next rule that matched. True: there is none, or it decided.
INLINE u64 filter_step(struct xdp_md *ctx, struct filter_scratch *scratch)
{
    s64 match = next_match(scratch);
    u32 at = match, *slot;

    if (match < 0)
        return 1;
    if (at >= FILTER_TABLE)
        return act_by_rule(ctx, scratch, at);
    slot = bpf_map_lookup_elem(map(filter_order), &at);
    return slot && act_by_rule(ctx, scratch, *slot);
}

// The allow-list comes first: what is on it was never matched.
INLINE u64 filter_act(struct xdp_md *ctx, struct filter_scratch *scratch)
{
    const struct filter_config *config = FILTER_CONFIG;
    int i;

    scratch->decided = 0;
    if (config->flags & FILTER_ALLOWING &&
        (call_source_sets(ctx, scratch) | call_destination_sets(ctx, scratch)) & FILTER_ALLOW) {
        scratch->allowed++;
    } else {
        scratch->now = bpf_jiffies64();
        scratch->window = config->window;
        scratch->followed = config->flags & FILTER_FOLLOWED;
        if (config->flags & FILTER_LIMITS)
            find_limited(ctx, scratch);
        for (i = 0; i < FILTER_RULES; i++)
            if (call_step(ctx, scratch))
                break;
    }
    forget_matches(scratch);
    return scratch->decided;
}

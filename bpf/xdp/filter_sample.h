// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Sampling. The gap to the next sample is drawn evenly between half and one and a half times 2^shift, so every
// packet has the same chance, 2^-shift. A sample stands for the packets since the one before; what that was too many
// for one sample the next ones pay, so that sums are right but for the last gap. A packet that is not sampled costs a
// decrement. The shift follows the packets of the last window and, within a window, doubles the gap whenever the
// budget is spent: a flood costs no more than a trickle. When the shift changes, what is left of a gap is stretched
// or shrunk with it, so that the change favours no packet.
#pragma once

#include "xdp/filter_maps.h"
#include "xdp/filter_state.h"

// Of mean 2^shift.
INLINE u64 draw_gap(u32 shift)
{
    u64 lot = bpf_get_prandom_u32(), mean = 1ULL << shift;

    if (!shift)
        return 1;
    return (mean >> 1) + (lot >> 31) + (lot & (mean - 1));
}

INLINE void set_shift(struct filter_sampler *sampler, u32 shift)
{
    u32 before = sampler->shift & 31;

    if (shift > before)
        sampler->left <<= shift - before;
    else if (shift < before)
        sampler->left = (sampler->left >> (before - shift)) + !(sampler->left >> (before - shift));
    sampler->shift = shift;
}

// How many bits a number below 2^63 has. Without branches.
INLINE u32 bit_length(u64 number)
{
    u64 length = 0, half;

#define HALVE(bits)                                                                                            \
    half = (((1ULL << (bits)) - 1 - number) >> 63) * (bits);                                                   \
    number >>= half;                                                                                           \
    length += half;
    HALVE(32) HALVE(16) HALVE(8) HALVE(4) HALVE(2) HALVE(1)
#undef HALVE
    KEEP(length);
    return length + number;
}

INLINE void next_window(struct filter_sampler *sampler, u64 packets, u32 budget, u64 now, u32 window)
{
    u32 shift = bit_length((packets - sampler->seen) / budget), most = 2U << (sampler->shift & 31);

    if ((u32)packets - sampler->counted > most) // more than a gap leaves behind: nobody sampled then
        sampler->counted = (u32)packets - most;
    if (shift >= FILTER_SHIFTS)
        shift = FILTER_SHIFTS - 1;
    sampler->seen = packets;
    sampler->end = now + window;
    sampler->taken = 0;
    set_shift(sampler, shift);
    if (!sampler->left)
        sampler->left = draw_gap(shift);
}

// One packet goes by. Whether nothing but that is to be done.
INLINE int count_down(struct filter_sampler *sampler, u32 budget)
{
    u64 left = sampler->left;

    if (UNLIKELY(!budget))
        return 1;
    if (UNLIKELY(left <= 1 || bpf_jiffies64() >= sampler->end))
        return 0;
    sampler->left = left - 1;
    return 1;
}

// How many packets a sample stands for. Not at once for the rest of a flood that was over before it: 2^shift is what
// its gap was about.
INLINE u32 weight_of(struct filter_sampler *sampler, u32 packets)
{
    u32 since = packets - sampler->counted, most = 4U << (sampler->shift & 31), weight = since < most ? since : most;

    sampler->counted += weight;
    return weight;
}

// One packet goes by. How many it stands for if it is to be sampled, else 0.
INLINE u32 sample_now(struct filter_sampler *sampler, u64 packets, u32 budget, u32 window)
{
    u32 shift, weight;
    u64 now;

    if (LIKELY(count_down(sampler, budget)))
        return 0;
    now = bpf_jiffies64();
    if (now >= sampler->end || !sampler->left)
        next_window(sampler, packets, budget, now, window);
    if (LIKELY(--sampler->left))
        return 0;
    shift = sampler->shift;
    weight = weight_of(sampler, packets);
    if (++sampler->taken >= budget && shift < FILTER_SHIFTS - 1) {
        sampler->taken = budget / 2;
        sampler->shift = shift + 1;
    }
    sampler->left = draw_gap(sampler->shift);
    return weight;
}

INLINE void count_top(struct filter_top_key *key, u64 packets, u64 bytes)
{
    struct filter_top_value *value = bpf_map_lookup_elem(map(filter_top), key), first = {packets, bytes};

    if (value) {
        __sync_fetch_and_add(&value->packets, packets);
        __sync_fetch_and_add(&value->bytes, bytes);
    } else {
        bpf_map_update_elem(map(filter_top), key, &first, ANY);
    }
}

INLINE void count_number(struct filter_top_key *key, u8 kind, u32 number, u64 packets, u64 bytes)
{
    key->kind = kind;
    *(u64 *)key->item = number;
    *(u64 *)(key->item + 8) = 0;
    count_top(key, packets, bytes);
}

// A third of the kinds for each sample, drawn by lot and weighted threefold: a sample costs two updates, not six.
INLINE void count_tops(const struct filter_frame *frame, u32 verdict, u64 length, u64 weight)
{
    struct filter_top_key key = {.verdict = verdict};
    u64 packets = 3 * weight, bytes = packets * length;
    u32 lot = bpf_get_prandom_u32() % 3;

    if (lot == 0) {
        count_number(&key, TOP_LENGTH, length, packets, bytes);
        if (frame->ip)
            count_number(&key, TOP_TTL, frame->ttl, packets, bytes);
        return;
    }
    if (!frame->ip)
        return;
    if (lot == 1) {
        if (frame->destination_port)
            count_number(&key, TOP_PORT, BE16(frame->destination_port), packets, bytes);
        key.kind = TOP_DESTINATION;
        __builtin_memcpy(key.item, frame->destination, 16);
        count_top(&key, packets, bytes);
        return;
    }
    key.kind = TOP_SOURCE;
    __builtin_memcpy(key.item, frame->source, 16);
    count_top(&key, packets, bytes);
    key.kind = TOP_SOURCE_NET; // /24 or /64
    if (frame->ip == 4)
        key.item[15] = 0;
    else
        *(u64 *)(key.item + 8) = 0;
    count_top(&key, packets, bytes);
}

INLINE u64 filter_record(struct xdp_md *ctx, struct filter_scratch *scratch)
{
    u32 what = scratch->sample;
    struct filter_frame frame = {};
    struct packet_sample_event *event;
    u32 length = ctx->data_end - ctx->data, verdict = what >> 16 & 0xff;
    u64 raw = length < FILTER_RAW ? length : FILTER_RAW;

    parse_frame(ctx, &frame);
    count_tops(&frame, verdict, length, scratch->weight);
    event = packet_sample_reserve();
    if (!event) {
        scratch->lost++;
        return 0;
    }
    event->ts = bpf_ktime_get_ns();
    __builtin_memcpy(event->source, frame.source, 16);
    __builtin_memcpy(event->destination, frame.destination, 16);
    event->weight = scratch->weight;
    event->length = length;
    event->ifindex = ctx->ingress_ifindex;
    event->slot = what;
    event->ethertype = frame.ethertype;
    event->source_port = BE16(frame.source_port);
    event->destination_port = BE16(frame.destination_port);
    event->fragment = frame.fragment;
    event->protocol = frame.protocol;
    event->ttl = frame.ttl;
    event->tcp_flags = frame.tcp_flags;
    event->verdict = verdict;
    event->established = is_own(&frame);
    __builtin_memset(event->raw, 0, FILTER_RAW);
    KEEP(raw);
    raw &= 2 * FILTER_RAW - 1;
    KEEP(raw);
    if (raw < 1 || raw > FILTER_RAW || bpf_xdp_load_bytes(ctx, 0, event->raw, raw))
        raw = 0;
    event->captured = raw;
    packet_sample_submit(event);
    return 0;
}

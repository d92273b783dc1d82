// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Which TCP connections to VIPs of the balancer on this host are known, for rules that ask for `state`: followed while
// there are such rules, see docs/decisions/0055. This is linked in beside a balancer alone.
#pragma once

#include "xdp/balancer_hash.h"
#include "xdp/filter_maps.h"

#define FOLLOW_SYN_AHEAD 0xffff // what a client may send before its first segment is seen
#define FOLLOW_STEP (1 << 20) // and acknowledge between two of its segments
#define FOLLOW_TICK_SHIFT 26 // of the clock, in ns
#define FOLLOW_REFILL 4096 // ticks in which a budget is full again, some five minutes
#define FOLLOW_BUDGET (FILTER_KNOWN / 2 / POSSIBLE_CPUS)

enum follow_kind { FOLLOW_ACK, FOLLOW_SYN, FOLLOW_DATA }; // what the segment was that filter_segments keeps
enum followed { FOLLOW_NO_VIP, FOLLOW_NEW, FOLLOW_FITS, FOLLOW_KNOWN };

INLINE struct filter_segment *place_of(const struct filter_flow *flow, u32 *tag)
{
    const u64 *words = (const void *)flow;
    u64 hash = (words[0] ^ words[0] >> 32) * HASH_A ^ words[1];
    u32 place;

    hash = (hash ^ hash >> 32) * HASH_B ^ words[3] ^ words[4]; // the VIP's address; ports
    hash = (hash ^ hash >> 32) * HASH_A;
    hash = (hash ^ hash >> 29) * HASH_B;
    *tag = (u32)hash | 1;
    place = hash >> (64 - FILTER_SEGMENTS_LOG2);
    return bpf_map_lookup_elem(map(filter_segments), &place);
}

// Whether the segment goes on from the one before it, as only somebody does who keeps a connection's numbers.
// Repeated, random or counted-up numbers do not.
INLINE int goes_on(const struct filter_segment *last, const struct filter_following *f)
{
    u32 ahead = f->sequence - last->next;

    if (last->tag != f->seen.tag || (f->flags & (TCP_SYN | TCP_RST | TCP_ACK)) != TCP_ACK)
        return 0;
    if (last->kind == FOLLOW_SYN)
        return ahead <= FOLLOW_SYN_AHEAD;
    if (ahead)
        return 0;
    return last->kind == FOLLOW_DATA || f->seen.kind == FOLLOW_DATA ||
           f->seen.acknowledged - last->acknowledged - 1 < FOLLOW_STEP;
}

INLINE u64 parse_segment(void *data, void *end, struct packet *p)
{
    u64 type = parse_ethernet(data, end, p), result = LB_not_ip;

    if (type == BE16(ETHERTYPE_IPV4))
        result = parse_ipv4(data, end, p);
    else if (type == BE16(ETHERTYPE_IPV6))
        result = parse_ipv6(data, end, p);
    if (result != LB_GO || p->protocol != IP_TCP || p->flags & PACKET_LATER_FRAGMENT)
        return LB_other_protocol;
    return parse_transport(data, end, p);
}

INLINE void read_segment(const struct tcp *tcp, struct packet *p, struct filter_following *f)
{
    u32 bytes = p->length - (p->l4 - p->l2) - (tcp->offset >> 4) * 4;

    f->flags = p->tcp_flags;
    f->sequence = BE32(tcp->sequence);
    f->seen.acknowledged = BE32(tcp->acknowledged);
    f->seen.next = f->sequence + !!(f->flags & TCP_SYN) + !!(f->flags & TCP_FIN) + bytes;
    f->seen.kind = f->flags & TCP_SYN ? FOLLOW_SYN : f->seen.next != f->sequence ? FOLLOW_DATA : FOLLOW_ACK;
}

// What is known of the flow that a frame belongs to; `last`: where its last segment is kept.
INLINE int look_at(struct xdp_md *ctx, struct filter_following *f, struct filter_segment **last)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    struct packet p = {};
    struct tcp *tcp;
    struct lb_vip *vip;

    if (parse_segment(data, end, &p) != LB_GO)
        return FOLLOW_NO_VIP;
    vip = find_vip(&p.key);
    tcp = data + p.l4;
    if (!vip || (void *)(tcp + 1) > end)
        return FOLLOW_NO_VIP;
    copy16(f->flow.source, p.source);
    copy16(f->flow.destination, p.key.address);
    f->flow.ports = p.ports;
    read_segment(tcp, &p, f);
    *last = place_of(&f->flow, &f->seen.tag);
    if (!*last)
        return FOLLOW_NO_VIP;
    if (!(f->flags & TCP_SYN) && bpf_map_lookup_elem(map(filter_known), &f->flow))
        return FOLLOW_KNOWN;
    return goes_on(*last, f) ? FOLLOW_FITS : FOLLOW_NEW;
}

// The next segment will be held against this one. A reset is held against nothing.
INLINE void keep_segment(struct filter_segment *last, const struct filter_following *f)
{
    if ((f->flags & (TCP_SYN | TCP_RST)) == TCP_SYN || (f->flags & (TCP_SYN | TCP_RST | TCP_ACK)) == TCP_ACK)
        *last = f->seen;
}

// May this CPU make an entry more? Who makes up connections pushes nobody out who is known.
INLINE int spend(struct filter_scratch *scratch)
{
    u64 now = bpf_ktime_get_coarse_ns() >> FOLLOW_TICK_SHIFT, gained;

    gained = (now - scratch->follow_tick) * FOLLOW_BUDGET / FOLLOW_REFILL;
    if (gained) {
        scratch->follow_tick = now;
        scratch->follow_left += gained;
        if (scratch->follow_left > FOLLOW_BUDGET)
            scratch->follow_left = FOLLOW_BUDGET;
    }
    if (!scratch->follow_left)
        return 0;
    scratch->follow_left -= 1;
    return 1;
}

// A frame that passed.
INLINE u64 filter_follow(struct xdp_md *ctx, struct filter_scratch *scratch)
{
    struct filter_following *f = &scratch->following;
    struct filter_segment *last = 0;
    int state = look_at(ctx, f, &last);
    u32 one = 1;

    if (state == FOLLOW_NO_VIP || state == FOLLOW_KNOWN)
        return 0;
    if (state == FOLLOW_FITS && spend(scratch))
        bpf_map_update_elem(map(filter_known), &f->flow, &one, ANY);
    if (last)
        keep_segment(last, f);
    return 0;
}

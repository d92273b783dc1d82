// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Layer-4 load balancer: parse, find the VIP, choose a backend, encapsulate, send.
// Maps are balancer_maps.h; what every verdict is called, balancer_consts.h.

#include "balancer_encapsulate.h"
#include "balancer_hash.h"
#include "balancer_quic.h"
#include "balancer_sample.h"
#include "balancer_too_big.h"
#include "balancer_track.h"

// Not TCP, not UDP, or a fragment. LB_GO: a flow is in p.
INLINE u64 parse_uncommon(void *data, void *end, struct packet *p)
{
    u64 icmp = p->flags & PACKET_IPV6 ? IP_ICMPV6 : IP_ICMP;

    if (!find_address(p))
        return LB_not_vip;
    if (p->flags & PACKET_LATER_FRAGMENT)
        return parse_fragment(p);
    if (p->protocol == icmp && !(p->flags & PACKET_FIRST_FRAGMENT))
        return handle_icmp(data, end, p);
    return LB_other_protocol;
}

INLINE u64 parse(void *data, void *end, struct packet *p)
{
    u64 type = parse_ethernet(data, end, p), result;

    if (LIKELY(type == BE16(ETHERTYPE_IPV4)))
        result = parse_ipv4(data, end, p);
    else if (type == BE16(ETHERTYPE_IPV6))
        result = parse_ipv6(data, end, p);
    else
        return LB_not_ip;
    if (UNLIKELY(result != LB_GO))
        return result;
    if (LIKELY((p->protocol == IP_TCP || p->protocol == IP_UDP) && !(p->flags & PACKET_LATER_FRAGMENT)))
        return parse_transport(data, end, p);
    return parse_uncommon(data, end, p);
}

// The ways around the ring that few VIPs ask for. True: the choice is made.
INLINE int choose_specially(struct xdp_md *ctx, struct packet *p, struct lb_vip *vip, struct choice *to)
{
    if (vip->flags & LB_VIP_SOURCE_ROUTES && find_by_source(p, vip, to))
        return 1;
    if (!(vip->flags & LB_VIP_QUIC) || p->key.protocol != IP_UDP)
        return 0;
    if (p->flags & (PACKET_LATER_FRAGMENT | PACKET_ICMP_ERROR))
        return 0;
    return find_by_quic_id(ctx, p, vip, to);
}

INLINE void choose_from_ring(struct packet *p, struct lb_vip *vip, u64 hash, struct choice *to)
{
    u32 number = vip->number, index = slot_of(hash);
    void *ring = bpf_map_lookup_elem(map(lb_rings), &number);
    struct lb_slot *slot;

    if (!ring)
        return;
    slot = bpf_map_lookup_elem(ring, &index);
    if (!slot)
        return;
    to->backend = *(u64 *)slot;
    if (UNLIKELY(to->backend > 0xffff))
        choose_in_changed_slot(slot, p, vip, to);
}

INLINE int forward(struct xdp_md *ctx, struct packet *p, struct lb_vip *vip, struct choice *choice, u64 hash)
{
    u32 index = choice->backend;
    struct lb_backend *to = bpf_map_lookup_elem(map(lb_backends), &index);
    struct lb_counters *counters;

    if (UNLIKELY(!to || !to->flags))
        return finish(vip->number, LB_no_real);
    if (UNLIKELY(p->length > to->mtu))
        return finish(vip->number, tell_too_big(ctx, p, to->mtu));
    if (UNLIKELY(!encapsulate(ctx, p, to, hash)))
        return finish(vip->number, LB_no_headroom);
    counters = bpf_map_lookup_elem(map(lb_counters), &index);
    if (counters) {
        counters->packets += 1;
        counters->bytes += p->length;
        if (p->flags & PACKET_SYN)
            counters->flows += 1;
        if (UNLIKELY(!(counters->packets & vip->sample_mask)))
            sample_flow(p, vip, to, choice, hash);
    }
    if (UNLIKELY(to->flags & LB_BACKEND_REDIRECT))
        return bpf_redirect(to->ifindex, 0);
    return XDP_TX;
}

// What was unusual about the packet, beside the backend's own counter.
INLINE void count_unusual(struct packet *p, struct lb_vip *vip, u64 reason)
{
    if (reason != LB_GO)
        count_reason(vip->number, reason);
    if (p->flags & PACKET_LATER_FRAGMENT)
        count_reason(vip->number, LB_fragment);
    if (p->flags & PACKET_ICMP_ERROR)
        count_reason(vip->number, LB_icmp_error);
    if (p->flags & PACKET_FIRST_FRAGMENT)
        remember_fragment(p);
}

// Only what is for a VIP may be dropped: the rest is the host's own.
INLINE int finish_early(struct packet *p, u64 reason)
{
    if ((reason == LB_malformed || reason == LB_truncated) && !find_address(p))
        reason = LB_not_vip;
    return finish(NO_VIP, reason);
}

XDP(balancer)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    struct choice choice = {.reason = LB_GO};
    struct packet p = {};
    struct lb_vip *vip;
    u64 result = parse(data, end, &p), hash, chosen = 0;

    if (UNLIKELY(result != LB_GO))
        return finish_early(&p, result);
    vip = find_vip(&p.key);
    if (UNLIKELY(!vip))
        return finish(NO_VIP, LB_not_vip);
    hash = flow_hash(&p, vip->flags & LB_VIP_SOURCE_HASH ? p.ports & 0xffff0000 : p.ports, vip->seed);
    if (UNLIKELY(vip->flags & LB_VIP_SLOW))
        chosen = choose_specially(ctx, &p, vip, &choice);
    if (LIKELY(!chosen))
        choose_from_ring(&p, vip, hash, &choice);
    if (UNLIKELY(choice.reason != LB_GO || p.flags & ~(u64)(PACKET_IPV6 | PACKET_SYN)))
        count_unusual(&p, vip, choice.reason);
    return forward(ctx, &p, vip, &choice, hash);
}

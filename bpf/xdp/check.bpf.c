// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Health checks over the path that carries data: a socket of this host whose mark names a backend has its packets
// encapsulated on their way out exactly as the balancer would. The answer comes straight from the real.

#include "balancer_encapsulate.h"

#define CHECK_MARK 0x62000000 // upper byte of the marks; the lower two are the backend's number
#define TC_OK 0
#define TC_DROP 2

INLINE u64 class_of(void *l3, u64 ipv6)
{
    return ipv6 ? BE32(*(u32 *)l3) >> 20 & 0xff : *((u8 *)l3 + 1);
}

INLINE u64 room_flags(const struct lb_backend *to)
{
    u64 flags = to->flags & LB_BACKEND_IPV6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;

    return to->flags & LB_BACKEND_GUE ? flags | BPF_F_ADJ_ROOM_ENCAP_L4_UDP : flags;
}

INLINE int put_on(struct __sk_buff *ctx, struct packet *p, const struct lb_backend *to, u64 over, u64 hash)
{
    u64 gue = to->flags & LB_BACKEND_GUE, inner = p->flags & PACKET_IPV6 ? IP_IPV6 : IP_IPIP;
    u64 protocol = gue ? IP_UDP : inner;
    void *data, *end;

    if (bpf_skb_pull_data(ctx, 0)) // make what is linear writable
        return TC_DROP;
    data = (void *)(long)ctx->data;
    end = (void *)(long)ctx->data_end;
    if (data + MAX_L2_BYTES + IPV4_BYTES + UDP_BYTES > end)
        return TC_DROP;
    if (to->flags & LB_BACKEND_IPV6) {
        if (data + MAX_L2_BYTES + IPV6_BYTES + UDP_BYTES > end)
            return TC_DROP;
        write_ethernet(data, ETHERNET_BYTES, 0, to->macs, BE16(ETHERTYPE_IPV6));
        write_ipv6(data + ETHERNET_BYTES, p, to, hash, p->length + over - IPV6_BYTES, protocol);
        if (gue)
            write_gue(data + ETHERNET_BYTES + IPV6_BYTES, hash, p->length);
    } else {
        write_ethernet(data, ETHERNET_BYTES, 0, to->macs, BE16(ETHERTYPE_IPV4));
        write_ipv4(data + ETHERNET_BYTES, p, to, hash, p->length + over, protocol);
        if (gue)
            write_gue(data + ETHERNET_BYTES + IPV4_BYTES, hash, p->length);
    }
    return to->flags & LB_BACKEND_REDIRECT ? bpf_redirect(to->ifindex, 0) : TC_OK;
}

TC(check)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    u32 mark = ctx->mark, index = mark & 0xffff;
    struct lb_backend *to;
    struct packet p = {};
    u64 over;

    if ((mark & 0xff000000) != CHECK_MARK)
        return TC_OK;
    to = bpf_map_lookup_elem(map(lb_backends), &index);
    if (!to || !to->mtu || data + ETHERNET_BYTES + IPV4_BYTES > end)
        return TC_DROP;
    if (*(u16 *)(data + 12) == BE16(ETHERTYPE_IPV6))
        p.flags = PACKET_IPV6;
    else if (*(u16 *)(data + 12) != BE16(ETHERTYPE_IPV4))
        return TC_OK;
    p.class = class_of(data + ETHERNET_BYTES, p.flags);
    p.length = ctx->len - ETHERNET_BYTES;
    over = to->flags & LB_BACKEND_GUE ? UDP_BYTES : 0;
    over += to->flags & LB_BACKEND_IPV6 ? IPV6_BYTES : IPV4_BYTES;
    if (bpf_skb_adjust_room(ctx, (s32)over, BPF_ADJ_ROOM_MAC, room_flags(to)))
        return TC_DROP;
    return put_on(ctx, &p, to, over, (u64)mark * HASH_A >> 16);
}

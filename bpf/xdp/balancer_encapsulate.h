// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Outer headers: IPv4 or IPv6, bare or with UDP (GUE variant 1: the IP packet follows the UDP header at once).
// Bare headers vary the low bits of the source with the flow, GUE its source port, so that receivers spread.
#pragma once

#include "balancer_hash.h"

// Addresses of the next hop, VLAN tags as they came, the outer header's type.
INLINE void write_ethernet(void *data, u64 l2, u64 tags, const u8 *macs, u16 type)
{
    *(u64 *)data = *(const u64 *)macs;
    *(u32 *)(data + 8) = *(const u32 *)(macs + 8);
    if (LIKELY(l2 == ETHERNET_BYTES)) {
        *(u16 *)(data + 12) = type;
        return;
    }
    *(u32 *)(data + 12) = (u32)tags;
    if (l2 == ETHERNET_BYTES + VLAN_BYTES) {
        *(u16 *)(data + 16) = type;
        return;
    }
    *(u32 *)(data + 16) = (u32)(tags >> 32);
    *(u16 *)(data + 20) = type;
}

// The tags of a frame, as many as there are.
INLINE u64 read_tags(void *data, void *end, u64 l2)
{
    u64 tags;

    if (LIKELY(l2 == ETHERNET_BYTES) || data + MAX_L2_BYTES > end)
        return 0;
    tags = *(u32 *)(data + 12);
    if (l2 > ETHERNET_BYTES + VLAN_BYTES)
        tags |= (u64) * (u32 *)(data + 16) << 32;
    return tags;
}

INLINE void write_gue(void *udp, u64 hash, u64 length)
{
    *(u32 *)udp = BE16(0x8000 | (hash & 0x7fff)) | (u32)BE16(LB_GUE_PORT) << 16;
    *(u32 *)(udp + 4) = BE16(length + UDP_BYTES); // no checksum: the inner packet has its own (RFC 6935)
}

INLINE void write_ipv4(void *outer, struct packet *p, const struct lb_backend *to, u64 hash, u64 length,
                       u64 protocol)
{
    u64 varied = (u32)hash & to->source_mask;
    u64 total = BE16(length), tos = p->class;
    u64 sum = to->checksum + total + (tos << 8) + (protocol << 8) + (varied & 0xffff) + (varied >> 16);

    *(u64 *)outer = 0x45 | tos << 8 | total << 16 | (u64)BE16(IPV4_DONT_FRAGMENT) << 48;
    *(u32 *)(outer + 8) = LB_TTL | protocol << 8 | (u32)csum_fold(sum) << 16;
    *(u32 *)(outer + 12) = *(const u32 *)(to->source + 12) | (u32)varied;
    *(u32 *)(outer + 16) = *(const u32 *)(to->address + 12);
}

INLINE void write_ipv6(void *outer, struct packet *p, const struct lb_backend *to, u64 hash, u64 length,
                       u64 protocol)
{
    u32 first = BE32(6U << 28 | (u32)p->class << 20 | ((u32)hash & 0xfffff));

    *(u32 *)outer = first;
    *(u32 *)(outer + 4) = BE16(length) | protocol << 16 | LB_TTL << 24;
    copy16(outer + 8, to->source);
    *(u32 *)(outer + 20) |= (u32)hash & to->source_mask;
    copy16(outer + 24, to->address);
}

// Puts the outer header on; false if there was no room.
INLINE int encapsulate(struct xdp_md *ctx, struct packet *p, const struct lb_backend *to, u64 hash)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    u64 tags = read_tags(data, end, p->l2), l2 = p->l2, gue = to->flags & LB_BACKEND_GUE;
    u64 over = gue ? UDP_BYTES : 0, inner = p->flags & PACKET_IPV6 ? IP_IPV6 : IP_IPIP;
    u64 protocol = gue ? IP_UDP : inner;

    over += to->flags & LB_BACKEND_IPV6 ? IPV6_BYTES : IPV4_BYTES;
    if (bpf_xdp_adjust_head(ctx, -(int)over))
        return 0;
    data = (void *)(long)ctx->data;
    end = (void *)(long)ctx->data_end;
    if (to->flags & LB_BACKEND_IPV6) {
        if (data + MAX_L2_BYTES + IPV6_BYTES + UDP_BYTES > end)
            return 0;
        write_ethernet(data, l2, tags, to->macs, BE16(ETHERTYPE_IPV6));
        write_ipv6(data + l2, p, to, hash, p->length + over - IPV6_BYTES, protocol);
        if (gue)
            write_gue(data + l2 + IPV6_BYTES, hash, p->length);
    } else {
        if (data + MAX_L2_BYTES + IPV4_BYTES + UDP_BYTES > end)
            return 0;
        write_ethernet(data, l2, tags, to->macs, BE16(ETHERTYPE_IPV4));
        write_ipv4(data + l2, p, to, hash, p->length + over, protocol);
        if (gue)
            write_gue(data + l2 + IPV4_BYTES, hash, p->length);
    }
    return 1;
}

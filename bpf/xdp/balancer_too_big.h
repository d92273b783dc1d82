// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// A packet that does not fit with its outer header: the sender is told the size that does, in the VIP's name.
// RFC 1191 wants this for IPv4 packets that may not be fragmented; those that may are answered too, since
// nothing on this path could fragment them and silence would lose them all.
#pragma once

#include "balancer_icmp.h"

// Quotes as long as the standards allow (576 and 1280 bytes in all), in words that csum_diff takes.
#define QUOTE4_BYTES 504
#define QUOTE6_BYTES 1232
#define CSUM_BYTES 512 // most that csum_diff takes at once on all kernels

// Leaves exactly `quote` bytes of the IP packet and `room` bytes before them for new headers.
INLINE int make_room(struct xdp_md *ctx, u64 l2, u64 quote, u64 room)
{
    long length = (long)ctx->data_end - (long)ctx->data;

    KEEP(length); // or the compiler would subtract the end from something else, which the verifier forbids
    return !bpf_xdp_adjust_tail(ctx, (int)(l2 + quote - length)) && !bpf_xdp_adjust_head(ctx, -(int)room);
}

// The old Ethernet header, tags included, moves to the new start, its addresses swapped.
INLINE void move_ethernet(void *data, void *old, u64 l2)
{
    u64 tags = *(u64 *)(old + 12);
    u16 type = *(u16 *)(old + 20);

    *(u64 *)data = *(u64 *)old;
    *(u32 *)(data + 8) = *(u32 *)(old + 8);
    swap_macs(data);
    *(u16 *)(data + 12) = (u16)tags;
    if (l2 > ETHERNET_BYTES)
        *(u32 *)(data + 14) = (u32)(tags >> 16);
    if (l2 > ETHERNET_BYTES + VLAN_BYTES) {
        *(u16 *)(data + 18) = (u16)(tags >> 48);
        *(u16 *)(data + 20) = type;
    }
}

INLINE u64 tell_ipv4(struct xdp_md *ctx, struct packet *p, u64 mtu)
{
    u64 room = IPV4_BYTES + ICMP_BYTES;
    struct ipv4 *ip;
    struct icmp *icmp;
    void *data, *end;

    if (!make_room(ctx, p->l2, QUOTE4_BYTES, room))
        return LB_too_big_silent;
    data = (void *)(long)ctx->data;
    end = (void *)(long)ctx->data_end;
    if (data + MAX_L2_BYTES + IPV4_BYTES + ICMP_BYTES > end)
        return LB_too_big_silent;
    move_ethernet(data, data + room, p->l2);
    ip = data + p->l2;
    icmp = (void *)(ip + 1);
    if ((void *)icmp + ICMP_BYTES + QUOTE4_BYTES > end)
        return LB_too_big_silent;
    *ip = (struct ipv4){.version_length = 0x45, .ttl = LB_TTL, .protocol = IP_ICMP};
    ip->length = BE16(IPV4_BYTES + ICMP_BYTES + QUOTE4_BYTES);
    ip->source = (u32)(*(u64 *)(p->key.address + 8) >> 32);
    ip->destination = (u32)(p->source[1] >> 32);
    ip->checksum = csum_fold(csum_add(0, ip, IPV4_BYTES));
    *icmp = (struct icmp){.type = ICMP4_UNREACHABLE, .code = 4, .mtu = BE16(mtu)};
    icmp->checksum = csum_fold(csum_add(0, icmp, ICMP_BYTES + QUOTE4_BYTES));
    return LB_too_big;
}

INLINE u64 tell_ipv6(struct xdp_md *ctx, struct packet *p, u64 mtu)
{
    u64 room = IPV6_BYTES + ICMP_BYTES;
    struct ipv6 *ip;
    struct icmp *icmp;
    void *data, *end;
    u64 sum;

    if (!make_room(ctx, p->l2, QUOTE6_BYTES, room))
        return LB_too_big_silent;
    data = (void *)(long)ctx->data;
    end = (void *)(long)ctx->data_end;
    if (data + MAX_L2_BYTES + IPV6_BYTES + ICMP_BYTES > end)
        return LB_too_big_silent;
    move_ethernet(data, data + room, p->l2);
    ip = data + p->l2;
    icmp = (void *)(ip + 1);
    if ((void *)icmp + ICMP_BYTES + QUOTE6_BYTES > end)
        return LB_too_big_silent;
    ip->version_class_label = BE32(6U << 28);
    ip->length = BE16(ICMP_BYTES + QUOTE6_BYTES);
    ip->next = IP_ICMPV6;
    ip->hops = LB_TTL;
    copy16(ip->source, p->key.address);
    copy16(ip->destination, p->source);
    *icmp = (struct icmp){.type = ICMP6_TOO_BIG, .mtu = BE16(mtu)};
    sum = BE16(ICMP_BYTES + QUOTE6_BYTES) + BE16(IP_ICMPV6);
    sum = csum_add(sum, ip->source, 32);
    sum = csum_add(sum, icmp, CSUM_BYTES);
    sum = csum_add(sum, (void *)icmp + CSUM_BYTES, CSUM_BYTES);
    sum = csum_add(sum, (void *)icmp + 2 * CSUM_BYTES, ICMP_BYTES + QUOTE6_BYTES - 2 * CSUM_BYTES);
    icmp->checksum = csum_fold(sum);
    return LB_too_big;
}

INLINE u64 tell_too_big(struct xdp_md *ctx, struct packet *p, u64 mtu)
{
    if (p->flags & (PACKET_ICMP_ERROR | PACKET_LATER_FRAGMENT))
        return LB_too_big_silent;
    return p->flags & PACKET_IPV6 ? tell_ipv6(ctx, p, mtu) : tell_ipv4(ctx, p, mtu);
}

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// ICMP to a VIP: echo is answered here; an error goes to the real whose answer caused it.
#pragma once

#include "balancer_vip.h"

INLINE void swap_macs(void *data)
{
    u64 low = *(u64 *)data;
    u32 high = *(u32 *)(data + 8);

    *(u32 *)data = (u32)(low >> 48) | high << 16;
    *(u16 *)(data + 4) = (u16)(high >> 16);
    *(u32 *)(data + 6) = (u32)low;
    *(u16 *)(data + 10) = (u16)(low >> 32);
}

// Adds to a header's checksum what changed in one of its 16-bit words (RFC 1624).
INLINE u16 csum_replace(u16 checksum, u16 before, u16 after)
{
    return csum_fold((u64)(u16)~checksum + (u16)~before + after);
}

INLINE void answer_echo(void *data, void *end, struct packet *p)
{
    void *l3 = data + p->l2;
    struct icmp *icmp = data + p->l4;
    struct ipv4 *v4 = l3;
    struct ipv6 *v6 = l3;
    u16 before = *(u16 *)icmp, ttl;

    if (p->flags & PACKET_IPV6) {
        icmp->type = ICMP6_ECHO_REPLY;
        copy16(v6->source, p->key.address);
        copy16(v6->destination, p->source);
        v6->hops = LB_TTL;
    } else {
        icmp->type = ICMP4_ECHO_REPLY;
        ttl = *(u16 *)&v4->ttl;
        v4->source = (u32)(*(u64 *)(p->key.address + 8) >> 32);
        v4->destination = (u32)(p->source[1] >> 32);
        v4->ttl = LB_TTL;
        v4->checksum = csum_replace(v4->checksum, ttl, *(u16 *)&v4->ttl);
    }
    icmp->checksum = csum_replace(icmp->checksum, before, *(u16 *)icmp);
    swap_macs(data);
}

INLINE int is_echo(struct icmp *icmp, struct packet *p)
{
    return icmp->type == (p->flags & PACKET_IPV6 ? ICMP6_ECHO : ICMP4_ECHO) && icmp->code == 0;
}

INLINE int is_error(struct icmp *icmp, struct packet *p)
{
    if (p->flags & PACKET_IPV6)
        return icmp->type >= ICMP6_UNREACHABLE && icmp->type <= ICMP6_PARAMETER;
    return icmp->type == ICMP4_UNREACHABLE || icmp->type == ICMP4_TIME_EXCEEDED || icmp->type == ICMP4_PARAMETER;
}

// The IP header quoted by an error, sent by the VIP to the client: the flow is the other way round.
INLINE u64 parse_quoted_ip(void *data, void *end, struct packet *p)
{
    void *quoted = data + p->l4 + ICMP_BYTES;
    struct ipv4 *v4 = quoted;
    struct ipv6 *v6 = quoted;

    if (p->flags & PACKET_IPV6) {
        if ((void *)(v6 + 1) > end)
            return 0;
        copy16(p->source, v6->destination);
        copy16(p->key.address, v6->source);
        p->protocol = v6->next;
        return IPV6_BYTES;
    }
    if ((void *)(v4 + 1) > end || (v4->version_length & 15) < 5)
        return 0;
    if (v4->fragment & BE16(IPV4_FRAGMENT_OFFSET)) // what follows are no ports
        return 0;
    set_ipv4_source(p, v4->destination);
    set_ipv4_key(p, v4->source);
    p->protocol = v4->protocol;
    return (v4->version_length & 15) * 4;
}

INLINE u64 parse_error(void *data, void *end, struct packet *p)
{
    u64 header = parse_quoted_ip(data, end, p);
    u32 *ports = data + p->l4 + ICMP_BYTES + header;

    if (!header || (p->protocol != IP_TCP && p->protocol != IP_UDP))
        return LB_other_icmp;
    if ((void *)(ports + 1) > end)
        return LB_truncated;
    p->ports = swap_ports(*ports);
    p->flags |= PACKET_ICMP_ERROR;
    set_port_key(p);
    return LB_GO;
}

// LB_GO where an error is to be forwarded with the flow now in p.
INLINE u64 handle_icmp(void *data, void *end, struct packet *p)
{
    struct icmp *icmp = data + p->l4;

    if ((void *)(icmp + 1) > end)
        return LB_truncated;
    if (is_error(icmp, p))
        return parse_error(data, end, p);
    if (!is_echo(icmp, p))
        return LB_other_icmp;
    answer_echo(data, end, p);
    return LB_echo_reply;
}

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// From a frame to the flow it belongs to. An ICMP error belongs to the flow it is about.
#pragma once

#include "balancer_consts.h"
#include "balancer_maps.h"
#include "headers.h"
#include "packet.h"

enum packet_flag {
    PACKET_IPV6 = 1,
    PACKET_SYN = 2, // the first packet of a TCP flow
    PACKET_FIRST_FRAGMENT = 4,
    PACKET_LATER_FRAGMENT = 8,
    PACKET_ICMP_ERROR = 16, // key, source and ports are those of the flow, the frame is the router's
};

struct packet {
    u64 l2; // bytes before the IP header, tags included
    u64 l4; // where the transport header starts
    u64 length; // of the IP packet
    u64 flags;
    u64 source[2]; // the client, mapped
    u64 ports; // the client's and the VIP's, as on the wire
    u64 fragment_id;
    u64 class; // type of service or traffic class
    u64 protocol; // the last header's
    u64 tcp_flags;
    struct lb_vip_key ALIGNED key;
};

#define MAPPED_PREFIX 0xffff0000ULL // bytes 8 to 11 of a mapped address, loaded little-endian
#define MAX_EXTENSIONS 8

INLINE void set_ipv4_key(struct packet *p, u32 destination)
{
    *(u64 *)p->key.address = 0;
    *(u64 *)(p->key.address + 8) = MAPPED_PREFIX | (u64)destination << 32;
}

INLINE void set_ipv4_source(struct packet *p, u32 source)
{
    p->source[0] = 0;
    p->source[1] = MAPPED_PREFIX | (u64)source << 32;
}

INLINE void set_port_key(struct packet *p)
{
    *(u32 *)(p->key.address + 16) = (u32)(p->ports >> 16) | (u32)(p->protocol << 16) | 1 << 24;
}

INLINE u64 swap_ports(u64 ports)
{
    return (ports >> 16 & 0xffff) | (ports & 0xffff) << 16;
}

// Ethernet and up to two VLAN tags: sets l2, returns the type in network order.
INLINE u64 parse_ethernet(void *data, void *end, struct packet *p)
{
    u64 type;

    if (data + ETHERNET_BYTES > end)
        return 0;
    type = *(u16 *)(data + 12);
    p->l2 = ETHERNET_BYTES;
#pragma unroll
    for (int tag = 0; tag < 2; tag++) {
        if (LIKELY(type != BE16(ETHERTYPE_VLAN) && type != BE16(ETHERTYPE_QINQ)))
            break;
        if (data + ETHERNET_BYTES + VLAN_BYTES * (tag + 1) > end)
            return 0;
        p->l2 = ETHERNET_BYTES + VLAN_BYTES * (tag + 1);
        type = *(u16 *)(data + 16 + VLAN_BYTES * tag);
    }
    return type;
}

INLINE u64 parse_ipv4(void *data, void *end, struct packet *p)
{
    struct ipv4 *ip = data + p->l2;
    u64 header, fragment;

    if ((void *)(ip + 1) > end)
        return LB_malformed;
    header = (ip->version_length & 15) * 4;
    p->length = BE16(ip->length);
    p->class = ip->tos;
    p->protocol = ip->protocol;
    set_ipv4_source(p, ip->source);
    set_ipv4_key(p, ip->destination);
    if (UNLIKELY(ip->version_length >> 4 != 4 || header < IPV4_BYTES || p->length < header))
        return LB_malformed;
    if (UNLIKELY((void *)ip + p->length > end))
        return LB_malformed;
    p->l4 = p->l2 + header;
    fragment = ip->fragment & BE16(IPV4_FRAGMENT_OFFSET | IPV4_MORE_FRAGMENTS);
    if (UNLIKELY(fragment)) {
        p->fragment_id = ip->id;
        p->flags |= fragment & BE16(IPV4_FRAGMENT_OFFSET) ? PACKET_LATER_FRAGMENT : PACKET_FIRST_FRAGMENT;
    }
    return LB_GO;
}

// One extension header at l4: moves behind it. False at the end of the chain or of the packet.
INLINE int skip_extension(void *data, void *end, struct packet *p)
{
    u64 kind = p->protocol;
    u8 *header = data + p->l4;
    u64 offset;

    if (kind != IP_HOP_OPTIONS && kind != IP_ROUTING && kind != IP_FRAGMENT && kind != IP_AUTH &&
        kind != IP_OPTIONS)
        return 0;
    if ((void *)header + 8 > end)
        return 0;
    p->protocol = header[0];
    if (kind != IP_FRAGMENT) {
        p->l4 += kind == IP_AUTH ? (header[1] + 2) * 4 : (header[1] + 1) * 8;
        return p->l4 < 4096;
    }
    p->l4 += 8;
    offset = BE16(*(u16 *)(header + 2));
    p->fragment_id = *(u32 *)(header + 4);
    if (offset >> 3)
        p->flags |= PACKET_LATER_FRAGMENT;
    else if (offset & 1)
        p->flags |= PACKET_FIRST_FRAGMENT;
    return !(p->flags & PACKET_LATER_FRAGMENT);
}

INLINE u64 parse_ipv6(void *data, void *end, struct packet *p)
{
    struct ipv6 *ip = data + p->l2;

    if ((void *)(ip + 1) > end)
        return LB_malformed;
    p->length = BE16(ip->length) + IPV6_BYTES;
    p->class = BE32(ip->version_class_label) >> 20 & 0xff;
    p->protocol = ip->next;
    copy16(p->source, ip->source);
    copy16(p->key.address, ip->destination);
    p->flags |= PACKET_IPV6;
    if (UNLIKELY((ip->version_class_label & 0xf0) != 0x60 || (void *)ip + p->length > end))
        return LB_malformed;
    p->l4 = p->l2 + IPV6_BYTES;
    if (LIKELY(p->protocol == IP_TCP || p->protocol == IP_UDP))
        return LB_GO;
#pragma unroll
    for (int i = 0; i < MAX_EXTENSIONS; i++)
        if (!skip_extension(data, end, p))
            break;
    return LB_GO;
}

// Ports and TCP flags at l4. The whole header must be there, and inside the IP packet.
INLINE u64 parse_transport(void *data, void *end, struct packet *p)
{
    void *header = data + p->l4;
    u64 bytes = p->l4 - p->l2;

    if (LIKELY(p->protocol == IP_TCP)) {
        if (UNLIKELY(header + sizeof(struct tcp) > end || bytes + sizeof(struct tcp) > p->length))
            return LB_truncated;
        p->tcp_flags = ((struct tcp *)header)->flags;
        if ((p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
            p->flags |= PACKET_SYN;
    } else if (UNLIKELY(header + UDP_BYTES > end || bytes + UDP_BYTES > p->length)) {
        return LB_truncated;
    }
    p->ports = *(u32 *)header;
    set_port_key(p);
    return LB_GO;
}

// A later fragment has no ports: the first one's are remembered.
INLINE u64 parse_fragment(struct packet *p)
{
    struct lb_fragment_key ALIGNED key = {.id = p->fragment_id, .protocol = p->protocol};
    u32 *ports;

    copy16(key.source, p->source);
    copy16(key.destination, p->key.address);
    ports = bpf_map_lookup_elem(map(lb_fragments), &key);
    if (!ports)
        return LB_unknown_fragment;
    p->ports = *ports;
    set_port_key(p);
    return LB_GO;
}

INLINE void remember_fragment(struct packet *p)
{
    struct lb_fragment_key ALIGNED key = {.id = p->fragment_id, .protocol = p->protocol};
    u32 ports = p->ports;

    copy16(key.source, p->source);
    copy16(key.destination, p->key.address);
    bpf_map_update_elem(map(lb_fragments), &key, &ports, ANY);
}

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// The fields of a frame that records and the connection table want. Off the straight path: few frames come here.
#pragma once

#include "xdp/filter_structs.h"

INLINE void mapped(u8 *to, const void *address)
{
    *(u64 *)to = 0;
    *(u32 *)(to + 8) = BE32(0xffff);
    *(u32 *)(to + 12) = *(const u32 *)address;
}

INLINE void parse_ports(void *at, void *end, struct filter_frame *frame)
{
    if (frame->protocol != IP_TCP && frame->protocol != IP_UDP)
        return;
    if (at + 4 > end) {
        frame->payload = 0xffff; // nobody knows
        return;
    }
    frame->source_port = *(u16 *)at;
    frame->destination_port = *(u16 *)(at + 2);
    frame->has = FRAME_PORTS;
    if (frame->protocol == IP_UDP) {
        frame->payload += UDP_BYTES;
    } else if (at + 14 <= end) {
        frame->tcp_flags = *(u8 *)(at + 13);
        frame->has = FRAME_PORTS | FRAME_TCP;
        frame->transport = (*(u8 *)(at + 12) >> 4) * 4;
        frame->payload += frame->transport;
    } else {
        frame->payload = 0xffff;
    }
}

// What is not there stays zero.
INLINE void parse_frame(struct xdp_md *ctx, struct filter_frame *frame)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    u64 bytes;
    int tag;

    if (data + ETHERNET_BYTES > end)
        return;
    frame->ethertype = BE16(*(u16 *)(data + 12));
    frame->payload = ETHERNET_BYTES;
    for (tag = 0; tag < 2; tag++) {
        if (frame->ethertype != ETHERTYPE_VLAN && frame->ethertype != ETHERTYPE_QINQ)
            break;
        data += VLAN_BYTES;
        frame->payload += VLAN_BYTES;
        if (data + ETHERNET_BYTES > end)
            return;
        frame->ethertype = BE16(*(u16 *)(data + 12));
    }
    data += ETHERNET_BYTES;
    if (frame->ethertype == ETHERTYPE_IPV4 && data + IPV4_BYTES <= end) {
        frame->ip = 4;
        mapped(frame->source, data + 12);
        mapped(frame->destination, data + 16);
        frame->fragment = BE16(*(u16 *)(data + 6));
        frame->ttl = *(u8 *)(data + 8);
        frame->protocol = *(u8 *)(data + 9);
        bytes = (*(u8 *)data & 15) * 4;
        frame->payload += bytes;
        if (bytes < IPV4_BYTES || frame->fragment & IPV4_FRAGMENT_OFFSET)
            return;
        parse_ports(data + bytes, end, frame);
    } else if (frame->ethertype == ETHERTYPE_IPV6 && data + IPV6_BYTES <= end) {
        frame->ip = 6;
        __builtin_memcpy(frame->source, data + 8, 16);
        __builtin_memcpy(frame->destination, data + 24, 16);
        frame->ttl = *(u8 *)(data + 7);
        frame->protocol = *(u8 *)(data + 6);
        frame->payload += IPV6_BYTES;
        parse_ports(data + IPV6_BYTES, end, frame);
    }
}

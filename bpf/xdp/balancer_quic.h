// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Routing by QUIC-LB connection ids in the clear: first byte with three configuration bits, then the server id.
// The real chose the id, so it names the real; clients keep it when their address or port changes.
#pragma once

#include "balancer_track.h"

#define QUIC_LONG_HEADER 0x80
#define QUIC_LONG_TYPE 0x30 // Initial 0x00, 0-RTT 0x10: ids chosen by the client
#define QUIC_VERSION_2 0x6b3343cf // its types are one higher (RFC 9369)
#define QUIC_HANDSHAKE 0x20
#define QUIC_UNROUTABLE 7
#define QUIC_LONG_ID_OFFSET 6 // flags, version, length of the id
#define QUIC_MIN_LONG_ID 8

// Where the destination connection id starts, counted from the UDP header; 0: it is not ours to read.
INLINE u64 quic_id_offset(u8 *udp, void *end)
{
    u64 first;

    if ((void *)udp + UDP_BYTES + 1 > end)
        return 0;
    first = udp[UDP_BYTES];
    if (!(first & QUIC_LONG_HEADER))
        return UDP_BYTES + 1;
    if ((void *)udp + UDP_BYTES + QUIC_LONG_ID_OFFSET > end || udp[UDP_BYTES + 5] < QUIC_MIN_LONG_ID)
        return 0;
    if (*(u32 *)(udp + UDP_BYTES + 1) == BE32(QUIC_VERSION_2))
        first -= 0x10;
    return (first & QUIC_LONG_TYPE) < QUIC_HANDSHAKE ? 0 : UDP_BYTES + QUIC_LONG_ID_OFFSET;
}

INLINE int find_by_quic_id(struct xdp_md *ctx, struct packet *p, struct lb_vip *vip, struct choice *to)
{
    void *end = (void *)(long)ctx->data_end, *udp = (void *)(long)ctx->data + p->l4;
    struct lb_quic_key key = {.vip = vip->number};
    u64 at = quic_id_offset(udp, end);
    u32 *backend;
    u8 *id;

    if (!at)
        return 0;
    id = udp + (at & 15);
    if ((void *)id + 1 + LB_QUIC_ID_BYTES > end)
        return 0;
    key.rotation = id[0] >> 5;
    if (key.rotation == QUIC_UNROUTABLE)
        return 0;
#pragma unroll
    for (int i = 0; i < LB_QUIC_ID_BYTES; i++)
        if (i < vip->quic_id_bytes)
            key.id[i] = id[1 + i];
    backend = bpf_map_lookup_elem(map(lb_quic_ids), &key);
    if (!backend || !is_live(*backend)) {
        to->reason = LB_quic_unknown;
        return 0;
    }
    to->backend = *backend;
    to->reason = LB_quic_id;
    return 1;
}

INLINE int find_by_source(struct packet *p, struct lb_vip *vip, struct choice *to)
{
    struct lb_source_key ALIGNED key = {.length = 160, .vip = vip->number};
    u32 *backend;

    copy16(key.address, p->source);
    backend = bpf_map_lookup_elem(map(lb_sources), &key);
    if (!backend || !is_live(*backend))
        return 0;
    to->backend = *backend;
    to->reason = LB_source_route;
    return 1;
}

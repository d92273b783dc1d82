// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Whether a frame belongs to a TCP connection that is known: to this host's own sockets, or to the balancer.
#pragma once

#include "xdp/filter_follow.h"
#include "xdp/filter_maps.h"
#include "xdp/filter_parse.h"

// A connection that a socket of ours has established: what guards and samples go by.
INLINE u64 is_own(const struct filter_frame *frame)
{
    struct filter_connection key = {};

    if (frame->protocol != IP_TCP)
        return 0;
    __builtin_memcpy(key.local, frame->destination, 16);
    __builtin_memcpy(key.remote, frame->source, 16);
    key.local_port = frame->destination_port;
    key.remote_port = frame->source_port;
    return bpf_map_lookup_elem(map(filter_connections), &key) != 0;
}

INLINE u64 filter_own(struct xdp_md *ctx)
{
    struct filter_frame frame = {};

    parse_frame(ctx, &frame);
    return is_own(&frame);
}

// The last segment of a handshake of which, in a flood, nothing is kept: its number says that the host made it.
INLINE u64 has_cookie(struct xdp_md *ctx, const struct filter_frame *frame, struct bpf_sock *listener)
{
    u32 at = frame->payload - frame->transport;
    u8 ip[IPV6_BYTES] ALIGNED = {};
    struct tcp tcp = {};

    if (bpf_xdp_load_bytes(ctx, at, &tcp, sizeof(tcp)))
        return 0;
    ip[0] = frame->ip << 4 | 5; // of which the addresses alone count
    if (frame->ip == 6) {
        copy16(ip + 8, frame->source);
        copy16(ip + 24, frame->destination);
        return bpf_tcp_check_syncookie(listener, ip, IPV6_BYTES, &tcp, sizeof(tcp)) == 0;
    }
    *(u32 *)(ip + 12) = *(const u32 *)(frame->source + 12);
    *(u32 *)(ip + 16) = *(const u32 *)(frame->destination + 12);
    return bpf_tcp_check_syncookie(listener, ip, IPV4_BYTES, &tcp, sizeof(tcp)) == 0;
}

// Connections that a socket of ours begins or ends, which are in no table of established ones.
INLINE u64 has_socket(struct xdp_md *ctx, const struct filter_frame *frame)
{
    struct bpf_sock_tuple ends = {};
    struct bpf_sock *sock;
    u64 known;

    if (frame->ip == 6) {
        copy16_words(ends.ipv6.saddr, frame->source);
        copy16_words(ends.ipv6.daddr, frame->destination);
        ends.ipv6.sport = frame->source_port;
        ends.ipv6.dport = frame->destination_port;
    } else {
        ends.ipv4.saddr = *(const u32 *)(frame->source + 12);
        ends.ipv4.daddr = *(const u32 *)(frame->destination + 12);
        ends.ipv4.sport = frame->source_port;
        ends.ipv4.dport = frame->destination_port;
    }
    sock = bpf_skc_lookup_tcp(ctx, &ends, frame->ip == 6 ? sizeof(ends.ipv6) : sizeof(ends.ipv4), BPF_F_CURRENT_NETNS, 0);
    if (!sock)
        return 0;
    known = sock->state != BPF_TCP_LISTEN || has_cookie(ctx, frame, sock);
    bpf_sk_release(sock);
    return known;
}

INLINE u64 filter_state(struct xdp_md *ctx)
{
    struct filter_frame frame = {};

    parse_frame(ctx, &frame);
    if (is_own(&frame))
        return 1;
    if (!(frame.has & FRAME_TCP) || (frame.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
        return 0;
    return has_socket(ctx, &frame);
}

// The same beside a balancer, whose connections filter_follow.h knows. A segment that may be dropped is kept, like one
// that passes: so the next one that goes on from it is known.
INLINE u64 filter_state_vips(struct xdp_md *ctx, struct filter_scratch *scratch)
{
    struct filter_following *f = &scratch->following;
    struct filter_segment *last = 0;
    int state = look_at(ctx, f, &last);

    if (state == FOLLOW_NO_VIP)
        return filter_state(ctx);
    if (state == FOLLOW_NEW && last && !(f->flags & TCP_SYN))
        keep_segment(last, f);
    return state != FOLLOW_NEW;
}

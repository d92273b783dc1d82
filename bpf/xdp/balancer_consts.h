// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Limits, flags and reasons of the balancer. The collector reads names and numbers from this file.
#pragma once

#define LB_RING_SLOTS 65537
#define LB_VIP_PLACES_LOG2 14 // size of the table of VIPs
#define LB_TICK_SHIFT 26 // a tick is 2^26 ns of the monotonic clock, about 67 ms
#define LB_REASON_STRIDE 64 // reason counters kept for each VIP
#define LB_GUE_PORT 6080
#define LB_TTL 64
#define LB_QUIC_ID_BYTES 8

// Of a VIP. LB_VIP_SLOW gathers those that send a packet off the straight path.
enum lb_vip_flag {
    LB_VIP_QUIC = 1, // route by server id in QUIC connection ids
    LB_VIP_SOURCE_ROUTES = 2, // some source prefixes have reals of their own
    LB_VIP_SOURCE_HASH = 4, // the source port does not count: a client stays on its real
    LB_VIP_UNTRACKED = 8, // changed slots move at once
};
#define LB_VIP_SLOW (LB_VIP_QUIC | LB_VIP_SOURCE_ROUTES)

enum lb_backend_flag {
    LB_BACKEND_LIVE = 1, // flows may go on to it (also while it drains)
    LB_BACKEND_IPV6 = 2, // its address and thus the outer header
    LB_BACKEND_GUE = 4,
    LB_BACKEND_REDIRECT = 8, // leave through another interface
};

// Every packet ends in exactly one of: a backend's packet counter, a PASS, a DROP or a REPLY reason.
// FORWARD reasons say more about forwarded packets and are counted beside the backend's counter.
#define LB_PASS_REASONS(X)                                                                                     \
    X(not_ip, "neither IPv4 nor IPv6")                                                                         \
    X(not_vip, "no VIP has this address, port and protocol")                                                   \
    X(other_protocol, "a VIP's address, but neither TCP, UDP nor ICMP")                                        \
    X(other_icmp, "ICMP to a VIP that is neither echo nor an error about a flow")

#define LB_DROP_REASONS(X)                                                                                     \
    X(malformed, "lengths or versions in the IP header contradict the frame")                                  \
    X(truncated, "the transport header is cut off")                                                            \
    X(unknown_fragment, "a fragment whose first one was not seen")                                             \
    X(no_real, "the VIP has no live real")                                                                     \
    X(no_headroom, "no room before the packet for the outer header")                                           \
    X(too_big_silent, "too big to encapsulate, and an error about it is forbidden")

#define LB_REPLY_REASONS(X)                                                                                    \
    X(echo_reply, "ICMP echo to a VIP answered")                                                               \
    X(too_big, "too big to encapsulate: the sender was told the size that fits")

#define LB_FORWARD_REASONS(X)                                                                                  \
    X(table, "a changed slot: the flow was in the table")                                                      \
    X(former, "a changed slot: an older flow went on to the former real")                                      \
    X(remembered, "a changed slot: a new flow was put in the table")                                           \
    X(learned, "a changed slot: a UDP flow was put in the table with its former real")                         \
    X(unremembered, "a changed slot: the table's budget was spent, so a new flow went to the former real")     \
    X(quic_id, "routed by its QUIC connection id")                                                             \
    X(quic_unknown, "a QUIC connection id of no real: routed by the ring")                                     \
    X(source_route, "routed by its source prefix")                                                             \
    X(fragment, "a later fragment, routed like the first one")                                                 \
    X(icmp_error, "an ICMP error, routed to the real of the flow it is about")                                 \
    X(sample_lost, "a sampled flow record found no room in the ring buffer")

#define LB_REASON_NAME(name, text) LB_##name,
enum lb_reason {
    LB_PASS_REASONS(LB_REASON_NAME) LB_PASS_END,
    LB_DROP_FIRST = LB_PASS_END - 1,
    LB_DROP_REASONS(LB_REASON_NAME) LB_DROP_END,
    LB_REPLY_FIRST = LB_DROP_END - 1,
    LB_REPLY_REASONS(LB_REASON_NAME) LB_REPLY_END,
    LB_FORWARD_FIRST = LB_REPLY_END - 1,
    LB_FORWARD_REASONS(LB_REASON_NAME) LB_REASONS,
    LB_GO, // parsing went well: not counted
};

_Static_assert(LB_REASONS <= LB_REASON_STRIDE, "more reasons than counters");

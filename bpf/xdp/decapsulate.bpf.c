// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// For reals: takes the balancer's outer header off (IPIP of all kinds, GUE variant 1) and lets the packet go on
// up to the stack, which owns the VIP's address and answers the client directly.
// Only what comes from a balancer is taken: the outer source must lie in one of the prefixes of `balancers`, and
// the address inside that it is for in one of `vips`, so that a forged outer source reaches nothing but the VIPs.

#include "headers.h"
#include "packet.h"

#define GUE_PORT 6080

enum decapsulate_count { DECAPSULATED, NOT_ENCAPSULATED, STRANGER, NOT_VIP, BROKEN, COUNTS };

struct balancer_prefix {
    u32 length;
    u8 address[16];
};

MAP_FLAGS(LPM_TRIE, balancers, struct balancer_prefix, u32, 1024, NO_PREALLOC)
MAP_FLAGS(LPM_TRIE, vips, struct balancer_prefix, u32, 4096, NO_PREALLOC)
MAP(PERCPU_ARRAY, decapsulate_counts, u32, u64, COUNTS)

struct outer {
    u64 bytes; // of the outer headers; 0: there are none
    u64 inner_ipv6;
    struct balancer_prefix source;
};

INLINE int finish(int count, int verdict)
{
    count_in(map(decapsulate_counts), count);
    return verdict;
}

// An IP version nibble behind a GUE header's UDP; 0 if it is something else.
INLINE u64 gue_version(void *udp, void *end)
{
    struct udp *header = udp;
    u8 *inner = udp + UDP_BYTES;

    if ((void *)(inner + 1) > end || header->destination != BE16(GUE_PORT))
        return 0;
    return *inner >> 4 == 4 || *inner >> 4 == 6 ? *inner >> 4 : 0;
}

INLINE void measure(struct outer *outer, void *next, void *end, u64 protocol, u64 bytes)
{
    u64 version;

    if (protocol == IP_IPIP || protocol == IP_IPV6) {
        outer->bytes = bytes;
        outer->inner_ipv6 = protocol == IP_IPV6;
    } else if (protocol == IP_UDP) {
        version = gue_version(next, end);
        outer->bytes = version ? bytes + UDP_BYTES : 0;
        outer->inner_ipv6 = version == 6;
    }
}

INLINE void parse_outer(struct outer *outer, void *data, void *end)
{
    struct ipv4 *v4 = data + ETHERNET_BYTES;
    struct ipv6 *v6 = data + ETHERNET_BYTES;
    u64 type;

    if ((void *)(v4 + 1) > end)
        return;
    type = *(u16 *)(data + 12);
    outer->source.length = 128;
    if (type == BE16(ETHERTYPE_IPV4) && v4->version_length == 0x45 &&
        !(v4->fragment & BE16(IPV4_FRAGMENT_OFFSET | IPV4_MORE_FRAGMENTS))) {
        *(u32 *)(outer->source.address + 8) = 0xffff0000;
        *(u32 *)(outer->source.address + 12) = v4->source;
        measure(outer, v4 + 1, end, v4->protocol, IPV4_BYTES);
    } else if (type == BE16(ETHERTYPE_IPV6) && (void *)(v6 + 1) <= end) {
        copy16_words(outer->source.address, v6->source);
        measure(outer, v6 + 1, end, v6->next, IPV6_BYTES);
    }
}

// Whom the packet inside is for; false where it is cut off.
INLINE int read_destination(struct balancer_prefix *to, void *data, void *end, struct outer *outer)
{
    struct ipv4 *v4 = data + ETHERNET_BYTES + (outer->bytes & 63);
    struct ipv6 *v6 = (void *)v4;

    to->length = 128;
    if (outer->inner_ipv6) {
        if ((void *)(v6 + 1) > end)
            return 0;
        copy16_words(to->address, v6->destination);
        return 1;
    }
    if ((void *)(v4 + 1) > end)
        return 0;
    *(u32 *)(to->address + 8) = 0xffff0000;
    *(u32 *)(to->address + 12) = v4->destination;
    return 1;
}

XDP(decapsulate)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    struct balancer_prefix to = {};
    struct outer outer = {};
    u64 addresses;
    u32 rest;

    parse_outer(&outer, data, end);
    if (!outer.bytes)
        return finish(NOT_ENCAPSULATED, XDP_PASS);
    if (!bpf_map_lookup_elem(map(balancers), &outer.source))
        return finish(STRANGER, XDP_PASS);
    if (data + ETHERNET_BYTES > end || !read_destination(&to, data, end, &outer))
        return finish(BROKEN, XDP_DROP);
    if (!bpf_map_lookup_elem(map(vips), &to))
        return finish(NOT_VIP, XDP_PASS);
    addresses = *(u64 *)data;
    rest = *(u32 *)(data + 8);
    if (bpf_xdp_adjust_head(ctx, (int)outer.bytes))
        return finish(BROKEN, XDP_DROP);
    data = (void *)(long)ctx->data;
    end = (void *)(long)ctx->data_end;
    if (data + ETHERNET_BYTES + IPV4_BYTES > end)
        return finish(BROKEN, XDP_DROP);
    *(u64 *)data = addresses;
    *(u32 *)(data + 8) = rest;
    *(u16 *)(data + 12) = outer.inner_ipv6 ? BE16(ETHERTYPE_IPV6) : BE16(ETHERTYPE_IPV4);
    return finish(DECAPSULATED, XDP_PASS);
}

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// The bench's wrapper: gives a program the packet as it was before the last round, with the addresses and ports
// of another flow if wanted, and calls it. Beside it the references: a trivial pass, and the least that an
// encapsulating program can do.

#include "common/probe.h"

#define FRAME_BYTES 128

struct frame {
    u32 length; // of the whole packet
    u32 target;
    u32 ipv6;
    u32 flows; // a power of two; 0: always the same
    u64 round;
    u8 bytes[FRAME_BYTES];
};

MAP(ARRAY, frames, u32, struct frame, 1)
MAP(PROG_ARRAY, targets, u32, u32, 16)

static long (*tail_call)(void *ctx, void *programs, u32 index) = (void *)BPF_FUNC_tail_call;

// Varies the source: low bytes of the address, and the port.
static __always_inline void next_flow(void *data, struct frame *frame)
{
    u64 flow = frame->round * 0x9e3779b97f4a7c15ULL >> 32 & (frame->flows - 1);

    frame->round += 1;
    if (frame->ipv6) {
        *(u32 *)(data + 34) ^= flow << 12;
        *(u16 *)(data + 54) ^= flow;
    } else {
        *(u32 *)(data + 26) ^= flow << 12;
        *(u16 *)(data + 34) ^= flow;
    }
}

XDP(restore)
{
    u32 zero = 0, target;
    struct frame *frame = bpf_map_lookup_elem(map(frames), &zero);
    long length = (long)ctx->data_end - (long)ctx->data;
    void *data;

    asm volatile("" : "+r"(length));
    if (!frame)
        return XDP_ABORTED;
    if (length != frame->length && bpf_xdp_adjust_head(ctx, (int)(length - frame->length)))
        return XDP_ABORTED;
    data = (void *)(long)ctx->data;
    if (data + 80 > (void *)(long)ctx->data_end)
        return XDP_ABORTED;
    for (int i = 0; i < 10; i++)
        ((u64 *)data)[i] = ((u64 *)frame->bytes)[i];
    if (frame->flows)
        next_flow(data, frame);
    target = frame->target;
    tail_call(ctx, map(targets), target);
    return XDP_ABORTED;
}

XDP(trivial)
{
    return XDP_PASS;
}

// Ethernet and a constant IPv4 header.
XDP(least)
{
    void *data;

    if (bpf_xdp_adjust_head(ctx, -20))
        return XDP_DROP;
    data = (void *)(long)ctx->data;
    if (data + 34 > (void *)(long)ctx->data_end)
        return XDP_DROP;
    *(u64 *)data = 0x0200000000010200ULL;
    *(u32 *)(data + 8) = 0x02000000;
    *(u16 *)(data + 12) = 8;
    *(u64 *)(data + 14) = 0x0040000000500045ULL;
    *(u32 *)(data + 22) = 0x12340440;
    *(u32 *)(data + 26) = 0x0100000a;
    *(u32 *)(data + 30) = 0x0200000a;
    return XDP_TX;
}

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Whether a frame belongs to a connection that this host's own sockets have established.
#pragma once

#include "xdp/filter_maps.h"
#include "xdp/filter_parse.h"

INLINE u64 is_established(const struct filter_frame *frame)
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

INLINE u64 filter_state(struct xdp_md *ctx)
{
    struct filter_frame frame = {};

    parse_frame(ctx, &frame);
    return is_established(&frame);
}

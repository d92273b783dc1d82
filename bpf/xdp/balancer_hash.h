// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// The flow hash: multiplications and shifts on 64-bit words. collector/balancer/flow.py is the same in Python.
#pragma once

#include "balancer_vip.h"

// Upper 32 bits choose the slot, lower 32 vary the outer source.
INLINE u64 flow_hash(struct packet *p, u64 ports, u64 seed)
{
    u64 hash = p->source[1] ^ seed;

    if (p->flags & PACKET_IPV6) {
        hash = (hash ^ hash >> 32) * HASH_A;
        hash ^= p->source[0];
        hash = (hash ^ hash >> 32) * HASH_B;
    }
    hash ^= ports;
    hash = (hash ^ hash >> 32) * HASH_A;
    hash = (hash ^ hash >> 29) * HASH_B;
    return hash ^ hash >> 32;
}

INLINE u64 slot_of(u64 hash)
{
    return (hash >> 32) * LB_RING_SLOTS >> 32;
}

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Flow records: every 2^n-th packet that a CPU sent to a backend, where it came from and where it went. Struct, ring and its
// functions are made from the declaration, schemas/lb_flow.avsc.
#pragma once

#include "balancer_track.h"

INLINE void sample_flow(struct packet *p, struct lb_vip *vip, const struct lb_backend *to, struct choice *choice,
                        u64 hash)
{
    struct lb_flow_event *event = lb_flow_reserve();

    if (!event) {
        count_reason(vip->number, LB_sample_lost);
        return;
    }
    event->ts = bpf_ktime_get_ns();
    copy16(event->source_address, p->source);
    copy16(event->destination_address, p->key.address);
    copy16(event->real_address, to->address);
    event->vip_number = vip->number;
    event->backend = choice->backend;
    event->slot = slot_of(hash);
    event->bytes = p->length;
    event->weight = vip->sample_mask + 1;
    event->source_port = BE16(p->ports);
    event->destination_port = BE16(p->ports >> 16);
    event->protocol = p->key.protocol;
    event->tcp_flags = p->tcp_flags;
    event->reason_number = choice->reason == LB_GO ? LB_REASONS : choice->reason;
    lb_flow_submit(event);
}

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Just enough tracking. A steady slot names its backend and that is all; see docs/decisions on tracking.
//
// Changed slot, rules in this order:
//   1. a flow of the table goes where the table says, if that backend is live and the entry is not stale;
//   2. with no former backend, everything goes to the current one;
//   3. a new flow goes to the current backend and is put in the table; where the table's budget is spent
//      it goes to the former one, which needs no memory, because
//   4. every other flow goes to the former backend.
// New is: a TCP SYN; a UDP packet after the VIP's learning time (before it, unknown UDP flows are old ones and
// are put in the table with the former backend). Whatever depends on the former time keeps the slot changed.
#pragma once

#include "balancer_hash.h"

// Where a packet goes and why (a FORWARD reason, or LB_GO for the ring alone).
struct choice {
    u64 backend;
    u64 reason;
};

INLINE u64 now_ticks(void)
{
    return bpf_ktime_get_coarse_ns() >> LB_TICK_SHIFT;
}

INLINE int is_live(u64 backend)
{
    u32 index = backend;
    struct lb_backend *found = bpf_map_lookup_elem(map(lb_backends), &index);

    return found && found->flags & LB_BACKEND_LIVE;
}

// May this CPU add an entry to the table? A token bucket: a flood fills nothing.
INLINE int spend_budget(u64 now)
{
    struct lb_settings *settings;
    struct lb_budget *budget;
    u64 gained;
    u32 zero = 0;

    settings = bpf_map_lookup_elem(map(lb_settings), &zero);
    budget = bpf_map_lookup_elem(map(lb_budgets), &zero);
    if (!settings || !budget)
        return 0;
    gained = (now - budget->tick) * settings->refill >> 4;
    if (gained) {
        budget->tick = now;
        budget->left += gained;
        if (budget->left > settings->budget)
            budget->left = settings->budget;
    }
    if (!budget->left)
        return 0;
    budget->left -= 1;
    return 1;
}

INLINE void make_flow_key(struct lb_flow_key *key, struct packet *p, struct lb_vip *vip)
{
    copy16(key->source, p->source);
    copy16(key->destination, p->key.address);
    key->ports = p->ports;
    key->vip = vip->number;
    key->protocol = p->key.protocol;
    key->zero = 0;
}

INLINE int remember(struct lb_flow_key *key, u64 backend, u64 now)
{
    struct lb_flow_entry entry = {.backend = backend, .seen = now};

    return spend_budget(now) && bpf_map_update_elem(map(lb_flows), key, &entry, ANY) == 0;
}

// The slot stays changed for another idle time; written seldom, as other CPUs read the line.
INLINE void keep_changed(struct lb_slot *slot, struct lb_vip *vip, u64 now)
{
    u64 until = now + vip->idle;

    if (slot->until && (s64)(until - slot->until) > (s64)(vip->idle >> 3))
        slot->until = until;
}

// Rule 1.
INLINE int find_in_table(struct lb_flow_key *key, struct lb_vip *vip, u64 now, struct choice *to)
{
    struct lb_flow_entry *entry = bpf_map_lookup_elem(map(lb_flows), key);

    // Signed: another CPU may have seen the flow a tick later than our `now`.
    if (!entry || (s64)(now - entry->seen) > (s64)vip->idle || !is_live(entry->backend))
        return 0;
    if (entry->seen != now)
        entry->seen = now;
    to->backend = entry->backend;
    to->reason = LB_table;
    return 1;
}

// Rules 3 and 4 for a flow that the table does not know.
INLINE void place_unknown(struct lb_flow_key *key, struct packet *p, struct lb_vip *vip, u64 now, u64 current,
                          u64 former, struct choice *to)
{
    int learning = 0, new = p->flags & PACKET_SYN;

    if (p->key.protocol == IP_UDP && !(p->flags & PACKET_ICMP_ERROR)) {
        learning = now < vip->learn_until;
        new = !learning;
    }
    to->backend = former;
    to->reason = LB_former;
    if (current == former || (!new && !learning))
        return;
    if (!remember(key, learning ? former : current, now)) {
        to->reason = LB_unremembered;
    } else if (learning) {
        to->reason = LB_learned;
    } else {
        to->backend = current;
        to->reason = LB_remembered;
    }
}

INLINE void choose_in_changed_slot(struct lb_slot *slot, struct packet *p, struct lb_vip *vip, struct choice *to)
{
    struct lb_flow_key ALIGNED key;
    u64 packed = *(u64 *)slot, current = packed & 0xffff, former = packed >> 16 & 0xffff;
    u64 until = packed >> 32, now = now_ticks();

    to->backend = current;
    if (now > until) { // over: steady from here on
        *(u64 *)slot = current;
        return;
    }
    make_flow_key(&key, p, vip);
    if (!find_in_table(&key, vip, now, to)) {
        if (!former || !is_live(former))
            return;
        place_unknown(&key, p, vip, now, current, former, to);
    }
    if (to->backend != current && to->reason != LB_unremembered && to->reason != LB_learned)
        keep_changed(slot, vip, now);
}

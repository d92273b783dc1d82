// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* user_stack_from(ip, sp, bp): a program's stack like user_stack(ctx), but led through functions that keep no
 * frame pointer, as those of distributions' libraries, at its innermost end.
 *
 * Where such a function has its return address the host reads in the file's call frame information, once its
 * addresses have come up (collector/ondemand/rules.py), and puts it into `frame_rules`: until then its callers are
 * missing. ip is a return address: that of the call whose end is probed.
 */
#pragma once
#include "common/stack.h"

#define FRAMELESS 8 /* functions without frame pointer at the innermost end */

struct frame_place {
	u64 pid;
	u64 address;
};
struct frame_rule {
	u32 size;  /* of the frame, return address included */
	u32 saved; /* the caller's frame pointer lies so far below the frame's end; 0: in its register */
};
struct frame_link {
	u64 base;
	u64 address;
};
MAP(HASH, frame_rules, struct frame_place, struct frame_rule, 8192)

static __always_inline u64 user_stack_from(u64 ip, u64 sp, u64 base)
{
	struct stack_scratch *scratch = take_scratch();
	if (!scratch)
		return 0;
	struct stack_record *record = &scratch->record;
	struct frame_place place = {bpf_get_current_pid_tgid() >> 32, ip};
	record->frames = 0;
#pragma clang loop unroll(disable)
	for (u32 at = 0; at < FRAMELESS; at++) {
		record->addresses[at] = place.address;
		record->frames = at + 1;
		struct frame_rule *rule = bpf_map_lookup_elem(map(frame_rules), &place);
		if (!rule)
			break;
		u64 end = sp + rule->size, saved = rule->saved, next = 0;
		bpf_probe_read_user(&next, sizeof(next), (void *)(end - 8));
		if (saved)
			bpf_probe_read_user(&base, sizeof(base), (void *)(end - saved));
		sp = end;
		place.address = next;
	}
	/* Read back, so that the verifier need not follow each number by itself. */
	u32 frames = *(volatile u32 *)&record->frames;
	if (frames > FRAMELESS)
		frames = FRAMELESS;
#pragma clang loop unroll(disable)
	for (u32 at = 0; at < STACK_FRAMES - FRAMELESS; at++) {
		struct frame_link link = {};
		if (bpf_probe_read_user(&link, sizeof(link), (void *)base) || !link.address)
			break;
		record->addresses[frames + at] = link.address;
		record->frames = frames + at + 1;
		if (link.base <= base)
			break;
		base = link.base;
	}
	u64 all = *(volatile u32 *)&record->frames;
	u64 number = tell_stack(record, all * 8, place.pid);
	scratch->busy = 0;
	return number;
}

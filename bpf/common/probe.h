// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The few words every BPF source here is written in. The loader scans a source for them (collector/source.py)
 * and never changes its text: what they need from the running kernel arrives as definitions before it.
 *
 *   TP_BTF(sched_switch) { ... ctx ... }      a program on a raw tracepoint, arguments checked against BTF
 *   RAW_TP(name) TRACEPOINT(category, name)   the same without BTF; the classic tracepoint
 *   XDP(name) TC(name) PERF_EVENT(name) UPROBE(name)    attached by whoever loads it
 *   UPROBE_MULTI(name)                        for many functions at once, Linux 6.6
 *   MAP(HASH, name, key, value, entries)      a map; map(name) is its address in calls of helpers
 *   NEAR(stream) NEAR_SIZED(stream, places)   see near.h
 *   GAP(name)                                 see gap.h
 *   KERNEL_STRUCT(task_struct, pid, sched_info.run_delay, ?__state)
 *                                             struct task_struct with these members, at the offsets and of the
 *                                             types that the running kernel has; ? marks one it may lack
 *   HAS(task_struct, __state)                 1 or 0: whether an optional member is there (a.b is written a__b)
 *   ARG(kfree_skb, reason)                    the argument of that name of a raw tracepoint, from ctx
 *   HAS_ARG(kfree_skb, rx_sk)                 whether it is there; makes it optional
 *   KERNEL_ENUM(skb_drop_reason, SKB_CONSUMED)    defines that constant with the running kernel's value
 *   SYSCALLS(read, openat)                    NR_read, NR_openat: numbers of system calls; negative if there is none
 *   POSSIBLE_CPUS PAGE_BYTES                  how many CPUs this host may have; the size of a page
 *   SETTING(slow_io_us, 20000)                a number that can be set while the probe runs; setting(slow_io_us)
 */
#pragma once
#include "maps.h"

#define PROGRAM(name, type) static __always_inline int name(type *ctx)
#define TP_BTF(tracepoint) PROGRAM(tp_btf__##tracepoint, u64)
#define RAW_TP(tracepoint) PROGRAM(raw_tp__##tracepoint, u64)
#define TRACEPOINT(category, name) PROGRAM(tracepoint__##category##__##name, void)
#define PERF_EVENT(name) PROGRAM(perf_event__##name, void)
#define UPROBE(name) PROGRAM(uprobe__##name, struct pt_regs)
#define UPROBE_MULTI(name) PROGRAM(uprobe_multi__##name, struct pt_regs)
#define XDP(name) PROGRAM(xdp__##name, struct xdp_md)
#define TC(name) PROGRAM(tc__##name, struct __sk_buff)

#define KERNEL_STRUCT(...)
#define KERNEL_ENUM(...)
#define SYSCALLS(...)
#define HAS(type, member) HAS_##type##__##member
#define ARG(tracepoint, name) ctx[ARG_##tracepoint##__##name]
#define HAS_ARG(tracepoint, name) HAS_ARG_##tracepoint##__##name

/* A member of a kernel struct reached through a pointer that the verifier does not know. */
#define KERNEL_READ(place)                                                                                     \
	({                                                                                                     \
		typeof(place) _value; /* zero when it cannot be read */                                          \
		bpf_probe_read_kernel(&_value, sizeof(_value), &(place));                                      \
		_value;                                                                                        \
	})

/* log2 in steps of one: 0 → 0, 1 → 1, 2–3 → 2, 4–7 → 3 …; what is too large falls into the last bucket.
 * 64 bits throughout, and hidden from the optimiser before the comparison: the verifier must see the bound.
 */
static __always_inline u64 log2_bucket(u64 value, u64 buckets)
{
	u64 bucket = 0, half;
#define HALVE(bits)                                                                                            \
	half = (u64)(value >= 1ULL << bits) * bits;                                                            \
	value >>= half;                                                                                        \
	bucket += half;
	HALVE(32) HALVE(16) HALVE(8) HALVE(4) HALVE(2) HALVE(1)
#undef HALVE
	bucket += value;
	asm volatile("" : "+r"(bucket));
	return bucket < buckets ? bucket : buckets - 1;
}

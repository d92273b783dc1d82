// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// What the filter keeps in maps. collector/filter/layout.py has the same layouts for Python; a test compares them.
#pragma once

#include "xdp/headers.h"
#include "xdp/packet.h"

#define FILTER_RULES 4096
#define FILTER_WORDS (FILTER_RULES / 64)
#define FILTER_TABLE (FILTER_RULES - 64) // from here on, places and slots are those of table rules
#define FILTER_NO_RULE 0xffff
#define FILTER_RAW 128

enum filter_action { FILTER_NONE, FILTER_DROP, FILTER_PASS, FILTER_SAMPLE, FILTER_LIMIT };
enum filter_mode { FILTER_SHADOW, FILTER_ENFORCE };
enum filter_decision { FILTER_UNDECIDED, FILTER_DECIDED_DROP, FILTER_DECIDED_PASS };
enum filter_verdict { FILTER_PASSED, FILTER_DROPPED, FILTER_WOULD_DROP, FILTER_VERDICTS };

// A rule's part that changes while it runs: by its slot.
struct filter_rule {
    u64 deadline; // in jiffies: no effect from then on
    u64 interval; // of a limit: ns a packet
    u64 burst; // of a limit: ns of packets that may come at once
    u32 budget; // samples a CPU takes in a window
    u8 action, mode, prefix, unused;
};

struct filter_counter {
    u64 packets[FILTER_VERDICTS];
    u64 bytes[FILTER_VERDICTS];
    u64 established; // dropped, or in shadow, of connections that are established
};

// A frame's fields; what is not there is zero.
struct filter_frame {
    u8 source[16], destination[16];
    u16 ethertype, source_port, destination_port, fragment; // ports as on the wire
    u8 protocol, ttl, tcp_flags, ip; // ip: 4, 6 or 0
    u16 payload; // where it starts: behind the header of UDP or TCP, else behind that of IP
    u8 has; // FRAME_PORTS, FRAME_TCP
    u8 transport; // bytes of the TCP header before that
};
enum { FRAME_PORTS = 1, FRAME_TCP = 2 };

// Sampling on one CPU: one packet in 2^shift on average, each with equal chance.
struct filter_sampler {
    u64 left; // packets until the next sample
    u64 end; // jiffies at which the window ends
    u64 seen; // packets when the window began
    u32 counted; // packets that samples stand for
    u16 taken; // samples in this window
    u16 shift;
};

// A TCP flow to a VIP.
struct filter_flow {
    u8 source[16], destination[16];
    u32 ports, zero; // as on the wire
};
// The last segment of one that is not known yet.
struct filter_segment {
    u32 tag; // of the flow; 0: nobody's
    u32 next; // the sequence number that goes on from it
    u32 acknowledged;
    u32 kind; // follow_kind
};
// A segment on its way.
struct filter_following {
    struct filter_flow flow;
    struct filter_segment seen;
    u64 flags;
    u32 sequence, zero;
};

// One a CPU. What every packet asks for comes first. Generated code knows the places of `summary`,
// `sets_known` and `hits`.
struct filter_scratch {
    u64 summary; // which words of hits are not zero
    u64 packets, bytes; // let through without a rule deciding
    struct filter_sampler sampler; // of those
    u32 sets_known; // bit 0: sets[0] is right, bit 1: sets[1] is
    u32 decided; // what a rule said
    u64 hits[FILTER_WORDS]; // rules a frame matched, by their place in the program
    u64 allowed; // frames that a rule matched and the allow-list let through
    u64 lost; // samples that found no room
    u32 sets[2]; // of this frame: sets its source and destination are in
    u32 window; // of sampling, jiffies
    u64 now;
    u8 source[16]; // of limits, its last byte aside
    u32 last;
    u32 sample; // being recorded: slot, verdict << 16
    u32 followed; // whether connections are
    u32 weight; // of the sample
    u64 candidates; // table rules still to be looked at
    struct filter_frame frame; // of them
    u64 follow_left, follow_tick; // entries of filter_known that this CPU may make
    struct filter_following following;
};

struct filter_config {
    u64 flags;
    u32 window; // jiffies
    u32 budget; // samples of passed traffic that a CPU takes in a window
    u32 half; // which half of filter_chunks holds
    u32 half6; // which half of filter_chunks6 and filter_hints6 holds
    u64 table; // table rules in force, a bit for each
};
enum { FILTER_SETS4 = 1, FILTER_SETS6 = 2, FILTER_LIMITS = 8, FILTER_ALLOWING = 16, FILTER_FOLLOWED = 32 }; // flags

#define FILTER_ALLOW 1u // the bit of the allow-list among sets

// Sets: what an address's first 16 bits lead to, spans from `first` on. count 0: `first` is the sets of all of them.
struct filter_chunk {
    u32 first, count;
};
struct filter_span {
    u32 start, sets; // addresses from start up to the next span's
};
struct filter_span6 {
    u64 high, low; // of the address, as numbers
    u32 sets, zero;
};

// What is left to ask of a table rule whose fields fit (filter_table.h).
struct filter_fields {
    u8 source[16], source_mask[16], destination[16], destination_mask[16];
    u8 payload[16], payload_mask[16];
    u32 source_sets, not_source_sets, destination_sets, not_destination_sets; // any of, none of
    u16 payload_at;
    u8 payload_bytes, state; // state 0: any, 1: new, 2: established
    u32 unused;
};

struct filter_bucket_key {
    u8 source[16];
    u32 slot, zero;
};
struct filter_connection {
    u8 local[16], remote[16];
    u16 local_port, remote_port; // as on the wire
    u32 zero;
};

enum filter_top_kind { TOP_SOURCE, TOP_SOURCE_NET, TOP_DESTINATION, TOP_PORT, TOP_LENGTH, TOP_TTL };
struct filter_top_key {
    u8 item[16];
    u8 kind, verdict;
    u8 zero[6];
};
struct filter_top_value {
    u64 packets, bytes;
};

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Layouts shared by the balancer and the collector, which reads them from this file: fixed-width fields only,
// in network order where the comment says so, IPv4 addresses mapped into IPv6 (::ffff:a.b.c.d).
#pragma once

#include "common/probe.h"

// What packets are looked up by. Port 0: any port. Port 0 and protocol 0: the address itself (ICMP, fragments).
// A prefix is known by a made-up address that starts with eight bytes of 0xff.
struct lb_vip_key {
    u8 address[16];
    u16 port; // network order
    u8 protocol;
    u8 used; // 1
};

// An entry of the table of VIPs: one cache line. The table is built whole by the collector, each key in one of
// its two places (balancer_vip.h), and replaced whole.
struct lb_vip {
    u8 address[16];
    u16 port;
    u8 protocol;
    u8 used;
    u32 number; // of its ring and its reason counters
    u64 seed; // of the flow hash; the same on every balancer
    u32 flags; // lb_vip_flag
    u32 sample_mask; // a flow record for each packet whose count has these bits zero
    u32 idle; // ticks after which a silent flow is forgotten
    u32 learn_until; // tick: until then unknown UDP flows of changed slots are old ones
    u32 quic_id_bytes; // length of the server id in its connection ids
    u32 zero[3];
};

// A slot of a ring: one load reads it whole. Steady: former and until are 0.
// Changed (until the tick `until`): flows of the table go where the table says, others to `former`
// if there is one, new ones to `current`. Packets that need the former real push `until` on.
struct lb_slot {
    u16 current; // backend numbers; 0 is none
    u16 former;
    u32 until;
};

// A real as one VIP sees it: all that forwarding needs, in one cache line.
struct lb_backend {
    u32 flags; // lb_backend_flag
    u16 mtu; // largest IP packet that fits with the outer header
    u16 zero;
    u32 ifindex; // where LB_BACKEND_REDIRECT leaves
    u32 checksum; // IPv4: sum of the outer header but length, type of service, protocol, varied source
    u32 source_mask; // network order: bits of the IPv4 source (IPv6: of its last four bytes) that vary
    u8 macs[12]; // next hop's, ours
    u8 source[16]; // of the outer header; varied bits 0
    u8 address[16]; // the real
};

struct lb_counters {
    u64 packets;
    u64 bytes; // of the IP packet as it came
    u64 flows; // TCP SYN
    u64 zero;
};

struct lb_flow_key {
    u8 source[16];
    u8 destination[16];
    u32 ports; // as on the wire
    u16 vip;
    u8 protocol;
    u8 zero;
};

struct lb_flow_entry {
    u32 backend;
    u32 seen; // tick
};

struct lb_settings {
    u32 any_port; // some VIP takes any port
    u32 prefixes; // some VIP is a prefix
    u32 budget; // table entries a CPU may make at once
    u32 refill; // and again, for each 16 ticks
};

struct lb_budget {
    u64 left;
    u64 tick;
};

struct lb_prefix_key {
    u32 length;
    u8 address[16];
};

struct lb_prefix {
    u8 address[16];
};

struct lb_source_key {
    u32 length; // 32 more than the prefix's own
    u32 vip;
    u8 address[16];
};

struct lb_quic_key {
    u32 vip;
    u32 rotation; // the configuration bits of the connection id
    u8 id[8];
};

struct lb_fragment_key {
    u8 source[16];
    u8 destination[16];
    u32 id;
    u32 protocol;
};
